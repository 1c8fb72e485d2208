//! The Bradley-Terry model of preferences (R. A. Bradley and M. E. Terry 1952; as a reward model's loss: Ouyang et al.
//! 2022, arXiv 2203.02155).
//!
//! ```text
//! P(chosen beats rejected) = σ(r_c − r_r)
//! ℓ = −log σ(r_c − r_r − margin) + λ (r_c + r_r)²
//! ```
//!
//! The loss depends on differences only, so the level of the rewards is free; the second term (Eisenstein et al. 2023,
//! arXiv 2312.09244; TRL's `center_rewards_coefficient`) pulls it to zero.

use tch::Tensor;

/// Returns the loss of each pair, `[pair]`. `chosen` and `rejected` are the model's rewards of both sides and `margins`
/// the required differences, each `[pair]`; `centring` is λ, 0 for none.
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margins: &Tensor, centring: f64) -> Tensor {
    let preference = -(chosen - rejected - margins).log_sigmoid();
    if centring == 0.0 {
        return preference;
    }
    preference + (chosen + rejected).square() * centring
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, check_slice, f64s, gradient, numeric_gradient};
    use super::*;

    const CHOSEN: [f64; 2] = [1.2, 0.3];
    const REJECTED: [f64; 2] = [0.7, 0.9];

    fn mean(chosen: &[f64], margin: f64, centring: f64) -> Tensor {
        bradley_terry(&f64s(chosen), &f64s(&REJECTED), &f64s(&[margin; 2]), centring).mean(None)
    }

    #[test]
    fn two_pairs_by_hand() {
        // −log σ(0.5) = 0.474077, −log σ(−0.6) = 1.037488; with a margin of 0.5: −log σ(0) and −log σ(−1.1)
        check(&mean(&CHOSEN, 0.0, 0.0), &[0.755_782_467_3]);
        check(&mean(&CHOSEN, 0.5, 0.0), &[1.040_241_252_9]);
        // λ · (1.9² + 1.2²) / 2 = 0.01 · 2.525
        check(&mean(&CHOSEN, 0.0, 0.01), &[0.755_782_467_3 + 0.025_25]);
    }

    #[test]
    fn gradients_are_those_of_the_formula() {
        let rejected = f64s(&REJECTED);
        for (margin, centring) in [(0.0, 0.0), (0.5, 0.0), (0.5, 0.01)] {
            let loss = |x: &Tensor| bradley_terry(x, &rejected, &f64s(&[margin; 2]), centring);
            // dℓ/dr_c = σ(r_c − r_r − margin) − 1 + 2 λ (r_c + r_r)
            let by_hand: Vec<f64> = CHOSEN
                .iter()
                .zip(REJECTED)
                .map(|(c, r)| 1.0 / (1.0 + (-(c - r - margin)).exp()) - 1.0 + 2.0 * centring * (c + r))
                .collect();
            let exact = gradient(&CHOSEN, loss);
            check_slice(&exact, &by_hand);
            check_slice(&exact, &numeric_gradient(&CHOSEN, loss));
        }
    }

    #[test]
    fn the_level_of_the_rewards_is_free_unless_they_are_centred() {
        let shifted = |by: f64, centring| {
            let [chosen, rejected] = [CHOSEN, REJECTED].map(|rewards| f64s(&rewards) + by);
            bradley_terry(&chosen, &rejected, &f64s(&[0.0; 2]), centring).sum(None).double_value(&[])
        };
        assert!((shifted(0.0, 0.0) - shifted(7.0, 0.0)).abs() < 1e-12);
        assert!(shifted(7.0, 0.01) > shifted(0.0, 0.01) + 1.0);
    }
}
