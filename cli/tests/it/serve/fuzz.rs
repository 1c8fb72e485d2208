//! Ten thousand bodies that are wrong in as many ways, the same ones in every run.

use super::client::{Client, Daemon};
use crate::support::Sandbox;
use schema::Seed;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

const BODIES: u64 = 10_000;
const THREADS: u64 = 4;

/// Text that occurs in the victim's requests and answers alone.
const SECRET: &str = "SECRET-7f3a";

#[test]
fn ten_thousand_malformed_bodies_neither_end_the_daemon_nor_show_what_others_asked() {
    let sandbox = Sandbox::new();
    let daemon =
        Daemon::start(&sandbox, "sampler = { max_new_tokens = 4 }\nengine = { max_running = 8 }\nmax_waiting = 40\n");
    let victim =
        json!({"prompt": format!("My word is {SECRET}."), "seed": 5, "max_tokens": 12, "return_token_ids": true});
    let answer = |client: &mut Client| client.post("/v1/completions", &victim).ok()["choices"][0].clone();
    let expected = answer(&mut daemon.client());
    let text = expected["text"].as_str().unwrap();
    assert!(text.chars().count() > 4, "{text}");

    let over = AtomicBool::new(false);
    let refused: u64 = std::thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let mut client = daemon.client();
            while !over.load(Ordering::Relaxed) {
                assert_eq!(answer(&mut client), expected, "other requests changed the answer");
            }
        });
        let attack = |thread: u64| {
            let mut client = daemon.client();
            let numbers = (0..BODIES).filter(move |number| number % THREADS == thread);
            numbers.filter(|number| refuses(&mut client, *number, text)).count() as u64
        };
        let attackers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || attack(thread))).collect();
        let refused = attackers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        watched.join().unwrap();
        refused.into_iter().map(Result::unwrap).sum()
    });
    // Some mutations are harmless by chance; the corpus would be weak if many were.
    assert!(refused > BODIES * 9 / 10, "only {refused} of {BODIES} bodies were refused");
    assert_eq!(answer(&mut daemon.client()), expected);
    daemon.await_metric("proxrl_waiting_samples", 0.0);
    daemon.await_metric("proxrl_running_samples", 0.0);
}

/// Sends the body with this number; returns true if it was refused. Anything but an orderly answer fails the test.
fn refuses(client: &mut Client, number: u64, secret_text: &str) -> bool {
    let dice = Dice { seed: Seed::new(11).at(number), rolled: 0.into() };
    let (path, body) = malformed(&dice);
    let answer = client.send("POST", path, "content-type: application/json\r\n", &body);
    let shown = String::from_utf8_lossy(&answer.body);
    let sent = String::from_utf8_lossy(&body);
    assert!([200, 400, 404, 413, 429].contains(&answer.status), "{}: {shown}\nfor {sent}", answer.status);
    assert!(!shown.contains(SECRET) && !shown.contains(secret_text), "{shown}\nfor {sent}");
    if answer.status == 200 {
        return false;
    }
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{shown}");
    assert!(json["error"]["type"].is_string(), "{shown}");
    true
}

/// Random numbers with an address: the body of a number is always the same.
struct Dice {
    seed: Seed,
    rolled: std::cell::Cell<u64>,
}

impl Dice {
    fn below(&self, bound: usize) -> usize {
        self.rolled.set(self.rolled.get() + 1);
        self.seed.below(self.rolled.get(), bound as u64) as usize
    }

    fn pick<T: Clone>(&self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    fn bytes(&self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.below(256) as u8).collect()
    }
}

