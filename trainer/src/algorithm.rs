//! Learning rules: one file each, behind one trait.
//!
//! An algorithm says what it needs, gives each sample its credit, and turns a batch into a loss. The loop supplies
//! exactly what it needs, or refuses before anything is loaded. A new algorithm is one file and its line in the list
//! below.

mod anchored;
mod apo;
mod cispo;
mod cpo;
mod dapo;
mod dpo;
mod dr_grpo;
mod family;
mod grpo;
mod gspo;
mod ipo;
mod kto;
mod nash_md;
mod nash_mp;
mod online_dpo;
mod online_ipo;
mod orpo;
pub(crate) mod policy_gradient;
mod ppo;
mod preference;
mod preference_model;
mod reinforce;
mod reinforce_pp;
mod remix;
mod reward_model;
mod rloo;
mod sft;
mod simpo;
mod sppo;
mod xpo;

pub use anchored::{Anchored, AnchoredForm};
pub use apo::{Apo, ApoLoss};
pub use cispo::Cispo;
pub use cpo::Cpo;
pub use dapo::Dapo;
pub use dpo::{Dpo, DpoLoss};
pub use dr_grpo::DrGrpo;
pub use family::RatioOf;
pub use grpo::{Grpo, LossType, ScaleRewards};
pub use gspo::Gspo;
pub use ipo::{Ipo, LogRatio};
pub use kto::{Kto, KtoData};
pub use nash_md::{NashMd, NashMdForm};
pub use nash_mp::{NashForm, NashMp};
pub use online_dpo::{OnlineDpo, OnlineLoss};
pub use online_ipo::OnlineIpo;
pub use orpo::Orpo;
pub use ppo::Ppo;
pub use preference::Ties;
pub use preference_model::PreferenceModel;
pub use reinforce::{Baseline, Reinforce};
pub use reinforce_pp::ReinforcePp;
pub use remix::{Base, ConvexKl, LambdaSchedule, Remix};
pub use reward_model::RewardModel;
pub use rloo::Rloo;
pub use sft::Sft;
pub use simpo::SimPo;
pub use sppo::{Sppo, SppoForm};
pub use xpo::Xpo;

use crate::batch::Batch;
use crate::objective::{Denominator, MetricSums};
use crate::{Error, Result};
use schema::{GradedGroup, Metrics, Sample};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What an algorithm wants the loop to supply, in every step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each says by itself whether one thing is needed")]
pub struct Needs {
    /// Where samples come from.
    pub samples: Samples,
    /// Tokens that an example of a data set may have, its prompt included; samples that are drawn have their own limit.
    pub max_length: usize,
    /// What the loss is a function of.
    pub reads: Reads,
    /// Log-probabilities under the reference policy: the network with its adapter off, or the policy that a schedule
    /// has made the reference since ([`Schedule::renew_reference`]).
    pub reference: bool,
    /// Who draws a second group for each prompt, which follows the policy's own.
    pub opponent: Option<Opponent>,
    /// Which samples are compared with each other; `None` if rewards alone are learned from.
    pub compares: Option<Compares>,
    /// Training goes in iterations, each of which has the policy that it began with as its reference.
    pub iterations: Option<Iterations>,
    /// Log-probabilities under a moving average of the policy.
    pub anchor: Option<MovingAverage>,
    /// The policy of one step earlier is kept; a schedule says in which steps it is scored
    /// ([`Schedule::score_previous`]).
    pub previous: bool,
    /// What is known of the reference, and of the previous policy in steps that score it.
    pub divergences: Divergences,
    /// A critic, which values every prefix.
    pub critic: Option<CriticNeeds>,
    /// Credit depends on what the policies say of each token, so every sample is scored before credit is given.
    pub scored_credit: bool,
    /// Samples whose credit is exactly zero.
    pub zero_credit: ZeroCredit,
    /// The samples of a group are never parted, as those of a pair are not.
    pub whole_groups: bool,
}

impl Default for Needs {
    /// What a method without a critic needs that learns from groups and penalises nothing.
    fn default() -> Self {
        Self {
            samples: Samples::Drawn { group_size: 2 },
            max_length: 1024,
            reads: Reads::Tokens,
            reference: false,
            opponent: None,
            compares: None,
            iterations: None,
            anchor: None,
            previous: false,
            divergences: Divergences::OfDraws,
            critic: None,
            scored_credit: false,
            zero_credit: ZeroCredit::Skip,
            whole_groups: false,
        }
    }
}

/// Where the samples of an algorithm come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Samples {
    /// The policy draws them, and rewards judge them.
    Drawn {
        /// The smallest group it can learn from.
        group_size: usize,
    },
    /// Completions of a data set, one per prompt.
    Demonstrations,
    /// Two completions of a data set per prompt: the chosen one, then the rejected one. They are never parted.
    Pairs,
}

