//! Proximal policy optimisation with a critic (Schulman et al. 2017, arXiv 1707.06347; for language models Ziegler et
//! al. 2019, arXiv 1909.08593).
//!
//! A critic values every prefix, so each token has an advantage of its own and a prompt needs only one sample:
//!
//! ```text
//! r_t   = [t is last] R − β k1(π_old, π_ref)_t
//! A_t   = Σ (γλ)^k δ_{t+k}             δ_t = r_t + γ V_{t+1} − V_t, V = 0 after the last token; then whitened
//! ret_t = A_t + V_t                    before whitening
//! ℓ_t   = −min(ρ A, clip(ρ, 1 − low, 1 + high) A) − c_e H_t
//! v_t   = ½ max((V − ret)², (clip(V, V_old ± ε_v) − ret)²)
//! loss  = mean ℓ + c_v mean v          over the trained tokens of an optimizer batch
//! ```
//!
//! The log-probabilities of policy and reference and the critic's values are computed once, at the start of the step:
//! the ratio ρ is exactly 1 until the first update. Advantages are whitened over all trained tokens of the step, not of
//! a minibatch. A truncated completion ends like any other, with no value after its last token; a completion without a
//! trained token cannot carry its reward and is left out.
//!
//! Defaults: the clips and `c_v` are TRL's. λ is 1, as in verl and `OpenRLHF`: the reward comes at the end of a short
//! completion, and a critic that starts at zero would only bias it. There is no KL term, as in [`Grpo`](crate::algorithm::Grpo);
//! `kl_coefficient` puts one into the reward. There is one pass of two updates: at the learning rates of adapters (1e-3
//! and above on a tiny network) the four passes of TRL move the policy too far, and `target_kl` would have to stop
//! them.
//!
//! The head starts at zero and reads normed hidden states, whose entries are about 1. An update of Adam moves each of
//! its `d` weights by the learning rate, and so a value by up to `d` times that: at the rate of an adapter, by more
//! than a reward is worth. Hence the small `critic_learning_rate_scale`; raise it with a small learning rate (verl
//! trains its critic at ten times the 1e-6 of the policy).

use super::family;
use super::surrogate_loss::{self, PolicyGradient, unless_zero};
use crate::algorithm::{Algorithm, CriticNeeds, Evidence, Needs, Outputs, Samples, Schedule};
use crate::batch::{Batch, SequenceLogprobs, Signal, Signals, ZeroAdvantage};
use crate::companion::{Companion, Consults};
use crate::objective::{
    AdaptiveKl, Aggregation, Clip, Denominator, Gae, KlEstimator, Level, MetricSums, RatioReference, RolloutCorrection,
    Rows, Surrogate, token_rewards, value_losses,
};
use crate::{Error, Result};
use model::device::HOST;
use schema::{Finish, Metrics, Sample};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

