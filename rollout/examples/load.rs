//! The daemon under load, against the engine alone, in one process and one run.
//!
//! ```sh
//! cargo run --release --example load -- --seconds 120            # a random network, two minutes
//! cargo run --release --example load -- --model FILE_OR_FOLDER   # a real one
//! ```
//!
//! First the engine samples by itself with as many rows as there will be clients, each row replaced when it ends. Then as
//! many clients stream answers from the daemon over loopback for the given time, each asking again when it is answered.
//! Then the engine samples by itself once more, since a machine may become faster or slower in the meantime. Both are
//! counted in tokens per second. It fails if any request does.
#![expect(clippy::print_stdout, reason = "an example shows its results")]

use model::architecture::RandomModel;
use model::{Config, Policy};
use proxrl_rollout::EngineConfig;
use proxrl_rollout::engine::{Engine, Event, Request};
use proxrl_rollout::service::{self, Options};
use schema::{Prompt, SamplerSettings, Seed};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Failure = Box<dyn Error + Send + Sync>;

/// Command-line arguments.
struct Arguments {
    clients: usize,
    seconds: f64,
    max_tokens: u32,
    model: String,
    hidden: i64,
}

impl Arguments {
    fn read() -> Result<Self, Failure> {
        let mut own = Self { clients: 64, seconds: 120.0, max_tokens: 128, model: String::new(), hidden: 64 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--clients" => own.clients = value.parse()?,
                "--seconds" => own.seconds = value.parse()?,
                "--max-tokens" => own.max_tokens = value.parse()?,
                "--model" => own.model = value,
                "--hidden" => own.hidden = value.parse()?,
                _ => return Err(format!("{name} is not known; see the first lines of examples/load.rs").into()),
            }
        }
        Ok(own)
    }

    fn policy(&self) -> Result<Policy, Failure> {
        let random =
            RandomModel { hidden_size: self.hidden, intermediate_size: 2 * self.hidden, ..RandomModel::default() };
        let config =
            Config { random: self.model.is_empty().then_some(random), path: self.model.clone(), ..Config::default() };
        Ok(Policy::load(&config, &Seed::new(0))?.base())
    }

    fn engine(&self) -> EngineConfig {
        EngineConfig { max_running: self.clients, ..EngineConfig::default() }
    }
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    let policy = arguments.policy()?;
    let before = alone(&arguments, &policy)?;
    println!("engine alone:          {before:8.0} tokens/s");
    let (served, answers, errors) = serve(&arguments, &policy)?;
    println!(
        "{:3} streaming clients: {served:8.0} tokens/s, {answers} answers, {} errors",
        arguments.clients,
        errors.len()
    );
    let after = alone(&arguments, &policy)?;
    println!("engine alone again:    {after:8.0} tokens/s");
    println!("ratio:                 {:8.3}", 2.0 * served / (before + after));
    match errors.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} requests failed; the first: {first}", errors.len()).into()),
    }
}

