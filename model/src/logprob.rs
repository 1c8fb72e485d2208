//! Log-probabilities of given tokens, without ever holding a `[token, vocab]` tensor.
//!
//! The head is applied to a chunk of tokens at a time, and only each token's log-probability (and, if wanted, the
//! entropy of its distribution) is kept. The gradient is written out by hand. With the logits `z = h Wᵀ / T`,
//!
//! ```text
//! ∂ log p_y / ∂z = onehot(y) − p          ∂H / ∂z = −p ∘ (log p + H)          ∂z / ∂h = W / T
//! ```
//!
//! A loss knows what it asks of a log-probability only when all of them are there, but it multiplies no more than a
//! number to each token's `∂ log p_y / ∂h`. That *slope* is therefore computed while the logits are at hand, and only it
//! is kept, `[token, hidden]`. What else has a gradient, entropy and divergences, computes the logits a second time.
//!
//! The divergence from another distribution, `KL(p ‖ q) = Σ p (log p − log q)`, goes the same way where a loss wants it
//! exactly: `q`'s logits come from hidden states of its own, and
//!
//! ```text
//! ∂ KL / ∂z = p ∘ (log p − log q − KL)
//! ```
//!
//! So the memory is bounded by the chunk, whatever the batch. All of it is f32 even for bf16 networks.

use crate::device::HOST;
use crate::kernel::{sheet, vocab};
use tch::{Kind, Tensor};

/// The logits of a few tokens, `[token, hidden]` to `[token, vocab]`, whole.
pub(crate) fn logits(hidden: &Tensor, head: &Tensor) -> Tensor {
    if by_hand(hidden, head) { sheet::linear(&hidden.contiguous(), head) } else { hidden.linear(head, None::<Tensor>) }
}

/// The gradient of hidden states, `[token, hidden]`, given that of their logits, `[token, vocab]` f32.
fn back(by_logits: &Tensor, head: &Tensor) -> Tensor {
    if by_hand(by_logits, head) {
        sheet::linear_back(&[(by_logits, head)])
    } else {
        by_logits.to_kind(head.kind()).matmul(head)
    }
}

/// Whether our kernels are the ones to use: for f32 on the CPU, and weights of f32 or bf16.
fn by_hand(x: &Tensor, head: &Tensor) -> bool {
    x.device() == HOST && x.kind() == Kind::Float && matches!(head.kind(), Kind::Float | Kind::BFloat16)
}

fn numbers(targets: &Tensor) -> Vec<i64> {
    Vec::<i64>::try_from(targets).expect("targets are a vector of i64")
}

/// Numbers in one chunk of logits: 64 MiB of f32, which keep a GPU busy, or 16 MiB, which a CPU's last cache holds.
const CHUNK_NUMBERS: i64 = 1 << 24;
const CHUNK_NUMBERS_HOST: i64 = 1 << 22;

/// Scores of tokens under a softmax.
#[derive(Debug)]
pub struct Scores {
    /// `[token]` f32: natural log of the probability of each target.
    pub logprobs: Tensor,
    /// `[token]` f32: entropy of each distribution, in nats; only where asked for.
    pub entropy: Option<Tensor>,
    /// `[token]` bool: whether the target is the most likely token; only where asked for.
    pub foremost: Option<Tensor>,
    /// `[token, hidden]`: the gradient of each log-probability with respect to its hidden state; only where asked for.
    pub slopes: Option<Tensor>,
}

/// What to compute besides log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Log-probabilities alone.
    Logprobs,
    /// The entropy of each distribution too.
    Entropy,
    /// That, and whether each target is the most likely token.
    Fit,
}

/// Whether to compute [`Scores::slopes`], for two products with the head instead of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slopes {
    /// They are not needed.
    Skip,
    /// A gradient will be asked for.
    Keep,
}

