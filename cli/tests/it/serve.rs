//! `proxrl rollout serve` over HTTP, as clients of OpenAI's API use it.

mod client;
mod fuzz;

use crate::support::{Sandbox, config};
use client::Daemon;
use serde_json::{Value, json};
use std::net::TcpStream;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// The text of a choice of a stream, joined.
fn joined(events: &[Value], choice: u64) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|it| it["index"].as_u64() == Some(choice));
    own.filter_map(|it| it["text"].as_str().or(it["delta"]["content"].as_str())).collect()
}

#[test]
fn answers_come_whole_and_as_streams_and_are_the_same() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "");
    let mut chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, "n": 3,
        "seed": 7, "temperature": 0.9});
    let whole = daemon.post(CHAT, &chat).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"].as_array().unwrap().len(), 3);
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"],
        json!(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );

    chat["stream"] = json!(true);
    chat["stream_options"] = json!({"include_usage": true});
    let mut events = daemon.post(CHAT, &chat).events();
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"]));
    for (index, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
        assert_eq!(joined(&events, index), choice["message"]["content"].as_str().unwrap());
        let mut reasons = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|it| it["index"] == index && !it["finish_reason"].is_null());
        assert_eq!(reasons.next().unwrap()["finish_reason"], choice["finish_reason"]);
        assert!(reasons.next().is_none());
    }

    let text = json!({"prompt": ["1+1=", "2+2="], "n": 2, "max_tokens": 9, "seed": 7});
    let whole = daemon.post(TEXT, &text).ok();
    let mut streamed = text.clone();
    streamed["stream"] = json!(true);
    let events = daemon.post(TEXT, &streamed).events();
    let texts: Vec<&str> = whole["choices"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap()).collect();
    assert_eq!((0..4).map(|choice| joined(&events, choice)).collect::<Vec<_>>(), texts);
    assert_ne!(texts[0], texts[1]);
    // A base URL and a token are all that a client needs, so curl does as well.
    match std::process::Command::new("curl").arg("--version").output() {
        Ok(_) => assert_eq!(with_curl(&daemon, TEXT, &text)["choices"], whole["choices"]),
        Err(_) => eprintln!("curl is not installed: not tried"),
    }
}

fn with_curl(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let call = std::process::Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*"])
        .args(["--header", &format!("Authorization: Bearer {}", daemon.token)])
        .args(["--json", &body.to_string(), &format!("http://{}{path}", daemon.address)])
        .output()
        .unwrap();
    assert!(call.status.success(), "{call:?}");
    serde_json::from_slice(&call.stdout).unwrap()
}

