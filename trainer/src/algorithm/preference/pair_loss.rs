//! The methods that learn from pairs: everything but each one's formula.
//!
//! A pair's two completions read their prompt once, in one forward pass, and are never parted. A method that learns from
//! pairs implements [`PairLoss`]: the pairs that it builds, and a loss per pair; [`Pairwise`] makes an [`Algorithm`] of it.
//! The metrics have TRL's names:
//!
//! | metric | mean over pairs of |
//! |---|---|
//! | `rewards/chosen`, `rewards/rejected` | the implicit reward, `β log(π / π_ref)`; without a reference `β log π` |
//! | `rewards/margins` | their difference |
//! | `rewards/accuracies` | whether it is above zero |
//! | `logps/chosen`, `logps/rejected` | `log π` of the whole completion |

use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::supervised::sft::long_enough;
use crate::algorithm::{
    Algorithm, Compares, Evidence, Needs, Opponent, Outputs, RunShape, Samples, StepChanges, StepEnd,
};
use crate::batch::{Batch, Signal, Signals, ZeroAdvantage, side_sums, sides};
use crate::collected::{Collected, Pair, Unit};
use crate::companion::{Companion, Consults, Role};
use crate::objective::preference::PairLogprobs;
use crate::objective::{Aggregation, Denominator, MetricSums};
use crate::{Error, Result};
use schema::Metrics;
use tch::{Kind, Tensor};

/// A loss on pairs of completions.
pub(crate) trait PairLoss {
    /// Supplies that the loop must provide.
    fn needs(&self) -> Needs;

    /// Refuses a run that the method cannot live with.
    ///
    /// # Errors
    /// The sentence that says what to change.
    fn check(&self, _run: &RunShape) -> Result<()> {
        Ok(())
    }

    /// Builds the pairs to learn from: those of the data set, unless the method compares samples.
    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        let pair = |unit| if let Unit::Pair(pair) = unit { Some(pair) } else { None };
        collected.units().into_iter().filter_map(pair).collect()
    }

    /// `[token]`: the log-probs that log-ratios are taken to; `None` for a method without a reference.
    fn reference(&self, batch: &Batch) -> Option<Tensor> {
        batch.logprobs_of(Role::Reference).map(Tensor::shallow_clone)
    }

    /// `[pair]`: the loss of each pair. Measurements of the method's own go to `sums`.
    fn losses(&self, pairs: &PairBatch, sums: &mut MetricSums) -> Tensor;

    /// The factor of implicit rewards, β.
    fn beta(&self) -> f64;

    /// `[pair]` each: the implicit rewards of the better and of the other completions, `β log(π / π_ref)`.
    fn rewards(&self, pairs: &PairBatch) -> (Tensor, Tensor) {
        pairs.rewards(self.beta())
    }

    /// Changes companions, the policy or the optimizer at the end of a step.
    ///
    /// # Errors
    /// If an adapter cannot be computed or overwritten.
    fn end_step(&self, _end: &StepEnd<'_>) -> Result<StepChanges> {
        Ok(StepChanges::default())
    }
}

/// The algorithm of a loss on pairs.
#[derive(Debug)]
pub(crate) struct Pairwise<L>(pub(crate) L);

impl<L: PairLoss> Algorithm for Pairwise<L> {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn check(&self, run: &RunShape) -> Result<()> {
        self.0.check(run)
    }

    fn units<'a>(&self, collected: &'a Collected) -> Vec<Unit<'a>> {
        self.0.pairs(collected).into_iter().map(Unit::Pair).collect()
    }

    fn signals(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        signals(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        let pairs = PairBatch::new(batch, outputs, self.0.reference(batch).as_ref());
        pairs.share(&self.0.losses(&pairs, sums), self.0.rewards(&pairs), batch, sums)
    }

    fn end_step(&self, end: &StepEnd<'_>) -> Result<StepChanges> {
        self.0.end_step(end)
    }
}

/// The needs of a method that learns from the pairs of a data set, with a reference.
pub(in crate::algorithm) fn needs(max_length: usize) -> Needs {
    Needs { companions: vec![Companion::reference(Consults::Loss)], ..needs_without_reference(max_length) }
}

/// The needs of a method that learns from the pairs of a data set alone.
pub(in crate::algorithm) fn needs_without_reference(max_length: usize) -> Needs {
    Needs { samples: Samples::Pairs { max_length }, zero_advantage: ZeroAdvantage::Compute, ..Needs::default() }
}

/// The needs of a method that compares samples, in groups of at least this size.
pub(in crate::algorithm) fn sampled_needs(group_size: usize, compares: Compares, opponent: Option<Opponent>) -> Needs {
    Needs {
        samples: Samples::Sampled { group_size, opponent, compares: Some(compares) },
        companions: vec![Companion::reference(Consults::Loss)],
        zero_advantage: ZeroAdvantage::Compute,
        ..Needs::default()
    }
}

/// Refuses a limit that no pair can keep to, and a beta that would make every pair alike.
///
/// # Errors
/// The sentence that names the key.
pub(in crate::algorithm) fn checked(algorithm: &str, max_length: usize, beta: f64) -> Result<()> {
    long_enough(algorithm, max_length)?;
    positive(algorithm, "beta", beta)
}

