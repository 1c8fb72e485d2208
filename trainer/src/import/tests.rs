//! Imported rows against a forward pass of their own.

use super::*;
use model::packed::{Packed, Sequences};
use store::RunKind;

const ROWS: &str = r#"{"prompt": "2+2=", "completion": "4", "reward": 1, "answer": "4"}
{"prompt": "ab", "completions": ["c", "", "no end"], "finishes": ["eos", "length", "length"]}
{"prompt": "2+2=", "completion": "five", "reward": 0, "answer": "4"}
"#;

fn random() -> model::Config {
    let toml = "device = \"cpu\"\nrandom = { family = \"llama\", hidden_size = 16, layers = 1, heads = 2, kv_heads = 1, intermediate_size = 32 }";
    toml::from_str(toml).unwrap()
}

#[test]
fn rows_become_marked_groups_with_the_models_logprobs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.jsonl");
    std::fs::write(&file, ROWS).unwrap();
    let url = format!("sqlite://{}", folder.path().join("s.db").display());
    let model = random();
    let what = Import {
        file: &file,
        model: &model,
        name: "elsewhere",
        prompt_column: "prompt",
        answer_column: None,
        form: Form::Text,
        temperature: 0.5,
        micro_batch_tokens: 8,
    };
    let mut heard = Vec::new();
    let done = import(|| Ok(Store::open(&url)?), &what, &mut |done, all| heard.push((done, all))).unwrap();
    assert_eq!(heard, [(5, 5)]);
    let store = Store::open(&url).unwrap();
    // "4" and its end, "five" and its end; "c" and its end, nothing, "no end": 2 + 5 + 2 + 0 + 6 bytes.
    assert_eq!((done.groups, done.samples, done.tokens), (2, 5, 15));
    let run = store.run(done.run).unwrap();
    assert_eq!((run.kind, run.status), (RunKind::Import, RunStatus::Finished));
    let groups = store.step_groups(done.run, 1).unwrap().unwrap();
    assert_eq!(groups[0].scored.rewards(), [Some(1.0), Some(0.0)]);
    assert_eq!(groups[1].scored.rewards(), [None, None, None]);
    assert_eq!(groups[0].scored.group().prompt.answer.as_deref(), Some("4"));
    let origin = store.query("SELECT DISTINCT origin FROM policies").unwrap();
    assert_eq!(origin.rows, [["imported".into()]]);

    // Each completion by itself, unpacked, has the same log-probabilities.
    let policy = Policy::load(&model, &Seed::new(0)).unwrap().base();
    assert_eq!(policy.version(), &groups[0].scored.group().policy);
    let mut sum = 0.0;
    for scored in &groups {
        for sample in scored.scored.group().samples.iter().filter(|sample| !sample.is_empty()) {
            let alone = Sequences { prompt: &scored.scored.group().prompt_ids, completions: vec![&sample.ids] };
            let packed = Packed::new(&[alone], policy.network().dimensions().vocab, policy.device()).unwrap();
            let expected = Vec::<f32>::try_from(&policy.logprobs(&packed, 0.5, policy.adapter())).unwrap();
            for (stored, expected) in sample.logprobs.iter().zip(&expected) {
                assert!((stored - expected).abs() < 1e-5, "{:?}: {stored} {expected}", sample.text);
            }
            sum += expected.iter().map(|it| f64::from(*it)).sum::<f64>();
        }
    }
    assert!((done.mean_logprob - sum / 15.0).abs() < 1e-5);
}

#[test]
fn a_wrong_file_is_refused_before_the_store_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let model = random();
    for (name, content, words) in [
        ("a.jsonl", "{\"prompt\": \"x\", \"completion\": \"y\"}\n{\"prompt\": \"x\"}", "row 2: it has neither"),
        ("a.txt", "", "name it .jsonl or .parquet"),
        ("b.jsonl", "{\"question\": \"x\", \"completion\": \"y\"}", "no column `prompt`"),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let what = Import {
            file: &file,
            model: &model,
            name: "x",
            prompt_column: "prompt",
            answer_column: None,
            form: Form::Text,
            temperature: 1.0,
            micro_batch_tokens: 64,
        };
        let error = import(|| panic!("no store is opened"), &what, &mut |_, _| {}).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
        let cold = Import { temperature: 0.0, ..what };
        assert!(
            import(|| panic!("no store is opened"), &cold, &mut |_, _| {})
                .unwrap_err()
                .to_string()
                .contains("greater than 0")
        );
    }
}
