//! Files as users have them, sound and broken.

use super::super::Config as Prompts;
use super::*;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use serde_json::json;
use std::fs::File;
use std::sync::Arc;
use tempfile::TempDir;

/// A file with this content, and its folder, which lives as long as the test.
fn file(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn open(config: &Config) -> Result<Sources> {
    Prompts::Jsonl(config.clone()).open(&Seed::new(0))
}

/// All prompts of a source.
fn all(source: &PromptSource) -> Vec<Prompt> {
    (0..source.len().unwrap()).map(|index| source.prompt(index).unwrap()).collect()
}

/// The prompts of a JSONL text.
fn read(content: &str, config: Config) -> Vec<Prompt> {
    let (_folder, path) = file(content);
    all(&open(&Config { path, ..config }).unwrap().train)
}

/// The sentence that a JSONL text is refused with.
fn problem(content: &str, config: Config) -> String {
    let (_folder, path) = file(content);
    let error = open(&Config { path, ..config }).err().expect("the file is bad");
    assert!(error.is_input());
    error.to_string()
}

#[test]
fn text_messages_answers_and_other_columns() {
    let content = "\u{feff}{\"prompt\": \"2+2?\", \"answer\": 4, \"level\": \"easy\"}\n\n\
        {\"prompt\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": \"Hi\"}]}\r\n\
        {\"prompt\": \"3+3?\", \"answer\": null, \"solution\": \"six\", \"ground_truth\": 6}\n\
        {\"prompt\": \"4+4?\", \"reward_model\": {\"style\": \"rule\", \"ground_truth\": \"8\"}}";
    let prompts = read(content, Config::default());
    let mut first = Prompt::user("2+2?").with_answer("4");
    first.metadata.insert("level".into(), json!("easy"));
    assert_eq!(prompts[0], first);
    let PromptInput::Messages(messages) = &prompts[1].input else { panic!("messages stay messages") };
    assert_eq!((messages.len(), prompts[1].question(), &prompts[1].answer), (2, "Hi", &None));
    assert_eq!((prompts[2].answer.as_deref(), &prompts[2].metadata["ground_truth"]), (Some("six"), &json!(6)));
    assert_eq!(prompts[3].answer.as_deref(), Some("8"));
    assert_eq!(prompts[3].metadata["reward_model"]["style"], "rule");
}

#[test]
fn gsm8k_needs_one_key() {
    let content = r#"{"question": "How many?", "answer": "7 and 15 make 22.\n#### 22"}"#;
    let prompts = read(content, Config { prompt_column: "question".into(), ..Config::default() });
    assert_eq!(prompts, [Prompt::user("How many?").with_answer("7 and 15 make 22.\n#### 22")]);
}

#[test]
fn raw_text_and_system_turns() {
    let content = r#"{"prompt": "Once upon"}"#;
    assert_eq!(read(content, Config { form: Form::Text, ..Config::default() }), [Prompt::text("Once upon")]);
    let config = Config { system: "Be brief.".into(), ..Config::default() };
    let PromptInput::Messages(messages) = &read(content, config.clone())[0].input else { panic!("a chat") };
    assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "Be brief."));
    let own = r#"{"prompt": [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]}"#;
    let PromptInput::Messages(messages) = &read(own, config)[0].input else { panic!("a chat") };
    assert_eq!((messages.len(), messages[0].content.as_str()), (2, "Own."));
}

