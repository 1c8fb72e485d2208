//! The other ranks and the bucket of a run: told what this process does, if there are any.

use crate::Result;
use crate::checkpoint::Snapshot;
use crate::checkpoint::bucket::Shared;
use crate::collected::Collected;
use crate::config::Config;
use crate::distributed::Team;
use crate::sampling::RunContext;
use std::path::Path;
use std::rc::Rc;
use store::RunId;

/// The ranks that train together with this one, and the bucket that holds a copy of the run. Without them every method
/// does nothing.
pub(super) struct Peers {
    team: Option<Rc<Team>>,
    shared: Option<Rc<Shared>>,
}

impl Peers {
    /// The ranks of `team`, and the bucket that the config names for the run in `folder`.
    ///
    /// # Errors
    /// If the bucket cannot be written, or holds another run of this name.
    pub(super) fn open(config: &Config, folder: &Path, team: Option<Rc<Team>>) -> Result<Self> {
        Ok(Self { team, shared: Shared::open(&config.share, folder)?.map(Rc::new) })
    }

    /// The run as sources of samples see it.
    pub(super) fn context<'a>(&'a self, config: &'a Config, run: RunId, folder: &'a Path) -> RunContext<'a> {
        RunContext { config, run, folder, shared: self.shared.as_ref(), team: self.team.as_ref() }
    }

    /// The ranks, if there are several.
    pub(super) fn team(&self) -> Option<&Rc<Team>> {
        self.team.as_ref()
    }

    /// Brings the other ranks to a checkpoint.
    pub(super) fn restore(&self, snapshot: impl FnOnce() -> Snapshot) -> Result<()> {
        self.team.as_ref().map_or(Ok(()), |team| team.restore(&snapshot()))
    }

    /// Makes the other ranks learn from the groups of a step beside this one.
    pub(super) fn learn(&self, step: u64, collected: &Collected) -> Result<()> {
        self.team.as_ref().map_or(Ok(()), |team| team.learn(step, collected))
    }

    /// Refuses to go on if a rank holds another policy than the one with this hash.
    pub(super) fn agree(&self, step: u64, hash: &str) -> Result<()> {
        self.team.as_ref().map_or(Ok(()), |team| team.agree(step, hash))
    }

    /// Copies a checkpoint to the bucket, and drops those there that are not in `kept`. A failure is a warning: the run
    /// folder has the checkpoint.
    pub(super) fn checkpoint(&self, folder: &Path, step: u64, kept: &[u64]) {
        if let Some(shared) = &self.shared
            && let Err(error) = shared.checkpoint(folder, step, kept)
        {
            tracing::warn!("the checkpoint of step {step} is only here: {error}");
        }
    }

    /// Lets the other ranks leave.
    pub(super) fn end(&self) {
        if let Some(team) = &self.team {
            // Ranks that are gone already know.
            let _ = team.end();
        }
    }
}
