//! `proxrl replay`: queries and maintenance of the sample store.
//!
//! Questions open the store for reading alone, so they are safe beside a training run. Four verbs write: `prune`,
//! `migrate`, `rescore` and `import`.

mod format;
mod import;
mod maintain;
mod rescore;

use anyhow::Result;
use clap::Subcommand;
use format::Format;
use std::path::PathBuf;
use std::process::ExitCode;
use store::{End, Paired, Pairing, Ranking, RunId, SampleId, Scoring, Selection, Store, Table};

/// The options of `proxrl replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    question: Question,
    /// The store to query: `sqlite://FILE` or `postgres://USER@HOST/DATABASE`.
    #[arg(long, global = true, value_name = "URL", default_value = "sqlite://proxrl.db")]
    store: String,
    /// The format of the answer.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// The choice of samples and of their rewards.
#[derive(Debug, clap::Args)]
struct Scope {
    /// Only this run, by name or number.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    #[command(flatten)]
    judged: Judged,
}

/// The choice of rewards.
#[derive(Debug, clap::Args)]
struct Judged {
    /// The rewards that count: `training`, `latest`, or the number of a scoring.
    #[arg(long, value_name = "SCORING", default_value_t = Scoring::Training)]
    scoring: Scoring,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// List the runs: status, steps, samples, mean reward of the first and the last step.
    Ls,
    /// Show everything about one sample (a number), or about one run (its name, or `run:` and its number).
    Show {
        /// A sample's number, a run's name, or `run:` and a run's number.
        id: String,
        #[command(flatten)]
        judged: Judged,
    },
    /// Summarise policy versions: samples, tokens, age, reward, length, share cut off, share of groups without signal.
    Stats {
        #[command(flatten)]
        scope: Scope,
    },
    /// Show the samples with the greatest rewards.
    Top(Ends),
    /// Show the samples with the smallest rewards.
    Bottom(Ends),
    /// Compare two runs: config keys that differ, samples at the start and at the end, metrics.
    Diff {
        /// One run, by name or number.
        first: String,
        /// The other.
        second: String,
        #[command(flatten)]
        judged: Judged,
    },
    /// Search for signs of reward hacking: length, repetition, duplicates, answer format, truncation, failing graders.
    Audit {
        /// The run, by name or number; the newest run by default.
        #[arg(long, value_name = "NAME")]
        run: Option<String>,
        #[command(flatten)]
        judged: Judged,
    },
    /// Run an SQL query. `sample_view` and `group_view` join the tables.
    #[command(after_help = "Example: proxrl replay query \
        \"SELECT question, text, reward FROM sample_view ORDER BY reward DESC LIMIT 5\"")]
    Query {
        /// A single read-only statement.
        // A statement may begin with a comment, which begins with two hyphens.
        #[arg(allow_hyphen_values = true)]
        sql: String,
        #[command(flatten)]
        judged: Judged,
    },
    /// Write samples to a file: JSON lines, CSV or Parquet, by its extension.
    Export {
        /// The file to write: .jsonl, .csv or .parquet.
        file: PathBuf,
        #[command(flatten)]
        scope: Scope,
        /// Only samples for which this is true, as in "reward > 0.5": SQL over the columns of `sample_view`.
        #[arg(long = "where", value_name = "SQL")]
        condition: Option<String>,
    },
    /// Write preference pairs: a better and a worse answer to each prompt.
    Pairs(Pairs),
    /// List the scorings that `rescore` made.
    Scorings,
    /// Check every page, reference, length, hash and count; exit code 1 and the rows' names if something is wrong.
    Verify,
    /// Remove the samples of old steps, except those that a run still needs, and report the freed space.
    Prune(maintain::Prune),
    /// Copy a whole store into an empty one, such as a file into a PostgreSQL database, and compare the two.
    Migrate(maintain::Migrate),
    /// Grade stored samples again with the [[reward]] tables of a config, as a new scoring.
    Rescore(rescore::Rescore),
    /// Import completions from elsewhere, with their log-probabilities under a model of yours.
    Import(import::Import),
}

/// The options of `pairs`.
#[derive(Debug, clap::Args)]
struct Pairs {
    /// The file to write: JSON lines, .jsonl.
    file: PathBuf,
    #[command(flatten)]
    scope: Scope,
    /// Only samples for which this is true, as in "finish = 'eos'": SQL over the columns of `sample_view`.
    #[arg(long = "where", value_name = "SQL")]
    condition: Option<String>,
    /// The most pairs that one prompt gives: the best answer with the worst, then the second best with the second worst.
    #[arg(long, value_name = "N", default_value_t = 1)]
    per_prompt: usize,
    /// Write only pairs whose rewards differ by more than this.
    #[arg(long, value_name = "REWARD", default_value_t = 0.0)]
    margin: f64,
}

/// The options of `top` and `bottom`.
#[derive(Debug, clap::Args)]
struct Ends {
    #[command(flatten)]
    scope: Scope,
    /// Rank by this part of the reward instead of the sum.
    #[arg(long, value_name = "NAME")]
    part: Option<String>,
    /// Number of samples.
    #[arg(short = 'n', long, default_value_t = 10)]
    count: usize,
}

