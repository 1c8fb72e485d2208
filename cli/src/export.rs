//! `proxrl export`: a run's adapter, or the model with it merged in, for other programs.

use crate::terminal::{Usage, answer};
use model::export::Storage;
use std::path::PathBuf;
use trainer::PeftForm;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder; its newest checkpoint is exported.
    run: PathBuf,
    /// The format to write.
    #[arg(long, value_enum, default_value_t = Format::Peft)]
    format: Format,
    /// The file or folder to write; RUN/export/FORMAT by default, RUN/export/model.gguf for gguf.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// The name of the base model in an adapter; the path in the run's config by default.
    #[arg(long, value_name = "NAME")]
    base: Option<String>,
    /// The format of a merged model's weights: f16 by default for gguf, the base's own format for hf.
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    storage: Option<Type>,
    /// Files of weights in an hf folder are at most this large, in MB (10^6 bytes).
    #[arg(long, default_value_t = 5000, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_mb: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// An adapter for Hugging Face PEFT, each layer with the rank that it has.
    Peft,
    /// The same with all layers filled up to one rank, for servers that ignore rank patterns, such as vLLM.
    PeftPadded,
    /// The merged model as a Hugging Face folder.
    Hf,
    /// The merged model as one file for llama.cpp.
    Gguf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
    /// Blocks of 32 signed bytes; gguf only.
    #[value(name = "q8_0")]
    Q80,
}

impl Type {
    fn storage(self) -> Storage {
        match self {
            Self::F32 => Storage::F32,
            Self::F16 => Storage::F16,
            Self::Bf16 => Storage::Bf16,
            Self::Q80 => Storage::Q8_0,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let storage = args.storage.map(Type::storage);
    if storage.is_some() && matches!(args.format, Format::Peft | Format::PeftPadded) {
        return Err(Usage("--type is for merged models; adapters are always written as f32".into()).into());
    }
    let run = trainer::run_folder(&args.run)?;
    let config = trainer::resumed_config(&run, &[])?;
    let policy = trainer::trained_policy(&run)?;
    let out = args.out.clone().unwrap_or_else(|| {
        let name = match args.format {
            Format::Peft => "peft",
            Format::PeftPadded => "peft-padded",
            Format::Hf => "hf",
            Format::Gguf => "model.gguf",
        };
        run.join("export").join(name)
    });
    let base = args.base.as_ref().unwrap_or(&config.model.path);
    match args.format {
        Format::Peft => trainer::export_peft(&policy, base, PeftForm::Compact, &out)?,
        Format::PeftPadded => trainer::export_peft(&policy, base, PeftForm::Padded, &out)?,
        Format::Hf => trainer::export_hub(&config.model, &policy, storage, args.max_shard_mb * 1_000_000, &out)?,
        Format::Gguf => trainer::export_gguf(&config.model, &policy, storage.unwrap_or(Storage::F16), &out)?,
    }
    answer(&format!("{}\n", out.display()))?;
    Ok(())
}
