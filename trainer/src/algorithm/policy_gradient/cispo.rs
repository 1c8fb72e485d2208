//! CISPO, clipped importance-sampling weights (`MiniMax` 2025, `MiniMax`-M1, arXiv 2506.13585).
//!
//! A clipped ratio has no gradient, so PPO's clip silences exactly the tokens that changed most: rare ones that begin a
//! new thought. CISPO uses the clipped ratio as a constant weight on the gradient of REINFORCE, and never drops a
//! token:
//!
//! ```text
//! L = 1/Σ|y_i| Σ_i Σ_t −sg[clip(r_t, floor, cap)] A_i log π_t       A_i = (R_i − mean R) / std R
//! ```
//!
//! The bounds are absolute, as in TRL (`epsilon_high`): verl's `clip_ratio_high` of 0.2 is a cap of 1.2 here. The paper
//! does not state its cap; 5 is that of `ScaleRL` (Khatri et al. 2025), which TRL recommends. As in the paper there is
//! no floor and no KL term.

use super::family::{self, Method, Penalty, Shared, settings};
use crate::objective::{Clip, KlEstimator, Surrogate};
use crate::{Error, Result};

settings! {
    /// `[algorithm.cispo]`: clipped importance-sampling weights.
    pub struct Cispo, "cispo" {
        /// Smallest weight; 0 for none, as in the paper.
        weight_floor: f64 = 0.0,
        /// Largest weight; 5 as in `ScaleRL`.
        #[serde(alias = "epsilon_high")]
        weight_cap: f64 = 5.0,
        /// Estimator of the KL penalty.
        kl_estimator: KlEstimator = KlEstimator::K3,
    }
    shared: Shared::default()
}

impl Cispo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        if self.weight_cap <= self.weight_floor {
            return Err(Error::input(format!(
                "algorithm.cispo.weight_cap is {}, but must be above weight_floor, which is {}; it bounds the ratio itself, 5 is usual",
                self.weight_cap, self.weight_floor
            )));
        }
        let numbers = [("weight_floor", self.weight_floor), ("weight_cap", self.weight_cap)];
        family::checked(self, &numbers)
    }
}

impl Method for Cispo {
    fn surrogate(&self) -> Surrogate {
        Surrogate { clip: Clip::Weight { floor: self.weight_floor, cap: self.weight_cap }, ..Surrogate::default() }
    }

    fn penalty(&self) -> Penalty {
        Penalty::Loss(self.kl_estimator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::objective::testing::{check_slice, f64s};
    use crate::testing::Losses;

    #[test]
    fn a_cap_of_a_fifth_above_one() {
        // Ratios 1.1051709, 0.90483742, 1.3498588 (capped at 1.2) | 0.90483742, 0.74081822.
        let loss = Losses::pair().of(&Config::Cispo(Cispo { weight_cap: 1.2, ..Cispo::default() }));
        check_slice(&[loss.value], &[0.565_769_25]);
        check_slice(&loss.gradient, &[-0.221_034_18, -0.180_967_48, -0.24, 0.180_967_48, 0.148_163_64]);
    }

    #[test]
    fn the_default_cap_binds_at_five() {
        let proximal = f64s(&[-3.0, -2.0, -1.5, -0.5, -1.0]);
        let loss = Losses { proximal, ..Losses::pair() }.of(&Config::Cispo(Cispo::default()));
        check_slice(&[loss.value], &[1.302_804_6]);
        check_slice(&loss.gradient[..3], &[-1.0, -0.180_967_48, -0.269_971_76]);
    }

    #[test]
    fn a_cap_below_the_floor_is_refused() {
        let refused = build(&Config::Cispo(Cispo { weight_cap: 0.2, weight_floor: 0.5, ..Cispo::default() })).err();
        assert!(refused.unwrap().to_string().contains("weight_cap"));
    }
}
