//! A trained reward model as a reward function: the grade of an answer is the model's reward after its last token.
//!
//! The reward crate has no networks, so the reward function is built here. A reward model is a run of
//! `algorithm.reward_model`: an adapter and a scalar head over a base. If that base is the policy's own, its weights are
//! shared, and the two differ in a few megabytes of adapter; otherwise the other base is loaded, and answers are tokenized
//! with its tokenizer.

use crate::algorithm;
use crate::batch::MicroBatchLimits;
use crate::checkpoint::restore::{restore_newest, resumed_config, same_base};
use crate::config::Config;
use crate::{Error, Result};
use model::packed::{Packed, Sequences};
use model::{Critic, Policy};
use reward::{Reward, fingerprint};
use schema::{Finish, Grade, Group, Sample, Seed, Token};
use std::path::Path;
use tch::Tensor;

/// A reward model that grades for another run.
pub(crate) struct RewardNetwork {
    policy: Policy,
    critic: Critic,
    /// `true` if it shares the tokenizer of the policy that it grades.
    same_tokenizer: bool,
    limits: MicroBatchLimits,
    version: String,
}

impl RewardNetwork {
    /// Returns the config of the run in a folder, before anything is loaded.
    ///
    /// # Errors
    /// If the folder is no run, or a run of another algorithm.
    pub(crate) fn check(folder: &Path) -> Result<Config> {
        let config = resumed_config(folder, &[])?;
        if !matches!(config.algorithm, algorithm::Config::RewardModel(_)) {
            return Err(Error::input(format!(
                "{} is a run of algorithm.{}, which gives no scores; a reward model is trained by algorithm.reward_model",
                folder.display(),
                config.algorithm.name()
            )));
        }
        Ok(config)
    }

    /// Loads the newest checkpoint of a run, to grade samples of the policy `judged` in passes of at most
    /// `micro_batch_tokens` tokens.
    pub(crate) fn open(
        folder: &Path,
        judged: &Policy,
        model: &model::Config,
        micro_batch_tokens: usize,
    ) -> Result<Self> {
        Self::read(folder, &Self::check(folder)?, judged, model, micro_batch_tokens)
    }

    /// Loads the newest checkpoint of a run with this config, whatever its head was trained for.
    pub(crate) fn read(
        folder: &Path,
        config: &Config,
        judged: &Policy,
        model: &model::Config,
        micro_batch_tokens: usize,
    ) -> Result<Self> {
        let seed = Seed::new(config.seed);
        let mut policy = if same_base(&config.model, model) {
            let adapter =
                config.model.adapter.build(judged.network().linears(), &seed.child("adapter"), judged.device())?;
            judged.with_adapter(adapter)
        } else {
            let other = Policy::load(&config.model, &seed)?;
            // Another way to write the same path: one copy of the weights is enough.
            let same = other.identity() == judged.identity() && other.dtype() == judged.dtype();
            if same { judged.with_adapter(other.adapter().share()) } else { other }
        };
        let snapshot = restore_newest(folder, &mut policy)?;
        let critic = Critic::new(policy.network(), None, policy.device());
        critic.restore(snapshot.part("critic")?)?;
        let limits = MicroBatchLimits {
            tokens: micro_batch_tokens,
            vocab: policy.network().dimensions().vocab,
            device: policy.device(),
        };
        let head: Vec<Vec<f32>> = critic
            .tensors()
            .map(|(_, tensor)| Ok(Vec::<f32>::try_from(&tensor.detach().flatten(0, -1))?))
            .collect::<Result<_>>()?;
        let version = fingerprint(1, &(&policy.version().hash, head));
        Ok(Self { same_tokenizer: policy.identity() == judged.identity(), policy, critic, limits, version })
    }

