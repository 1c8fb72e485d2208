//! Whole steps of the training loop, as `proxrl train` takes them, and the time until the first one begins.

use crate::figure::{Figure, median};
use crate::profile::PhaseSpan;
use crate::roofline::{Cost, Machine, group_pairs};
use crate::setup::{Setup, prompt_ids};
use anyhow::{Context, Result, ensure};
use model::Policy;
use schema::{GradedGroup, Metrics, Prompt};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use store::Store;
use trainer::config::{Config, Override};
use trainer::{Observer, Target};

/// Pairs of a DPO step, and the tokens of a prompt and of each answer.
const PAIRS: usize = 32;
const PAIR_TOKENS: usize = 64;

/// The phases of a step in their order; the sampler's passes are parts of `collect`.
const ORDER: [&str; 9] =
    ["collect", "prefill", "decode", "reward", "append", "score", "forward", "backward", "optimizer"];

/// A step of the config, GRPO by default, by phases.
///
/// # Errors
///
/// Fails if the config is refused, the model cannot be loaded, the run fails, or its samples cannot be read back.
pub(crate) fn grpo(setup: &Setup) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let steps = run(setup, folder.path(), &[])?;
    let url = store_url(folder.path());
    let (policy, machine) = (setup.policy()?, setup.machine()?);
    let cost = Cost::of(policy);
    let store = Store::open_read_only(&url)?;
    let stored = store.find_run("run")?;
    let mut least_s = Vec::new();
    for step in &steps {
        let groups = store.step_groups(stored.id, step.number)?.context("a step's samples are in the store")?;
        let groups: Vec<GradedGroup> = groups.into_iter().map(|group| group.scored).collect();
        least_s.push(least(&groups, &cost, machine));
    }
    let limits: Vec<f64> = least_s.iter().map(|phases| phases.iter().map(|(_, seconds)| seconds).sum()).collect();
    let tokens: Vec<f64> = steps.iter().map(|step| step.metric("completions/mean_length")).collect();
    let rollout = &setup.config.rollout;
    let samples = (rollout.prompts_per_step * rollout.group_size) as f64;
    let name = format!(
        "a step of {}, {} prompts x {}",
        setup.config.algorithm.name(),
        rollout.prompts_per_step,
        rollout.group_size
    );
    let mut figures = figures("grpo", &name, &steps, &medians(&least_s));
    figures[0].work = vec![("samples", samples), ("mean_length", median(&tokens))];
    let per_token = |step: &Step| step.seconds / (samples * step.metric("completions/mean_length"));
    let limit = steps.iter().zip(&limits).map(|(step, limit)| per_token(step) / step.seconds * limit);
    figures.insert(
        1,
        Figure::seconds(
            "grpo/token",
            format!("{name}, per drawn token"),
            steps.iter().map(per_token).collect(),
            Some(median(&limit.collect::<Vec<f64>>())),
        ),
    );
    Ok(figures)
}

/// A step of DPO on pairs of pieces of prose, by phases.
///
/// # Errors
///
/// Fails if the config is refused, the model cannot be loaded, the pairs cannot be written, or the run fails.
pub(crate) fn dpo(setup: &Setup) -> Result<Vec<Figure>> {
    let (policy, machine) = (setup.policy()?, setup.machine()?);
    let folder = tempfile::tempdir()?;
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile()?;
    let lines = pairs(policy, PAIRS * (setup.repetition.count + 1))?;
    file.write_all(lines.join("\n").as_bytes())?;
    let changes = [
        "algorithm={dpo={beta=0.1}}".to_owned(),
        format!("prompts={{jsonl={{path={:?}}}}}", file.path().display().to_string()),
        format!("rollout.prompts_per_step={PAIRS}"),
        "reward=[]".to_owned(),
    ];
    let steps = run(setup, folder.path(), &changes)?;
    // Two answers to each prompt: log-probabilities under the reference, then an update.
    let cost = Cost::of(policy);
    let (tokens, scored) = ((PAIRS * 3 * PAIR_TOKENS) as f64, (PAIRS * 2 * PAIR_TOKENS) as f64);
    let seen = PAIRS as f64 * group_pairs(PAIR_TOKENS, &[PAIR_TOKENS; 2]);
    let limits = [
        ("score", cost.score(tokens, scored, seen).seconds(machine)),
        ("forward", cost.forward(tokens, scored, seen).seconds(machine)),
        ("backward", cost.backward(tokens, seen).seconds(machine)),
    ];
    let mut figures = figures("dpo", &format!("a step of dpo, {PAIRS} pairs"), &steps, &limits);
    let lengths: Vec<f64> = steps.iter().map(|step| step.metric("completions/mean_length")).collect();
    figures[0].work = vec![("pairs", PAIRS as f64), ("mean_length", median(&lengths))];
    Ok(figures)
}

