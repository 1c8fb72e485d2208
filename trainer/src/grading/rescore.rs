//! A new scoring of stored samples, without generation.
//!
//! Rewards and the store do not depend on each other; they meet here. Every stored group is graded like a fresh one,
//! and the result becomes a scoring of its own beside the one that training used, so that a corrected or a second
//! reward can be compared on exactly the same samples.

use crate::grading::RewardNetwork;
use crate::{Error, Result};
use reward::{Config, ModelConfig, Reward};
use schema::GradedGroup;
use serde::Serialize;
use store::{GroupId, RunId, Store, StoredGroup};

/// Groups that are held in memory and written in one transaction.
const GROUPS: usize = 64;

/// Tokens of one forward pass of a reward model.
const MICRO_BATCH_TOKENS: usize = 2048;

/// Summary of a new scoring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescored {
    /// Number of the scoring.
    pub scoring: i64,
    /// Number of graded samples.
    pub samples: u64,
    /// Number of samples with another reward than in training, including samples with a reward in only one of the two.
    pub changed: u64,
    /// Number of ungraded samples in this scoring.
    pub unjudged: u64,
    /// Mean reward in training; `None` if there were no rewards.
    pub reward_before: Option<f64>,
    /// Mean reward of the new scoring; `None` if no sample has one.
    pub reward_after: Option<f64>,
}

/// Grades every stored sample of a run (of all runs for `None`) by these rewards; `progress` receives the number of
/// samples done so far, and of all. If it fails half-way, the grades so far stay under the scoring's number, unfinished.
///
/// # Errors
/// If a reward cannot be built, there are no samples, a reward function fails as a whole, or the store cannot be read
/// or written.
pub fn rescore(
    store: &Store,
    rewards: &[Config],
    run: Option<RunId>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Rescored> {
    let mut reward = reward::build_with(rewards, &mut open_model)?;
    let mut groups = store.groups_after(run, GroupId::FIRST, GROUPS)?;
    if groups.is_empty() {
        return Err(Error::input("there are no samples to judge; `proxrl replay ls` shows what each run has"));
    }
    let all = store.count_samples(run)?;
    let scoring = store.begin_scoring(run, &tables(rewards)?)?;
    let mut totals = Totals::default();
    while let Some(last) = groups.last().map(|group| group.id) {
        let fresh = groups.iter().map(|stored| stored.scored.group().clone()).collect();
        let scored = reward.grade(fresh)?;
        totals.add(&groups, &scored);
        let rows: Vec<_> = groups.into_iter().map(|stored| stored.sample_ids).zip(scored).collect();
        store.add_scores(scoring, &rows)?;
        progress(totals.samples, all);
        groups = store.groups_after(run, last, GROUPS)?;
    }
    store.finish_scoring(scoring)?;
    Ok(totals.result(scoring))
}

/// Opens a reward model by itself, without a policy beside it.
fn open_model(model: &ModelConfig) -> reward::Result<Box<dyn Reward>> {
    let opened = RewardNetwork::alone(&model.path, MICRO_BATCH_TOKENS).map_err(|error| match error {
        error if error.is_input() => reward::Error::input(error.to_string()),
        error => reward::Error::Runtime(error.to_string()),
    })?;
    Ok(Box::new(opened))
}

/// Serialises the `[[reward]]` tables as TOML.
fn tables(rewards: &[Config]) -> Result<String> {
    #[derive(Serialize)]
    struct Tables<'a> {
        reward: &'a [Config],
    }
    toml::to_string_pretty(&Tables { reward: rewards })
        .map_err(|error| Error::runtime(format!("cannot write the rewards' config: {error}")))
}

#[derive(Debug, Default)]
struct Totals {
    samples: u64,
    changed: u64,
    before: (f64, u64),
    after: (f64, u64),
}

impl Totals {
    fn add(&mut self, groups: &[StoredGroup], scored: &[GradedGroup]) {
        for (old, new) in groups.iter().zip(scored) {
            for (before, after) in old.scored.rewards().into_iter().zip(new.rewards()) {
                self.samples += 1;
                self.changed += u64::from(before != after);
                for (sum, reward) in [(&mut self.before, before), (&mut self.after, after)] {
                    *sum = (sum.0 + f64::from(reward.unwrap_or(0.0)), sum.1 + u64::from(reward.is_some()));
                }
            }
        }
    }

    fn result(&self, scoring: i64) -> Rescored {
        let mean = |(sum, count): (f64, u64)| (count > 0).then(|| sum / count as f64);
        Rescored {
            scoring,
            samples: self.samples,
            changed: self.changed,
            unjudged: self.samples - self.after.1,
            reward_before: mean(self.before),
            reward_after: mean(self.after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;
    use std::time::SystemTime;
    use store::{NewRun, Scoring};

    #[test]
    fn stored_samples_get_a_second_judgement() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite://{}", folder.path().join("s.db").display())).unwrap();
        let new = NewRun {
            name: "old".into(),
            config: String::new(),
            program_version: "0".into(),
            out_dir: "runs/old".into(),
            model_hash: "m".into(),
            started_at: SystemTime::UNIX_EPOCH,
        };
        let run = store.begin_run(&new).unwrap();
        // 70 groups take two transactions. Sample i of a group has i + 1 tokens.
        store.append_step(run, 1, &scored(&[&[0.0, 1.0][..]; 70]), None).unwrap();
        let length: Vec<Config> = vec![toml::from_str("name = \"brief\"\nrule.length = { target = 1 }").unwrap()];
        let mut heard = Vec::new();
        let again = rescore(&store, &length, Some(run), &mut |done, all| heard.push((done, all))).unwrap();
        assert_eq!(heard, [(128, 140), (140, 140)]);
        assert_eq!((again.scoring, again.samples, again.unjudged), (1, 140, 0));
        assert_eq!(again.reward_before, Some(0.5));
        let latest = store.judged_by(Scoring::Latest).unwrap();
        let group = &latest.groups(&[GroupId(70)]).unwrap()[0].scored;
        // One token is the target; two are as far from it as the penalty goes.
        assert_eq!(group.rewards(), [Some(0.0), Some(-1.0)]);
        assert_eq!((again.changed, again.reward_after), (70, Some(-0.5)));
        assert_eq!(group.verdicts()[0].rewards[0].name, "brief");
        let config = latest.query("SELECT config FROM scorings").unwrap();
        assert!(format!("{config:?}").contains("[[reward]]"), "{config:?}");
    }

    #[test]
    fn an_empty_store_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite://{}", folder.path().join("s.db").display())).unwrap();
        let rule: Vec<Config> = vec![toml::from_str("rule.exact_match = {}").unwrap()];
        assert!(rescore(&store, &rule, None, &mut |_, _| {}).unwrap_err().is_input());
        assert!(store.scorings().unwrap().rows.is_empty());
    }
}
