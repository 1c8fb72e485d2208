//! Small made-up data for this crate's tests.

use schema::{Finish, Group, Part, PartStatus, PolicyVersion, Prompt, Sample, SamplerSettings, ScoredGroup, Verdict};

/// One group per list of rewards; sample `i` of a group has `i + 1` tokens, and the last one was cut.
pub(crate) fn scored(rewards: &[&[f32]]) -> Vec<ScoredGroup> {
    rewards.iter().map(|rewards| group(rewards)).collect()
}

fn group(rewards: &[f32]) -> ScoredGroup {
    let sample = |index: usize| Sample {
        ids: (0..=index as u32).map(|token| 10 + token).collect(),
        mask: vec![true; index + 1],
        logprobs: vec![-1.0; index + 1],
        finish: if index + 1 == rewards.len() { Finish::Length } else { Finish::Eos },
        text: String::new(),
    };
    let verdict = |reward: &f32| Verdict {
        parts: vec![Part {
            name: "made_up".into(),
            version: "1".into(),
            weight: 1.0,
            value: reward.is_finite().then_some(*reward),
            status: PartStatus::Judged,
        }],
    };
    let group = Group {
        prompt: Prompt::text("x"),
        prompt_ids: vec![1, 2, 3],
        policy: PolicyVersion { version: 0, hash: String::new() },
        settings: SamplerSettings::default(),
        samples: (0..rewards.len()).map(sample).collect(),
    };
    ScoredGroup::new(group, rewards.iter().map(verdict).collect()).expect("one verdict per sample")
}
