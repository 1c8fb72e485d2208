//! REINFORCE (Williams 1992, "Simple statistical gradient-following algorithms"), plain: no clip, no groups.
//!
//! ```text
//! ∇J = E[(R − b) Σ_t ∇ log π_t]
//! L  = 1/N Σ_i Σ_t −r_t (R_i − b)          r_t = π/π_old, which is 1 in the first update of a step
//! ```
//!
//! The baseline `b` removes the common part of all rewards; any baseline that does not depend on the sample leaves the
//! expected gradient unchanged. `batch`, the default, is the mean reward of the step; `running` is an average of the
//! previous steps, in which a step counts for a tenth (the first step uses its own mean); `none` is the bare rule. With
//! a KL coefficient, `R ← R − β Σ_t (log π − log π_ref)`, as in RLOO.
//!
//! It is the baseline of the other methods. Use one update per step: without a clip nothing bounds later ones.

use super::family::{self, Method, Penalty, Settings, Shared, settings};
use crate::Result;
use crate::algorithm::Evidence;
use crate::batch::{self, Signals};
use crate::objective::{Aggregation, Clip, Surrogate};
use schema::Metrics;
use serde::{Deserialize, Serialize};

settings! {
    /// `[algorithm.reinforce]`: plain REINFORCE. Its `kl_coefficient` acts in the reward, summed over the tokens of a
    /// completion.
    pub struct Reinforce, "reinforce" {
        /// Baseline subtracted from rewards: `batch`, `running` or `none`.
        baseline: Baseline = Baseline::Batch,
    }
    shared: Shared::default()
}

/// Baseline subtracted from rewards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Mean reward of the step.
    #[default]
    Batch,
    /// Exponential average of the mean rewards of previous steps.
    Running,
    /// No baseline.
    None,
}

/// Share of the newest step in the running baseline.
const NEWEST_SHARE: f64 = 0.1;

/// Metric of a step's mean reward, which the running baseline follows.
const MEAN: &str = "reinforce/mean_reward";

impl Reinforce {
    /// The method, if the settings make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Learning> {
        Ok(Learning { settings: family::checked(self, &[])?, running: None })
    }
}

/// The method with its running baseline.
#[derive(Debug)]
pub(in crate::algorithm) struct Learning {
    settings: Reinforce,
    /// Running baseline; `None` before the first step.
    running: Option<f64>,
}

impl Settings for Learning {
    const KEY: &'static str = Reinforce::KEY;

    fn shared(&self) -> Shared {
        self.settings.shared()
    }
}

impl Method for Learning {
    fn surrogate(&self) -> Surrogate {
        Surrogate { clip: Clip::None, ..Surrogate::default() }
    }

    fn aggregation(&self) -> Aggregation {
        Aggregation::SequenceMeanTokenSum
    }

    fn penalty(&self) -> Penalty {
        Penalty::Reward
    }

    fn advantages(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let mut rewards = family::penalised_rewards(evidence, self.settings.kl_coefficient);
        let judged = || rewards.iter().flatten().flatten();
        let (count, first) = (judged().count(), judged().next().copied().unwrap_or_default());
        // The mean of equal numbers may differ from them by a rounding error, which Adam would make a step of.
        let mean = if judged().all(|reward| *reward == first) { first } else { judged().sum::<f64>() / count as f64 };
        let baseline = match self.settings.baseline {
            Baseline::Batch => mean,
            Baseline::Running => self.running.unwrap_or(mean),
            Baseline::None => 0.0,
        };
        if count > 0 {
            metrics.set(MEAN, mean);
            metrics.set("reinforce/baseline", baseline);
        }
        for reward in rewards.iter_mut().flatten().flatten() {
            *reward -= baseline;
        }
        batch::advantages(rewards)
    }

    fn group_size(&self) -> usize {
        1
    }

    fn adapt(&mut self, metrics: &Metrics) {
        let Some(mean) = metrics.get(MEAN).filter(|_| self.settings.baseline == Baseline::Running) else { return };
        self.running = Some(self.running.map_or(mean, |running| running + NEWEST_SHARE * (mean - running)));
    }

