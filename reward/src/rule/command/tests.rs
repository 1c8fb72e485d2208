//! Graders that work, that hang, that fail and that talk nonsense.

use super::*;
use crate::tests::{group, values};
use std::time::Instant;

/// A rule that runs a line of shell script.
fn shell(script: &str, timeout_s: f64) -> Command {
    let config = Config { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], timeout_s };
    config.build().unwrap()
}

/// The reasons why a script left samples ungraded; empty text for those it graded.
fn reasons(script: &str, timeout_s: f64, samples: usize) -> Vec<String> {
    let group = group("", None, &vec!["x"; samples]);
    let reason = |judgement: &Grade| match judgement {
        Grade::Value(_) => String::new(),
        Grade::Missing(reason) => reason.clone(),
    };
    shell(script, timeout_s).grade(&[group])[0].iter().map(reason).collect()
}

#[test]
fn each_line_judges_its_sample() {
    let script = r#"cat > /dev/null; echo 1; echo -0.5; echo null; echo '{"reward": 2, "reason": "neat"}'; echo;
                    echo '{"reward": null, "reason": "no tests"}'; echo NaN; echo true; echo 1e300"#;
    let group = group("", None, &["x"; 8]);
    let judged = &shell(script, 10.0).grade(&[group])[0];
    let found: Vec<Option<f32>> = judged.iter().map(Grade::value).collect();
    assert_eq!(found, [Some(1.0), Some(-0.5), None, Some(2.0), None, None, None, None]);
    assert_eq!(judged[2], Grade::missing("does not apply"));
    assert_eq!(judged[4], Grade::missing("no tests"));
    assert!(matches!(&judged[5], Grade::Missing(reason) if reason.contains("not JSON: NaN")));
    assert!(matches!(&judged[6], Grade::Missing(reason) if reason.contains("no number")));
}

#[test]
fn the_input_holds_sample_prompt_and_columns() {
    let mut group = group("What is 7+15?", Some("22"), &["It is 22."]);
    group.prompt.metadata.insert("x".into(), json!(7));
    group.prompt.metadata.insert("completion".into(), json!("a lie"));
    let lines = String::from_utf8(input(&[group])).unwrap();
    assert_eq!(lines.lines().count(), 1);
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(line["prompt"], "What is 7+15?");
    assert_eq!(line["messages"], json!([{"role": "user", "content": "What is 7+15?"}]));
    assert_eq!(line["completion"], "It is 22.");
    assert_eq!(line["completion_ids"][0], 73); // the helper's tokens are bytes, and `I` is byte 73
    assert_eq!(line["answer"], "22");
    assert_eq!(line["finish"], "eos");
    assert_eq!(line["x"], 7);
}

#[test]
fn one_run_serves_many_groups() {
    // The program counts lines, so that a second run would start over.
    let mut rule = shell("n=0; while read -r line; do n=$((n+1)); echo $n; done", 10.0);
    let judged = rule.grade(&[group("", None, &["a", "b"]), group("", None, &[]), group("", None, &["c"])]);
    let values: Vec<Vec<Option<f32>>> = judged.iter().map(|group| group.iter().map(Grade::value).collect()).collect();
    assert_eq!(values, [vec![Some(1.0), Some(2.0)], vec![], vec![Some(3.0)]]);
    assert_eq!(shell("exit 1", 1.0).grade(&[group("", None, &[])]), [vec![]]);
}

#[test]
fn a_failed_program_leaves_all_unjudged_and_is_quoted() {
    let found = reasons("echo 1; echo 1; echo 'Traceback:' >&2; echo 'ZeroDivisionError' >&2; exit 3", 10.0, 2);
    assert_eq!(found.len(), 2);
    for reason in found {
        assert!(reason.contains("exit status: 3") && reason.contains("Traceback: … ZeroDivisionError"), "{reason}");
    }
}

#[test]
fn a_miscount_leaves_all_unjudged() {
    assert_eq!(reasons("echo 1", 10.0, 2), vec!["the program printed 1 lines for 2 samples"; 2]);
    assert_eq!(reasons("echo 1; echo 1; echo 1", 10.0, 2), vec!["the program printed 3 lines for 2 samples"; 2]);
}

#[test]
fn at_the_time_limit_the_whole_family_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("survived");
    let script = format!("echo 1; (sleep 1; touch {}) & sleep 30", mark.display());
    let start = Instant::now();
    let found = reasons(&script, 0.3, 1);
    assert!(found[0].contains("not done after 0.3 s"), "{found:?}");
    assert!(start.elapsed().as_secs_f64() < 5.0, "took {:?}", start.elapsed());
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert!(!mark.exists(), "a child of the program outlived it");
}

#[test]
fn a_background_process_that_keeps_the_pipe_counts_as_not_done() {
    let found = reasons("echo 1; sleep 30 & exit 0", 0.3, 1);
    assert!(found[0].contains("not done after 0.3 s"), "{found:?}");
}

#[test]
fn ten_megabytes_pass_both_ways() {
    let texts = vec!["x".repeat(1 << 20); 10];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // The program echoes each line as a reason, while it is still being written to.
    let script = r#"awk '{gsub(/[\\"]/, ""); print "{\"reward\": 1, \"reason\": \"" $0 "\"}"}'"#;
    assert_eq!(values(&mut shell(script, 60.0), &group("", None, &texts)), vec![Some(1.0); 10]);
    // Nor does it matter if the program reads nothing.
    let script = "for n in 1 2 3 4 5 6 7 8 9 10; do echo $n; done";
    assert_eq!(values(&mut shell(script, 60.0), &group("", None, &texts))[9], Some(10.0));
}

#[test]
fn a_program_that_is_not_there_is_the_configs_fault() {
    let problem = |program: &str, timeout_s| {
        let error = Config { program: program.into(), timeout_s, ..Config::default() }.build().err().expect("bad");
        assert!(error.is_input());
        error.to_string()
    };
    assert!(problem("", 1.0).contains("`program` is missing"));
    assert!(problem("/nowhere/grade", 1.0).contains("no executable `/nowhere/grade`"));
    assert!(problem("no-such-grader", 1.0).contains("on PATH"));
    assert!(problem("/etc/passwd", 1.0).contains("no executable"));
    assert!(problem("sh", 0.0).contains("must be positive"));
    assert!(problem("sh", f64::NAN).contains("must be positive"));
}

#[test]
fn an_edited_script_is_another_version() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("grade.sh");
    let version = |content: &str| {
        std::fs::write(&script, content).unwrap();
        let args = vec![script.display().to_string()];
        Config { program: "sh".into(), args, ..Config::default() }.build().unwrap().version()
    };
    let first = version("echo 1");
    assert_ne!(first, version("echo 2"));
    assert_eq!(first, version("echo 1"));
}
