//! A policy: a frozen network, an adapter, and a tokenizer.
//!
//! There is one copy of the weights. The sampler and the trainer hold handles on the same adapter tensors, so the
//! sampler sees every change of the trainer with nothing to synchronise; the reference policy is the same network with
//! the adapter left out.

use crate::adapter::{Adapter, is_finite};
use crate::architecture::{self, Activations, CausalLm};
use crate::backend::Placement;
use crate::config::Config;
use crate::critic::{Critic, Values};
use crate::device::Dtype;
use crate::logit_head::LogitHead;
use crate::logprob::{Dlogp, OutputHead, Want};
use crate::packed::Packed;
use crate::tokenizer::Tokenizer;
use crate::trace::{self, Trace};
use crate::weights::Checkpoint;
use crate::{Error, Result, hub};
use schema::{PolicyVersion, Seed};
use sha2::{Digest, Sha256};
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A language model that can be sampled from and trained.
pub struct Policy {
    network: Rc<dyn CausalLm>,
    tokenizer: Arc<Tokenizer>,
    adapter: Adapter,
    /// A correction of the logits for samplers; training ignores it.
    logit_head: Option<Rc<LogitHead>>,
    identity: Rc<str>,
    version: PolicyVersion,
    placement: Placement,
    activations: Activations,
}

impl Policy {
    /// Loads or makes the network of the config and attaches a fresh adapter.
    ///
    /// # Errors
    /// If the config names no network or two, the model cannot be found, fetched or read, the device cannot be used,
    /// the tokenizer has no end-of-sequence token inside the vocabulary, a weight is not finite, or the adapter does
    /// not fit or changes nothing.
    pub fn load(config: &Config, seed: &Seed) -> Result<Self> {
        crate::device::keep_freed_memory();
        let device = config.device.resolve()?;
        crate::device::set_threads((config.threads > 0).then_some(config.threads));
        let placement = Placement::new(device, config.dtype);
        let (network, tokenizer, identity, checkpoint) = match (&config.random, config.path.as_str()) {
            (Some(random), "") => {
                let tokenizer = Tokenizer::bytes();
                let network = random.build(tokenizer.vocab_size(), placement)?;
                (network, tokenizer, format!("random {random:?}"), None)
            }
            (None, "") => {
                return Err(Error::input("[model] needs `path` (a folder, a .gguf file or a hub id) or `random`"));
            }
            (None, path) => {
                let checkpoint = Checkpoint::open(&hub::resolve(path, &hub::models_folder())?)?;
                let tokenizer = checkpoint.tokenizer()?;
                let network = architecture::load(&checkpoint, tokenizer.vocab_size(), placement)?;
                let identity = checkpoint.identity();
                (network, tokenizer, identity, Some(checkpoint))
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
        if tokenizer.gaps() > 0 {
            tracing::warn!("the tokenizer has no token for {} of its ids; they may be sampled", tokenizer.gaps());
        }
        let adapter = config.adapter.build(network.linears(), &seed.child("adapter"), device)?;
        let mut policy = Self {
            network: network.into(),
            tokenizer: tokenizer.into(),
            adapter,
            logit_head: None,
            identity: identity.into(),
            version: PolicyVersion { version: 0, hash: String::new() },
            placement,
            activations: if config.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept },
        };
        policy.check_start(checkpoint.as_ref())?;
        policy.set_version(0);
        Ok(policy)
    }

    /// The policy without its adapter: the base model.
    #[must_use]
    pub fn base(mut self) -> Self {
        self.adapter = Adapter::none();
        self.set_version(0);
        self
    }

    /// The frozen network.
    pub fn network(&self) -> &dyn CausalLm {
        &*self.network
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A handle on the tokenizer for other threads, which cannot hold the policy.
    pub fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The trained adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The trained adapter, to restore or prune it. Existing handles keep the tensors that they have.
    pub fn adapter_mut(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// The device of its tensors.
    pub fn device(&self) -> Device {
        self.placement.device
    }

    /// The number format of the frozen weights.
    pub fn dtype(&self) -> Dtype {
        self.placement.dtype
    }

    /// The number format of activations, and of keys and values.
    pub fn kind(&self) -> Kind {
        self.placement.activations()
    }

    /// The identity of the frozen network: a hash of its config and weights.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Name and content hash of the current weights.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// Names the current weights by the training step that made them, and hashes them.
    pub fn set_version(&mut self, version: u64) {
        let mut digest = Sha256::new();
        digest.update(self.identity.as_bytes());
        digest.update(self.adapter.hash().as_bytes());
        self.version = PolicyVersion { version, hash: schema::hex(&digest.finalize()) };
    }

    /// A second handle on the same network and adapter tensors.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            network: Rc::clone(&self.network),
            tokenizer: Arc::clone(&self.tokenizer),
            adapter: self.adapter.share(),
            logit_head: self.logit_head.clone(),
            identity: Rc::clone(&self.identity),
            version: self.version.clone(),
            placement: self.placement,
            activations: self.activations,
        }
    }

    /// Another policy over the same network, with an adapter that is not copied.
    #[must_use]
    pub fn with_adapter(&self, adapter: Adapter) -> Self {
        let mut other = Self { adapter, ..self.share() };
        other.set_version(self.version.version);
        other
    }

    /// A second handle whose samplers add `head` to the logits. Its version and everything that training computes stay:
    /// log-probabilities are those of the policy without the head.
    #[must_use]
    pub fn with_logit_head(&self, head: LogitHead) -> Self {
        Self { logit_head: Some(Rc::new(head)), ..self.share() }
    }

    /// The logits that a sampler samples from, `[token, hidden]` to `[token, vocab]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let logits = self.network.head().logits(hidden);
        match &self.logit_head {
            Some(head) => logits.to_kind(Kind::Float) + head.shift(hidden),
            None => logits,
        }
    }