/// Scores `targets`, `[token]`, from the hidden states that predict them, `[token, hidden]`. No gradient flows.
///
/// * `head`: `[vocab, hidden]`
/// * `temperature`: the logits are divided by it; positive
pub fn score(hidden: &Tensor, head: &Tensor, targets: &Tensor, temperature: f64, want: Want, slopes: Slopes) -> Scores {
    let _no_grad = tch::no_grad_guard();
    let mut logprobs = Vec::new();
    let mut entropies = Vec::new();
    let mut foremost = Vec::new();
    let kept = (slopes == Slopes::Keep).then(|| hidden.empty_like());
    for (start, len) in chunks(targets, head) {
        let targets = targets.narrow(0, start, len);
        let keep = |by_logits: &Tensor| {
            if let Some(kept) = &kept {
                kept.narrow(0, start, len).copy_(&back(by_logits, head));
            }
        };
        if by_hand(hidden, head) {
            let logits = logits(&hidden.narrow(0, start, len), head);
            let targets = numbers(&targets);
            let scores = vocab::scores(&logits, &targets, temperature as f32);
            logprobs.push(scores.logprobs);
            if want != Want::Logprobs {
                entropies.push(scores.entropy);
            }
            if want == Want::Fit {
                foremost.push(scores.foremost);
            }
            if kept.is_some() {
                vocab::slopes(&logits, &targets, temperature as f32);
                keep(&logits);
            }
            continue;
        }
        let distribution = Distribution::new(&hidden.narrow(0, start, len), head, temperature);
        logprobs.push(distribution.logprobs(&targets));
        if want != Want::Logprobs {
            entropies.push(distribution.entropy());
        }
        if want == Want::Fit {
            foremost.push(distribution.logits.argmax(-1, false).eq_tensor(&targets));
        }
        if kept.is_some() {
            let one = Tensor::ones([len, 1], (Kind::Float, hidden.device()));
            let by_logits = distribution.probabilities().neg().scatter_add(1, &targets.unsqueeze(1), &one);
            keep(&(by_logits / temperature));
        }
    }
    let joined = |parts: Vec<Tensor>| {
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    };
    Scores {
        logprobs: joined(logprobs),
        entropy: (want != Want::Logprobs).then(|| joined(entropies)),
        foremost: (want == Want::Fit).then(|| joined(foremost)),
        slopes: kept,
    }
}

/// The gradient of a loss with respect to the hidden states, `[token, hidden]`, given its gradient with respect to the
/// entropies of [`score`], `[token]`.
pub fn entropy_gradient(hidden: &Tensor, head: &Tensor, temperature: f64, weight: &Tensor) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let gradient = hidden.empty_like();
    for (start, len) in chunks(hidden, head) {
        let (part, weight) = (hidden.narrow(0, start, len), weight.narrow(0, start, len));
        let by_logits = if by_hand(hidden, head) {
            let logits = logits(&part, head);
            let weight = Vec::<f32>::try_from(weight).expect("gradients are a vector of f32");
            vocab::entropy_gradient(&logits, temperature as f32, &weight);
            logits
        } else {
            let distribution = Distribution::new(&part, head, temperature);
            let log_p = &distribution.logits - &distribution.logsumexp;
            let p = log_p.exp();
            let mean = expectation(&p, &log_p);
            p * (mean - log_p) * weight.unsqueeze(1) / temperature
        };
        gradient.narrow(0, start, len).copy_(&back(&by_logits, head));
    }
    gradient
}

/// `KL(p ‖ q)` in nats of each pair of distributions, `[token]` f32, over the whole vocabulary. No gradient flows.
///
/// * `hidden`, `other`: the hidden states `[token, hidden]` that give `p` and `q`
/// * `head`: `[vocab, hidden]`
/// * `temperature`: both logits are divided by it; positive
pub fn divergence(hidden: &Tensor, other: &Tensor, head: &Tensor, temperature: f64) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let divergence = Tensor::zeros([hidden.size()[0]], (Kind::Float, hidden.device()));
    for (start, len) in chunks(hidden, head) {
        let distribution = |hidden: &Tensor| Distribution::new(&hidden.narrow(0, start, len), head, temperature);
        let (log_p, difference) = differences(&distribution(hidden), &distribution(other));
        divergence.narrow(0, start, len).copy_(&expectation(&log_p.exp(), &difference).squeeze_dim(1));
    }
    divergence
}