#[test]
fn held_out_rows_are_not_trained_on_nor_are_their_doubles() {
    // Fifty prompts, each of them twice.
    let lines: Vec<String> = (0..100).map(|n| json!({"prompt": format!("q{}", n % 50), "n": n}).to_string()).collect();
    let (_folder, path) = file(&lines.join("\n"));
    let config = Config { path: path.clone(), held_out_count: 10, ..Config::default() };
    let Sources { train, held_out } = open(&config).unwrap();
    let (train, held_out) = (all(&train), all(&held_out.unwrap()));
    assert_eq!(held_out.len(), 10);
    let asked: HashSet<&str> = held_out.iter().map(Prompt::question).collect();
    assert!(train.iter().all(|prompt| !asked.contains(prompt.question())));
    assert_eq!(train.len(), 100 - 2 * asked.len());
    assert_eq!(all(&open(&config).unwrap().held_out.unwrap()), held_out);

    let (_other, held_out_path) = file(r#"{"prompt": "another"}"#);
    let config = Config { path, held_out_path: Some(held_out_path), ..Config::default() };
    assert_eq!(all(&open(&config).unwrap().held_out.unwrap()), [Prompt::user("another")]);
    assert!(open(&Config { held_out_count: 1, ..config }).err().unwrap().to_string().contains("not both"));
}

#[test]
fn completions_come_out_under_their_own_names() {
    let (_folder, path) = file(r#"{"question": "2+2?", "answer": "4", "level": 1}"#);
    let config = Config {
        path,
        prompt_column: "question".into(),
        completion_column: "answer".into(),
        chosen_column: "answer".into(),
        rejected_column: "question".into(),
        ..Config::default()
    };
    let row = |kind| all(&Prompts::Jsonl(config.clone()).open_rows(kind, &Seed::new(0)).unwrap().train).remove(0);
    let expected = |metadata: Value| {
        let metadata = metadata.as_object().unwrap().clone();
        Prompt { metadata, ..Prompt::user("2+2?").with_answer("4") }
    };
    assert_eq!(row(RowKind::Prompts), expected(json!({"level": 1})));
    assert_eq!(row(RowKind::Demonstrations), expected(json!({"level": 1, "completion": "4"})));
    assert_eq!(row(RowKind::Pairs), expected(json!({"level": 1, "chosen": "4", "rejected": "2+2?"})));
}

#[test]
fn a_prompt_of_the_held_out_file_is_not_trained_on() {
    let (_folder, path) = file("{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"answer\": \"1\"}\n{\"prompt\": \"c\"}");
    let (_other, held_out_path) = file("{\"prompt\": \"b\", \"answer\": \"2\"}\n{\"prompt\": \"d\"}");
    let config = Config { path: path.clone(), held_out_path: Some(held_out_path), ..Config::default() };
    let sources = open(&config).unwrap();
    assert_eq!(all(&sources.train), [Prompt::user("a"), Prompt::user("c")]);
    assert_eq!(all(&sources.held_out.unwrap()).len(), 2);
    // The file itself leaves nothing.
    let problem = open(&Config { held_out_path: Some(path), ..config }).err().unwrap().to_string();
    assert!(problem.contains("nothing is left to train on if 3 prompts are held out"), "{problem}");
}

#[test]
fn a_message_that_says_more_than_its_content_is_refused() {
    let call = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}"#;
    for kind in [RowKind::Prompts, RowKind::Demonstrations] {
        let (_folder, path) = file(&format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}, {{\"role\": \"assistant\", \"content\": \"b\"}}]}}\n{call}"
        ));
        let config = Prompts::Jsonl(Config { path, ..Config::default() });
        let problem = config.open_rows(kind, &Seed::new(0)).err().unwrap().to_string();
        assert!(problem.contains("line 2: a message in `messages` has `tool_calls`"), "{problem}");
    }
    let harmless = r#"{"prompt": [{"role": "user", "content": "a", "name": null, "tool_calls": [], "refusal": "", "audio": {"id": null}}]}"#;
    let (_folder, path) = file(harmless);
    assert_eq!(all(&open(&Config { path, ..Config::default() }).unwrap().train), [Prompt::user("a")]);
}

#[test]
fn pairs_without_a_difference_are_left_out() {
    let alike = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}";
    let pairs = |text: &str| {
        let (_folder, path) = file(text);
        Prompts::Jsonl(Config { path, ..Config::default() }).open_rows(RowKind::Pairs, &Seed::new(0))
    };
    let some = pairs(&format!("{alike}\n{{\"prompt\": \"c\", \"chosen\": \"d\", \"rejected\": \"e\"}}")).unwrap();
    assert_eq!(all(&some.train).iter().map(Prompt::question).collect::<Vec<_>>(), ["c"]);
    let none = pairs(&format!("{alike}\n{alike}")).err().unwrap().to_string();
    assert!(none.contains("2 of 2 pairs have equal completions and teach nothing, the first in line 1"), "{none}");
}

#[test]
fn a_row_without_its_completion_is_named() {
    let (_folder, path) =
        file("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n{\"prompt\": \"a\", \"chosen\": \"b\"}");
    let config = Prompts::Jsonl(Config { path, ..Config::default() });
    let problem = |kind| config.open_rows(kind, &Seed::new(0)).err().unwrap().to_string();
    assert!(problem(RowKind::Pairs).contains("line 2: there is no column `rejected`"), "{}", problem(RowKind::Pairs));
    assert!(problem(RowKind::Demonstrations).contains("line 1: there is no column `completion`"));
}

