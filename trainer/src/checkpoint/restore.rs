//! Policies and configs of stopped runs, from the newest checkpoint of a run folder.

use super::{Snapshot, Snapshots, State, bucket};
use crate::config::{Config, Override};
use crate::{Error, Result};
use model::Policy;
use model::adapter::{AdapterConfig, PeftAdapter};
use schema::Seed;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The checkpoint's file of the reference policy, once that is not the untouched network any more.
pub(crate) const REFERENCE: &str = "reference";
/// The checkpoint's file of the policy at the end of the iteration before.
pub(crate) const HAT: &str = "hat";

/// The policy of a run's newest checkpoint, in a folder or shared at a URL.
pub fn trained_policy(folder: &Path) -> Result<Policy> {
    let folder = &bucket::run_folder(folder)?;
    let config = resumed_config(folder, &[])?;
    let mut policy = Policy::load(&config.model, &Seed::new(config.seed))?;
    restore_newest(folder, &mut policy)?;
    Ok(policy)
}

/// Another policy over the network of `base`: with the adapter of a run's newest checkpoint, here or shared at a URL, or of
/// a folder of PEFT.
pub fn adapted_policy(base: &Policy, folder: &Path) -> Result<Policy> {
    let folder = &bucket::run_folder(folder)?;
    let build = |config: &AdapterConfig, seed: &Seed| config.build(base.network(), seed, base.device());
    if !folder.join("config.toml").exists() {
        let saved = AdapterConfig::Peft(PeftAdapter { path: folder.to_owned() });
        return Ok(base.with_adapter(build(&saved, &Seed::new(0))?));
    }
    let config = resumed_config(folder, &[])?;
    let mut policy = base.with_adapter(build(&config.model.adapter, &Seed::new(config.seed))?);
    restore_newest(folder, &mut policy)?;
    Ok(policy)
}

/// Brings back the policy of a run's newest checkpoint, which has more than that.
pub(crate) fn restore_newest(folder: &Path, policy: &mut Policy) -> Result<Snapshot> {
    let newest = Snapshots::new(folder, 0).newest()?;
    let snapshot = newest.ok_or_else(|| Error::input(format!("{} has no checkpoint yet", folder.display())))?;
    restore(&snapshot, policy, folder)?;
    Ok(snapshot)
}

/// Brings back the policy of a checkpoint of the run in `folder`: the one to use, where that is not the one to go on
/// training.
pub(crate) fn restore(snapshot: &Snapshot, policy: &mut Policy, folder: &Path) -> Result<()> {
    policy.adapter_mut().restore(snapshot.part("adapter")?)?;
    policy.set_version(snapshot.state.step);
    check_restored(policy, &snapshot.state, folder)?;
    if let Some(hat) = end_of_iteration(snapshot) {
        policy.adapter_mut().restore(hat)?;
        policy.set_version(snapshot.state.step);
    }
    Ok(())
}

/// Fills a policy's fresh adapter with the newest one of the run that its config names.
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

/// The base model may have changed since the checkpoint was written; its adapter would then mean something else.
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

/// The config that a stopped run was started with, with changes on top.
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

/// Whether two configs name the same weights in the same format, adapters aside.
pub(crate) fn same_base(a: &model::Config, b: &model::Config) -> bool {
    (&a.path, &a.random, &a.device, a.dtype) == (&b.path, &b.random, &b.device, b.dtype)
}

/// The end of the iteration before, `p̂`, in a checkpoint that stands at the beginning of one: the policy there is where
/// training goes on, which is its own reference and is not what the method is for. `None` anywhere else.
fn end_of_iteration(snapshot: &Snapshot) -> Option<&[(String, Tensor)]> {
    let (hat, own, reference) =
        (snapshot.part(HAT).ok()?, snapshot.part("adapter").ok()?, snapshot.part(REFERENCE).ok()?);
    let [own, reference] = [own, reference].map(|part| part.iter().map(|(name, tensor)| (name.clone(), tensor)));
    alike(own, reference).then_some(hat)
}

/// Whether each of these tensors is there under the same name.
pub(crate) fn alike<'a>(
    mut own: impl Iterator<Item = (String, &'a Tensor)>,
    reference: impl Iterator<Item = (String, &'a Tensor)>,
) -> bool {
    let reference: BTreeMap<String, &Tensor> = reference.collect();
    own.all(|(name, tensor)| reference.get(&name).is_some_and(|other| tensor.equal(other)))
}
