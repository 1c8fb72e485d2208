//! Connections that a server ends: what was done once is there once.

use super::cluster::Cluster;
use super::{begin, count, execute, group, is_postgres, new_run, new_store, one, realistic_step, step_groups};
use crate::{Error, GroupId, NewJob, RunStatus, SampleId, Scoring, Store, Value};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Ends a store's connection, as an administrator may.
fn end_connection(store: &Store, by: &Store) {
    let Value::Text(pid) = one(&store.query("SELECT CAST(pg_backend_pid() AS TEXT)").unwrap()).clone() else {
        panic!("a number")
    };
    execute(by, format!("SELECT pg_terminate_backend({pid}, 9000)"));
}

#[test]
fn a_lost_connection_is_renewed_and_a_step_is_appended_once() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    let other = Store::open(place.url()).unwrap();
    let run = begin(&store, "run");
    for step in 1..=3 {
        end_connection(&store, &other);
        store.append_step(run, step, &realistic_step(step, 2, 2, 5), None).unwrap();
        end_connection(&store, &other);
        assert_eq!(step_groups(&store, run, step).unwrap().unwrap(), realistic_step(step, 2, 2, 5));
    }
    assert_eq!(count(&other, "samples"), 12);
    // What is in the store by another hand is no first try.
    assert!(matches!(store.append_step(run, 3, &[], None).unwrap_err(), Error::StepExists { .. }));
    end_connection(&store, &other);
    assert!(matches!(store.append_step(run, 3, &[], None).unwrap_err(), Error::StepExists { .. }));
}

#[test]
fn what_must_not_be_done_twice_is_an_error_that_is_no_ones_fault() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    let other = Store::open(place.url()).unwrap();
    end_connection(&store, &other);
    let error = store.begin_run(&new_run("run")).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }) && !error.is_input(), "{error}");
    // The next call has a connection again.
    begin(&store, "run");
    assert_eq!(count(&other, "runs"), 1);
}

#[test]
fn a_renewed_connection_sees_the_same_scoring() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    let run = begin(&store, "run");
    store.append_step(run, 1, &[group("q", 0, &[Some(1.0)])], None).unwrap();
    let scoring = store.begin_scoring(Some(run), "").unwrap();
    store.add_scores(scoring, &[(vec![SampleId(1)], group("q", 0, &[Some(0.25)]))]).unwrap();
    store.finish_scoring(scoring).unwrap();
    let other = Store::open(place.url()).unwrap();
    let latest = store.judged_by(Scoring::Latest).unwrap();
    let reward = || one(&latest.query("SELECT reward FROM reward_view").unwrap()).clone();
    assert_eq!(reward(), Value::Real(0.25));
    end_connection(&latest, &other);
    assert_eq!(reward(), Value::Real(0.25));
    assert_eq!(latest.groups(&[GroupId(1)]).unwrap()[0].scored.rewards(), [Some(0.25)]);
}

/// A way to the server that loses answers: it takes connections at a port of its own.
struct Lossy {
    port: u16,
    /// Set to lose the answer to the next COMMIT, and the connection with it.
    armed: Arc<AtomicBool>,
}

impl Lossy {
    fn before(socket: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, armed) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let flag = armed.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                carry(client.unwrap(), UnixStream::connect(&socket).unwrap(), flag.clone());
            }
        });
        Self { port, armed }
    }
}

