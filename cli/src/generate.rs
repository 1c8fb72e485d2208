//! `proxrl generate`: answers one prompt, token by token.

use crate::terminal::Usage;
use anyhow::Context;
use model::adapter::AdapterConfig;
use model::{Config, Policy};
use rollout::EngineConfig;
use rollout::engine::{Engine, Event, Request};
use schema::{Prompt, Sample, SamplerSettings, Seed};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The prompt; read from standard input if not given.
    prompt: Option<String>,
    /// The model: a folder, a .gguf file, a name in the cache or a hub id.
    #[arg(long, short, value_name = "PATH", required_unless_present = "run", conflicts_with = "run")]
    model: Option<String>,
    /// Instead of --model: a run folder or the URL of one, whose newest checkpoint answers.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Take the prompt as plain text, without the chat template.
    #[arg(long)]
    raw: bool,
    /// Always take the most likely token.
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "top_k", "min_p"])]
    greedy: bool,
    /// Sampling temperature: logits are divided by it.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Keep the most likely tokens whose probabilities sum to this.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Keep only this many most likely tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Keep tokens at least this fraction as likely as the most likely one.
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Stop after this many tokens.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: u32,
    /// Stop when the text contains this; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The seed of the sampler.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object: prompt ids, sampled ids, text and raw log-probabilities.
    #[arg(long)]
    json: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match print_answer(args) {
        // The reader of the answer has seen enough (`| head`).
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        other => other,
    }
}

fn print_answer(args: &Args) -> anyhow::Result<()> {
    let text = if let Some(text) = &args.prompt {
        text.clone()
    } else {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
        text.trim_end_matches('\n').to_owned()
    };
    if text.is_empty() {
        return Err(Usage("the prompt is empty; give it as an argument or on standard input".into()).into());
    }
    let policy = policy(args)?;
    let prompt = if args.raw { Prompt::text(text) } else { Prompt::user(text) };
    let prompt_ids = policy.tokenizer().prompt_ids(&prompt)?;
    let settings = SamplerSettings {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        max_new_tokens: args.max_new_tokens,
        stop: args.stop.clone(),
        stratify: 0,
    };
    let mut engine = Engine::new(&policy, EngineConfig { max_running: 1, ..EngineConfig::default() });
    let seed = Seed::new(args.seed).child("generate");
    engine.submit(Request { prompt_ids: prompt_ids.clone(), samples: 1, settings, seed, top_logprobs: 0 })?;

    let mut decoder = policy.tokenizer().stream();
    let mut out = std::io::stdout().lock();
    let mut printed = String::new();
    let mut finished: Option<Sample> = None;
    while finished.is_none() && !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { token, .. } if !args.json && args.stop.is_empty() => {
                    if let Some(piece) = decoder.push(token.id) {
                        write!(out, "{piece}")?;
                        out.flush()?;
                        printed.push_str(&piece);
                    }
                }
                Event::Token { .. } => {}
                Event::Finished { sample, .. } => finished = Some(sample),
            }
        }
    }
    let sample = finished.context("the engine stopped before the sample was complete")?;
    if args.json {
        let line = json!({
            "prompt_ids": prompt_ids,
            "ids": sample.ids,
            "text": sample.text,
            "logprobs": sample.logprobs,
            "finish_reason": sample.finish.as_str(),
            "policy": policy.version(),
        });
        writeln!(out, "{line}")?;
    } else {
        // The rest, which the stream held back: an unfinished character, or all of it where a stop string could still cut it.
        writeln!(out, "{}", sample.text.strip_prefix(&printed).unwrap_or_default())?;
    }
    Ok(())
}

fn policy(args: &Args) -> anyhow::Result<Policy> {
    if let Some(folder) = &args.run {
        return Ok(trainer::trained_policy(folder)?);
    }
    let config = Config {
        path: args.model.clone().unwrap_or_default(),
        device: model::device::DeviceName::new(args.device.clone()),
        adapter: AdapterConfig::default(),
        ..Config::default()
    };
    Ok(Policy::load(&config, &Seed::new(args.seed))?.base())
}
