//! A store of schema version 3, whose comparisons are rows of `rewards`: it answers as it did, and loses nothing.

use super::{begin, execute, group, new_store, sample, step_groups, url};
use crate::rows::scoring::views_of;
use crate::{End, Ranking, RunId, SampleId, Scoring, Store, Table};
use schema::{Comparison, Grade, GradedGroup, RewardPart, Rival, Verdict};
use serde_json::Value;
use std::path::Path;

/// A copy of `testdata/version_3.sqlite`, brought up to date: two runs with judges (one by `online_dpo` with two rewards
/// and some comparisons that failed, one by `nash_md` with an opponent and no reward), an import, and a second scoring.
fn updated_store() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/version_3.sqlite"), &path).unwrap();
    let url = url(&path);
    drop(Store::open(&url).unwrap());
    (folder, url)
}

/// Rows in an order that no plan of the engine changes.
fn rows(answer: &Value) -> Vec<String> {
    let mut rows: Vec<String> = answer.as_array().unwrap().iter().map(Value::to_string).collect();
    rows.sort();
    rows
}

/// A report by the name that it has in `testdata/version_3.json`.
fn report(store: &Store, name: &str) -> Table {
    let table = match name {
        "list" => store.list(),
        "stats" => store.stats(None),
        "scorings" => store.scorings(),
        "audit" => store.audit(RunId(1)),
        "diff" => store.diff(RunId(1), RunId(2)),
        "top" => store.rank(&Ranking { run: None, part: Some("beats_1".into()), end: End::Top, count: 5 }),
        name => panic!("no report {name}"),
    };
    table.unwrap()
}

/// `testdata/version_3.json` holds the questions of `docs/replay.md` and some about comparisons, each under both
/// scorings, with the answers of the last program that wrote version 3.
#[test]
fn every_question_has_the_answer_that_it_had() {
    let (_folder, url) = updated_store();
    let recorded: Vec<Value> = serde_json::from_str(include_str!("../../testdata/version_3.json")).unwrap();
    assert!(recorded.iter().filter(|entry| entry["scoring"] == "training").count() >= 20);
    for entry in &recorded {
        let scoring: Scoring = entry["scoring"].as_str().unwrap_or("training").parse().unwrap();
        let store = Store::open_read_only(&url).unwrap().judged_by(scoring).unwrap();
        let table = match entry["sql"].as_str() {
            Some(sql) => store.query(sql).unwrap(),
            None => report(&store, entry["report"].as_str().unwrap()),
        };
        let answer: Value = serde_json::from_str(&table.to_json()).unwrap();
        assert_eq!(rows(&answer), rows(&entry["answer"]), "{scoring}: {}{}", entry["sql"], entry["report"]);
    }
}

#[test]
fn its_comparisons_have_their_own_table_now() {
    let (_folder, url) = updated_store();
    let store = Store::open_read_only(&url).unwrap();
    let found = store.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
    assert_eq!((super::count(&store, "comparisons"), super::count(&store, "part_view")), (184, 337));
    assert_eq!(super::count(&store, "rewards WHERE name LIKE 'beats%'"), 0);
    let groups = step_groups(&store, RunId(1), 1).unwrap().unwrap();
    let verdict = &groups[0].verdicts()[0];
    assert_eq!(
        verdict.rewards.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(),
        ["plain", "right", "win_rate"]
    );
    let wins: Vec<(Rival, Option<f32>)> =
        verdict.comparisons.iter().map(|comparison| (comparison.rival, comparison.win.value())).collect();
    assert_eq!(wins, [(Rival::Own(1), Some(0.163_667)), (Rival::Own(2), Some(0.494)), (Rival::Own(3), None)]);
    assert_eq!(verdict.comparisons[2].win.reason(), Some("does not apply"));
    // The grade that was stored is the mean of the comparisons that are read back, to the last bit.
    for verdict in groups.iter().flat_map(GradedGroup::verdicts) {
        assert_eq!(verdict.rewards[2].grade.value(), verdict.win_rate().map(|rate| rate as f32));
    }
    let duel = step_groups(&store, RunId(2), 1).unwrap().unwrap();
    assert_eq!(duel[0].verdicts()[0].beats(Rival::Opponent(1)).map(|win| win as f32), Some(0.505));
    assert_eq!(duel[0].rewards()[0], Some(0.5035));
    let shown = store.show_sample(SampleId(1)).unwrap().to_record_text();
    assert!(
        shown.contains("beats_1 0.163667 x 0 ") && shown.contains("beats_3 unjudged (does not apply) x 0 "),
        "{shown}"
    );
}

