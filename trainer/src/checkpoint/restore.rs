//! Policies and configs of stopped runs, from the newest checkpoint of a run folder.

use super::{Snapshot, Snapshots, State, bucket};
use crate::companion::Role;
use crate::config::{Config, Override};
use crate::{Error, Result};
use model::Policy;
use model::adapter::{AdapterConfig, PeftAdapter};
use schema::Seed;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Loads the policy of a run's newest checkpoint, from a folder or a URL.
///
/// # Errors
/// If there is no run or checkpoint, the base model cannot be loaded, or it is not the one that the checkpoint was
/// trained on.
pub fn trained_policy(folder: &Path) -> Result<Policy> {
    let folder = &bucket::run_folder(folder)?;
    let config = resumed_config(folder, &[])?;
    let mut policy = Policy::load(&config.model, &Seed::new(config.seed))?;
    restore_newest(folder, &mut policy)?;
    Ok(policy)
}

/// Loads another policy over the network of `base`: with the adapter of a run's newest checkpoint, from a folder or a
/// URL, or of a PEFT folder.
///
/// # Errors
/// If there is no adapter, or it does not fit the base model.
pub fn adapted_policy(base: &Policy, folder: &Path) -> Result<Policy> {
    let folder = &bucket::run_folder(folder)?;
    let build = |config: &AdapterConfig, seed: &Seed| config.build(base.network().linears(), seed, base.device());
    if !folder.join("config.toml").exists() {
        let saved = AdapterConfig::Peft(PeftAdapter { path: folder.to_owned() });
        return Ok(base.with_adapter(build(&saved, &Seed::new(0))?));
    }
    let config = resumed_config(folder, &[])?;
    let mut policy = base.with_adapter(build(&config.model.adapter, &Seed::new(config.seed))?);
    restore_newest(folder, &mut policy)?;
    Ok(policy)
}

/// Restores the policy from a run's newest checkpoint, which holds more than the policy.
pub(crate) fn restore_newest(folder: &Path, policy: &mut Policy) -> Result<Snapshot> {
    let newest = Snapshots::new(folder, 0).newest()?;
    let snapshot = newest.ok_or_else(|| Error::input(format!("{} has no checkpoint yet", folder.display())))?;
    restore(&snapshot, policy, folder)?;
    Ok(snapshot)
}

/// Restores the policy of a checkpoint of the run in `folder`: the policy to use, if it differs from the one to
/// continue training.
pub(crate) fn restore(snapshot: &Snapshot, policy: &mut Policy, folder: &Path) -> Result<()> {
    policy.adapter_mut().restore(snapshot.part("adapter")?)?;
    policy.set_version(snapshot.state.step);
    check_restored(policy, &snapshot.state, folder)?;
    if let Some(end) = end_of_iteration(snapshot) {
        policy.adapter_mut().restore(end)?;
        policy.set_version(snapshot.state.step);
    }
    Ok(())
}

/// Replaces a policy's fresh adapter by the newest one of the run that its config names.
pub(crate) fn start_from(config: &model::Config, policy: &mut Policy) -> Result<()> {
    let folder = &bucket::run_folder(Path::new(&config.adapter_from))?;
    let saved = resumed_config(folder, &[])?.model.adapter;
    if saved != config.adapter {
        return Err(Error::input(format!(
            "model.adapter_from: the adapter of {} was made by another config; give this run the same [model.adapter] table, which that folder's config.toml has",
            folder.display()
        )));
    }
    restore_newest(folder, policy)?;
    policy.set_version(0);
    Ok(())
}

/// Returns an error if the base model has changed since the checkpoint was written: its adapter would then compute
/// something else.
pub(crate) fn check_restored(policy: &Policy, state: &State, run_folder: &Path) -> Result<()> {
    if policy.version().hash == state.policy_hash {
        return Ok(());
    }
    Err(Error::input(format!(
        "{}: the policy of step {} is not the one that was saved; has the base model changed since?",
        run_folder.display(),
        state.step
    )))
}

/// Reads the config that a stopped run was started with and applies overrides.
///
/// # Errors
/// If the folder has no config, or it or an override is invalid.
pub fn resumed_config(folder: &Path, overrides: &[Override]) -> Result<Config> {
    let path = folder.join("config.toml");
    if !path.exists() {
        return Err(Error::input(format!(
            "{} holds no config.toml, so it is not a run folder; runs are under runs/ unless --out said otherwise",
            folder.display()
        )));
    }
    Config::load(&path, overrides)
}

/// Returns true if two configs name the same weights in the same format, adapters aside.
pub(crate) fn same_base(a: &model::Config, b: &model::Config) -> bool {
    (&a.path, &a.random, &a.device, a.dtype) == (&b.path, &b.random, &b.device, b.dtype)
}

/// Returns the end of the previous iteration, `p̂`, from a checkpoint at the start of an iteration. The policy saved
/// there is the start of further training, which is its own reference, and not the result of the method. `None` in
/// every other checkpoint.
fn end_of_iteration(snapshot: &Snapshot) -> Option<&[(String, Tensor)]> {
    let companion = |role: Role| role.files().iter().find_map(|file| snapshot.part(file).ok());
    let (end, reference) = (companion(Role::IterationEnd)?, companion(Role::Reference)?);
    let own = snapshot.part("adapter").ok()?;
    let [own, reference] = [own, reference].map(|part| part.iter().map(|(name, tensor)| (name.clone(), tensor)));
    alike(own, reference).then_some(end)
}

/// Returns true if each of these tensors is present under the same name.
pub(crate) fn alike<'a>(
    mut own: impl Iterator<Item = (String, &'a Tensor)>,
    reference: impl Iterator<Item = (String, &'a Tensor)>,
) -> bool {
    let reference: BTreeMap<String, &Tensor> = reference.collect();
    own.all(|(name, tensor)| reference.get(&name).is_some_and(|other| tensor.equal(other)))
}
