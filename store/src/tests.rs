//! The store as a whole: what goes in comes out, once, whatever happens in between.

mod asking;
mod cluster;
mod copying;
mod durability;
mod engines;
mod judging;
mod keeping;
mod losing;
mod older;
mod opening;
mod queue;
mod reconnecting;
mod replaying;
mod round_trip;
mod server;
mod shrinking;

use crate::error::Doing;
use crate::{NewRun, RunId, Store, Table, Value};
use schema::{
    Comparison, Finish, Grade, GradedGroup, Group, Message, PolicyVersion, Prompt, PromptInput, RewardPart, Rival,
    Sample, SamplerSettings, Seed, Verdict,
};
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Names the server that the tests run on, if they do.
const ON_POSTGRES: &str = "PROXRL_STORE_TEST_POSTGRES";

/// Where a test's store is, and a folder for files besides. The folder goes away with the test.
struct Place {
    folder: TempDir,
    url: String,
}

impl Place {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn url(&self) -> &str {
        &self.url
    }
}

/// A new store, on the engine that is tested.
fn new_store() -> (Place, Store) {
    let folder = tempfile::tempdir().unwrap();
    let url = if is_postgres() { new_place() } else { url(&folder.path().join("proxrl.db")) };
    let store = Store::open(&url).unwrap();
    (Place { folder, url }, store)
}

fn is_postgres() -> bool {
    std::env::var_os(ON_POSTGRES).is_some()
}

/// The address of an empty place on the server.
fn new_place() -> String {
    cluster::new_place(&std::env::var(ON_POSTGRES).expect("the tests run on a server"))
}

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

fn new_run(name: &str) -> NewRun {
    NewRun {
        name: name.into(),
        config: "seed = 1\n".into(),
        program_version: "0.1.0".into(),
        out_dir: "runs/tiny".into(),
        model_hash: "abc".into(),
        started_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_696_707),
    }
}

fn begin(store: &Store, name: &str) -> RunId {
    store.begin_run(&new_run(name)).unwrap()
}

/// The groups of a step without their numbers.
fn step_groups(store: &Store, run: RunId, step: u64) -> crate::Result<Option<Vec<GradedGroup>>> {
    let groups = store.step_groups(run, step)?;
    Ok(groups.map(|groups| groups.into_iter().map(|group| group.scored).collect()))
}

/// A sample of these tokens, each sampled with probability 1/2.
fn sample(ids: &[u32], text: &str) -> Sample {
    let logprob = 0.5f32.ln();
    Sample {
        ids: ids.into(),
        mask: vec![true; ids.len()],
        logprobs: vec![logprob; ids.len()],
        finish: Finish::Eos,
        text: text.into(),
    }
}

fn verdict(value: Option<f32>) -> Verdict {
    let grade = value.map_or(Grade::missing("timed out"), Grade::Value);
    Verdict::of_rewards(vec![RewardPart { name: "exact".into(), version: "1".into(), weight: 1.0, grade }])
}

/// A group of one-token samples with these rewards.
fn group(question: &str, version: u64, rewards: &[Option<f32>]) -> GradedGroup {
    let samples = rewards.iter().map(|reward| sample(&[7], &format!("{reward:?}"))).collect();
    let group = Group {
        prompt: Prompt::user(question).with_answer("4"),
        prompt_ids: vec![1, 2, 3],
        policy: PolicyVersion { version, hash: format!("hash {version}") },
        settings: SamplerSettings::default(),
        samples,
    };
    GradedGroup::new(group, rewards.iter().map(|reward| verdict(*reward)).collect()).unwrap()
}

/// Groups with everything in them that is easily lost: odd floats, masks, empty samples, other scripts, nested
/// metadata, reasons for missing grades.
fn rich_groups() -> Vec<GradedGroup> {
    let mut first = sample(&[0, 1, u32::MAX, 151_643, 5, 6, 7, 8, 9], "数学 ✅ \"quoted\"\r\n\tline");
    first.mask[1] = false;
    first.mask[8] = false;
    first.logprobs =
        vec![-0.1, -1e-45, -f32::MIN_POSITIVE, -17.25, -0.0, -1e-20, -3.4e38, f32::NEG_INFINITY, -1.0 / 3.0];
    first.finish = Finish::Length;
    let mut second = sample(&[42], "4");
    second.finish = Finish::Stop;
    let metadata = serde_json::json!({
        "level": 0.1 + 0.2, "tiny": 5e-324, "zeta": [1, null, {"ключ": "значение"}], "alpha": 18_446_744_073_709_551_615u64
    });
    let messages =
        vec![Message { role: "system".into(), content: "Be brief.".into() }, Message::user("What is 2+2? 🙂")];
    let prompt = Prompt {
        input: PromptInput::Messages(messages),
        answer: Some("4".into()),
        metadata: metadata.as_object().unwrap().clone(),
    };
    let settings = SamplerSettings {
        temperature: 0.7,
        top_p: 0.1 + 0.2,
        stop: vec!["\n\n".into(), "終".into()],
        ..SamplerSettings::default()
    };
    let part = |name: &str, weight, grade| RewardPart { name: name.into(), version: "2".into(), weight, grade };
    let comparison = |rival, win| Comparison { judge: "長い".into(), version: "3+swap".into(), rival, win };
    let verdicts = vec![
        Verdict {
            rewards: vec![part("exact", 1.0, Grade::Value(0.1)), part("format", 1.0 / 3.0, Grade::Value(-1.5))],
            comparisons: vec![
                comparison(Rival::Opponent(7), Grade::Value(f32::MIN_POSITIVE)),
                comparison(Rival::Own(2), Grade::missing("sandbox: killed, 超时")),
                comparison(Rival::Own(1), Grade::Value(1.0 / 3.0)),
            ],
        },
        Verdict::of_rewards(vec![
            part("exact", 1.0, Grade::missing("sandbox: killed, 超时")),
            part("format", 0.0, Grade::Value(1.0)),
        ]),
        Verdict::default(),
    ];
    let rich = Group {
        prompt,
        prompt_ids: vec![1, 49_151, 3],
        policy: PolicyVersion { version: 3, hash: "f00d".into() },
        settings,
        samples: vec![first, second, sample(&[], "")],
    };
    let text = Group {
        prompt: Prompt::text("Once upon a time"),
        prompt_ids: vec![],
        policy: PolicyVersion { version: 2, hash: "cafe".into() },
        settings: SamplerSettings::default().greedy(),
        samples: vec![sample(&[1, 2], "ab")],
    };
    vec![GradedGroup::new(rich, verdicts).unwrap(), GradedGroup::new(text, vec![verdict(Some(1.0))]).unwrap()]
}