    /// Loads the newest checkpoint of a run by itself, for stored samples of any model: their text is tokenized again.
    pub(crate) fn alone(folder: &Path, micro_batch_tokens: usize) -> Result<Self> {
        let config = Self::check(folder)?;
        let base = Policy::load(&config.model, &Seed::new(config.seed))?.base();
        Ok(Self { same_tokenizer: false, ..Self::open(folder, &base, &config.model, micro_batch_tokens)? })
    }

    /// Fingerprint of the head, its backbone and the code that runs them.
    pub(crate) fn version_hash(&self) -> &str {
        &self.version
    }

    /// End-of-sequence tokens of this model; the usual one is the first.
    pub(crate) fn ends(&self) -> &[Token] {
        self.policy.tokenizer().eos_ids()
    }

    /// Tokens of a prompt in this model's vocabulary.
    pub(crate) fn prompt(&self, group: &Group) -> Result<Vec<Token>> {
        if self.same_tokenizer {
            return Ok(group.prompt_ids.clone());
        }
        Ok(self.policy.tokenizer().prompt_ids(&group.prompt)?)
    }

    /// Tokens of an answer in this model's vocabulary; a truncated one has no end here either.
    pub(crate) fn answer(&self, group: &Group, sample: &Sample) -> Result<Vec<Token>> {
        if self.same_tokenizer {
            return Ok(sample.ids.clone());
        }
        let mut ids = self.policy.tokenizer().answer_ids(&group.prompt, &sample.text)?;
        if sample.finish != Finish::Eos {
            ids.pop();
        }
        Ok(ids)
    }

    /// Rewards of each answer of each group.
    fn scores(&self, groups: &[Group]) -> Result<Vec<Vec<f32>>> {
        let asked = |group: &Group| {
            let answers = group.samples.iter().map(|sample| self.answer(group, sample)).collect::<Result<_>>()?;
            Ok((self.prompt(group)?, answers))
        };
        self.score_tokens(groups.iter().map(asked).collect::<Result<Vec<_>>>()?)
    }

    /// Rewards after the last token of each answer, of prompts with their answers.
    pub(crate) fn score_tokens(&self, asked: Vec<(Vec<Token>, Vec<Vec<Token>>)>) -> Result<Vec<Vec<f32>>> {
        let mut scores: Vec<Vec<f32>> = asked.iter().map(|(_, answers)| Vec::with_capacity(answers.len())).collect();
        let mut pass = Pass::default();
        for (place, (prompt, answers)) in asked.into_iter().enumerate() {
            for answer in answers {
                if !pass.is_empty() && pass.tokens_with(place, &prompt, &answer) > self.limits.tokens {
                    self.run(&std::mem::take(&mut pass), &mut scores)?;
                }
                pass.push(place, &prompt, answer);
            }
        }
        self.run(&pass, &mut scores)?;
        Ok(scores)
    }

    fn run(&self, pass: &Pass, scores: &mut [Vec<f32>]) -> Result<()> {
        if pass.is_empty() {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        let packed = Packed::for_sequence_head(&pass.sequences(), self.limits.vocab, self.limits.device)?;
        let values = self.policy.evaluate_values(&packed, &self.critic).leaf;
        let at_ends = values.index_select(0, &Tensor::from_slice(&pass.ends()).to_device(self.limits.device));
        let answers = pass.parts.iter().flat_map(|part| part.answers.iter().map(|_| part.group));
        for (group, score) in answers.zip(Vec::<f32>::try_from(&at_ends)?) {
            scores[group].push(score);
        }
        Ok(())
    }
}

impl Reward for RewardNetwork {
    fn name(&self) -> &'static str {
        "model"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        match self.scores(groups) {
            Ok(scores) => scores.into_iter().map(|group| group.into_iter().map(Grade::of).collect()).collect(),
            Err(error) => {
                let unjudged = Grade::missing(format!("the reward model cannot judge it: {error}"));
                groups.iter().map(|group| vec![unjudged.clone(); group.samples.len()]).collect()
            }
        }
    }
}