/// `[algorithm.ppo]`: proximal policy optimisation with a critic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ppo {
    /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
    #[serde(alias = "cliprange", alias = "epsilon")]
    pub clip_low: f64,
    /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
    #[serde(alias = "epsilon_high")]
    pub clip_high: f64,
    /// Cap on the loss of tokens with negative advantage, in multiples of the advantage (dual clip); 0 for no cap.
    pub dual_clip: f64,
    /// Largest change of a value from its start-of-step value before its gradient is cut; 0 for no clip.
    #[serde(alias = "cliprange_value")]
    pub value_clip: f64,
    /// Weight of the critic's loss.
    #[serde(alias = "vf_coef")]
    pub value_coefficient: f64,
    /// Weight of the entropy bonus; 0 for none.
    pub entropy_coefficient: f64,
    /// Discount γ per token.
    pub gamma: f64,
    /// Trace decay λ of the advantages: 1 uses only rewards, 0 only the critic.
    #[serde(alias = "lam")]
    pub lambda: f64,
    /// Cap of the V-trace weights for old samples: later tokens are weighted by the ratio to the policy that sampled
    /// them, truncated at this; 0 for no weights.
    pub trace_truncation: f64,
    /// Divide token rewards by their deviation over the step and keep their mean.
    pub whiten_rewards: bool,
    /// Shift and scale advantages to mean 0 and variance 1 over the step.
    pub whiten_advantages: bool,
    /// Weight of the KL towards the reference policy, subtracted from the reward of each token; 0 for none.
    #[serde(alias = "kl_coef")]
    pub kl_coefficient: f64,
    /// Target KL in nats per token, towards which the coefficient is adapted; 0 keeps the coefficient.
    pub kl_target: f64,
    /// Samples over which an adapted coefficient changes by at most a fifth.
    pub kl_horizon: f64,
    /// Penalty subtracted from the reward of a completion that was truncated at the token limit.
    pub missing_eos_penalty: f64,
    /// Passes over the samples of a step.
    #[serde(alias = "num_ppo_epochs")]
    pub epochs: usize,
    /// Optimizer updates in one pass.
    #[serde(alias = "num_mini_batches")]
    pub minibatches: usize,
    /// Distance of the policy from its start-of-step state, in nats per token, at which the step's updates end; 0 for
    /// no limit.
    pub target_kl: f64,
    /// Give the critic an adapter of its own, so that learning values cannot disturb the policy.
    pub critic_adapter: bool,
    /// Factor on the learning rate of the critic's head and of its adapter.
    pub critic_learning_rate_scale: f64,
    /// Correction of the mismatch between the sampler's and the trainer's log-probabilities.
    pub rollout_correction: RolloutCorrection,
}

impl Default for Ppo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 0.0,
            value_clip: 0.2,
            value_coefficient: 0.1,
            entropy_coefficient: 0.0,
            gamma: 1.0,
            lambda: 1.0,
            trace_truncation: 0.0,
            whiten_rewards: false,
            whiten_advantages: true,
            kl_coefficient: 0.0,
            kl_target: 0.0,
            kl_horizon: 10_000.0,
            missing_eos_penalty: 0.0,
            epochs: 1,
            minibatches: 2,
            target_kl: 0.0,
            critic_adapter: false,
            critic_learning_rate_scale: 0.1,
            rollout_correction: RolloutCorrection::Off,
        }
    }
}

impl Ppo {
    /// The rule, if the settings make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Rule> {
        let numbers = [
            ("clip_low", self.clip_low),
            ("clip_high", self.clip_high),
            ("value_clip", self.value_clip),
            ("trace_truncation", self.trace_truncation),
            ("value_coefficient", self.value_coefficient),
            ("kl_coefficient", self.kl_coefficient),
            ("kl_target", self.kl_target),
            ("missing_eos_penalty", self.missing_eos_penalty),
            ("target_kl", self.target_kl),
            ("critic_learning_rate_scale", self.critic_learning_rate_scale),
        ];
        surrogate_loss::not_negative("ppo", &numbers)?;
        surrogate_loss::dual_clip("ppo", self.dual_clip)?;
        surrogate_loss::at_least_one("ppo", &[("epochs", self.epochs), ("minibatches", self.minibatches)])?;
        for (key, value) in [("gamma", self.gamma), ("lambda", self.lambda)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::input(format!("algorithm.ppo.{key} must be between 0 and 1, but is {value}")));
            }
        }
        if self.kl_target > 0.0 && self.kl_coefficient == 0.0 {
            return Err(Error::input(
                "algorithm.ppo.kl_target adapts kl_coefficient by factors, so it must start above 0; 0.05 is usual",
            ));
        }
        if self.kl_target > 0.0 && !(self.kl_horizon.is_finite() && self.kl_horizon > 0.0) {
            return Err(Error::input(format!(
                "algorithm.ppo.kl_horizon must be above 0 (10000 is usual), but is {}",
                self.kl_horizon
            )));
        }
        let kl = AdaptiveKl { coefficient: self.kl_coefficient, target: self.kl_target, horizon: self.kl_horizon };
        Ok(Rule { settings: self, kl })
    }

    fn policy_gradient(&self) -> PolicyGradient {
        PolicyGradient {
            surrogate: Surrogate {
                level: Level::Token,
                ratio_reference: RatioReference::Proximal,
                clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
                dual_clip: unless_zero(self.dual_clip),
                delta: None,
            },
            // The KL is in the reward.
            kl_coefficient: 0.0,
            kl_estimator: KlEstimator::K1,
            entropy_coefficient: self.entropy_coefficient,
            correction: self.rollout_correction,
        }
    }
}

