//! ReMix: old samples again, two passes over each step, and a reference that is renewed once (Liang et al. 2025,
//! "Squeeze the Soaked Sponge", arXiv 2507.06892), around GRPO or PPO.
//!
//! Until step T a share `p` of each step's groups was drawn by one of the last N policies (`source/replayed.rs`). The
//! ratio of a token is that to the policy `b` which really drew it, and the clip is centred on `π_k`, where the step
//! began (`GePPO`, Queeney et al. 2021), so that ε is a budget of total variation counted from `π_k` however stale the
//! token:
//!
//! ```text
//! ρ = π_θ / π_b        c = π_k / π_b        ℓ = −min(ρ A, clip(ρ, c − ε, c + ε) A)
//! loss = ℓ + β ( λ(t) KL(π_θ ‖ π_ref) + (1 − λ(t)) KL(π_θ ‖ π_{k−1}) )
//! λ(t) = max(1 − 0.1 ⌈max(t − 50, 0) / 10⌉, 0.5)
//! ```
//!
//! For fresh samples c is 1 and ℓ is PPO's. After step T the policy is *reincarnated*: it becomes the reference, nothing
//! is replayed any more, and the base method goes on as it is, with the KL term towards its new self.
//!
//! The full text of the paper gives neither β nor how the KL is estimated; those are choices of this implementation. The
//! divergences are computed over the whole vocabulary by default, because an estimate from single tokens assumes that
//! `π_θ` drew them, and old samples were drawn by others.
//!
//! Samples that the policy has left far behind are left out (`max_mean_log_ratio`, `max_ratio`). That costs some of the gain
//! where a policy learns one thing (docs/results/efficiency-tiny.md), since what moved furthest is what was learned most
//! from; where it learns more, keeping them all let runs fall back (docs/results/efficiency-20.md).
//!
//! What to watch: late tokens of long completions drift furthest from the policies that drew them (the paper's whipping
//! effect), and their pull is towards shorter answers. `ratio/first_quarter_mean`, `ratio/last_quarter_mean` and
//! `completions/mean_length` show it.

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
    Anchor, Clip, Denominator, KlEstimator, MetricSums, RolloutCorrection, Surrogate, ratio_to_behaviour,
};
use crate::report::metrics::{self, log_ratios};
use crate::{Error, Result};
use schema::{Metrics, Sample};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// `[algorithm.remix]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Remix {
    /// The share of old groups in a step, until the reincarnation.
    #[serde(alias = "off_policy_fraction")]
    pub replay_share: f64,
    /// Old groups come from this many steps before.
    pub replay_window: u64,
    /// Passes over the samples of a step, until the reincarnation.
    #[serde(alias = "utd_ratio")]
    pub epochs: usize,
    /// How far a ratio may leave that of the step's first policy, additively, before its gradient is cut.
    pub epsilon: f64,
    /// The last step that replays; after it the policy becomes the reference and the base method goes on alone. 0 for
    /// never.
    pub reincarnate_after: u64,
    /// Weight of the two divergences together; 0 turns them off.
    #[serde(alias = "beta")]
    pub kl_coefficient: f64,
    /// How the divergences are computed.
    pub kl: ConvexKl,
    /// The share of the reference in the two divergences.
    pub lambda: LambdaSchedule,
    /// A sample whose mean log-ratio to the policy that drew it is further from 0 than this, in nats per token, is left
    /// out.
    pub max_mean_log_ratio: f64,
    /// A sample with a token whose ratio to the policy that drew it exceeds this is left out.
    pub max_ratio: f64,
    /// The method that gives credit, and that goes on alone after the reincarnation.
    pub base: Base,
}

/// `[algorithm.remix.base.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// `[algorithm.remix.base.grpo]`
    Grpo(Grpo),
    /// `[algorithm.remix.base.ppo]`
    Ppo(Ppo),
}

/// How the divergences from the reference and from the previous policy are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvexKl {
    /// Over the whole vocabulary; a forward pass for each of them in every epoch.
    #[default]
    Exact,
    /// k3 of the drawn tokens, times the ratio to the policy that drew them, without its gradient and at most 2.
    WeightedK3,
    /// k3 of the drawn tokens as if the policy had drawn them.
    K3,
}

/// `λ(t)`: 1 for the first `hold` steps, then lower by `drop` at once and after every `every` further steps, down to
/// `floor`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambdaSchedule {
    /// Steps at 1.
    pub hold: u64,
    /// Steps between two drops.
    pub every: u64,
    /// How much it drops.
    pub drop: f64,
    /// Where it stops.
    pub floor: f64,
}

impl Default for LambdaSchedule {
    fn default() -> Self {
        Self { hold: 50, every: 10, drop: 0.1, floor: 0.5 }
    }
}