/// What a loss is a function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The log-probability of every token, and the critic's value before it where there is a critic.
    Tokens,
    /// The critic's value after the last token of each sample, and nothing else. A sample has one more place behind its
    /// last token, and that one alone is trained on.
    Ends,
}

/// What an algorithm gets to know of the policies that it is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergences {
    /// Their log-probabilities of the drawn tokens, once per step, from which divergences can be estimated.
    OfDraws,
    /// The divergences from them over the whole vocabulary, in every pass: [`Outputs::reference_kl`].
    Exact,
}

/// The critic that an algorithm wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticNeeds {
    /// It reads the hidden states through an adapter of its own, not through the policy's.
    pub own_adapter: bool,
    /// Multiplies the learning rate of its tensors.
    pub learning_rate_scale: f64,
}

/// With whom the policy is compared.
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

/// Which samples a method compares.
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

/// How an average follows the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MovingAverage {
    /// What it takes over of the policy at a time.
    pub share: f64,
    /// After every this many steps.
    pub every: u64,
}

/// How training goes in iterations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iterations {
    /// Training steps of one.
    pub steps: u64,
    /// How far the next one begins beyond the end of the last, as a share of what that has moved.
    pub alpha: f64,
    /// How much larger the loss may be there before that share is halved; 0 does not look.
    pub max_loss_increase: f64,
}

/// What becomes of samples whose credit is exactly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCredit {
    /// They have no gradient, so they are counted in denominators but not computed.
    Skip,
    /// They are computed: a penalty acts on every sample.
    Compute,
}

/// How one step learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Passes over the samples.
    pub epochs: usize,
    /// Optimizer updates in one pass.
    pub minibatches: usize,
    /// Stop the step's updates once the policy is this far from where the step began, in nats per token (mean of k3).
    pub max_proximal_kl: Option<f64>,
    /// Draw up to this many times as many prompts until there are enough groups that carry a signal (DAPO's dynamic
    /// sampling); 1 takes what comes.
    pub max_rounds: usize,
    /// Old groups that take the place of fresh ones.
    pub replay: Option<Replay>,
    /// Score the samples under the policy of one step earlier too.
    pub score_previous: bool,
    /// After this step's updates the policy, as it then is, becomes the reference.
    pub renew_reference: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            epochs: 1,
            minibatches: 1,
            max_proximal_kl: None,
            max_rounds: 1,
            replay: None,
            score_previous: false,
            renew_reference: false,
        }
    }
}

/// How many old groups a step learns from, and which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replay {
    /// Their share in the groups of the step; the rest is drawn.
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

/// What credit is given by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The samples of the step with their rewards.
    pub groups: &'a [GradedGroup],
    /// What the policies say of each sample of each group; there if [`Needs::scored_credit`].
    pub scores: Option<&'a [Vec<SampleScores>]>,
}

/// What the policies said of one sample at the start of the step, one entry per token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleScores {
    /// Log-probabilities under the policy that is trained.
    pub logprobs: Vec<f32>,
    /// Log-probabilities under the reference policy; empty if it is not needed.
    pub reference: Vec<f32>,
    /// Log-probabilities under the moving average of the policy; empty if it is not needed.
    pub anchor: Vec<f32>,
    /// The critic's value of the prefix before each token; empty without a critic.
    pub values: Vec<f32>,
}

impl SampleScores {
    /// `log π − log other` at each token, for the scores of another policy.
    pub(crate) fn log_ratios_to(&self, other: &[f32]) -> Vec<f64> {
        self.logprobs.iter().zip(other).map(|(own, other)| f64::from(*own) - f64::from(*other)).collect()
    }
}

/// What a sample is worth to the update.
#[derive(Debug, Clone, PartialEq)]
pub enum Credit {
    /// One advantage for every token.
    Whole(f64),
    /// An advantage for each token, and the return that the critic is fitted to (empty without a critic).
    Tokens {
        /// One per token of the sample; ignored where the sample's mask is off.
        advantages: Vec<f32>,
        /// One per token, or none.
        returns: Vec<f32>,
    },
}

impl Credit {
    /// Whether it moves nothing.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Whole(advantage) => *advantage == 0.0,
            Self::Tokens { advantages, returns } => returns.is_empty() && advantages.iter().all(|a| *a == 0.0),
        }
    }
}

/// The credit of each sample of each group; `None` for a sample that is not trained on.
pub type Credits = Vec<Vec<Option<Credit>>>;

