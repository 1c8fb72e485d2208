//! Every earlier group, each equally likely.
//!
//! Groups are drawn without replacement: the first entries of a Fisher-Yates shuffle of their ranks, of which only the
//! moved entries are kept. The work grows with the number drawn, not with the number stored.

use super::source::{Shelf, ids};
use super::{ReplaySource, ReplayedGroup};
use crate::engine::Access;
use crate::error::Doing;
use crate::rows::read;
use crate::{Result, StoredGroup};
use schema::Seed;
use std::collections::HashMap;

const DOING: &str = "drawing old groups";

/// Draws up to `count` groups of the source uniformly, without replacement.
pub(super) fn draw(source: &ReplaySource<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
    let groups = source.store.with(async |connection| {
        let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
        let shelf = Shelf::of(&mut snapshot, &source.pasts).await?;
        let mut shuffle = Shuffle::new(shelf.len(), seed);
        let addresses: Vec<_> = shuffle.by_ref().take(count).map(|rank| shelf.address(rank)).collect();
        let ids = ids(&mut snapshot, &addresses).await?;
        read::groups(&mut snapshot, &ids, source.scoring).await
    })?;
    Ok(groups.into_iter().map(|stored| aged(source, stored)).collect())
}

pub(super) fn aged(source: &ReplaySource<'_>, stored: StoredGroup) -> ReplayedGroup {
    ReplayedGroup { age: source.age(stored.run, stored.step), stored }
}

/// An iterator over the numbers below `total` in a random order, every order equally likely.
pub(super) struct Shuffle<'a> {
    seed: &'a Seed,
    total: u64,
    index: u64,
    moved: HashMap<u64, u64>,
}

impl<'a> Shuffle<'a> {
    pub(super) fn new(total: u64, seed: &'a Seed) -> Self {
        Self { seed, total, index: 0, moved: HashMap::new() }
    }
}

impl Iterator for Shuffle<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let index = self.index;
        if index == self.total {
            return None;
        }
        self.index += 1;
        let other = index + self.seed.below(index, self.total - index);
        let here = self.moved.get(&index).copied().unwrap_or(index);
        Some(self.moved.insert(other, here).unwrap_or(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(total: u64, count: usize, seed: &Seed) -> Vec<u64> {
        Shuffle::new(total, seed).take(count).collect()
    }

    #[test]
    fn distinct_numbers_and_each_equally_likely() {
        let mut seen = [0; 5];
        for trial in 0..2_000 {
            let mut drawn = distinct(5, 2, &Seed::new(1).at(trial));
            for number in &drawn {
                seen[*number as usize] += 1;
            }
            drawn.dedup();
            assert_eq!(drawn.len(), 2);
        }
        // Each of five is drawn with probability 2/5: 800 of 2000 times, with a standard deviation of 22.
        assert!(seen.iter().all(|count| (700..900).contains(count)), "{seen:?}");
    }

    #[test]
    fn drawing_everything_gives_a_permutation() {
        let mut all = distinct(50, 99, &Seed::new(2));
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert!(distinct(0, 3, &Seed::new(2)).is_empty());
    }
}
