//! The config of a daemon: the model it serves, and the limits of the service.
//!
//! It is a file of its own, with three of a run's tables and none that only training needs. The config of a run can be
//! served too: its base model, with the sampling parameters of its `[rollout]` table.

use super::{Config, Override, parse};
use crate::{Error, Result};
use model::adapter::AdapterConfig;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Config of `proxrl rollout serve`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serving {
    /// Root of the randomness of requests without a seed.
    pub seed: u64,
    /// Network. Its adapters are in `[serve.adapters]`.
    pub model: model::Config,
    /// Address, limits and adapters of the service.
    pub serve: rollout::service::Config,
}

impl Serving {
    /// Reads the config of a daemon, or of a run, applies `key=value` overrides, and checks the result.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, has an unknown key, configures an adapter under `[model]`, or has a
    /// setting outside its range.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::input(format!("cannot read the config {name}: {error}; configs/serve.toml is an example"))
        })?;
        let of_run = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("prompts"));
        if of_run {
            return Ok(Self::of(&Config::parse(&text, &name, overrides)?));
        }
        let config: Self = parse::parse(&text, &name, overrides)?;
        config.check().map_err(|error| match error {
            Error::Input(message) => Error::input(format!("{name}: {message}")),
            error => error,
        })?;
        Ok(config)
    }

    /// Returns the config that serves the base model of a run with the run's sampling parameters.
    pub fn of(config: &Config) -> Self {
        let model =
            model::Config { adapter: AdapterConfig::default(), adapter_from: String::new(), ..config.model.clone() };
        let serve = rollout::service::Config {
            sampler: config.rollout.sampler().independent(),
            engine: config.rollout.engine.clone(),
            ..rollout::service::Config::default()
        };
        Self { seed: config.seed, model, serve }
    }

    /// Returns the config with every default spelled out, as TOML.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn resolved(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|error| Error::runtime(format!("cannot write the resolved config: {error}")))
    }

    fn check(&self) -> Result<()> {
        if self.model.adapter != AdapterConfig::default() || !self.model.adapter_from.is_empty() {
            return Err(Error::input(
                "a daemon serves the base model, and adapters by name: drop [model.adapter] and model.adapter_from, and \
                 write NAME = \"FOLDER\" under [serve.adapters]",
            ));
        }
        self.serve.check().map_err(rollout_error)
    }
}

/// Converts an error of the service's own check.
fn rollout_error(error: rollout::Error) -> Error {
    if error.is_input() { Error::input(error.to_string()) } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Serving> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serve.toml");
        std::fs::write(&path, text).unwrap();
        Serving::load(&path, &["serve.port=0".parse().unwrap()])
    }

    #[test]
    fn a_daemon_has_a_config_of_its_own() {
        let config = load("[model]\npath = \"x\"\n[serve]\nmax_waiting = 3\n[serve.adapters]\na = \"b\"").unwrap();
        assert_eq!((config.serve.max_waiting, config.serve.port), (3, 0));
        assert_eq!(toml::from_str::<Serving>(&config.resolved().unwrap()).unwrap(), config);
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (text, words) in [
            ("[model]\npath = \"x\"\n[model.adapter.sora]\nrank = 4\n", "under [serve.adapters]"),
            ("[serve]\nmax_wating = 3\n", "did you mean `max_waiting`"),
            ("[rollout]\ngroup_size = 3\n", "unknown key `rollout`"),
            ("[serve.engine]\nmax_running = 0\n", "serve.engine.max_running must be at least 1"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn the_config_of_a_run_is_served_as_it_draws() {
        let text = "steps = 1\n[model]\npath = \"x\"\n[model.adapter.sora]\nrank = 4\n[prompts.arithmetic]\n\
                    [rollout]\ntemperature = 0.7\nengine = { max_running = 5 }\n[[reward]]\nrule.math_answer = {}\n\
                    [prox.soft_threshold]\nthreshold = 1.0\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        let config = Serving::load(&path, &[]).unwrap();
        assert_eq!(config.serve.sampler.temperature, 0.7);
        assert_eq!(config.serve.engine.max_running, 5);
        assert_eq!(config.model.adapter, AdapterConfig::default());
    }
}