/// The gradient of a loss with respect to `hidden`, `[token, hidden]`, given its gradient with respect to
/// [`divergence`], `[token]`.
pub fn divergence_gradient(
    hidden: &Tensor,
    other: &Tensor,
    head: &Tensor,
    temperature: f64,
    weight: &Tensor,
) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let gradient = Tensor::zeros_like(hidden);
    for (start, len) in chunks(hidden, head) {
        let distribution = |hidden: &Tensor| Distribution::new(&hidden.narrow(0, start, len), head, temperature);
        let (log_p, difference) = differences(&distribution(hidden), &distribution(other));
        let p = log_p.exp();
        let mean = expectation(&p, &difference);
        let by_logits = p * (difference - mean) * weight.narrow(0, start, len).unsqueeze(1) / temperature;
        gradient.narrow(0, start, len).copy_(&back(&by_logits, head));
    }
    gradient
}

/// `log p` and `log p − log q`, both `[token, vocab]`.
fn differences(p: &Distribution, q: &Distribution) -> (Tensor, Tensor) {
    let log_p = &p.logits - &p.logsumexp;
    let log_q = &q.logits - &q.logsumexp;
    let difference = &log_p - log_q;
    (log_p, difference)
}

/// `Σ p x` over the vocabulary, `[token, 1]`.
fn expectation(p: &Tensor, x: &Tensor) -> Tensor {
    (p * x).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)
}

struct Distribution {
    /// `[token, vocab]` f32, divided by the temperature
    logits: Tensor,
    /// `[token, 1]` f32
    logsumexp: Tensor,
}

impl Distribution {
    fn new(hidden: &Tensor, head: &Tensor, temperature: f64) -> Self {
        let mut logits = logits(hidden, head).to_kind(Kind::Float);
        if temperature != 1.0 {
            logits /= temperature;
        }
        let logsumexp = logits.logsumexp([-1i64].as_slice(), true);
        Self { logits, logsumexp }
    }

    fn logprobs(&self, targets: &Tensor) -> Tensor {
        (self.logits.gather(-1, &targets.unsqueeze(1), false) - &self.logsumexp).squeeze_dim(1)
    }

    fn probabilities(&self) -> Tensor {
        (&self.logits - &self.logsumexp).exp()
    }

    fn entropy(&self) -> Tensor {
        let log_p = &self.logits - &self.logsumexp;
        -(log_p.exp() * log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
    }
}

/// Start and length of each chunk of rows.
fn chunks(rows: &Tensor, head: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let numbers = if rows.device() == HOST { CHUNK_NUMBERS_HOST } else { CHUNK_NUMBERS };
    // In eights, as our kernels take rows.
    parts(rows.size()[0], (numbers / head.size()[0].max(1) / 8 * 8).max(1))
}

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

    /// The formats that go through our kernels, and through libtorch's operations as a GPU's do.
    const BOTH_WAYS: [Kind; 2] = [Kind::Float, Kind::Double];

