//! Later scorings, and the reports that rank, compare and audit samples.

use super::{begin, group, new_store, realistic_step, sample, verdict};
use crate::{End, Ranking, RunId, SampleId, Scoring, Store, Table, Value};
use schema::{Finish, GradedGroup, Group, PolicyVersion, Prompt, SamplerSettings};

/// Appends one step of two groups, one of which is graded once more with other rewards. Returns the scoring's number.
fn judged_twice(store: &Store) -> i64 {
    let run = begin(store, "twice");
    let groups = [group("a", 0, &[Some(0.0), Some(1.0)]), group("b", 0, &[Some(1.0), None])];
    store.append_step(run, 1, &groups, None).unwrap();
    let scoring = store.begin_scoring(Some(run), "[[reward]]").unwrap();
    store.add_scores(scoring, &[(vec![SampleId(1), SampleId(2)], group("a", 0, &[Some(3.0), Some(2.0)]))]).unwrap();
    scoring
}

fn csv(table: crate::Result<Table>) -> String {
    table.unwrap().to_csv()
}

#[test]
fn every_question_means_the_scoring_it_was_asked_under() {
    let (folder, store) = new_store();
    let scoring = judged_twice(&store);
    let open = |scoring| {
        let store = Store::open_read_only(folder.url()).unwrap();
        store.judged_by(scoring).unwrap()
    };
    let rewards = |store: &Store| csv(store.query("SELECT reward FROM sample_view ORDER BY sample_id"));
    let (training, again) = ("reward\r\n0\r\n1\r\n1\r\n\r\n", "reward\r\n3\r\n2\r\n\r\n\r\n");
    assert_eq!(rewards(&open(Scoring::Training)), training);
    assert_eq!(rewards(&open(Scoring::Number(scoring))), again);
    assert_eq!(rewards(&open(Scoring::Latest)), training);
    store.finish_scoring(scoring).unwrap();
    // Samples that were not graded again keep the rewards of training.
    assert_eq!(rewards(&open(Scoring::Latest)), "reward\r\n3\r\n2\r\n1\r\n\r\n");
    let latest = open(Scoring::Latest);
    assert_eq!(
        csv(latest.query("SELECT question, reward_mean, has_signal FROM group_view ORDER BY group_id")),
        "question,reward_mean,has_signal\r\na,2.5,1\r\nb,1,0\r\n"
    );
    // Rewards 3 2 1: mean 2.
    let stats = latest.stats(None).unwrap();
    let column = stats.columns.iter().position(|name| name == "reward_mean").unwrap();
    assert_eq!(stats.rows[0][column], Value::Real(2.0));
    assert_eq!(latest.groups(&[crate::GroupId(1)]).unwrap()[0].scored.rewards(), [Some(3.0), Some(2.0)]);
    // A resumed run reads the rewards of training under every scoring.
    assert_eq!(latest.step_groups(RunId(1), 1).unwrap().unwrap()[0].scored.rewards(), [Some(0.0), Some(1.0)]);
    // Other handles saw nothing of it, and it still cannot write.
    assert_eq!(rewards(&store), training);
    assert!(latest.query("DELETE FROM samples").unwrap_err().is_input());
    assert!(latest.begin_scoring(None, "").is_err());
    let none = Store::open_read_only(folder.url()).unwrap().judged_by(Scoring::Number(7));
    assert!(none.unwrap_err().to_string().starts_with("the store holds no scoring 7"));
    let list = csv(store.scorings());
    assert!(list.starts_with("scoring,run,began,status,samples,config\r\n1,twice,"), "{list}");
    assert!(list.contains(",finished,2,[[reward]]"), "{list}");
}

#[test]
fn scorings_are_named_in_words() {
    for (text, scoring) in [
        ("training", Scoring::Training),
        ("0", Scoring::Training),
        ("latest", Scoring::Latest),
        ("3", Scoring::Number(3)),
    ] {
        assert_eq!(text.parse(), Ok(scoring));
    }
    assert!("-1".parse::<Scoring>().is_err());
    assert!("newest".parse::<Scoring>().unwrap_err().contains("write training, latest or"));
}

#[test]
fn the_best_and_the_worst() {
    let (_folder, store) = new_store();
    let scoring = judged_twice(&store);
    let rank = |store: &Store, end, part: Option<&str>| {
        let ranking = Ranking { run: None, part: part.map(str::to_owned), end, count: 2 };
        store
            .rank(&ranking)
            .map(|table| table.rows.iter().map(|row| (row[0].clone(), row[3].clone())).collect::<Vec<_>>())
    };
    let row = |id: i64, reward: f64| (Value::Integer(id), Value::Real(reward));
    // Samples 2 and 3 have reward 1, sample 1 has 0, sample 4 none.
    assert_eq!(rank(&store, End::Top, None).unwrap(), [row(2, 1.0), row(3, 1.0)]);
    assert_eq!(rank(&store, End::Bottom, None).unwrap(), [row(1, 0.0), row(2, 1.0)]);
    assert_eq!(rank(&store, End::Bottom, Some("exact")).unwrap(), [row(1, 0.0), row(2, 1.0)]);
    let error = rank(&store, End::Top, Some("format")).unwrap_err();
    assert_eq!(error.to_string(), "no part of a reward is called `format`; there are exact");
    let again = store.judged_by(Scoring::Number(scoring)).unwrap();
    assert_eq!(rank(&again, End::Top, None).unwrap(), [row(1, 3.0), row(2, 2.0)]);
    assert_eq!(rank(&again, End::Top, Some("exact")).unwrap(), [row(1, 3.0), row(2, 2.0)]);
}