#[test]
fn a_seed_gives_the_same_text_in_any_batch() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "engine = { max_running = 4 }\n");
    let ask = |seed: u64| json!({"prompt": "Once", "max_tokens": 30, "seed": seed, "return_token_ids": true});
    let ids = |seed: u64| daemon.post(TEXT, &ask(seed)).ok()["choices"][0]["token_ids"].clone();
    let alone: Vec<Value> = (0..12).map(ids).collect();
    let crowded: Vec<Value> = std::thread::scope(|scope| {
        let ids = &ids;
        let threads: Vec<_> = (0..12).map(|seed| scope.spawn(move || ids(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, crowded);
    assert_ne!(alone[0], alone[1]);
    // Without a seed each request has other samples.
    let free = json!({"prompt": "Once", "max_tokens": 30, "return_token_ids": true});
    let [first, second] = [(); 2].map(|()| daemon.post(TEXT, &free).ok()["choices"][0]["token_ids"].clone());
    assert_ne!(first, second);
}

#[test]
fn nothing_of_a_stop_string_or_after_it_is_sent() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "");
    let plain = json!({"prompt": "a", "max_tokens": 60, "seed": 3});
    let text = daemon.post(TEXT, &plain).ok()["choices"][0]["text"].as_str().unwrap().to_owned();
    // Three characters in the middle of the text that is sampled without it.
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[letters.len() / 2..][..3].iter().collect();
    let before = &text[..text.find(&stop).unwrap()];
    let mut stopped = plain.clone();
    stopped["stop"] = json!(["never said", stop]);
    let choice = daemon.post(TEXT, &stopped).ok()["choices"][0].clone();
    assert_eq!((choice["text"].as_str().unwrap(), &choice["finish_reason"]), (before, &json!("stop")));
    stopped["stream"] = json!(true);
    let events = daemon.post(TEXT, &stopped).events();
    assert_eq!(joined(&events, 0), before);
    let mut seen = String::new();
    for event in &events {
        seen += event["choices"][0]["text"].as_str().unwrap();
        assert!(before.starts_with(&seen), "{seen:?} is not how {before:?} begins");
    }
}

#[test]
fn log_probabilities_are_those_that_a_prompt_of_the_same_tokens_has() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "");
    let ask =
        json!({"prompt": "a", "max_tokens": 8, "seed": 1, "temperature": 0.8, "logprobs": 3, "return_token_ids": true});
    let choice = daemon.post(TEXT, &ask).ok()["choices"][0].clone();
    let [prompt, sampled] = ["prompt_token_ids", "token_ids"].map(|key| choice[key].as_array().unwrap().clone());
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), sampled.len());
    let all = [prompt.clone(), sampled.clone()].concat();
    let again = json!({"prompt": all, "max_tokens": 1, "temperature": 0.8,
        "prompt_logprobs": 2});
    let scores = daemon.post(TEXT, &again).ok()["choices"][0]["prompt_logprobs"].as_array().unwrap().clone();
    assert!(scores[0].is_null());
    for (index, (id, logprob)) in sampled.iter().zip(logprobs).enumerate() {
        let score = &scores[prompt.len() + index][id.to_string()];
        assert!((score["logprob"].as_f64().unwrap() - logprob.as_f64().unwrap()).abs() < 1e-4, "{score} {logprob}");
        assert!(score["rank"].as_u64().unwrap() >= 1);
        let top = choice["logprobs"]["top_logprobs"][index].as_object().unwrap();
        assert_eq!(top.len(), 3);
        assert!(
            top.values().all(|value| value.as_f64().unwrap() >= logprob.as_f64().unwrap() - 1e-6
                || score["rank"].as_u64().unwrap() <= 3)
        );
    }

    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "seed": 1, "logprobs": true,
        "top_logprobs": 2, "return_token_ids": true, "stream": true});
    let events = daemon.post(CHAT, &chat).events();
    assert!(events[0]["prompt_token_ids"].is_array());
    let entries: Vec<&Value> =
        events.iter().filter_map(|it| it["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    let ids: usize = events.iter().filter_map(|it| it["choices"][0]["token_ids"].as_array()).map(Vec::len).sum();
    assert!(!entries.is_empty() && entries.len() == ids);
    for entry in entries {
        let best = entry["top_logprobs"][0]["logprob"].as_f64().unwrap();
        let top = entry["top_logprobs"].as_array().unwrap();
        assert!(entry["logprob"].as_f64().unwrap() <= best && top.len() == 2);
        assert!(top.iter().all(|other| other["token"] != entry["token"] || other["logprob"] == entry["logprob"]));
    }
}

#[test]
fn adapters_come_and_go_by_name_over_one_base() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=3", "--out", "run"]);
    let peft = sandbox.ok(&["export", "run"]).trim().to_owned();
    sandbox.write("elsewhere/readme", "");
    let daemon = Daemon::start_with(&sandbox, &["--run", "run", "--port", "0"]);
    let names = || -> Vec<String> {
        let list = daemon.get("/v1/models").ok()["data"].as_array().unwrap().clone();
        list.iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(), ["base", "run"]);
    let loaded = daemon.post("/v1/load_lora_adapter", &json!({"lora_name": "copy/1", "lora_path": peft})).ok();
    assert_eq!((&loaded["id"], &loaded["parent"]), (&json!("copy/1"), &json!("base")));
    assert_eq!(names(), ["base", "run", "copy/1"]);
    assert_eq!(daemon.get("/v1/models/copy%2F1").ok()["id"], "copy/1");

    // All three at once, in turn over one base; the copy is the run.
    let ask = |model: Option<&str>| {
        let body =
            json!({"model": model, "prompt": "1+2=", "max_tokens": 24, "temperature": 0, "return_token_ids": true});
        let answer = daemon.post(TEXT, &body).ok();
        (answer["choices"][0]["token_ids"].clone(), answer["system_fingerprint"].clone())
    };
    let [base, run, copy, silent] = std::thread::scope(|scope| {
        [Some("base"), Some("run"), Some("copy/1"), None]
            .map(|model| scope.spawn(move || ask(model)))
            .map(|it| it.join().unwrap())
    });
    assert_eq!((&run.0, &run.0), (&copy.0, &silent.0));
    assert_ne!(base.0, run.0);
    assert_ne!(base.1, run.1);
    assert_eq!(run.1, daemon.get("/v1/models/run").ok()["policy_hash"]);

    let refused = |path: &str, body: Value, status: u16, words: &str| {
        let answer = daemon.post(path, &body);
        assert!(answer.status == status && answer.text().contains(words), "{body}: {answer:?}");
    };
    let load = "/v1/load_lora_adapter";
    refused(load, json!({"lora_name": "run", "lora_path": "run"}), 400, "loaded already");
    refused(load, json!({"lora_name": "base", "lora_path": "run"}), 400, "is the base model");
    refused(load, json!({"lora_name": "x", "lora_path": "/etc"}), 400, "serve.adapter_root");
    refused(load, json!({"lora_name": "x", "lora_path": "../"}), 400, "serve.adapter_root");
    refused(load, json!({"lora_name": "x", "lora_path": "elsewhere"}), 400, "adapter_config.json");
    refused(load, json!({"lora_name": "\n", "lora_path": "run"}), 400, "`lora_name` must be");
    refused("/v1/unload_lora_adapter", json!({"lora_name": "nobody"}), 404, "does not exist");
    daemon.post(load, &json!({"lora_name": "run", "lora_path": peft, "load_inplace": true})).ok();
    daemon.post("/v1/unload_lora_adapter", &json!({"lora_name": "copy/1"})).ok();
    refused(TEXT, json!({"model": "copy/1", "prompt": "a"}), 404, "model_not_found");
    assert_eq!(names(), ["base", "run"]);
    assert_eq!(daemon.metric("proxrl_adapters"), 1.0);
}

