//! Keys whose default follows from other keys. They are written into the config before it is read, so that a resolved
//! config shows them.
//!
//! | key | where it is not given | becomes |
//! |---|---|---|
//! | `clip_high` | beside `epsilon` or `cliprange`, which in TRL and verl are both bounds | the same value |
//! | `rollout_correction` | samples of other policies are learned from: `replay.run`, `replay.offline`, `collector.remote.max_staleness` | truncated weights of the tokens, with verl's cap of 2 |
//! | `optimizer.adamw.gate.rule` | beside `eps` or `learning_rate_scale`, which only Adam has; earlier versions knew no other rule | `adam` |
//!
//! A key is implied only in tables that take it: `ReMix` and preference methods have neither.

use super::parse::set;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Names that other libraries have for both clip bounds at once.
const BOTH_CLIPS: [&str; 2] = ["epsilon", "cliprange"];

/// Names of the upper clip bound; the first is ours.
const UPPER_CLIP: [&str; 2] = ["clip_high", "epsilon_high"];

const CORRECTION: &str = "rollout_correction";

/// Writes every implied key that `T` takes into the table.
pub(super) fn complete<T: DeserializeOwned>(table: &mut Table) {
    let (mut keys, mut path) = (Vec::from_iter(gate_rule(table)), vec!["algorithm".to_owned()]);
    let algorithm = table.get("algorithm").and_then(Value::as_table).cloned().unwrap_or_default();
    clips(&algorithm, &mut path, &mut keys);
    let weights = Table::from_iter([(
        "token_truncate".to_owned(),
        Value::Table(Table::from_iter([("cap".to_owned(), Value::Float(2.0))])),
    )]);
    for (name, settings) in algorithm.iter().filter(|_| is_off_policy(table)) {
        if settings.as_table().is_some_and(|settings| !settings.contains_key(CORRECTION)) {
            let path = ["algorithm", name, CORRECTION].map(str::to_owned).into();
            keys.push((path, Value::Table(weights.clone())));
        }
    }
    for (path, value) in keys {
        let mut tried = table.clone();
        let unknown = format!("unknown field `{}`", path.last().map_or("", String::as_str));
        let is_unknown = |error: toml::de::Error| error.message().contains(&unknown);
        if set(&mut tried, &path, &value).is_ok() && !tried.clone().try_into::<T>().is_err_and(is_unknown) {
            *table = tried;
        }
    }
}

/// Finds settings of gates that only Adam has.
fn gate_rule(table: &Table) -> Option<(Vec<String>, Value)> {
    let gate = table.get("optimizer")?.get("adamw")?.get("gate")?.as_table()?;
    let of_adam = ["eps", "learning_rate_scale"].iter().any(|key| gate.contains_key(*key));
    let path = || ["optimizer", "adamw", "gate", "rule"].map(str::to_owned).into();
    (of_adam && !gate.contains_key("rule")).then(|| (path(), Value::String("adam".to_owned())))
}

/// Finds each table that names both clip bounds at once and not the upper one.
fn clips(table: &Table, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
    let both = BOTH_CLIPS.iter().find_map(|name| table.get(*name));
    if let Some(value) = both.filter(|_| !UPPER_CLIP.iter().any(|name| table.contains_key(*name))) {
        found.push(([&path[..], &[UPPER_CLIP[0].to_owned()]].concat(), value.clone()));
    }
    for (key, inner) in table {
        if let Value::Table(inner) = inner {
            path.push(key.clone());
            clips(inner, path, found);
            path.pop();
        }
    }
}

