//! Queries: views, reports, SQL and exported files.

use super::{begin, count, group, is_postgres, new_store, one, realistic_step, rich_groups};
use crate::{Error, RunStatus, SampleId, Selection, Store, Table, Value};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::fs::{self, File};

#[test]
fn views_say_what_the_blobs_hold() {
    let (_folder, store) = new_store();
    let run = begin(&store, "rich");
    let groups = rich_groups();
    store.append_step(run, 3, &groups, None).unwrap();
    let sql = "SELECT token_ids, logprobs, prompt_token_ids, reward, text, question, finish, length, policy_hash
        FROM sample_view ORDER BY sample_id";
    let table = store.query(sql).unwrap();
    let samples = groups.iter().flat_map(|scored| {
        let verdicts = scored.verdicts();
        scored.group().samples.iter().zip(verdicts).map(move |(sample, verdict)| (scored.group(), sample, verdict))
    });
    assert_eq!(table.rows.len(), 4);
    for (row, (group, sample, verdict)) in table.rows.iter().zip(samples) {
        assert_eq!(ids(&row[0]), sample.ids);
        let expected = sample.logprobs.iter().map(|p| p.is_finite().then_some(*p)).collect::<Vec<_>>();
        assert_eq!(logprobs(&row[1]), expected);
        assert_eq!(ids(&row[2]), group.prompt_ids);
        assert_eq!(real(&row[3]).map(|reward| reward as f32), verdict.total());
        assert_eq!(row[4], Value::Text(sample.text.clone()));
        assert_eq!(row[5], Value::Text(group.prompt.question().to_owned()));
        assert_eq!(row[6], Value::Text(sample.finish.as_str().to_owned()));
        assert_eq!(row[7], Value::Integer(sample.len() as i64));
        assert_eq!(row[8], Value::Text(group.policy.hash.clone()));
    }
}