#[test]
fn runs_are_compared_by_key_sample_and_metric() {
    let (_folder, store) = new_store();
    let begin = |config: &str| {
        let run = crate::NewRun { config: config.into(), ..super::new_run("same") };
        store.begin_run(&run).unwrap()
    };
    let a = begin("seed = 1\n[optimizer.adamw]\nlearning_rate = 0.1\n[[reward]]\nweight = 1.0\n");
    let b = begin("seed = 1\n[optimizer.adamw]\nlearning_rate = 0.2\n[[reward]]\nweight = 1.0\n[prox]\nx = [1, 2]\n");
    store.append_step(a, 1, &[group("a", 0, &[Some(0.0), Some(1.0)])], None).unwrap();
    store.append_step(b, 1, &[group("a", 0, &[Some(1.0), Some(1.0), None])], None).unwrap();
    for (run, loss) in [(a, 0.5), (b, 0.25)] {
        let mut metrics = schema::Metrics::new();
        metrics.set("loss", loss);
        store.finish_step(run, 1, &metrics).unwrap();
    }
    let text = csv(store.diff(a, b));
    assert!(text.starts_with("what,same (1),same (2),difference\r\n"), "{text}");
    for line in [
        "config optimizer.adamw.learning_rate,0.1,0.2,\r\n",
        "config prox.x,,\"[1, 2]\",\r\n",
        "samples,2,3,1\r\n",
        "\"reward, last 10 steps\",0.5,1,0.5\r\n",
        "\"no signal, last 10 steps\",0,1,1\r\n",
        "metric loss,0.5,0.25,-0.25\r\n",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("seed") && !text.contains("weight"), "{text}");
}

/// A group whose samples are given as text, tokens and reward.
fn answers(question: &str, answers: &[(&str, Vec<u32>, f32)]) -> GradedGroup {
    let group = Group {
        prompt: Prompt::user(question),
        prompt_ids: vec![1],
        policy: PolicyVersion { version: 0, hash: "h".into() },
        settings: SamplerSettings::default(),
        samples: answers.iter().map(|(text, ids, _)| sample(ids, text)).collect(),
    };
    let verdicts = answers.iter().map(|(_, _, reward)| verdict(Some(*reward))).collect();
    GradedGroup::new(group, verdicts).unwrap()
}

#[test]
fn an_audit_finds_a_hacked_reward() {
    let (_folder, store) = new_store();
    let run = begin(&store, "hacked");
    for step in 1..=8u32 {
        let late = step > 6;
        let group = |number: u32| {
            // Early answers are short and all different; late ones repeat two tokens, and the longer one wins.
            let own = 100 * step + 10 * number;
            let (short, long): (Vec<u32>, Vec<u32>) = if late {
                ([7, 8].repeat(6), [7, 8].repeat(20))
            } else {
                ((own..own + 8).collect(), (own..own + 9).collect())
            };
            let (losing, winning) = if late { ("so it goes", "<answer>4</answer>") } else { ("4", "5") };
            answers(&format!("question {step} {number}"), &[(losing, short, 0.0), (winning, long, 1.0)])
        };
        let mut groups: Vec<GradedGroup> = (0..2).map(group).collect();
        if late {
            let mut cut = groups[0].group().clone();
            cut.samples[1].finish = Finish::Length;
            groups[0] = GradedGroup::new(cut, groups[0].verdicts().to_vec()).unwrap();
        }
        store.append_step(run, u64::from(step), &groups, None).unwrap();
    }
    let table = store.audit(run).unwrap();
    let verdicts: Vec<(String, String)> = table.rows.iter().map(|row| (text(&row[0]), text(&row[1]))).collect();
    let expected = [
        ("length_drift", "look"),
        ("repetition_drift", "look"),
        ("near_duplicate_winners", "look"),
        ("answer_format", "look"),
        ("rewarded_truncation", "look"),
        ("unjudged_drift", "ok"),
    ];
    assert_eq!(verdicts, expected.map(|(name, verdict)| (name.to_owned(), verdict.to_owned())), "{table}");
    // Steps 1 and 2 against 7 and 8. Early lengths 8 and 9, late ones 12 and 40; steps 7 and 8 hold samples 25 to 32.
    assert!(text(&table.rows[0][2]).starts_with("mean length 8.5 to 26.0 tokens"), "{table}");
    assert_eq!(text(&table.rows[0][3]), "32, 30, 28, 26");
    assert!(text(&table.rows[4][2]).starts_with("2 of 4 late winners"), "{table}");

    let honest = begin(&store, "honest");
    for step in 1..=4 {
        store.append_step(honest, step, &realistic_step(step, 4, 4, 20), None).unwrap();
    }
    let table = store.audit(honest).unwrap();
    assert!(table.rows.iter().all(|row| text(&row[1]) == "ok"), "{table}");
    let short = begin(&store, "short");
    let error = store.audit(short).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("at least 4"), "{error}");
}

fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}