fn carry(client: TcpStream, server: UnixStream, armed: Arc<AtomicBool>) {
    let cut = Arc::new(AtomicBool::new(false));
    let (mut from, mut to, is_cut) = (client.try_clone().unwrap(), server.try_clone().unwrap(), cut.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 1 << 12];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let commits = buffer[..length].windows(6).any(|bytes| bytes == b"COMMIT");
            if commits && armed.swap(false, Ordering::SeqCst) {
                is_cut.store(true, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = [0; 1 << 12];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // The server has answered: it is committed.
            if cut.load(Ordering::SeqCst) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// The part of a URL behind `name=`.
fn parameter<'a>(url: &'a str, name: &str) -> &'a str {
    let (_, rest) = url.split_once(&format!("{name}=")).unwrap();
    rest.split('&').next().unwrap()
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_done_again() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    let way = Lossy::before(format!("{}/.s.PGSQL.5432", parameter(place.url(), "host")));
    let options = parameter(place.url(), "options");
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable&options={options}", way.port);
    let far = Store::open(&url).unwrap();
    let lose_one = || way.armed.store(true, Ordering::SeqCst);
    let run = begin(&store, "run");

    lose_one();
    far.append_step(run, 1, &realistic_step(1, 2, 2, 5), None).unwrap();
    assert_eq!(step_groups(&store, run, 1).unwrap().unwrap(), realistic_step(1, 2, 2, 5));
    assert_eq!((count(&store, "steps"), count(&store, "samples"), count(&store, "rewards")), (1, 4, 4));

    lose_one();
    far.enqueue(run, 2, &[NewJob { place: 0, groups: 2, min_version: 0, request: "draw".into() }]).unwrap();
    assert_eq!(count(&store, "jobs"), 1);
    let lease = far.claim("a", "abc", Some(run), Duration::from_secs(50)).unwrap().unwrap();
    let drawn: Vec<_> = realistic_step(2, 2, 2, 5).iter().map(|graded| graded.group().clone()).collect();
    lose_one();
    assert!(far.finish_job(&lease, &drawn).unwrap());
    assert_eq!((count(&store, "groups"), count(&store, "samples")), (4, 8));
    // Once more it is a late result.
    assert!(!far.finish_job(&lease, &drawn).unwrap());
    assert!(store.verify().unwrap().is_sound());
    assert!(!way.armed.load(Ordering::SeqCst));
}

#[test]
fn a_run_goes_on_when_its_server_was_restarted() {
    if is_postgres() {
        return;
    }
    let Some(mut cluster) = Cluster::start() else { return };
    let store = Store::open(&cluster.base_url()).unwrap();
    let run = begin(&store, "run");
    store.append_step(run, 1, &realistic_step(1, 2, 2, 5), None).unwrap();
    cluster.stop();
    std::thread::scope(|scope| {
        // It may find no server, one that is starting up, or one that is there again.
        let appended = scope.spawn(|| store.append_step(run, 2, &realistic_step(2, 2, 2, 5), None));
        std::thread::sleep(Duration::from_millis(150));
        cluster.start_again();
        appended.join().unwrap().unwrap();
    });
    store.finish_run(run, RunStatus::Finished).unwrap();
    assert_eq!((count(&store, "steps"), count(&store, "samples")), (2, 8));
    assert!(store.verify().unwrap().is_sound());
}

/// A server that refuses every connection with the next of these codes, and with the last from then on.
fn refusing(codes: &'static [&'static str]) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, tries) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counter = tries.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 1024]);
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let fields = format!("SFATAL\0VFATAL\0C{}\0Mnot now\0\0", codes[number.min(codes.len() - 1)]);
            let mut answer = vec![b'E'];
            answer.extend((fields.len() as u32 + 4).to_be_bytes());
            answer.extend(fields.as_bytes());
            let _ = client.write_all(&answer);
        }
    });
    (port, tries)
}

#[test]
fn a_server_that_starts_up_is_waited_for_and_a_refusal_is_not() {
    if is_postgres() {
        return;
    }
    // cannot_connect_now, twice; then invalid_password
    let (port, tries) = refusing(&["57P03", "57P03", "28P01"]);
    let error = Store::open(&format!("postgres://me@127.0.0.1:{port}/db?sslmode=disable")).unwrap_err();
    assert!(matches!(error, Error::CannotConnect { .. }) && error.is_input(), "{error}");
    assert!(error.to_string().contains("not now; is this the right server"), "{error}");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    // too_many_connections: the server's condition, not the user's input
    let (port, tries) = refusing(&["53300"]);
    let error = Store::open(&format!("postgres://me@127.0.0.1:{port}/db?sslmode=disable")).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && !error.is_input(), "{error}");
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}
