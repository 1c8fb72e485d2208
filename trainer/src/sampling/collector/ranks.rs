//! Sampling by all ranks: each draws its share of a job's prompts.

use super::job;
use crate::distributed::{Call, Team, garbled};
use model::Policy;
use rollout::collector::{Collector, Inline, Job, SamplingProgress};
use schema::Group;
use std::rc::Rc;

/// The collector of rank 0. A prompt's seed depends on its place in the job alone, so the samples are those that one
/// process would draw.
pub(crate) struct RankCollector {
    team: Rc<Team>,
    local: Inline,
}

impl RankCollector {
    pub(crate) fn new(team: Rc<Team>, local: Inline) -> Self {
        Self { team, local }
    }
}

impl Collector for RankCollector {
    fn publish(&mut self, policy: &Policy) -> rollout::Result<()> {
        self.local.publish(policy)
    }

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(SamplingProgress)) -> rollout::Result<Vec<Group>> {
        let each = job.prompts.len().div_ceil(self.team.size()).max(1);
        let orders: Vec<String> = job::cut(&job, each, 0).into_iter().map(|piece| piece.request).collect();
        let (first, step) = (orders.first().cloned(), job.position.step);
        self.team.send(&Call::Draw { step, orders })?;
        let own = draw(&mut self.local, first.as_ref(), step, progress)?;
        Ok(self.team.gather(own)?.into_iter().flatten().collect())
    }
}

/// Draws the part of one rank, if it has one.
pub(crate) fn draw(
    collector: &mut Inline,
    order: Option<&String>,
    step: u64,
    progress: &mut dyn FnMut(SamplingProgress),
) -> crate::Result<Vec<Group>> {
    let Some(order) = order else { return Ok(Vec::new()) };
    let job = job::parse(order, step, 0).map_err(garbled)?;
    Ok(collector.collect(job, progress)?)
}
