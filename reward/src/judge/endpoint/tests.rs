//! Endpoints that work, that are busy, that hang, that refuse and that talk: each one a server on the loopback.

use super::*;
use crate::judge::Contestant;
use crate::tests::group;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The headers and the body of each request that a server received.
type Heard = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that answers the n-th request with the status, the headers and the body that `answer` gives it.
fn serve(answer: impl Fn(usize, &Value) -> (u16, String, String) + Send + Sync + 'static) -> (String, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (heard, answer) = (Heard::default(), Arc::new(answer));
    let log = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (log, answer) = (log.clone(), answer.clone());
            thread::spawn(move || respond(stream, &log, &*answer));
        }
    });
    (url, heard)
}

fn respond(mut stream: TcpStream, heard: &Heard, answer: &dyn Fn(usize, &Value) -> (u16, String, String)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut headers = String::new();
    while reader.read_line(&mut headers).is_ok_and(|length| length > 2) {}
    let length = headers.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let count = {
        let mut heard = heard.lock().unwrap();
        heard.push((headers, body.clone()));
        heard.len()
    };
    let (status, headers, text) = answer(count - 1, &body);
    let length = text.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(format!("{head}{text}").as_bytes());
}

/// A reply with this word in it.
fn says(word: &str) -> (u16, String, String) {
    (200, String::new(), json!({ "choices": [{ "message": { "content": word } }] }).to_string())
}

fn config(url: &str) -> Config {
    Config { url: url.into(), model: "judge".into(), backoff_s: 0.02, timeout_s: 5.0, ..Config::default() }
}

/// Compares the first text with each of the others.
fn compare(config: &Config, texts: &[&str]) -> Vec<Grade> {
    let group = group("Which?", None, texts);
    let at = |index| Contestant { group: &group, index };
    let pairs: Vec<Matchup<'_>> = (1..texts.len()).map(|index| (at(0), at(index))).collect();
    Endpoint::new(config).unwrap().compare(&pairs)
}

fn reason(judgement: &Grade) -> &str {
    match judgement {
        Grade::Missing(reason) => reason,
        Grade::Value(value) => panic!("judged: {value}"),
    }
}

#[test]
fn each_pair_is_a_request_and_each_reply_finds_its_pair() {
    // B wins where it is "good".
    let (url, heard) = serve(|_, body| {
        let good = body["messages"][1]["content"].as_str().unwrap().contains("<answer B>\ngood\n");
        says(if good { "B" } else { "A" })
    });
    let config = Config { request: json!({ "seed": 1 }).as_object().unwrap().clone(), ..config(&url) };
    let found = compare(&config, &["x", "bad", "good", "worse", "good", "dull"]);
    let values: Vec<_> = found.iter().map(Grade::value).collect();
    assert_eq!(values, [Some(1.0), Some(0.0), Some(1.0), Some(0.0), Some(1.0)]);
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 5);
    let (headers, body) = &heard[0];
    assert!(headers.starts_with("POST /v1/chat/completions "), "{headers}");
    assert!(!headers.to_lowercase().contains("authorization"), "no key was given");
    assert_eq!((&body["model"], &body["temperature"], &body["seed"]), (&json!("judge"), &json!(0.0), &json!(1)));
    assert_eq!(body["messages"][0]["content"], INSTRUCTION);
    let asked = body["messages"][1]["content"].as_str().unwrap();
    assert!(asked.contains("Which?") && asked.contains("<answer A>\nx\n</answer A>"), "{asked}");
    assert_eq!(Endpoint::new(&config).unwrap().compare(&[]), []);
}

#[test]
fn what_may_pass_is_tried_again() {
    let (url, heard) = serve(|count, _| match count {
        0 => (429, "Retry-After: 0\r\n".into(), "slow down".into()),
        1 => (503, String::new(), "starting".into()),
        _ => says("tie"),
    });
    let start = Instant::now();
    assert_eq!(compare(&config(&url), &["a", "b"]), [Grade::Value(0.5)]);
    assert_eq!(heard.lock().unwrap().len(), 3);
    // The first pause is the server's, of no length, and the second twice the first one's 20 ms.
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
}