#[test]
fn refusals_have_the_form_of_openai_errors() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "max_body_bytes = 2000\nmax_context = 50\nbody_timeout_s = 0.3\n");
    let json_type = "content-type: application/json\r\n";
    let check = |answer: client::Answer, status: u16, words: &str| {
        assert!(answer.status == status && answer.text().contains(words), "{words}: {answer:?}");
        assert!(answer.json()["error"]["message"].is_string());
    };
    let hi = json!({"messages": [{"role": "user", "content": "hi"}]});
    let mut stranger = client::Client::connect(&daemon.address, "wrong");
    check(stranger.post(CHAT, &hi), 401, "invalid_api_key");
    let mut anonymous = client::Client::connect(&daemon.address, "");
    check(anonymous.send("GET", "/metrics", "", b""), 401, "Authorization: Bearer");
    assert_eq!(anonymous.send("GET", "/health", "", b"").ok(), json!({"status": "ok"}));
    check(daemon.get("/v1/elephants"), 404, "/v1/elephants");
    check(daemon.get(TEXT), 405, "use POST");
    check(daemon.client().send("POST", TEXT, "content-type: text/plain\r\n", b"{}"), 415, "application/json");
    check(daemon.client().send("POST", TEXT, json_type, &[b' '; 3000]), 413, "2000 bytes");
    check(daemon.client().send("POST", TEXT, json_type, b"{"), 400, "not JSON");
    check(daemon.post(TEXT, &json!({"model": "gpt", "prompt": "a"})), 404, "served are: tiny");
    check(daemon.post(TEXT, &json!({"prompt": "a", "max_tokens": 50})), 400, "context_length_exceeded");
    check(daemon.post(TEXT, &json!({"prompt": "a".repeat(50)})), 400, "may have 50");
    check(daemon.post(TEXT, &json!({"prompt": "a", "echo": true})), 400, "unsupported parameter `echo`; ask for");
    check(daemon.post(CHAT, &json!({"messages": [], "tools": [1]})), 400, "unsupported parameter `tools`; describe");
    check(daemon.post(TEXT, &json!({"prompt": "a", "temprature": 1})), 400, "did you mean `temperature`?");
    check(daemon.client().send("POST", "/pause?mode=never", "", b""), 400, "mode=wait");

    // A body that does not come is not waited for.
    let mut slow = daemon.client();
    slow.announce(TEXT, 100);
    check(slow.answer(), 408, "did not arrive in time");
    let count = daemon.metric("proxrl_requests_total{path=\"/v1/completions\",status=\"400\"}");
    assert!(count >= 5.0, "{count}");

    for args in [["--token", "a b"], ["--host", "nowhere.invalid"], ["--set", "serve.prot=1"]] {
        let done = sandbox.run(&[&["rollout", "serve", "--config", "serve.toml"], &args[..]].concat());
        assert_eq!(done.code, Some(2), "{args:?}: {}", done.stderr);
    }
    let port = daemon.address.rsplit(':').next().unwrap();
    let taken = sandbox.run(&["rollout", "serve", "--config", "serve.toml", "--port", port]);
    assert!(taken.code == Some(2) && taken.stderr.contains("choose another with --port"), "{}", taken.stderr);
}

