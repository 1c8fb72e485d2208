//! ReMix: replayed samples, two passes over each step, and a reference that is renewed once (Liang et al. 2025,
//! "Squeeze the Soaked Sponge", arXiv 2507.06892), around GRPO or PPO.
//!
//! Until step T a share `p` of each step's groups was sampled by one of the last N policies ([`crate::sampling`]). The
//! ratio of a token is taken to the policy `b` that sampled it, and the clip is centred on `π_k`, the policy at the
//! start of the step (`GePPO`, Queeney et al. 2021), so that ε is a budget of total variation counted from `π_k`
//! however stale the token:
//!
//! ```text
//! ρ = π_θ / π_b        c = π_k / π_b        ℓ = −min(ρ A, clip(ρ, c − ε, c + ε) A)
//! loss = ℓ + β ( λ(t) KL(π_θ ‖ π_ref) + (1 − λ(t)) KL(π_θ ‖ π_{k−1}) )
//! λ(t) = max(1 − 0.1 ⌈max(t − 50, 0) / 10⌉, 0.5)
//! ```
//!
//! For fresh samples c is 1 and ℓ is PPO's. After step T the policy is *reincarnated*: it becomes the reference, replay
//! ends, and the base method continues unchanged, with the KL term towards the new reference.
//!
//! Written from the abstract, the project page, two notes on the paper and its reviews, which give neither β nor the
//! estimator of the KL; those are choices of this implementation. The divergences are computed over the whole vocabulary
//! by default, because an estimate from single tokens assumes that `π_θ` sampled them, and old samples come from other
//! policies.
//!
//! Samples that the policy has left far behind are dropped (`max_mean_log_ratio`, `max_ratio`). On a single skill that
//! costs some of the gain (docs/results/efficiency-tiny.md), since the tokens that moved furthest carried the most; on
//! a broader task, runs that keep them all fall back (docs/results/efficiency-20.md).
//!
//! Late tokens of long completions drift furthest from the policies that sampled them (the paper's whipping effect),
//! and pull towards shorter answers. Watch `ratio/first_quarter_mean`, `ratio/last_quarter_mean` and
//! `completions/mean_length`.

use super::family;
use super::surrogate_loss::{PolicyGradient, at_least_one, not_negative};
use super::{grpo::Grpo, ppo::Ppo};
use crate::algorithm::{
    Algorithm, Evidence, Needs, Outputs, Replay, RunShape, Samples, Schedule, StepChanges, StepEnd,
};
use crate::batch::{Batch, SequenceLogprobs, Signals, ZeroAdvantage};
use crate::collected::Sequence;
use crate::companion::{Companion, Consults, Renewal, Role, Start};
use crate::objective::{
    Clip, Denominator, KlEstimator, MetricSums, RatioReference, RolloutCorrection, Surrogate, ratio_to_behaviour,
};
use crate::report::metrics::{self, log_ratios};
use crate::{Error, Result};
use schema::{Metrics, Sample};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// `[algorithm.remix]`: replay and a renewed reference around a base method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Remix {
    /// Share p of old groups in a step, until the reincarnation.
    #[serde(alias = "off_policy_fraction")]
    pub replay_share: f64,
    /// Number N of previous steps that old groups come from.
    pub replay_window: u64,
    /// Passes over the samples of a step, until the reincarnation.
    #[serde(alias = "utd_ratio")]
    pub epochs: usize,
    /// Clip ε: largest difference of a ratio from that of the step's first policy before its gradient is cut.
    pub epsilon: f64,
    /// Step T, the last one with replay; after it the policy becomes the reference and the base method continues alone.
    /// 0 for never.
    pub reincarnate_after: u64,
    /// Weight β of the two divergences together; 0 for none.
    #[serde(alias = "beta")]
    pub kl_coefficient: f64,
    /// Computation of the divergences: `exact`, over the vocabulary, or estimated from sampled tokens by `weighted_k3`
    /// or `k3`.
    pub kl: ConvexKl,
    /// Share λ of the reference in the two divergences.
    pub lambda: LambdaSchedule,
    /// Largest magnitude of a sample's mean log-ratio to the policy that sampled it, in nats per token; samples beyond
    /// it are left out.
    pub max_mean_log_ratio: f64,
    /// Largest ratio of a token to the policy that sampled it; samples with a larger one are left out.
    pub max_ratio: f64,
    /// Base method, which gives the advantages and continues alone after the reincarnation.
    pub base: Base,
}

/// Base method: `[algorithm.remix.base.<name>]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// `[algorithm.remix.base.grpo]`
    Grpo(Grpo),
    /// `[algorithm.remix.base.ppo]`
    Ppo(Ppo),
}