/// Runs one verb of `replay` and prints its answer.
///
/// # Errors
///
/// Fails if the store or a file cannot be opened, the query is refused, or the answer cannot be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (url, format) = (args.store.as_str(), args.format);
    let text = match &args.question {
        Question::Ls => format.render(&open(url)?.list()?)?,
        Question::Show { id, judged } => format.render_record(&show(&judged.open(url)?, id)?)?,
        Question::Stats { scope } => {
            let (store, run) = scope.open(url)?;
            format.render(&store.stats(run)?)?
        }
        Question::Top(ends) => format.render(&ends.rank(url, End::Top)?)?,
        Question::Bottom(ends) => format.render(&ends.rank(url, End::Bottom)?)?,
        Question::Diff { first, second, judged } => {
            let store = judged.open(url)?;
            format.render(&store.diff(store.find_run(first)?.id, store.find_run(second)?.id)?)?
        }
        Question::Audit { run, judged } => {
            let store = judged.open(url)?;
            format.render_record(&store.audit(newest(&store, run.as_deref())?)?)?
        }
        Question::Query { sql, judged } => format.render(&judged.open(url)?.query(sql)?)?,
        Question::Export { file, scope, condition } => {
            let (store, run) = scope.open(url)?;
            let samples = store.export(file, &Selection { run, condition: condition.clone() })?;
            let mut summary = Table::new(["file", "samples"]);
            summary.push(vec![file.to_string_lossy().into_owned().into(), (samples as i64).into()]);
            format.render(&summary)?
        }
        Question::Pairs(pairs) => format.render(&pairs.write(url)?)?,
        Question::Scorings => format.render(&open(url)?.scorings()?)?,
        Question::Verify => return maintain::verify(&open(url)?, format),
        Question::Prune(prune) => format.render(&prune.run(url)?)?,
        Question::Migrate(migrate) => format.render(&migrate.run()?)?,
        Question::Rescore(rescore) => format.render(&rescore.run(url)?)?,
        Question::Import(import) => format.render(&import.run(url)?)?,
    };
    crate::terminal::answer(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn open(url: &str) -> Result<Store> {
    Ok(Store::open_read_only(url)?)
}

impl Judged {
    fn open(&self, url: &str) -> Result<Store> {
        let store = open(url)?;
        // Without a choice the store's own views answer as they are.
        Ok(if self.scoring == Scoring::Training { store } else { store.judged_by(self.scoring)? })
    }
}

impl Scope {
    fn open(&self, url: &str) -> Result<(Store, Option<RunId>)> {
        let store = self.judged.open(url)?;
        let run = self.run.as_deref().map(|run| store.find_run(run)).transpose()?.map(|run| run.id);
        Ok((store, run))
    }
}

impl Pairs {
    fn write(&self, url: &str) -> Result<Table> {
        let (store, run) = self.scope.open(url)?;
        let samples = Selection { run, condition: self.condition.clone() };
        let pairing = Pairing { samples, per_prompt: self.per_prompt, margin: self.margin };
        let Paired { pairs, prompts, undecided } = store.export_pairs(&self.file, &pairing)?;
        let mut summary = Table::new(["file", "pairs", "prompts", "prompts_without"]);
        let numbers = [pairs, prompts, undecided].map(|number| (number as i64).into());
        summary.push([self.file.to_string_lossy().into_owned().into()].into_iter().chain(numbers).collect());
        Ok(summary)
    }
}

impl Ends {
    fn rank(&self, url: &str, end: End) -> Result<Table> {
        let (store, run) = self.scope.open(url)?;
        Ok(store.rank(&Ranking { run, part: self.part.clone(), end, count: self.count })?)
    }
}

/// The run of this name, or the newest one.
fn newest(store: &Store, name: Option<&str>) -> Result<RunId> {
    if let Some(name) = name {
        return Ok(store.find_run(name)?.id);
    }
    let newest = store.runs()?.last().map(|run| run.id);
    newest.ok_or_else(|| crate::terminal::Usage("the store holds no run yet".into()).into())
}

fn show(store: &Store, id: &str) -> Result<Table> {
    if let Ok(sample) = id.parse() {
        return Ok(store.show_sample(SampleId(sample))?);
    }
    let run = store.find_run(id.strip_prefix("run:").unwrap_or(id))?;
    Ok(store.show_run(run.id)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        replay: Args,
    }

    #[test]
    fn global_options_may_follow_the_question() {
        let words = ["x", "export", "out.csv", "--where", "reward > 0", "--format", "json", "--store", "sqlite://a.db"];
        let args = Cli::try_parse_from(words).unwrap().replay;
        assert_eq!(args.store, "sqlite://a.db");
        assert!(matches!(args.format, Format::Json));
        let Question::Export { condition, scope, .. } = args.question else { panic!("{:?}", args.question) };
        assert_eq!(
            (condition.as_deref(), scope.run, scope.judged.scoring),
            (Some("reward > 0"), None, Scoring::Training)
        );
    }

    #[test]
    fn a_missing_store_is_named() {
        let args = Cli::try_parse_from(["x", "ls", "--store", "sqlite:///none/proxrl.db"]).unwrap().replay;
        let error = run(&args).unwrap_err();
        assert!(error.to_string().starts_with("there is no store at /none/proxrl.db;"), "{error}");
        assert!(error.downcast_ref::<store::Error>().unwrap().is_input());
    }

    #[test]
    fn a_scoring_is_a_word_or_a_number() {
        let scoring = |word: &str| {
            let args = Cli::try_parse_from(["x", "top", "--scoring", word]);
            args.map(|args| {
                if let Question::Top(ends) = args.replay.question { Some(ends.scope.judged.scoring) } else { None }
            })
        };
        assert_eq!(scoring("latest").unwrap(), Some(Scoring::Latest));
        assert_eq!(scoring("2").unwrap(), Some(Scoring::Number(2)));
        assert!(scoring("best").is_err());
    }
}
