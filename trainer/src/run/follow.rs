//! The ranks other than 0: they execute the calls of rank 0.

use super::plan;
use crate::Result;
use crate::checkpoint::Snapshot;
use crate::config::Config;
use crate::distributed::{Call, Team};
use crate::learner::Learner;
use crate::sampling::collector::ranks;
use rollout::collector::{Collector, Inline};
use std::rc::Rc;

/// Executes the calls of rank 0 until the run ends.
///
/// # Errors
/// If rank 0 is gone, or this rank holds another policy than it.
pub(crate) fn follow(config: &Config, team: &Rc<Team>) -> Result<()> {
    let mut policy = plan::policy(config)?;
    let mut learner = Learner::new(config, &policy)?;
    learner.join(Rc::clone(team));
    let mut collector = Inline::new(&policy, config.rollout.engine.clone());
    loop {
        let step = match team.get(0)? {
            Call::Restore { state, parts } => {
                let files = parts.into_iter().map(|name| Ok((name, team.get_bytes(0)?))).collect::<Result<Vec<_>>>()?;
                let state = learner.restore(Snapshot::of_files(*state, &files)?, &mut policy)?;
                learner.scale_rate(state.guard.rate_scale);
                state.step
            }
            Call::Draw { step, orders } => {
                let own = ranks::draw(&mut collector, orders.get(team.rank()), step, &mut |_| {})?;
                team.gather(own)?;
                continue;
            }
            Call::Learn { step, collected } => {
                learner.update(step, &collected, &mut policy)?;
                step
            }
            Call::End => return Ok(()),
        };
        policy.set_version(step);
        collector.publish(&policy)?;
        team.agree(step, &policy.version().hash)?;
    }
}
