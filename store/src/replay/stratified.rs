//! Groups whose rewards differ, each equally likely.
//!
//! A group-relative method learns from differences within a group, so a group of equal rewards teaches nothing, and
//! late in a run most groups are like that. This rule draws only groups whose greatest and smallest reward are more
//! than `min_difference` apart.
//!
//! Groups are tried in a random order until enough of them differ. Where almost none does, the search ends after
//! [`Stratified::TRIES_PER_GROUP`] tries for each group asked for, so that a draw stays quick.

use super::source::{Shelf, ids};
use super::uniform::{Shuffle, aged};
use super::{REWARD, ReplaySource, ReplayedGroup};
use crate::engine::{Access, Connection};
use crate::error::Doing;
use crate::rows::read::{self, fetch_in};
use crate::{Error, Result};
use schema::Seed;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const DOING: &str = "drawing groups whose rewards differ";

const SPREADS: &str = "SELECT group_id, MAX(reward) - MIN(reward) AS spread FROM rewarded GROUP BY group_id";

/// `sampler = { stratified = { … } }`: groups whose rewards differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stratified {
    /// Groups whose rewards are no further apart than this stay in the store.
    pub min_difference: f64,
}

impl Stratified {
    /// Groups that are tried for each that is asked for.
    pub const TRIES_PER_GROUP: usize = 32;

    pub(super) fn check(self) -> Result<()> {
        at_least_zero("replay.sampler.stratified.min_difference", self.min_difference)
    }

    /// Draws up to `count` different groups whose rewards differ.
    pub(super) fn draw(self, source: &ReplaySource<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        let groups = source.store.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let shelf = Shelf::of(&mut snapshot, &source.pasts).await?;
            let mut ranks = Shuffle::new(shelf.len(), seed).take(count.saturating_mul(Self::TRIES_PER_GROUP));
            let mut chosen = Vec::with_capacity(count);
            while chosen.len() < count {
                let addresses: Vec<_> =
                    ranks.by_ref().take(read::GROUPS_AT_ONCE).map(|rank| shelf.address(rank)).collect();
                if addresses.is_empty() {
                    break;
                }
                let tried = ids(&mut snapshot, &addresses).await?;
                chosen.extend(self.with_signal(&mut snapshot, source, &tried).await?);
            }
            chosen.truncate(count);
            read::groups(&mut snapshot, &chosen, source.scoring).await
        })?;
        Ok(groups.into_iter().map(|stored| aged(source, stored)).collect())
    }

    /// Selects the groups whose rewards differ, in their order.
    async fn with_signal(
        &self,
        connection: &mut Connection,
        source: &ReplaySource<'_>,
        ids: &[i64],
    ) -> Result<Vec<i64>> {
        let reward = source.scoring.applied_to(REWARD);
        let rewarded = format!(
            "WITH rewarded AS MATERIALIZED (SELECT s.group_id, {reward} AS reward FROM samples s WHERE s.group_id IN "
        );
        let mut spreads: HashMap<i64, f64> = HashMap::new();
        for chunk in ids.chunks(read::GROUPS_AT_ONCE) {
            for row in fetch_in(connection, &rewarded, chunk, &format!(") {SPREADS}")).await? {
                let spread: Option<f64> = row.try_get("spread").doing(DOING)?;
                spreads.insert(row.try_get("group_id").doing(DOING)?, spread.unwrap_or(0.0));
            }
        }
        let differs = |id: &i64| spreads.get(id).is_some_and(|spread| *spread > self.min_difference);
        Ok(ids.iter().copied().filter(differs).collect())
    }
}

/// Refuses a setting that is negative or not finite.
///
/// # Errors
/// [`Error::Setting`] if it is.
pub(super) fn at_least_zero(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::Setting(format!("{key} must be 0 or more, but is {value}")))
}