#[test]
fn a_failure_is_a_reason_and_never_a_tie() {
    let (url, heard) = serve(|_, _| (500, String::new(), "out of memory".into()));
    let found = compare(&Config { retries: 2, ..config(&url) }, &["a", "b"]);
    assert!(reason(&found[0]).contains("answered 500: out of memory"), "{found:?}");
    assert_eq!(heard.lock().unwrap().len(), 3);

    let (url, heard) = serve(|_, _| (400, String::new(), "too long".into()));
    assert!(reason(&compare(&config(&url), &["a", "b"])[0]).contains("400: too long"));
    assert_eq!(heard.lock().unwrap().len(), 1, "what is wrong once is wrong twice");

    let (url, _) = serve(|_, _| says("As a language model"));
    assert!(reason(&compare(&config(&url), &["a", "b"])[0]).contains("neither A, B nor tie: As a language"));
    let (url, _) = serve(|_, _| (200, String::new(), "<html>".into()));
    assert!(reason(&compare(&config(&url), &["a", "b"])[0]).contains("not JSON"));
}

#[test]
fn one_pair_that_fails_leaves_the_others() {
    let (url, _) = serve(|_, body| {
        let bad = body["messages"][1]["content"].as_str().unwrap().contains("<answer B>\nbad\n");
        if bad { (400, String::new(), "no".into()) } else { says("A") }
    });
    let found = compare(&config(&url), &["a", "bad", "b"]);
    assert_eq!(found.iter().map(Grade::value).collect::<Vec<_>>(), [None, Some(1.0)]);
}

#[test]
fn a_slow_answer_is_none() {
    let (url, _) = serve(|_, _| {
        thread::sleep(Duration::from_secs(20));
        says("A")
    });
    let start = Instant::now();
    let found = compare(&Config { timeout_s: 0.2, retries: 1, ..config(&url) }, &["a", "b"]);
    assert!(reason(&found[0]).contains("timeout"), "{found:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_door_that_is_shut_is_knocked_at_once() {
    let (url, heard) = serve(|_, _| (401, String::new(), "no key".into()));
    let found = compare(&Config { concurrency: 1, ..config(&url) }, &["a", "b", "c", "d"]);
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert!(reason(&found[0]).contains("401"));
    assert!(found[1..].iter().all(|judgement| reason(judgement).contains("not asked, because")), "{found:?}");

    // No listener is left at the address of one that has just closed.
    let url = format!("http://{}/v1", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let found = compare(&Config { retries: 0, ..config(&url) }, &["a", "b"]);
    assert!(reason(&found[0]).contains(&url), "{found:?}");
}

#[test]
fn the_key_comes_from_the_environment_and_stays_out_of_the_version() {
    // `PATH` is set wherever tests run.
    let (url, heard) = serve(|_, _| says("A"));
    let keyed = Config { api_key_env: "PATH".into(), ..config(&url) };
    compare(&keyed, &["a", "b"]);
    let sent = heard.lock().unwrap()[0].0.clone();
    let path = std::env::var("PATH").unwrap();
    assert!(sent.lines().any(|line| line.eq_ignore_ascii_case(&format!("authorization: Bearer {path}"))), "{sent}");
    let version = |config: &Config| Endpoint::new(config).unwrap().version();
    assert_eq!(version(&keyed), version(&config(&url)));
    assert_ne!(version(&keyed), version(&Config { model: "other".into(), ..keyed.clone() }));
}

#[test]
fn this_machine_is_known_by_its_names() {
    for (url, expected) in [
        ("http://localhost:8000/v1", true),
        ("http://127.0.0.1:8000/v1", true),
        ("http://[::1]:8000", true),
        ("http://127.1.2.3", true),
        ("https://api.example.com/v1", false),
        ("http://localhost.example.com", false),
    ] {
        assert_eq!(is_loopback(url), expected, "{url}");
    }
}
