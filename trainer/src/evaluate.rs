//! Evaluation of a run: greedy answers to held-out prompts, `pass@k` from sampled ones, comparisons with other
//! policies, and the algorithm's own loss on held-out examples.

pub(crate) mod pool;

use crate::Result;
use crate::collected::Collected;
use crate::judge::PairComparer;
use crate::learner::Learner;
use model::Policy;
use model::adapter::Adapter;
use pool::PoolPolicy;
use reward::WeightedSum;
use rollout::EngineConfig;
use rollout::collector::{Collector, Inline, Job, JobPosition, SamplingProgress};
use schema::{Grade, GradedGroup, Group, Metrics, Prompt, SamplerSettings, Seed};

/// Held-out prompts and examples of a run.
#[derive(Debug)]
pub(crate) struct HeldOutEvaluation {
    /// Prompts to answer, if answers can be graded or compared.
    pub(crate) answers: Option<HeldOut>,
    /// Examples to measure the loss on, where a data set is learned from.
    pub(crate) examples: Collected,
}

impl HeldOutEvaluation {
    /// Returns the number of held-out prompts.
    pub(crate) fn len(&self) -> usize {
        self.answers.as_ref().map_or(self.examples.examples().len(), |answers| answers.prompts.len())
    }

    /// Answers the prompts and computes the loss on the examples. Metrics of the algorithm get the prefix `eval_`;
    /// `eval_perplexity` is the exponential of a loss per token.
    pub(crate) fn evaluate(
        &self,
        policy: &Policy,
        learner: &Learner,
        graders: &mut Graders<'_>,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        if !self.examples.examples().is_empty() {
            for (name, value) in learner.measure(&self.examples, policy)?.iter() {
                metrics.set(format!("eval_{name}"), value);
            }
            let loss = metrics.get("eval_loss").filter(|_| metrics.get("eval_mean_token_accuracy").is_some());
            if let Some(loss) = loss {
                metrics.set("eval_perplexity", loss.exp());
            }
        }
        if let Some(answers) = &self.answers {
            if !graders.reward.terms().is_empty() {
                metrics.merge(answers.evaluate(policy, graders.reward, progress)?);
            }
            if !graders.rivals.is_empty() {
                metrics.merge(answers.compare(policy, learner, graders, progress)?);
            }
        }
        Ok(metrics)
    }
}

/// Grader, judge and rivals of an evaluation.
pub(crate) struct Graders<'a> {
    pub(crate) reward: &'a mut WeightedSum,
    pub(crate) judge: Option<&'a mut PairComparer>,
    pub(crate) rivals: &'a [PoolPolicy],
}

/// Held-out prompts and the settings with which they are answered.
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// Prompts that training never sees.
    pub prompts: Vec<Prompt>,
    /// Sampling parameters of the rollout; greedy answers differ in the temperature alone.
    pub settings: SamplerSettings,
    /// Smallest reward at which a completion counts as correct.
    pub threshold: f64,
    /// Samples per prompt for `pass@k`; 0 for none.
    pub samples: usize,
    /// Weight β of the KL towards the base model in the exploitability.
    pub beta: f64,
    /// Root of the randomness of sampled answers.
    pub seed: Seed,
    /// Settings of the sampling engine.
    pub engine: EngineConfig,
}

impl HeldOut {
    /// Answers every prompt and grades the answers. `eval_accuracy` is `pass@1` of the greedy answer; an ungraded
    /// answer is left out of it and counted in `eval_unjudged`.
    ///
    /// # Errors
    /// If sampling fails or a reward function fails as a whole.
    pub fn evaluate(
        &self,
        policy: &Policy,
        reward: &mut WeightedSum,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        let greedy = self.answers(policy, reward, 1, self.settings.clone().greedy(), progress)?;
        let rewards: Vec<f64> = greedy.iter().flat_map(GradedGroup::rewards).flatten().map(f64::from).collect();
        let right = rewards.iter().filter(|reward| **reward >= self.threshold).count();
        metrics.set("eval_accuracy", right as f64 / rewards.len().max(1) as f64);
        metrics.set("eval_reward", rewards.iter().sum::<f64>() / rewards.len().max(1) as f64);
        metrics.set("eval_unjudged", (greedy.len() - rewards.len()) as f64);
        let tokens: usize = greedy.iter().flat_map(|group| &group.group().samples).map(schema::Sample::len).sum();
        metrics.set("eval_completions/mean_length", tokens as f64 / greedy.len().max(1) as f64);

        if self.samples > 0 {
            let sampled = self.answers(policy, reward, self.samples, self.settings.clone().independent(), progress)?;
            for k in powers_of_two(self.samples) {
                let each: Vec<f64> = sampled.iter().filter_map(|group| self.pass_at(k, group)).collect();
                metrics.set(format!("eval_pass@{k}"), each.iter().sum::<f64>() / each.len().max(1) as f64);
            }
        }
        Ok(metrics)
    }