/// PPO with its state: the settings, and the current KL coefficient.
#[derive(Debug)]
pub(in crate::algorithm) struct Rule {
    settings: Ppo,
    kl: AdaptiveKl,
}

/// Metric to which the KL coefficient is adapted.
const KL_PER_TOKEN: &str = "objective/kl_per_token";

impl Algorithm for Rule {
    fn needs(&self) -> Needs {
        let settings = &self.settings;
        Needs {
            samples: Samples::sampled(1),
            companions: (settings.kl_coefficient != 0.0)
                .then(|| Companion::reference(Consults::Signal))
                .into_iter()
                .collect(),
            critic: Some(CriticNeeds {
                own_adapter: settings.critic_adapter,
                learning_rate_scale: settings.critic_learning_rate_scale,
            }),
            signal_reads_logprobs: true,
            // The critic is trained on every sample.
            zero_advantage: ZeroAdvantage::Compute,
            ..Needs::default()
        }
    }

    fn schedule(&self, _step: u64) -> Schedule {
        Schedule {
            epochs: self.settings.epochs,
            minibatches: self.settings.minibatches,
            max_proximal_kl: unless_zero(self.settings.target_kl),
            ..Schedule::default()
        }
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let scores = evidence.logprobs.expect("the loop scores samples before it asks for credit");
        let trajectory = |((sample, reward), scores)| self.trajectory(sample, reward, scores);
        let trajectories: Vec<Vec<Option<Trajectory<'_>>>> = evidence
            .groups()
            .into_iter()
            .zip(scores)
            .map(|(group, scores)| {
                group.group().samples.iter().zip(group.rewards()).zip(scores).map(trajectory).collect()
            })
            .collect();
        let known: Vec<&Trajectory<'_>> = trajectories.iter().flatten().flatten().collect();
        let mut signals = self.estimate(&known, metrics).into_iter();
        let mut next = |trajectory: Option<Trajectory<'_>>| trajectory.and_then(|_| signals.next());
        trajectories.into_iter().map(|group| group.into_iter().map(&mut next).collect()).collect()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(Aggregation::TokenMean, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        self.loss_by(&self.settings.policy_gradient(), batch, outputs, sums)
    }

    fn finish_step(&mut self, metrics: &mut Metrics, samples: usize) {
        if let Some(measured) = metrics.get(KL_PER_TOKEN).filter(|_| self.adapts()) {
            self.kl.update(measured, samples);
        }
    }

    fn state(&self) -> Value {
        if self.adapts() { json!({ "kl_coefficient": self.kl.coefficient }) } else { Value::Null }
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        match (self.adapts(), &state["kl_coefficient"]) {
            (true, Value::Number(coefficient)) => {
                self.kl.coefficient = coefficient.as_f64().unwrap_or(self.kl.coefficient);
                Ok(())
            }
            (false, Value::Null) if state.is_null() => Ok(()),
            (true, _) => Err(Error::input(
                "the checkpoint holds no KL coefficient to go on with; resume with the algorithm and the kl_target that the run was started with",
            )),
            (false, _) => Err(Error::input(
                "the checkpoint holds the state of another algorithm, or of PPO with a kl_target; resume with the settings that the run was started with",
            )),
        }
    }
}

/// A sample with the rewards of its tokens.
struct Trajectory<'a> {
    mask: &'a [bool],
    rewards: Vec<f64>,
    /// Critic's value of the prefix before each token.
    values: Vec<f64>,
    /// k1 towards the reference policy, `[token]`; zero without a penalty.
    kl: Vec<f64>,
    /// Ratios of the current policy to the one that sampled the tokens, `[token]`.
    ratios: Vec<f64>,
}

