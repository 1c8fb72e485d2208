//! Says, once, that the sampler and the trainer compute different things.
//!
//! `mismatch_kl` of fresh samples is rounding: 1e-6 and less in f32, up to some 1e-3 in bf16. A policy gradient whose
//! samples come from another policy than the one it moves is biased, and such a run can collapse long after the mismatch
//! began (Yao et al. 2025). A rollout correction weights tokens by the ratio of the two.
//!
//! Old samples come from other policies by intent. There the question is how many are left under the weights that
//! correct for it: of a hundred tokens with an effective share of 0.1, ten decide.

use schema::Metrics;

/// Fresh samples further away than this, in nats per token, are worth a sentence.
const LIMIT: f64 = 1e-2;

/// Samples of other policies further away than this, in nats per token, are worth a sentence if nothing weights them.
const UNWEIGHTED_LIMIT: f64 = 0.1;

/// Old samples whose effective share is smaller are worth a sentence.
const SMALLEST_SHARE: f64 = 0.1;

/// Watches the mismatch of fresh samples, and what is left of old ones.
#[derive(Debug)]
pub(super) struct MismatchAlarm {
    algorithm: &'static str,
    raised: bool,
    raised_unweighted: bool,
    raised_by_old: bool,
}

impl MismatchAlarm {
    pub(super) fn new(algorithm: &'static str) -> Self {
        Self { algorithm, raised: false, raised_unweighted: false, raised_by_old: false }
    }

    /// A warning after a step on fresh samples, the first time that there is a reason for one. `None` if
    /// the mismatch is corrected already.
    pub(super) fn check(&mut self, metrics: &Metrics) -> Option<String> {
        let mismatch = metrics.get("mismatch_kl").filter(|mismatch| *mismatch > LIMIT)?;
        if self.raised || metrics.get("rollout_correction/weight").is_some() {
            return None;
        }
        self.raised = true;
        let algorithm = self.algorithm;
        Some(format!(
            "mismatch_kl is {mismatch:.3}: the sampler and the trainer disagree about the same tokens; \
             algorithm.{algorithm}.rollout_correction = {{ token_truncate = {{ cap = 2.0 }} }} corrects for it, \
             model.dtype = \"f32\" makes it smaller"
        ))
    }
}

impl MismatchAlarm {
    /// A warning after a step with samples of other policies that are learned from as if the policy had sampled them, the
    /// first time that they are far from it. `corrects` says that the method itself takes ratios to those policies.
    pub(super) fn check_unweighted(&mut self, metrics: &Metrics, corrects: bool) -> Option<String> {
        let mismatch = metrics.get("mismatch_kl").filter(|mismatch| *mismatch > UNWEIGHTED_LIMIT)?;
        if corrects || self.raised_unweighted || metrics.get("rollout_correction/weight").is_some() {
            return None;
        }
        self.raised_unweighted = true;
        let algorithm = self.algorithm;
        Some(format!(
            "the samples are of other policies, {mismatch:.2} nats per token away (mismatch_kl), and nothing corrects for \
             it; set algorithm.{algorithm}.rollout_correction = {{ token_truncate = {{ cap = 2.0 }} }}"
        ))
    }

    /// A warning after a step with old samples, the first time that there is a reason for one.
    pub(super) fn check_old(&mut self, metrics: &Metrics) -> Option<String> {
        let share = metrics.get("replay/effective_sample_share").or(metrics.get("effective_sample_share"))?;
        if self.raised_by_old || share >= SMALLEST_SHARE {
            return None;
        }
        self.raised_by_old = true;
        Some(format!(
            "the old samples are far from the policy: their effective share is {share:.3}; \
             replay younger ones, or fewer, or take smaller steps"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(mismatch: f64) -> Metrics {
        let mut metrics = Metrics::new();
        metrics.set("mismatch_kl", mismatch);
        metrics
    }

    #[test]
    fn it_speaks_once_and_names_the_key() {
        let mut alarm = MismatchAlarm::new("dapo");
        assert_eq!(alarm.check(&metrics(0.009)), None);
        let said = alarm.check(&metrics(0.05)).unwrap();
        assert!(said.contains("mismatch_kl is 0.050") && said.contains("algorithm.dapo.rollout_correction"), "{said}");
        assert_eq!(alarm.check(&metrics(0.5)), None);
    }

    #[test]
    fn other_policies_samples_without_weights_are_said_once() {
        let mut alarm = MismatchAlarm::new("grpo");
        assert_eq!(alarm.check_unweighted(&metrics(0.09), false), None);
        assert_eq!(alarm.check_unweighted(&metrics(0.7), true), None);
        let mut weighted = metrics(0.7);
        weighted.set("rollout_correction/weight", 0.9);
        assert_eq!(alarm.check_unweighted(&weighted, false), None);
        let said = alarm.check_unweighted(&metrics(0.7), false).unwrap();
        assert!(said.contains("0.70 nats") && said.contains("algorithm.grpo.rollout_correction"), "{said}");
        assert_eq!(alarm.check_unweighted(&metrics(0.7), false), None);
    }

    #[test]
    fn old_samples_of_which_little_is_left_are_said_once() {
        let share = |share: f64| {
            let mut metrics = Metrics::new();
            metrics.set("replay/effective_sample_share", share);
            metrics
        };
        let mut alarm = MismatchAlarm::new("remix");
        assert_eq!(alarm.check_old(&share(0.5)), None);
        assert!(alarm.check_old(&share(0.05)).unwrap().contains("effective share is 0.050"));
        assert_eq!(alarm.check_old(&share(0.05)), None);
    }

    #[test]
    fn what_is_corrected_is_not_complained_about() {
        let mut corrected = metrics(0.05);
        corrected.set("rollout_correction/weight", 1.1);
        let mut alarm = MismatchAlarm::new("grpo");
        assert_eq!(alarm.check(&corrected), None);
        assert_eq!(alarm.check(&Metrics::new()), None);
        assert!(alarm.check(&metrics(0.05)).is_some());
    }
}
