//! Judges that are biased, that fail and that are programs; and the table that names them.

use super::*;
use crate::tests::group;

/// A judge with position bias. In first position `good` wins for certain and `fails` fails; any other text wins against
/// `good` with this probability, and with twice that against the rest.
struct Biased(f32);

impl Judge for Biased {
    fn name(&self) -> &'static str {
        "biased"
    }
    fn version(&self) -> String {
        "1".into()
    }
    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        let one = |(first, second): &Matchup<'_>| match (first.sample().text.as_str(), second.sample().text.as_str()) {
            ("fails", _) => Grade::missing("asleep"),
            ("good", _) => Grade::Value(1.0),
            (_, "good") => Grade::Value(self.0),
            _ => Grade::Value(self.0 * 2.0),
        };
        pairs.iter().map(one).collect()
    }
}

fn values(judge: &mut dyn Judge, group: &Group, indices: &[(usize, usize)]) -> Vec<Option<f32>> {
    let at = |index| Contestant { group, index };
    let pairs: Vec<Matchup<'_>> = indices.iter().map(|(a, b)| (at(*a), at(*b))).collect();
    judge.compare(&pairs).iter().map(Grade::value).collect()
}

#[test]
fn both_orders_are_averaged_and_half_an_average_is_none() {
    let group = group("", None, &["good", "bad", "fails", "good", "worse"]);
    let mut fair = Fair::new(Box::new(Biased(0.5)), true);
    // "good" wins when it stands first, and ties when it stands second: ½ (1 + 1 − 0.5) = 0.75.
    let found = values(&mut fair, &group, &[(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)]);
    assert_eq!(found[..2], [Some(0.75), Some(0.25)]);
    // Of "fails" one order is known, which is not enough.
    assert_eq!(found[2..], [None, None, None]);
    // One text ties with itself, unasked; and 1 for both orders is no preference at all.
    assert_eq!(values(&mut fair, &group, &[(0, 3), (2, 2), (1, 4)]), [Some(0.5), Some(0.5), Some(0.5)]);
    let mut trusting = Fair::new(Box::new(Biased(0.5)), false);
    assert_eq!(values(&mut trusting, &group, &[(0, 1), (1, 0), (0, 2)]), [Some(1.0), Some(0.5), Some(1.0)]);
    assert!(fair.is_symmetric() && !trusting.is_symmetric() && fair.version() != trusting.version());
}

#[test]
fn what_is_no_probability_is_no_judgement() {
    let group = group("", None, &["bad", "worse"]);
    let pair = [(Contestant { group: &group, index: 0 }, Contestant { group: &group, index: 1 })];
    let found = &Fair::new(Box::new(Biased(0.9)), true).compare(&pair)[0];
    assert!(matches!(found, Grade::Missing(reason) if reason.contains("1.8")), "{found:?}");
}

/// The judge that a `[judge]` table names.
fn judge(table: &str) -> crate::Result<Fair> {
    let config: Config = toml::from_str(table).unwrap();
    config.build(&mut |_, _| Err(crate::Error::input("no network here")))
}

#[test]
fn a_program_gets_both_answers_and_says_who_is_better() {
    // The longer one wins with 0.75; "?" is beyond it.
    let script = r#"while read -r line; do case "$line" in
        *'"first":"?"'*|*'"second":"?"'*) echo '{"probability": null, "reason": "beyond me"}';;
        *'"first":"long'*) echo 0.75;; *) echo 0.25;; esac; done"#;
    let table = format!("swap = false\ncommand = {{ program = 'sh', args = ['-c', '''{script}'''] }}");
    let mut judge = judge(&table).unwrap();
    let group = group("Say something.", Some("22"), &["short", "longer", "?"]);
    assert_eq!(values(&mut judge, &group, &[(0, 1), (1, 0), (0, 2)]), [Some(0.25), Some(0.75), None]);
    assert_eq!(judge.name(), "command");
    let pair = [(Contestant { group: &group, index: 0 }, Contestant { group: &group, index: 2 })];
    assert_eq!(judge.compare(&pair), [Grade::missing("beyond me")]);
    assert_eq!(judge.compare(&[]), []);
}

#[test]
fn a_program_that_fails_compares_nothing() {
    let group = group("", None, &["a", "b"]);
    let pair = [(Contestant { group: &group, index: 0 }, Contestant { group: &group, index: 1 })];
    for (script, word) in
        [("exit 3", "exit status: 3"), ("echo 1", "1 lines for 2 pairs"), ("echo x; echo 1", "not JSON")]
    {
        let mut judge = judge(&format!("command = {{ program = 'sh', args = ['-c', '{script}'] }}")).unwrap();
        let found = &judge.compare(&pair)[0];
        assert!(matches!(found, Grade::Missing(reason) if reason.contains(word)), "{script}: {found:?}");
    }
}

#[test]
fn the_table_names_one_judge() {
    assert_eq!(judge("rule.math_answer = {}\ntemperature = 0.0").unwrap().name(), "math_answer");
    let group = group("", Some("22"), &["22", "21"]);
    // σ(1) at the default temperature of 1, and no order to ask about twice.
    let found = values(&mut judge("rule.math_answer = {}").unwrap(), &group, &[(0, 1)]);
    assert!((found[0].unwrap() - 0.731_058_6).abs() < 1e-6);
    for (table, word) in [
        ("", "names no judge"),
        ("rule.math_answer = {}\ncommand = { program = 'sh' }", "several"),
        ("rule.math_answer = {}\ntemperature = -1.0", "temperature"),
        ("command = { program = 'no-such-judge' }", "on PATH"),
        ("model = { path = 'runs/none' }", "no network"),
        ("endpoint = { url = 'localhost:8000', model = 'm' }", "must be an address"),
        ("endpoint = { url = 'http://localhost:8000' }", "`model` is missing"),
        ("endpoint = { url = 'http://localhost', model = 'm', timeout_s = 0.0 }", "timeout_s"),
        ("endpoint = { url = 'http://localhost', model = 'm', concurrency = 0 }", "concurrency"),
        (
            "endpoint = { url = 'http://localhost', model = 'm', api_key_env = 'PROXRL_NO_SUCH_KEY' }",
            "PROXRL_NO_SUCH_KEY",
        ),
    ] {
        let error = judge(table).err().unwrap();
        assert!(error.is_input() && error.to_string().contains(word), "{table}: {error}");
        assert!(error.to_string().starts_with("[judge]: "), "{error}");
    }
    let check = |table: &str| toml::from_str::<Config>(table).unwrap().check();
    assert!(check("model = { path = 'runs/none' }").is_ok(), "a network is not looked for before it is opened");
    assert!(toml::from_str::<Config>("swop = true").is_err());
}
