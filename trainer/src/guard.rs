//! Guards: alarms on the metrics and samples of a run.
//!
//! A rising reward does not prove a better policy: a policy can collapse to one answer, drift away from language,
//! repeat itself, or gain reward by length alone. Each guard measures one such failure in each step and checks the last
//! few steps together, so that a single odd step raises no alarm. The action of an alarm is the user's choice:
//!
//! | action | effect |
//! |---|---|
//! | `warn` | a line on the screen; nothing else changes |
//! | `roll_back` | weights, optimizer and algorithm return to the newest checkpoint from before the guard's window; the step count continues, because the samples of those steps exist; the learning rate is multiplied by `roll_back_rate` from then on; a checkpoint is saved at once |
//! | `stop` | everything is saved and the run ends with an error that says how to continue |
//!
//! Every alarm is a line in `alarms.jsonl` of the run folder, with the store's numbers of the samples concerned, and
//! `guard/<name>` in the metrics is 1 in its step and 0 otherwise. After an alarm a guard drops its measurements, so it
//! raises at most one alarm per window; after a roll-back all guards do. A config without guard tables has no guards. A
//! new guard is one file and its line in the list below.

mod duplicate_text;
mod entropy_floor;
mod kl_ceiling;
mod length_drift;
mod repeated_text;

pub use duplicate_text::DuplicateText;
pub use entropy_floor::EntropyFloor;
pub use kl_ceiling::{Divergence, KlCeiling};
pub use length_drift::LengthDrift;
pub use repeated_text::RepeatedText;

use crate::algorithm::Algorithm;
use crate::{Error, Result};
use schema::{GradedGroup, Metrics, Sample};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Action of an alarm. The order is that of severity: the most severe wins where several alarms are raised in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The alarm is shown and recorded.
    #[default]
    Warn,
    /// The run returns to the newest checkpoint from before the window and continues at a lower learning rate.
    RollBack,
    /// Everything is saved and the run ends with an error.
    Stop,
}

/// A check over the last few steps of a run.
trait Guard {
    /// Returns the action of an alarm.
    fn action(&self) -> Action;

    /// Returns the number of measurements that are checked together.
    fn window(&self) -> usize;

    /// Checks the settings; returns an error for a value outside its range, or if the algorithm never reports the
    /// metric that is checked.
    fn check(&self, algorithm: &dyn Algorithm) -> Result<()>;

    /// Measures a step from its metrics and its samples; `None` if the step has nothing to measure.
    fn measure(&self, samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>>;

    /// Checks the last [`Guard::window`] measurements, oldest first, and the last step's samples; `None` if nothing is
    /// wrong.
    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding>;
}

/// Result of a check that failed: a message, and the samples of the last step that show the failure.
#[derive(Debug, PartialEq)]
struct Finding {
    message: String,
    /// Indices of these samples, the worst first.
    samples: Vec<SampleIndex>,
}

/// Index of a sample among those of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SampleIndex {
    /// Index of the group in the step.
    pub group: usize,
    /// Index of the sample in its group.
    pub sample: usize,
}

/// An alarm of one guard in one step.
#[derive(Debug, PartialEq)]
pub(crate) struct Alarm {
    /// Name of the guard, as in the config.
    pub guard: &'static str,
    /// Action to take.
    pub action: Action,
    /// First step of the window that was checked.
    pub since: u64,
    /// Description of the failure, with the measured numbers and the limit.
    pub message: String,
    /// Indices of the samples of this step that show the failure, the worst first.
    pub samples: Vec<SampleIndex>,
}

/// State of the guards between steps; part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Factor on the learning rate, after all roll-backs so far.
    pub rate_scale: f64,
    /// The last measurements of each guard, oldest first.
    windows: BTreeMap<String, Vec<Measured>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { rate_scale: 1.0, windows: BTreeMap::new() }
    }
}

impl Memory {
    /// Drops every measurement: after a roll-back they are of a policy that no longer exists.
    pub(crate) fn forget(&mut self) {
        self.windows.clear();
    }
}

/// Measurement of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    step: u64,
    numbers: Vec<f64>,
}

/// Declares `Config` with one optional table per guard, and the list of the configured guards.
macro_rules! guards {
    ($($name:ident: $guard:ty,)*) => {
        /// `[guard]`: one table per guard; a guard without a table is off.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            /// Factor on the learning rate at a roll-back; above 0, at most 1.
            pub roll_back_rate: f64,
            $(
                #[doc = concat!("`[guard.", stringify!($name), "]`")]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$guard>,
            )*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { roll_back_rate: 0.5, $($name: None,)* }
            }
        }

        impl Config {
            /// Returns the configured guards with their names.
            fn guards(&self) -> Vec<(&'static str, &dyn Guard)> {
                let all: Vec<Option<(&'static str, &dyn Guard)>> =
                    vec![$(self.$name.as_ref().map(|guard| (stringify!($name), guard as &dyn Guard)),)*];
                all.into_iter().flatten().collect()
            }
        }
    };
}

