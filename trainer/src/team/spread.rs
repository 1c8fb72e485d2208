//! Sampling by all ranks: each draws its share of a job's prompts.

use super::Team;
use crate::remote::order;
use model::Policy;
use rollout::collector::{Collector, Inline, Job, Progress};
use schema::Group;
use std::rc::Rc;

/// The collector of rank 0. A prompt's seed depends on its place in the job alone, so the samples are those that one
/// process would draw.
pub(crate) struct Spread {
    team: Rc<Team>,
    local: Inline,
}

impl Spread {
    pub(crate) fn new(team: Rc<Team>, local: Inline) -> Self {
        Self { team, local }
    }
}

impl Collector for Spread {
    fn publish(&mut self, policy: &Policy) -> rollout::Result<()> {
        self.local.publish(policy)
    }

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(Progress)) -> rollout::Result<Vec<Group>> {
        let each = job.prompts.len().div_ceil(self.team.size()).max(1);
        let mut orders: Vec<Vec<String>> =
            order::cut(&job, each, 0).into_iter().map(|piece| vec![piece.request]).collect();
        orders.resize(self.team.size(), Vec::new());
        let (ours, step) = (orders[0].clone(), job.address.step);
        self.team.draw(step, orders)?;
        let own = draw(&mut self.local, &ours, step, progress)?;
        Ok(self.team.share_groups(&own)?)
    }
}

/// Draws the pieces of one rank.
pub(super) fn draw(
    collector: &mut Inline,
    orders: &[String],
    step: u64,
    progress: &mut dyn FnMut(Progress),
) -> crate::Result<Vec<Group>> {
    let mut groups = Vec::new();
    for order in orders {
        let job = order::parse(order, step, 0).map_err(super::garbled)?;
        groups.extend(collector.collect(job, progress)?);
    }
    Ok(groups)
}