    /// The hidden state before each target token of a packed batch, `[token, hidden]`, without gradient.
    pub fn hidden_states(&self, packed: &Packed) -> Tensor {
        self.hidden(packed, &self.adapter)
    }

    /// Evaluates a packed batch, and keeps the tensors that its backward pass needs.
    ///
    /// * `temperature`: that of the sampler, the divisor of the logits
    /// * `critic`: adds the value of every prefix
    pub fn evaluate(&self, packed: &Packed, temperature: f64, want: Want, critic: Option<&Critic>) -> Evaluation {
        let trace = self.trace(packed, &self.adapter);
        let hidden = trace.hidden.shallow_clone();
        let dlogp = if trace.is_trained() { Dlogp::Keep } else { Dlogp::Skip };
        let head = self.network.head();
        let computed = head.logprobs(&hidden, &packed.targets, temperature, want, dlogp);
        Evaluation {
            logprobs: computed.logprobs.set_requires_grad(true),
            entropy: computed.entropy.map(|entropy| entropy.set_requires_grad(true)),
            argmax_hit: computed.argmax_hit,
            values: critic.map(|critic| match critic.adapter() {
                None => Values::shared(critic, &hidden),
                Some(_) => self.evaluate_values(packed, critic),
            }),
            divergences: Vec::new(),
            trace,
            hidden,
            dlogp: computed.dlogp,
            head: head.share(),
            temperature,
        }
    }

    /// Adds to an evaluation of `packed` its divergence from the network with `adapter` at each token, over the whole
    /// vocabulary.
    pub fn add_divergence(&self, evaluation: &mut Evaluation, packed: &Packed, adapter: &Adapter) {
        let _no_grad = tch::no_grad_guard();
        let other = self.hidden(packed, adapter);
        let leaf = evaluation.head.divergence(&evaluation.hidden, &other, evaluation.temperature);
        evaluation.divergences.push(Divergence { leaf: leaf.set_requires_grad(true), other });
    }

    /// Values of the prefix before each token of a packed batch, with the tensors that their backward pass needs.
    pub fn evaluate_values(&self, packed: &Packed, critic: &Critic) -> Values {
        Values::of_trace(critic, self.trace(packed, critic.adapter().unwrap_or(&self.adapter)))
    }

    /// Log-probabilities of a packed batch under the network with `adapter`, `[token]` f32, without gradient.
    pub fn logprobs(&self, packed: &Packed, temperature: f64, adapter: &Adapter) -> Tensor {
        self.logprobs_of(&self.hidden(packed, adapter), packed, temperature)
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
        (self.logprobs_of(&hidden, packed, temperature), values)
    }

    /// Log-probabilities of the targets of `packed`, `[token]`, given the states before them, `[token, hidden]`.
    fn logprobs_of(&self, hidden: &Tensor, packed: &Packed, temperature: f64) -> Tensor {
        let head = self.network.head();
        head.logprobs(hidden, &packed.targets, temperature, Want::Logprobs, Dlogp::Skip).logprobs
    }

    /// The hidden state before each target token, `[target, hidden]`, without gradient.
    fn hidden(&self, packed: &Packed, adapter: &Adapter) -> Tensor {
        trace::hidden_states(&*self.network, packed, self.kind(), adapter)
    }

    fn trace(&self, packed: &Packed, adapter: &Adapter) -> Trace {
        Trace::run(&self.network, packed, self.kind(), adapter, self.activations)
    }

    /// Checks that the adapter's numbers and the logits of a short text are finite: samples of a network of NaN would
    /// all be token 0, with probability 1.
    ///
    /// # Errors
    /// If a number of the adapter is not finite, or the logits with the adapter are not.
    pub fn check_finite(&self) -> Result<()> {
        if let Some(name) = self.adapter.first_non_finite() {
            return Err(not_finite(&format!("the adapter's tensor `{name}`"), "use an earlier one"));
        }
        let hidden = self.hidden(&self.probe()?, &self.adapter);
        if self.is_defined_at(&hidden) {
            return Ok(());
        }
        Err(Error::input(
            "the model's outputs with this adapter are not finite, although its numbers are; they may be too large: use \
             another adapter, or another model.dtype",
        ))
    }