/// Answers of one forward pass.
#[derive(Debug, Default)]
struct Pass {
    parts: Vec<GroupPart>,
    tokens: usize,
}

/// Answers of one group in one forward pass.
#[derive(Debug)]
struct GroupPart {
    group: usize,
    prompt: Vec<Token>,
    answers: Vec<Vec<Token>>,
}

impl Pass {
    fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn tokens_with(&self, group: usize, prompt: &[Token], answer: &[Token]) -> usize {
        let shared = self.parts.last().is_some_and(|part| part.group == group);
        self.tokens + answer.len() + if shared { 0 } else { prompt.len() }
    }

    fn push(&mut self, group: usize, prompt: &[Token], answer: Vec<Token>) {
        self.tokens = self.tokens_with(group, prompt, &answer);
        match self.parts.last_mut() {
            Some(part) if part.group == group => part.answers.push(answer),
            _ => self.parts.push(GroupPart { group, prompt: prompt.to_vec(), answers: vec![answer] }),
        }
    }

    fn sequences(&self) -> Vec<Sequences<'_>> {
        self.parts
            .iter()
            .map(|part| Sequences {
                prompt: &part.prompt,
                completions: part.answers.iter().map(|answer| &answer[..]).collect(),
            })
            .collect()
    }

    /// The scored place behind each answer: each has as many places as tokens, and one more.
    fn ends(&self) -> Vec<i64> {
        let answers = self.parts.iter().flat_map(|part| &part.answers);
        answers
            .scan(0, |places, answer| {
                *places += answer.len() as i64 + 1;
                Some(*places - 1)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;

    #[test]
    fn scores_do_not_depend_on_the_company() {
        let config: model::Config = toml::from_str("device = 'cpu'\nrandom = {}").unwrap();
        let policy = Policy::load(&config, &Seed::new(0)).unwrap();
        let critic = Critic::new(policy.network(), None, policy.device());
        critic.restore(&[("score.weight".into(), Tensor::from_slice(&Seed::new(1).normals(64)))]).unwrap();
        let limits = MicroBatchLimits { tokens: 1000, vocab: 259, device: policy.device() };
        let mut judge = RewardNetwork { policy, critic, same_tokenizer: true, limits, version: "1".into() };
        // Answers of one, two and three tokens, and of one and two.
        let groups: Vec<Group> = scored(&[&[0.0; 3], &[0.0; 2]]).iter().map(|scored| scored.group().clone()).collect();
        let whole = judge.scores(&groups).unwrap();
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        judge.limits.tokens = 1;
        for (whole, alone) in whole.iter().flatten().zip(judge.scores(&groups).unwrap().iter().flatten()) {
            assert!((whole - alone).abs() < 1e-4, "{whole} and {alone}");
        }
        // Longer answers are scored elsewhere, and the same answer to the same prompt alike.
        assert!((whole[0][0] - whole[0][1]).abs() > 1e-3 && (whole[0][1] - whole[1][1]).abs() < 1e-4, "{whole:?}");
    }

    #[test]
    fn a_pass_holds_prompts_once_and_knows_its_ends() {
        let mut pass = Pass::default();
        pass.push(0, &[1, 2, 3], vec![4, 5]);
        // The prompt is there already: 3 + 2 + 1.
        assert_eq!(pass.tokens_with(0, &[1, 2, 3], &[6]), 6);
        pass.push(0, &[1, 2, 3], vec![6]);
        assert_eq!(pass.tokens_with(1, &[1, 2], &[]), 8);
        pass.push(1, &[1, 2], vec![]);
        let sequences = pass.sequences();
        assert_eq!(sequences.iter().map(|group| group.completions.len()).collect::<Vec<_>>(), [2, 1]);
        // Places: 2 + 1, 1 + 1, 0 + 1.
        assert_eq!(pass.ends(), [2, 4, 5]);
    }
}
