//! Log-probabilities of given tokens, without ever holding a `[token, vocab]` tensor.
//!
//! The head is applied to a chunk of tokens at a time, and only each token's log-probability (and, if wanted, the
//! entropy of its distribution) is kept. The gradient is written out by hand. With the logits `z = h Wᵀ / T`,
//!
//! ```text
//! ∂ log p_y / ∂z = onehot(y) − p          ∂H / ∂z = −p ∘ (log p + H)          ∂z / ∂h = W / T
//! ```
//!
//! The gradient of a loss with respect to `h` is a per-token weight, known only once all log-probabilities are, times
//! `∂ log p_y / ∂h`. The latter, `dlogp`, is therefore computed while the logits are at hand, and only it is kept,
//! `[token, hidden]`. The gradients of entropy and divergences recompute the logits.
//!
//! The divergence from another distribution, `KL(p ‖ q) = Σ p (log p − log q)`, is computed exactly in the same way:
//! `q`'s logits come from hidden states of its own, and
//!
//! ```text
//! ∂ KL / ∂z = p ∘ (log p − log q − KL)
//! ```
//!
//! So the memory is bounded by the chunk, whatever the batch. All of it is f32 even for bf16 networks.

use crate::backend::Backend;
use crate::device::HOST;
use crate::kernel::{logits as kernel_logits, ops};
use tch::{Kind, Tensor};

/// The output head of a network.
#[derive(Debug)]
pub struct OutputHead {
    /// `[vocab, hidden]`: logits are `hidden · weightᵀ`.
    pub weight: Tensor,
    backend: Backend,
}

/// Elements of one chunk of logits: 64 MiB of f32, which keep a GPU busy, or 16 MiB, which fit a CPU's last-level
/// cache.
const CHUNK_ELEMENTS: i64 = 1 << 24;
const CHUNK_ELEMENTS_HOST: i64 = 1 << 22;

/// Log-probabilities of tokens under a softmax, with optional by-products.
#[derive(Debug)]
pub struct Logprobs {
    /// `[token]` f32: natural log of the probability of each target.
    pub logprobs: Tensor,
    /// `[token]` f32: entropy of each distribution, in nats; only on request.
    pub entropy: Option<Tensor>,
    /// `[token]` bool: whether the target is the most likely token; only on request.
    pub argmax_hit: Option<Tensor>,
    /// `[token, hidden]`: the gradient of each log-probability with respect to its hidden state; only on request.
    pub dlogp: Option<Tensor>,
}

/// The quantities to compute besides log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Log-probabilities alone.
    Logprobs,
    /// The entropy of each distribution too.
    Entropy,
    /// Entropy, and whether each target is the most likely token.
    Fit,
}

/// The choice whether to compute [`Logprobs::dlogp`], for two products with the head instead of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dlogp {
    /// Not computed.
    Skip,
    /// Computed and kept for a backward pass.
    Keep,
}

impl OutputHead {
    /// A head with this weight, `[vocab, hidden]`, that computes with `backend`.
    pub fn new(weight: Tensor, backend: Backend) -> Self {
        Self { weight, backend }
    }

