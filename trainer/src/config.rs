//! The config of a run: one TOML file with known keys and tested defaults.
//!
//! Unknown keys are errors that name the nearest key, because a silently ignored key costs a whole run. TRL's spellings
//! are accepted for keys of the same meaning. The resolved config, defaults included, is stored with the run.

mod collector;
mod implied;
mod parse;
mod reach;
mod replay;
mod serving;
mod share;

pub use collector::{RemoteConfig, WithoutWorkers};
pub use parse::Override;
pub use replay::Replay;
pub use serving::Serving;
pub use share::Share;

use crate::algorithm::{self, Algorithm, RunShape};
use crate::behavior;
use crate::{Error, Result, guard, optimizer, prox};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the reward part that holds a sample's win rate; no `[[reward]]` may have it.
pub(crate) const WIN_RATE: &str = "win_rate";

/// Config of a whole run. `steps` and `[prompts]` are required; every other key has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Root of every random choice of the run: prompts, initial weights, sampling. Two runs of the same config and seed
    /// on the same machine are equal bit for bit on the CPU.
    #[serde(default)]
    pub seed: u64,
    /// Training steps. Each step collects samples, grades and stores them, and updates the policy.
    #[serde(alias = "max_steps")]
    pub steps: u64,
    /// Largest number of tokens in one forward and backward pass; it bounds the memory of training. Results do not
    /// depend on it beyond rounding.
    #[serde(default = "default_micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Network, adapter, device and precision.
    #[serde(default)]
    pub model: model::Config,
    /// Source of the prompts, and the share of them that is held out.
    pub prompts: rollout::prompts::Config,
    /// Group size, sampling parameters and the engine's limits.
    #[serde(default)]
    pub rollout: rollout::Config,
    /// Reward functions; a sample's reward is their weighted sum. Methods that learn from a data set need none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reward: Vec<reward::Config>,
    /// Judge that compares two answers. Without one, methods that learn from pairs compare rewards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<reward::judge::Config>,
    /// Learning rule; GRPO by default.
    #[serde(default)]
    pub algorithm: algorithm::Config,
    /// Update rule; `AdamW` by default.
    #[serde(default)]
    pub optimizer: optimizer::OptimizerConfig,
    /// Constraints on the update, applied after each optimizer step. `SoRA`'s gates need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prox: Option<prox::ProxConfig>,
    /// Interval at which closed ranks are removed.
    #[serde(default)]
    pub prune: Prune,
    /// Interval and number of checkpoints.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Interval and kind of the evaluation on held-out prompts.
    #[serde(default)]
    pub evaluate: Evaluate,
    /// Guards: alarms on the metrics of a run, and their actions.
    #[serde(default)]
    pub guard: guard::Config,
    /// Behaviour policy that samples in place of the trained policy; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<behavior::Config>,
    /// Another run of the store whose samples are learned from; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Collector that samples outside the trainer; by default the trainer samples itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector: Option<CollectorConfig>,
    /// Store of the samples.
    #[serde(default)]
    pub store: Store,
    /// URL at which adapters and checkpoints are shared with other machines; none by default.
    #[serde(default)]
    pub share: Share,
    /// Trackers besides `metrics.jsonl`.
    #[serde(default)]
    pub tracker: Tracker,
}

fn default_micro_batch_tokens() -> usize {
    2048
}

/// `[prune]`: removal of closed ranks from a sparse adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prune {
    /// Interval in steps at which ranks with a zero gate are removed; 0 for never. A removed rank cannot return.
    pub every: u64,
}

/// `[checkpoint]`: saving of a run's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Interval in steps between checkpoints, at least 1; the last step is always saved.
    #[serde(alias = "save_steps")]
    pub every: u64,
    /// Number of newest checkpoints to keep; 0 keeps all.
    #[serde(alias = "save_total_limit")]
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 10, keep: 2 }
    }
}

/// `[evaluate]`: measurement on held-out prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluate {
    /// Interval in steps between evaluations; 0 for only the two that every run has, before the first step and after
    /// the last.
    #[serde(alias = "eval_steps")]
    pub every: u64,
    /// Number of held-out prompts to answer; 0 for all of them.
    pub prompts: usize,
    /// Smallest reward at which a completion counts as correct; 1 fits rewards that are 0 or 1.
    pub threshold: f64,
    /// Samples per prompt at the rollout's temperature, for `pass@k`; 0 for greedy answers only.
    pub samples: usize,
    /// Policies to compare answers with: `base`, the untrained model; `checkpoints`, every checkpoint of this run; or
    /// folders of runs and checkpoints. Each prompt is answered `samples` times, at least once.
    pub against: Vec<String>,
    /// Weight β of the KL towards the base model in the exploitability; 0 for preferences alone.
    pub beta: f64,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { every: 0, prompts: 0, threshold: 1.0, samples: 0, against: Vec::new(), beta: 0.0 }
    }
}

