//! Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071).
//!
//! The reward belongs to a whole sequence, so the clipped ratio should be the sequence's as well: token ratios are
//! single-sample estimates and add up to noise that grows with length. Their geometric mean keeps it comparable between
//! lengths:
//!
//! ```text
//! s_i = exp(1/|y_i| Σ_t (log π − log π_old))
//! L   = 1/N Σ_i −min(s_i A_i, clip(s_i, 1 − 3e-4, 1 + 4e-4) A_i)       A_i = (R_i − mean R) / std R
//! ```
//!
//! `level = "token"` is GSPO-token: the value of `s_i` with the gradient at each token itself, `sg[s_i] π/sg[π]`. Both
//! are equal as long as all tokens of a sequence share one advantage.
//!
//! The bounds are the paper's, and narrow because a mean over a sequence moves little. They only matter from the second
//! update of a step on, so the default is the paper's four minibatches. There is no KL term.

use super::family::{self, Method, Penalty, RatioOf, Shared, settings};
use crate::Result;
use crate::objective::{Aggregation, Clip, KlEstimator, Level, Surrogate};

settings! {
    /// `[algorithm.gspo]`: group sequence policy optimisation.
    pub struct Gspo, "gspo" {
        /// Path of the gradient: through the ratio of the sequence (`sequence`) or of each token (`token`).
        level: RatioOf = RatioOf::Sequence,
        /// Lower clip: distance by which the sequence's ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 3e-4,
        /// Upper clip: distance by which the sequence's ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 4e-4,
        /// Estimator of the KL penalty.
        kl_estimator: KlEstimator = KlEstimator::K3,
    }
    shared: Shared { minibatches: 4, ..Shared::default() }
}

impl Gspo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        let numbers = [("clip_low", self.clip_low), ("clip_high", self.clip_high)];
        family::checked(self, &numbers)
    }
}

impl Method for Gspo {
    fn surrogate(&self) -> Surrogate {
        Surrogate {
            level: match self.level {
                RatioOf::Sequence => Level::SequenceMean,
                RatioOf::Token => Level::SequenceMeanToken,
            },
            clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
            ..Surrogate::default()
        }
    }

    fn aggregation(&self) -> Aggregation {
        Aggregation::SequenceMeanTokenMean
    }

    fn penalty(&self) -> Penalty {
        Penalty::Loss(self.kl_estimator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Config;
    use crate::objective::testing::check_slice;
    use crate::testing::Losses;

    const LEVELS: [RatioOf; 2] = [RatioOf::Sequence, RatioOf::Token];

    #[test]
    fn the_paper_s_bounds_cut_a_sequence_that_moved_by_a_tenth() {
        for level in LEVELS {
            let loss = Losses::pair().of(&Config::Gspo(Gspo { level, ..Gspo::default() }));
            // (−1.0004 + 0.9997)/2
            check_slice(&[loss.value], &[-0.000_35]);
            check_slice(&loss.gradient, &[0.0; 5]);
        }
    }

    #[test]
    fn both_levels_agree_where_a_sequence_has_one_advantage() {
        for level in LEVELS {
            let settings = Gspo { level, clip_low: 0.2, clip_high: 0.2, ..Gspo::default() };
            let loss = Losses::pair().of(&Config::Gspo(settings));
            // exp(0.1) = 1.1051709 and exp(−0.2) = 0.81873075; the gradient at a token is −A s / (N |y|).
            check_slice(&[loss.value], &[-0.143_220_08]);
            let slope = [-0.184_195_15, -0.184_195_15, -0.184_195_15, 0.204_682_69, 0.204_682_69];
            check_slice(&loss.gradient, &slope);
        }
    }

    #[test]
    fn the_level_is_named_in_the_config() {
        for (text, level) in [("level = 'token'", RatioOf::Token), ("", RatioOf::Sequence)] {
            assert_eq!(toml::from_str::<Gspo>(text).unwrap().level, level);
        }
    }
}
