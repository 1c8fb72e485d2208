//! Every config in `configs/` loads, and names only keys that exist.

use crate::support::{Sandbox, config};
use std::path::Path;
use trainer::config::{Config, Serving};

#[test]
fn every_config_loads_and_its_resolved_form_loads_to_the_same() {
    let folder = super::workspace().join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        resolved(&path);
        count += 1;
    }
    assert!(count >= 2);
}

/// Every key of a config, defaults included: of a run's, or of a daemon's. It must load to the same.
pub(crate) fn resolved(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let fail = |error: trainer::Error| -> ! { panic!("{}: {error}", path.display()) };
    if text.lines().any(|line| line == "[serve]") {
        let config = Serving::load(path, &[]).unwrap_or_else(|error| fail(error));
        let resolved = config.resolved().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("resolved.toml");
        std::fs::write(&copy, &resolved).unwrap();
        assert_eq!(Serving::load(&copy, &[]).unwrap(), config, "{}", path.display());
        return resolved;
    }
    let config = Config::load(path, &[]).unwrap_or_else(|error| fail(error));
    let resolved = config.resolved().unwrap();
    assert_eq!(Config::parse(&resolved, "resolved", &[]).unwrap(), config, "{}", path.display());
    resolved
}

/// The model of each config of a method, and the one that replaces it in these tests.
const MODEL: &str = "path = \"SmolLM2-135M-Instruct.Q4_1.gguf\"";
const TINY: &str = "device = \"cpu\"
random = { family = \"llama\", hidden_size = 32, layers = 1, heads = 2, kv_heads = 1, intermediate_size = 64 }";

#[test]
fn every_config_of_a_policy_gradient_runs_but_for_its_size() {
    let methods = ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "cispo", "reinforce", "ppo"];
    for name in methods.into_iter().chain(["sft", "reward_model"]) {
        let text = std::fs::read_to_string(config(&format!("{name}.toml"))).unwrap();
        assert_eq!(text.matches(MODEL).count(), 1, "{name}");
        let sandbox = Sandbox::new();
        sandbox.write("config.toml", text.replace(MODEL, TINY));
        let smaller = ["steps=2", "rollout.prompts_per_step=2", "evaluate.prompts=2", "tracker.tensorboard=false"];
        let args = ["train", "config.toml", "--out", "run"].into_iter();
        sandbox.ok(&args.chain(smaller.into_iter().flat_map(|set| ["--set", set])).collect::<Vec<_>>());
        assert_eq!(sandbox.metrics("run").len(), 2, "{name}");
        assert!(sandbox.path("run/checkpoints/step_2/adapter.safetensors").exists(), "{name}");
    }
}