/// Computation of the divergences from the reference and from the previous policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvexKl {
    /// Exact, over the whole vocabulary; costs a forward pass for each of them in every epoch.
    #[default]
    Exact,
    /// k3 of the sampled tokens, times the ratio to the policy that sampled them, without its gradient and at most 2.
    WeightedK3,
    /// k3 of the sampled tokens without correction for the policy that sampled them.
    K3,
}

/// Schedule `λ(t)`: 1 for the first `hold` steps, then lower by `drop` at once and after every `every` further steps,
/// down to `floor`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambdaSchedule {
    /// Steps at 1.
    pub hold: u64,
    /// Steps between two drops.
    pub every: u64,
    /// Amount of one drop.
    pub drop: f64,
    /// Lowest value.
    pub floor: f64,
}

impl Default for LambdaSchedule {
    fn default() -> Self {
        Self { hold: 50, every: 10, drop: 0.1, floor: 0.5 }
    }
}

impl LambdaSchedule {
    /// Returns λ in this step; steps count from 1.
    pub fn at(&self, step: u64) -> f64 {
        let drops = step.saturating_sub(self.hold).div_ceil(self.every.max(1));
        (1.0 - self.drop * drops as f64).max(self.floor)
    }
}

impl Default for Base {
    fn default() -> Self {
        Self::Grpo(Grpo::default())
    }
}

impl Default for Remix {
    fn default() -> Self {
        Self {
            replay_share: 0.4,
            replay_window: 2,
            epochs: 2,
            epsilon: 0.2,
            reincarnate_after: 50,
            kl_coefficient: 0.001,
            kl: ConvexKl::Exact,
            lambda: LambdaSchedule::default(),
            max_mean_log_ratio: 0.5,
            max_ratio: 20.0,
            base: Base::default(),
        }
    }
}

impl Remix {
    /// The method, if its settings make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Reincarnating> {
        let numbers = [
            ("epsilon", self.epsilon),
            ("kl_coefficient", self.kl_coefficient),
            ("lambda.drop", self.lambda.drop),
            ("max_mean_log_ratio", self.max_mean_log_ratio),
            ("max_ratio", self.max_ratio),
        ];
        not_negative("remix", &numbers)?;
        at_least_one(
            "remix",
            &[
                ("epochs", self.epochs),
                ("replay_window", self.replay_window as usize),
                ("lambda.every", self.lambda.every as usize),
            ],
        )?;
        if !(0.0..1.0).contains(&self.replay_share) {
            return Err(Error::input(format!(
                "algorithm.remix.replay_share must be at least 0 and below 1, but is {}; 0.4 is usual",
                self.replay_share
            )));
        }
        if !(0.0..=1.0).contains(&self.lambda.floor) {
            return Err(Error::input(format!(
                "algorithm.remix.lambda.floor must be from 0 to 1, but is {}",
                self.lambda.floor
            )));
        }
        let base = self.base.checked()?;
        Ok(Reincarnating { settings: self, base, step: 0, reincarnated: false })
    }

    /// Returns true if old samples are replayed in this step.
    fn replays(&self, step: u64) -> bool {
        self.reincarnate_after == 0 || step <= self.reincarnate_after
    }

    /// Returns true if the policy becomes the reference in this step at the latest.
    fn reincarnates_by(&self, step: u64) -> bool {
        self.reincarnate_after > 0 && step >= self.reincarnate_after
    }
}

impl Base {
    fn checked(&self) -> Result<Box<dyn Mixable>> {
        match self {
            Self::Grpo(grpo) => {
                alone("grpo", grpo.kl_coefficient, grpo.rollout_correction)?;
                Ok(Box::new(grpo.clone().checked()?))
            }
            Self::Ppo(ppo) => {
                alone("ppo", ppo.kl_coefficient, ppo.rollout_correction)?;
                Ok(Box::new(ppo.clone().checked()?))
            }
        }
    }
}

/// Returns an error for settings of the base method that `ReMix` itself controls.
fn alone(base: &str, kl_coefficient: f64, correction: RolloutCorrection) -> Result<()> {
    if kl_coefficient != 0.0 {
        return Err(Error::input(format!(
            "algorithm.remix.base.{base}.kl_coefficient is {kl_coefficient}, but ReMix has a KL term of its own: set algorithm.remix.kl_coefficient"
        )));
    }
    if correction != RolloutCorrection::Off {
        return Err(Error::input(format!(
            "algorithm.remix.base.{base}.rollout_correction would correct twice: ReMix takes ratios to the policy that drew each sample"
        )));
    }
    Ok(())
}

