//! Learning rules: one file each, behind one trait.
//!
//! An algorithm says what it needs, builds the units that it trains on, gives each sequence its signal, and turns a batch
//! into a loss. The loop supplies exactly what it needs, or refuses before anything is loaded. A new algorithm is one file
//! and one line in the list below, which declares its module, its config table and its builder.

use crate::batch::{Batch, Reads, SequenceLogprobs, Signals, ZeroAdvantage};
use crate::collected::{Collected, Sequence, Unit};
use crate::companion::{ByRole, Companion, Role};
use crate::objective::{Denominator, MetricSums, has_signal};
use crate::{Error, Result};
use model::Policy;
use model::adapter::Adapter;
use schema::{GradedGroup, Metrics, Verdict};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Supplies that an algorithm asks the loop for, in every step.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// The origin of what it trains on.
    pub samples: Samples,
    /// The leaves that the loss is a function of.
    pub reads: Reads,
    /// The policies that are kept beside the trained one.
    pub companions: Vec<Companion>,
    /// A critic, which values every prefix.
    pub critic: Option<CriticNeeds>,
    /// `true` if the signal depends on log-probs, so that every sequence is evaluated before it is given.
    pub signal_reads_logprobs: bool,
    /// The treatment of sequences whose advantage is exactly zero.
    pub zero_advantage: ZeroAdvantage,
}

impl Default for Needs {
    /// The needs of a method without a critic that learns from groups and penalises nothing.
    fn default() -> Self {
        Self {
            samples: Samples::sampled(2),
            reads: Reads::Tokens,
            companions: Vec::new(),
            critic: None,
            signal_reads_logprobs: false,
            zero_advantage: ZeroAdvantage::Skip,
        }
    }
}

impl Needs {
    /// The companion with this role, if it is needed.
    pub fn companion(&self, role: Role) -> Option<&Companion> {
        self.companions.iter().find(|companion| companion.role == role)
    }
}

/// The origin of what an algorithm trains on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Samples {
    /// The policy samples, and rewards or a judge tell the samples apart.
    Sampled {
        /// The smallest group that it can learn from.
        group_size: usize,
        /// The policy that samples a second group for each prompt.
        opponent: Option<Opponent>,
        /// The samples that are compared with each other; `None` if rewards alone are learned from.
        compares: Option<Compares>,
    },
    /// Completions of a data set, one per prompt.
    Demonstrations {
        /// Tokens of a prompt with its completion; a longer completion is cut.
        max_length: usize,
    },
    /// Completions of a data set, one per prompt, each labelled good or bad.
    Labelled {
        /// Tokens of a prompt with its completion; a longer completion is cut.
        max_length: usize,
    },
    /// Two completions of a data set per prompt, a chosen and a rejected one.
    Pairs {
        /// Tokens of a prompt with either completion; a longer pair is left out.
        max_length: usize,
    },
}

impl Samples {
    /// Groups of at least this size that the policy samples, learned from by their rewards.
    pub fn sampled(group_size: usize) -> Self {
        Self::Sampled { group_size, opponent: None, compares: None }
    }

    /// Returns `true` if the policy samples what is learned from.
    pub fn are_sampled(self) -> bool {
        matches!(self, Self::Sampled { .. })
    }

    /// The smallest group that the method can learn from, if the policy samples.
    pub fn group_size(self) -> Option<usize> {
        if let Self::Sampled { group_size, .. } = self { Some(group_size) } else { None }
    }

    /// The policy that samples a second group for each prompt.
    pub fn opponent(self) -> Option<Opponent> {
        if let Self::Sampled { opponent, .. } = self { opponent } else { None }
    }

    /// The samples that are compared with each other.
    pub fn compares(self) -> Option<Compares> {
        if let Self::Sampled { compares, .. } = self { compares } else { None }
    }
}

/// The critic that an algorithm wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticNeeds {
    /// It reads the hidden states through an adapter of its own, not through the policy's.
    pub own_adapter: bool,
    /// Multiplies the learning rate of its tensors.
    pub learning_rate_scale: f64,
}

/// The policy that the trained one is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Opponent {
    /// The reference policy.
    Reference,
    /// The geometric mixture, token by token, of the policy and the reference.
    Mixture {
        /// The weight of the reference, in [0, 1].
        reference: f64,
    },
}

/// The pairs of samples that a method compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compares {
    /// Each sample of a group with every other one.
    Group,
    /// The first with the second sample of a group, the third with the fourth, and so on.
    Neighbours,
    /// Each sample with every one of its opponent's.
    Opponents,
    /// The n-th sample of a group with the n-th of its opponent's.
    Counterparts,
}

