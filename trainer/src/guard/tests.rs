//! Tests of each guard on measurements made by hand, and of the guards' saved state.

use super::*;
use crate::algorithm::{self, Grpo, Ppo, build};
use crate::config::Checkpoint;
use crate::testing::{scored, scored_lengths};
use schema::Group;

fn guarded(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

fn metrics(numbers: &[(&str, f64)]) -> Metrics {
    let mut metrics = Metrics::new();
    for (name, number) in numbers {
        metrics.set(*name, *number);
    }
    metrics
}

/// Returns the alarms of steps 1, 2, … with these metrics, each with its step.
fn alarms(config: &Config, samples: &[GradedGroup], steps: &[&[(&str, f64)]]) -> Vec<(u64, Alarm)> {
    let mut memory = Memory::default();
    let mut all = Vec::new();
    for (step, numbers) in (1..).zip(steps) {
        let mut metrics = metrics(numbers);
        let alarms = config.watch(step, samples, &mut memory, &mut metrics);
        for (name, _) in config.guards() {
            let raised = f64::from(u8::from(alarms.iter().any(|alarm| alarm.guard == name)));
            assert!(metrics.get(&format!("guard/{name}")).is_none_or(|said| said == raised), "step {step}: {name}");
        }
        all.extend(alarms.into_iter().map(|alarm| (step, alarm)));
    }
    all
}

/// Token ids, and the log-probability of each of them.
type Completion<'a> = (&'a [u32], f32);

