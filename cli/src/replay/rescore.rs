//! `proxrl replay rescore`: a new reward over stored samples.

use crate::terminal::{Bar, note, thousands};
use anyhow::Result;
use std::path::PathBuf;
use store::{Store, Table};
use trainer::config::Config;
use trainer::grading::rescore::rescore;

/// The options of `rescore`.
#[derive(Debug, clap::Args)]
pub(super) struct Rescore {
    /// A config file; its [[reward]] tables grade, and the rest of it is ignored.
    #[arg(long, value_name = "CONFIG")]
    reward: PathBuf,
    /// Only this run, by name or number.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
}

impl Rescore {
    pub(super) fn run(&self, url: &str) -> Result<Table> {
        let rewards = Config::load_rewards(&self.reward)?;
        let store = Store::open_existing(url)?;
        let run = self.run.as_deref().map(|run| store.find_run(run)).transpose()?.map(|run| run.id);
        let bar = Bar::new("judging");
        let done = rescore(&store, &rewards, run, &mut |done, all| bar.samples(done, all))?;
        drop(bar);
        note(&format!(
            "judged {} samples again; ask with --scoring {} or --scoring latest",
            thousands(done.samples),
            done.scoring
        ));
        let mut table = Table::new(["scoring", "samples", "changed", "unjudged", "reward_before", "reward_after"]);
        table.push(vec![
            done.scoring.into(),
            (done.samples as i64).into(),
            (done.changed as i64).into(),
            (done.unjudged as i64).into(),
            done.reward_before.into(),
            done.reward_after.into(),
        ]);
        Ok(table)
    }
}
