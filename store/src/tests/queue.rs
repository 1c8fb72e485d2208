//! Jobs: each is done once, whichever process dies.

use super::{begin, count, group, new_run, new_store, one};
use crate::{Error, Lease, NewJob, RunId, RunStatus, Store, Value};
use schema::{Group, PolicyVersion};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = "abc";
const LONG: Duration = Duration::from_secs(50);

/// Environment variable with the store's URL for a worker that will be killed.
const CHILD: &str = "PROXRL_STORE_TEST_WORKER";

fn jobs(count: usize) -> Vec<NewJob> {
    let job = |place| NewJob { place, groups: 1, min_version: 0, request: format!("job {place}") };
    (0..count).map(job).collect()
}

/// The group that a worker samples for a job: its question names the job.
fn drawn(lease: &Lease) -> Vec<Group> {
    vec![group(&format!("question {} of step {}", lease.place, lease.step), 0, &[None, None]).group().clone()]
}

fn claim(store: &Store, worker: &str, lease: Duration) -> Option<Lease> {
    store.claim(worker, MODEL, None, lease).unwrap()
}

fn done(store: &Store, run: RunId, step: u64) -> u64 {
    store.job_progress(run, step, 0..usize::MAX >> 1).unwrap().done
}

#[test]
fn jobs_are_taken_in_order_and_each_by_one() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 2, &jobs(2)).unwrap();
    store.enqueue(run, 1, &jobs(2)).unwrap();
    // Asking again changes nothing.
    store.enqueue(run, 1, &jobs(2)).unwrap();
    let taken: Vec<(u64, usize, String)> = (0..4)
        .map(|_| claim(&store, "a", LONG).unwrap())
        .map(|lease| (lease.step, lease.place, lease.request))
        .collect();
    let expected = [(1, 0, "job 0"), (1, 1, "job 1"), (2, 0, "job 0"), (2, 1, "job 1")];
    assert_eq!(taken, expected.map(|(step, place, request)| (step, place, request.to_owned())));
    assert_eq!(claim(&store, "b", LONG), None);
    assert_eq!(store.job_progress(run, 1, 0..2).unwrap(), crate::JobProgress { jobs: 2, done: 0, groups: 0 });
}

#[test]
fn only_running_runs_of_the_same_base_are_served() {
    let (_place, store) = new_store();
    let other = store.begin_run(&crate::NewRun { model_hash: "other".into(), ..new_run("other") }).unwrap();
    let (over, mine) = (begin(&store, "over"), begin(&store, "mine"));
    for run in [other, over, mine] {
        store.enqueue(run, 1, &jobs(1)).unwrap();
    }
    store.finish_run(over, RunStatus::Finished).unwrap();
    assert_eq!(store.claim("a", MODEL, Some(other), LONG).unwrap(), None);
    assert_eq!(claim(&store, "a", LONG).unwrap().run, mine);
    assert_eq!(claim(&store, "a", LONG), None);
}

#[test]
fn what_a_job_drew_comes_with_its_end_and_is_judged_later() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 1, &jobs(2)).unwrap();
    for _ in 0..2 {
        let lease = claim(&store, "a", LONG).unwrap();
        assert!(store.finish_job(&lease, &drawn(&lease)).unwrap());
    }
    assert_eq!((count(&store, "samples"), count(&store, "rewards"), done(&store, run, 1)), (4, 0, 2));
    assert!(store.verify().unwrap().is_sound(), "{}", store.verify().unwrap().checks);
    // The step is not collected yet, and the finished groups wait for it.
    assert_eq!(store.step_groups(run, 1).unwrap(), None);
    let groups = store.drawn(run, 1, 0..2).unwrap();
    assert_eq!(groups[1].prompt.question(), "question 1 of step 1");
    assert_eq!(groups[1].policy, PolicyVersion { version: 0, hash: "hash 0".into() });
    let verdicts = |reward| vec![super::verdict(Some(reward)); 2];
    let scored: Vec<schema::GradedGroup> = groups
        .into_iter()
        .zip([0.0, 1.0])
        .map(|(group, reward)| schema::GradedGroup::new(group, verdicts(reward)).unwrap())
        .collect();
    // Other samples than the workers' are not accepted in their stead.
    let mut other = scored.clone();
    other[0] = group("question 0 of step 1", 0, &[Some(1.0), Some(1.0)]);
    assert!(matches!(store.append_step(run, 1, &other, None).unwrap_err(), Error::AskedOtherwise { .. }));
    assert!(matches!(store.append_step(run, 1, &scored[..1], None).unwrap_err(), Error::AskedOtherwise { .. }));
    // A group of no worker is appended beside them.
    let own = group("drawn here", 0, &[Some(1.0)]);
    let all: Vec<schema::GradedGroup> = scored.into_iter().chain([own]).collect();
    store.append_step(run, 1, &all, Some("step_0")).unwrap();
    assert_eq!(super::step_groups(&store, run, 1).unwrap().unwrap(), all);
    assert_eq!((count(&store, "samples"), count(&store, "rewards"), count(&store, "policies")), (5, 5, 1));
    assert!(store.verify().unwrap().is_sound(), "{}", store.verify().unwrap().checks);
    assert!(matches!(store.append_step(run, 1, &all, None).unwrap_err(), Error::StepExists { .. }));
}