impl LambdaSchedule {
    /// λ in this step; steps count from 1.
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
        Ok(Reincarnating { settings: self, base, finished: 0 })
    }

    /// Whether old samples come back in this step.
    fn replays(&self, step: u64) -> bool {
        self.reincarnate_after == 0 || step <= self.reincarnate_after
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

/// Refuses what `ReMix` does itself.
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

/// A method whose part of the loss for the policy can be replaced.
pub(in crate::algorithm) trait Mixable: Algorithm {
    /// The policy's part of its own loss.
    fn gradient(&self) -> PolicyGradient;

    /// Its loss with another one.
    fn loss_by(&self, gradient: &PolicyGradient, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums)
    -> Tensor;
}

impl Mixable for Grpo {
    fn gradient(&self) -> PolicyGradient {
        family::loss(self)
    }

    fn loss_by(
        &self,
        gradient: &PolicyGradient,
        batch: &Batch,
        outputs: Outputs<'_>,
        tally: &mut MetricSums,
    ) -> Tensor {
        gradient.loss(batch, outputs, tally)
    }
}

impl Mixable for super::ppo::Rule {
    fn gradient(&self) -> PolicyGradient {
        self.policy_gradient()
    }

    fn loss_by(
        &self,
        gradient: &PolicyGradient,
        batch: &Batch,
        outputs: Outputs<'_>,
        tally: &mut MetricSums,
    ) -> Tensor {
        Self::loss_by(self, gradient, batch, outputs, tally)
    }
}

/// ReMix under way.
pub(in crate::algorithm) struct Reincarnating {
    settings: Remix,
    base: Box<dyn Mixable>,
    /// Steps that are done.
    finished: u64,
}

impl Reincarnating {
    /// The policy's part of this step's loss.
    fn gradient(&self) -> PolicyGradient {
        let own = self.base.gradient();
        if !self.settings.replays(self.finished + 1) {
            return own;
        }
        let clip = Clip::Centred { epsilon: self.settings.epsilon };
        PolicyGradient { surrogate: Surrogate { anchor: Anchor::Behaviour, clip, ..own.surrogate }, ..own }
    }

    fn lambda(&self) -> f64 {
        self.settings.lambda.at(self.finished + 1)
    }

    /// Whether what the present policy says of a sample is near enough to what its own policy said.
    fn is_near(&self, sample: &Sample, logprobs: &SequenceLogprobs) -> bool {
        let log_ratios = log_ratios(sample, logprobs);
        metrics::mean(&log_ratios).abs() <= self.settings.max_mean_log_ratio
            && log_ratios.iter().all(|log_ratio| *log_ratio <= self.settings.max_ratio.ln())
    }

    /// `λ KL(π ‖ reference) + (1 − λ) KL(π ‖ previous)` per token, `[token]`; `None` where it is off.
    fn convex_kl(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Option<Tensor> {
        let rows = &batch.rows;
        let divergence = |role| match self.settings.kl {
            ConvexKl::Exact => outputs.divergences.get(role).map(|kl| rows.keep(kl)),
            _ => batch
                .logprobs_of(role)
                .map(|other| KlEstimator::K3.estimate(&rows.keep(outputs.logprobs), &rows.keep(other))),
        };
        let (reference, previous) = (divergence(Role::Reference)?, divergence(Role::Previous));
        tally.add_tokens("kl", &reference, rows);
        let mixed = match previous {
            Some(previous) => {
                tally.add_tokens("kl/previous", &previous, rows);
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

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        tally_whip(batch, outputs.logprobs, tally);
        let loss = self.base.loss_by(&self.gradient(), batch, outputs, tally);
        match self.convex_kl(batch, outputs, tally) {
            Some(kl) => loss + batch.denominator.aggregate(&(kl * self.settings.kl_coefficient), &batch.rows),
            None => loss,
        }
    }

    /// The last step that replays renews the reference.
    fn end_step(&self, end: &StepEnd<'_>) -> Result<StepChanges> {
        let renews = end.step == self.settings.reincarnate_after && end.companions.get(Role::Reference).is_some();
        let reference = renews.then(|| (Role::Reference, end.policy.adapter().copy()));
        Ok(StepChanges { companions: reference.into_iter().collect(), ..StepChanges::default() })
    }

    fn finish_step(&mut self, metrics: &mut Metrics, samples: usize) {
        self.base.finish_step(metrics, samples);
        metrics.set("remix/lambda", self.lambda());
        self.finished += 1;
    }

    fn state(&self) -> Value {
        json!({ "finished": self.finished, "base": self.base.state() })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let another = || Error::input("the checkpoint holds the state of another algorithm");
        self.finished = state["finished"].as_u64().ok_or_else(another)?;
        self.base.restore(&state["base"])
    }
}

/// The mean ratio to the drawing policy in the first and in the last quarter of each completion.
fn tally_whip(batch: &Batch, logprobs: &Tensor, tally: &mut MetricSums) {
    let rows = &batch.rows;
    let ratio = ratio_to_behaviour(logprobs, batch.behaviour(), rows);
    let places = quarters(batch.packed.sequence_of_token());
    for (name, quarter) in [("ratio/first_quarter_mean", 0), ("ratio/last_quarter_mean", 3)] {
        let inside: Vec<bool> = places.iter().map(|place| *place == quarter).collect();
        let inside =
            Tensor::from_slice(&inside).to_device(ratio.device()).logical_and(rows.mask()).to_kind(Kind::Float);
        tally.add(name, &(&ratio * &inside).sum(Kind::Double), inside.sum(Kind::Double).double_value(&[]));
    }
}

/// Which quarter of its sequence each token is in: 0 to 3. Tokens of a sequence lie side by side.
fn quarters(sequence_of_token: &[i64]) -> Vec<usize> {
    sequence_of_token
        .chunk_by(|a, b| a == b)
        .flat_map(|sequence| (0..sequence.len()).map(|place| 4 * place / sequence.len()))
        .collect()
}

#[cfg(test)]
mod tests;