guards! {
    duplicate_text: DuplicateText,
    entropy_floor: EntropyFloor,
    kl_ceiling: KlCeiling,
    length_drift: LengthDrift,
    repeated_text: RepeatedText,
}

impl Config {
    /// Checks the settings of every guard; returns an error that names the key for one that cannot work with this
    /// algorithm, called `name`, or that rolls back further than the checkpoints reach: one is saved every `every`
    /// steps, and the newest `keep` stay (0: all).
    pub(crate) fn check(&self, algorithm: &dyn Algorithm, name: &str, keep: usize, every: u64) -> Result<()> {
        if !(self.roll_back_rate > 0.0 && self.roll_back_rate <= 1.0) {
            let given = self.roll_back_rate;
            return Err(Error::input(format!("guard.roll_back_rate must be above 0 and at most 1, but is {given}")));
        }
        for (guard, settings) in self.guards() {
            let input = |message: String| Error::input(format!("guard.{guard}{message}"));
            if !algorithm.needs().samples.are_sampled() {
                return Err(input(format!(
                    " watches samples that are drawn, but algorithm.{name} draws none; drop it"
                )));
            }
            if settings.window() == 0 {
                return Err(input(".window must be at least 1, but is 0".into()));
            }
            settings.check(algorithm).map_err(|error| input(error.to_string()))?;
            // Just after a checkpoint, the oldest of `keep` is this many steps old.
            let reach = (keep as u64).saturating_sub(1) * every + 1;
            if settings.action() == Action::RollBack && keep > 0 && reach < settings.window() as u64 {
                return Err(input(format!(
                    " rolls back to before the {} steps that it judges, but checkpoints reach back only {reach}; raise checkpoint.keep or checkpoint.every",
                    settings.window()
                )));
            }
        }
        Ok(())
    }

    /// Measures a step, adds it to the windows, and checks every full window. Sets `guard/<name>` to 1 for each guard
    /// that raised an alarm and to 0 for each other one that measured the step.
    pub(crate) fn watch(
        &self,
        step: u64,
        samples: &[GradedGroup],
        memory: &mut Memory,
        metrics: &mut Metrics,
    ) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (name, guard) in self.guards() {
            let Some(numbers) = guard.measure(samples, metrics).filter(|all| all.iter().all(|it| it.is_finite()))
            else {
                continue;
            };
            let window = memory.windows.entry(name.to_owned()).or_default();
            window.push(Measured { step, numbers });
            window.drain(..window.len().saturating_sub(guard.window()));
            let numbers: Vec<&[f64]> = window.iter().map(|measured| &measured.numbers[..]).collect();
            let finding = (window.len() == guard.window()).then(|| guard.check_window(&numbers, samples)).flatten();
            metrics.set(format!("guard/{name}"), f64::from(u8::from(finding.is_some())));
            if let Some(Finding { message, samples }) = finding {
                let since = window[0].step;
                window.clear();
                alarms.push(Alarm { guard: name, action: guard.action(), since, message, samples });
            }
        }
        alarms
    }
}

/// Returns the mean over the window of one of the measured numbers.
fn mean(window: &[&[f64]], number: usize) -> f64 {
    window.iter().map(|numbers| numbers[number]).sum::<f64>() / window.len() as f64
}

/// Iterates over the samples of a step with their indices.
fn indexed(samples: &[GradedGroup]) -> impl Iterator<Item = (SampleIndex, &Sample)> {
    samples.iter().enumerate().flat_map(|(group, scored)| {
        let index = move |(sample, it)| (SampleIndex { group, sample }, it);
        scored.group().samples.iter().enumerate().map(index)
    })
}

/// Sorts sample indices by descending number, ties by ascending index.
fn largest_first(mut numbered: Vec<(SampleIndex, f64)>) -> Vec<SampleIndex> {
    numbered.sort_by(|a, b| b.1.total_cmp(&a.1));
    numbered.into_iter().map(|(index, _)| index).collect()
}

/// Returns minus the mean behaviour log-probability of a sample's tokens, in nats per token.
fn surprise(sample: &Sample) -> f64 {
    -sample.logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>() / sample.len().max(1) as f64
}

/// Returns an error for a limit that is not a finite number above 0.
fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::input(format!(".{key} must be above 0, but is {value}; drop the table to turn the guard off")))
}

/// Returns an error for a share outside 0 to 1.
fn share(key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::input(format!(".{key} is a share, so it must be between 0 and 1, but is {value}")))
}

#[cfg(test)]
mod tests;