impl Rule {
    /// Returns the settings of the policy's part of the loss.
    pub(in crate::algorithm) fn policy_gradient(&self) -> PolicyGradient {
        self.settings.policy_gradient()
    }

    /// Computes the loss with `gradient` as the policy's part.
    pub(in crate::algorithm) fn loss_by(
        &self,
        gradient: &PolicyGradient,
        batch: &Batch,
        outputs: Outputs<'_>,
        sums: &mut MetricSums,
    ) -> Tensor {
        let rows = &batch.rows;
        let (tokens, divisor) = (rows.trained_tokens() as f64, batch.denominator.divisor());
        let policy_loss = gradient.loss(batch, outputs, sums);
        sums.add("loss/policy", &(&policy_loss * divisor), tokens);
        let (Some(values), Some(old_values), Some(returns)) =
            (outputs.values, &batch.old_values, batch.signal.returns())
        else {
            return policy_loss;
        };
        let clip = unless_zero(self.settings.value_clip).unwrap_or(f64::INFINITY);
        let losses = value_losses(values, old_values, returns, clip, rows);
        sums.add_tokens("loss/value", &losses, rows);
        let free = value_losses(values, old_values, returns, f64::INFINITY, rows);
        sums.add_tokens("val/clip_ratio", &losses.gt_tensor(&free), rows);
        policy_loss + batch.denominator.aggregate(&losses, rows) * self.settings.value_coefficient
    }

    fn adapts(&self) -> bool {
        self.settings.kl_target > 0.0
    }