#[test]
fn errors_name_the_file_and_the_problem() {
    let config = Config::default;
    let good = "{\"prompt\": \"a\"}\n";
    assert!(open(&config()).err().unwrap().to_string().contains("`path`"));
    let nowhere = Config { path: "/nowhere/data.jsonl".into(), ..config() };
    assert!(open(&nowhere).err().unwrap().to_string().contains("/nowhere/data.jsonl: No such file"));
    assert!(problem("", config()).contains("holds no prompts"));
    assert!(problem("\n\n", config()).contains("holds no prompts"));
    assert!(problem(&format!("{good}\n{{\"prompt\": }}"), config()).contains("line 3 is no JSON object"));
    assert!(problem("[1, 2]", config()).contains("line 1 is no JSON object"));
    assert!(problem(&format!("{good}{{\"prompt\": 5}}"), config()).contains("line 2: `prompt` must be text or a list"));
    assert!(problem("{\"prompt\": []}", config()).contains("but is an empty list"));
    let bad_message = problem("{\"prompt\": [{\"role\": \"user\"}]}", config());
    assert!(bad_message.contains("missing field `content`"), "{bad_message}");
    let typo = problem("{\"promt\": \"a\", \"answer\": \"b\"}", config());
    assert!(typo.contains("no column `prompt`") && typo.contains("only `promt`, `answer`"), "{typo}");
    assert!(typo.ends_with("did you mean `promt`?"), "{typo}");
    let answer = problem(good, Config { answer_column: Some("label".into()), ..config() });
    assert!(answer.contains("no column `label` for answers, only `prompt`"), "{answer}");
    assert!(problem(good, Config { held_out_count: 1, ..config() }).contains("nothing is left to train on"));
    let system = Config { form: Form::Text, system: "Be brief.".into(), ..config() };
    assert!(problem(good, system).contains("`system` needs chat"));
}

#[test]
fn a_config_reads_from_toml() {
    let config: Prompts = serde_json::from_value(json!({"jsonl": {"path": "a.jsonl", "as": "text"}})).unwrap();
    assert_eq!(config, Prompts::Jsonl(Config { path: "a.jsonl".into(), form: Form::Text, ..Config::default() }));
    let error = serde_json::from_value::<Prompts>(json!({"parquet": {"pth": "a"}})).unwrap_err().to_string();
    assert!(error.contains("unknown field `pth`"), "{error}");
}

#[test]
fn parquet_gives_what_jsonl_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.parquet");
    let schema = "message data {
        required binary question (UTF8);
        optional int64 level;
        required group reward_model { required binary ground_truth (UTF8); }
        required group prompt (LIST) { repeated group list { required group element {
            required binary content (UTF8); required binary role (UTF8);
        } } }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    text_column(&mut group, ["2+2?", "3+3?"], None);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1], Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    text_column(&mut group, ["4", "6"], None);
    // One message in each row: one list that starts anew, with one element.
    text_column(&mut group, ["What is 2+2?", "What is 3+3?"], Some((&[1, 1], &[0, 0])));
    text_column(&mut group, ["user", "user"], Some((&[1, 1], &[0, 0])));
    group.close().unwrap();
    writer.close().unwrap();

    let config = Config { path: path.clone(), ..Config::default() };
    let prompts = all(&Prompts::Parquet(config.clone()).open(&Seed::new(0)).unwrap().train);
    let mut first = Prompt::user("What is 2+2?").with_answer("4");
    first.metadata =
        json!({"question": "2+2?", "level": 1, "reward_model": {"ground_truth": "4"}}).as_object().unwrap().clone();
    assert_eq!(prompts[0], first);
    assert_eq!((prompts[1].question(), prompts[1].answer.as_deref()), ("What is 3+3?", Some("6")));
    assert_eq!(prompts[1].metadata["level"], Value::Null);

    let config = Config { prompt_column: "qestion".into(), ..config };
    let error = Prompts::Parquet(config).open(&Seed::new(0)).err().unwrap().to_string();
    assert!(error.contains("row 1: there is no column `qestion`") && error.contains("mean `question`?"), "{error}");
    std::fs::write(&path, "{}").unwrap();
    let config = Config { path, ..Config::default() };
    let error = Prompts::Parquet(config).open(&Seed::new(0)).err().unwrap();
    assert!(error.is_input() && error.to_string().contains("no Parquet file"), "{error}");
}

/// Writes one text column of two rows, with its definition and repetition levels if it is nested.
fn text_column(group: &mut SerializedRowGroupWriter<'_, File>, values: [&str; 2], levels: Option<(&[i16], &[i16])>) {
    let mut column = group.next_column().unwrap().unwrap();
    let (definition, repetition) = levels.unzip();
    column.typed::<ByteArrayType>().write_batch(&values.map(ByteArray::from), definition, repetition).unwrap();
    column.close().unwrap();
}
