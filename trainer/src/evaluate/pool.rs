//! Stored policies to compare a run's policy with: the base model, its own checkpoints, other runs.
//!
//! Exploitability is a maximum over all policies, which cannot be computed for a network. Over a pool of policies it is
//! a lower bound, which shows a method that cycles: an earlier version then beats the current one.
//!
//! ```text
//! exploitability(π) = max_μ [ P(μ ≻ π) − β KL(μ ‖ base) + β KL(π ‖ base) ] − ½,     μ ∈ pool ∪ {π}
//! ```
//!
//! With the β of a regularised game it is that game's; with 0, the default, that of preferences alone. The maximum of
//! estimates is biased upwards, the more so the fewer answers there are.

use crate::checkpoint::bucket::run_folder;
use crate::checkpoint::restore::same_base;
use crate::checkpoint::restore::{restore, resumed_config};
use crate::checkpoint::{Snapshot, Snapshots};
use crate::config::Config;
use crate::{Error, Result};
use model::Policy;
use model::adapter::Adapter;
use schema::Seed;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Keywords of `evaluate.against`; every other entry is a folder.
const BASE: &str = "base";
const CHECKPOINTS: &str = "checkpoints";

/// A policy of the pool.
pub(crate) struct PoolPolicy {
    /// Name in metrics.
    pub(crate) name: String,
    pub(crate) policy: Policy,
}

/// Checks `evaluate.against` before anything is loaded; returns an error for a folder that is neither a run nor a
/// checkpoint, or has another base model.
pub(crate) fn check(config: &Config) -> Result<()> {
    let against = &config.evaluate.against;
    if !against.is_empty() && config.judge.is_none() && config.reward.is_empty() {
        return Err(Error::input(
            "evaluate.against compares answers, but nothing here judges them; add a [judge] or a [[reward]]",
        ));
    }
    against.iter().filter(|name| !is_keyword(name)).try_for_each(|name| Stored::find(Path::new(name), config).map(drop))
}

fn is_keyword(name: &str) -> bool {
    [BASE, CHECKPOINTS].contains(&name)
}

/// Opens the policies that the config names, over the network of `policy`; `folder` is the run's own, if it has one.
/// Policies equal to the current one are left out.
pub(crate) fn open(config: &Config, policy: &Policy, folder: Option<&Path>) -> Result<Vec<PoolPolicy>> {
    let mut rivals = Vec::new();
    for name in &config.evaluate.against {
        match name.as_str() {
            BASE => rivals.push(PoolPolicy { name: name.clone(), policy: policy.with_adapter(Adapter::none()) }),
            CHECKPOINTS => {
                let Some(folder) = folder else { continue };
                let snapshots = Snapshots::new(folder, 0);
                for step in snapshots.steps() {
                    let (path, folder) = (snapshots.path(step), folder.to_owned());
                    let stored = Stored { name: format!("step_{step}"), path, config: config.clone(), folder };
                    rivals.push(stored.open(policy)?);
                }
            }
            path => rivals.push(Stored::find(Path::new(path), config)?.open(policy)?),
        }
    }
    // Two runs may have folders of one name.
    let mut counts = BTreeMap::new();
    for rival in &mut rivals {
        let count: &mut u32 = counts.entry(rival.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            rival.name = format!("{}_{count}", rival.name);
        }
    }
    let present = policy.with_adapter(policy.adapter().share());
    rivals.retain(|rival| rival.policy.version().hash != present.version().hash);
    Ok(rivals)
}

/// A checkpoint of a run.
struct Stored {
    name: String,
    path: PathBuf,
    folder: PathBuf,
    config: Config,
}

impl Stored {
    /// Finds the newest checkpoint of a run folder, or a checkpoint folder itself, of the same base model as that of
    /// `own`.
    fn find(path: &Path, own: &Config) -> Result<Self> {
        let path = &run_folder(path)?;
        let file_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let run_of =
            |path: &Path| Some(path.parent()?.parent()?.to_owned()).filter(|run| run.join("config.toml").exists());
        let (folder, checkpoint) = match run_of(path) {
            Some(run) if path.join("state.json").exists() => (run, Some(path.to_owned())),
            _ => (path.to_owned(), None),
        };
        let problem = |problem: &str| Error::input(format!("evaluate.against: {}: {problem}", path.display()));
        let config = resumed_config(&folder, &[]).map_err(|error| {
            problem(&format!("it is neither `{BASE}`, `{CHECKPOINTS}`, a run nor a checkpoint: {error}"))
        })?;
        if !same_base(&config.model, &own.model) {
            return Err(problem(
                "that run stands on another base model, so the two cannot share one; compare runs of the same [model]",
            ));
        }
        let run_name = file_name(&folder).unwrap_or_default();
        let (name, path) = if let Some(path) = checkpoint {
            (format!("{run_name}_{}", file_name(&path).unwrap_or_default()), path)
        } else {
            let snapshots = Snapshots::new(&folder, 0);
            let newest = snapshots.steps().last().copied().ok_or_else(|| problem("it has no checkpoint yet"))?;
            (run_name, snapshots.path(newest))
        };
        Ok(Self { name, path, folder, config })
    }

    fn open(self, policy: &Policy) -> Result<PoolPolicy> {
        let seed = Seed::new(self.config.seed).child("adapter");
        let adapter = self.config.model.adapter.build(policy.network().linears(), &seed, policy.device())?;
        let mut stored = policy.with_adapter(adapter);
        restore(&Snapshot::read(&self.path)?, &mut stored, &self.folder)?;
        Ok(PoolPolicy { name: self.name, policy: stored })
    }
}
