//! `proxrl rollout serve`: the daemon behind an OpenAI-compatible API.
#![expect(clippy::print_stdout, reason = "where it listens, and the token, are the program's output")]

use crate::signals::{self, STOP};
use crate::terminal::{self, Usage};
use model::Policy;
use rollout::service::{self, Options};
use schema::Seed;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use trainer::config::{Override, Serving};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config, such as configs/serve.toml; the config of a run serves that run's base model.
    #[arg(long, value_name = "FILE", required_unless_present = "run", conflicts_with = "run")]
    config: Option<PathBuf>,
    /// Instead of --config: a run folder or the URL of one, whose newest checkpoint is served by the name of the folder.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Change one key of the config, such as `serve.max_waiting=64`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "run")]
    set: Vec<Override>,
    /// The address to listen at, instead of the config's.
    #[arg(long)]
    host: Option<String>,
    /// The port to listen at, instead of the config's; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// The token that requests must carry; `PROXRL_TOKEN` in the environment does the same, unseen by other users of the
    /// machine. A fresh one is made and printed if neither is given.
    #[arg(long, conflicts_with = "no_token")]
    token: Option<String>,
    /// Accept requests without a token from every machine that can reach the port.
    #[arg(long)]
    no_token: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let run = args.run.as_deref().map(trainer::run_folder).transpose()?;
    let mut config = match (&args.config, &run) {
        (Some(path), _) => Serving::load(path, &args.set)?,
        (None, Some(folder)) => Serving::of(&trainer::resumed_config(folder, &[])?),
        (None, None) => return Err(Usage("give --config FILE or --run DIR".into()).into()),
    };
    let mut default = String::new();
    if let Some((place, folder)) = args.run.as_ref().zip(run) {
        // Of a URL there is nothing to be made absolute.
        let whole = place.canonicalize().unwrap_or_else(|_| place.clone());
        default = whole.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into());
        config.serve.adapters.insert(default.clone(), folder);
    }
    config.serve.host = args.host.clone().unwrap_or(config.serve.host);
    config.serve.port = args.port.unwrap_or(config.serve.port);
    let (token, fresh) = token(args)?;
    signals::listen(
        "stopping: no new requests; those that run may end. Once more leaves at once",
        "stopped again: leaving at once",
    )?;
    let base = Policy::load(&config.model, &Seed::new(config.seed))?.base();
    let name = base_name(&config.model);
    let options = Options {
        base: name.clone(),
        default,
        token: token.clone(),
        seed: Seed::new(config.seed).child("serve"),
        config: config.serve,
    };
    let served = if options.config.name.is_empty() { name } else { options.config.name.clone() };
    let mut listening = |address: SocketAddr| {
        println!("serving {served} at http://{address}/v1");
        if let Some(token) = token.as_ref().filter(|_| fresh) {
            println!("token: {token}");
        }
        // A program that started the daemon may be waiting for these lines behind a pipe.
        let _ = std::io::stdout().flush();
        if token.is_none() && !address.ip().is_loopback() {
            terminal::note("warning: --no-token at an address that other machines can reach: everybody there can ask");
        }
    };
    service::serve(&base, &load, options, &mut listening, &STOP)?;
    Ok(())
}

/// Returns the token, and true if it was made here. `None` accepts all requests.
fn token(args: &Args) -> anyhow::Result<(Option<String>, bool)> {
    if args.no_token {
        return Ok((None, false));
    }
    let given = args.token.clone().or_else(|| std::env::var("PROXRL_TOKEN").ok().filter(|token| !token.is_empty()));
    match given {
        None => Ok((Some(service::fresh_token()?), true)),
        Some(token) if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok((Some(token), false))
        }
        Some(_) => {
            let message =
                "the token must be letters, digits and marks without spaces; leave --token out for a fresh one";
            Err(Usage(message.into()).into())
        }
    }
}

/// Puts an adapter of a run or of PEFT on the base.
fn load(base: &Policy, folder: &Path) -> rollout::Result<Policy> {
    Ok(trainer::adapted_policy(base, folder)?)
}

/// The last part of the model's path, without the ending of a file.
fn base_name(config: &model::Config) -> String {
    let last = config.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match last.strip_suffix(".gguf").unwrap_or(last) {
        "" | "." | ".." => "base".to_owned(),
        name => name.to_owned(),
    }
}
