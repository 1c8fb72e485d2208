//! PROPS: a behaviour policy beside the trained one that samples under-represented tokens more often (Corrado & Hanna
//! 2023, "On-policy policy gradient reinforcement learning without on-policy sampling", arXiv 2311.08290).
//!
//! A policy gradient needs the *frequencies* of the samples to match the policy θ; independent samples match it only in
//! the limit. So groups are sampled in slices, and before each slice a policy φ is fitted to the samples so far:
//!
//! ```text
//! ρ = φ(a|s) / θ(a|s)        at tokens a sampled at prefixes s that were visited twice or more
//! L = mean max(ρ, 1 − ε) + λ mean KL(φ(·|s) ‖ θ(·|s))
//! ```
//!
//! φ starts as θ. There the gradient with respect to the logits is the empirical frequency minus θ: over-represented
//! tokens become less likely, under-represented ones more, and a token whose probability has fallen by the factor 1 − ε
//! has no further gradient. The fit ends with the last φ whose mean of k3, `ρ − 1 − log ρ`, is within its limit.
//!
//! φ differs from θ by a low-rank head on the logits, which needs no pass through the network, or by a copy of θ's
//! adapter. Training applies no weights for φ: a correction by φ would make each sample unbiased by itself and bring
//! back the noise of independent samples. `ReMix` takes ratios to the policy that sampled, so with both its clip is
//! centred on φ.
//!
//! **Use it** for prefixes with about as many visits as likely tokens: above all the first token of large groups, which
//! is the only one considered by default. Deeper prefixes have few visits each and share the head, so correcting them
//! costs the first token more than they gain (docs/results/props.md has numbers). Long free text is unique after a few
//! tokens, and there is nothing to correct. `behavior/prefixes` reports the number of shared prefixes. PROPS has not
//! been published for language models: slices of groups and the tree of prefixes are choices of this implementation.
//! The authors' method also keeps a buffer, in which the batches of earlier steps count; here only the slices of one step
//! do. On SmolLM2 the sampling error of the first token is no smaller than that of independent samples
//! (docs/results/efficiency-20.md, docs/results/efficiency-50.md).
//! The samples of a group are no longer independent, so a leave-one-out baseline is no longer exactly unbiased.