/// Refuses a number that is not above zero.
///
/// # Errors
/// The sentence that names the key.
pub(in crate::algorithm) fn positive(algorithm: &str, key: &str, value: f64) -> Result<()> {
    not_negative(algorithm, &[(key, value)])?;
    match value {
        0.0 => Err(Error::input(format!("algorithm.{algorithm}.{key} must be above 0, but is 0"))),
        _ => Ok(()),
    }
}

/// Refuses `[prune]` for a method that compares the policy's adapter with earlier ones, whose shape it would change.
///
/// # Errors
/// The sentence that says to drop `[prune]`.
pub(in crate::algorithm) fn no_pruning(algorithm: &str, run: &RunShape) -> Result<()> {
    if run.prunes {
        return Err(Error::input(format!(
            "[prune] changes the shape of the adapter, which algorithm.{algorithm} compares with earlier ones; drop [prune]"
        )));
    }
    Ok(())
}

/// The win rates of both completions of each pair; none of a pair in which either has no token to train on.
pub(in crate::algorithm) fn signals(evidence: &Evidence<'_>) -> Signals {
    let of_unit = |unit: &Unit<'_>| {
        let Some(pair) = unit.pair() else { return Vec::new() };
        let whole = pair.sides().iter().all(|side| side.sequence.trained_tokens() > 0);
        let signal = |side: &crate::collected::Side<'_>| Signal::Compared {
            win_rate: side.win_rate.clamp(0.0, 1.0),
            by_opponent: side.origin == crate::collected::Origin::Opponent,
        };
        pair.sides().map(|side| whole.then(|| signal(side))).into()
    };
    evidence.units.iter().map(of_unit).collect()
}

/// The number of pairs.
pub(in crate::algorithm) fn denominator(trained_per_sequence: &[i64]) -> Denominator {
    let pairs = trained_per_sequence.len() as f64 / 2.0;
    Denominator::of(Aggregation::TokenSumOverConstant(pairs), trained_per_sequence)
}

/// The pairs of a batch.
pub(crate) struct PairBatch {
    /// Log-probs of both completions.
    pub logprobs: PairLogprobs,
    /// `[pair]`: the win rates of the better completions.
    pub chosen_win_rate: Tensor,
    /// `[pair]`: the win rates of the other ones.
    pub rejected_win_rate: Tensor,
    /// `[pair]`: 1 where an opponent sampled the better completion, else 0.
    pub chosen_by_opponent: Tensor,
    /// `[pair]`: 1 where an opponent sampled the other one, else 0.
    pub rejected_by_opponent: Tensor,
}

impl PairBatch {
    /// Sums over the sequences of each pair; `reference` is `[token]`, and zero where the method has none.
    pub(in crate::algorithm) fn new(batch: &Batch, outputs: Outputs<'_>, reference: Option<&Tensor>) -> Self {
        let rows = &batch.rows;
        let (chosen, rejected) = side_sums(outputs.logprobs, rows);
        let (chosen_reference, rejected_reference) = match reference {
            Some(reference) => side_sums(reference, rows),
            None => (chosen.zeros_like(), rejected.zeros_like()),
        };
        let (chosen_tokens, rejected_tokens) = sides(&rows.lengths(outputs.logprobs.kind()));
        let (chosen_win_rate, rejected_win_rate) = batch.signal.win_rates();
        let (chosen_by_opponent, rejected_by_opponent) = batch.signal.by_opponent();
        let logprobs =
            PairLogprobs { chosen, rejected, chosen_reference, rejected_reference, chosen_tokens, rejected_tokens };
        Self { logprobs, chosen_win_rate, rejected_win_rate, chosen_by_opponent, rejected_by_opponent }
    }

    /// The mean of a loss per pair over all pairs of the optimizer batch: this batch's share of it, and the metrics.
    /// `losses` and both implicit rewards are `[pair]`.
    pub(in crate::algorithm) fn share(
        &self,
        losses: &Tensor,
        (chosen, rejected): (Tensor, Tensor),
        batch: &Batch,
        sums: &mut MetricSums,
    ) -> Tensor {
        let pairs = losses.numel() as f64;
        let mut add = |name: &str, values: &Tensor| sums.add(name, &values.sum(Kind::Double), pairs);
        add("rewards/chosen", &chosen);
        add("rewards/rejected", &rejected);
        add("rewards/margins", &(&chosen - &rejected));
        add("rewards/accuracies", &chosen.gt_tensor(&rejected));
        add("logps/chosen", &self.logprobs.chosen);
        add("logps/rejected", &self.logprobs.rejected);
        losses.sum(None) / batch.denominator.divisor().max(1e-9)
    }

    /// `[pair]` each: `β log(π / π_ref)` of the better and of the other completions.
    pub(in crate::algorithm) fn rewards(&self, beta: f64) -> (Tensor, Tensor) {
        (self.logprobs.chosen_ratio() * beta, self.logprobs.rejected_ratio() * beta)
    }
}