#[test]
fn the_queue_is_bounded_and_a_client_that_disconnects_frees_its_slots() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "engine = { max_running = 2 }\nmax_waiting = 2\n");
    let endless = |n: u64| json!({"prompt": "a", "max_tokens": 4000, "temperature": 0, "n": n, "stream": true});
    let mut first = daemon.client();
    first.begin(TEXT, &endless(2));
    let mut second = daemon.client();
    second.begin(
        CHAT,
        &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3000, "n": 2, "stream": true}),
    );
    assert_eq!((daemon.metric("proxrl_running_samples"), daemon.metric("proxrl_waiting_samples")), (2.0, 2.0));
    let busy = daemon.post(TEXT, &json!({"prompt": "b"}));
    assert_eq!(busy.status, 429, "{busy:?}");
    let seconds = busy.headers.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=60).contains(&seconds.parse::<u64>().unwrap()));
    assert_eq!(busy.json()["error"]["code"], "rate_limit_exceeded");
    // More samples than could ever wait are refused outright.
    assert_eq!(daemon.post(TEXT, &json!({"prompt": "b", "n": 5})).status, 400);

    drop(first);
    drop(second);
    daemon.await_metric("proxrl_running_samples", 0.0);
    daemon.await_metric("proxrl_waiting_samples", 0.0);
    assert_eq!(daemon.metric("proxrl_cancelled_requests_total"), 2.0);
    daemon.post(TEXT, &json!({"prompt": "b", "max_tokens": 2})).ok();

    // A client that waits for a whole answer leaves too.
    let mut whole = daemon.client();
    whole.ask(
        "POST",
        TEXT,
        "content-type: application/json\r\n",
        json!({"prompt": "a", "max_tokens": 4000, "temperature": 0}).to_string().as_bytes(),
    );
    daemon.await_metric("proxrl_running_samples", 1.0);
    drop(whole);
    daemon.await_metric("proxrl_running_samples", 0.0);
}

#[test]
fn a_stream_that_waits_gets_keep_alive_comments() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "engine = { max_running = 1 }\nkeep_alive_s = 0.05\n");
    let ask = json!({"prompt": "b", "max_tokens": 9, "seed": 1, "stream": true});
    let alone = daemon.post(TEXT, &ask);
    assert!(!alone.text().contains("\n:"), "{}", alone.text());

    // In the queue behind an endless request.
    let mut endless = daemon.client();
    endless.begin(TEXT, &json!({"prompt": "a", "max_tokens": 4000, "temperature": 0, "stream": true}));
    let mut waits = daemon.client();
    assert_eq!(waits.begin(TEXT, &ask), ":\n\n");
    assert_eq!(daemon.metric("proxrl_waiting_samples"), 1.0);
    drop(endless);
    assert_eq!(without_comments(&waits.rest()), without_ids(&alone.text()));

    // Before the model's thread has taken it up.
    daemon.client().send("POST", "/pause", "", b"").ok();
    let mut held = daemon.client();
    assert_eq!(held.begin(TEXT, &ask), ":\n\n");
    daemon.client().send("POST", "/resume", "", b"").ok();
    assert_eq!(without_comments(&held.rest()), without_ids(&alone.text()));

    // A refusal is a status and no event.
    assert_eq!(daemon.post(TEXT, &json!({"model": "gpt", "prompt": "b", "stream": true})).status, 404);
}

/// The events of a stream but for its comments, in the form of [`without_ids`].
fn without_comments(text: &str) -> Vec<Value> {
    let events: Vec<&str> = text.split_terminator("\n\n").filter(|event| *event != ":").collect();
    without_ids(&events.join("\n\n"))
}

