//! Importance weights for samples of another policy, and the divergence from that policy.
//!
//! The ratio per token is `ρ = exp(log π_proximal − log π_behaviour)`. Even with equal weights, sampler and trainer
//! disagree slightly (other kernels, other batch shapes), and stored samples come from older policies. A weight
//! multiplies the already clipped loss of a token, before aggregation; penalties are not weighted. Truncation (TIS, Yao
//! et al. 2025) keeps every token and bounds its weight; masking (`IcePop`, TRL's default) drops tokens or sequences
//! with a ratio out of bounds. Decoupled PPO is truncation with a high cap around a surrogate whose ratio is taken to
//! the proximal policy.

use super::{KlEstimator, Rows, bounded_exp};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Correction of the mismatch between sampler and trainer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RolloutCorrection {
    /// No correction: every weight is 1.
    #[default]
    Off,
    /// `min(ρ, cap)` for each token; verl's cap is 2.
    TokenTruncate {
        /// Largest weight.
        cap: f64,
    },
    /// `min(Π ρ, cap)` for all tokens of a sequence; verl's cap is 2.
    SequenceTruncate {
        /// Largest weight.
        cap: f64,
    },
    /// `ρ` if it lies between the bounds and 0 otherwise (`IcePop`; `OpenRLHF` uses 0.5 and 5).
    TokenMask {
        /// Smallest ratio that is kept.
        floor: f64,
        /// Largest ratio that is kept.
        cap: f64,
    },
    /// `Π ρ` for all tokens of a sequence if at most `cap`, and 0 otherwise; TRL's default with cap 3.
    SequenceMask {
        /// Largest product that is kept.
        cap: f64,
    },
    /// `ρ`, unbounded, in sequences whose geometric mean of `ρ` lies between the bounds, and 0 in others.
    GeometricMask {
        /// Smallest geometric mean that is kept.
        floor: f64,
        /// Largest geometric mean that is kept.
        cap: f64,
    },
}

impl RolloutCorrection {
    /// Checks the bounds.
    ///
    /// # Errors
    /// If a bound is not a number, the floor is negative, or the cap is not above the floor; the error is a sentence.
    pub fn check(self) -> std::result::Result<(), String> {
        let (floor, cap) = match self {
            Self::Off => return Ok(()),
            Self::TokenTruncate { cap } | Self::SequenceTruncate { cap } | Self::SequenceMask { cap } => (0.0, cap),
            Self::TokenMask { floor, cap } | Self::GeometricMask { floor, cap } => (floor, cap),
        };
        if floor >= 0.0 && cap > floor && cap.is_finite() {
            return Ok(());
        }
        Err(format!("cap must be above floor, and floor at least 0, but they are {cap} and {floor}"))
    }

    /// Returns the weight of each token, `[token]`, zero where masked and without gradient. Both log-probabilities are
    /// `[token]`.
    pub fn weights(self, proximal: &Tensor, behaviour: &Tensor, rows: &Rows) -> Tensor {
        let log_ratio = log_ratio(proximal, behaviour, rows);
        let token = bounded_exp(&log_ratio);
        let sequence = || rows.spread(&bounded_exp(&rows.sequence_sum(&log_ratio)));
        let weights = match self {
            Self::Off => token.ones_like(),
            Self::TokenTruncate { cap } => token.clamp_max(cap),
            Self::SequenceTruncate { cap } => sequence().clamp_max(cap),
            Self::TokenMask { floor, cap } => &token * within(&token, floor, cap),
            Self::SequenceMask { cap } => {
                let product = sequence();
                &product * within(&product, 0.0, cap)
            }
            Self::GeometricMask { floor, cap } => {
                let mean = rows.spread(&bounded_exp(&rows.sequence_mean(&log_ratio)));
                token * within(&mean, floor, cap)
            }
        };
        rows.keep(&weights)
    }
}

/// Returns 1 for entries between the bounds and 0 for others.
fn within(x: &Tensor, floor: f64, cap: f64) -> Tensor {
    x.ge(floor).logical_and(&x.le(cap)).to_kind(x.kind())
}

fn log_ratio(proximal: &Tensor, behaviour: &Tensor, rows: &Rows) -> Tensor {
    rows.keep(&proximal.detach()) - rows.keep(&behaviour.detach())
}

/// Returns the ratio of `policy` to `behaviour` for each token, `[token]`, zero where masked and without gradient.
pub fn ratio_to_behaviour(policy: &Tensor, behaviour: &Tensor, rows: &Rows) -> Tensor {
    rows.keep(&bounded_exp(&log_ratio(policy, behaviour, rows)))
}

