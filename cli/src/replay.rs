//! `proxrl replay`: asking the store what it holds.
//!
//! Everything here opens the store for reading alone, so it is safe beside a training run.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use store::{SampleId, Selection, Store, Table};

/// What `proxrl replay` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    question: Question,
    /// The store to ask.
    #[arg(long, global = true, value_name = "URL", default_value = "sqlite://proxrl.db")]
    store: String,
    /// How to write the answer.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// List the runs: status, steps, samples, mean reward of the first and the last step.
    Ls,
    /// Show all about one sample (a number), or about one run (its name, or `run:` and its number).
    Show {
        /// A sample's number, a run's name, or `run:` and a run's number.
        id: String,
    },
    /// Sum up each policy version: samples, tokens, reward, length, share cut off, share of groups without signal.
    Stats {
        /// Only this run, by name or number.
        #[arg(long, value_name = "NAME")]
        run: Option<String>,
    },
    /// Answer a question in SQL. `sample_view` and `group_view` put the tables together.
    #[command(after_help = "Example: proxrl replay query \
        \"SELECT question, text, reward FROM sample_view ORDER BY reward DESC LIMIT 5\"")]
    Query {
        /// A single statement that reads.
        sql: String,
    },
    /// Write samples to a file: JSON lines, CSV or Parquet, by its extension.
    Export {
        /// The file to write: .jsonl, .csv or .parquet.
        file: PathBuf,
        /// Only this run, by name or number.
        #[arg(long, value_name = "NAME")]
        run: Option<String>,
        /// Only samples for which this is true, as in "reward > 0.5": SQL over the columns of `sample_view`.
        #[arg(long = "where", value_name = "SQL")]
        condition: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Aligned columns, long cells cut.
    Table,
    /// An array of objects.
    Json,
    /// Comma-separated values.
    Csv,
}

/// Answers one question.
pub(crate) fn run(args: &Args) -> Result<()> {
    let store = Store::open_read_only(&args.store)?;
    let run_id = |run: &Option<String>| run.as_ref().map(|run| store.find_run(run).map(|run| run.id)).transpose();
    match &args.question {
        Question::Ls => print(&render(&store.list()?, args.format)),
        Question::Show { id } => print(&render_record(&show(&store, id)?, args.format)),
        Question::Stats { run } => print(&render(&store.stats(run_id(run)?)?, args.format)),
        Question::Query { sql } => print(&render(&store.query(sql)?, args.format)),
        Question::Export { file, run, condition } => {
            let selection = Selection { run: run_id(run)?, condition: condition.clone() };
            let samples = store.export(file, &selection)?;
            let mut summary = Table::new(["file", "samples"]);
            summary.push(vec![file.to_string_lossy().into_owned().into(), (samples as i64).into()]);
            print(&render(&summary, args.format))
        }
    }
}

fn show(store: &Store, id: &str) -> Result<Table> {
    if let Ok(sample) = id.parse() {
        return Ok(store.show_sample(SampleId(sample))?);
    }
    let run = store.find_run(id.strip_prefix("run:").unwrap_or(id))?;
    Ok(store.show_run(run.id)?)
}

fn render(table: &Table, format: Format) -> String {
    match format {
        Format::Table => table.to_text(),
        Format::Json => table.to_json(),
        Format::Csv => table.to_csv(),
    }
}

/// One row with much to say reads better from top to bottom.
fn render_record(table: &Table, format: Format) -> String {
    match format {
        Format::Table => table.to_record_text(),
        other => render(table, other),
    }
}

/// Writes an answer. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
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
        let Question::Export { condition, run, .. } = args.question else { panic!("{:?}", args.question) };
        assert_eq!((condition.as_deref(), run), (Some("reward > 0"), None));
    }

    #[test]
    fn a_missing_store_is_named() {
        let args = Cli::try_parse_from(["x", "ls", "--store", "sqlite:///none/proxrl.db"]).unwrap().replay;
        let error = run(&args).unwrap_err();
        assert!(error.to_string().starts_with("there is no store at /none/proxrl.db;"), "{error}");
        assert!(error.downcast_ref::<store::Error>().unwrap().is_input());
    }
}