/// Seconds from the command to the first sample of the first step. This process can measure it only once.
///
/// # Errors
///
/// Fails if the config is refused, the run fails, or it ends without a sample.
pub(crate) fn startup(setup: &Setup) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let small = ["rollout.prompts_per_step=1", "rollout.group_size=2", "rollout.max_new_tokens=1", "steps=1"]
        .map(str::to_owned);
    let mut watch = FirstSample { after_s: None };
    trainer::train(
        &configured(setup, folder.path(), &small)?,
        &target(folder.path()),
        &mut watch,
        &AtomicBool::new(false),
    )?;
    let seconds = watch.after_s.context("the run has drawn nothing")?;
    Ok(vec![Figure::seconds("startup/first_step", "from the command to the first step", vec![seconds], None)])
}

/// A measured step.
struct Step {
    number: u64,
    seconds: f64,
    metrics: Metrics,
    /// Seconds by phase.
    phases: BTreeMap<&'static str, f64>,
}

impl Step {
    fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).unwrap_or(f64::NAN)
    }
}

/// Runs steps of the config with these changes; the first one warms up and is left out.
fn run(setup: &Setup, folder: &Path, changes: &[String]) -> Result<Vec<Step>> {
    let steps = setup.repetition.count as u64 + 1;
    let mut all = vec![format!("steps={steps}")];
    all.extend_from_slice(changes);
    let config = configured(setup, folder, &all)?;
    let mut watch = StepMetrics { metrics: Vec::new() };
    setup.phases.take();
    trainer::train(&config, &target(folder), &mut watch, &AtomicBool::new(false))?;
    let phases = setup.phases.take();
    let steps = watch.metrics.into_iter().skip(1).map(|(number, metrics)| Step {
        number,
        seconds: metrics.get("step_time").unwrap_or(f64::NAN),
        phases: by_name(&phases, number),
        metrics,
    });
    Ok(steps.collect())
}

/// Returns the seconds of each phase of a step; a phase inside another counts for both.
fn by_name(phases: &[PhaseSpan], step: u64) -> BTreeMap<&'static str, f64> {
    let mut sums = BTreeMap::new();
    let Some(whole) = phases.iter().find(|phase| phase.details.contains(&("number", step))) else { return sums };
    let inside = |phase: &&PhaseSpan| phase.start > whole.start && phase.start < whole.start + whole.length;
    for phase in phases.iter().filter(inside) {
        *sums.entry(phase.name).or_default() += phase.length.as_secs_f64();
    }
    sums
}

/// Returns the figure of the whole step, then those of its phases. The step's limit is the sum of its phases' limits.
fn figures(part: &str, name: &str, steps: &[Step], limits: &[(&str, f64)]) -> Vec<Figure> {
    let whole = steps.iter().map(|step| step.seconds).collect();
    let limit = limits.iter().map(|(_, seconds)| seconds).sum();
    let mut figures = vec![Figure::seconds(format!("{part}/step"), name, whole, Some(limit))];
    let mut names: Vec<&str> = steps.iter().flat_map(|step| step.phases.keys().copied()).collect();
    let position = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    names.sort_unstable_by_key(|name| (position(name), *name));
    names.dedup();
    for phase in names {
        let seconds = steps.iter().map(|step| step.phases.get(phase).copied().unwrap_or_default()).collect();
        let limit = limits.iter().find(|(name, _)| *name == phase).map(|(_, seconds)| *seconds);
        figures.push(Figure::seconds(format!("{part}/{phase}"), format!("  {phase}"), seconds, limit));
    }
    figures
}

