//! PROPS: a policy beside the trained one draws what has been drawn too rarely (Corrado & Hanna 2023, "On-policy policy
//! gradient reinforcement learning without on-policy sampling", arXiv 2311.08290).
//!
//! A policy gradient wants the *frequencies* of the samples to be those of the policy θ; independent draws have them only
//! in the limit. So the samples are drawn in slices, and before each slice a policy φ is fitted to what is there:
//!
//! ```text
//! ρ = φ(a|s) / θ(a|s)        at tokens a drawn at prefixes s that were visited twice or more
//! L = mean max(ρ, 1 − ε) + λ mean KL(φ(·|s) ‖ θ(·|s))
//! ```
//!
//! φ starts as θ. There the gradient with respect to the logits is the empirical frequency less θ: what came too often
//! becomes less likely, what came too rarely more, and a token whose probability has fallen by the factor 1 − ε pushes no
//! further. The fit ends with the last φ whose mean of k3, `ρ − 1 − log ρ`, is within its limit.
//!
//! What φ changes is a low-rank head on the logits, which needs no pass through the network, or a copy of θ's adapter.
//! Training weighs nothing: a correction by φ would make each sample unbiased by itself and bring the noise of
//! independent draws back. `ReMix` takes ratios to whoever drew a sample, so with both its clip is centred on φ.
//!
//! **Where it helps.** Where a prefix has about as many visits as it has likely tokens: the first token of large groups
//! above all, which is the only one looked at by default. Deeper prefixes have few visits each and share the head, so
//! that correcting them costs the first token more than they gain (docs/results/props.md has numbers); long free text is
//! unique after a few tokens, and there is nothing to correct. `behavior/prefixes` says how much there was. Nobody has published PROPS for language models: slices of groups and the tree of prefixes are choices of this
//! implementation. Samples of a group are not independent any more, so a leave-one-out baseline is no longer exactly
//! unbiased.

use super::BehaviorPolicy;
use super::visits::{Drawn, Visits};
use crate::optimizer::{self, AdamW, AdamWConfig, Parameter, Role};
use crate::{Error, Result};
use model::adapter::Adapter;
use model::logprob::Want;
use model::packed::{Packed, Sequences};
use model::{LogitHead, Policy};
use schema::{Group, Metrics, Sample, ScoredGroup, Seed, Token};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[behavior.props]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Props {
    /// Slices that a group is drawn in.
    pub slices: usize,
    /// What the drawing policy changes.
    pub adapts: Adapts,
    /// Rank of the head on the logits.
    pub rank: i64,
    /// A token pushes until its probability has fallen by this share.
    pub epsilon: f64,
    /// Weight of KL(φ ‖ θ).
    pub kl_coefficient: f64,
    /// Stop the fit once the mean of k3 exceeds this, in nats per draw.
    pub max_kl: f64,
    /// Updates of one fit.
    pub epochs: usize,
    /// By how much one update moves a logit, in multiples of what the token's frequency is wrong by.
    pub learning_rate: f64,
    /// Adam's learning rate, where the adapter is adapted.
    pub adapter_learning_rate: f64,
    /// The norm of the adapter's gradients is clipped to this; 0 for no limit.
    pub max_grad_norm: f64,
    /// Only this many first tokens of each sample are looked at; 0 for all.
    pub positions: usize,
}

/// What the drawing policy changes.
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

/// The objective of one fit at one point.
struct Objective {
    /// What is minimised, a scalar with gradient.
    loss: Tensor,
    /// The mean of k3 over draws.
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

    /// `mean max(ρ, 1 − ε) + λ mean KL` and the mean of k3, from each draw's log-probability under φ and θ, `[draw]`, and
    /// the divergence of φ from θ at its prefix, `[draw]`.
    fn objective(&self, behaviour: &Tensor, policy: &Tensor, divergence: &Tensor) -> Objective {
        let log_ratio = (behaviour - policy).clamp(-20.0, 20.0);
        let ratio = log_ratio.exp();
        let k3 = (&ratio - 1.0 - log_ratio).mean(Kind::Double).double_value(&[]);
        let kind = ratio.kind();
        let loss = ratio.clamp_min(1.0 - self.epsilon).mean(kind) + divergence.mean(kind) * self.kl_coefficient;
        Objective { loss, k3 }
    }

