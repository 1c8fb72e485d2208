//! Log-probabilities and entropies from rows of logits, and their gradients, in two passes over memory.

use super::pointwise::exp;
use super::simd::{Instructions, Simd, dispatched};
use super::threads::{run_threads, share_of, thread_count};
use super::{Rows, RowsMut};
use tch::{Kind, Tensor};

/// The results of [`logprobs`] for each row.
pub(crate) struct RowLogprobs {
    /// `[row]` f32: log-probability of the target.
    pub(crate) logprobs: Tensor,
    /// `[row]` f32: entropy of the distribution, in nats.
    pub(crate) entropy: Tensor,
    /// `[row]` bool: true where the target has the largest logit.
    pub(crate) argmax_hit: Tensor,
}

/// Evaluates `targets` under the softmax of `logits / temperature`.
///
/// * `logits`: `[row, vocab]`
/// * `targets`: `[row]`, each below `vocab`
pub(crate) fn logprobs(logits: &Tensor, targets: &[i64], temperature: f32) -> RowLogprobs {
    let (rows, vocab) = (targets.len(), logits.size()[1] as usize);
    let mut results = vec![[0.0f32; 3]; rows];
    let (from, to) = (Rows::of(logits), RowsMut::of(results.as_flattened_mut(), 3));
    let threads = thread_count(rows * vocab);
    run_threads(threads, |thread, _| {
        for row in share_of(thread, threads, rows, 1) {
            // SAFETY: a row of logits and one of results, which this thread alone writes.
            let (logits, result) = unsafe { (from.slice(row, vocab), to.slice(row, 3)) };
            let moments = Moments::of(logits, temperature);
            let target = logits[targets[row] as usize];
            result[0] = moments.log_probability(target);
            result[1] = moments.entropy();
            result[2] = f32::from(u8::from(target >= moments.highest));
        }
    });
    let column = |index: usize| Tensor::from_slice(&results.iter().map(|result| result[index]).collect::<Vec<_>>());
    RowLogprobs { logprobs: column(0), entropy: column(1), argmax_hit: column(2).to_kind(Kind::Bool) }
}

/// Overwrites `logits`, `[row, vocab]`, with the gradient of each row's `log p_target` with respect to it.
pub(crate) fn dlogp(logits: &Tensor, targets: &[i64], temperature: f32) {
    overwrite(logits, temperature, |row, logits, moments| {
        // SAFETY: the machine has its best instructions.
        unsafe { gradient_on(Instructions::best(), logits, moments, (moments.inverse, 0.0)) };
        logits[targets[row] as usize] += moments.inverse;
    });
}

/// Overwrites `logits`, `[row, vocab]`, with the gradient of `Σ_row weight H`.
pub(crate) fn entropy_backward(logits: &Tensor, temperature: f32, weight: &[f32]) {
    overwrite(logits, temperature, |row, logits, moments| {
        // SAFETY: the machine has its best instructions.
        unsafe { gradient_on(Instructions::best(), logits, moments, (0.0, weight[row] * moments.inverse)) };
    });
}

/// Runs `work` on every row of `logits`, `[row, vocab]`, with the row's moments.
fn overwrite(logits: &Tensor, temperature: f32, work: impl Fn(usize, &mut [f32], &Moments) + Sync) {
    let (rows, vocab) = logits.size2().expect("logits are a matrix");
    let (rows, vocab) = (rows as usize, vocab as usize);
    let to = RowsMut::of_tensor(logits, vocab);
    let threads = thread_count(rows * vocab);
    run_threads(threads, |thread, _| {
        for row in share_of(thread, threads, rows, 1) {
            // SAFETY: a row of logits, which this thread alone reads and writes.
            let logits = unsafe { to.slice(row, vocab) };
            let moments = Moments::of(logits, temperature);
            work(row, logits, &moments);
        }
    });
}

/// Statistics of one distribution after one pass over its logits.
pub(super) struct Moments {
    /// The largest logit, not divided by the temperature.
    highest: f32,
    /// One over the temperature.
    inverse: f32,
    /// `ln Σ e^(z − highest)`, with `z` divided by the temperature.
    log_sum: f32,
    /// `Σ p (z − highest)`
    mean: f32,
}

impl Moments {
    fn of(logits: &[f32], temperature: f32) -> Self {
        let mut sums = [0.0; 3];
        // SAFETY: the machine has its best instructions.
        unsafe { sums_on(Instructions::best(), logits, 1.0 / temperature, &mut sums) };
        let [highest, sum, weighted] = sums;
        Self { highest, inverse: 1.0 / temperature, log_sum: sum.ln(), mean: weighted / sum }
    }

    fn log_probability(&self, logit: f32) -> f32 {
        (logit - self.highest) * self.inverse - self.log_sum
    }

    fn entropy(&self) -> f32 {
        self.log_sum - self.mean
    }
}

dispatched!(sums_on(logits: &[f32], inverse: f32, sums: &mut [f32; 3]) = sums_of);

/// Computes the largest logit `m`, `Σ e^z` and `Σ z e^z` with `z = (logit − m) · inverse`, each in 32 partial sums that
/// vectorise.
#[inline(always)]
unsafe fn sums_of<L: Simd>(logits: &[f32], inverse: f32, sums: &mut [f32; 3]) {
    const LANES: usize = 32;
    let blocks = logits.chunks_exact(LANES);
    let rest = blocks.remainder();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for block in blocks.clone() {
        for lane in 0..LANES {
            highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
        }
    }
    let highest = highest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut total, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
    for block in blocks {
        for lane in 0..LANES {
            let z = (block[lane] - highest) * inverse;
            let e = exp(z);
            total[lane] += e;
            weighted[lane] += z * e;
        }
    }
    for logit in rest {
        let z = (logit - highest) * inverse;
        let e = exp(z);
        total[0] += e;
        weighted[0] += z * e;
    }
    *sums = [highest, total.iter().sum(), weighted.iter().sum()];
}

dispatched!(gradient_on(logits: &mut [f32], moments: &Moments, weights: (f32, f32)) = gradient_of);

/// Overwrites logits with `−a p − b p (log p + H)`; the caller adds the target's own `a`.
#[inline(always)]
unsafe fn gradient_of<L: Simd>(logits: &mut [f32], moments: &Moments, (a, b): (f32, f32)) {
    let entropy = moments.entropy();
    for logit in logits.iter_mut() {
        let log_p = (*logit - moments.highest) * moments.inverse - moments.log_sum;
        *logit = -exp(log_p) * (a + b * (log_p + entropy));
    }
}
