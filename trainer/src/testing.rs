//! Small made-up data for this crate's tests, and the loss of an algorithm in f64.

use crate::algorithm::{Algorithm, Config, Evidence, Outputs, Samples, build};
use crate::batch::{Batch, BatchSignal, SequenceLogprobs, Signal, Signals};
use crate::collected::{Collected, Completion, Completions, Duel, Example, PromptSequences, Unit};
use crate::companion::{ByRole, Role};
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

/// Data of a step with these rewards, as a method collects it: groups, duels of every two, or rows of a data set, in which the first completion of
/// a pair is the chosen one and a reward above one half is a label.
pub(crate) fn collected(algorithm: &dyn Algorithm, rewards: &[&[f32]]) -> Collected {
    let groups = scored(rewards);
    let examples = |rows: Vec<Completions>| {
        Collected::Examples(
            rows.into_iter().map(|completions| Example { prompt_ids: vec![1, 2, 3], completions }).collect(),
        )
    };
    let completion = |sample: &Sample| Completion { ids: sample.ids.clone(), cut: sample.finish == Finish::Length };
    match algorithm.needs().samples {
        Samples::Sampled { opponent: None, .. } => Collected::Groups(groups),
        Samples::Sampled { opponent: Some(_), .. } => Collected::duels_of(&groups),
        Samples::Demonstrations { .. } | Samples::Labelled { .. } => {
            let row = |(sample, reward): (&Sample, Option<f32>)| Completions::Demonstration {
                completion: completion(sample),
                desirable: reward.is_some_and(|reward| reward > 0.5),
            };
            examples(groups.iter().flat_map(|it| it.group().samples.iter().zip(it.rewards()).map(row)).collect())
        }
        Samples::Pairs { .. } => {
            let row = |group: &GradedGroup| Completions::Pair {
                chosen: completion(&group.group().samples[0]),
                rejected: completion(&group.group().samples[1]),
                margin: 0.0,
            };
            examples(groups.iter().map(row).collect())
        }
    }
}

/// The policy's groups, as a step collects them.
pub(crate) fn groups(rewards: &[&[f32]]) -> Collected {
    Collected::Groups(scored(rewards))
}

/// A duel of two groups with these rewards.
pub(crate) fn duel(own: &[f32], opponent: &[f32]) -> Collected {
    Collected::Duels(vec![Duel { own: scored(&[own]).remove(0), opponent: scored(&[opponent]).remove(0) }])
}

/// Log-probs of every sequence, in which the policy is above the reference by these log-ratios, sequence by sequence. The
/// policy is the one that sampled it; a row of a data set has log-probs of −1.
pub(crate) fn logprobs(units: &[Unit<'_>], k1: &[&[f64]]) -> Vec<Vec<SequenceLogprobs>> {
    let mut k1 = k1.iter();
    let mut of_sequence = |unit: &Unit<'_>, index| {
        let sequence = unit.sequence(index);
        let policy = sequence.behaviour_logprobs.map_or_else(|| vec![-1.0; sequence.len()], <[f32]>::to_vec);
        let reference = policy.iter().zip(*k1.next().unwrap()).map(|(own, k1)| own - *k1 as f32).collect();
        SequenceLogprobs {
            policy,
            companions: std::iter::once((Role::Reference, reference)).collect(),
            ..SequenceLogprobs::default()
        }
    };
    units.iter().map(|unit| (0..unit.count()).map(|index| of_sequence(unit, index)).collect()).collect()
}

/// The signals of an algorithm; `k1` as in [`logprobs`].
pub(crate) fn signals(
    algorithm: &dyn Algorithm,
    collected: &Collected,
    k1: Option<&[&[f64]]>,
    metrics: &mut Metrics,
) -> Signals {
    let units = algorithm.units(collected);
    let logprobs = k1.map(|k1| logprobs(&units, k1));
    algorithm.signals(&Evidence { collected, units: &units, logprobs: logprobs.as_deref() }, metrics)
}

/// The advantage of each token of each sample, all groups in one list; empty for a sample that is not trained on.
pub(crate) fn token_advantages(config: &Config, groups: &[GradedGroup], k1: Option<&[&[f64]]>) -> Vec<Vec<f64>> {
    let collected = Collected::Groups(groups.to_vec());
    let signals = signals(&*build(config).unwrap(), &collected, k1, &mut Metrics::new());
    let samples = groups.iter().flat_map(|group| &group.group().samples);
    let tokens = |(signal, sample): (Option<Signal>, &Sample)| match signal {
        Some(Signal::Advantage(advantage)) => vec![advantage; sample.len()],
        Some(Signal::TokenAdvantages { advantages, .. }) => advantages.into_iter().map(f64::from).collect(),
        _ => Vec::new(),
    };
    signals.into_iter().flatten().zip(samples).map(tokens).collect()
}