#[test]
fn the_log_prob_view_is_exact_at_every_exponent() {
    let (_folder, store) = new_store();
    let run = begin(&store, "floats");
    let mut scored = group("q", 0, &[Some(1.0)]).group().clone();
    // Every exponent, with three fractions each, and both signs.
    let numbers: Vec<f32> = (0..255u32)
        .flat_map(|exponent| [0, 1, 0x7f_ffff].map(|fraction| f32::from_bits(exponent << 23 | fraction)))
        .flat_map(|number| [number, -number])
        .collect();
    scored.samples[0].ids = (0..numbers.len() as u32).map(|number| number.wrapping_mul(2_654_435_769)).collect();
    scored.samples[0].mask = vec![true; numbers.len()];
    scored.samples[0].logprobs = numbers.clone();
    let scored = schema::GradedGroup::new(scored, vec![super::verdict(Some(1.0))]).unwrap();
    store.append_step(run, 0, std::slice::from_ref(&scored), None).unwrap();
    let table = store.query("SELECT logprobs, token_ids FROM sample_view").unwrap();
    assert_eq!(logprobs(&table.rows[0][0]), numbers.into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(ids(&table.rows[0][1]), scored.group().samples[0].ids);
}

#[test]
fn writes_are_refused_and_change_nothing() {
    let (folder, store) = new_store();
    let run = begin(&store, "safe");
    store.append_step(run, 0, &rich_groups(), None).unwrap();
    let reader = Store::open_read_only(folder.url()).unwrap();
    let copy = folder.path().join("copy.db");
    let writes = [
        "DELETE FROM samples".to_owned(),
        "WITH old AS (SELECT 1 AS id) DELETE FROM rewards WHERE sample_id IN (SELECT id FROM old)".into(),
        "SELECT 1; DELETE FROM rewards".into(),
        format!("VACUUM INTO '{}'", copy.display()),
        format!("ATTACH '{}' AS copy", copy.display()),
        "PRAGMA query_only = OFF".into(),
        "SELECT load_extension('libc.so.6')".into(),
    ];
    for sql in &writes {
        for store in [&store, &reader] {
            let error = store.query(sql).unwrap_err();
            assert!(matches!(error, Error::NotReading { .. } | Error::BadSql { .. }), "{sql}: {error:?}");
            assert!(error.is_input());
        }
    }
    assert_eq!((count(&store, "samples"), count(&store, "rewards")), (4, 5));
    assert!(!copy.exists());
    // Only the asking is read-only: the writer's store still writes, the reader's does not.
    store.append_step(run, 1, &rich_groups(), None).unwrap();
    assert!(reader.append_step(run, 2, &rich_groups(), None).is_err());
    let error = store.query("SELECT nope FROM samples").unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");
}

#[test]
fn answers_have_columns_without_rows_and_every_kind_of_value() {
    let (_folder, store) = new_store();
    assert_eq!(store.query("SELECT id, name FROM runs").unwrap(), Table::new(["id", "name"]));
    let (sql, odd) = if is_postgres() {
        ("SELECT 1 AS n, 0.5 AS x, 'ü' AS t, '\\x00ff'::BYTEA AS b, NULL AS z, DATE '2026-11-03' AS odd", "2026-11-03")
    } else {
        ("SELECT 1 AS n, 0.5 AS x, 'ü' AS t, x'00ff' AS b, NULL AS z, CAST(x'ff41' AS TEXT) AS odd", "\u{fffd}A")
    };
    let table = store.query(sql);
    let expected =
        [Value::Integer(1), Value::Real(0.5), "ü".into(), Value::Blob(vec![0, 255]), Value::Null, odd.into()];
    assert_eq!(table.unwrap().rows, [expected]);
}

#[test]
fn reports() {
    let (_folder, store) = new_store();
    let run = begin(&store, "sums");
    let step_0 = [group("a", 0, &[Some(0.0), Some(1.0)]), group("b", 0, &[Some(1.0), Some(1.0)])];
    let mut cut = group("c", 1, &[Some(1.0), None]).group().clone();
    cut.samples[0].finish = schema::Finish::Length;
    let verdicts = vec![super::verdict(Some(1.0)), super::verdict(None)];
    store.append_step(run, 0, &step_0, None).unwrap();
    store.append_step(run, 1, &[schema::GradedGroup::new(cut, verdicts).unwrap()], None).unwrap();
    let mut metrics = schema::Metrics::new();
    metrics.set("effective_sample_share", 0.75);
    store.finish_step(run, 0, &metrics).unwrap();
    store.finish_run(run, RunStatus::Finished).unwrap();
    begin(&store, "idle");

    // Rewards 0 1 1 1: mean 3/4, variance (0.5625 + 3 x 0.0625) / 3 = 1/4. One of two groups has no signal.
    let stats = store.stats(Some(run)).unwrap().to_csv();
    let expected = "\
run,run_id,policy,hash,origin,age,groups,samples,tokens,unjudged,reward_mean,reward_std,length_mean,clipped,\
no_signal,ess\r\n\
sums,1,0,hash 0,drawn,1,2,4,4,0,0.75,0.5,1,0,0.5,0.75\r\n\
sums,1,1,hash 1,drawn,0,1,2,2,1,1,,1,0.5,1,\r\n";
    assert_eq!(stats, expected);
    assert_eq!(store.stats(None).unwrap().rows.len(), 2);

    let list = store.list().unwrap().to_csv();
    let expected = "\
id,run,kind,status,started,steps,samples,tokens,reward_first,reward_last\r\n\
1,sums,training,finished,2026-11-03 09:05:07Z,2,6,6,0.75,1\r\n\
2,idle,training,running,2026-11-03 09:05:07Z,0,0,0,,\r\n";
    assert_eq!(list, expected);

    let record = store.show_run(run).unwrap().to_record_text();
    assert!(record.contains("status           finished\n"), "{record}");
    assert!(record.contains("samples          6\n"), "{record}");

    let signals = store.query("SELECT question, judged, reward_mean, has_signal FROM group_view ORDER BY group_id");
    assert_eq!(
        signals.unwrap().to_csv(),
        "question,judged,reward_mean,has_signal\r\na,2,0.5,1\r\nb,2,1,0\r\nc,1,1,0\r\n"
    );
}

#[test]
fn a_sample_is_shown_whole() {
    let (_folder, store) = new_store();
    let run = begin(&store, "rich");
    store.append_step(run, 3, &rich_groups(), None).unwrap();
    let record = store.show_sample(SampleId(2)).unwrap().to_record_text();
    let lines = [
        "sample_id       2\n",
        "prompt          [system] Be brief.\n                [user] What is 2+2? 🙂\n",
        "completion      4\n",
        "finish          stop\n",
        "reward\n",
        "parts           exact unjudged (sandbox: killed, 超时) x 1 (version 2)\n",
        "completion_ids  [42]\n",
    ];
    for line in lines {
        assert!(record.contains(line), "{line:?} is not in\n{record}");
    }
    let error = store.show_sample(SampleId(5)).unwrap_err();
    assert!(error.to_string().starts_with("the store holds no sample 5"), "{error}");
}

#[test]
fn json_lines_hold_everything() {
    let (folder, store) = new_store();
    let run = begin(&store, "rich");
    store.append_step(run, 3, &rich_groups(), None).unwrap();
    let path = folder.path().join("out.jsonl");
    assert_eq!(store.export(&path, &Selection::default()).unwrap(), 4);
    let text = fs::read_to_string(&path).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let groups = rich_groups();
    let (group, sample) = (groups[0].group(), &groups[0].group().samples[0]);
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0]["prompt"], serde_json::to_value(&group.prompt.input).unwrap());
    assert_eq!(rows[0]["completion"], sample.text);
    assert_eq!(rows[0]["completion_ids"], serde_json::json!(sample.ids));
    assert_eq!(rows[0]["logprobs"][8].as_f64().unwrap() as f32, sample.logprobs[8]);
    assert_eq!(rows[0]["mask"], serde_json::json!(sample.mask));
    assert_eq!(rows[0]["metadata"], serde_json::json!(group.prompt.metadata));
    assert_eq!(rows[1]["reward"], serde_json::Value::Null);
    assert_eq!(rows[1]["parts"][0]["status"]["unjudged"], "sandbox: killed, 超时");
    assert_eq!(rows[3]["prompt"], "Once upon a time");
}