/// The plan of one step: passes, updates, rounds of sampling, replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Passes over the samples.
    pub epochs: usize,
    /// Optimizer updates in one pass.
    pub minibatches: usize,
    /// Stop the step's updates once the policy is this far from where the step began, in nats per token (mean of k3).
    pub max_proximal_kl: Option<f64>,
    /// Ask up to this many times as many prompts until there are enough groups that carry a signal (DAPO's dynamic
    /// sampling); 1 takes what comes.
    pub max_rounds: usize,
    /// The rewards that tell whether a group carries a signal, in a step of several rounds.
    pub filter_by: FilterBy,
    /// Old groups that take the place of fresh ones.
    pub replay: Option<Replay>,
    /// Companions that are not consulted in this step.
    pub idle: &'static [Role],
}

/// The rewards by which dynamic sampling tells groups apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterBy {
    /// The first `[[reward]]`, such as the accuracy, whatever is added to it.
    #[default]
    FirstReward,
    /// The weighted sum of all rewards.
    Total,
}

impl FilterBy {
    /// Returns true if the group's rewards of this kind differ. A group without reward functions has its totals alone.
    pub(crate) fn has_signal(self, group: &GradedGroup) -> bool {
        let first = |verdict: &Verdict| Some(verdict.rewards.first()?.grade.value());
        let firsts: Option<Vec<Option<f32>>> = group.verdicts().iter().map(first).collect();
        match (self, firsts) {
            (Self::FirstReward, Some(firsts)) => has_signal(&firsts),
            _ => has_signal(&group.rewards()),
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            epochs: 1,
            minibatches: 1,
            max_proximal_kl: None,
            max_rounds: 1,
            filter_by: FilterBy::Total,
            replay: None,
            idle: &[],
        }
    }
}

/// The number and kind of old groups that a step learns from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replay {
    /// Their share in the groups of the step; the rest is sampled.
    pub share: f64,
    /// They come from this many steps before this one.
    pub window: u64,
    /// Groups whose rewards are all alike stay in the store.
    pub only_with_signal: bool,
}

impl Schedule {
    /// Optimizer updates in the step, unless it stops early.
    pub fn updates(&self) -> u64 {
        (self.epochs * self.minibatches) as u64
    }
}

/// The basis of the training signal.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Everything that the step collected.
    pub collected: &'a Collected,
    /// The units that [`Algorithm::units`] built of it.
    pub units: &'a [Unit<'a>],
    /// Log-probs of each sequence of each unit; there if [`Needs::signal_reads_logprobs`].
    pub logprobs: Option<&'a [Vec<SequenceLogprobs>]>,
}

impl<'a> Evidence<'a> {
    /// The graded groups among the units, in order.
    pub fn groups(&self) -> Vec<&'a GradedGroup> {
        self.units.iter().filter_map(Unit::group).collect()
    }
}

/// Results of a forward pass over a batch: the leaves that a loss is a function of.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    /// `[token]`: log-probs under the policy. Empty if the algorithm reads sequence ends.
    pub logprobs: &'a Tensor,
    /// `[token]`: the entropy of the distribution that each token was sampled from, in nats.
    pub entropy: Option<&'a Tensor>,
    /// `[token]`: the critic's value of the prefix before each token.
    pub values: Option<&'a Tensor>,
    /// `[token]` each: KL(policy ‖ companion) over the vocabulary, in nats, for companions whose divergence is consulted.
    pub divergences: ByRole<&'a Tensor>,
}

impl<'a> Outputs<'a> {
    /// Log-probs alone.
    pub fn of(logprobs: &'a Tensor) -> Self {
        Self { logprobs, entropy: None, values: None, divergences: ByRole::default() }
    }
}

/// The settings of a run that a method may not be able to live with.
#[derive(Debug, Clone, Copy)]
pub struct RunShape {
    /// Training steps.
    pub steps: u64,
    /// `true` if the adapter has gates (`SoRA`).
    pub gates: bool,
    /// `true` if closed ranks are cut away during the run (`[prune]`).
    pub prunes: bool,
    /// `true` if nothing is sampled (`replay.offline`).
    pub offline: bool,
}

/// The end of a step, as [`Algorithm::end_step`] sees it.
pub struct StepEnd<'a> {
    /// The step, from 1.
    pub step: u64,
    /// The last step of the run.
    pub last_step: u64,
    /// The policy after the step's updates; its adapter may be overwritten.
    pub policy: &'a Policy,
    /// The adapters of the companions.
    pub companions: &'a ByRole<Adapter>,
    /// The loss of the policy, as its adapter now is, on the step's data.
    pub loss: &'a dyn Fn() -> Result<f64>,
}

/// The changes that a method makes at the end of a step.
#[derive(Debug, Default)]
pub struct StepChanges {
    /// Companions with their new adapters.
    pub companions: Vec<(Role, Adapter)>,
    /// `true` makes the optimizer forget its moments.
    pub restart_optimizer: bool,
    /// Diagnostics.
    pub metrics: Metrics,
}

/// A learning rule.
pub trait Algorithm {
    /// Supplies that the loop must provide.
    fn needs(&self) -> Needs;

    /// Refuses a run that the method cannot live with.
    ///
    /// # Errors
    /// The sentence that says what to change, if the method cannot train in a run of this shape.
    fn check(&self, _run: &RunShape) -> Result<()> {
        Ok(())
    }