/// Returns the limits, in seconds, of the phases that sample these groups, pass by pass, and that learn from them, with
/// each prompt once per group.
fn least(groups: &[GradedGroup], cost: &Cost, machine: Machine) -> [(&'static str, f64); 4] {
    let prompts: Vec<usize> = groups.iter().map(|group| group.group().prompt_ids.len()).collect();
    let lengths = |group: &GradedGroup| group.group().samples.iter().map(schema::Sample::len).collect::<Vec<_>>();
    let all: Vec<usize> = groups.iter().flat_map(lengths).collect();
    let prompt = prompts.iter().sum::<usize>() as f64 / prompts.len().max(1) as f64;
    let pass = |pass: usize| {
        let running = all.iter().filter(|length| **length > pass).count();
        cost.decode(running as f64, prompt + pass as f64).seconds(machine)
    };
    let scored = all.iter().sum::<usize>() as f64;
    // The last token of a completion predicts nothing.
    let tokens = scored - all.len() as f64 + prompts.iter().sum::<usize>() as f64;
    let seen = groups.iter().map(|group| group_pairs(group.group().prompt_ids.len(), &lengths(group))).sum();
    [
        ("prefill", cost.prefill(&prompts).seconds(machine)),
        ("decode", (1..all.iter().copied().max().unwrap_or_default()).map(pass).sum()),
        ("forward", cost.forward(tokens, scored, seen).seconds(machine)),
        ("backward", cost.backward(tokens, seen).seconds(machine)),
    ]
}

/// Returns the median of each phase over steps.
fn medians(steps: &[[(&'static str, f64); 4]]) -> Vec<(&'static str, f64)> {
    let Some(first) = steps.first() else { return Vec::new() };
    let of = |index: usize| median(&steps.iter().map(|phases| phases[index].1).collect::<Vec<_>>());
    first.iter().enumerate().map(|(index, (name, _))| (*name, of(index))).collect()
}

/// Returns pairs of answers as lines of JSON: turns of a conversation of [`PAIR_TOKENS`] tokens each.
fn pairs(policy: &Policy, count: usize) -> Result<Vec<String>> {
    let tokenizer = policy.tokenizer();
    let around = tokenizer.prompt_ids(&Prompt::user(""))?.len();
    ensure!(around < PAIR_TOKENS, "the chat template alone has {around} tokens, more than a prompt of the benchmark");
    let ended = tokenizer.answer_ids(&Prompt::user(""), "")?.len();
    let questions = prompt_ids(policy, count, PAIR_TOKENS - around)?;
    let mut answers = prompt_ids(policy, 3 * count, PAIR_TOKENS - ended)?.into_iter().skip(count);
    let mut lines = Vec::with_capacity(count);
    for question in questions {
        let turn = |role: &str, ids: &[schema::Token]| json!([{"role": role, "content": tokenizer.decode(ids)}]);
        let (chosen, rejected) = answers.next().zip(answers.next()).context("two answers to each question")?;
        let line = json!({
            "prompt": turn("user", &question),
            "chosen": turn("assistant", &chosen),
            "rejected": turn("assistant", &rejected),
        });
        lines.push(line.to_string());
    }
    Ok(lines)
}

/// Returns the config of a run in this folder.
fn configured(setup: &Setup, folder: &Path, changes: &[String]) -> Result<Config> {
    let own =
        [format!("store.url={:?}", store_url(folder)), "checkpoint.every=1000000".into(), "evaluate.every=0".into()];
    let parse = |change: &String| change.parse::<Override>().map_err(anyhow::Error::msg);
    let changes = own.iter().chain(changes).map(parse).collect::<Result<Vec<_>>>()?;
    setup.config_with(&changes)
}

fn store_url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("bench.db").display())
}

fn target(folder: &Path) -> Target {
    Target::New(folder.join("run"))
}

/// An observer that keeps each step's metrics.
struct StepMetrics {
    metrics: Vec<(u64, Metrics)>,
}

impl Observer for StepMetrics {
    fn step(&mut self, step: u64, _steps: u64, metrics: &Metrics) {
        self.metrics.push((step, metrics.clone()));
    }
}

/// An observer that keeps the age of this process, in seconds, when sampling begins.
struct FirstSample {
    after_s: Option<f64>,
}

impl Observer for FirstSample {
    fn phase(&mut self, phase: trainer::Phase) {
        if phase == trainer::Phase::Sampling && self.after_s.is_none() {
            self.after_s = age_s();
        }
    }
}

/// Returns the age of this process in seconds, as the kernel counts them in hundredths.
fn age_s() -> Option<f64> {
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some(up - started_s(&std::fs::read_to_string("/proc/self/stat").ok()?)?)
}

/// Returns the start of a process, in seconds since the machine's: field 22 of /proc/PID/stat. The second field is a name,
/// which may hold spaces and brackets.
fn started_s(stat: &str) -> Option<f64> {
    /// Linux counts in these for programs, whatever its own clock.
    const TICKS_PER_SECOND: f64 = 100.0;
    let behind_name = &stat[stat.rfind(')')? + 1..];
    Some(behind_name.split_whitespace().nth(19)?.parse::<f64>().ok()? / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn phases_are_added_up_inside_their_step() {
        let phase = |name, start, length, details: &[(&'static str, u64)]| {
            PhaseSpan::at(name, Duration::from_secs(start), Duration::from_secs(length), details)
        };
        let heard = [
            phase("backward", 3, 2, &[]),
            phase("backward", 6, 1, &[]),
            phase("step", 2, 8, &[("number", 1)]),
            phase("backward", 13, 5, &[]),
            phase("step", 12, 8, &[("number", 2)]),
        ];
        assert_eq!(by_name(&heard, 1), BTreeMap::from([("backward", 3.0)]));
        assert_eq!(by_name(&heard, 2), BTreeMap::from([("backward", 5.0)]));
        assert_eq!(by_name(&heard, 3), BTreeMap::new());
    }

    #[test]
    fn the_start_of_a_process_is_read_behind_its_name() {
        let stat = "42 (a (b) c) R 1 42 42 0 -1 4194304 103 0 0 0 0 0 0 0 20 0 1 0 12345 8192 1 184 1";
        assert_eq!(started_s(stat), Some(123.45));
        assert!(age_s().unwrap() >= 0.0);
    }
}
