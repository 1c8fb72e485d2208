//! Iterative preference optimisation as a proximal-point method, and its acceleration (APO).
//!
//! Each iteration of DPO against its own last policy is a proximal step, `p̂_{t+1} ∝ π_t exp(r_t / β)`. Accelerated
//! Preference Optimization (He, Yuan and Gu 2024, arXiv 2410.06293) extrapolates, as Nesterov does for gradient steps:
//! before the next iteration it moves on in the direction of the last one:
//!
//! ```text
//! π_{t+1} ∝ p̂_{t+1} · (p̂_{t+1} / p̂_t)^α                                             (3.6)
//! p̂_{t+1} ∝ π_ref · exp( (1/β) Σ_{i≤t} (1 − α^{t+1−i}) / (1 − α) · r_i )            (Theorem 4.1)
//! ```
//!
//! The extrapolation combines two proximal iterates p̂. The result of a run is the last proximal iterate, not the
//! extrapolated policy from which the next iteration would have started. With α = 0 it is iterative DPO.

use super::Tabular;

/// Policies and optimality gap after one iteration.
#[derive(Debug, Clone, PartialEq)]
pub struct Iteration {
    /// `p̂_{t+1}`: the result of the proximal step, and of the run if this is the last iteration.
    pub proximal: Tabular,
    /// `π_{t+1}`: the extrapolated policy, from which the next iteration starts and samples.
    pub policy: Tabular,
    /// Optimality gap `max r − E_p̂ r`.
    pub gap: f64,
}

/// Returns the extrapolated policy `π ∝ now · (now / before)^α`.
pub fn extrapolate(now: &Tabular, before: &Tabular, alpha: f64) -> Tabular {
    Tabular::product(&[(1.0 + alpha, now), (-alpha, before)], &vec![0.0; now.logprobs().len()])
}

/// Runs `count` iterations from `reference`, each of which learns the reward `[completion]` exactly.
pub fn iterations(reference: &Tabular, reward: &[f64], beta: f64, alpha: f64, count: usize) -> Vec<Iteration> {
    let tilt: Vec<f64> = reward.iter().map(|reward| reward / beta).collect();
    let best = reward.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut before, mut policy) = (reference.clone(), reference.clone());
    let iteration = |_| {
        let proximal = Tabular::product(&[(1.0, &policy)], &tilt);
        policy = extrapolate(&proximal, &before, alpha);
        before = proximal.clone();
        Iteration { gap: best - proximal.mean(reward), proximal, policy: policy.clone() }
    };
    (0..count).map(iteration).collect()
}

