//! `proxrl replay import`: completions from elsewhere.

use crate::terminal::Bar;
use anyhow::Result;
use std::path::PathBuf;
use store::{Store, Table};
use trainer::config::Config;
use trainer::import::import;

/// The options of `import`.
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The file: .jsonl or .parquet, with the columns `prompt` and `completion` (or `completions`), and perhaps
    /// `answer`, `reward` (`rewards`) and `finish`; all others become metadata.
    file: PathBuf,
    /// The model that computes the log-probabilities: a folder, a .gguf file, a name in the cache or a hub id.
    #[arg(long, value_name = "PATH", required_unless_present = "config", conflicts_with = "config")]
    model: Option<String>,
    /// A config whose [model] table names the model instead.
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// The name of the run; the file's name by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The column with the prompt.
    #[arg(long, value_name = "NAME", default_value = "prompt")]
    prompt_column: String,
    /// The column with the answer, with dots into nested ones.
    #[arg(long, value_name = "NAME")]
    answer_column: Option<String>,
    /// The form of a prompt that is plain text.
    #[arg(long = "as", value_enum, default_value_t = Form::Chat)]
    form: Form,
    /// The temperature of the log-probabilities.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Tokens of one forward pass: the memory it takes.
    #[arg(long, default_value_t = 2048)]
    micro_batch_tokens: usize,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Form {
    /// One user turn, in the model's chat template.
    Chat,
    /// Raw text.
    Text,
}

impl Import {
    pub(super) fn run(&self, url: &str) -> Result<Table> {
        let model = match (&self.config, &self.model) {
            (Some(config), _) => Config::load(config, &[])?.model,
            (None, path) => model::Config { path: path.clone().unwrap_or_default(), ..model::Config::default() },
        };
        let stem = self.file.file_stem().map_or_else(|| "import".into(), |stem| stem.to_string_lossy());
        let what = trainer::import::Import {
            file: &self.file,
            model: &model,
            name: self.name.as_deref().unwrap_or(&stem),
            prompt_column: &self.prompt_column,
            answer_column: self.answer_column.as_deref(),
            form: match self.form {
                Form::Chat => rollout::prompts::Form::Chat,
                Form::Text => rollout::prompts::Form::Text,
            },
            temperature: self.temperature,
            micro_batch_tokens: self.micro_batch_tokens,
        };
        let bar = Bar::new("importing");
        let done = import(|| Ok(Store::open(url)?), &what, &mut |done, all| bar.samples(done, all))?;
        drop(bar);
        let mut table = Table::new(["run", "run_id", "groups", "samples", "tokens", "mean_logprob"]);
        table.push(vec![
            what.name.into(),
            done.run.0.into(),
            (done.groups as i64).into(),
            (done.samples as i64).into(),
            (done.tokens as i64).into(),
            done.mean_logprob.into(),
        ]);
        Ok(table)
    }
}