    /// A second handle on the same weight.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), backend: self.backend }
    }

    /// The logits of a few tokens at once, `[token, hidden]` to `[token, vocab]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        match self.backend {
            Backend::Kernels => ops::linear(&hidden.contiguous(), &self.weight),
            Backend::Libtorch => hidden.linear(&self.weight, None::<Tensor>),
        }
    }

    /// The gradient with respect to hidden states, `[token, hidden]`, given that with respect to their logits, `[token,
    /// vocab]` f32.
    fn backward(&self, grad_logits: &Tensor) -> Tensor {
        match self.backend {
            Backend::Kernels => ops::linear_backward(&[(grad_logits, &self.weight)]),
            Backend::Libtorch => grad_logits.to_kind(self.weight.kind()).matmul(&self.weight),
        }
    }

    /// Log-probabilities of `targets`, `[token]`, given the hidden states that predict them, `[token, hidden]`. No
    /// gradient flows.
    ///
    /// * `temperature`: the divisor of the logits; positive
    pub fn logprobs(&self, hidden: &Tensor, targets: &Tensor, temperature: f64, want: Want, dlogp: Dlogp) -> Logprobs {
        let _no_grad = tch::no_grad_guard();
        let mut logprobs = Vec::new();
        let mut entropies = Vec::new();
        let mut hits = Vec::new();
        let kept = (dlogp == Dlogp::Keep).then(|| hidden.empty_like());
        for (start, len) in self.chunks(targets) {
            let (hidden, targets) = (hidden.narrow(0, start, len), targets.narrow(0, start, len));
            let keep = |grad_logits: &Tensor| {
                if let Some(kept) = &kept {
                    kept.narrow(0, start, len).copy_(&self.backward(grad_logits));
                }
            };
            match self.backend {
                Backend::Kernels => {
                    let logits = self.logits(&hidden);
                    let targets = Vec::<i64>::try_from(&targets).expect("targets are a vector of i64");
                    let rows = kernel_logits::logprobs(&logits, &targets, temperature as f32);
                    logprobs.push(rows.logprobs);
                    if want != Want::Logprobs {
                        entropies.push(rows.entropy);
                    }
                    if want == Want::Fit {
                        hits.push(rows.argmax_hit);
                    }
                    if kept.is_some() {
                        kernel_logits::dlogp(&logits, &targets, temperature as f32);
                        keep(&logits);
                    }
                }
                Backend::Libtorch => {
                    let distribution = Distribution::new(self, &hidden, temperature);
                    logprobs.push(distribution.logprobs(&targets));
                    if want != Want::Logprobs {
                        entropies.push(distribution.entropy());
                    }
                    if want == Want::Fit {
                        hits.push(distribution.logits.argmax(-1, false).eq_tensor(&targets));
                    }
                    if kept.is_some() {
                        let one = Tensor::ones([len, 1], (Kind::Float, hidden.device()));
                        let grad_logits =
                            distribution.probabilities().neg().scatter_add(1, &targets.unsqueeze(1), &one);
                        keep(&(grad_logits / temperature));
                    }
                }
            }
        }
        let joined = |parts: Vec<Tensor>| {
            if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
        };
        Logprobs {
            logprobs: joined(logprobs),
            entropy: (want != Want::Logprobs).then(|| joined(entropies)),
            argmax_hit: (want == Want::Fit).then(|| joined(hits)),
            dlogp: kept,
        }
    }

    /// The gradient of a loss with respect to `hidden`, `[token, hidden]`, given its gradient with respect to the
    /// entropies of [`Self::logprobs`], `[token]`.
    pub fn entropy_backward(&self, hidden: &Tensor, temperature: f64, grad_entropy: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let gradient = hidden.empty_like();
        for (start, len) in self.chunks(hidden) {
            let (part, weight) = (hidden.narrow(0, start, len), grad_entropy.narrow(0, start, len));
            let grad_logits = match self.backend {
                Backend::Kernels => {
                    let logits = self.logits(&part);
                    let weight = Vec::<f32>::try_from(weight).expect("gradients are a vector of f32");
                    kernel_logits::entropy_backward(&logits, temperature as f32, &weight);
                    logits
                }
                Backend::Libtorch => {
                    let distribution = Distribution::new(self, &part, temperature);
                    let log_p = &distribution.logits - &distribution.logsumexp;
                    let p = log_p.exp();
                    let mean = expectation(&p, &log_p);
                    p * (mean - log_p) * weight.unsqueeze(1) / temperature
                }
            };
            gradient.narrow(0, start, len).copy_(&self.backward(&grad_logits));
        }
        gradient
    }

    /// `KL(p ‖ q)` in nats of each pair of distributions, `[token]` f32, over the whole vocabulary. No gradient flows.
    ///
    /// * `hidden`, `other`: the hidden states of `p` and `q`, `[token, hidden]`
    /// * `temperature`: the divisor of both logits; positive
    pub fn divergence(&self, hidden: &Tensor, other: &Tensor, temperature: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let divergence = Tensor::zeros([hidden.size()[0]], (Kind::Float, hidden.device()));
        for (start, len) in self.chunks(hidden) {
            let distribution = |hidden: &Tensor| Distribution::new(self, &hidden.narrow(0, start, len), temperature);
            let (log_p, difference) = differences(&distribution(hidden), &distribution(other));
            divergence.narrow(0, start, len).copy_(&expectation(&log_p.exp(), &difference).squeeze_dim(1));
        }
        divergence
    }

    /// The gradient of a loss with respect to `hidden`, `[token, hidden]`, given its gradient with respect to
    /// [`Self::divergence`], `[token]`.
    pub fn divergence_backward(
        &self,
        hidden: &Tensor,
        other: &Tensor,
        temperature: f64,
        grad_divergence: &Tensor,
    ) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let gradient = Tensor::zeros_like(hidden);
        for (start, len) in self.chunks(hidden) {
            let distribution = |hidden: &Tensor| Distribution::new(self, &hidden.narrow(0, start, len), temperature);
            let (log_p, difference) = differences(&distribution(hidden), &distribution(other));
            let p = log_p.exp();
            let mean = expectation(&p, &difference);
            let weight = grad_divergence.narrow(0, start, len).unsqueeze(1);
            let grad_logits = p * (difference - mean) * weight / temperature;
            gradient.narrow(0, start, len).copy_(&self.backward(&grad_logits));
        }
        gradient
    }

    /// Start and length of each chunk of the rows of `x`, `[token, …]`.
    fn chunks(&self, x: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
        let elements = if x.device() == HOST { CHUNK_ELEMENTS_HOST } else { CHUNK_ELEMENTS };
        // Multiples of eight, as our kernels take rows.
        parts(x.size()[0], (elements / self.weight.size()[0].max(1) / 8 * 8).max(1))
    }
}

