//! Which old samples come back into training.
//!
//! There are two ways back. *Whole groups* ([`ReplaySampler::draw`]) are what a group-relative method replays: it
//! needs every sample of a prompt, and the advantages come from the group itself. *Single rows*
//! ([`ReplaySampler::fill`]) join a fresh group that teaches nothing, because all its rewards are alike, so that it
//! has something to compare with.
//!
//! Both draw numbers first and fetch the blobs of what was drawn alone, so a draw costs the same from a thousand
//! samples as from a million. Every row brings its provenance (run, step, policy, number) and its exact behaviour
//! log-probabilities, whoever drew it.
//!
//! | rule | whole groups | rows |
//! |---|---|---|
//! | [`Recent`] | of the last few steps, each equally likely | none |
//! | [`Uniform`] | of all earlier steps, each equally likely | none |
//! | [`Stratified`] | of all earlier steps, those with a signal | of another reward, same prompt |
//! | [`StalenessLimit`] | of another rule, with a limit on age | likewise |

mod ages;
mod config;
mod recent;
mod source;
mod staleness;
mod stratified;
mod uniform;

pub use ages::{Ages, metrics};
pub use config::{Config, StratifiedConfig, UniformConfig};
pub use recent::Recent;
pub use source::{Past, Source};
pub use staleness::StalenessLimit;
pub use stratified::Stratified;
pub use uniform::Uniform;

use crate::{Result, RunId, SampleId, Store, StoredGroup};
use schema::{GradedGroup, Group, PolicyVersion, Sample, SamplerSettings, Seed, Verdict};

/// A rule that picks old samples.
pub trait ReplaySampler: Send {
    /// Draws up to `count` different groups from `source`; fewer if the rule admits fewer. The draw depends on the
    /// seed and on the store's content alone: callers pass the branch of their run's tree that belongs to this step.
    fn draw_from(&self, source: &Source<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>>;

    /// Draws up to `count` different groups that `run` stored before step `now`.
    fn draw(&self, store: &Store, run: RunId, now: u64, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        self.draw_from(&Source::of(store, run, now), count, seed)
    }

    /// Rows for those of `groups` that carry no signal. A rule that replays whole groups alone has none.
    fn fill(&self, source: &Source<'_>, groups: &[GradedGroup], seed: &Seed) -> Result<Vec<Fill>> {
        let _ = (source, groups, seed);
        Ok(Vec::new())
    }
}

/// An old group that is to be trained on again.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedGroup {
    /// The group, with the run, the step and the policy that drew it.
    pub stored: StoredGroup,
    /// How many steps ago it was drawn; of another run, how many steps before that run's end.
    pub age: u64,
}

/// An old sample that is to be trained on again, beside samples of another group.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedSample {
    /// Its number.
    pub id: SampleId,
    /// The run that drew it.
    pub run: RunId,
    /// The step that drew it.
    pub step: u64,
    /// The policy whose log-probabilities stand beside its tokens.
    pub policy: PolicyVersion,
    /// How it was drawn.
    pub settings: SamplerSettings,
    /// How many steps ago it was drawn, as in [`ReplayedGroup`].
    pub age: u64,
    /// The sample.
    pub sample: Sample,
    /// What it was worth.
    pub verdict: Verdict,
}

/// What gives one group a signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Fill {
    /// The place of the group among those that were given.
    pub group: usize,
    /// Old samples of the same prompt whose reward differs from the group's; at least one.
    pub rows: Vec<ReplayedSample>,
}

impl Fill {
    /// The group with the old rows behind its own samples. The joined group bears the fresh group's policy; of the
    /// rows, the ratios need only the log-probabilities that stand beside their tokens.
    pub fn mixed(&self, fresh: &GradedGroup) -> GradedGroup {
        let old = || self.rows.iter();
        let samples = fresh.group().samples.iter().chain(old().map(|row| &row.sample)).cloned().collect();
        let verdicts = fresh.verdicts().iter().chain(old().map(|row| &row.verdict)).cloned().collect();
        let group = Group { samples, ..fresh.group().clone() };
        GradedGroup::new(group, verdicts).expect("each row brings its verdict")
    }
}
