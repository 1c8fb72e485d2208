//! Decoding and prefill, through the engine that a run samples with.

use crate::figure::{Figure, median};
use crate::roofline::Cost;
use crate::setup::{Setup, Sizes, prompt_ids};
use anyhow::{Result, ensure};
use model::Policy;
use rollout::EngineConfig;
use rollout::engine::{Engine, Request};
use schema::{SamplerSettings, Seed};
use std::time::Instant;

/// Samples per prompt, as in a group.
const GROUP: usize = 8;

/// Tokens per second of passes in which every row decodes.
pub(crate) fn decode(setup: &Setup) -> Result<Vec<Figure>> {
    let (policy, machine) = (setup.policy()?, setup.machine()?);
    let Sizes { prompt_tokens, new_tokens, batches, .. } = &setup.sizes;
    let cost = Cost::of(policy);
    let mut figures = Vec::new();
    for batch in batches {
        let seconds = setup.repetition.repeat(|| {
            let passes = full_passes(setup, policy, *batch, *prompt_tokens, *new_tokens)?;
            Ok(median(&passes))
        })?;
        let context = *prompt_tokens as f64 + *new_tokens as f64 / 2.0;
        let limit = cost.decode(*batch as f64, context).seconds(machine);
        let mut figure = Figure::rate(
            format!("decode/{batch}"),
            format!("decode, {batch} side by side"),
            *batch as f64,
            &seconds,
            limit,
        );
        figure.work =
            vec![("rows", *batch as f64), ("prompt_tokens", *prompt_tokens as f64), ("new_tokens", *new_tokens as f64)];
        figures.push(figure);
    }
    Ok(figures)
}

/// Returns the seconds of each pass that decodes one token for all of `batch` rows, after one pass that warms up. A sample
/// that ends early makes room for another, so that the batch stays full; passes in which that happens are left out.
fn full_passes(setup: &Setup, policy: &Policy, batch: usize, prompt: usize, new: usize) -> Result<Vec<f64>> {
    let config = EngineConfig { max_running: batch, ..setup.config.rollout.engine.clone() };
    let mut engine = Engine::new(policy, config);
    let seed = Seed::new(setup.config.seed).child("bench");
    let prompts = batch.div_ceil(GROUP);
    for (number, prompt_ids) in prompt_ids(policy, prompts, prompt)?.into_iter().enumerate() {
        // Twice as many as run side by side: what ends is replaced.
        let samples = 2 * batch.div_ceil(prompts);
        engine.submit(Request {
            prompt_ids,
            samples,
            settings: settings(new),
            seed: seed.at(number as u64),
            top_logprobs: 0,
        })?;
    }
    let mut passes = Vec::new();
    for pass in 0..new {
        let before = engine.running();
        let start = Instant::now();
        let events = engine.step()?;
        let seconds = start.elapsed().as_secs_f64();
        if pass > 0 && before == batch && engine.running() == batch && events.len() == batch {
            passes.push(seconds);
        }
    }
    ensure!(!passes.is_empty(), "no pass had {batch} rows; every sample ended at once: is this model trained?");
    Ok(passes)
}

/// Tokens per second of prompts.
pub(crate) fn prefill(setup: &Setup) -> Result<Vec<Figure>> {
    let (policy, machine) = (setup.policy()?, setup.machine()?);
    let tokens = setup.sizes.tokens.min(1024);
    let mut figures = Vec::new();
    for length in [setup.sizes.prompt_tokens, tokens] {
        let count = (tokens / length).max(1);
        let prompts = prompt_ids(policy, count, length)?;
        let config = EngineConfig { max_running: count, ..setup.config.rollout.engine.clone() };
        let mut engine = Engine::new(policy, config);
        let mut work = || {
            let requests = prompts.iter().map(|ids| Request {
                prompt_ids: ids.clone(),
                samples: 1,
                settings: settings(1),
                seed: Seed::new(0),
                top_logprobs: 0,
            });
            engine.run(requests.collect(), &mut |_| ())?;
            Ok(())
        };
        work()?;
        let seconds = setup.repetition.time(work)?;
        let limit = Cost::of(policy).prefill(&vec![length; count]).seconds(machine);
        let amount = (count * length) as f64;
        let name = format!("prefill, {count} prompts of {length}");
        figures.push(Figure::rate(format!("prefill/{count}x{length}"), name, amount, &seconds, limit));
    }
    Ok(figures)
}

/// Seconds per sampled token, prompts included, for groups of several sizes: the gain of sharing a prompt.
pub(crate) fn groups(setup: &Setup) -> Result<Vec<Figure>> {
    const SAMPLES: usize = 32;
    let (policy, machine) = (setup.policy()?, setup.machine()?);
    let (prompt, new) = (setup.sizes.prompt_tokens, setup.sizes.new_tokens.min(16));
    let cost = Cost::of(policy);
    let config = EngineConfig { max_running: SAMPLES, ..setup.config.rollout.engine.clone() };
    let mut engine = Engine::new(policy, config);
    let mut figures = Vec::new();
    for group in [1, 2, 4, 8, 16, 32] {
        let prompts = prompt_ids(policy, SAMPLES / group, prompt)?;
        let work = || {
            let requests = prompts.iter().zip(0..).map(|(ids, number)| Request {
                prompt_ids: ids.clone(),
                samples: group,
                settings: settings(new),
                seed: Seed::new(number),
                top_logprobs: 0,
            });
            let start = Instant::now();
            let drawn = engine.run(requests.collect(), &mut |_| ())?;
            let tokens: usize = drawn.iter().flatten().map(schema::Sample::len).sum();
            Ok(start.elapsed().as_secs_f64() / tokens as f64)
        };
        let seconds = setup.repetition.repeat(work)?;
        let context = (prompt + new / 2) as f64;
        let least = cost.prefill(&vec![prompt; prompts.len()]).seconds(machine)
            + (new - 1) as f64 * cost.decode(SAMPLES as f64, context).seconds(machine);
        let mut figure = Figure::seconds(
            format!("growth/group/{group}"),
            format!("a drawn token, in groups of {group}"),
            seconds,
            Some(least / (SAMPLES * new) as f64),
        );
        figure.work = vec![("group", group as f64), ("samples", SAMPLES as f64), ("new_tokens", new as f64)];
        figures.push(figure);
    }
    Ok(figures)
}

fn settings(new: usize) -> SamplerSettings {
    SamplerSettings { max_new_tokens: new as u32, ..SamplerSettings::default() }
}