/// Makes a store of version 4 one of version 3, on either engine.
fn downgrade(store: &Store) {
    execute(
        store,
        "DROP VIEW part_view; DROP VIEW sample_view;
        INSERT INTO rewards (sample_id, scoring, place, name, version, weight, value, status, created_at)
        SELECT sample_id, scoring, 10 + place, CASE rival WHEN 'own' THEN 'beats_' ELSE 'beats_opponent_' END
            || rival_place, version, 0, win, status, created_at FROM comparisons;
        DROP TABLE comparisons; DELETE FROM schema_version WHERE version > 3",
    );
    let views = store.migrations().iter().filter(|(version, _)| *version <= 3).flat_map(|(_, sql)| views_of(sql));
    for view in views.filter(|view| view.contains(" part_view ") || view.contains(" sample_view ")) {
        execute(store, view);
    }
}

#[test]
fn bringing_a_store_up_to_date_keeps_every_verdict_on_either_engine() {
    let (place, store) = new_store();
    let run = begin(&store, "old");
    let part = |name: &str, weight, grade| RewardPart { name: name.into(), version: "2".into(), weight, grade };
    let comparison = |rival, win| Comparison { judge: "unknown".into(), version: "2".into(), rival, win };
    let verdicts = vec![
        Verdict {
            rewards: vec![part("exact", 1.0, Grade::Value(0.5)), part("win_rate", 0.0, Grade::Value(0.3))],
            comparisons: vec![
                comparison(Rival::Own(1), Grade::Value(0.1)),
                comparison(Rival::Opponent(12), Grade::missing("timed out")),
                comparison(Rival::Opponent(0), Grade::Value(1.0 / 3.0)),
            ],
        },
        // Rewards of versions without judges may have had such names.
        Verdict::of_rewards(vec![part("exact", 1.0, Grade::Value(0.5)), part("beats_1", 0.0, Grade::Value(2.0))]),
        Verdict::of_rewards(vec![
            part("beats_2", 1.0, Grade::Value(0.5)),
            part("beats_me", 0.0, Grade::Value(2.0)),
            part("win_rate", 0.0, Grade::Value(0.0)),
        ]),
    ];
    let mut samples = group("q", 0, &[]).group().clone();
    samples.samples = (0..3).map(|token| sample(&[token], "x")).collect();
    let groups = vec![GradedGroup::new(samples, verdicts).unwrap()];
    store.append_step(run, 1, &groups, None).unwrap();
    let (parts, texts) = ("SELECT * FROM part_view ORDER BY sample_id, name", "SELECT parts FROM sample_view");
    let before = (store.query(texts).unwrap(), store.stats(None).unwrap());
    downgrade(&store);
    let listed = store.query(parts).unwrap();
    drop(store);

    let store = Store::open(place.url()).unwrap();
    assert_eq!(step_groups(&store, run, 1).unwrap().unwrap(), groups);
    assert_eq!((super::count(&store, "comparisons"), super::count(&store, "rewards")), (3, 7));
    assert_eq!(store.query(parts).unwrap(), listed);
    assert_eq!((store.query(texts).unwrap(), store.stats(None).unwrap()), before);
    assert!(store.verify().unwrap().is_sound(), "{}", store.verify().unwrap().checks);
    // Another scoring has neither the rewards of training nor its comparisons.
    let scoring = store.begin_scoring(Some(run), "").unwrap();
    store.add_scores(scoring, &[(vec![SampleId(1)], group("q", 0, &[Some(1.0)]))]).unwrap();
    store.finish_scoring(scoring).unwrap();
    let latest = store.judged_by(Scoring::Latest).unwrap();
    assert_eq!(super::count(&latest, "part_view WHERE sample_id = 1"), 1);
    assert_eq!(latest.groups(&[crate::GroupId(1)]).unwrap()[0].scored.verdicts()[0].comparisons, []);
    assert_eq!(super::count(&latest, "part_view WHERE sample_id = 3"), 3);
}