#[test]
fn parquet_holds_what_the_store_holds() {
    let (folder, store) = new_store();
    let run = begin(&store, "many");
    // More than are written at a time.
    for step in 0..5 {
        store.append_step(run, step, &realistic_step(step, 75, 4, 3), None).unwrap();
    }
    store.append_step(begin(&store, "rich"), 5, &rich_groups(), None).unwrap();
    let path = folder.path().join("out.parquet");
    assert_eq!(store.export(&path, &Selection::default()).unwrap(), 1504);
    let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.num_row_groups(), 2);
    let groups: Vec<_> = (0..5).flat_map(|step| realistic_step(step, 75, 4, 3)).chain(rich_groups()).collect();
    let samples = groups.iter().flat_map(|scored| {
        scored
            .group()
            .samples
            .iter()
            .zip(scored.rewards())
            .map(move |(sample, reward)| (scored.group(), sample, reward))
    });
    let mut rows = 0;
    for (row, (group, sample, reward)) in reader.get_row_iter(None).unwrap().map(Result::unwrap).zip(samples) {
        rows += 1;
        assert_eq!(row.get_long(0).unwrap(), rows);
        assert_eq!(row.get_string(9).unwrap(), group.prompt.question());
        assert_eq!(row.get_string(12).unwrap(), &sample.text);
        assert_eq!(row.get_float(14).ok(), reward);
        let list =
            |column| row.get_list(column).unwrap().elements().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(list(16), group.prompt_ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(list(17), sample.ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(list(19), sample.mask.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(list(18).len(), sample.len());
    }
    assert_eq!(rows, 1504);
}

#[test]
fn csv_has_a_header_that_fits_and_selections_select() {
    let (folder, store) = new_store();
    let (one, two) = (begin(&store, "one"), begin(&store, "two"));
    store.append_step(one, 3, &rich_groups(), None).unwrap();
    store.append_step(two, 0, &[group("q", 0, &[Some(0.0), Some(1.0), Some(1.0)])], None).unwrap();
    let path = folder.path().join("out.csv");
    let export = |run, condition: &str| store.export(&path, &Selection { run, condition: Some(condition.into()) });
    assert_eq!(export(Some(two), "reward > 0.5 -- the good ones").unwrap(), 2);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].split(',').count(), 21);
    assert!(lines[1].starts_with("6,two,2,0,3,1,0,hash 0,"), "{}", lines[1]);
    assert_eq!(export(None, "reward > 0.5 OR finish = 'stop'").unwrap(), 4);
    assert_eq!(export(None, "text LIKE '%数学%'").unwrap(), 1);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(",\"数学 ✅ \"\"quoted\"\"\r\n\tline\",length,"), "{text}");
    assert!(text.contains(",\"[0,1,4294967295,151643,5,6,7,8,9]\",\"[-0.1,"), "{text}");

    let before = fs::read(&path).unwrap();
    assert!(matches!(export(None, "nope = 1").unwrap_err(), Error::BadSql { .. }));
    assert!(matches!(export(None, "1); DELETE FROM samples; --").unwrap_err(), Error::NotReading { .. }));
    assert_eq!(fs::read(&path).unwrap(), before);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("partial")), "{names:?}");
}

#[test]
fn where_a_file_cannot_be_written_nothing_is_left() {
    let (folder, store) = new_store();
    let export = |name: &str| store.export(&folder.path().join(name), &Selection::default()).unwrap_err();
    let error = export("out.xlsx");
    assert!(error.to_string().ends_with("name it .jsonl, .csv or .parquet"), "{error}");
    let error = export("none/out.csv");
    assert!(error.to_string().starts_with("cannot write "), "{error}");
    assert!(error.is_input());
    assert!(!folder.path().join("none").exists());
}

#[test]
fn asking_works_with_other_scripts() {
    let (_folder, store) = new_store();
    let run = begin(&store, "数学");
    store.append_step(run, 0, &[group("сколько будет 2+2? 🙂", 0, &[Some(1.0)])], None).unwrap();
    let answer = store.query("SELECT question FROM sample_view WHERE run = '数学'").unwrap();
    assert_eq!(one(&answer), &Value::Text("сколько будет 2+2? 🙂".into()));
    assert_eq!(store.find_run("数学").unwrap().id, run);
}

fn text(value: &Value) -> &str {
    match value {
        Value::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        Value::Real(number) => Some(*number),
        Value::Null => None,
        other => panic!("{other:?}"),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_str(text(value)).unwrap()
}

fn logprobs(value: &Value) -> Vec<Option<f32>> {
    let numbers: Vec<Option<f64>> = serde_json::from_str(text(value)).unwrap();
    numbers.into_iter().map(|number| number.map(|number| number as f32)).collect()
}