/// One advantage per sample as [`Credits`].
pub(crate) fn whole(advantages: Vec<Vec<Option<f64>>>) -> Credits {
    let credit = |advantage: Option<f64>| advantage.map(Credit::Whole);
    advantages.into_iter().map(|group| group.into_iter().map(credit).collect()).collect()
}

/// What a forward pass says of a batch; the leaves that a loss is a function of.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    /// `[token]`: log-probabilities under the policy. Empty if the algorithm reads ends.
    pub logprobs: &'a Tensor,
    /// `[token]`: the entropy of the distribution that each token was drawn from, in nats.
    pub entropy: Option<&'a Tensor>,
    /// `[token]`: the critic's value of the prefix before each token.
    pub values: Option<&'a Tensor>,
    /// `[token]`: KL(policy ‖ reference) over the vocabulary, in nats; there if [`Needs::divergences`] are exact.
    pub reference_kl: Option<&'a Tensor>,
    /// `[token]`: KL(policy ‖ previous policy), likewise, in steps that score it.
    pub previous_kl: Option<&'a Tensor>,
}

impl<'a> Outputs<'a> {
    /// Log-probabilities alone.
    pub fn of(logprobs: &'a Tensor) -> Self {
        Self { logprobs, entropy: None, values: None, reference_kl: None, previous_kl: None }
    }
}

/// A learning rule.
pub trait Algorithm {
    /// What the loop must supply.
    fn needs(&self) -> Needs;

    /// How this step learns; steps count from 1.
    fn schedule(&self, _step: u64) -> Schedule {
        Schedule::default()
    }

    /// What to learn from where that is not the groups as they come: pairs of the best and the worst, for example.
    fn arrange(&self, _groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        None
    }

    /// What each sample is worth. What is worth knowing about it goes to `metrics`.
    fn credit(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Credits;

    /// Whether the tokens of this sample are in the loss and its denominator.
    fn trains_on(&self, _sample: &Sample) -> bool {
        true
    }

    /// What sums of token losses are divided by, over a whole optimizer batch; one entry per sequence.
    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator;

    /// The share of this batch in the loss, a scalar that is minimised; its measurements go to `tally`.
    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor;

    /// After the updates of a step over `samples` samples: adapts what depends on its metrics.
    fn finish_step(&mut self, _metrics: &mut Metrics, _samples: usize) {}

    /// What must be saved to go on.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Goes on from a saved state.
    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        match state {
            serde_json::Value::Null => Ok(()),
            _ => Err(Error::input("the checkpoint holds the state of another algorithm")),
        }
    }
}

/// Declares `Config`, one variant per algorithm, and everything that must know them all.
macro_rules! algorithms {
    ($($name:literal $variant:ident($settings:ty),)*) => {
        /// `[algorithm.<name>]`
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Config {
            $(#[doc = concat!("`[algorithm.", $name, "]`")] $variant($settings),)*
        }

        impl Config {
            /// The algorithm's name in the config.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Every algorithm with its default settings.
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$settings>::default()),)*]
            }
        }

        /// Checks the settings and makes the algorithm.
        pub fn build(config: &Config) -> Result<Box<dyn Algorithm>> {
            match config {
                $(Config::$variant(settings) => Ok(Box::new(settings.clone().checked()?)),)*
            }
        }
    };
}

algorithms! {
    "grpo" Grpo(Grpo),
    "dr_grpo" DrGrpo(DrGrpo),
    "dapo" Dapo(Dapo),
    "gspo" Gspo(Gspo),
    "rloo" Rloo(Rloo),
    "reinforce_pp" ReinforcePp(ReinforcePp),
    "cispo" Cispo(Cispo),
    "reinforce" Reinforce(Reinforce),
    "ppo" Ppo(Ppo),
    "reward_model" RewardModel(RewardModel),
    "preference_model" PreferenceModel(PreferenceModel),
    "sft" Sft(Sft),
    "dpo" Dpo(Dpo),
    "ipo" Ipo(Ipo),
    "simpo" Simpo(SimPo),
    "cpo" Cpo(Cpo),
    "orpo" Orpo(Orpo),
    "kto" Kto(Kto),
    "sppo" Sppo(Sppo),
    "anchored" Anchored(Anchored),
    "online_dpo" OnlineDpo(OnlineDpo),
    "online_ipo" OnlineIpo(OnlineIpo),
    "apo" Apo(Apo),
    "nash_mp" NashMp(NashMp),
    "nash_md" NashMd(NashMd),
    "xpo" Xpo(Xpo),
    "remix" Remix(Remix),
}

impl Default for Config {
    fn default() -> Self {
        Self::Grpo(Grpo::default())
    }
}

#[cfg(test)]
mod tests;
