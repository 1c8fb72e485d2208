//! Small made-up data for this crate's tests, and the loss of an algorithm in f64.

use crate::algorithm::{Config, Credit, Evidence, Outputs, SampleScores, build};
use crate::batch::Batch;
use crate::config;
use crate::objective::testing::{f64s, gradient, numeric_gradient};
use crate::objective::{MetricSums, Rows};
use model::packed::{Packed, Sequences};
use schema::{
    Finish, Grade, GradedGroup, Group, Metrics, PolicyVersion, Prompt, RewardPart, Sample, SamplerSettings, Verdict,
};
use tch::Tensor;

/// A run of a tiny random network with this algorithm; `changes` are further `key=value`.
pub(crate) fn tiny_run(algorithm: Config, changes: &[&str]) -> config::Config {
    let text = "steps = 4
        [model]
        device = 'cpu'
        random = {}
        [model.adapter.lora]
        rank = 2
        [prompts.arithmetic]
        [[reward]]
        rule.math_answer = {}";
    let changes: Vec<config::Override> = changes.iter().map(|change| change.parse().unwrap()).collect();
    config::Config { algorithm, ..config::Config::parse(text, "test", &changes).unwrap() }
}

/// One group per list of rewards; sample `i` of a group has `i + 1` tokens, and the last one was cut.
pub(crate) fn scored(rewards: &[&[f32]]) -> Vec<GradedGroup> {
    rewards.iter().map(|rewards| group(rewards, &(1..=rewards.len()).collect::<Vec<_>>())).collect()
}

/// One group per pair of rewards and lengths in tokens.
pub(crate) fn scored_lengths(groups: &[(&[f32], &[usize])]) -> Vec<GradedGroup> {
    groups.iter().map(|(rewards, lengths)| group(rewards, lengths)).collect()
}

fn group(rewards: &[f32], lengths: &[usize]) -> GradedGroup {
    let sample = |(index, length): (usize, &usize)| Sample {
        ids: (0..*length as u32).map(|token| 10 + token).collect(),
        mask: vec![true; *length],
        logprobs: vec![-1.0; *length],
        finish: if index + 1 == rewards.len() { Finish::Length } else { Finish::Eos },
        text: String::new(),
    };
    let verdict = |reward: &f32| {
        let grade = Grade::of(*reward);
        Verdict::of_rewards(vec![RewardPart { name: "made_up".into(), version: "1".into(), weight: 1.0, grade }])
    };
    let group = Group {
        prompt: Prompt::text("x"),
        prompt_ids: vec![1, 2, 3],
        policy: PolicyVersion { version: 0, hash: String::new() },
        settings: SamplerSettings::default(),
        samples: lengths.iter().enumerate().map(sample).collect(),
    };
    GradedGroup::new(group, rewards.iter().map(verdict).collect()).expect("one verdict per sample")
}

/// Scores of every sample, in which the policy is above the reference by these log-ratios, sample by sample. The policy
/// is the one that drew the samples.
pub(crate) fn scores(groups: &[GradedGroup], k1: &[&[f64]]) -> Vec<Vec<SampleScores>> {
    let mut k1 = k1.iter();
    let mut score = |sample: &Sample| SampleScores {
        logprobs: sample.logprobs.clone(),
        reference: sample.logprobs.iter().zip(*k1.next().unwrap()).map(|(own, k1)| own - *k1 as f32).collect(),
        ..SampleScores::default()
    };
    groups.iter().map(|group| group.group().samples.iter().map(&mut score).collect()).collect()
}

/// The advantage of each token of each sample, all groups in one list; empty for a sample that is not trained on.
pub(crate) fn token_advantages(config: &Config, groups: &[GradedGroup], k1: Option<&[&[f64]]>) -> Vec<Vec<f64>> {
    let scores = k1.map(|k1| scores(groups, k1));
    let evidence = Evidence { groups, scores: scores.as_deref() };
    let credits = build(config).unwrap().credit(&evidence, &mut Metrics::new());
    let samples = groups.iter().flat_map(|group| &group.group().samples);
    let tokens = |(credit, sample): (Option<Credit>, &Sample)| match credit {
        Some(Credit::Whole(advantage)) => vec![advantage; sample.len()],
        Some(Credit::Tokens { advantages, .. }) => advantages.into_iter().map(f64::from).collect(),
        None => Vec::new(),
    };
    credits.into_iter().flatten().zip(samples).map(tokens).collect()
}

/// The advantage of each sample of each group, of its first token where tokens differ.
pub(crate) fn advantages(config: &Config, rewards: &[&[f32]]) -> Vec<Vec<f64>> {
    sample_advantages(config, rewards, None)
}