    /// Start-up check of the network's outputs, and that an adapter that is not zero changes them. An adapter attached
    /// to nothing would otherwise look like a run that learns nothing.
    ///
    /// One pass reads every weight but the embedding's other rows, which [`architecture::load`] has checked. Only if
    /// the outputs are not finite, the tensors are searched.
    fn check_start(&self, checkpoint: Option<&Checkpoint>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let probe = self.probe()?;
        let base = self.hidden(&probe, &Adapter::none());
        if !self.is_defined_at(&base) {
            let tensor = checkpoint.and_then(Checkpoint::first_non_finite);
            return Err(tensor.map_or_else(
                || Error::input("the model's outputs are not finite; try another model.dtype, or another model"),
                |name| not_finite(&format!("the model's tensor `{name}`"), "fetch or save the model again"),
            ));
        }
        if let Some(name) = self.adapter.first_non_finite() {
            return Err(not_finite(&format!("the adapter's tensor `{name}`"), "use another one"));
        }
        let moved = self.adapter.copy();
        moved.perturb(0.05);
        let moved = self.hidden(&probe, &moved);
        if !self.is_defined_at(&moved) {
            return Err(Error::input(
                "the model's outputs with this adapter are not finite: its numbers or model.adapter's alpha are too large",
            ));
        }
        if (moved - base).abs().max().double_value(&[]) > 0.0 {
            return Ok(());
        }
        Err(Error::input(
            "the adapter does not change the model's output; check model.adapter: target_modules and alpha",
        ))
    }

    /// A short text.
    fn probe(&self) -> Result<Packed> {
        let sequences = crate::packed::Sequences { prompt: &[0, 1, 2], completions: vec![&[3]] };
        Packed::new(&[sequences], self.network.dimensions().vocab, self.device())
    }

    /// True if hidden states, `[token, hidden]`, and the logits of the last of them are finite.
    fn is_defined_at(&self, hidden: &Tensor) -> bool {
        let _no_grad = tch::no_grad_guard();
        let last = hidden.narrow(0, hidden.size()[0] - 1, 1);
        is_finite(hidden) && is_finite(&self.network.head().logits(&last))
    }
}

fn not_finite(tensor: &str, advice: &str) -> Error {
    Error::input(format!("{tensor} holds numbers that are not finite (NaN or infinity); {advice}"))
}

/// The log-probabilities of one batch, from which a loss is computed, with the backward pass to the adapter.
#[derive(Debug)]
pub struct Evaluation {
    /// `[token]` f32, a leaf: log-probabilities, of which the loss is a function.
    pub logprobs: Tensor,
    /// `[token]` f32, a leaf: entropies in nats; only on request.
    pub entropy: Option<Tensor>,
    /// `[token]` bool: whether each token is the most likely one; only on request.
    pub argmax_hit: Option<Tensor>,
    /// The critic's values; only on request.
    pub values: Option<Values>,
    /// Divergences from other policies, in the order of [`Policy::add_divergence`].
    pub divergences: Vec<Divergence>,
    trace: Trace,
    hidden: Tensor,
    /// `[token, hidden]`: the gradient of each log-probability; none if the adapter is not trained.
    dlogp: Option<Tensor>,
    head: OutputHead,
    temperature: f64,
}

/// The divergence of a batch's distributions from those of another policy.
#[derive(Debug)]
pub struct Divergence {
    /// `[token]` f32, a leaf: KL(policy ‖ other) in nats at each token.
    pub leaf: Tensor,
    /// The other policy's hidden states, `[token, hidden]`.
    other: Tensor,
}

impl Evaluation {
    /// Adds the gradient of `loss`, a scalar, to the gradients of the adapter and of the critic.
    pub fn backward(self, loss: &Tensor) {
        let mut leaves = vec![&self.logprobs];
        leaves.extend(&self.entropy);
        let values_at = leaves.len();
        leaves.extend(self.values.iter().map(|values| &values.leaf));
        let divergences_at = leaves.len();
        leaves.extend(self.divergences.iter().map(|divergence| &divergence.leaf));
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        let gradient = |index: usize| gradients.get(index).filter(|gradient| gradient.defined());
        let mut grad_hidden = match self.dlogp.zip(gradient(0)) {
            Some((dlogp, weight)) => tch::no_grad(|| &dlogp * weight.unsqueeze(1).to_kind(dlogp.kind())),
            None => self.hidden.zeros_like(),
        };
        if let Some(weight) = self.entropy.as_ref().and(gradient(1)) {
            grad_hidden += self.head.entropy_backward(&self.hidden, self.temperature, weight);
        }
        for (index, Divergence { other, .. }) in self.divergences.iter().enumerate() {
            let Some(weight) = gradient(divergences_at + index) else { continue };
            grad_hidden += self.head.divergence_backward(&self.hidden, other, self.temperature, weight);
        }
        if let Some((values, gradient)) = self.values.zip(gradient(values_at))
            && let Some(grad_shared) = values.vjp(gradient)
        {
            grad_hidden += grad_shared;
        }
        self.trace.backward(&grad_hidden);
    }
}

#[cfg(test)]
mod tests;