/// A method whose policy loss can be replaced.
pub(in crate::algorithm) trait Mixable: Algorithm {
    /// Returns the settings of its own policy loss.
    fn gradient(&self) -> PolicyGradient;

    /// Computes its loss with another policy loss.
    fn loss_by(&self, gradient: &PolicyGradient, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor;
}

impl Mixable for Grpo {
    fn gradient(&self) -> PolicyGradient {
        family::loss(self)
    }

    fn loss_by(&self, gradient: &PolicyGradient, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        gradient.loss(batch, outputs, sums)
    }
}

impl Mixable for super::ppo::Rule {
    fn gradient(&self) -> PolicyGradient {
        self.policy_gradient()
    }

    fn loss_by(&self, gradient: &PolicyGradient, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        Self::loss_by(self, gradient, batch, outputs, sums)
    }
}

/// ReMix with its state.
pub(in crate::algorithm) struct Reincarnating {
    settings: Remix,
    base: Box<dyn Mixable>,
    /// The present step, or the last one between two steps; 0 before the first.
    step: u64,
    /// The policy has become the reference.
    reincarnated: bool,
}

impl Reincarnating {
    /// Settings of this step's policy loss.
    fn gradient(&self) -> PolicyGradient {
        let own = self.base.gradient();
        if !self.settings.replays(self.step) {
            return own;
        }
        let clip = Clip::Centred { epsilon: self.settings.epsilon };
        PolicyGradient {
            surrogate: Surrogate { ratio_reference: RatioReference::Behaviour, clip, ..own.surrogate },
            ..own
        }
    }

    /// Returns true if this step's policy becomes the reference.
    fn is_due(&self) -> bool {
        !self.reincarnated && self.settings.reincarnates_by(self.step)
    }

    fn lambda(&self) -> f64 {
        self.settings.lambda.at(self.step)
    }

    /// Returns true if the current log-probabilities of a sample are close enough to those of the policy that sampled
    /// it.
    fn is_near(&self, sample: &Sample, logprobs: &SequenceLogprobs) -> bool {
        let log_ratios = log_ratios(sample, logprobs);
        metrics::mean(&log_ratios).abs() <= self.settings.max_mean_log_ratio
            && log_ratios.iter().all(|log_ratio| *log_ratio <= self.settings.max_ratio.ln())
    }

    /// Returns `λ KL(π ‖ reference) + (1 − λ) KL(π ‖ previous)` per token, `[token]`; `None` if its weight is 0.
    fn convex_kl(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Option<Tensor> {
        let rows = &batch.rows;
        let divergence = |role| match self.settings.kl {
            ConvexKl::Exact => outputs.divergences.get(role).map(|kl| rows.keep(kl)),
            _ => batch
                .logprobs_of(role)
                .map(|other| KlEstimator::K3.estimate(&rows.keep(outputs.logprobs), &rows.keep(other))),
        };
        let (reference, previous) = (divergence(Role::Reference)?, divergence(Role::Previous));
        sums.add_tokens("kl", &reference, rows);
        let mixed = match previous {
            Some(previous) => {
                sums.add_tokens("kl/previous", &previous, rows);
                let lambda = self.lambda();
                reference * lambda + previous * (1.0 - lambda)
            }
            None => reference,
        };
        Some(match self.settings.kl {
            ConvexKl::WeightedK3 => {
                mixed * ratio_to_behaviour(outputs.logprobs, batch.behaviour(), rows).clamp_max(2.0)
            }
            _ => mixed,
        })
    }
}

impl Algorithm for Reincarnating {
    fn needs(&self) -> Needs {
        let penalises = self.settings.kl_coefficient != 0.0;
        let (of_reference, of_previous) = match self.settings.kl {
            ConvexKl::Exact => (Consults::Divergence, Consults::Divergence),
            ConvexKl::WeightedK3 | ConvexKl::K3 => (Consults::Signal, Consults::Loss),
        };
        let companions = [
            Companion {
                role: Role::Reference,
                start: Start::BaseModel,
                renewal: Renewal::ByMethod,
                consults: of_reference,
            },
            Companion {
                role: Role::Previous,
                start: Start::Policy,
                renewal: Renewal::BeforeUpdates,
                consults: of_previous,
            },
        ];
        let base = self.base.needs();
        Needs {
            companions: if penalises { companions.into() } else { Vec::new() },
            signal_reads_logprobs: true,
            zero_advantage: if penalises { ZeroAdvantage::Compute } else { base.zero_advantage },
            ..base
        }
    }