/// `log p` and `log p − log q`, both `[token, vocab]`.
fn differences(p: &Distribution, q: &Distribution) -> (Tensor, Tensor) {
    let log_p = &p.logits - &p.logsumexp;
    let log_q = &q.logits - &q.logsumexp;
    let difference = &log_p - log_q;
    (log_p, difference)
}

/// `Σ p x` over the vocabulary: `[token, vocab]` to `[token, 1]`.
fn expectation(p: &Tensor, x: &Tensor) -> Tensor {
    (p * x).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)
}

/// The distributions of a chunk of tokens.
struct Distribution {
    /// `[token, vocab]` f32, divided by the temperature.
    logits: Tensor,
    /// `[token, 1]` f32
    logsumexp: Tensor,
}

impl Distribution {
    /// The distributions given by the states `hidden`, `[token, hidden]`.
    fn new(head: &OutputHead, hidden: &Tensor, temperature: f64) -> Self {
        let mut logits = head.logits(hidden).to_kind(Kind::Float);
        if temperature != 1.0 {
            logits /= temperature;
        }
        let logsumexp = logits.logsumexp([-1i64].as_slice(), true);
        Self { logits, logsumexp }
    }

    /// Log-probabilities of `targets`, `[token]`.
    fn logprobs(&self, targets: &Tensor) -> Tensor {
        (self.logits.gather(-1, &targets.unsqueeze(1), false) - &self.logsumexp).squeeze_dim(1)
    }

    /// All probabilities, `[token, vocab]`.
    fn probabilities(&self) -> Tensor {
        (&self.logits - &self.logsumexp).exp()
    }