    fn memory(&self) -> serde_json::Value {
        self.running.map_or(serde_json::Value::Null, |running| serde_json::json!({ "running_baseline": running }))
    }

    fn remember(&mut self, memory: &serde_json::Value) -> bool {
        self.running = memory["running_baseline"].as_f64();
        memory.is_null() || self.running.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Algorithm, Config, build};
    use crate::objective::testing::check_slice;
    use crate::testing::{Losses, advantages, advantages_with_k1, groups, signals};

    fn with(baseline: Baseline) -> Config {
        Config::Reinforce(Reinforce { baseline, ..Reinforce::default() })
    }

    #[test]
    fn the_step_s_mean_is_the_baseline() {
        let rewards: &[&[f32]] = &[&[1.0, 0.0], &[0.5], &[0.5]];
        check_slice(&advantages(&with(Baseline::Batch), rewards).concat(), &[0.5, -0.5, 0.0, 0.0]);
        check_slice(&advantages(&with(Baseline::None), rewards).concat(), &[1.0, 0.0, 0.5, 0.5]);
        assert_eq!(advantages(&with(Baseline::Batch), &[&[0.1, 0.1, 0.1]]), [[0.0; 3]]);
    }

    #[test]
    fn the_running_baseline_follows_the_steps_before_and_is_saved() {
        let mut method = Reinforce { baseline: Baseline::Running, ..Reinforce::default() }.checked().unwrap();
        let baseline = |method: &mut Learning, rewards: &[&[f32]]| {
            let mut metrics = Metrics::new();
            signals(method, &groups(rewards), None, &mut metrics);
            method.finish_step(&mut metrics, 2);
            metrics.get("reinforce/baseline").unwrap()
        };
        // Mean rewards 0.5, 1 and 0: the first is its own baseline; then 0.5, then 0.5 + 0.1 · 0.5.
        check_slice(&[baseline(&mut method, &[&[1.0, 0.0]])], &[0.5]);
        check_slice(&[baseline(&mut method, &[&[1.0, 1.0]])], &[0.5]);
        let mut resumed = Reinforce { baseline: Baseline::Running, ..Reinforce::default() }.checked().unwrap();
        resumed.restore(&method.state()).unwrap();
        for method in [&mut method, &mut resumed] {
            check_slice(&[baseline(method, &[&[0.0, 0.0]])], &[0.55]);
        }
    }

    #[test]
    fn the_penalty_is_part_of_the_reward() {
        // Lengths 1 and 2, sums of k1 0.5 and 0.1: rewards 1 − 0.05 and 0 − 0.01.
        let config = Config::Reinforce(Reinforce { kl_coefficient: 0.1, ..Reinforce::default() });
        check_slice(&advantages_with_k1(&config, &[&[1.0, 0.0]], &[&[0.5], &[0.2, -0.1]])[0], &[0.48, -0.48]);
    }

    #[test]
    fn a_sequence_is_the_sum_of_its_tokens_and_nothing_is_clipped() {
        // Ratios 1.1051709, 0.90483742, 1.3498588 with A = 1; 0.90483742, 0.74081822 with A = −1; two sequences.
        let ratios = [0.1_f64.exp(), (-0.1_f64).exp(), 0.3_f64.exp(), (-0.1_f64).exp(), (-0.3_f64).exp()];
        let loss = Losses::pair().of(&with(Baseline::Batch));
        let signs = [-1.0, -1.0, -1.0, 1.0, 1.0];
        let slope: Vec<f64> = ratios.iter().zip(signs).map(|(ratio, sign)| sign * ratio / 2.0).collect();
        check_slice(&[loss.value], &[slope.iter().sum()]);
        check_slice(&loss.gradient, &slope);
    }

    #[test]
    fn one_sample_per_prompt_is_enough() {
        let needs = build(&with(Baseline::Batch)).unwrap().needs();
        assert_eq!(needs.samples, crate::algorithm::Samples::sampled(1));
    }
}