    fn check(&self, run: &RunShape) -> Result<()> {
        if run.offline && !(1..=run.steps).all(|step| self.settings.replays(step)) {
            return Err(Error::input(format!(
                "replay.offline draws nothing, but algorithm.remix goes over to fresh samples before step {}; set algorithm.remix.reincarnate_after = 0",
                run.steps
            )));
        }
        self.base.check(run)
    }

    fn warning(&self) -> Option<String> {
        self.base.warning()
    }

    fn schedule(&self, step: u64) -> Schedule {
        let settings = &self.settings;
        let idle: &[Role] = if settings.lambda.at(step) < 1.0 { &[] } else { &[Role::Previous] };
        let base = Schedule { idle, ..self.base.schedule(step) };
        if !settings.replays(step) {
            return base;
        }
        let compares = matches!(self.base.needs().samples, Samples::Sampled { group_size: 2.., .. });
        Schedule {
            epochs: settings.epochs,
            replay: Some(Replay {
                share: settings.replay_share,
                window: settings.replay_window,
                only_with_signal: compares,
            }),
            ..base
        }
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let mut signals = self.base.signals(evidence, metrics);
        let mut far = 0;
        for ((group, logprobs), signals) in
            evidence.groups().into_iter().zip(evidence.logprobs.unwrap_or_default()).zip(&mut signals)
        {
            for ((sample, logprobs), signal) in group.group().samples.iter().zip(logprobs).zip(signals) {
                if signal.is_some() && !self.is_near(sample, logprobs) {
                    *signal = None;
                    far += 1;
                }
            }
        }
        metrics.set("replay/samples_dropped", f64::from(far));
        signals
    }

    fn trains_on(&self, sequence: &Sequence<'_>) -> bool {
        self.base.trains_on(sequence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        self.base.denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        measure_whip(batch, outputs.logprobs, sums);
        let loss = self.base.loss_by(&self.gradient(), batch, outputs, sums);
        match self.convex_kl(batch, outputs, sums) {
            Some(kl) => loss + batch.denominator.aggregate(&(kl * self.settings.kl_coefficient), &batch.rows),
            None => loss,
        }
    }

    fn begin_step(&mut self, step: u64) {
        self.step = step;
        self.base.begin_step(step);
    }

    /// The last step that replays renews the reference, and so does the first after a roll-back to before that renewal.
    fn end_step(&self, end: &StepEnd<'_>) -> Result<StepChanges> {
        let renews = self.is_due() && end.companions.get(Role::Reference).is_some();
        let reference = renews.then(|| (Role::Reference, end.policy.adapter().copy()));
        Ok(StepChanges { companions: reference.into_iter().collect(), ..StepChanges::default() })
    }

    fn finish_step(&mut self, metrics: &mut Metrics, samples: usize) {
        self.base.finish_step(metrics, samples);
        metrics.set("remix/lambda", self.lambda());
        self.reincarnated |= self.is_due();
    }

    /// Older checkpoints have the number of finished steps instead.
    fn state(&self) -> Value {
        json!({ "reincarnated": self.reincarnated, "base": self.base.state() })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let another = || Error::input("the checkpoint holds the state of another algorithm");
        let due = |finished: u64| self.settings.reincarnates_by(finished);
        let finished = || state["finished"].as_u64().map(due);
        self.reincarnated = state["reincarnated"].as_bool().or_else(finished).ok_or_else(another)?;
        self.base.restore(&state["base"])
    }
}

/// Returns the mean ratio to the sampling policy in the first and in the last quarter of each completion.
fn measure_whip(batch: &Batch, logprobs: &Tensor, sums: &mut MetricSums) {
    let rows = &batch.rows;
    let ratio = ratio_to_behaviour(logprobs, batch.behaviour(), rows);
    let places = quarters(batch.packed.sequence_of_token());
    for (name, quarter) in [("ratio/first_quarter_mean", 0), ("ratio/last_quarter_mean", 3)] {
        let inside: Vec<bool> = places.iter().map(|place| *place == quarter).collect();
        let inside =
            Tensor::from_slice(&inside).to_device(ratio.device()).logical_and(rows.mask()).to_kind(Kind::Float);
        sums.add(name, &(&ratio * &inside).sum(Kind::Double), inside.sum(Kind::Double).double_value(&[]));
    }
}

/// Returns the quarter of its sequence of each token, 0 to 3. Tokens of a sequence are contiguous.
fn quarters(sequence_of_token: &[i64]) -> Vec<usize> {
    sequence_of_token
        .chunk_by(|a, b| a == b)
        .flat_map(|sequence| (0..sequence.len()).map(|place| 4 * place / sequence.len()))
        .collect()
}

#[cfg(test)]
mod tests;
