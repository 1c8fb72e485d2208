//! The conditions under which all parts are measured: config, sizes, repetitions, and a policy that is loaded once.

use crate::profile::PhaseLog;
use crate::repetition::Repetition;
use crate::roofline::Machine;
use crate::{Args, Usage};
use anyhow::{Context, Result};
use model::Policy;
use schema::{Seed, Token};
use std::cell::OnceCell;
use trainer::config::{Config, Override};

/// The config that is measured unless another one is given.
const CONFIG: &str = include_str!("../../configs/bench.toml");
const CONFIG_NAME: &str = "configs/bench.toml";

/// The text that prompts and rows are cut from: C. Darwin, On the Origin of Species, 1859.
const PROSE: &str = include_str!("prose.txt");

/// The sizes of the pieces of work, in tokens unless said otherwise.
pub(crate) struct Sizes {
    /// Sequences that decode side by side.
    pub(crate) batches: Vec<usize>,
    pub(crate) prompt_tokens: usize,
    pub(crate) new_tokens: usize,
    /// Lengths of equal rows.
    pub(crate) lengths: Vec<usize>,
    /// All rows of an update together.
    pub(crate) tokens: usize,
    /// True if a batch of rows of unequal lengths is measured too.
    pub(crate) ragged: bool,
}

/// The conditions that every part is measured under.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// The name of the config, for the report.
    pub(crate) name: String,
    pub(crate) sizes: Sizes,
    pub(crate) repetition: Repetition,
    /// The phases of this process.
    pub(crate) phases: PhaseLog,
    text: String,
    changes: Vec<Override>,
    policy: OnceCell<Policy>,
    machine: OnceCell<Machine>,
}

impl Setup {
    /// Reads the config and checks the sizes.
    ///
    /// # Errors
    ///
    /// Returns [`Usage`] or the config's own error if an option, the config or a change of it is at fault.
    pub(crate) fn new(args: &Args, phases: PhaseLog) -> Result<Self> {
        let (text, name) = match &args.config {
            None => (CONFIG.to_owned(), CONFIG_NAME.to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Usage(format!("cannot read the config {}: {error}; configs/ has examples", path.display()))
                })?;
                (text, path.display().to_string())
            }
        };
        let model = args.model.iter().map(|path| format!("model.path={path:?}"));
        let changes = model
            .chain(args.set.iter().cloned())
            .map(|change| change.parse::<Override>().map_err(|error| Usage(format!("--set {error}")).into()))
            .collect::<Result<Vec<_>>>()?;
        let config = Config::parse(&text, &name, &changes)?;
        let sizes = Sizes {
            batches: args.batches.clone(),
            prompt_tokens: args.prompt_tokens,
            new_tokens: args.new_tokens,
            lengths: args.lengths.clone(),
            tokens: args.tokens,
            ragged: !args.no_ragged,
        };
        sizes.check(args.repetitions)?;
        Ok(Self {
            config,
            name,
            sizes,
            repetition: Repetition { count: args.repetitions, seconds: args.seconds },
            phases,
            text,
            changes,
            policy: OnceCell::new(),
            machine: OnceCell::new(),
        })
    }

    /// Returns the config with further changes.
    ///
    /// # Errors
    ///
    /// Returns the config's error if a change is refused.
    pub(crate) fn config_with(&self, changes: &[Override]) -> Result<Config> {
        let changes: Vec<Override> = self.changes.iter().chain(changes).cloned().collect();
        Ok(Config::parse(&self.text, &self.name, &changes)?)
    }

    /// Returns the config's policy, which the first call loads.
    ///
    /// # Errors
    ///
    /// Fails if the model cannot be loaded.
    pub(crate) fn policy(&self) -> Result<&Policy> {
        if self.policy.get().is_none() {
            let mut policy = Policy::load(&self.config.model, &Seed::new(self.config.seed))?;
            // As if it had been trained: an adapter that does nothing might be left out.
            policy.adapter().perturb(1e-3);
            policy.set_version(1);
            let _ = self.policy.set(policy);
        }
        self.policy.get().context("the policy was just loaded")
    }

    /// Returns this machine's limits, which the first call measures.
    ///
    /// # Errors
    ///
    /// Fails if the model cannot be loaded, or if there is no memory for the measurement.
    pub(crate) fn machine(&self) -> Result<Machine> {
        if self.machine.get().is_none() {
            let _ = self.machine.set(Machine::measure(self.policy()?)?);
        }
        self.machine.get().copied().context("the machine was just measured")
    }
}

impl Sizes {
    fn check(&self, repetitions: usize) -> Result<(), Usage> {
        let positive = [
            ("--repetitions", repetitions),
            ("--prompt-tokens", self.prompt_tokens),
            ("--tokens", self.tokens),
            ("--batches", self.batches.iter().copied().min().unwrap_or(0)),
        ];
        if let Some((option, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Usage(format!("{option} must be at least 1, but is 0")));
        }
        if let Some(length) = self.lengths.iter().find(|length| **length < 2) {
            return Err(Usage(format!("--lengths has {length}; a row needs two tokens, one to begin with")));
        }
        if self.new_tokens < 3 {
            let given = self.new_tokens;
            return Err(Usage(format!("--new-tokens is {given}; at least 3 are needed, the first two warm up")));
        }
        Ok(())
    }
}

/// The prose on one line.
pub(crate) fn prose() -> String {
    PROSE.replace('\n', " ")
}

/// Cuts `count` prompts of exactly `length` tokens from the prose, each beginning 7 tokens after the one before.
///
/// # Errors
///
/// Fails if the tokenizer cannot encode the prose.
pub(crate) fn prompt_ids(policy: &Policy, count: usize, length: usize) -> Result<Vec<Vec<Token>>> {
    let ids = policy.tokenizer().encode(&prose())?;
    let piece = |number: usize| ids.iter().cycle().skip(number * 7).take(length).copied().collect();
    Ok((0..count).map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_one_that_draws() {
        let config = Config::parse(CONFIG, CONFIG_NAME, &[]).unwrap();
        assert_eq!((config.rollout.prompts_per_step, config.rollout.group_size), (4, 8));
    }
}