/// Returns the divergence of the trainer's policy from the behaviour policy, in nats per token, a scalar: the mean of
/// k3, the metric `mismatch_kl`. On fresh samples a value above 1e-3 means that sampler and trainer do not compute the
/// same function.
pub fn mismatch_kl(trainer: &Tensor, behaviour: &Tensor, rows: &Rows) -> Tensor {
    let (trainer, behaviour) = (rows.keep(&trainer.detach()), rows.keep(&behaviour.detach()));
    rows.mean(&KlEstimator::K3.estimate(&behaviour, &trainer))
}

/// Returns the effective sample size of the tokens under the weights `ρ`, as a share of their number, a scalar in (0,
/// 1]: `(Σ ρ)² / (n Σ ρ²)` (Kish 1965). 1 if the trainer's policy sampled the tokens.
pub fn effective_sample_share(trainer: &Tensor, behaviour: &Tensor, rows: &Rows) -> Tensor {
    let weights = bounded_exp(&log_ratio(trainer, behaviour, rows));
    let tokens = rows.trained_tokens().max(1) as f64;
    rows.sum(&weights).square() / (rows.sum(&weights.square()) * tokens)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, f64s, full_rows};
    use super::*;

    const LOG_RATIO: [f64; 5] = [0.1, -0.2, 1.0, -0.05, 0.02];

    fn weights(correction: RolloutCorrection) -> Tensor {
        correction.weights(&f64s(&LOG_RATIO), &f64s(&[0.0; 5]), &full_rows(&[3, 2]))
    }

    #[test]
    fn truncation_bounds_the_weight() {
        let token = weights(RolloutCorrection::TokenTruncate { cap: 2.0 });
        check(&token, &[1.105_170_9, 0.818_730_75, 2.0, 0.951_229_42, 1.020_201_3]);
        let normalised = &token / full_rows(&[3, 2]).mean(&token);
        check(&normalised, &[0.937_327_06, 0.694_388_96, 1.696_257_2, 0.806_764_87, 0.865_261_93]);

        let sequence = weights(RolloutCorrection::SequenceTruncate { cap: 2.0 });
        check(&sequence, &[2.0, 2.0, 2.0, 0.970_445_53, 0.970_445_53]);
    }

    #[test]
    fn masking_drops_what_is_too_far_off() {
        let mask = |cap| weights(RolloutCorrection::SequenceMask { cap });
        check(&mask(3.0), &[2.459_603_1, 2.459_603_1, 2.459_603_1, 0.970_445_53, 0.970_445_53]);
        check(&mask(2.0), &[0.0, 0.0, 0.0, 0.970_445_53, 0.970_445_53]);

        let token = weights(RolloutCorrection::TokenMask { floor: 0.9, cap: 2.0 });
        check(&token, &[1.105_170_9, 0.0, 0.0, 0.951_229_42, 1.020_201_3]);
        // Geometric means are exp(0.3) = 1.35 and exp(-0.015) = 0.985.
        let geometric = weights(RolloutCorrection::GeometricMask { floor: 0.9, cap: 1.1 });
        check(&geometric, &[0.0, 0.0, 0.0, 0.951_229_42, 1.020_201_3]);
    }

    #[test]
    fn bounds_that_would_keep_nothing_are_refused() {
        use RolloutCorrection::{GeometricMask, Off, SequenceMask, TokenMask, TokenTruncate};
        for good in [Off, TokenTruncate { cap: 2.0 }, GeometricMask { floor: 0.999, cap: 1.001 }] {
            assert_eq!(good.check(), Ok(()));
        }
        let backwards = TokenMask { floor: 5.0, cap: 0.5 };
        for bad in [TokenTruncate { cap: 0.0 }, SequenceMask { cap: f64::NAN }, backwards] {
            assert!(bad.check().unwrap_err().contains("cap must be above floor"));
        }
    }

    #[test]
    fn off_is_one_where_trained() {
        check(&weights(RolloutCorrection::Off), &[1.0; 5]);
    }

    #[test]
    fn mismatch_is_the_mean_of_k3_over_tokens() {
        // Per sequence the means are 0.2473945 and 0.00071538226, of three and two tokens.
        let expected = (3.0 * 0.247_394_5 + 2.0 * 0.000_715_382_26) / 5.0;
        check(&mismatch_kl(&f64s(&LOG_RATIO), &f64s(&[0.0; 5]), &full_rows(&[3, 2])), &[expected]);
    }

    #[test]
    fn equal_policies_keep_every_sample_and_unequal_ones_lose_some() {
        let rows = full_rows(&[3]);
        let share = |trainer: &[f64]| effective_sample_share(&f64s(trainer), &f64s(&[0.0; 3]), &rows);
        check(&share(&[0.0; 3]), &[1.0]);
        // Weights 1, 1 and 2: (4)² / (3 · 6).
        check(&share(&[0.0, 0.0, 2.0_f64.ln()]), &[16.0 / 18.0]);
    }
}