/// The choices of a stream's events, without the fields that differ between two answers.
fn without_ids(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text.split_terminator("\n\n").map(|it| it.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{text}");
    let choices = |event: &str| serde_json::from_str::<Value>(event).unwrap()["choices"].clone();
    events.into_iter().map(choices).collect()
}

#[test]
fn metrics_have_the_names_of_vllm_and_their_old_ones() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "");
    let answer = daemon.post(TEXT, &json!({"prompt": "a", "max_tokens": 6, "n": 2, "temperature": 0})).ok();
    let tokens = answer["usage"]["completion_tokens"].as_f64().unwrap();
    let scraped = daemon.get("/metrics");
    assert!(scraped.headers.contains("content-type: text/plain; version=0.0.4"), "{}", scraped.headers);
    let vllm = |name: &str| daemon.metric(&format!("vllm:{name}{{model_name=\"tiny\"}}"));
    for (name, old, value) in [
        ("num_requests_running", "running_samples", 0.0),
        ("num_requests_waiting", "waiting_samples", 0.0),
        ("prompt_tokens_total", "prompt_tokens_total", 1.0),
        ("generation_tokens_total", "generated_tokens_total", tokens),
        ("time_to_first_token_seconds_count", "first_token_seconds_count", 1.0),
        ("e2e_request_latency_seconds_count", "request_seconds_count", 1.0),
    ] {
        assert_eq!((vllm(name), daemon.metric(&format!("proxrl_{old}"))), (value, value), "{name}");
    }
    let finished = daemon.metric("vllm:request_success_total{model_name=\"tiny\",finished_reason=\"length\"}");
    assert_eq!(finished, 2.0);
    assert!(vllm("e2e_request_latency_seconds_sum") >= vllm("time_to_first_token_seconds_sum"));
}

#[test]
fn a_pause_keeps_waits_or_aborts() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, "");
    let pause = |mode: &str| daemon.client().send("POST", &format!("/pause{mode}"), "", b"").ok()["status"].clone();
    let resume = || daemon.client().send("POST", "/resume", "", b"").ok()["status"].clone();
    let long = json!({"prompt": "a", "max_tokens": 1500, "temperature": 0, "stream": true});
    let mut running = daemon.client();
    running.begin(TEXT, &long);
    assert_eq!(pause(""), "paused");
    assert_eq!(daemon.get("/health").ok()["status"], "paused");
    let steps = daemon.metric("proxrl_engine_steps_total");
    let short = json!({"prompt": "b", "max_tokens": 3, "seed": 1});
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| daemon.post(TEXT, &short).ok());
        daemon.await_metric("proxrl_waiting_samples", 1.0);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(daemon.metric("proxrl_engine_steps_total"), steps);
        assert!(!waits.is_finished());
        assert_eq!(resume(), "ok");
        waits.join().unwrap();
    });
    assert!(running.rest().ends_with("data: [DONE]\n\n"));

    let mut ends = daemon.client();
    ends.begin(TEXT, &long);
    assert_eq!(pause("?mode=wait"), "paused");
    assert_eq!(daemon.metric("proxrl_running_samples"), 0.0);
    assert!(ends.rest().ends_with("data: [DONE]\n\n"));
    resume();

    let mut fails = daemon.client();
    fails.begin(TEXT, &long);
    assert_eq!(pause("?mode=abort"), "paused");
    let rest = fails.rest();
    assert!(rest.contains("\"code\":\"aborted\"") && !rest.contains("[DONE]"), "{rest}");
    resume();
    daemon.post(TEXT, &short).ok();
}

#[test]
fn a_terminated_daemon_finishes_running_requests() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, "");
    let long = json!({"prompt": "a", "max_tokens": 1500, "temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    let mut running = daemon.client();
    running.begin(TEXT, &long);
    let mut idle = daemon.client();
    assert_eq!(idle.send("GET", "/health", "", b"").status, 200);
    daemon.signal("-TERM");
    let rest = running.rest();
    assert!(rest.contains("\"completion_tokens\":1500") && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(TcpStream::connect(&daemon.address).is_err());

    // Requests that do not end in time are ended with an error.
    let mut daemon = Daemon::start(&sandbox, "drain_s = 0.2\n");
    let mut running = daemon.client();
    running.begin(TEXT, &json!({"prompt": "a", "max_tokens": 4000, "temperature": 0, "stream": true, "n": 60}));
    daemon.signal("-INT");
    let rest = running.rest();
    assert!(rest.contains("\"code\":\"shutting_down\"") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn an_open_daemon_answers_without_a_token() {
    let sandbox = Sandbox::new();
    sandbox.write("serve.toml", client::TINY);
    let open = Daemon::start_with(&sandbox, &["--config", "serve.toml", "--no-token"]);
    open.post(TEXT, &json!({"prompt": "a", "max_tokens": 1})).ok();
    let chosen = Daemon::start_with(&sandbox, &["--config", "serve.toml", "--token", "mine"]);
    assert_eq!(chosen.get("/v1/models").status, 401);
    assert_eq!(client::Client::connect(&chosen.address, "mine").send("GET", "/v1/models", "", b"").status, 200);
}
