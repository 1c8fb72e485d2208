//! `[collector.remote]`

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[collector.remote]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// How many versions behind the policy of its step the policy that draws may be. 0 draws each step when it is due;
    /// more lets workers draw ahead while the trainer learns.
    pub max_staleness: u64,
    /// Prompts in one job: what a worker draws at a time, and loses if it dies.
    pub prompts_per_job: usize,
    /// A worker that was not heard of for so many seconds is taken for dead, and its job is given to another.
    pub lease_s: f64,
    /// How long the trainer waits for a worker before it does what `without_workers` says, in seconds.
    pub patience_s: f64,
    /// What the trainer does where no worker is alive.
    pub without_workers: WithoutWorkers,
}

/// What the trainer does where no worker is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutWorkers {
    /// It draws itself, job after job, until one comes.
    Draw,
    /// It waits for one.
    Wait,
    /// It ends with an error; the run can be resumed.
    Stop,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            max_staleness: 0,
            prompts_per_job: 1,
            lease_s: 60.0,
            patience_s: 10.0,
            without_workers: WithoutWorkers::Draw,
        }
    }
}

impl RemoteConfig {
    /// Refuses numbers that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        if self.prompts_per_job == 0 {
            return Err(Error::input("collector.remote.prompts_per_job must be at least 1, but is 0"));
        }
        let long = 86_400.0;
        for (key, seconds, least) in [("lease_s", self.lease_s, 0.1), ("patience_s", self.patience_s, 0.0)] {
            if !(least..=long).contains(&seconds) {
                return Err(Error::input(format!(
                    "collector.remote.{key} must be between {least} and {long} seconds, but is {seconds}"
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs_f64(self.lease_s)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience_s)
    }
}
