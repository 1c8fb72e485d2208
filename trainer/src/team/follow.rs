//! What a rank other than 0 does: whatever rank 0 says.

use super::{Call, Team, garbled, spread};
use crate::Result;
use crate::config::Config;
use crate::learner::Learner;
use crate::plan::Plan;
use crate::snapshot::Snapshot;
use rollout::collector::{Collector, Inline};
use std::rc::Rc;

/// Follows rank 0 until the run ends.
pub(crate) fn follow(config: &Config, team: &Rc<Team>) -> Result<()> {
    let Plan { mut policy, .. } = Plan::build(config)?;
    let mut learner = Learner::new(config, &policy)?;
    learner.join(Rc::clone(team));
    let mut collector = Inline::new(&policy, config.rollout.engine.clone());
    loop {
        match team.hear()? {
            Call::Restore { state, parts, rate_scale } => {
                let files =
                    parts.into_iter().map(|name| Ok((name, team.send_bytes(0, None)?))).collect::<Result<Vec<_>>>()?;
                let snapshot = Snapshot::of_files(serde_json::from_str(&state).map_err(garbled)?, &files)?;
                let state = learner.restore(snapshot, &mut policy)?;
                learner.scale_rate(rate_scale);
                policy.set_version(state.step);
                collector.publish(&policy)?;
                team.agree(state.step, &policy.version().hash)?;
            }
            Call::Draw { step, orders } => {
                let ours = orders.get(team.rank).map_or(&[][..], |orders| orders);
                let groups = spread::draw(&mut collector, ours, step, &mut |_| {})?;
                team.share_groups(&groups)?;
            }
            Call::Learn { step, groups } => {
                learner.update(step, &groups, &mut policy)?;
                policy.set_version(step);
                collector.publish(&policy)?;
                team.agree(step, &policy.version().hash)?;
            }
            Call::End => return Ok(()),
        }
    }
}
