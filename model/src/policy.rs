//! A policy: a frozen network, an adapter, and the words around them.
//!
//! There is one copy of the weights. The sampler and the trainer hold handles on the same adapter tensors, so what the
//! trainer changes the sampler sees, with nothing to synchronise; the reference policy is the same network with the
//! adapter left out.

use crate::adapter::Adapter;
use crate::architecture::{self, Activations, CausalLm, Tape};
use crate::config::Config;
use crate::critic::{Critic, Values};
use crate::device::Dtype;
use crate::logit_head::LogitHead;
use crate::logprob::{self, Slopes, Want};
use crate::packed::Packed;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::{Error, Result, hub};
use schema::{PolicyVersion, Seed, Token};
use sha2::{Digest, Sha256};
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A language model that can be sampled from and trained.
pub struct Policy {
    network: Rc<dyn CausalLm>,
    tokenizer: Arc<Tokenizer>,
    adapter: Adapter,
    /// What a sampler adds to the logits; training knows nothing of it.
    logit_head: Option<Rc<LogitHead>>,
    identity: Rc<str>,
    version: PolicyVersion,
    device: Device,
    dtype: Dtype,
    activations: Activations,
}

impl Policy {
    /// Loads or makes the network of the config and attaches a fresh adapter.
    pub fn load(config: &Config, seed: &Seed) -> Result<Self> {
        crate::device::keep_freed_memory();
        let device = config.device.resolve()?;
        crate::device::set_threads((config.threads > 0).then_some(config.threads));
        let dtype = config.dtype;
        let (network, tokenizer, identity) = match (&config.random, config.path.as_str()) {
            (Some(random), "") => {
                let tokenizer = Tokenizer::bytes();
                let network = random.build(tokenizer.vocab_size(), device, dtype)?;
                (network, tokenizer, format!("random {random:?}"))
            }
            (None, "") => {
                return Err(Error::input("[model] needs `path` (a folder, a .gguf file or a hub id) or `random`"));
            }
            (None, path) => {
                let checkpoint = Checkpoint::open(&hub::resolve(path, &hub::models_folder())?)?;
                let tokenizer = checkpoint.tokenizer()?;
                let network = architecture::load(&checkpoint, device, dtype)?;
                (network, tokenizer, checkpoint.identity())
            }
            (Some(_), _) => return Err(Error::input("[model] has both `path` and `random`; keep one of them")),
        };
        let vocab = network.dimensions().vocab;
        let reachable = tokenizer.eos_ids().iter().any(|id| i64::from(*id) < vocab);
        if !reachable {
            return Err(Error::input(format!(
                "the model has no end-of-sequence token inside its vocabulary of {vocab} (eos ids: {:?}), so no answer could end; set eos_token_id in generation_config.json",
                tokenizer.eos_ids()
            )));
        }
        let adapter = config.adapter.build(&*network, &seed.child("adapter"), device)?;
        let mut policy = Self {
            network: network.into(),
            tokenizer: tokenizer.into(),
            adapter,
            logit_head: None,
            identity: identity.into(),
            version: PolicyVersion { version: 0, hash: String::new() },
            device,
            dtype,
            activations: if config.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept },
        };
        policy.check_adapter()?;
        policy.set_version(0);
        Ok(policy)
    }

    /// The same network without its adapter: the base model.
    #[must_use]
    pub fn base(mut self) -> Self {
        self.adapter = Adapter::none();
        self.set_version(0);
        self
    }

    /// The network alone.
    pub fn network(&self) -> &dyn CausalLm {
        &*self.network
    }

    /// The words.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The words, for other threads, which may not have the policy.
    pub fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The trainable part.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The trainable part, to restore or to prune it. Handles that were made before keep the tensors that they have.
    pub fn adapter_mut(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// Where its tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The number format of the frozen weights.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The number format of activations, and of keys and values.
    pub fn kind(&self) -> Kind {
        self.dtype.activations(self.device)
    }

    /// What identifies the frozen network: a hash of its config and weights.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Name and content hash of the current weights.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// Names the current weights after the training step that made them, and hashes them.
    pub fn set_version(&mut self, version: u64) {
        let mut digest = Sha256::new();
        digest.update(self.identity.as_bytes());
        digest.update(self.adapter.hash().as_bytes());
        self.version = PolicyVersion { version, hash: schema::hex(&digest.finalize()) };
    }

    /// A second handle on the same tensors.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            network: Rc::clone(&self.network),
            tokenizer: Arc::clone(&self.tokenizer),
            adapter: self.adapter.share(),
            logit_head: self.logit_head.clone(),
            identity: Rc::clone(&self.identity),
            version: self.version.clone(),
            device: self.device,
            dtype: self.dtype,
            activations: self.activations,
        }
    }

    /// A second handle on the network with another adapter, which is not copied: another policy over one base.
    #[must_use]
    pub fn with_adapter(&self, adapter: Adapter) -> Self {
        let mut other = Self { adapter, ..self.share() };
        other.set_version(self.version.version);
        other
    }

    /// A second handle whose samplers add a head to the logits. Its name stays, and so does everything that training
    /// computes: log-probabilities are those of the policy without the head.
    #[must_use]
    pub fn with_logit_head(&self, head: LogitHead) -> Self {
        Self { logit_head: Some(Rc::new(head)), ..self.share() }
    }

    /// The logits that a sampler draws by, `[token, hidden]` to `[token, vocab]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let logits = logprob::logits(hidden, self.network.head());
        match &self.logit_head {
            Some(head) => logits.to_kind(Kind::Float) + head.shift(hidden),
            None => logits,
        }
    }

    /// The hidden state before each scored token of a packed batch, `[token, hidden]`, without gradient.
    pub fn hidden_states(&self, packed: &Packed) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        self.hidden(packed, &self.adapter)
    }

    /// Scores a packed batch and keeps what the gradient needs.
    ///
    /// * `temperature`: that of the sampler, by which logits are divided
    /// * `critic`: values every prefix too
    pub fn evaluate(&self, packed: &Packed, temperature: f64, want: Want, critic: Option<&Critic>) -> Evaluation {
        let trace = self.trace(packed, &self.adapter);
        let hidden = trace.hidden.shallow_clone();
        let slopes = if trace.way.is_some() { Slopes::Keep } else { Slopes::Skip };
        let scores = logprob::score(&hidden, self.network.head(), &packed.targets, temperature, want, slopes);
        Evaluation {
            logprobs: scores.logprobs.set_requires_grad(true),
            entropy: scores.entropy.map(|entropy| entropy.set_requires_grad(true)),
            foremost: scores.foremost,
            values: critic.map(|critic| match critic.adapter() {
                None => Values::beside(critic, &hidden),
                Some(_) => self.evaluate_values(packed, critic),
            }),
            divergences: Vec::new(),
            trace,
            hidden,
            slopes: scores.slopes,
            head: self.network.head().shallow_clone(),
            temperature,
        }
    }

    /// Adds to an evaluation of `packed` its divergence from the network with `adapter`, over the whole vocabulary at
    /// each token.
    pub fn add_divergence(&self, evaluation: &mut Evaluation, packed: &Packed, adapter: &Adapter) {
        let _no_grad = tch::no_grad_guard();
        let other = self.hidden(packed, adapter);
        let leaf = logprob::divergence(&evaluation.hidden, &other, &evaluation.head, evaluation.temperature);
        evaluation.divergences.push(Divergence { leaf: leaf.set_requires_grad(true), other });
    }

    /// Values of the prefix before each token of a packed batch, and what their gradient needs.
    pub fn evaluate_values(&self, packed: &Packed, critic: &Critic) -> Values {
        Values::through(critic, self.trace(packed, critic.adapter().unwrap_or(&self.adapter)))
    }

    /// Log-probabilities of a packed batch under the network with `adapter`, `[token]` f32, without gradient.
    pub fn logprobs(&self, packed: &Packed, temperature: f64, adapter: &Adapter) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        self.score(&self.hidden(packed, adapter), packed, temperature)
    }

    /// Log-probabilities under the policy and values of the prefix before each token, both `[token]` f32, without
    /// gradient.
    pub fn logprobs_and_values(&self, packed: &Packed, temperature: f64, critic: &Critic) -> (Tensor, Tensor) {
        let _no_grad = tch::no_grad_guard();
        let hidden = self.hidden(packed, &self.adapter);
        let values = match critic.adapter() {
            None => critic.values(&hidden),
            Some(own) => critic.values(&self.hidden(packed, own)),
        };
        (self.score(&hidden, packed, temperature), values)
    }

    fn score(&self, hidden: &Tensor, packed: &Packed, temperature: f64) -> Tensor {
        let head = self.network.head();
        logprob::score(hidden, head, &packed.targets, temperature, Want::Logprobs, Slopes::Skip).logprobs
    }

    /// The hidden state before each scored token, `[scored, hidden]`, without gradient.
    fn hidden(&self, packed: &Packed, adapter: &Adapter) -> Tensor {
        let mut attention = packed.attention(self.kind());
        self.network
            .forward(&packed.ids, &packed.positions, &mut attention, adapter)
            .index_select(0, &packed.predictors)
    }

    /// The same with the way back to the adapter, if gradients are on.
    fn trace(&self, packed: &Packed, adapter: &Adapter) -> Trace {
        let trained = adapter.tensors().next().is_some_and(|(_, tensor)| (tensor * 1.0).requires_grad());
        if !trained {
            let _no_grad = tch::no_grad_guard();
            return Trace { hidden: self.hidden(packed, adapter), way: None };
        }
        let attention = packed.attention(self.kind());
        let (states, tape) =
            self.network.forward_with_tape(&packed.ids, &packed.positions, attention, adapter, self.activations);
        let hidden = tch::no_grad(|| states.index_select(0, &packed.predictors));
        let way = Way {
            network: Rc::clone(&self.network),
            adapter: adapter.share(),
            tape,
            predictors: packed.predictors.shallow_clone(),
            tokens: states.size()[0],
        };
        Trace { hidden, way: Some(way) }
    }

    /// A start-up canary: an adapter that is not zero must change the logits. It fails if an adapter is attached to
    /// nothing, which would otherwise look like a run that learns nothing.
    fn check_adapter(&self) -> Result<()> {
        let prompt: Vec<Token> = vec![0, 1, 2];
        let sequences = crate::packed::Sequences { prompt: &prompt, completions: vec![&[3]] };
        let packed = Packed::new(&[sequences], self.network.dimensions().vocab, self.device)?;
        let moved = self.adapter.copy();
        moved.perturb(0.05);
        let _no_grad = tch::no_grad_guard();
        let difference = (self.hidden(&packed, &moved) - self.hidden(&packed, &Adapter::none())).abs().max();
        if difference.double_value(&[]) > 0.0 {
            return Ok(());
        }
        Err(Error::input(
            "the adapter does not change the model's output; check model.adapter: target_modules and alpha",
        ))
    }
}