    /// The objective of logits that differ from the policy's by `shift`, `[prefix, vocab]`.
    fn shifted(&self, visits: &Visits, shift: &Tensor) -> Objective {
        let kind = visits.logprobs.kind();
        let logprobs = (&visits.logprobs + shift).log_softmax(-1, kind);
        let each = (logprobs.exp() * (&logprobs - &visits.logprobs)).sum_dim_intlist([-1i64].as_slice(), false, kind);
        let divergence = each.index_select(0, &visits.prefix_of_draw());
        self.objective(&visits.at_draws(&logprobs), &visits.at_draws(&visits.logprobs), &divergence)
    }

    /// A head on the logits that draws less of what was drawn too often at these prefixes.
    ///
    /// By plain descent, whose steps are as long as frequencies are wrong. Adam would move a token that nobody draws by
    /// as much as one that was drawn twice too often, and φ would end up drawing from the tail of the vocabulary.
    pub fn fit(&self, visits: &Visits, temperature: f64, seed: &Seed) -> LogitHead {
        let (vocab, hidden) = (visits.logprobs.size()[1], visits.hidden.size()[1]);
        let head = LogitHead::zero(vocab, hidden, self.rank, seed, visits.hidden.device());
        if visits.is_empty() {
            return head;
        }
        let inner = head.inner(&visits.hidden) / temperature;
        // The mean over draws shares a gradient out among the prefixes, and the product with z = V h / T, by which it
        // comes back, multiplies it by |z|²: without these two a logit would move by the difference of frequencies.
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

    /// A copy of the policy's adapter, fitted likewise.
    fn fit_adapter(&self, policy: &Policy, drawn: &[Drawn<'_>], temperature: f64) -> Result<Policy> {
        let behaviour = policy.with_adapter(trainable(policy.adapter()));
        let parameters = behaviour
            .adapter()
            .tensors()
            .map(|(name, tensor)| Parameter::new(name, tensor.shallow_clone(), Role::Weight))
            .collect();
        let mut fit = Fit::new(self, parameters)?;
        let vocab = policy.network().dimensions().vocab;
        let groups = drawn.iter().map(|group| Shared::new(group, self.positions, policy, vocab, temperature));
        let groups: Vec<Shared> = groups.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let draws: f64 = groups.iter().map(|group| group.draws).sum();
        let k3 = |behaviour: &Policy| {
            let own = |group: &Shared| {
                let logprobs = behaviour.logprobs(&group.packed, temperature, behaviour.adapter());
                let at = |x: &Tensor| x.index_select(0, &group.places);
                let log_ratio = at(&logprobs) - at(&group.logprobs);
                (log_ratio.exp() - 1.0 - log_ratio).sum(Kind::Double).double_value(&[]) / draws
            };
            groups.iter().map(own).sum::<f64>()
        };
        for _ in 0..self.epochs {
            let mut moved = 0.0;
            for group in &groups {
                let mut evaluation = behaviour.evaluate(&group.packed, temperature, Want::Logprobs, None);
                policy.add_divergence(&mut evaluation, &group.packed, policy.adapter());
                let at = |x: &Tensor| x.index_select(0, &group.places);
                let objective = self.objective(
                    &at(&evaluation.logprobs),
                    &at(&group.logprobs),
                    &at(&evaluation.divergences[0].leaf),
                );
                let share = group.draws / draws;
                moved += objective.k3 * share;
                evaluation.backward(&(objective.loss * share));
            }
            if moved > self.max_kl {
                fit.undo();
            } else if draws > 0.0 {
                fit.update()?;
            }
        }
        if k3(&behaviour) > self.max_kl {
            fit.undo();
        }
        Ok(behaviour)
    }
}

/// A copy that can be trained.
fn trainable(adapter: &Adapter) -> Adapter {
    let copy = adapter.copy();
    for (_, tensor) in copy.tensors() {
        let _ = tensor.set_requires_grad(true);
    }
    copy
}

/// The draws of one prompt at prefixes that several samples share.
struct Shared {
    packed: Packed,
    /// `[draw]` i64: where they stand among the packed tokens.
    places: Tensor,
    /// `[token]` f32: of all packed tokens, under the policy.
    logprobs: Tensor,
    draws: f64,
}

impl Shared {
    /// `None` if no prefix is shared.
    fn new(drawn: &Drawn<'_>, positions: usize, policy: &Policy, vocab: i64, temperature: f64) -> Result<Option<Self>> {
        let limit = if positions == 0 { usize::MAX } else { positions };
        let completions: Vec<&[Token]> = drawn.completions.iter().map(|ids| &ids[..ids.len().min(limit)]).collect();
        let places = super::visits::shared_places(&completions);
        if places.is_empty() {
            return Ok(None);
        }
        let sequences = Sequences { prompt: drawn.prompt, completions };
        let packed = Packed::new(&[sequences], vocab, policy.device())?;
        let logprobs = policy.logprobs(&packed, temperature, policy.adapter());
        let draws = places.len() as f64;
        Ok(Some(Self { packed, places: Tensor::from_slice(&places).to_device(policy.device()), logprobs, draws }))
    }
}

/// Adam on a drawing policy's adapter.
struct Fit {
    optimizer: AdamW,
    parameters: Vec<Parameter>,
    learning_rate: f64,
    max_grad_norm: f64,
    /// The parameters before the last update.
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

    /// Takes the last update back, and its gradients; the next ones are half as long.
    fn undo(&mut self) {
        let _no_grad = tch::no_grad_guard();
        self.learning_rate /= 2.0;
        for (parameter, before) in self.parameters.iter_mut().zip(&self.before) {
            parameter.tensor.copy_(before);
            parameter.tensor.zero_grad();
        }
    }
}

fn drawn<'a>(prompt: &'a [Token], samples: &'a [Sample]) -> Drawn<'a> {
    Drawn { prompt, completions: samples.iter().map(|sample| &sample.ids[..]).collect() }
}

impl BehaviorPolicy for Props {
    fn slices(&self, group_size: usize) -> Vec<usize> {
        let (share, rest) = (group_size / self.slices, group_size % self.slices);
        (0..self.slices).map(|slice| share + usize::from(slice < rest)).collect()
    }

    fn next(&self, policy: &Policy, groups: &[Group], seed: &Seed) -> Result<Policy> {
        let temperature = groups.first().map_or(1.0, |group| group.settings.logprob_temperature());
        let drawn: Vec<Drawn<'_>> = groups.iter().map(|group| drawn(&group.prompt_ids, &group.samples)).collect();
        match self.adapts {
            Adapts::LogitHead => {
                let visits = Visits::of(policy, &drawn, temperature, self.positions)?;
                Ok(policy.with_logit_head(self.fit(&visits, temperature, seed)))
            }
            Adapts::Adapter => self.fit_adapter(policy, &drawn, temperature),
        }
    }

    /// | metric | meaning |
    /// |---|---|
    /// | `behavior/sampling_error` | KL(empirical ‖ policy) at shared prefixes, in nats per draw |
    /// | `behavior/sampling_error_iid` | what independent draws from the policy would have had there |
    /// | `behavior/prefixes` | shared prefixes, among the first `positions` tokens; at most 256 |
    fn measure(&self, policy: &Policy, groups: &[ScoredGroup], seed: &Seed) -> Result<Metrics> {
        let temperature = groups.first().map_or(1.0, |group| group.group().settings.logprob_temperature());
        let drawn: Vec<Drawn<'_>> =
            groups.iter().map(|group| drawn(&group.group().prompt_ids, &group.group().samples)).collect();
        let visits = Visits::of(policy, &drawn, temperature, self.positions)?;
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