/// Tokens per second of the engine by itself, over a quarter of the time.
fn alone(arguments: &Arguments, policy: &Policy) -> Result<f64, Failure> {
    let mut engine = Engine::new(policy, arguments.engine());
    let mut number = 0;
    let mut submit = |engine: &mut Engine| -> Result<(), Failure> {
        number += 1;
        let prompt_ids = policy.tokenizer().prompt_ids(&Prompt::text(prompt(number)))?;
        let settings = SamplerSettings { max_new_tokens: arguments.max_tokens, ..SamplerSettings::default() };
        engine.submit(Request { prompt_ids, samples: 1, settings, seed: Seed::new(number), top_logprobs: 0 })?;
        Ok(())
    };
    for _ in 0..arguments.clients {
        submit(&mut engine)?;
    }
    // The first pass allocates.
    engine.step()?;
    let started = Instant::now();
    let mut tokens = 0u64;
    while started.elapsed().as_secs_f64() < arguments.seconds / 4.0 {
        for event in engine.step()? {
            match event {
                Event::Token { .. } => tokens += 1,
                Event::Finished { .. } => submit(&mut engine)?,
            }
        }
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

fn prompt(number: u64) -> String {
    format!("Request number {number}:")
}

/// Tokens per second of the daemon, the number of complete answers, and the errors.
fn serve(arguments: &Arguments, policy: &Policy) -> Result<(f64, u64, Vec<String>), Failure> {
    let config = service::Config { port: 0, engine: arguments.engine(), ..service::Config::default() };
    let options = Options { config, base: "base".into(), default: String::new(), token: None, seed: Seed::new(0) };
    let (over, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (answers, number) = (AtomicU64::new(0), AtomicU64::new(0));
    let (tell, told) = std::sync::mpsc::channel::<SocketAddr>();
    let (rate, errors) = std::thread::scope(|scope| {
        let (over, stop, answers, number) = (&over, &stop, &answers, &number);
        let measure = scope.spawn(move || {
            let address = told.recv()?;
            let client = move || -> Result<(), Failure> {
                let mut stream = BufReader::new(TcpStream::connect(address)?);
                while !over.load(Ordering::Relaxed) {
                    let number = number.fetch_add(1, Ordering::Relaxed) + 1;
                    stream_answer(&mut stream, number, arguments.max_tokens)?;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let clients: Vec<_> = (0..arguments.clients).map(|_| scope.spawn(client)).collect();
            let rate = rate(address, arguments.seconds);
            over.store(true, Ordering::Relaxed);
            let ends = clients.into_iter().map(std::thread::ScopedJoinHandle::join);
            let errors = ends.filter_map(|end| match end {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("a client panicked".to_owned()),
            });
            let errors: Vec<String> = errors.collect();
            stop.store(true, Ordering::SeqCst);
            Ok::<_, Failure>((rate?, errors))
        });
        let load = |_: &Policy, _: &std::path::Path| Err(proxrl_rollout::Error::input("this load has no adapters"));
        let mut listening = move |address| {
            let _ = tell.send(address);
        };
        let served = service::serve(policy, &load, options, &mut listening, stop);
        // Without a daemon the measurement would wait for its address for ever.
        drop(listening);
        served?;
        measure.join().map_err(|_| Failure::from("the measurement panicked"))?
    })?;
    Ok((rate, answers.into_inner(), errors))
}

/// Tokens per second by the daemon's own count, once all clients are there.
fn rate(address: SocketAddr, seconds: f64) -> Result<f64, Failure> {
    std::thread::sleep(Duration::from_secs_f64((seconds / 10.0).min(2.0)));
    let (first, started) = (generated(address)?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    Ok((generated(address)? - first) / started.elapsed().as_secs_f64())
}

fn generated(address: SocketAddr) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find_map(|line| line.strip_prefix("proxrl_generated_tokens_total "));
    Ok(line.ok_or("the daemon counts no tokens")?.parse()?)
}

/// Reads one streamed answer to its end.
fn stream_answer(stream: &mut BufReader<TcpStream>, number: u64, max_tokens: u32) -> Result<(), Failure> {
    let body = format!(
        "{{\"prompt\": \"{}\", \"max_tokens\": {max_tokens}, \"seed\": {number}, \"stream\": true}}",
        prompt(number)
    );
    let head = "POST /v1/completions HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: ";
    write!(stream.get_mut(), "{head}{}\r\n\r\n{body}", body.len())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if !line.contains(" 200 ") {
        return Err(format!("answered with {line}").into());
    }
    while line.trim_end() != "" {
        line.clear();
        stream.read_line(&mut line)?;
    }
    let mut last = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16)?;
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk)?;
        if size == 0 {
            break;
        }
        chunk.truncate(size);
        last = chunk;
    }
    if !last.ends_with(b"data: [DONE]\n\n") {
        return Err(format!("a stream ended with {}", String::from_utf8_lossy(&last)).into());
    }
    Ok(())
}