/// The advantage of each sample of each group, of its first token where tokens differ.
pub(crate) fn advantages(config: &Config, rewards: &[&[f32]]) -> Vec<Vec<f64>> {
    sample_advantages(config, rewards, None)
}

/// The same, where the policy has left the reference by these log-ratios; see [`logprobs`].
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
    pub(crate) signal: LossSignal,
    pub(crate) policy: Vec<f64>,
    pub(crate) proximal: Tensor,
    pub(crate) behaviour: Tensor,
    pub(crate) reference: Option<Tensor>,
    pub(crate) ema: Option<Tensor>,
}

/// A training signal, in f64.
#[derive(Debug, Clone)]
pub(crate) enum LossSignal {
    /// One per token.
    Advantages(Vec<f64>),
    /// One per sequence: the win rate, and whether an opponent sampled it.
    Pairs(Vec<(f64, bool)>),
    /// One per sequence: the signed weight and the baseline.
    Labels(Vec<(f64, f64)>),
    /// Every token is imitated.
    Imitation,
}

impl LossSignal {
    fn tensors(&self) -> BatchSignal {
        match self {
            Self::Advantages(advantages) => BatchSignal::Advantages { advantages: f64s(advantages), returns: None },
            Self::Pairs(sides) => BatchSignal::Pairs {
                win_rates: f64s(&sides.iter().map(|(win_rate, _)| *win_rate).collect::<Vec<_>>()),
                by_opponent: f64s(&sides.iter().map(|(_, by)| f64::from(*by)).collect::<Vec<_>>()),
            },
            Self::Labels(labels) => BatchSignal::Labels {
                signed_weights: f64s(&labels.iter().map(|(weight, _)| *weight).collect::<Vec<_>>()),
                baselines: f64s(&labels.iter().map(|(_, baseline)| *baseline).collect::<Vec<_>>()),
            },
            Self::Imitation => BatchSignal::Imitation,
        }
    }
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
        Self::with(lengths, LossSignal::Advantages(advantages.to_vec()), policy)
    }

    /// The same with any signal.
    pub(crate) fn with(lengths: &[usize], signal: LossSignal, policy: &[f64]) -> Self {
        Self {
            lengths: lengths.to_vec(),
            signal,
            policy: policy.to_vec(),
            proximal: f64s(policy),
            behaviour: f64s(policy),
            reference: None,
            ema: None,
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

    /// Adds the algorithm's measurements to `sums`.
    pub(crate) fn measure(&self, config: &Config, sums: &mut MetricSums) {
        let algorithm = build(config).unwrap();
        let logprobs = f64s(&self.policy);
        let outputs = Outputs::of(&logprobs);
        drop(algorithm.loss(&self.batch(&*algorithm), outputs, sums));
    }

    fn batch(&self, algorithm: &dyn crate::algorithm::Algorithm) -> Batch {
        let device = model::device::HOST;
        let completions: Vec<Vec<u32>> = self.lengths.iter().map(|length| vec![5; *length]).collect();
        let sequences = Sequences { prompt: &[1], completions: completions.iter().map(Vec::as_slice).collect() };
        let mask = vec![true; self.policy.len()];
        let rows = Rows::new(&self.lengths, &mask, device).unwrap();
        let mut companion_logprobs = ByRole::default();
        for (role, known) in [(Role::Reference, &self.reference), (Role::Ema, &self.ema)] {
            if let Some(known) = known {
                companion_logprobs.set(role, known.shallow_clone());
            }
        }
        Batch {
            packed: Packed::new(&[sequences], 10, device).unwrap(),
            units: std::iter::once(0..self.lengths.len()).collect(),
            signal: self.signal.tensors(),
            behaviour_logprobs: Some(self.behaviour.shallow_clone()),
            proximal_logprobs: Some(self.proximal.shallow_clone()),
            companion_logprobs,
            old_values: None,
            denominator: algorithm.denominator(rows.trained_per_sequence()),
            rows,
        }
    }
}
