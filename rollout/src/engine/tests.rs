//! Laws of the engine: the same seeds give the same samples in any batch.

use super::*;
use model::Config;
use model::adapter::{AdapterConfig, Lora};
use model::architecture::RandomModel;
use model::device::DeviceName;
use model::packed::{Packed, Sequences};

pub(super) fn policy() -> Policy {
    let config = Config {
        random: Some(RandomModel::default()),
        device: DeviceName::new("cpu"),
        adapter: AdapterConfig::Lora(Lora { rank: 2, ..Lora::default() }),
        ..Config::default()
    };
    Policy::load(&config, &Seed::new(1)).unwrap()
}

pub(super) fn requests(settings: &SamplerSettings) -> Vec<Request> {
    (0..5u32)
        .map(|index| Request {
            prompt_ids: (0..=index).map(|token| 40 + 3 * token).collect(),
            samples: 3 - index as usize % 3,
            settings: settings.clone(),
            seed: Seed::new(2).at(u64::from(index)),
            top_logprobs: 0,
        })
        .collect()
}

fn sample_all(policy: &Policy, max_running: usize, settings: &SamplerSettings) -> Vec<Vec<Sample>> {
    let config = EngineConfig { max_running, prefill_tokens: 8 };
    Engine::new(policy, config).run(requests(settings), &mut |_| ()).unwrap()
}

pub(super) fn settings() -> SamplerSettings {
    SamplerSettings { max_new_tokens: 12, ..SamplerSettings::default() }
}

#[test]
fn samples_do_not_depend_on_the_batch() {
    let policy = policy();
    let all = sample_all(&policy, 64, &settings());
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 1, 3, 2]);
    for max_running in [1, 2, 7] {
        for (group, other) in all.iter().flatten().zip(sample_all(&policy, max_running, &settings()).iter().flatten()) {
            assert_eq!(group.ids, other.ids, "with {max_running} rows");
            for (a, b) in group.logprobs.iter().zip(&other.logprobs) {
                assert!((a - b).abs() < 1e-4, "{a} against {b}");
            }
        }
    }
    assert_ne!(all[0][0].ids, all[0][1].ids, "samples of a group differ");
}

/// Many samples of one prompt, of one or more tokens.
fn drawn(policy: &Policy, seed: u64, samples: usize, settings: SamplerSettings) -> Vec<Sample> {
    let request = Request { prompt_ids: vec![40, 43], samples, settings, seed: Seed::new(seed), top_logprobs: 0 };
    Engine::new(policy, EngineConfig::default()).run(vec![request], &mut |_| ()).unwrap().remove(0)
}

#[test]
fn stratified_groups_hold_each_token_as_often_as_it_is_likely() {
    let policy = policy();
    let counted = |stratify, seed| {
        let mut counts: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for sample in drawn(&policy, seed, 48, SamplerSettings { max_new_tokens: 1, stratify, ..settings() }) {
            let entry = counts.entry(sample.ids[0]).or_default();
            *entry = (entry.0 + 1.0, 48.0 * f64::from(sample.logprobs[0]).exp());
        }
        counts.into_values().map(|(count, expected)| (count - expected).abs()).fold(0.0, f64::max)
    };
    for seed in 0..8 {
        let furthest = counted(1, seed);
        assert!(furthest < 1.001, "a token came {furthest} times more or less often than expected");
    }
    assert!((0..8).any(|seed| counted(0, seed) > 1.001));
}

#[test]
fn each_sample_of_a_stratified_group_is_drawn_from_the_policy() {
    let policy = policy();
    let settings = SamplerSettings { max_new_tokens: 2, stratify: 2, ..settings() };
    let mut groups: Vec<Vec<Sample>> = (0..400).map(|seed| drawn(&policy, seed, 2, settings.clone())).collect();
    // The second sample alone: tokens below the median of the vocabulary, at the first and at the second place.
    let second: Vec<Sample> = groups.iter_mut().map(|group| group.remove(1)).collect();
    let plain = SamplerSettings { max_new_tokens: 2, ..SamplerSettings::default() };
    let many = drawn(&policy, 1000, 4000, plain);
    let share = |samples: &[Sample], place: usize| {
        let there = || samples.iter().filter_map(|sample| sample.ids.get(place));
        there().filter(|id| **id < 128).count() as f64 / there().count() as f64
    };
    for place in 0..2 {
        let (stratified, independent) = (share(&second, place), share(&many, place));
        // Four deviations of a share among 400.
        assert!((stratified - independent).abs() < 0.1, "{stratified} against {independent}");
    }
    // The uniform numbers of one sample's tokens are independent of each other: their correlation is within four deviations.
    let numbers: Vec<[f64; 2]> = (0..400)
        .map(|seed| {
            let request = Request {
                prompt_ids: vec![40],
                samples: 8,
                settings: settings.clone(),
                seed: Seed::new(seed),
                top_logprobs: 0,
            };
            [0, 1].map(|token| request.uniform(3, token, &request.seed.at(3)) - 0.5)
        })
        .collect();
    let mean = |of: &dyn Fn(&[f64; 2]) -> f64| numbers.iter().map(of).sum::<f64>() / 400.0;
    assert!((mean(&|pair| pair[0] * pair[1]) * 12.0).abs() < 0.2);
    assert!((mean(&|pair| pair[0] * pair[0]) * 12.0 - 1.0).abs() < 0.2 && mean(&|pair| pair[0]).abs() < 0.06);
}

#[test]
fn greedy_output_does_not_depend_on_the_batch_or_the_seed() {
    let policy = policy();
    let greedy = settings().greedy();
    let all = sample_all(&policy, 64, &greedy);
    assert_eq!(all[0][0].ids, all[0][1].ids);
    for (a, b) in all.iter().flatten().zip(sample_all(&policy, 1, &greedy).iter().flatten()) {
        assert_eq!(a.ids, b.ids);
    }
}