/// `[store]`: the database of all samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Database URL: `sqlite://FILE`, or `postgres://USER@HOST/DATABASE`. A password in it is used, but never written
    /// or shown; a resumed run takes it from `PGPASSWORD` or `~/.pgpass`.
    #[serde(serialize_with = "without_password")]
    pub url: String,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: "sqlite://proxrl.db".into() }
    }
}

fn without_password<S: serde::Serializer>(url: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&store::without_password(url))
}

/// Collector of a run: `[collector.<name>]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectorConfig {
    /// `[collector.remote]`: workers on other processes or machines sample.
    Remote(RemoteConfig),
}

impl CollectorConfig {
    /// Returns the number of steps beyond the current one that may be sampled in advance.
    pub(crate) fn lookahead(&self) -> u64 {
        let Self::Remote(remote) = self;
        remote.max_staleness
    }
}

/// `[tracker]`: destinations of metrics besides `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracker {
    /// Write event files for `TensorBoard` into the run folder.
    pub tensorboard: bool,
}

impl Default for Tracker {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}

impl Config {
    /// Reads a config file, applies `key=value` overrides, and checks the result.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, has an unknown key, or asks for a combination that cannot work.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::input(format!("cannot read the config {}: {error}; configs/ has examples", path.display()))
        })?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Reads the `[[reward]]` tables of a config file and ignores the rest of it.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, or has no `[[reward]]` table.
    pub fn load_rewards(path: &Path) -> Result<Vec<reward::Config>> {
        #[derive(Deserialize)]
        struct Rewards {
            #[serde(default)]
            reward: Vec<reward::Config>,
        }
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::input(format!("cannot read the config {name}: {error}")))?;
        let Rewards { reward } = parse::parse(&text, &name, &[])?;
        if reward.is_empty() {
            return Err(Error::input(format!(
                "{name} has no [[reward]] table; add one, such as rule.math_answer = {{}}"
            )));
        }
        Ok(reward)
    }

    /// Parses a config, applies overrides, and checks the result; `name` stands for the text in errors.
    ///
    /// # Errors
    /// If the text cannot be parsed, has an unknown key, or asks for a combination that cannot work.
    pub fn parse(text: &str, name: &str, overrides: &[Override]) -> Result<Self> {
        let config: Self = parse::parse(text, name, overrides)?;
        config.check().map_err(|error| match error {
            Error::Input(message) => Error::input(format!("{name}: {message}")),
            error => error,
        })?;
        Ok(config)
    }

    /// Returns the config with every default spelled out, as TOML.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn resolved(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|error| Error::runtime(format!("cannot write the resolved config: {error}")))
    }

    /// Names the programs that the config starts and the addresses that it sends samples to, each with its key.
    pub fn reaches_out(&self) -> Vec<String> {
        serde_json::to_value(self).map_or_else(|_| Vec::new(), |config| reach::reaching(&config, ""))
    }

    /// Checks everything that can be checked before anything is loaded.
    fn check(&self) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::input("steps must be at least 1, but is 0"));
        }
        if self.micro_batch_tokens == 0 {
            return Err(Error::input("micro_batch_tokens must be at least 1, but is 0"));
        }
        if self.checkpoint.every == 0 {
            return Err(Error::input("checkpoint.every must be at least 1, but is 0"));
        }
        self.rollout.check()?;
        let algorithm = algorithm::build(&self.algorithm)?;
        if let Some(group_size) = algorithm.needs().samples.group_size() {
            self.check_sampling(group_size)?;
        }
        if !(self.evaluate.beta >= 0.0 && self.evaluate.beta.is_finite()) {
            return Err(Error::input(format!("evaluate.beta must be 0 or more, but is {}", self.evaluate.beta)));
        }
        self.check_judge(&*algorithm)?;
        self.guard.check(&*algorithm, self.algorithm.name(), self.checkpoint.keep, self.checkpoint.every)?;
        algorithm.check(&RunShape {
            steps: self.steps,
            gates: self.model.adapter.has_gates(),
            prunes: self.prune.every > 0,
            offline: self.replay.as_ref().is_some_and(|replay| replay.offline),
        })?;
        if let Some(behavior) = &self.behavior {
            let draws = algorithm.needs().samples.are_sampled();
            behavior.check(self.rollout.group_size)?;
            if !draws || self.replay.as_ref().is_some_and(|replay| replay.offline) {
                return Err(Error::input("[behavior] says which policy draws, but this run draws nothing; drop it"));
            }
        }
        if let Some(replay) = &self.replay {
            replay.check(&*algorithm, self.algorithm.name())?;
        }
        if let Some(CollectorConfig::Remote(remote)) = &self.collector {
            self.check_remote(remote, &*algorithm)?;
        }
        if algorithm.needs().samples.opponent().is_some() && (self.behavior.is_some() || self.replay.is_some()) {
            return Err(Error::input(format!(
                "algorithm.{} compares fresh samples of the policy with those of another one; drop [behavior] and [replay]",
                self.algorithm.name(),
            )));
        }
        self.check_gates()
    }

    /// Returns an error if workers could not sample what the run needs.
    fn check_remote(&self, remote: &RemoteConfig, algorithm: &dyn Algorithm) -> Result<()> {
        remote.check()?;
        let name = self.algorithm.name();
        let offline = self.replay.as_ref().is_some_and(|replay| replay.offline);
        if offline || !algorithm.needs().samples.are_sampled() {
            return Err(Error::input("[collector.remote] says who draws, but this run draws nothing; drop it"));
        }
        let local =
            [("[behavior]", self.behavior.is_some()), ("an opponent", algorithm.needs().samples.opponent().is_some())];
        if let Some((what, _)) = local.iter().find(|(_, present)| *present) {
            return Err(Error::input(format!(
                "[collector.remote] draws from the policy that is trained alone, but this run has {what} too; drop one of the two"
            )));
        }
        if remote.max_staleness > 0 && (1..=self.steps).any(|step| algorithm.schedule(step).replay.is_some()) {
            return Err(Error::input(format!(
                "algorithm.{name} decides step by step how much it draws, so nothing can be drawn ahead; set collector.remote.max_staleness = 0"
            )));
        }
        Ok(())
    }

    /// Returns an error if the judge would never be asked.
    fn check_judge(&self, algorithm: &dyn Algorithm) -> Result<()> {
        if self.judge.is_none() {
            return Ok(());
        }
        let drawn = algorithm.needs().samples.are_sampled();
        if drawn && algorithm.needs().samples.compares().is_none() {
            return Err(Error::input(format!(
                "[judge] compares samples, but algorithm.{} learns from rewards; drop [judge], or use a method that compares: {}",
                self.algorithm.name(),
                algorithm::names_of(|other| other.needs().samples.compares().is_some()).join(", "),
            )));
        }
        if self.replay.as_ref().is_some_and(|replay| replay.offline) {
            return Err(Error::input(
                "[judge] compares samples as they are drawn, but replay.offline draws none; drop [judge]",
            ));
        }
        if self.reward.iter().any(|reward| reward.name() == WIN_RATE) {
            return Err(Error::input(format!(
                "a [[reward]] is called `{WIN_RATE}`, as what [judge] finds is; give it another `name`"
            )));
        }
        Ok(())
    }

    /// Checks the requirements of a run that samples in groups of at least `group_size`.
    fn check_sampling(&self, group_size: usize) -> Result<()> {
        if self.reward.is_empty() && self.judge.is_none() {
            return Err(Error::input("no [[reward]] is given, and no [judge]; without one nothing can be learned"));
        }
        if self.rollout.group_size < group_size {
            return Err(Error::input(format!(
                "rollout.group_size is {}, but algorithm.{} compares the samples of a group and needs at least {group_size}",
                self.rollout.group_size,
                self.algorithm.name(),
            )));
        }
        if self.rollout.temperature == 0.0 {
            return Err(Error::input(
                "rollout.temperature is 0: greedy samples of one prompt are all alike, so nothing can be learned from them; 1.0 is usual",
            ));
        }
        Ok(())
    }

    /// Returns an error for constraints or pruning without gates.
    fn check_gates(&self) -> Result<()> {
        if !self.model.adapter.has_gates() {
            let table = if self.prox.is_some() { Some("[prox] closes") } else { None };
            if let Some(table) = table.or((self.prune.every > 0).then_some("[prune] cuts what belongs to closed")) {
                return Err(Error::input(format!(
                    "{table} gates, but this adapter has none; use [model.adapter.sora] or drop the table"
                )));
            }
        }
        let extent = prox::RunExtent::new(&self.optimizer, self.steps, 0);
        let Some(prox) = &self.prox else { return Ok(()) };
        prox.build(extent)?;
        prox.warning(self.optimizer.gate_rule(), extent.learning_rate).map(drop)
    }
}
