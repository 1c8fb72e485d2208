//! Tests of the family: the constraints that a config may name, and the order in which they are applied.

use super::testing::{close, gates, layer, values};
use super::*;

const RUN: RunExtent = RunExtent { learning_rate: 0.1, steps: 10, ranks: 4 };

fn parse(text: &str) -> ProxConfig {
    toml::from_str(text).unwrap()
}

fn at(step: u64) -> UpdateContext {
    UpdateContext { learning_rate: 0.1, step, steps: 10 }
}

fn refused(text: &str) -> String {
    let Err(error) = parse(text).build(RUN) else { panic!("{text} was built") };
    assert!(error.is_input(), "{error}");
    error.to_string()
}

#[test]
fn every_penalty_leaves_zeros_alone_and_never_turns_a_gate_around() {
    for name in ["soft_threshold", "mcp", "scad", "group_sparse"] {
        let layer = layer(&[0.7, -0.7, 0.0, 1e-9, -3.0]);
        let before = gates(&[&layer]);
        parse(&format!("[{name}]\nthreshold = 0.5")).build(RUN).unwrap().apply(&[&layer], at(1));
        let after = gates(&[&layer]);
        assert_ne!(before, after, "{name}");
        for (before, after) in before.iter().zip(&after) {
            assert!(after * before >= 0.0 && after.abs() <= before.abs() + 1e-12, "{name}: {before} became {after}");
        }
        close(&[after[0]], &[-after[1]], 1e-12);
        assert_eq!(after[2], 0.0);
    }
}

#[test]
fn the_penalty_acts_before_the_budget_and_the_bound_on_what_stays() {
    let layer = layer(&[0.5, 0.45, -1.0, 0.02]);
    let text = "[soft_threshold]\nthreshold = 1.0\n[rank_budget]\nranks = 2\nbegin = 0.0\nend = 0.0\n[norm_bound]";
    parse(text).build(RUN).unwrap().apply(&[&layer], at(1));
    close(&gates(&[&layer]), &[0.4, 0.0, -0.9, 0.0], 1e-12);
    let norms = layer.a.square().sum_dim_intlist([1i64].as_slice(), false, None).sqrt();
    assert!(values(&norms).iter().all(|norm| *norm <= 1.0 + 1e-12));
}

#[test]
fn stages_raise_the_threshold_and_restart_the_schedule() {
    let text = "[soft_threshold]\nthreshold = 1.0\nscale = \"constant\"\n[stages]\ncount = 3\nlast = 3.0\nsteps = 2";
    let constraints = parse(text).build(RUN).unwrap();
    for (step, threshold) in [(1, 1.0), (6, 1.0), (7, 2.0), (8, 2.0), (9, 3.0), (10, 3.0)] {
        let layer = layer(&[5.0]);
        constraints.apply(&[&layer], at(step));
        close(&gates(&[&layer]), &[5.0 - threshold], 1e-12);
    }
    assert_eq!([1, 6, 7, 9, 10].map(|step| constraints.stage_steps(step, 10)), [1..7, 1..7, 7..9, 9..11, 9..11]);
    let alone = parse("[mcp]").build(RUN).unwrap();
    assert_eq!(alone.stage_steps(4, 10), 1..11);
}

#[test]
fn the_published_form_has_an_l1_term_and_the_others_none() {
    let layer = layer(&[0.5, -1.5]);
    let constraints = |text: &str| parse(text).build(RUN).unwrap();
    let published = constraints("[soft_threshold]\nform = \"published\"\nscale = \"constant\"\nl1_coefficient = 10.0");
    close(&[published.loss(&[&layer]).unwrap().double_value(&[])], &[10.0], 1e-12);
    assert!(constraints("[soft_threshold]").loss(&[&layer]).is_none());
    assert!(constraints("[scad]").loss(&[&layer]).is_none());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    assert!(refused("").contains("names no constraint"));
    assert!(refused("[mcp]\n[scad]").contains("both `mcp` and `scad`"));
    assert!(refused("[stages]\ncount = 2\nlast = 1.0\n[norm_bound]").contains("there is none"));
    assert!(refused("[soft_threshold]\nthreshold = -1.0").contains("at least 0"));
    assert!(refused("[soft_threshold]\n[stages]\ncount = 11\nlast = 1.0").contains("do not fit into 10 steps"));
    // The last stage, not the first, moves a gate too far for its bend.
    assert!(refused("[mcp]\nthreshold = 1.0\nknee = 0.5\n[stages]\ncount = 2\nlast = 9.0").contains("bend"));
}