#[test]
fn recorded_logprobs_are_the_trainers() {
    let policy = policy();
    let settings = SamplerSettings { temperature: 0.7, top_k: 50, ..settings() };
    let samples = sample_all(&policy, 3, &settings);
    for (request, samples) in requests(&settings).iter().zip(&samples) {
        let completions = samples.iter().map(|sample| &sample.ids[..]).collect();
        let sequences = Sequences { prompt: &request.prompt_ids, completions };
        let packed = Packed::new(&[sequences], policy.network().dimensions().vocab, policy.device()).unwrap();
        let scored = Vec::<f32>::try_from(&policy.logprobs(&packed, 0.7, policy.adapter())).unwrap();
        let recorded: Vec<f32> = samples.iter().flat_map(|sample| sample.logprobs.clone()).collect();
        for (a, b) in scored.iter().zip(&recorded) {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
    }
}

#[test]
fn stop_strings_cut_the_text_and_keep_the_tokens() {
    let policy = policy();
    let whole = sample_all(&policy, 64, &settings());
    // a byte that the first sample is known to contain
    let sample = &whole[0][0];
    let (end, stop) = sample.text.char_indices().find(|(_, letter)| letter.is_ascii_graphic()).unwrap();
    let stopped = sample_all(&policy, 64, &SamplerSettings { stop: vec![stop.to_string()], ..settings() });
    assert_eq!(stopped[0][0].finish, Finish::Stop);
    assert_eq!(stopped[0][0].text, sample.text[..end]);
    assert_eq!(stopped[0][0].ids[..], sample.ids[..stopped[0][0].ids.len()]);
}

#[test]
fn a_cancelled_request_frees_its_rows_and_disturbs_no_other() {
    let policy = policy();
    let alone = sample_all(&policy, 64, &settings());
    let mut engine = Engine::new(&policy, EngineConfig { max_running: 4, ..EngineConfig::default() });
    let numbers: Vec<usize> =
        requests(&settings()).into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut finished = BTreeMap::new();
    let mut keep = |events: Vec<Event>| {
        for event in events {
            if let Event::Finished { id, sample } = event {
                finished.insert(id, sample);
            }
        }
    };
    keep(engine.step().unwrap());
    engine.cancel(numbers[1]);
    while !engine.is_idle() {
        assert!(engine.running() <= 4);
        keep(engine.step().unwrap());
    }
    assert!(finished.keys().all(|id| id.request != numbers[1]));
    let last = SampleId { request: numbers[4], sample: 1 };
    assert_eq!(finished[&last].ids, alone[4][1].ids);
    assert_eq!(finished.len(), 9);
}

#[test]
fn what_cannot_fit_is_refused() {
    let mut engine = Engine::new(&policy(), EngineConfig::default());
    let request = |prompt_ids, max_new_tokens| Request {
        prompt_ids,
        samples: 1,
        settings: SamplerSettings { max_new_tokens, ..SamplerSettings::default() },
        seed: Seed::new(0),
        top_logprobs: 0,
    };
    for (request, words) in [
        (request(vec![], 1), "no tokens"),
        (request(vec![1; 10], 5000), "exceed the model's context of 4096"),
        (request(vec![100_000], 1), "vocabulary"),
    ] {
        let error = engine.submit(request).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    }
    assert!(engine.is_idle());
}

#[test]
fn a_mixture_is_either_policy_at_its_ends_and_both_in_between() {
    let policy = policy();
    policy.adapter().perturb(0.05);
    let base = policy.with_adapter(model::adapter::Adapter::none());
    let mixed = |weight: f64, max_running: usize| {
        let config = EngineConfig { max_running, prefill_tokens: 8 };
        Engine::mixture(&policy, &base, weight, config).run(requests(&settings()), &mut |_| ()).unwrap()
    };
    let ids = |groups: &[Vec<Sample>]| groups.iter().flatten().map(|sample| sample.ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&mixed(0.0, 64)), ids(&sample_all(&policy, 64, &settings())));
    assert_eq!(ids(&mixed(1.0, 64)), ids(&sample_all(&base, 64, &settings())));
    assert_ne!(ids(&mixed(0.0, 64)), ids(&mixed(1.0, 64)));
    // Rows that move to other slots take both caches along.
    let whole = mixed(0.5, 64);
    assert_eq!(ids(&whole), ids(&mixed(0.5, 2)));

    // Each recorded log-probability is that of (l + l')/2, normalised over the vocabulary.
    let _no_grad = tch::no_grad_guard();
    for (request, samples) in requests(&settings()).iter().zip(&whole) {
        let sample = &samples[0];
        let ids: Vec<i64> = request.prompt_ids.iter().chain(&sample.ids).map(|id| i64::from(*id)).collect();
        let positions: Vec<i64> = (0..ids.len() as i64).collect();
        let logits = |policy: &Policy| {
            let (ids, positions) = (Tensor::from_slice(&ids), Tensor::from_slice(&positions));
            let mut attention = Prefill::new(&[ids.size()[0] as usize]);
            let hidden = policy.network().forward(&ids, &positions, &mut attention, policy.adapter());
            hidden.linear(&policy.network().head().weight, None::<Tensor>)
        };
        let both = ((logits(&policy) + logits(&base)) * 0.5).log_softmax(-1, tch::Kind::Double);
        for (index, (id, recorded)) in sample.ids.iter().zip(&sample.logprobs).enumerate() {
            let expected = both.double_value(&[(request.prompt_ids.len() + index - 1) as i64, i64::from(*id)]);
            assert!((f64::from(*recorded) - expected).abs() < 1e-4, "{recorded} for {expected}");
        }
    }
}
