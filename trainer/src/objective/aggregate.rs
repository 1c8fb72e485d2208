//! Aggregation of per-token losses into one number.
//!
//! With `s_i` the sum and `n_i` the number of trained tokens of sequence `i`, each mode is a weighted sum of token
//! losses over one divisor. The divisor is counted once over the *whole optimizer batch* and used by every micro-batch,
//! so that N micro-batches of one sequence add up to one of N. Computed per micro-batch instead, a token mean turns
//! into a mean of means, which weights tokens of short sequences more (a fault that TRL, open-instruct and verl all had
//! to fix).

use super::Rows;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Mode of aggregating per-token losses into one loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregation {
    /// `Σ s_i / Σ n_i`: every token counts alike (DAPO; TRL's "dapo" and "bnpo"; the default of verl and `OpenRLHF`).
    #[default]
    #[serde(alias = "dapo")]
    TokenMean,
    /// `mean_i s_i` over sequences that have trained tokens: long sequences count more. With one loss per sequence
    /// spread over its tokens this is TRL's "luspo".
    #[serde(alias = "luspo")]
    SequenceMeanTokenSum,
    /// `mean_i s_i / n_i` over sequences that have trained tokens: original GRPO, and what GSPO requires.
    SequenceMeanTokenMean,
    /// `mean_i s_i / max(n_i, 1)` over *all* sequences: TRL's "grpo", where an empty sequence dilutes the mean.
    #[serde(alias = "grpo")]
    AllSequenceMeanTokenMean,
    /// `Σ s_i / constant`: verl's form of Dr. GRPO, which does not divide by the number of sequences.
    TokenSumOverConstant(f64),
    /// `Σ s_i / (sequences · constant)`: TRL's "`dr_grpo`", whose constant is the token limit of a completion.
    SequenceMeanTokenSumOverConstant(f64),
}

/// The divisor of an [`Aggregation`], counted over a whole optimizer batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denominator {
    aggregation: Aggregation,
    divisor: f64,
}

impl Denominator {
    /// Counts the divisor. `trained_per_sequence` is the number of trained tokens of every sequence of the optimizer
    /// batch: of all its micro-batches and, with several processes, of all of them.
    pub fn of(aggregation: Aggregation, trained_per_sequence: &[i64]) -> Self {
        let tokens: i64 = trained_per_sequence.iter().sum();
        let all = trained_per_sequence.len() as f64;
        let nonempty = trained_per_sequence.iter().filter(|count| **count > 0).count() as f64;
        let divisor = match aggregation {
            Aggregation::TokenMean => tokens as f64,
            Aggregation::SequenceMeanTokenSum | Aggregation::SequenceMeanTokenMean => nonempty,
            Aggregation::AllSequenceMeanTokenMean => all,
            Aggregation::TokenSumOverConstant(constant) => constant,
            Aggregation::SequenceMeanTokenSumOverConstant(constant) => all * constant,
        };
        // Without any token the sum is zero: dividing by one keeps it zero, and `is_empty` says to skip the step.
        Self { aggregation, divisor: if tokens == 0 { 0.0 } else { divisor } }
    }

    /// Returns true if there is no token to train on; the optimizer step is then skipped.
    pub fn is_empty(self) -> bool {
        self.divisor == 0.0
    }

    /// Returns the number by which the weighted sum of token losses is divided; 0 if there is no trained token.
    pub fn divisor(self) -> f64 {
        self.divisor
    }

    /// Returns the share of these rows in the loss of the optimizer batch, a scalar. A sequence must lie whole in one
    /// micro-batch. `losses` is `[token]`; masked entries are ignored, whatever their value.
    pub fn aggregate(self, losses: &Tensor, rows: &Rows) -> Tensor {
        let total = match self.aggregation {
            Aggregation::SequenceMeanTokenMean | Aggregation::AllSequenceMeanTokenMean => {
                rows.sequence_mean(losses).sum(None)
            }
            _ => rows.sum(losses),
        };
        total / if self.is_empty() { 1.0 } else { self.divisor }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, f64s, full_rows, gradient};
    use super::*;

    const LENGTHS: [usize; 3] = [4, 1, 0];
    const LOSSES: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 10.0];

    const MODES: [(Aggregation, f64); 6] = [
        (Aggregation::TokenMean, 4.0),
        (Aggregation::SequenceMeanTokenSum, 10.0),
        (Aggregation::SequenceMeanTokenMean, 6.25),
        (Aggregation::TokenSumOverConstant(4.0), 5.0),
        (Aggregation::SequenceMeanTokenSumOverConstant(4.0), 1.666_666_7),
        (Aggregation::AllSequenceMeanTokenMean, 4.166_666_7),
    ];

    #[test]
    fn each_mode_on_sequences_of_four_one_and_no_tokens() {
        for (mode, expected) in MODES {
            let rows = full_rows(&LENGTHS);
            let denominator = Denominator::of(mode, rows.trained_per_sequence());
            check(&denominator.aggregate(&f64s(&LOSSES), &rows), &[expected]);
        }
    }

    #[test]
    fn micro_batches_of_one_sequence_sum_to_the_whole() {
        for (mode, expected) in MODES {
            let denominator = Denominator::of(mode, full_rows(&LENGTHS).trained_per_sequence());
            let first = denominator.aggregate(&f64s(&LOSSES[..4]), &full_rows(&[4]));
            let second = denominator.aggregate(&f64s(&LOSSES[4..]), &full_rows(&[1]));
            let third = denominator.aggregate(&f64s(&[]), &full_rows(&[0]));
            check(&(first + second + third), &[expected]);

            let whole = gradient(&LOSSES, |x| denominator.aggregate(&x.square(), &full_rows(&LENGTHS)));
            let part = gradient(&LOSSES[4..], |x| denominator.aggregate(&x.square(), &full_rows(&[1])));
            assert!((whole[4] - part[0]).abs() < 1e-12, "{mode:?}");
        }
    }

    #[test]
    fn nothing_to_train_on_is_zero_and_says_so() {
        for (mode, _) in MODES {
            let denominator = Denominator::of(mode, &[0, 0]);
            assert!(denominator.is_empty());
            check(&denominator.aggregate(&f64s(&[]), &full_rows(&[0, 0])), &[0.0]);
        }
    }

    #[test]
    fn modes_are_named_in_the_config() {
        #[derive(Deserialize)]
        struct Config {
            aggregation: Aggregation,
        }
        for (text, expected) in [
            ("aggregation = 'token_mean'", Aggregation::TokenMean),
            ("aggregation = 'dapo'", Aggregation::TokenMean),
            ("aggregation.token_sum_over_constant = 3000", Aggregation::TokenSumOverConstant(3000.0)),
        ] {
            assert_eq!(toml::from_str::<Config>(text).unwrap().aggregation, expected);
        }
    }
}