    /// The sentence about settings that train, but hardly as meant.
    fn warning(&self) -> Option<String> {
        None
    }

    /// The schedule of a step; steps count from 1.
    fn schedule(&self, _step: u64) -> Schedule {
        Schedule::default()
    }

    /// Tells a method whose loss depends on the step which step begins; steps count from 1.
    fn begin_step(&mut self, _step: u64) {}

    /// Builds the units to train on: pairs of the best and the worst sample, for example.
    fn units<'a>(&self, collected: &'a Collected) -> Vec<Unit<'a>> {
        collected.units()
    }

    /// The signal of each sequence of each unit. Diagnostics go to `metrics`.
    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals;

    /// Returns `true` if the tokens of this sequence are in the loss and its denominator.
    fn trains_on(&self, _sequence: &Sequence<'_>) -> bool {
        true
    }

    /// The denominator of sums of token losses over a whole optimizer batch; one entry per sequence.
    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator;

    /// The share of this batch in the loss, a scalar that is minimised; its measurements go to `sums`.
    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor;

    /// Changes companions, the policy or the optimizer at the end of a step, after its updates.
    ///
    /// # Errors
    /// If an adapter cannot be computed or overwritten.
    fn end_step(&self, _end: &StepEnd<'_>) -> Result<StepChanges> {
        Ok(StepChanges::default())
    }

    /// After the updates of a step over `samples` samples: adapts what depends on its metrics.
    fn finish_step(&mut self, _metrics: &mut Metrics, _samples: usize) {}

    /// State that must be saved to go on.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// If the state is another algorithm's.
    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        match state {
            serde_json::Value::Null => Ok(()),
            _ => Err(Error::input("the checkpoint holds the state of another algorithm")),
        }
    }
}

/// The names of the methods of which this is true with their default settings, as a config writes them.
pub(crate) fn names_of(is: impl Fn(&dyn Algorithm) -> bool) -> Vec<&'static str> {
    let with_it = |config: &Config| build(config).is_ok_and(|algorithm| is(&*algorithm));
    Config::defaults().iter().filter(|config| with_it(config)).map(Config::name).collect()
}

/// Declares the modules, `Config` with one variant per algorithm, and its builder: one line per algorithm.
macro_rules! algorithms {
    ($($(#[$about:meta])* $folder:ident($($shared:ident),* $(,)?) { $($name:literal $module:ident::$settings:ident,)* })*) => {
        $(
            $(#[$about])*
            pub mod $folder {
                $(pub(crate) mod $shared;)*
                $(pub mod $module;)*
            }
            $(pub use $folder::$module::$settings;)*
        )*

        /// `[algorithm.<name>]`
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Config {
            $($(#[doc = concat!("`[algorithm.", $name, "]`")] $settings($settings),)*)*
        }

        impl Config {
            /// The algorithm's name in the config.
            pub fn name(&self) -> &'static str {
                match self {
                    $($(Self::$settings(_) => $name,)*)*
                }
            }

            /// Every algorithm with its default settings.
            pub fn defaults() -> Vec<Self> {
                vec![$($(Self::$settings(<$settings>::default()),)*)*]
            }
        }

        /// Checks the settings and makes the algorithm.
        ///
        /// # Errors
        /// If a setting is out of its range; the message names the key.
        pub fn build(config: &Config) -> Result<Box<dyn Algorithm>> {
            match config {
                $($(Config::$settings(settings) => Ok(Box::new(settings.clone().checked()?)),)*)*
            }
        }
    };
}

algorithms! {
    /// Policy gradients: sampled groups, learned from by their rewards.
    policy_gradient(family, surrogate_loss) {
        "grpo" grpo::Grpo,
        "dr_grpo" dr_grpo::DrGrpo,
        "dapo" dapo::Dapo,
        "gspo" gspo::Gspo,
        "rloo" rloo::Rloo,
        "reinforce_pp" reinforce_pp::ReinforcePp,
        "cispo" cispo::Cispo,
        "reinforce" reinforce::Reinforce,
        "ppo" ppo::Ppo,
        "remix" remix::Remix,
    }
    /// Preferences: pairs of completions or labelled ones, of a data set or sampled.
    preference(pair_loss, pairing) {
        "dpo" dpo::Dpo,
        "ipo" ipo::Ipo,
        "simpo" simpo::Simpo,
        "cpo" cpo::Cpo,
        "orpo" orpo::Orpo,
        "kto" kto::Kto,
        "sppo" sppo::Sppo,
        "anchored" anchored::Anchored,
        "online_dpo" online_dpo::OnlineDpo,
        "online_ipo" online_ipo::OnlineIpo,
        "apo" apo::Apo,
        "nash_mp" nash_mp::NashMp,
        "nash_md" nash_md::NashMd,
        "xpo" xpo::Xpo,
    }
    /// Imitation, and models of rewards and preferences.
    supervised() {
        "sft" sft::Sft,
        "reward_model" reward_model::RewardModel,
        "preference_model" preference_model::PreferenceModel,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::Grpo(Grpo::default())
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