    /// Returns the token rewards of a sample; `None` if it is ungraded or has no trained token.
    fn trajectory<'a>(
        &self,
        sample: &'a Sample,
        reward: Option<f32>,
        scores: &SequenceLogprobs,
    ) -> Option<Trajectory<'a>> {
        let penalty = if sample.finish == Finish::Length { self.settings.missing_eos_penalty } else { 0.0 };
        let outcome = f64::from(reward.filter(|reward| reward.is_finite())?) - penalty;
        let mut kl = family::k1(scores);
        kl.resize(sample.len(), 0.0);
        let rewards = token_rewards(outcome, &kl, self.kl.coefficient, &sample.mask)?;
        let values = scores.values.iter().map(|value| f64::from(*value)).collect();
        let ratio = |(now, then): (&f32, &f32)| f64::from(now - then).clamp(-20.0, 20.0).exp();
        let ratios = scores.policy.iter().zip(&sample.logprobs).map(ratio).collect();
        Some(Trajectory { mask: &sample.mask, rewards, values, kl, ratios })
    }

    /// Computes the advantages and returns of each sample; whitening is over all of them.
    fn estimate(&self, trajectories: &[&Trajectory<'_>], metrics: &mut Metrics) -> Vec<Signal> {
        let Ok(rows) = rows(trajectories) else { return Vec::new() };
        let flat = |part: for<'c> fn(&'c Trajectory<'_>) -> &'c [f64]| {
            tensor(trajectories.iter().flat_map(|trajectory| part(trajectory)).copied())
        };
        let (plain, values) = (flat(|trajectory| &trajectory.rewards), flat(|trajectory| &trajectory.values));
        let rewards = if self.settings.whiten_rewards {
            // TRL's whitening without a shift: a reward of the same sign stays one.
            rows.keep(&(rows.whiten(&plain) + rows.mean(&plain)))
        } else {
            plain.shallow_clone()
        };

        let gae = Gae { gamma: self.settings.gamma, lambda: self.settings.lambda };
        let (advantages, returns): (Vec<_>, Vec<_>) = trajectories
            .iter()
            .zip(by_sample(&rewards, trajectories))
            .map(|(trajectory, rewards)| match unless_zero(self.settings.trace_truncation) {
                Some(limit) => {
                    let traces: Vec<f64> = trajectory.ratios.iter().map(|ratio| ratio.min(limit)).collect();
                    gae.traced(&rewards, &trajectory.values, &traces, trajectory.mask)
                }
                None => gae.estimate(&rewards, &trajectory.values, trajectory.mask),
            })
            .unzip();
        let raw = tensor(advantages.into_iter().flatten());
        let returns = tensor(returns.into_iter().flatten());
        self.measure(&rows, &plain, &flat(|trajectory| &trajectory.kl), &values, &returns, metrics);

        let advantages = if self.settings.whiten_advantages { rows.whiten(&raw) } else { raw };
        let narrow = |numbers: Vec<f64>| numbers.into_iter().map(|number| number as f32).collect();
        by_sample(&advantages, trajectories)
            .into_iter()
            .zip(by_sample(&returns, trajectories))
            .map(|(advantages, returns)| Signal::TokenAdvantages {
                advantages: narrow(advantages),
                returns: narrow(returns),
            })
            .collect()
    }

    /// Reports the advantages of a step; nothing without trained samples.
    ///
    /// | metric | meaning |
    /// |---|---|
    /// | `values/mean`, `returns/mean` | mean over trained tokens of the critic's values and of their targets |
    /// | `critic/vf_explained_var` | 1 − var(ret − V) / var(ret): 1 for a perfect critic, 0 or less for a useless one |
    /// | `objective/kl`, `objective/kl_per_token` | k1 towards the reference: mean over samples of its sum, over tokens |
    /// | `objective/non_score_reward`, `objective/rlhf_reward` | mean over samples of the KL penalty, and of the reward after it |
    /// | `kl_coefficient` | weight of that KL in this step |
    fn measure(
        &self,
        rows: &Rows,
        rewards: &Tensor,
        kl: &Tensor,
        values: &Tensor,
        returns: &Tensor,
        metrics: &mut Metrics,
    ) {
        if rows.trained_tokens() == 0 {
            return;
        }
        let number = |tensor: Tensor| tensor.double_value(&[]);
        metrics.set("values/mean", number(rows.mean(values)));
        metrics.set("returns/mean", number(rows.mean(returns)));
        let spread = number(rows.variance(returns));
        if spread > 0.0 {
            metrics.set("critic/vf_explained_var", 1.0 - number(rows.variance(&(returns - values))) / spread);
        }
        if self.settings.kl_coefficient != 0.0 {
            let samples = rows.sequences() as f64;
            let (kl_sum, coefficient) = (number(rows.sum(kl)), self.kl.coefficient);
            metrics.set("objective/kl", kl_sum / samples);
            metrics.set(KL_PER_TOKEN, kl_sum / rows.trained_tokens() as f64);
            metrics.set("objective/non_score_reward", -coefficient * kl_sum / samples);
            metrics.set("objective/rlhf_reward", number(rows.sum(rewards)) / samples);
            metrics.set("kl_coefficient", coefficient);
        }
    }
}

/// Returns the rows of all samples' tokens, end to end.
fn rows(trajectories: &[&Trajectory<'_>]) -> Result<Rows> {
    let lengths: Vec<usize> = trajectories.iter().map(|trajectory| trajectory.mask.len()).collect();
    let mask: Vec<bool> = trajectories.iter().flat_map(|trajectory| trajectory.mask).copied().collect();
    Rows::new(&lengths, &mask, HOST)
}

/// Returns a tensor of these numbers, `[token]` f64.
fn tensor(numbers: impl Iterator<Item = f64>) -> Tensor {
    Tensor::from_slice(&numbers.collect::<Vec<f64>>())
}

/// Splits a `[token]` tensor into the numbers of each sample.
fn by_sample(tokens: &Tensor, trajectories: &[&Trajectory<'_>]) -> Vec<Vec<f64>> {
    let numbers = Vec::<f64>::try_from(tokens).expect("it was made from f64");
    let mut rest = &numbers[..];
    let own = |trajectory: &&Trajectory<'_>| {
        let (own, others) = rest.split_at(trajectory.mask.len());
        rest = others;
        own.to_vec()
    };
    trajectories.iter().map(own).collect()
}

#[cfg(test)]
mod tests;
