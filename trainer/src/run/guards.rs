//! Reactions to the alarms of guards: a note, a line in `alarms.jsonl`, a roll-back, or the end of the run.
//!
//! A roll-back restores weights, critic, optimizer and algorithm, and nothing else: the step counter, the counts of tokens
//! and samples and the store go on. The restored state is saved at once, so that a run killed afterwards resumes from it.

use super::Training;
use crate::checkpoint::Snapshot;
use crate::guard::{Action, Alarm, SampleIndex};
use crate::observer::Observer;
use crate::report::tracker::JsonlTracker;
use crate::{Error, Result};
use serde_json::json;
use store::SampleId;

/// Most samples of an alarm in its line of `alarms.jsonl`.
const LOGGED: usize = 32;

/// Most samples of an alarm in its note.
const NOTED: usize = 5;

impl Training<'_> {
    /// Acts on the alarms of the step that has just finished.
    ///
    /// # Errors
    /// If an alarm stops the run, a roll-back finds no checkpoint, or a file cannot be written.
    pub(super) fn handle_alarms(&mut self, alarms: &[Alarm], observer: &mut dyn Observer) -> Result<()> {
        let Some(action) = alarms.iter().map(|alarm| alarm.action).max() else { return Ok(()) };
        let notes = self.log_alarms(alarms)?;
        for note in &notes {
            observer.note(note);
        }
        match action {
            Action::Warn => Ok(()),
            Action::RollBack => {
                let since = alarms.iter().filter(|alarm| alarm.action == action).map(|alarm| alarm.since).min();
                self.roll_back(since.unwrap_or(self.state.step), observer)
            }
            Action::Stop => {
                let guards: Vec<&str> =
                    alarms.iter().filter(|alarm| alarm.action == action).map(|alarm| alarm.guard).collect();
                Err(self.ended(&format!("stopped by guard.{}", guards.join(" and guard.")))?)
            }
        }
    }

    /// Adds a line for each alarm to the run's `alarms.jsonl`; returns a note for each.
    fn log_alarms(&self, alarms: &[Alarm]) -> Result<Vec<String>> {
        let step = self.state.step;
        let stored = self.store.step_groups(self.run, step)?.unwrap_or_default();
        let mut log = JsonlTracker::resume(&self.folder.alarms(), step - 1)?;
        let mut sentences = Vec::new();
        for Alarm { guard, action, since, message, samples } in alarms {
            let number = |index: &SampleIndex| {
                stored.get(index.group)?.sample_ids.get(index.sample).map(|SampleId(number)| *number)
            };
            let named: Vec<i64> = samples.iter().filter_map(number).take(LOGGED).collect();
            log.append(&json!({
                "step": step, "since": since, "guard": guard, "action": action, "message": message, "samples": named,
            }))?;
            let first: Vec<String> = named.iter().take(NOTED).map(ToString::to_string).collect();
            let shown = if first.is_empty() { String::new() } else { format!("; see samples {}", first.join(", ")) };
            sentences.push(format!("guard.{guard}: {message} (steps {since} to {step}){shown}"));
        }
        Ok(sentences)
    }

    /// Restores the newest checkpoint before the step `since`, and lowers the learning rate.
    fn roll_back(&mut self, since: u64, observer: &mut dyn Observer) -> Result<()> {
        let Some(good) = self.snapshots.steps().into_iter().rev().find(|saved| *saved < since) else {
            return Err(self.ended(&format!(
                "a guard rolls back to before step {since}, but checkpoint.keep left no checkpoint from then, so the run ends"
            ))?);
        };
        self.learner.restore(Snapshot::read(&self.snapshots.path(good))?, &mut self.policy)?;
        self.publish(self.state.step)?;
        self.state.policy_hash.clone_from(&self.policy.version().hash);
        self.state.guard.forget();
        self.state.guard.rate_scale *= self.config.guard.roll_back_rate;
        self.learner.scale_rate(self.state.guard.rate_scale);
        self.gather()?;
        self.save()?;
        observer.note(&format!(
            "rolled back to what was learned by step {good}; the learning rate is multiplied by {} from here on",
            self.state.guard.rate_scale
        ));
        Ok(())
    }

    /// Saves the run, and returns the error that it ends with.
    fn ended(&mut self, why: &str) -> Result<Error> {
        self.save()?;
        let folder = self.folder.path().display();
        Ok(Error::runtime(format!(
            "{why} after step {}; everything is saved. Read its samples (proxrl replay show ID) and {folder}/alarms.jsonl, then go on by proxrl train --resume {folder}, with --set guard.NAME.limit=… where the alarm was wrong",
            self.state.step
        )))
    }
}
