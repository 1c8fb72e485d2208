//! The programs that a config starts and the addresses that it sends samples to: what its author decides about the machine
//! that runs it.

use serde_json::Value;

/// Names the tables of programs and of addresses below `path`, each as `KEY: PROGRAM` or `KEY: URL`.
pub(super) fn reaching(value: &Value, path: &str) -> Vec<String> {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(table) => table.iter().flat_map(|(key, inner)| own(key, inner, &below(key))).collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| reaching(item, &below(&index.to_string()))).collect()
        }
        _ => Vec::new(),
    }
}

fn own(key: &str, inner: &Value, path: &str) -> Vec<String> {
    let text = |name: &str| inner.get(name).and_then(Value::as_str);
    match (key, text("program"), text("url")) {
        ("command", Some(program), _) => vec![format!("{path}: {program}")],
        ("endpoint", _, Some(url)) => vec![format!("{path}: {url}")],
        _ => reaching(inner, path),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn programs_and_addresses_are_found_wherever_they_stand() {
        let found = |text: &str| {
            let rest = "steps = 1\nmodel.random = {}\n[prompts.arithmetic]\n";
            Config::parse(&format!("{rest}{text}"), "a.toml", &[]).unwrap().reaches_out()
        };
        assert!(found("[[reward]]\nrule.regex = { pattern = \"a\" }").is_empty());
        let two = "[[reward]]\nrule.regex = { pattern = \"a\" }\n[[reward]]\nrule.command = { program = \"python3\" }";
        assert_eq!(found(two), ["reward.1.rule.command: python3"]);
        let judge = "[judge.endpoint]\nurl = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\n[algorithm.online_dpo]\n";
        assert_eq!(found(judge), ["judge.endpoint: http://127.0.0.1:1/v1"]);
        assert_eq!(
            found("[judge.command]\nprogram = \"./judge\"\n[algorithm.online_dpo]\n"),
            ["judge.command: ./judge"]
        );
    }
}