/// A path and a body that it should not take.
fn malformed(dice: &Dice) -> (&'static str, Vec<u8>) {
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "n": 1,
        "temperature": 1.0, "top_p": 0.9, "stop": ["x"], "logprobs": true, "top_logprobs": 2, "seed": 1});
    let text = json!({"model": "tiny", "prompt": "hi", "max_tokens": 2, "n": 1, "temperature": 0.5, "top_k": 3,
        "min_p": 0.1, "stop": "x", "logprobs": 1, "prompt_logprobs": 1, "stream": false, "seed": 2});
    let load = json!({"lora_name": "a", "lora_path": "nowhere", "load_inplace": false});
    let unload = json!({"lora_name": "a"});
    let (path, valid) = dice.pick(&[
        ("/v1/chat/completions", chat),
        ("/v1/completions", text),
        ("/v1/load_lora_adapter", load),
        ("/v1/unload_lora_adapter", unload),
    ]);
    let written = valid.to_string().into_bytes();
    let body = match dice.below(8) {
        0 => dice.bytes(200),
        // A prefix of an object is never one.
        1 => written[..dice.below(written.len())].to_vec(),
        2 => flipped(dice, written),
        3 | 4 => replaced(dice, valid).to_string().into_bytes(),
        5 => with_stranger(dice, valid).to_string().into_bytes(),
        6 => nested(dice),
        _ => broken_text(dice, &written),
    };
    (path, body)
}

/// Bytes exchanged at random positions.
fn flipped(dice: &Dice, mut body: Vec<u8>) -> Vec<u8> {
    for _ in 0..=dice.below(8) {
        let index = dice.below(body.len());
        body[index] = dice.below(256) as u8;
    }
    body
}

/// One or more values of another kind, or far out of range.
fn replaced(dice: &Dice, mut body: Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    let names: Vec<String> = fields.keys().filter(|name| *name != "seed").cloned().collect();
    for _ in 0..=dice.below(3) {
        fields.insert(dice.pick(&names), wrong_value(dice));
    }
    body
}

fn wrong_value(dice: &Dice) -> Value {
    match dice.below(14) {
        0 => json!(-1 - dice.below(1000) as i64),
        1 => json!(1e300),
        2 => json!(i64::MIN),
        3 => json!(u64::MAX),
        4 => json!([]),
        5 => json!({}),
        6 => json!([[[{"a": [1, {"b": null}]}]]]),
        7 => json!([1, "two", 3.5, null, true]),
        8 => json!([999_999_999, -5]),
        9 => json!({"role": "user", "content": ["x"]}),
        10 => json!(0.123_456),
        11 => {
            json!([{"role": dice.pick(&["user", "king", ""]), "content": dice.pick(&[json!(1), json!([{"type": "image_url"}])])}])
        }
        12 => json!([""]),
        _ => json!({"type": "text", "text": {"text": "text"}}),
    }
}

/// A parameter that no endpoint takes.
fn with_stranger(dice: &Dice, mut body: Value) -> Value {
    let letters = "abcdefghijklmnopqrstuvwxyz_🦀\u{0}\"\\%{}";
    let letters: Vec<char> = letters.chars().collect();
    let name: String = (0..=dice.below(30)).map(|_| dice.pick(&letters)).collect();
    body.as_object_mut().unwrap().insert(format!("no_{name}"), json!(true));
    body
}

/// Brackets, deeper than any reader should follow.
fn nested(dice: &Dice) -> Vec<u8> {
    let depth = 100 + dice.below(20_000);
    let (open, close) = dice.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"messages\":", "}]")]);
    let whole = dice.below(2) == 0;
    let end = if whole { close.repeat(depth) } else { String::new() };
    format!("{{\"prompt\":{}1{end}", open.repeat(depth)).into_bytes()
}

/// Texts that are not text: bytes that are no UTF-8, half surrogates, raw control characters.
fn broken_text(dice: &Dice, written: &[u8]) -> Vec<u8> {
    let garbage: &[u8] = dice.pick(&[
        &b"\xff\xfe"[..],
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\\u12",
        b"\\x41",
        b"\x00",
        b"\x1b[2J",
        b"\n",
    ]);
    // Behind the first quotation mark of the first value.
    let quotes: Vec<usize> =
        written.iter().enumerate().filter(|(_, byte)| **byte == b'"').map(|(index, _)| index).collect();
    let index = quotes[dice.below(2).min(quotes.len() - 1)] + 1;
    [&written[..index], garbage, &written[index..]].concat()
}