/// Returns the proximal iterate after `count` iterations by Theorem 4.1, with the same reward in each.
pub fn theorem_4_1(reference: &Tabular, reward: &[f64], beta: f64, alpha: f64, count: usize) -> Tabular {
    let weight: f64 = (1..=count).map(|age| (1.0 - alpha.powi(age as i32)) / (1.0 - alpha)).sum();
    let tilt: Vec<f64> = reward.iter().map(|reward| weight * reward / beta).collect();
    Tabular::product(&[(1.0, reference)], &tilt)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, has_probabilities};
    use super::*;

    const REWARD: [f64; 4] = [1.0, 0.5, 0.0, -1.0];

    fn run(alpha: f64) -> Vec<Iteration> {
        iterations(&Tabular::uniform(4), &REWARD, 1.0, alpha, 3)
    }

    #[test]
    fn extrapolation_goes_on_in_the_direction_of_the_last_move() {
        let (before, now) = (Tabular::new(&[0.4, 0.3, 0.2, 0.1]), Tabular::new(&[0.55, 0.25, 0.15, 0.05]));
        for (alpha, expected, normaliser) in [
            (0.1, [0.564_591_085_4, 0.244_097_280_7, 0.144_923_376_1, 0.046_388_257_8], 0.005_661_924_9),
            (0.3, [0.593_248_215_1, 0.232_043_055_8, 0.134_893_983_3, 0.039_814_745_8], 0.019_841_511_0),
            (0.6, [0.634_638_169_5, 0.213_605_849_4, 0.120_312_263_5, 0.031_443_717_6], 0.047_935_492_2),
        ] {
            let policy = extrapolate(&now, &before, alpha);
            close(&policy.probabilities(), &expected, 1e-10);
            // log Z′ from the first entry: the difference from its unnormalised logarithm.
            let raw = (1.0 + alpha) * now.logprobs()[0] - alpha * before.logprobs()[0];
            close(&[raw - policy.logprobs()[0]], &[normaliser], 1e-10);
        }
        assert_eq!(extrapolate(&now, &before, 0.0), now);
    }

    #[test]
    fn iterative_dpo_and_apo_follow_the_recursion() {
        let plain = run(0.0);
        has_probabilities(&plain[0].proximal, &[0.473_990_846_3, 0.287_489_980_7, 0.174_371_487_6, 0.064_147_685_4]);
        has_probabilities(&plain[1].proximal, &[0.657_233_022_8, 0.241_782_517_2, 0.088_946_817_3, 0.012_037_642_7]);
        has_probabilities(&plain[2].proximal, &[0.784_070_214_4, 0.174_949_712_5, 0.039_036_557_4, 0.001_943_515_8]);
        let gaps = |run: &[Iteration]| run.iter().map(|iteration| iteration.gap).collect::<Vec<_>>();
        close(&gaps(&plain), &[0.446_411_85, 0.233_913_36, 0.130_398_45], 1e-8);

        let fast = run(0.3);
        has_probabilities(&fast[0].policy, &[0.535_088_094_7, 0.279_340_480_0, 0.145_828_517_9, 0.039_742_907_5]);
        has_probabilities(&fast[1].proximal, &[0.700_796_655_7, 0.221_897_989_0, 0.070_261_062_4, 0.007_044_292_9]);
        has_probabilities(&fast[1].policy, &[0.750_171_525_3, 0.195_449_470_1, 0.050_922_347_8, 0.003_456_656_8]);
        has_probabilities(&fast[2].proximal, &[0.844_865_091_4, 0.133_510_077_2, 0.021_097_972_8, 0.000_526_858_6]);
        close(&gaps(&fast), &[0.446_411_85, 0.195_298_64, 0.088_906_73], 1e-8);
    }

    #[test]
    fn the_recursion_is_the_theorem() {
        // With α = 0.3 the rewards' weights are 1, 1 + 1.3 = 2.3 and 2.3 + 1.39 = 3.69.
        let expected = Tabular::product(&[(1.0, &Tabular::uniform(4))], &REWARD.map(|reward| 3.69 * reward));
        has_probabilities(&theorem_4_1(&Tabular::uniform(4), &REWARD, 1.0, 0.3, 3), &expected.probabilities());
        for alpha in [0.0, 0.1, 0.3, 0.9] {
            let found = iterations(&Tabular::uniform(4), &REWARD, 0.7, alpha, 12);
            for (t, iteration) in found.iter().enumerate() {
                let closed = theorem_4_1(&Tabular::uniform(4), &REWARD, 0.7, alpha, t + 1);
                close(&iteration.proximal.probabilities(), &closed.probabilities(), 1e-13);
            }
        }
    }

    #[test]
    fn for_a_softmax_over_features_parameters_can_be_extrapolated_instead() {
        let logits = |theta: [f64; 2]| vec![theta[0], theta[1], theta[0] + theta[1]];
        let (before, now) = ([0.2, -0.1], [0.5, 0.1]);
        let moved = [0, 1].map(|index| now[index] + 0.3 * (now[index] - before[index]));
        let expected = [0.354_105_145_2, 0.230_348_617_4, 0.415_546_237_4];
        has_probabilities(&Tabular::from_logits(logits(moved)), &expected);
        has_probabilities(
            &extrapolate(&Tabular::from_logits(logits(now)), &Tabular::from_logits(logits(before)), 0.3),
            &expected,
        );
    }
}