#[test]
fn a_late_duplicate_is_refused_and_leaves_nothing() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 1, &jobs(1)).unwrap();
    let late = claim(&store, "late", Duration::ZERO).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    // Its lease is over, so another one takes the job, even one that has the same name.
    let second = claim(&store, "late", LONG).unwrap();
    assert_eq!((late.attempt, second.attempt, late.job), (1, 2, second.job));
    assert!(!store.extend(&late, LONG).unwrap());
    assert!(!store.finish_job(&late, &drawn(&late)).unwrap());
    assert_eq!((count(&store, "samples"), done(&store, run, 1)), (0, 0));
    store.release(&late).unwrap();
    assert!(store.extend(&second, LONG).unwrap());
    assert!(store.finish_job(&second, &drawn(&second)).unwrap());
    for lease in [&late, &second] {
        assert!(!store.finish_job(lease, &drawn(lease)).unwrap(), "a job has one result");
    }
    assert_eq!((count(&store, "groups"), count(&store, "samples"), done(&store, run, 1)), (1, 2, 1));
    assert_eq!(claim(&store, "b", LONG), None);
}

#[test]
fn a_lease_that_is_extended_lasts_and_one_that_is_given_back_does_not() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 1, &jobs(1)).unwrap();
    let lease = claim(&store, "a", Duration::ZERO).unwrap();
    assert!(store.extend(&lease, LONG).unwrap(), "nobody has taken it meanwhile");
    assert_eq!(claim(&store, "b", LONG), None);
    store.release(&lease).unwrap();
    assert_eq!(claim(&store, "b", LONG).unwrap().attempt, 2);
    // An expired lease that no other worker has taken still counts.
    assert!(!store.finish_job(&lease, &drawn(&lease)).unwrap());
}

#[test]
fn asking_for_something_else_is_an_error() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 1, &jobs(2)).unwrap();
    let mut other = jobs(3);
    other[1].request = "another question".into();
    let error = store.enqueue(run, 1, &other).unwrap_err();
    assert!(matches!(error, Error::AskedOtherwise { step: 1, .. }) && error.is_input(), "{error}");
    assert_eq!(count(&store, "jobs"), 2);
    let lease = claim(&store, "a", LONG).unwrap();
    assert!(store.finish_job(&lease, &[]).unwrap_err().to_string().contains("draws 1 groups, not 0"));
}

#[test]
fn the_newest_policy_of_earlier_steps_is_drawn_from() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    let publish = |version, oldest| {
        let policy = PolicyVersion { version, hash: format!("hash {version}") };
        store.publish(run, &policy, &format!("at {version}"), oldest).unwrap();
    };
    let newest = |step| store.publication(run, step).unwrap().map(|found| (found.policy.version, found.adapter));
    assert_eq!(newest(9), None);
    (0..5).for_each(|version| publish(version, 0));
    assert_eq!((newest(9), newest(3)), (Some((4, "at 4".into())), Some((2, "at 2".into()))));
    // A resumed run makes versions 3 and later once more.
    publish(2, 1);
    assert_eq!((newest(9), newest(1)), (Some((2, "at 2".into())), None));
}

#[test]
fn a_policy_that_is_made_anew_takes_its_number() {
    let (_place, store) = new_store();
    let run = begin(&store, "queue");
    let publish = |hash: &str| store.publish(run, &PolicyVersion { version: 0, hash: hash.into() }, "at", 0).unwrap();
    let drawn_by = |lease: &Lease, hash: &str| {
        let mut groups = drawn(lease);
        groups[0].policy.hash = hash.into();
        groups
    };
    publish("first");
    store.enqueue(run, 1, &jobs(3)).unwrap();
    let leases: Vec<Lease> = (0..3).map(|_| claim(&store, "a", LONG).unwrap()).collect();
    assert!(store.finish_job(&leases[0], &drawn_by(&leases[0], "first")).unwrap());
    publish("second");
    // Later samples of the first one are refused, and its job is free for others at once.
    assert!(!store.finish_job(&leases[1], &drawn_by(&leases[1], "first")).unwrap());
    let again = claim(&store, "b", LONG).unwrap();
    assert_eq!((again.job, again.attempt), (leases[1].job, 2));
    for lease in [&again, &leases[2]] {
        assert!(store.finish_job(lease, &drawn_by(lease, "second")).unwrap());
    }
    let policies: Vec<PolicyVersion> =
        store.drawn(run, 1, 0..3).unwrap().into_iter().map(|group| group.policy).collect();
    let hashes: Vec<&str> = policies.iter().map(|policy| policy.hash.as_str()).collect();
    assert_eq!(hashes, ["first", "second", "second"]);
    assert_eq!((policies[0].version > 1 << 33, policies[1].version), (true, 0));
    assert!(store.verify().unwrap().is_sound());
}