    /// Entropies in nats, `[token]`.
    fn entropy(&self) -> Tensor {
        let log_p = &self.logits - &self.logsumexp;
        -(log_p.exp() * log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
    }
}

/// Start and length of the parts of `rows` rows, `size` each except for the last.
fn parts(rows: i64, size: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(size as usize).map(move |start| (start, size.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    fn example() -> (Tensor, Tensor, Tensor) {
        let numbers = |len: usize, seed| Tensor::from_slice(&schema::Seed::new(seed).normals(len));
        (numbers(12, 1).reshape([3, 4]), numbers(20, 2).reshape([5, 4]), Tensor::from_slice(&[4i64, 0, 2]))
    }

    const BACKENDS: [Backend; 2] = [Backend::Kernels, Backend::Libtorch];

    #[test]
    fn logprobs_equal_log_softmax() {
        let (hidden, head, targets) = example();
        let log_p = (hidden.matmul(&head.tr()) / 0.7).log_softmax(-1, Kind::Float);
        let logprobs = log_p.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let entropy = -(log_p.exp() * log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        for backend in BACKENDS {
            let head = OutputHead::new(head.shallow_clone(), backend);
            let found = head.logprobs(&hidden, &targets, 0.7, Want::Entropy, Dlogp::Skip);
            assert!(found.logprobs.allclose(&logprobs, 1e-6, 1e-6, false));
            assert!(found.entropy.unwrap().allclose(&entropy, 1e-6, 1e-6, false));
            assert!(found.argmax_hit.is_none() && found.dlogp.is_none());
        }
    }

    #[test]
    fn the_most_likely_token_is_known() {
        let (hidden, head, _) = example();
        let best = hidden.matmul(&head.tr()).argmax(-1, false);
        let other = (&best + Tensor::from_slice(&[0i64, 1, 0])).remainder(5);
        for backend in BACKENDS {
            let head = OutputHead::new(head.shallow_clone(), backend);
            let found = head.logprobs(&hidden, &other, 1.0, Want::Fit, Dlogp::Skip);
            assert_eq!(Vec::<bool>::try_from(found.argmax_hit.unwrap()).unwrap(), [true, false, true]);
            assert!(found.entropy.is_some());
        }
    }

    #[test]
    fn the_gradient_by_hand_is_autograds() {
        let (hidden, head, targets) = example();
        let hidden = hidden.set_requires_grad(true);
        let log_p = (hidden.matmul(&head.tr()) / 0.7).log_softmax(-1, Kind::Float);
        let logprobs = log_p.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let entropy = -(log_p.exp() * &log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        let weights = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let entropy_weights = Tensor::from_slice(&[0.1f32, 0.2, -0.3]);
        let loss = (logprobs * &weights).sum(Kind::Float) + (entropy * &entropy_weights).sum(Kind::Float);
        let expected = &Tensor::run_backward(&[&loss], &[&hidden], false, false)[0];
        for backend in BACKENDS {
            let (hidden, head) = (hidden.detach(), OutputHead::new(head.shallow_clone(), backend));
            let found = head.logprobs(&hidden, &targets, 0.7, Want::Logprobs, Dlogp::Keep);
            let grad_entropy = head.entropy_backward(&hidden, 0.7, &entropy_weights);
            let gradient = found.dlogp.unwrap() * weights.unsqueeze(1) + grad_entropy;
            assert!(gradient.allclose(expected, 1e-5, 1e-6, false), "{gradient:?} {expected:?}");
        }
    }

    /// Logits 1, 0, −1 against logits 0, 0, 0 and 0.8, 0.1, −0.5, through a head that is the identity.
    #[test]
    fn a_convex_mix_of_divergences_by_hand() {
        let row = |logits: &[f32]| Tensor::from_slice(logits).unsqueeze(0);
        let (policy, base, previous) = (row(&[1.0, 0.0, -1.0]), row(&[0.0; 3]), row(&[0.8, 0.1, -0.5]));
        let head = OutputHead::new(Tensor::eye(3, (Kind::Float, HOST)), Backend::Kernels);
        let kl = |other: &Tensor| head.divergence(&policy, other, 1.0).double_value(&[0]);
        for (lambda, expected) in [(1.0, 0.266_216_71), (0.7, 0.194_282_1), (0.5, 0.146_325_7)] {
            let mixed = lambda * kl(&base) + (1.0 - lambda) * kl(&previous);
            assert!((mixed - expected).abs() < 1e-6, "{lambda}: {mixed}");
        }
        let gradient =
            |other: &Tensor, weight: f32| head.divergence_backward(&policy, other, 1.0, &Tensor::from_slice(&[weight]));
        let gradient = gradient(&base, 0.7) + gradient(&previous, 0.3);
        assert!(
            gradient.allclose(&row(&[0.225_040_85, -0.110_547_59, -0.114_493_26]), 1e-6, 1e-6, false),
            "{gradient:?}"
        );
    }

    #[test]
    fn the_gradient_of_a_divergence_is_autograds() {
        let (hidden, head, _) = example();
        let other = &hidden * 0.5 + 0.2;
        let leaf = hidden.copy().set_requires_grad(true);
        let log_softmax = |x: &Tensor| (x.matmul(&head.tr()) / 0.7).log_softmax(-1, Kind::Float);
        let (log_p, log_q) = (log_softmax(&leaf), log_softmax(&other));
        let each = (log_p.exp() * (log_p - log_q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        let output = OutputHead::new(head.shallow_clone(), Backend::Kernels);
        assert!(output.divergence(&hidden, &other, 0.7).allclose(&each, 1e-6, 1e-6, false));
        let weights = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let expected = &Tensor::run_backward(&[(each * &weights).sum(Kind::Float)], &[&leaf], false, false)[0];
        let gradient = output.divergence_backward(&hidden, &other, 0.7, &weights);
        assert!(gradient.allclose(expected, 1e-5, 1e-6, false), "{gradient:?} {expected:?}");
    }

    #[test]
    fn chunks_cover_all_tokens_once() {
        assert_eq!(parts(10, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(parts(0, 100).count(), 0);
        let hidden = Tensor::zeros([0, 4], (Kind::Float, HOST));
        let head = OutputHead::new(Tensor::zeros([5, 4], (Kind::Float, HOST)), Backend::Kernels);
        let targets = Tensor::zeros([0], (Kind::Int64, HOST));
        let found = head.logprobs(&hidden, &targets, 1.0, Want::Logprobs, Dlogp::Keep);
        assert_eq!(found.logprobs.size(), [0]);
        assert_eq!(found.dlogp.unwrap().size(), [0, 4]);
    }
}
