//! Says, once, that the sampler and the trainer compute different things.
//!
//! `mismatch_kl` of fresh samples is rounding: 1e-6 and less in f32, up to some 1e-3 in bf16. A policy gradient whose
//! samples come from another policy than the one it moves is biased, and such a run can collapse long after the mismatch
//! began (Yao et al. 2025). A rollout correction weights tokens by the ratio of the two.

use schema::Metrics;

/// Fresh samples further away than this, in nats per token, are worth a sentence.
const LIMIT: f64 = 1e-2;

/// Watches the mismatch of fresh samples.
#[derive(Debug)]
pub(super) struct MismatchAlarm {
    algorithm: &'static str,
    raised: bool,
}

impl MismatchAlarm {
    pub(super) fn new(algorithm: &'static str) -> Self {
        Self { algorithm, raised: false }
    }

    /// What to tell the user after a step on fresh samples, the first time that there is something to tell. Nothing if
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
    fn what_is_corrected_is_not_complained_about() {
        let mut corrected = metrics(0.05);
        corrected.set("rollout_correction/weight", 1.1);
        let mut alarm = MismatchAlarm::new("grpo");
        assert_eq!(alarm.check(&corrected), None);
        assert_eq!(alarm.check(&Metrics::new()), None);
        assert!(alarm.check(&metrics(0.05)).is_some());
    }
}