/// The hidden states of a batch and the way back to the adapter that they went through.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The state before each scored token, `[scored, hidden]`, without gradient.
    pub(crate) hidden: Tensor,
    way: Option<Way>,
}

struct Way {
    network: Rc<dyn CausalLm>,
    adapter: Adapter,
    tape: Tape,
    predictors: Tensor,
    /// Of the pass, scored or not.
    tokens: i64,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Trace {
    /// Adds to the gradients of the adapter, given that of the hidden states, `[scored, hidden]`.
    pub(crate) fn pull(self, by_hidden: &Tensor) {
        let Some(way) = self.way else { return };
        let by_states = tch::no_grad(|| {
            // A prompt's last state predicts the first token of each of its completions.
            Tensor::zeros([way.tokens, by_hidden.size()[1]], (by_hidden.kind(), by_hidden.device())).index_add(
                0,
                &way.predictors,
                by_hidden,
            )
        });
        way.network.backward(way.tape, &by_states, &way.adapter);
    }
}

/// The scores of one batch, from which a loss is computed, and the way back to the adapter.
#[derive(Debug)]
pub struct Evaluation {
    /// `[token]` f32, a leaf: the loss is a function of it.
    pub logprobs: Tensor,
    /// `[token]` f32, a leaf; only where asked for.
    pub entropy: Option<Tensor>,
    /// `[token]` bool: whether each token is the most likely one; only where asked for.
    pub foremost: Option<Tensor>,
    /// The critic's; only where asked for.
    pub values: Option<Values>,
    /// From other policies, as added by [`Policy::add_divergence`], in that order.
    pub divergences: Vec<Divergence>,
    trace: Trace,
    hidden: Tensor,
    /// `[token, hidden]`: the gradient of each log-probability; none if the adapter is not trained.
    slopes: Option<Tensor>,
    head: Tensor,
    temperature: f64,
}

/// How far the distributions of a batch are from those of another policy.
#[derive(Debug)]
pub struct Divergence {
    /// `[token]` f32, a leaf: KL(policy ‖ other) in nats at each token.
    pub leaf: Tensor,
    /// The other policy's hidden states, `[token, hidden]`.
    other: Tensor,
}

impl Evaluation {
    /// Adds the gradient of `loss` (a scalar) to the gradients of the adapter and of the critic.
    pub fn backward(self, loss: &Tensor) {
        let mut leaves = vec![&self.logprobs];
        leaves.extend(&self.entropy);
        let values_at = leaves.len();
        leaves.extend(self.values.iter().map(|values| &values.leaf));
        let divergences_at = leaves.len();
        leaves.extend(self.divergences.iter().map(|divergence| &divergence.leaf));
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        let gradient = |index: usize| gradients.get(index).filter(|gradient| gradient.defined());
        let mut by_hidden = match self.slopes.zip(gradient(0)) {
            Some((slopes, weight)) => tch::no_grad(|| &slopes * weight.unsqueeze(1).to_kind(slopes.kind())),
            None => self.hidden.zeros_like(),
        };
        if let Some(weight) = self.entropy.as_ref().and(gradient(1)) {
            by_hidden += logprob::entropy_gradient(&self.hidden, &self.head, self.temperature, weight);
        }
        for (place, Divergence { other, .. }) in self.divergences.iter().enumerate() {
            let Some(weight) = gradient(divergences_at + place) else { continue };
            let further = logprob::divergence_gradient(&self.hidden, other, &self.head, self.temperature, weight);
            by_hidden += further;
        }
        if let Some((values, gradient)) = self.values.zip(gradient(values_at))
            && let Some(beside) = values.pull(gradient)
        {
            by_hidden += beside;
        }
        self.trace.pull(&by_hidden);
    }
}

#[cfg(test)]
mod tests;
