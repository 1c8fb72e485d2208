//! `proxrl export`: a run's adapter for other programs.
#![expect(clippy::print_stdout, reason = "where the export is, is the program's output")]

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder; its newest checkpoint is exported.
    run: PathBuf,
    /// The format to write.
    #[arg(long, value_enum, default_value_t = Format::Peft)]
    format: Format,
    /// Where to write; RUN/export/FORMAT by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What the export calls its base model; the path in the run's config by default.
    #[arg(long, value_name = "NAME")]
    base: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A folder that Hugging Face PEFT loads: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = trainer::resumed_config(&args.run, &[])?;
    let policy = trainer::trained_policy(&args.run)?;
    let folder = args.out.clone().unwrap_or_else(|| match args.format {
        Format::Peft => args.run.join("export/peft"),
    });
    let base = args.base.clone().unwrap_or(config.model.path);
    match args.format {
        Format::Peft => trainer::export_peft(&policy, &base, &folder)?,
    }
    println!("{}", folder.display());
    Ok(())
}