use super::visits::{PromptSamples, Visits};
use crate::optimizer::{self, AdamW, AdamWConfig, Parameter, Role};
use crate::{Error, Result};
use model::adapter::Adapter;
use model::logprob::Want;
use model::packed::{Packed, Sequences};
use model::{LogitHead, Policy};
use schema::{GradedGroup, Group, Metrics, Sample, Seed, Token};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[behavior.props]`: slices of a group, and the fit of the behaviour policy between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Props {
    /// Number of slices in which a group is sampled; from 2 to the group size.
    pub slices: usize,
    /// Part that the behaviour policy adapts: `logit_head` or `adapter`.
    pub adapts: Adapts,
    /// Rank of the head on the logits; at least 1.
    pub rank: i64,
    /// Clip ε: a token has no further gradient once its probability has fallen by this share; at least 0, below 1.
    pub epsilon: f64,
    /// Weight λ of KL(φ ‖ θ); 0 or more.
    pub kl_coefficient: f64,
    /// Largest mean of k3, in nats per sampled token, at which the fit ends; above 0.
    pub max_kl: f64,
    /// Number of updates of one fit.
    pub epochs: usize,
    /// Step size of the head: the change of a logit per update, in multiples of the error of the token's frequency;
    /// above 0.
    pub learning_rate: f64,
    /// Adam's learning rate if the adapter is adapted; above 0.
    pub adapter_learning_rate: f64,
    /// Largest norm of the adapter's gradients, to which larger ones are scaled down; 0 for no limit.
    pub max_grad_norm: f64,
    /// Number of first tokens of each sample that are considered; 0 for all.
    pub positions: usize,
}

/// Part of the policy that the behaviour policy adapts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adapts {
    /// A low-rank head on the logits.
    #[default]
    LogitHead,
    /// A copy of the policy's adapter.
    Adapter,
}

impl Default for Props {
    fn default() -> Self {
        Self {
            slices: 4,
            adapts: Adapts::LogitHead,
            rank: 8,
            epsilon: 0.3,
            kl_coefficient: 0.1,
            max_kl: 0.05,
            epochs: 16,
            learning_rate: 0.5,
            adapter_learning_rate: 1e-3,
            max_grad_norm: 0.5,
            positions: 1,
        }
    }
}

/// Value of the objective at one point of a fit.
struct Objective {
    /// Loss, a scalar with gradient.
    loss: Tensor,
    /// Mean of k3 over sampled tokens, in nats.
    k3: f64,
}

impl Props {
    pub(super) fn check(&self, group_size: usize) -> Result<()> {
        let refuse = |key: &str, must: &str| Err(Error::input(format!("behavior.props.{key} must be {must}")));
        if !(2..=group_size).contains(&self.slices) {
            return Err(Error::input(format!(
                "behavior.props.slices is {}, but must be from 2 to rollout.group_size, {group_size}: what a slice corrects has to be seen by the ones before it",
                self.slices
            )));
        }
        if self.rank < 1 {
            return refuse("rank", "at least 1");
        }
        if !(0.0..1.0).contains(&self.epsilon) {
            return refuse("epsilon", "at least 0 and below 1; 0.3 is usual");
        }
        for (key, value) in [("kl_coefficient", self.kl_coefficient), ("max_grad_norm", self.max_grad_norm)] {
            if !value.is_finite() || value < 0.0 {
                return refuse(key, "0 or more");
            }
        }
        for (key, value) in [
            ("max_kl", self.max_kl),
            ("learning_rate", self.learning_rate),
            ("adapter_learning_rate", self.adapter_learning_rate),
        ] {
            if !value.is_finite() || value <= 0.0 {
                return refuse(key, "above 0");
            }
        }
        Ok(())
    }

    /// Computes `mean max(ρ, 1 − ε) + λ mean KL` and the mean of k3, from the log-probabilities of the sampled tokens
    /// under φ and θ and the divergence of φ from θ at their prefixes, each `[token]`.
    fn objective(&self, behaviour: &Tensor, policy: &Tensor, divergence: &Tensor) -> Objective {
        let log_ratio = (behaviour - policy).clamp(-20.0, 20.0);
        let ratio = log_ratio.exp();
        let k3 = (&ratio - 1.0 - log_ratio).mean(Kind::Double).double_value(&[]);
        let kind = ratio.kind();
        let loss = ratio.clamp_min(1.0 - self.epsilon).mean(kind) + divergence.mean(kind) * self.kl_coefficient;
        Objective { loss, k3 }
    }

    /// Computes the objective of logits that differ from the policy's by `shift`, `[prefix, vocab]`.
    fn shifted(&self, visits: &Visits, shift: &Tensor) -> Objective {
        let kind = visits.logprobs.kind();
        let logprobs = (&visits.logprobs + shift).log_softmax(-1, kind);
        let each = (logprobs.exp() * (&logprobs - &visits.logprobs)).sum_dim_intlist([-1i64].as_slice(), false, kind);
        let divergence = each.index_select(0, &visits.prefix_of_token());
        self.objective(&visits.at_tokens(&logprobs), &visits.at_tokens(&visits.logprobs), &divergence)
    }

    /// Fits a head on the logits that makes over-represented tokens less likely at these prefixes. `temperature` is
    /// that of sampling, and `seed` initialises the head.
    ///
    /// The fit is plain gradient descent, whose steps are proportional to the error of the frequencies. Adam would move
    /// a token that was never sampled by as much as one that was sampled twice too often, and φ would end up sampling
    /// from the tail of the vocabulary.
    pub fn fit(&self, visits: &Visits, temperature: f64, seed: &Seed) -> LogitHead {
        let (vocab, hidden) = (visits.logprobs.size()[1], visits.hidden.size()[1]);
        let head = LogitHead::zero(vocab, hidden, self.rank, seed, visits.hidden.device());
        if visits.is_empty() {
            return head;
        }
        let inner = head.inner(&visits.hidden) / temperature;
        // The mean over sampled tokens splits a gradient among the prefixes, and the product with z = V h / T in the
        // backward pass multiplies it by |z|²: without these two factors a logit would move by the difference of the
        // frequencies.
        let squared = inner.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).mean(Kind::Float);
        let mut step = self.learning_rate * visits.prefixes() as f64 / squared.double_value(&[]).max(1e-12);
        let mut up = head.up.detach();
        let mut last = up.copy();
        for _ in 0..self.epochs {
            let leaf = up.detach().set_requires_grad(true);
            let Objective { loss, k3 } = self.shifted(visits, &inner.matmul(&leaf.tr()));
            if k3 > self.max_kl {
                up = last.copy();
                step /= 2.0;
                continue;
            }
            loss.backward();
            last = leaf.detach();
            up = &last - leaf.grad() * step;
        }
        let too_far = self.shifted(visits, &inner.matmul(&up.tr())).k3 > self.max_kl;
        LogitHead { up: if too_far { last } else { up }, down: head.down }
    }

    /// Fits a copy of the policy's adapter in the same way.
    fn fit_adapter(&self, policy: &Policy, sampled: &[PromptSamples<'_>], temperature: f64) -> Result<Policy> {
        let behaviour = policy.with_adapter(trainable(policy.adapter()));
        let parameters = behaviour
            .adapter()
            .tensors()
            .map(|(name, tensor)| Parameter::new(name, tensor.shallow_clone(), Role::Weight))
            .collect();
        let mut fit = Fit::new(self, parameters)?;
        let vocab = policy.network().dimensions().vocab;
        let groups = sampled.iter().map(|group| Shared::new(group, self.positions, policy, vocab, temperature));
        let groups: Vec<Shared> = groups.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let count: f64 = groups.iter().map(|group| group.count).sum();
        let k3 = |behaviour: &Policy| {
            let own = |group: &Shared| {
                let logprobs = behaviour.logprobs(&group.packed, temperature, behaviour.adapter());
                let at = |x: &Tensor| x.index_select(0, &group.indices);
                let log_ratio = at(&logprobs) - at(&group.logprobs);
                (log_ratio.exp() - 1.0 - log_ratio).sum(Kind::Double).double_value(&[]) / count
            };
            groups.iter().map(own).sum::<f64>()
        };
        for _ in 0..self.epochs {
            let mut moved = 0.0;
            for group in &groups {
                let mut evaluation = behaviour.evaluate(&group.packed, temperature, Want::Logprobs, None);
                policy.add_divergence(&mut evaluation, &group.packed, policy.adapter());
                let at = |x: &Tensor| x.index_select(0, &group.indices);
                let objective = self.objective(
                    &at(&evaluation.logprobs),
                    &at(&group.logprobs),
                    &at(&evaluation.divergences[0].leaf),
                );
                let share = group.count / count;
                moved += objective.k3 * share;
                evaluation.backward(&(objective.loss * share));
            }
            if moved > self.max_kl {
                fit.undo();
            } else if count > 0.0 {
                fit.update()?;
            }
        }
        if k3(&behaviour) > self.max_kl {
            fit.undo();
        }
        Ok(behaviour)
    }
}

/// Returns a copy whose tensors require gradients.
fn trainable(adapter: &Adapter) -> Adapter {
    let copy = adapter.copy();
    for (_, tensor) in copy.tensors() {
        let _ = tensor.set_requires_grad(true);
    }
    copy
}

/// The sampled tokens of one prompt at prefixes that several samples share.
struct Shared {
    packed: Packed,
    /// Indices of these tokens among the packed ones, `[token]` i64.
    indices: Tensor,
    /// Log-probabilities of all packed tokens under the policy, `[packed]` f32.
    logprobs: Tensor,
    /// Number of these tokens.
    count: f64,
}

impl Shared {
    /// Packs the samples of a prompt; `None` if no prefix is shared.
    fn new(
        sampled: &PromptSamples<'_>,
        positions: usize,
        policy: &Policy,
        vocab: i64,
        temperature: f64,
    ) -> Result<Option<Self>> {
        let limit = if positions == 0 { usize::MAX } else { positions };
        let completions: Vec<&[Token]> = sampled.completions.iter().map(|ids| &ids[..ids.len().min(limit)]).collect();
        let indices = super::visits::shared_indices(&completions);
        if indices.is_empty() {
            return Ok(None);
        }
        let sequences = Sequences { prompt: sampled.prompt, completions };
        let packed = Packed::new(&[sequences], vocab, policy.device())?;
        let logprobs = policy.logprobs(&packed, temperature, policy.adapter());
        let count = indices.len() as f64;
        Ok(Some(Self { packed, indices: Tensor::from_slice(&indices).to_device(policy.device()), logprobs, count }))
    }
}

/// Adam on the adapter of a behaviour policy.
struct Fit {
    optimizer: AdamW,
    parameters: Vec<Parameter>,
    learning_rate: f64,
    max_grad_norm: f64,
    /// Parameters before the last update.
    before: Vec<Tensor>,
}

impl Fit {
    fn new(props: &Props, parameters: Vec<Parameter>) -> Result<Self> {
        let optimizer = AdamW::new(AdamWConfig { eps: 1e-5, ..AdamWConfig::default() })?;
        Ok(Self {
            optimizer,
            parameters,
            learning_rate: props.adapter_learning_rate,
            max_grad_norm: props.max_grad_norm,
            before: Vec::new(),
        })
    }

    fn update(&mut self) -> Result<()> {
        self.before = self.parameters.iter().map(|parameter| parameter.tensor.detach().copy()).collect();
        optimizer::update(&mut self.optimizer, &mut self.parameters, self.learning_rate, self.max_grad_norm)?;
        Ok(())
    }

    /// Reverts the last update, drops the gradients, and halves the learning rate.
    fn undo(&mut self) {
        let _no_grad = tch::no_grad_guard();
        self.learning_rate /= 2.0;
        for (parameter, before) in self.parameters.iter_mut().zip(&self.before) {
            parameter.tensor.copy_(before);
            parameter.tensor.zero_grad();
        }
    }
}

fn prompt_samples<'a>(prompt: &'a [Token], samples: &'a [Sample]) -> PromptSamples<'a> {
    PromptSamples { prompt, completions: samples.iter().map(|sample| &sample.ids[..]).collect() }
}

impl Props {
    /// The number of samples of a group in each slice.
    pub(super) fn slices(&self, group_size: usize) -> Vec<usize> {
        let (share, rest) = (group_size / self.slices, group_size % self.slices);
        (0..self.slices).map(|slice| share + usize::from(slice < rest)).collect()
    }

    /// The policy that samples the next slice: `policy`, corrected for the sampling error of `groups`.
    pub(super) fn next(&self, policy: &Policy, groups: &[Group], seed: &Seed) -> Result<Policy> {
        let temperature = groups.first().map_or(1.0, |group| group.settings.logprob_temperature());
        let sampled: Vec<PromptSamples<'_>> =
            groups.iter().map(|group| prompt_samples(&group.prompt_ids, &group.samples)).collect();
        match self.adapts {
            Adapts::LogitHead => {
                let visits = Visits::of(policy, &sampled, temperature, self.positions)?;
                Ok(policy.with_logit_head(self.fit(&visits, temperature, seed)))
            }
            Adapts::Adapter => self.fit_adapter(policy, &sampled, temperature),
        }
    }

    /// | metric | meaning |
    /// |---|---|
    /// | `behavior/sampling_error` | KL(empirical ‖ policy) at shared prefixes, in nats per sampled token |
    /// | `behavior/sampling_error_iid` | the same for independent samples from the policy at these prefixes |
    /// | `behavior/prefixes` | shared prefixes, among the first `positions` tokens; at most 256 |
    /// The sampling error of the groups of a step, under `behavior/*`.
    pub(super) fn measure(&self, policy: &Policy, groups: &[GradedGroup], seed: &Seed) -> Result<Metrics> {
        let temperature = groups.first().map_or(1.0, |group| group.group().settings.logprob_temperature());
        let sampled: Vec<PromptSamples<'_>> =
            groups.iter().map(|group| prompt_samples(&group.group().prompt_ids, &group.group().samples)).collect();
        let visits = Visits::of(policy, &sampled, temperature, self.positions)?;
        let mut metrics = Metrics::new();
        metrics.set("behavior/prefixes", visits.prefixes() as f64);
        if !visits.is_empty() {
            metrics.set("behavior/sampling_error", visits.sampling_error());
            metrics.set("behavior/sampling_error_iid", visits.iid_error(seed));
        }
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests;