    /// Compares sampled answers with those of each rival, sampled independently: by the judge, or by rewards, of which
    /// the greater wins and equal ones tie.
    ///
    /// | metric | meaning |
    /// |---|---|
    /// | `eval_win_rate/<rival>` | mean probability that an answer of the policy beats one of that rival's |
    /// | `eval_exploitability` | the advantage of the best rival over a tie (see [`pool`](crate::evaluate::pool)); 0 if no rival has one |
    /// | `eval_kl` | KL(policy ‖ base) of a whole answer, in nats; only if `evaluate.beta` is above 0 |
    /// | `eval_unjudged_comparisons` | pairs without a comparison, which are left out of every mean |
    fn compare(
        &self,
        policy: &Policy,
        learner: &Learner,
        graders: &mut Graders<'_>,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Metrics> {
        let seed = self.seed.child("against");
        let own = self.sample(policy, seed.child("own"), progress)?;
        let kl = |policy: &Policy, groups: &[Group]| {
            if self.beta == 0.0 { Ok(0.0) } else { learner.kl(groups, policy, &Adapter::none()) }
        };
        let own_kl = kl(policy, &own)?;
        let (mut metrics, mut unjudged, mut best) = (Metrics::new(), 0, 0.0f64);
        for rival in graders.rivals {
            let others = self.sample(&rival.policy, seed.child("rivals").child(&rival.name), progress)?;
            let wins = match &mut graders.judge {
                Some(comparer) => comparer.counterparts(&own, &others)?.iter().map(Grade::value).collect(),
                None => by_rewards(graders.reward, &own, &others)?,
            };
            let known: Vec<f64> = wins.iter().flatten().map(|win| f64::from(*win)).collect();
            unjudged += wins.len() - known.len();
            if known.is_empty() {
                continue;
            }
            let rate = known.iter().sum::<f64>() / known.len() as f64;
            metrics.set(format!("eval_win_rate/{}", rival.name), rate);
            best = best.max(0.5 - rate + self.beta * (own_kl - kl(&rival.policy, &others)?));
        }
        metrics.set("eval_exploitability", best);
        metrics.set("eval_unjudged_comparisons", unjudged as f64);
        if self.beta > 0.0 {
            metrics.set("eval_kl", own_kl);
        }
        Ok(metrics)
    }

    fn sample(&self, policy: &Policy, seed: Seed, progress: &mut dyn FnMut(SamplingProgress)) -> Result<Vec<Group>> {
        let group_size = self.samples.max(1);
        let (prompts, settings) = (self.prompts.clone(), self.settings.clone());
        let job = Job { prompts, group_size, settings, seed, position: JobPosition::default() };
        Ok(Inline::new(policy, self.engine.clone()).collect(job, progress)?)
    }

    fn answers(
        &self,
        policy: &Policy,
        reward: &mut WeightedSum,
        group_size: usize,
        settings: SamplerSettings,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Vec<GradedGroup>> {
        let mut collector = Inline::new(policy, self.engine.clone());
        let (prompts, seed, position) = (self.prompts.clone(), self.seed.clone(), JobPosition::default());
        let job = Job { prompts, group_size, settings, seed, position };
        Ok(reward.grade(collector.collect(job, progress)?)?)
    }

    fn pass_at(&self, k: usize, group: &GradedGroup) -> Option<f64> {
        let rewards: Vec<f32> = group.rewards().into_iter().flatten().collect();
        let right = rewards.iter().filter(|reward| f64::from(**reward) >= self.threshold).count();
        (rewards.len() >= k).then(|| pass_at_k(rewards.len(), right, k))
    }
}

/// Compares the n-th sample of each group with the n-th of the other policy's: 1 if its reward is greater, ½ for a tie,
/// `None` if either is ungraded.
fn by_rewards(reward: &mut WeightedSum, own: &[Group], others: &[Group]) -> Result<Vec<Option<f32>>> {
    let (own, others) = (reward.grade(own.to_vec())?, reward.grade(others.to_vec())?);
    let wins = |(own, other): (Option<f32>, Option<f32>)| {
        let (own, other) = (own?, other?);
        Some(if own == other { 0.5 } else { f32::from(u8::from(own > other)) })
    };
    let group = |(own, other): (&GradedGroup, &GradedGroup)| {
        own.rewards().into_iter().zip(other.rewards()).map(wins).collect::<Vec<_>>()
    };
    Ok(own.iter().zip(&others).flat_map(group).collect())
}

/// Returns the probability that at least one of `k` samples is correct, if they are drawn without replacement from
/// `samples`, `right` of which are correct: `1 − C(n−c, k) / C(n, k)`, the unbiased estimator of Chen et al. 2021
/// (arXiv 2107.03374).
pub fn pass_at_k(samples: usize, right: usize, k: usize) -> f64 {
    let wrong = samples - right;
    1.0 - (0..k).map(|i| (wrong as f64 - i as f64).max(0.0) / (samples as f64 - i as f64)).product::<f64>()
}

/// Iterates over 1, 2, 4, … up to `limit`.
fn powers_of_two(limit: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |k| Some(2 * k)).take_while(move |k| *k <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_counts_combinations() {
        // 1 of 4 samples is correct: C(3,2)/C(4,2) = 3/6 of the pairs miss it
        assert!((pass_at_k(4, 1, 2) - 0.5).abs() < 1e-12);
        assert!((pass_at_k(4, 1, 1) - 0.25).abs() < 1e-12);
        assert_eq!(pass_at_k(4, 0, 4), 0.0);
        assert_eq!(pass_at_k(4, 1, 4), 1.0);
        assert_eq!(pass_at_k(4, 4, 1), 1.0);
        assert_eq!(powers_of_two(8).collect::<Vec<_>>(), [1, 2, 4, 8]);
    }
}
