//! The daemon: an HTTP API in OpenAI's shape over the engine's continuous batch.
//!
//! There are two kinds of threads. The caller's thread owns the model and only samples (`model_thread`). The runtime's
//! threads read requests, tokenize them, turn tokens into text and write answers (`http`, `completions`). They exchange
//! plain records (`messages`), so no tensor is seen by two threads, and a slow client delays no other.
//!
//! The samples of a request depend only on its seed, not on the rest of the batch. Requests without a seed get the next
//! branch of the daemon's own seed.

mod body;
mod choice;
mod completions;
mod config;
mod connections;
mod failure;
mod fields;
mod frontend;
mod http;
mod messages;
mod metrics;
mod model_thread;
mod models;
mod reply;
mod request;

pub use config::Config;

use crate::{Error, Result};
use frontend::{Frontend, Settings};
use model::Policy;
use model_thread::ModelThread;
use request::Limits;
use schema::Seed;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A function that puts the adapter of a folder on the base.
pub type AdapterLoader<'a> = dyn Fn(&Policy, &Path) -> Result<Policy> + 'a;

/// Options of a daemon.
#[derive(Debug, Clone)]
pub struct Options {
    /// `[serve]`
    pub config: Config,
    /// Name of the base model in requests, if `serve.name` is empty.
    pub base: String,
    /// Model of requests that name none; the base if empty.
    pub default: String,
    /// Bearer token that requests must carry; `None` if requests need none.
    pub token: Option<String>,
    /// Source of randomness for requests without a seed.
    pub seed: Seed,
}

/// Threads that read requests and write answers.
const THREADS: usize = 2;

/// Time for answers to be written once the model has stopped.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Serves a policy until `stop` is raised and the running requests have ended. `listening` is called with the address.
///
/// # Errors
///
/// An input error if a setting is out of range, an adapter of the config cannot be loaded, or the address cannot be
/// listened at; a runtime error if the server fails.
pub fn serve(
    base: &Policy,
    load: &AdapterLoader<'_>,
    options: Options,
    listening: &mut dyn FnMut(SocketAddr),
    stop: &AtomicBool,
) -> Result<()> {
    let Options { config, base: name, default, token, seed } = options;
    config.check()?;
    let dimensions = base.network().dimensions();
    let own = dimensions.max_position as usize;
    let context = if config.max_context == 0 { own } else { config.max_context.min(own) };
    let limits = Limits {
        context,
        vocab: dimensions.vocab as usize,
        logprobs: config.max_logprobs,
        samples: config.engine.max_running + config.max_waiting,
        prompt_logprobs: config.max_prompt_logprobs,
        sampler: config.sampler.clone(),
    };
    let adapter_root = config.adapter_root.canonicalize().map_err(|error| {
        Error::input(format!(
            "serve.adapter_root: {} cannot be used ({error}); name a folder that is there",
            config.adapter_root.display()
        ))
    })?;
    let name = if config.name.is_empty() { name } else { config.name.clone() };
    let listener = listen(&config.host, config.port)?;
    let failed = |error: std::io::Error| Error::runtime(format!("the daemon cannot listen: {error}"));
    let address = listener.local_addr().map_err(failed)?;
    let (commands, inbox) = mpsc::channel();
    let settings = Settings {
        default: if default.is_empty() { name.clone() } else { default },
        base: name,
        config,
        limits,
        token,
        adapter_root,
        tokenizer: base.shared_tokenizer(),
        seed,
    };
    let frontend = Arc::new(Frontend::new(settings, commands));
    let thread = ModelThread::new(base, load, Arc::clone(&frontend), inbox)?;

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().map_err(failed)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    let server = runtime.spawn({
        let frontend = Arc::clone(&frontend);
        async move {
            let closing = Arc::clone(&frontend);
            let closed = async move { closing.closing.notified().await };
            connections::serve(listener, http::router(Arc::clone(&frontend)), &frontend.settings.config, closed).await;
        }
    });
    listening(address);
    thread.run(stop);
    let ended = runtime.block_on(async { tokio::time::timeout(LAST_WRITES, server).await });
    runtime.shutdown_background();
    match ended {
        Ok(Err(error)) => Err(Error::runtime(format!("the daemon's server failed: {error}"))),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Opens a non-blocking listener. The error says what to try instead.
fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let unusable = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program has this port; choose another with --port, or 0 for a free one"
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 are for the administrator; choose another with --port"
            }
            _ => "give an address of this machine with --host, such as 127.0.0.1",
        };
        Error::input(format!("cannot listen at {host}:{port} ({error}); {advice}"))
    };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(unusable)?.collect();
    let listener = TcpListener::bind(&addresses[..]).map_err(unusable)?;
    listener.set_nonblocking(true).map_err(unusable)?;
    Ok(listener)
}

/// Generates a bearer token of 256 random bits from the operating system. It is a secret, so it has no seed.
///
/// # Errors
///
/// A runtime error if `/dev/urandom` cannot be read.
pub fn fresh_token() -> Result<String> {
    let mut bytes = [0u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes))
        .map_err(|error| Error::runtime(format!("/dev/urandom cannot be read ({error}); give a token with --token")))?;
    Ok(schema::hex(&bytes))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