    #[test]
    fn scores_equal_log_softmax() {
        let (hidden, head, targets) = example();
        let log_p = (hidden.matmul(&head.tr()) / 0.7).log_softmax(-1, Kind::Float);
        let logprobs = log_p.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let entropy = -(log_p.exp() * log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        for kind in BOTH_WAYS {
            let (hidden, head) = (hidden.to_kind(kind), head.to_kind(kind));
            let scores = score(&hidden, &head, &targets, 0.7, Want::Entropy, Slopes::Skip);
            assert!(scores.logprobs.allclose(&logprobs, 1e-6, 1e-6, false));
            assert!(scores.entropy.unwrap().allclose(&entropy, 1e-6, 1e-6, false));
            assert!(scores.foremost.is_none() && scores.slopes.is_none());
        }
    }

    #[test]
    fn the_most_likely_token_is_known() {
        let (hidden, head, _) = example();
        let best = hidden.matmul(&head.tr()).argmax(-1, false);
        let other = (&best + Tensor::from_slice(&[0i64, 1, 0])).remainder(5);
        for kind in BOTH_WAYS {
            let scores = score(&hidden.to_kind(kind), &head.to_kind(kind), &other, 1.0, Want::Fit, Slopes::Skip);
            assert_eq!(Vec::<bool>::try_from(scores.foremost.unwrap()).unwrap(), [true, false, true]);
            assert!(scores.entropy.is_some());
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
        for kind in BOTH_WAYS {
            let (hidden, head) = (hidden.detach().to_kind(kind), head.to_kind(kind));
            let scores = score(&hidden, &head, &targets, 0.7, Want::Logprobs, Slopes::Keep);
            let by_entropy = entropy_gradient(&hidden, &head, 0.7, &entropy_weights);
            let gradient = (scores.slopes.unwrap() * weights.unsqueeze(1) + by_entropy).to_kind(Kind::Float);
            assert!(gradient.allclose(expected, 1e-5, 1e-6, false), "{gradient:?} {expected:?}");
        }
    }

    /// Logits 1, 0, −1 against logits 0, 0, 0 and 0.8, 0.1, −0.5, through a head that is the identity.
    #[test]
    fn a_convex_mix_of_divergences_by_hand() {
        let row = |logits: &[f32]| Tensor::from_slice(logits).unsqueeze(0);
        let (policy, base, previous) = (row(&[1.0, 0.0, -1.0]), row(&[0.0; 3]), row(&[0.8, 0.1, -0.5]));
        let head = Tensor::eye(3, (Kind::Float, HOST));
        let kl = |other: &Tensor| divergence(&policy, other, &head, 1.0).double_value(&[0]);
        for (lambda, expected) in [(1.0, 0.266_216_71), (0.7, 0.194_282_1), (0.5, 0.146_325_7)] {
            let mixed = lambda * kl(&base) + (1.0 - lambda) * kl(&previous);
            assert!((mixed - expected).abs() < 1e-6, "{lambda}: {mixed}");
        }
        let slope = |other: &Tensor, weight: f32| {
            divergence_gradient(&policy, other, &head, 1.0, &Tensor::from_slice(&[weight]))
        };
        let slope = slope(&base, 0.7) + slope(&previous, 0.3);
        assert!(slope.allclose(&row(&[0.225_040_85, -0.110_547_59, -0.114_493_26]), 1e-6, 1e-6, false), "{slope:?}");
    }

    #[test]
    fn the_gradient_of_a_divergence_is_autograds() {
        let (hidden, head, _) = example();
        let other = &hidden * 0.5 + 0.2;
        let leaf = hidden.copy().set_requires_grad(true);
        let log_softmax = |x: &Tensor| (x.matmul(&head.tr()) / 0.7).log_softmax(-1, Kind::Float);
        let (log_p, log_q) = (log_softmax(&leaf), log_softmax(&other));
        let each = (log_p.exp() * (log_p - log_q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        assert!(divergence(&hidden, &other, &head, 0.7).allclose(&each, 1e-6, 1e-6, false));
        let weights = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let expected = &Tensor::run_backward(&[(each * &weights).sum(Kind::Float)], &[&leaf], false, false)[0];
        let gradient = divergence_gradient(&hidden, &other, &head, 0.7, &weights);
        assert!(gradient.allclose(expected, 1e-5, 1e-6, false), "{gradient:?} {expected:?}");
    }

    #[test]
    fn chunks_cover_all_tokens_once() {
        assert_eq!(parts(10, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(parts(0, 100).count(), 0);
        let hidden = Tensor::zeros([0, 4], (Kind::Float, HOST));
        let scores = score(
            &hidden,
            &Tensor::zeros([5, 4], (Kind::Float, HOST)),
            &Tensor::zeros([0], (Kind::Int64, HOST)),
            1.0,
            Want::Logprobs,
            Slopes::Keep,
        );
        assert_eq!(scores.logprobs.size(), [0]);
        assert_eq!(scores.slopes.unwrap().size(), [0, 4]);
    }
}
