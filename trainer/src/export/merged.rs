//! Export of the trained model for other programs: a Hugging Face folder, or one GGUF file.
//!
//! The contents come from `model::export`; here they are written to files, each of which appears whole or not at all.

use crate::{Error, Result};
use model::adapter::Adapter;
use model::export::{Merged, Storage, hub_files, hub_index, hub_shards, write_gguf};
use model::weights::Checkpoint;
use model::{Policy, hub};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes the policy, merged into its base, as a Hugging Face folder, which is created.
///
/// * `storage`: format of the weights; `None` for the base's own float format
/// * `shard_bytes`: weights are split into files of at most this many bytes
///
/// # Errors
/// If the base model has no files (a random network), cannot be read, or the folder cannot be written.
pub fn export_hub(
    config: &model::Config,
    policy: &Policy,
    storage: Option<Storage>,
    shard_bytes: u64,
    folder: &Path,
) -> Result<()> {
    let checkpoint = base(config)?;
    with_merged(&checkpoint, policy.adapter(), |merged| {
        let shards = hub_shards(merged, storage, shard_bytes)?;
        let mut files = hub_files(merged, storage)?;
        if let Some((name, index)) = hub_index(&shards) {
            files.push((name.to_owned(), index.to_string().into_bytes()));
        }
        fs::create_dir_all(folder).map_err(|error| unwritten(folder, &error))?;
        for shard in &shards {
            write_whole(&folder.join(&shard.file), |out| Ok(shard.write(merged, out)?))?;
        }
        for (name, bytes) in &files {
            let path = folder.join(name);
            write_whole(&path, |out| out.write_all(bytes).map_err(|error| unwritten(&path, &error)))?;
        }
        Ok(())
    })
}

/// Writes the policy, merged into its base, as one GGUF file.
///
/// # Errors
/// If the base model has no files (a random network), its tokenizer cannot be expressed in GGUF, or the file cannot be
/// written.
pub fn export_gguf(config: &model::Config, policy: &Policy, storage: Storage, file: &Path) -> Result<()> {
    let checkpoint = base(config)?;
    with_merged(&checkpoint, policy.adapter(), |merged| {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| unwritten(folder, &error))?;
        }
        write_whole(file, |out| Ok(write_gguf(merged, storage, out)?))
    })
}

fn with_merged(checkpoint: &Checkpoint, adapter: &Adapter, write: impl Fn(&Merged<'_>) -> Result<()>) -> Result<()> {
    write(&Merged::new(checkpoint, adapter)?)
}

/// Opens the files of the base model.
fn base(config: &model::Config) -> Result<Checkpoint> {
    if config.path.is_empty() {
        return Err(Error::input(
            "this run trained a random network, which has no files to merge the adapter into; export its adapter with --format peft",
        ));
    }
    Ok(Checkpoint::open(&hub::resolve(&config.path, &hub::models_folder())?)?)
}

/// Writes a file under another name, syncs it and renames it.
fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = || -> Result<()> {
        let mut out = BufWriter::new(File::create(partial).map_err(|error| unwritten(path, &error))?);
        write(&mut out)?;
        let file = out.into_inner().map_err(|error| unwritten(path, error.error()))?;
        file.sync_all().and_then(|()| fs::rename(partial, path)).map_err(|error| unwritten(path, &error))
    };
    written().inspect_err(|_| drop(fs::remove_file(partial)))
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::input(format!("cannot write {}: {error}; choose another place with --out", path.display()))
}