/// Returns true if samples of other policies than the present one are learned from.
fn is_off_policy(table: &Table) -> bool {
    let of = |path: &[&str]| {
        path.iter().try_fold(
            table.get(path[0])?,
            |value, key| {
                if *key == path[0] { Some(value) } else { value.get(key) }
            },
        )
    };
    let stored = of(&["replay", "run"]).is_some() || of(&["replay", "offline"]) == Some(&Value::Boolean(true));
    stored || of(&["collector", "remote", "max_staleness"]).and_then(Value::as_integer).is_some_and(|steps| steps > 0)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::objective::RolloutCorrection;

    const REST: &str =
        "steps = 1\nmodel.random = {}\n[[reward]]\nrule.regex = { pattern = \"a\" }\n[prompts.arithmetic]\n";

    fn config(text: &str, overrides: &[&str]) -> Config {
        let overrides: Vec<_> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        Config::parse(&format!("{REST}{text}"), "a.toml", &overrides).unwrap()
    }

    #[test]
    fn epsilon_is_both_bounds_unless_the_upper_one_is_given() {
        let clips = |text: &str, overrides: &[&str]| {
            let crate::algorithm::Config::Dapo(dapo) =
                config(&format!("[algorithm.dapo]\n{text}"), overrides).algorithm
            else {
                panic!("another algorithm")
            };
            (dapo.clip_low, dapo.clip_high)
        };
        assert_eq!(clips("epsilon = 0.1", &[]), (0.1, 0.1));
        assert_eq!(clips("epsilon = 0.1\nepsilon_high = 0.3", &[]), (0.1, 0.3));
        assert_eq!(clips("epsilon = 0.1\nclip_high = 0.3", &[]), (0.1, 0.3));
        assert_eq!(clips("", &["algorithm.dapo.epsilon=0.1"]), (0.1, 0.1));
        assert_eq!(clips("epsilon = 0.1", &["algorithm.dapo.clip_high=0.3"]), (0.1, 0.3));
        // Our own name is one bound; DAPO's other one is 0.28.
        assert_eq!(clips("clip_low = 0.1", &[]), (0.1, 0.28));
        // The same in the base of ReMix, whose own epsilon is another thing.
        let remix = config("[algorithm.remix]\nepsilon = 0.3\n[algorithm.remix.base.ppo]\ncliprange = 0.1", &[]);
        let crate::algorithm::Config::Remix(remix) = remix.algorithm else { panic!("another algorithm") };
        let crate::algorithm::policy_gradient::remix::Base::Ppo(ppo) = remix.base else { panic!("another base") };
        assert_eq!((remix.epsilon, ppo.clip_low, ppo.clip_high), (0.3, 0.1, 0.1));
    }

    #[test]
    fn settings_of_adam_for_gates_imply_adam() {
        use crate::optimizer::GateRule;
        let rule = |text: &str| config(text, &[]).optimizer.gate_rule();
        assert_eq!(rule(""), Some(GateRule::Shared));
        assert_eq!(rule("[optimizer.adamw]\ngate.learning_rate = 0.1"), Some(GateRule::Shared));
        assert_eq!(rule("[optimizer.adamw]\ngate.learning_rate_scale = 20.0"), Some(GateRule::Adam));
        assert_eq!(rule("[optimizer.adamw]\ngate = { eps = 1e-6, rule = 'shared' }"), Some(GateRule::Shared));
    }

    #[test]
    fn thresholds_that_decide_alone_are_refused_or_told() {
        let said = |text: &str| {
            let config = config(&format!("[model.adapter.sora]\n{text}"), &[]);
            let rate = config.optimizer.rate().learning_rate * config.optimizer.gate_learning_rate_scale();
            config.prox.as_ref().unwrap().warning(config.optimizer.gate_rule(), rate)
        };
        let adam = "[optimizer.adamw]\ngate.rule = 'adam'\n[prox.soft_threshold]\nthreshold =";
        assert_eq!(said("[prox.soft_threshold]").unwrap(), None);
        assert_eq!(said(&format!("{adam} 0.5")).unwrap(), None);
        assert!(said(&format!("{adam} 10.0")).unwrap().unwrap().contains("whatever they are worth"));
        let text = format!("{REST}[model.adapter.sora]\n[prox.soft_threshold]\nthreshold = 10.0");
        let error = Config::parse(&text, "a.toml", &[]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("gate.rule = \"adam\""), "{error}");
    }

    #[test]
    fn samples_of_other_policies_are_weighted_unless_that_is_switched_off() {
        let correction = |text: &str| match config(text, &[]).algorithm {
            crate::algorithm::Config::Grpo(grpo) => grpo.rollout_correction,
            crate::algorithm::Config::Ppo(ppo) => ppo.rollout_correction,
            other => panic!("{other:?}"),
        };
        let weighted = RolloutCorrection::TokenTruncate { cap: 2.0 };
        let stale = "[collector.remote]\nmax_staleness = 1\n";
        let offline = "[replay]\nrun = \"old\"\noffline = true\n";
        assert_eq!(correction("[algorithm.grpo]\n"), RolloutCorrection::Off);
        assert_eq!(correction("[algorithm.grpo]\n[collector.remote]\n"), RolloutCorrection::Off);
        assert_eq!(correction(&format!("{stale}[algorithm.grpo]\n")), weighted);
        assert_eq!(correction(&format!("{offline}[algorithm.grpo]\n")), weighted);
        assert_eq!(correction(&format!("{stale}[algorithm.ppo]\n")), weighted);
        let off = format!("{stale}[algorithm.grpo]\nrollout_correction = \"off\"\n");
        assert_eq!(correction(&off), RolloutCorrection::Off);
        // Methods that have no such key take none.
        config(&format!("{offline}[algorithm.remix]\nreincarnate_after = 0\n"), &[]);
        config(&format!("{stale}[algorithm.online_dpo]\n"), &[]);
    }
}