/// The same, where the policy has left the reference by these log-ratios; see [`scores`].
pub(crate) fn advantages_with_k1(config: &Config, rewards: &[&[f32]], k1: &[&[f64]]) -> Vec<Vec<f64>> {
    sample_advantages(config, rewards, Some(k1))
}

fn sample_advantages(config: &Config, rewards: &[&[f32]], k1: Option<&[&[f64]]>) -> Vec<Vec<f64>> {
    let mut tokens = token_advantages(config, &scored(rewards), k1).into_iter();
    rewards.iter().map(|group| group.iter().filter_map(|_| tokens.next()?.first().copied()).collect()).collect()
}

/// Everything that a loss is a function of, in f64.
#[derive(Debug)]
pub(crate) struct Losses {
    pub(crate) lengths: Vec<usize>,
    pub(crate) advantages: Vec<f64>,
    pub(crate) policy: Vec<f64>,
    pub(crate) proximal: Tensor,
    pub(crate) behaviour: Tensor,
    pub(crate) reference: Option<Tensor>,
    pub(crate) anchor: Option<Tensor>,
    pub(crate) returns: Option<Tensor>,
}

/// A loss and its gradient with respect to the log-probabilities.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) value: f64,
    pub(crate) gradient: Vec<f64>,
    /// By central differences.
    pub(crate) numeric: Vec<f64>,
}

impl Losses {
    /// Sequences of these lengths; the policy began the step with these log-probabilities and has not moved.
    pub(crate) fn at(lengths: &[usize], advantages: &[f64], policy: &[f64]) -> Self {
        Self {
            lengths: lengths.to_vec(),
            advantages: advantages.to_vec(),
            policy: policy.to_vec(),
            proximal: f64s(policy),
            behaviour: f64s(policy),
            reference: None,
            anchor: None,
            returns: None,
        }
    }

    /// The same, where the log-probabilities do not matter.
    pub(crate) fn unmoved(lengths: &[usize], advantages: &[f64]) -> Self {
        Self::at(lengths, advantages, &vec![-1.0; advantages.len()])
    }

    /// Two sequences of three and two tokens, advantages 1 and −1; log-ratios 0.1, −0.1, 0.3 and −0.1, −0.3.
    pub(crate) fn pair() -> Self {
        let began = f64s(&[-1.0, -2.0, -1.5, -0.5, -1.0]);
        let moved = Self::at(&[3, 2], &[1.0, 1.0, 1.0, -1.0, -1.0], &[-0.9, -2.1, -1.2, -0.6, -1.3]);
        Self { proximal: began.shallow_clone(), behaviour: began, ..moved }
    }

    /// The loss that an algorithm makes of it.
    pub(crate) fn of(&self, config: &Config) -> Loss {
        let algorithm = build(config).unwrap();
        let loss = |policy: &Tensor| {
            let batch = self.batch(&*algorithm);
            let outputs = Outputs::of(policy);
            algorithm.loss(&batch, outputs, &mut MetricSums::new())
        };
        Loss {
            value: loss(&f64s(&self.policy)).double_value(&[]),
            gradient: gradient(&self.policy, loss),
            numeric: numeric_gradient(&self.policy, loss),
        }
    }

    /// What the algorithm measures on it.
    pub(crate) fn tally(&self, config: &Config, tally: &mut MetricSums) {
        let algorithm = build(config).unwrap();
        let logprobs = f64s(&self.policy);
        let outputs = Outputs::of(&logprobs);
        drop(algorithm.loss(&self.batch(&*algorithm), outputs, tally));
    }

    fn batch(&self, algorithm: &dyn crate::algorithm::Algorithm) -> Batch {
        let device = model::device::HOST;
        let completions: Vec<Vec<u32>> = self.lengths.iter().map(|length| vec![5; *length]).collect();
        let sequences = Sequences { prompt: &[1], completions: completions.iter().map(Vec::as_slice).collect() };
        let mask = vec![true; self.advantages.len()];
        let rows = Rows::new(&self.lengths, &mask, device).unwrap();
        Batch {
            packed: Packed::new(&[sequences], 10, device).unwrap(),
            groups: std::iter::once(0..self.lengths.len()).collect(),
            advantages: f64s(&self.advantages),
            returns: self.returns.as_ref().map(Tensor::shallow_clone),
            behaviour_logprobs: self.behaviour.shallow_clone(),
            proximal_logprobs: Some(self.proximal.shallow_clone()),
            reference_logprobs: self.reference.as_ref().map(Tensor::shallow_clone),
            anchor_logprobs: self.anchor.as_ref().map(Tensor::shallow_clone),
            previous_logprobs: None,
            old_values: None,
            denominator: algorithm.denominator(rows.trained_per_sequence()),
            rows,
        }
    }
}