#[test]
fn workers_are_counted_while_they_are_heard_of() {
    let (_place, store) = new_store();
    store.see_worker("a", MODEL, 0).unwrap();
    store.see_worker("a", MODEL, 3).unwrap();
    store.see_worker("b", MODEL, 1).unwrap();
    store.see_worker("c", "other", 1).unwrap();
    assert_eq!(store.workers_alive(MODEL, LONG).unwrap(), 2);
    store.forget_worker("b").unwrap();
    assert_eq!(store.workers_alive(MODEL, LONG).unwrap(), 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(store.workers_alive(MODEL, Duration::from_millis(1)).unwrap(), 0);
}

#[test]
fn whoever_waits_is_woken() {
    let (place, store) = new_store();
    let run = begin(&store, "queue");
    let waiting = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let store = Store::open(place.url()).unwrap();
            let start = Instant::now();
            while store.claim("a", MODEL, None, LONG).unwrap().is_none() {
                store.wait_for_jobs(LONG).unwrap();
            }
            start.elapsed()
        });
        std::thread::sleep(Duration::from_millis(300));
        store.enqueue(run, 1, &jobs(1)).unwrap();
        waiter.join().unwrap()
    });
    assert!(waiting < Duration::from_secs(20), "{waiting:?}");
}

/// Takes jobs until there are none, or until it is killed.
fn work_forever(url: &str, name: &str) -> ! {
    let store = Store::open(url).unwrap();
    println!("ready");
    loop {
        match store.claim(name, MODEL, None, Duration::from_millis(400)).unwrap() {
            Some(lease) => {
                std::thread::sleep(Duration::from_millis(10));
                // A lost job belongs to another worker.
                store.finish_job(&lease, &drawn(&lease)).unwrap();
            }
            None => store.wait_for_jobs(Duration::from_millis(100)).unwrap(),
        }
    }
}

fn start_worker(url: &str, name: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::queue::killed_workers_lose_no_job_and_do_none_twice", "--nocapture"])
        .env(CHILD, format!("{name} {url}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
    assert!(ready.any(|line| line.ends_with("ready")), "the worker did not start");
    child
}

#[test]
fn killed_workers_lose_no_job_and_do_none_twice() {
    const JOBS: usize = 120;
    // The test starts itself as the workers that it kills.
    if let Ok(names) = std::env::var(CHILD) {
        let (name, url) = names.split_once(' ').unwrap();
        work_forever(url, name);
    }
    let (place, store) = new_store();
    let run = begin(&store, "queue");
    store.enqueue(run, 1, &jobs(JOBS)).unwrap();
    let mut workers: Vec<Child> = ["a", "b"].iter().map(|name| start_worker(place.url(), name)).collect();
    let start = Instant::now();
    let mut kills = 0;
    while done(&store, run, 1) < JOBS as u64 {
        assert!(start.elapsed() < Duration::from_secs(90), "{} jobs are done", done(&store, run, 1));
        std::thread::sleep(Duration::from_millis(37 + 11 * (kills % 7)));
        if kills < 12 {
            let victim = (kills % 2) as usize;
            workers[victim].kill().unwrap();
            workers[victim].wait().unwrap();
            workers[victim] = start_worker(place.url(), &format!("worker-{kills}"));
            kills += 1;
        }
    }
    for worker in &mut workers {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    assert_eq!((count(&store, "groups"), count(&store, "samples")), (JOBS as i64, 2 * JOBS as i64));
    let groups = store.drawn(run, 1, 0..JOBS).unwrap();
    let questions: HashSet<&str> = groups.iter().map(|group| group.prompt.question()).collect();
    assert_eq!(questions.len(), JOBS);
    let again = store.query("SELECT COUNT(*) FROM jobs WHERE attempts > 1").unwrap();
    assert_ne!(one(&again), &Value::Integer(0), "no job of {kills} killed workers was done again");
    assert!(store.verify().unwrap().is_sound());
}
