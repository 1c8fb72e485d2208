//! Config of remote workers: `[collector.remote]`.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[collector.remote]`: workers in other processes or on other machines sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// Largest number of versions by which the sampling policy may lag behind the policy of its step. 0 samples each
    /// step when it is due; more lets workers sample ahead during training.
    pub max_staleness: u64,
    /// Prompts per job: the unit that a worker samples at a time and loses if it dies.
    pub prompts_per_job: usize,
    /// Seconds without a heartbeat after which a worker counts as dead and its job goes to another.
    pub lease_s: f64,
    /// Seconds that the trainer waits for a worker before the action of `without_workers`.
    pub patience_s: f64,
    /// Action of the trainer if no worker is alive: `draw`, `wait` or `stop`.
    pub without_workers: WithoutWorkers,
}

/// Action of the trainer if no worker is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutWorkers {
    /// Samples itself, job after job, until a worker appears.
    Draw,
    /// Waits for a worker.
    Wait,
    /// Ends with an error; the run can be resumed.
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
    /// Returns an error for a number outside its range.
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