/// Groups such as a real step has, different for each step.
fn realistic_step(step: u64, groups: usize, samples: usize, tokens: usize) -> Vec<GradedGroup> {
    let seed = Seed::new(step);
    let token = |place: usize| seed.below(place as u64, 49_152) as u32;
    let scored = |number: usize| {
        let samples: Vec<Sample> = (0..samples)
            .map(|place| {
                let ids: Vec<u32> = (0..tokens).map(|at| token((number * samples + place) * tokens + at)).collect();
                let text = format!("step {step} group {number} sample {place}: the answer is {}", ids[0]);
                Sample { logprobs: ids.iter().map(|id| -(*id as f32) / 10_000.0).collect(), ..sample(&ids, &text) }
            })
            .collect();
        let verdicts = (0..samples.len()).map(|place| verdict(Some((place % 2) as f32))).collect();
        let group = Group {
            prompt: Prompt::user(format!("What is {step}+{number}? Answer with a number.")).with_answer("1"),
            prompt_ids: (0..40).map(token).collect(),
            policy: PolicyVersion { version: step, hash: format!("hash {step}") },
            settings: SamplerSettings::default(),
            samples,
        };
        GradedGroup::new(group, verdicts).unwrap()
    };
    (0..groups).map(scored).collect()
}

/// Runs a script past the store's own functions, to damage it.
fn execute(store: &Store, sql: impl Into<String>) {
    let sql = sql.into();
    let done = store.with_once(async |connection| connection.script(sql).await.doing("breaking a store"));
    done.unwrap();
}

impl Table {
    /// The answer as CSV, for comparison with one that is written out.
    fn to_csv(&self) -> String {
        let record = |fields: Vec<String>| {
            // The writer would put quotes for a record of a single empty field.
            if fields == [""] {
                return "\r\n".to_owned();
            }
            let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
            writer.write_record(fields).unwrap();
            String::from_utf8(writer.into_inner().unwrap()).unwrap()
        };
        let rows = self.rows.iter().map(|row| record(row.iter().map(csv_field).collect()));
        std::iter::once(record(self.columns.clone())).chain(rows).collect()
    }

    /// The answer as JSON, one object per row.
    fn to_json(&self) -> String {
        let value = |value: &Value| match value {
            Value::Null => serde_json::Value::Null,
            Value::Integer(number) => (*number).into(),
            Value::Real(number) => (*number).into(),
            Value::Text(_) | Value::Blob(_) => csv_field(value).into(),
        };
        let object = |row: &Vec<Value>| self.columns.iter().cloned().zip(row.iter().map(value)).collect();
        serde_json::Value::Array(self.rows.iter().map(|row| serde_json::Value::Object(object(row))).collect())
            .to_string()
    }

    /// Each value of the only row behind its name, in aligned lines.
    fn to_record_text(&self) -> String {
        let width = self.columns.iter().map(String::len).max().unwrap();
        let line = |(name, value): (&String, &Value)| {
            let value = csv_field(value).replace('\n', &format!("\n{}", " ".repeat(width + 2)));
            format!("{name:width$}  {value}").trim_end().to_owned() + "\n"
        };
        self.columns.iter().zip(&self.rows[0]).map(line).collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_csv())
    }
}

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => schema::hex(bytes),
    }
}

/// The only value of an answer.
fn one(table: &Table) -> &Value {
    assert_eq!((table.columns.len(), table.rows.len()), (1, 1), "{table:?}");
    &table.rows[0][0]
}

fn count(store: &Store, table: &str) -> i64 {
    match one(&store.query(&format!("SELECT COUNT(*) FROM {table}")).unwrap()) {
        Value::Integer(number) => *number,
        other => panic!("{other:?}"),
    }
}
