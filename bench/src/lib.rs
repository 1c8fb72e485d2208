//! Time measurement: traces of a run's phases ([`profile`]), and benchmarks of sampling and training ([`run`]).
//!
//! A benchmark compares each figure with the least time that the machine needs for the same work (`roofline`). Every part
//! is measured in a process of its own, so that its peak memory is its own; a figure is the median of some repetitions,
//! with the least and the greatest.

mod args;
mod figure;
mod interference;
pub mod profile;
mod repetition;
mod report;
mod roofline;
mod sampling;
mod setup;
mod steps;
mod training;

pub use args::{Args, Part};
pub use report::{Report, Row};

use anyhow::{Context, Result, ensure};
use figure::Figure;
use interference::{CpuMeter, DISTURBING};
use profile::PhaseLog;
use setup::Setup;
use std::process::{Command, Stdio};

/// A fault in the command line that its parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Measures the parts that `args` names. `phases` is the log of this process's phases; `note` receives lines about the
/// progress.
///
/// # Errors
///
/// Returns [`Usage`] if an option or the config is at fault, and any other error if a part cannot be measured: the model
/// does not load, a size exceeds its context, or the process of a part fails.
pub fn run(args: &Args, phases: &PhaseLog, note: &mut dyn FnMut(&str)) -> Result<Report> {
    // Refuses wrong options before anything is measured, in this process or another.
    let setup = Setup::new(args, phases.clone())?;
    let mut parts = if args.parts.is_empty() { Part::DEFAULT.to_vec() } else { args.parts.clone() };
    parts.dedup();
    let reports = match parts[..] {
        // A process can measure its own start only once.
        [Part::Startup] if args.repetitions > 1 => {
            in_children(args, &[Part::Startup].repeat(args.repetitions), 1, note)?
        }
        [part] => vec![in_process(&setup, part, note)?],
        _ => in_children(args, &parts, args.repetitions, note)?,
    };
    Ok(Report::merge(&reports))
}

/// Measures one part in this process.
fn in_process(setup: &Setup, part: Part, note: &mut dyn FnMut(&str)) -> Result<Report> {
    let meter = CpuMeter::start();
    let mut figures = measure(setup, part)?;
    let others = meter.others();
    let name = part.name();
    if let Some(cores) = others.filter(|cores| *cores > DISTURBING) {
        note(&format!(
            "other processes kept {cores:.1} cores busy while {name} was measured: repeat it on a quiet machine"
        ));
    }
    figures.push(Figure::peak_memory(&name));
    // A start is not compared with a limit.
    let machine = if part == Part::Startup { None } else { Some(setup.machine()?) };
    Ok(Report::new(setup, &name, others, machine, &figures))
}

fn measure(setup: &Setup, part: Part) -> Result<Vec<Figure>> {
    match part {
        Part::Decode => sampling::decode(setup),
        Part::Prefill => sampling::prefill(setup),
        Part::Score => training::score(setup),
        Part::Train => training::train(setup),
        Part::Grpo => steps::grpo(setup),
        Part::Dpo => steps::dpo(setup),
        Part::Startup => steps::startup(setup),
        Part::Growth => Ok([sampling::groups(setup)?, training::lengths(setup)?].concat()),
    }
}

/// Measures each part in a child process: this program again, with one part named.
fn in_children(args: &Args, parts: &[Part], repetitions: usize, note: &mut dyn FnMut(&str)) -> Result<Vec<Report>> {
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let mut reports = Vec::new();
    for part in parts {
        note(&format!("measuring {}", part.name()));
        let child = Command::new(&program)
            .args(args.of_child(*part, repetitions))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(child.status.success(), "measuring {} failed", part.name());
        let report = serde_json::from_slice(&child.stdout).with_context(|| format!("{} gave no JSON", part.name()))?;
        reports.push(Report(report));
    }
    Ok(reports)
}