/// Returns one group per list of completions, each with a prompt of its own.
fn texts(groups: &[&[Completion<'_>]]) -> Vec<GradedGroup> {
    let rewards: Vec<Vec<f32>> = groups.iter().map(|group| vec![0.0; group.len()]).collect();
    let scored = scored(&rewards.iter().map(|rewards| &rewards[..]).collect::<Vec<_>>());
    let fill = |(index, scored): (usize, GradedGroup)| {
        let mut group = Group { prompt_ids: vec![index as u32 + 1], ..scored.group().clone() };
        for (sample, (ids, logprob)) in group.samples.iter_mut().zip(groups[index]) {
            (sample.ids, sample.mask) = (ids.to_vec(), vec![true; ids.len()]);
            sample.logprobs = vec![*logprob; ids.len()];
        }
        GradedGroup::new(group, scored.verdicts().to_vec()).unwrap()
    };
    scored.into_iter().enumerate().map(fill).collect()
}

fn at(group: usize, sample: usize) -> SampleIndex {
    SampleIndex { group, sample }
}

#[test]
fn an_entropy_below_the_floor_over_the_window_is_an_alarm_and_names_the_surest() {
    let config = guarded("entropy_floor = { limit = 0.1, window = 3 }");
    let samples = texts(&[&[(&[5, 6], -0.2), (&[5], -0.01)], &[(&[7], -0.5)]]);
    let entropy: [&[(&str, f64)]; 8] = [
        &[("entropy", 0.05)],
        &[("entropy", 0.05)],
        &[("entropy", 0.25)], // mean 0.1167
        &[],                  // nothing was trained on
        &[("entropy", 0.07)], // 0.37/3 = 0.1233
        &[("entropy", 0.02)], // 0.34/3 = 0.1133
        &[("entropy", 0.01)], // 0.10/3: an alarm, of steps 5 to 7
        &[("entropy", 0.01)], // the window starts anew
    ];
    let raised = alarms(&config, &samples, &entropy);
    let [(7, alarm)] = &raised[..] else { panic!("{raised:?}") };
    assert_eq!((alarm.guard, alarm.action, alarm.since), ("entropy_floor", Action::Warn, 5));
    assert_eq!(alarm.message, "the entropy is 0.0333 nats per token, below the floor of 0.1");
    assert_eq!(alarm.samples, [at(0, 1), at(0, 0), at(1, 0)]);
}

#[test]
fn a_divergence_above_the_ceiling_is_an_alarm_and_names_the_least_likely() {
    let samples = texts(&[&[(&[5, 6], -0.2), (&[5], -0.01)], &[(&[7], -0.5)]]);
    for metric in ["kl", "mismatch_kl", "proximal_kl"] {
        let text = format!("kl_ceiling = {{ metric = '{metric}', limit = 0.2, window = 2, action = 'stop' }}");
        let steps: [&[(&str, f64)]; 3] = [&[(metric, 0.1)], &[(metric, 0.3)], &[(metric, 0.3)]];
        let raised = alarms(&guarded(&text), &samples, &steps);
        let [(3, alarm)] = &raised[..] else { panic!("{raised:?}") };
        assert_eq!((alarm.action, alarm.since), (Action::Stop, 2));
        assert_eq!(alarm.message, format!("{metric} is 0.3000 nats per token, above the ceiling of 0.2"));
        assert_eq!(alarm.samples, [at(1, 0), at(0, 0), at(0, 1)]);
    }
}

#[test]
fn repetitive_samples_are_counted_and_named() {
    // bigrams: 5 of which 1 is distinct (repetition 0.8); 3 of 3; 4 of which 2 are distinct (0.5); none
    let samples = texts(&[&[(&[9; 6], -1.0), (&[1, 2, 3, 4], -1.0)], &[(&[1, 2, 1, 2, 1], -1.0), (&[9], -1.0)]]);
    let text = |limit: f64, repetition: f64| {
        format!("repeated_text = {{ limit = {limit}, ngram = 2, repetition = {repetition}, window = 1 }}")
    };
    let raised = alarms(&guarded(&text(0.4, 0.4)), &samples, &[&[]]);
    assert_eq!(raised[0].1.samples, [at(0, 0), at(1, 0)]);
    assert_eq!(
        raised[0].1.message,
        "50 % of the samples repeat more than 40 % of their 2-grams, where 40 % are allowed"
    );
    // One in four is above one half, and a limit that is met is no alarm.
    assert_eq!(alarms(&guarded(&text(0.25, 0.5)), &samples, &[&[]]), []);
    let mut said = Metrics::new();
    guarded(&text(0.25, 0.5)).watch(1, &samples, &mut Memory::default(), &mut said);
    assert_eq!(said.get("completions/repeated_share"), Some(0.25));
    assert_eq!(said.get("guard/repeated_text"), Some(0.0));
}

#[test]
fn completions_shared_by_different_prompts_are_counted_and_named() {
    // [5] is sampled for both prompts, three times in all; [6, 6] twice, but for one prompt.
    let samples = texts(&[
        &[(&[5], -1.0), (&[6, 6], -1.0), (&[6, 6], -1.0), (&[8], -1.0)],
        &[(&[5], -1.0), (&[5], -1.0), (&[8], -1.0), (&[7], -1.0)],
    ]);
    let raised = alarms(&guarded("duplicate_text = { limit = 0.6, window = 1 }"), &samples, &[&[]]);
    assert_eq!(raised[0].1.samples, [at(0, 0), at(1, 0), at(1, 1), at(0, 3), at(1, 2)]);
    assert!(raised[0].1.message.starts_with("62 % of the samples"), "{raised:?}");
    // The same prompt asked twice is one prompt.
    let twice = [samples[0].clone(), samples[0].clone()];
    assert_eq!(alarms(&guarded("duplicate_text = { limit = 0.0, window = 1 }"), &twice, &[&[]]), []);
    assert_eq!(alarms(&guarded("duplicate_text = { limit = 0.0, window = 1 }"), &[], &[&[]]), []);
}

#[test]
fn a_reward_that_rises_with_the_length_is_an_alarm() {
    let config = guarded("length_drift = { limit = 0.5, window = 2 }");
    let samples = scored_lengths(&[(&[0.0, 0.0], &[3, 9]), (&[0.0], &[5])]);
    let step = |reward: f64, length: f64| [("reward", reward), ("completions/mean_length", length)];
    let run =
        |steps: &[[(&str, f64); 2]]| alarms(&config, &samples, &steps.iter().map(|step| &step[..]).collect::<Vec<_>>());
    let grown = run(&[step(0.1, 10.0), step(0.3, 10.0), step(0.3, 16.0), step(0.5, 16.0)]);
    let [(4, alarm)] = &grown[..] else { panic!("{grown:?}") };
    assert_eq!(alarm.since, 1);
    assert_eq!(alarm.samples, [at(0, 1), at(1, 0), at(0, 0)]);
    assert_eq!(
        alarm.message,
        "the reward rose from 0.200 to 0.400 while the mean length went from 10.0 to 16.0 tokens, by more than 50 %"
    );
    let shrunk = run(&[step(0.1, 10.0), step(0.3, 10.0), step(0.3, 4.0), step(0.5, 4.0)]);
    assert_eq!(shrunk[0].1.samples, [at(0, 0), at(1, 0), at(0, 1)]);
    assert_eq!(run(&[step(0.5, 10.0), step(0.3, 10.0), step(0.3, 16.0), step(0.1, 16.0)]), []);
    assert_eq!(run(&[step(0.1, 10.0), step(0.3, 10.0), step(0.3, 15.0), step(0.5, 15.0)]), []);
}

#[test]
fn what_guards_remember_survives_a_checkpoint_exactly() {
    let config = guarded("entropy_floor = { limit = 0.1, window = 3 }\nlength_drift = {}");
    let mut memory = Memory { rate_scale: 0.1 + 0.2, ..Memory::default() };
    for step in 1..=2 {
        let numbers = [("entropy", 0.1 / 3.0), ("reward", 1.0), ("completions/mean_length", 1.0 / 7.0)];
        config.watch(step, &[], &mut memory, &mut metrics(&numbers));
    }
    let saved = serde_json::to_string(&memory).unwrap();
    let mut restored: Memory = serde_json::from_str(&saved).unwrap();
    assert_eq!(restored, memory);
    let raised = config.watch(3, &[], &mut restored, &mut metrics(&[("entropy", 0.0)]));
    assert_eq!((raised.len(), raised[0].since), (1, 1));
    restored.forget();
    assert_eq!(restored, Memory { rate_scale: 0.1 + 0.2, ..Memory::default() });
}

#[test]
fn numbers_that_are_not_finite_are_not_measured() {
    let config = guarded("entropy_floor = { limit = 0.1, window = 1 }");
    assert_eq!(alarms(&config, &[], &[&[("entropy", f64::NAN)], &[("entropy", f64::NEG_INFINITY)]]), []);
}

#[test]
fn a_config_without_tables_has_no_guards_and_says_nothing() {
    let (config, mut metrics) = (Config::default(), metrics(&[("entropy", 0.0)]));
    assert_eq!(config.watch(1, &scored(&[&[1.0]]), &mut Memory::default(), &mut metrics), []);
    assert_eq!(metrics.iter().count(), 1);
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let refused = |text: &str, algorithm: algorithm::Config, checkpoint: Checkpoint| {
        let built = build(&algorithm).unwrap();
        guarded(text)
            .check(&*built, algorithm.name(), checkpoint.keep, checkpoint.every)
            .err()
            .map(|error| error.to_string())
    };
    let grpo = || algorithm::Config::Grpo(Grpo::default());
    for (text, said) in [
        ("roll_back_rate = 0.0", "guard.roll_back_rate"),
        ("entropy_floor = { limit = 0.0 }", "guard.entropy_floor.limit must be above 0"),
        ("entropy_floor = { window = 0 }", "guard.entropy_floor.window"),
        ("kl_ceiling = { metric = 'kl' }", "raise its kl_coefficient"),
        ("kl_ceiling = { metric = 'proximal_kl' }", "raise its epochs or minibatches"),
        ("repeated_text = { ngram = 0 }", "guard.repeated_text.ngram"),
        ("repeated_text = { repetition = 1.5 }", "guard.repeated_text.repetition"),
        ("duplicate_text = { limit = -0.5 }", "guard.duplicate_text.limit"),
        ("length_drift = { limit = inf }", "guard.length_drift.limit"),
        ("length_drift = { window = 6, action = 'roll_back' }", "reach back only 11"),
    ] {
        let message = refused(text, grpo(), Checkpoint::default()).unwrap_or_else(|| panic!("{text}"));
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(refused("length_drift = { window = 5, action = 'roll_back' }", grpo(), Checkpoint::default()), None);
    assert_eq!(
        refused("length_drift = { action = 'roll_back' }", grpo(), Checkpoint { keep: 0, ..Checkpoint::default() }),
        None
    );
    let ppo = || algorithm::Config::Ppo(Ppo::default());
    assert_eq!(refused("kl_ceiling = { metric = 'proximal_kl' }", ppo(), Checkpoint::default()), None);
    let sft = algorithm::Config::Sft(algorithm::Sft::default());
    assert!(refused("entropy_floor = {}", sft, Checkpoint::default()).unwrap().contains("draws none"));
}
