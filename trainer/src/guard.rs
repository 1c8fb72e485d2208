//! Guards: they watch the numbers of a run and raise an alarm when it goes wrong.
//!
//! A reward that rises is not yet a policy that gets better: a policy can collapse to one answer, drift away from
//! language, repeat itself, or buy reward by length. Each guard measures one such thing in each step and judges the
//! last few steps together, so that a single odd step is no alarm. What an alarm does is the user's choice:
//!
//! | action | what happens |
//! |---|---|
//! | `warn` | a line on the screen; nothing else changes |
//! | `roll_back` | weights, optimizer and algorithm return to the newest checkpoint from before the guard's window; the steps go on counting, because the samples that they drew were drawn; the learning rate is multiplied by `roll_back_rate` from then on; a checkpoint is saved at once |
//! | `stop` | everything is saved and the run ends with an error that says how to go on |
//!
//! Every alarm is a line in `alarms.jsonl` of the run folder, with the store's numbers of the samples that it is about,
//! and `guard/<name>` in the metrics is 1 in its step and 0 otherwise. After an alarm a guard forgets what it has
//! measured, so it speaks at most once per window; after a roll-back all of them do. Without a table in the config
//! there is no guard. A new guard is one file and its line in the list below.

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

use crate::algorithm::{Algorithm, Samples};
use crate::{Error, Result};
use schema::{Metrics, Sample, ScoredGroup};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an alarm does; the later one wins where several are raised at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is said, and written down.
    #[default]
    Warn,
    /// The run goes back to what it had learned before the window, and goes on at a lower learning rate.
    RollBack,
    /// The run ends, saved.
    Stop,
}

/// Something that is watched.
trait Guard {
    /// What an alarm does.
    fn action(&self) -> Action;

    /// How many measurements are judged together.
    fn window(&self) -> usize;

    /// Refuses settings that make no sense, or that watch what this algorithm does not measure.
    fn check(&self, algorithm: &dyn Algorithm) -> Result<()>;

    /// Measures a step by its metrics and the samples that it drew; `None` if there is nothing to measure.
    fn measure(&self, samples: &[ScoredGroup], metrics: &mut Metrics) -> Option<Vec<f64>>;

    /// What is wrong, if something is: [`Guard::window`] measurements, oldest first, and the last step's samples.
    fn judge(&self, window: &[&[f64]], samples: &[ScoredGroup]) -> Option<Finding>;
}

/// What is wrong, and which samples of the last step show it.
#[derive(Debug, PartialEq)]
struct Finding {
    message: String,
    /// The worst first.
    samples: Vec<Place>,
}

/// Where a sample stands among those of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which group.
    pub group: usize,
    /// Which sample of it.
    pub sample: usize,
}

/// An alarm that was raised.
#[derive(Debug, PartialEq)]
pub(crate) struct Alarm {
    /// Who raised it.
    pub guard: &'static str,
    /// What it does.
    pub action: Action,
    /// The first step of the window that was judged.
    pub since: u64,
    /// What is wrong.
    pub message: String,
    /// The samples of this step that show it, the worst first.
    pub samples: Vec<Place>,
}

/// What guards remember between steps; part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// What the learning rate is multiplied by, after all roll-backs so far.
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
    /// Forgets every measurement: they are of a policy that is no more.
    pub(crate) fn forget(&mut self) {
        self.windows.clear();
    }
}

/// One step's measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    step: u64,
    numbers: Vec<f64>,
}

/// Declares `Config`, one optional table per guard, and the way from it to the guards.
macro_rules! guards {
    ($($name:ident: $guard:ty,)*) => {
        /// `[guard]`: one table per guard; a guard without a table is off.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            /// What the learning rate is multiplied by at a roll-back.
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
            /// The guards that have a table, by name.
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
    /// Refuses guards that this algorithm, called `name`, cannot have, and roll-backs beyond the checkpoints: of those that
    /// are saved after `every` steps the newest `keep` stay (0: all).
    pub(crate) fn check(&self, algorithm: &dyn Algorithm, name: &str, keep: usize, every: u64) -> Result<()> {
        if !(self.roll_back_rate > 0.0 && self.roll_back_rate <= 1.0) {
            let given = self.roll_back_rate;
            return Err(Error::input(format!("guard.roll_back_rate must be above 0 and at most 1, but is {given}")));
        }
        for (guard, settings) in self.guards() {
            let input = |message: String| Error::input(format!("guard.{guard}{message}"));
            if !matches!(algorithm.needs().samples, Samples::Drawn { .. }) {
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

    /// Measures a step, remembers, and judges. Says in the metrics which guards raised an alarm.
    pub(crate) fn watch(
        &self,
        step: u64,
        samples: &[ScoredGroup],
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
            let finding = (window.len() == guard.window()).then(|| guard.judge(&numbers, samples)).flatten();
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

/// The mean of one of the measured numbers.
fn mean(window: &[&[f64]], number: usize) -> f64 {
    window.iter().map(|numbers| numbers[number]).sum::<f64>() / window.len() as f64
}

/// Every sample with its place.
fn places(samples: &[ScoredGroup]) -> impl Iterator<Item = (Place, &Sample)> {
    samples.iter().enumerate().flat_map(|(group, scored)| {
        let place = move |(sample, it)| (Place { group, sample }, it);
        scored.group().samples.iter().enumerate().map(place)
    })
}

/// The places of samples, those with the largest number first; of equal ones the earlier first.
fn largest_first(mut numbered: Vec<(Place, f64)>) -> Vec<Place> {
    numbered.sort_by(|a, b| b.1.total_cmp(&a.1));
    numbered.into_iter().map(|(place, _)| place).collect()
}

/// Minus the mean log-probability of a sample's tokens when it was drawn, in nats.
fn surprise(sample: &Sample) -> f64 {
    -sample.logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>() / sample.len().max(1) as f64
}

/// Refuses a limit that is not a finite number above 0.
fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::input(format!(".{key} must be above 0, but is {value}; drop the table to turn the guard off")))
}

/// Refuses a share outside 0 to 1.
fn share(key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::input(format!(".{key} is a share, so it must be between 0 and 1, but is {value}")))
}

#[cfg(test)]
mod tests;
