//! What moves between steps besides the policy: the beginning of an iteration, and the average of a run.
//!
//! Methods in iterations learn against their own beginning. At the end of each but the last the next beginning is found
//! beyond the end (see `[algorithm.apo]`), the reference becomes a copy of it, and the optimizer forgets: its moments
//! belong to factors that the cut back to the working rank has replaced.

use super::Learner;
use crate::algorithm::{Iterations, MovingAverage};
use crate::checkpoint::restore::alike;
use crate::optimizer::OptimizerConfig;
use crate::{Error, Result};
use model::Policy;
use model::adapter::Adapter;
use schema::{GradedGroup, Metrics};

/// After this many halvings the extrapolation is given up.
const HALVINGS: u32 = 4;

/// Where the iterations of a run are.
pub(super) struct Progress {
    needs: Iterations,
    /// The end of the iteration before, `p̂_t`; at first the policy that the run began with.
    pub(super) hat: Adapter,
    optimizer: OptimizerConfig,
}

impl Progress {
    pub(super) fn new(needs: Iterations, policy: &Policy, optimizer: &OptimizerConfig) -> Self {
        Self { needs, hat: policy.adapter().copy(), optimizer: optimizer.clone() }
    }
}

/// A moving average of the policy's adapter.
pub(super) struct Average {
    pub(super) adapter: Adapter,
    follows: MovingAverage,
}

impl Average {
    pub(super) fn new(policy: &Policy, follows: MovingAverage) -> Self {
        Self { adapter: policy.adapter().copy(), follows }
    }

    /// Takes over its share of the policy as it is after `step`, if it is time to.
    pub(super) fn follow(&self, step: u64, policy: &Policy) -> Result<()> {
        if step.is_multiple_of(self.follows.every) {
            self.adapter.mix(policy.adapter(), self.follows.share)?;
        }
        Ok(())
    }
}

impl Learner {
    /// The policy that a run would end with now: the trained one, or the end of the iteration before where the next has just
    /// begun.
    pub(crate) fn shipped(&self, policy: &Policy) -> Policy {
        let at_beginning = |_: &&Progress| alike(policy.adapter().tensors(), self.reference.tensors());
        let adapter =
            self.iterations.as_ref().filter(at_beginning).map_or_else(|| policy.adapter(), |progress| &progress.hat);
        policy.with_adapter(adapter.share())
    }

    /// At the end of an iteration that is not the last: finds the beginning of the next one. `groups` are those of the
    /// iteration's last step.
    pub(super) fn end_iteration(&mut self, step: u64, groups: &[GradedGroup], policy: &Policy) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        let Some(progress) = &self.iterations else { return Ok(metrics) };
        if !step.is_multiple_of(progress.needs.steps) || step >= self.steps {
            return Ok(metrics);
        }
        let end = policy.adapter().copy();
        if progress.needs.alpha > 0.0 {
            metrics = self.extrapolate(progress, &end, groups, policy)?;
        }
        let fresh = progress.optimizer.build()?;
        self.reference.overwrite(policy.adapter())?;
        self.optimizer = fresh;
        if let Some(progress) = &mut self.iterations {
            progress.hat = end;
        }
        Ok(metrics)
    }

    /// Moves the policy beyond the end of the iteration; less far while its loss is too much worse for it.
    fn extrapolate(
        &self,
        progress: &Progress,
        end: &Adapter,
        groups: &[GradedGroup],
        policy: &Policy,
    ) -> Result<Metrics> {
        let Iterations { alpha, max_loss_increase, .. } = progress.needs;
        let guarded = max_loss_increase > 0.0;
        let loss = || Ok::<_, Error>(self.measure(groups, policy)?.get("loss").unwrap_or_default());
        let before = if guarded { loss()? } else { 0.0 };
        let rank = end.layers().map(|layer| layer.a.size()[0]).max().unwrap_or_default();
        let mut metrics = Metrics::new();
        for halvings in 0..=HALVINGS {
            let alpha = alpha * 0.5f64.powi(halvings as i32);
            let (beginning, error) = end.extrapolated(&progress.hat, alpha)?.compressed(rank)?;
            policy.adapter().overwrite(&beginning)?;
            let increase = if guarded { loss()? - before } else { 0.0 };
            metrics.set("apo/alpha", alpha);
            metrics.set("apo/truncation_error", error);
            if guarded {
                metrics.set("apo/loss_increase", increase);
            }
            if increase <= max_loss_increase || !guarded {
                return Ok(metrics);
            }
        }
        policy.adapter().overwrite(end)?;
        metrics.set("apo/alpha", 0.0);
        metrics.set("apo/truncation_error", 0.0);
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests;
