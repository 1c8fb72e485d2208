//! Attention over packed groups for training and evaluation, and its backward pass, without padding and without copies.
//!
//! A group is a prompt, and completions that each see the whole prompt and their own past. Queries, keys and values are
//! columns of one matrix, as the fused layer wrote them. For a block of queries of one head, with `s = 1 / √head_dim`,
//!
//! ```text
//! P = softmax(s Q Kᵀ)     O = P V
//! ∂P = ∂O Vᵀ     ∂S = s P ∘ (∂P − rowsum(∂O ∘ O))     ∂Q = ∂S K     ∂K = ∂Sᵀ Q     ∂V = Pᵀ ∂O
//! ```
//!
//! Only the logarithm of each row's sum is kept for the backward pass, as in `FlashAttention` (Dao et al. 2022, arXiv
//! 2205.14135): `P` is recomputed.

use crate::attention::PackedGroup;
use crate::kernel::gemm::low_rank::matmul_tn_on;
use crate::kernel::gemm::{Term, gemm_backward_on};
use crate::kernel::ops::for_rows;
use crate::kernel::pointwise::{SoftmaxRow, softmax_backward_on, softmax_on};
use crate::kernel::simd::Instructions;
use crate::kernel::threads::{run_threads, thread_count};
use crate::kernel::{Matrix, Rows, RowsMut};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Kind, Tensor};

/// The layout of a fused row: the columns of queries, then keys, then values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Elements in a head.
    pub(crate) head_dim: usize,
}

impl HeadShape {
    fn queries(self) -> usize {
        self.heads * self.head_dim
    }

    fn width(self) -> usize {
        self.queries() + 2 * self.kv_heads * self.head_dim
    }

    /// The first columns of a key head and of its values.
    fn key_and_value(self, kv_head: usize) -> (usize, usize) {
        let key = self.queries() + kv_head * self.head_dim;
        (key, key + self.kv_heads * self.head_dim)
    }

    /// The number of query heads that share a key head.
    fn shared(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Queries in a block.
const BLOCK: usize = 64;

/// Mixes values by attention: returns `[token, heads · head_dim]`, and the logarithm of each softmax sum,
/// `[token, heads]`.
///
/// * `qkv`: `[token, (heads + 2 kv_heads) · head_dim]`, rotary positions applied
pub(crate) fn forward(qkv: &Tensor, groups: &[PackedGroup], shape: HeadShape) -> (Tensor, Tensor) {
    let tokens = qkv.size()[0];
    let empty = |width: usize| Tensor::empty([tokens, width as i64], (Kind::Float, qkv.device()));
    let (mixed, log_sums) = (empty(shape.queries()), empty(shape.heads));
    let transposed = transposed(qkv, shape.queries(), shape.kv_heads * shape.head_dim);
    let qkv_views = PackedQkv { shape, qkv: Rows::of(qkv), transposed: Rows::of(&transposed) };
    let (to, sums) = (RowsMut::of_tensor(&mixed, shape.queries()), RowsMut::of_tensor(&log_sums, shape.heads));
    for_heads(groups, shape, |group, head, scratch| {
        // SAFETY: each task writes the columns of its own head in the rows of its own group.
        unsafe { qkv_views.forward(group, head, scratch, to, sums) }
    });
    (mixed, log_sums)
}

/// The gradient of [`forward`] with respect to `qkv`, of the same shape.
///
/// * `mixed`, `log_sums`: the results of the forward pass
/// * `grad_mixed`: the gradient with respect to the mixed values, `[token, heads · head_dim]`
pub(crate) fn backward(
    qkv: &Tensor,
    mixed: &Tensor,
    log_sums: &Tensor,
    grad_mixed: &Tensor,
    groups: &[PackedGroup],
    shape: HeadShape,
) -> Tensor {
    let (grad_qkv, tokens, dim) = (qkv.empty_like(), qkv.size()[0], shape.head_dim);
    let transposed = transposed(qkv, shape.queries(), 2 * shape.kv_heads * dim);
    let qkv_views = PackedQkv { shape, qkv: Rows::of(qkv), transposed: Rows::of(&transposed) };
    let saved = Saved { mixed: Rows::of(mixed), log_sums: Rows::of(log_sums), grad_mixed: Rows::of(grad_mixed) };
    let to = RowsMut::of_tensor(&grad_qkv, shape.width());
    // Contribution of each query head to the gradients of the keys and values it shares: `[token, head, 2, head_dim]`.
    let each = Tensor::zeros([tokens, 2 * shape.queries() as i64], (Kind::Float, qkv.device()));
    let parts = RowsMut::of_tensor(&each, 2 * shape.queries());
    for_heads(groups, shape, |group, head, scratch| {
        // SAFETY: as above; a group's keys are its own, and each head has columns of its own for its contribution.
        unsafe { qkv_views.backward(group, head, scratch, &saved, to, parts.at_column(2 * head * dim)) }
    });
    for_rows(tokens as usize, 2 * shape.queries(), |token| {
        for kv_head in 0..shape.kv_heads {
            let (key, value) = shape.key_and_value(kv_head);
            for (column, offset) in [(key, 0), (value, dim)] {
                // SAFETY: columns that no task above has written, in a row that one thread writes.
                let sum = unsafe { to.at_column(column).slice(token, dim) };
                sum.fill(0.0);
                for head in kv_head * shape.shared()..(kv_head + 1) * shape.shared() {
                    // SAFETY: nothing writes to it any more.
                    let part = unsafe { parts.read().at_column(2 * head * dim + offset).slice(token, dim) };
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            }
        }
    });
    grad_qkv
}

/// Copies `width` columns of `qkv`, `[token, column]`, from `first` on, as `[column, token]`.
fn transposed(qkv: &Tensor, first: usize, width: usize) -> Tensor {
    qkv.narrow(1, first as i64, width as i64).tr().contiguous()
}

/// Runs `work` for every query head of every group; each thread takes the next free one.
fn for_heads(groups: &[PackedGroup], shape: HeadShape, work: impl Fn(&PackedGroup, usize, &mut Scratch) + Sync) {
    let tasks = groups.len() * shape.heads;
    let pairs = groups.iter().map(PackedGroup::pairs).sum::<usize>();
    let next = AtomicUsize::new(0);
    run_threads(thread_count(pairs * shape.queries()).min(tasks.max(1)), |_, _| {
        let mut scratch = Scratch::default();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(&groups[task / shape.heads], task % shape.heads, &mut scratch);
        }
    });
}

/// Scratch space of a thread; grows as needed.
#[derive(Default)]
struct Scratch {
    /// `P`, `[query, key]`, prompt first.
    weights: Vec<f32>,
    /// `∂P`, then `∂S`.
    grads: Vec<f32>,
    /// A block's part of `∂K` or `∂V`, `[key, head_dim]`.
    sums: Vec<f32>,
}

/// The address of a buffer grown to at least `count` elements.
fn grown(buffer: &mut Vec<f32>, count: usize) -> *mut f32 {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    buffer.as_mut_ptr()
}

/// The inputs of the backward pass.
struct Saved {
    /// `O`, `[token, heads · head_dim]`.
    mixed: Rows,
    /// `[token, heads]`
    log_sums: Rows,
    /// `∂O`, `[token, heads · head_dim]`.
    grad_mixed: Rows,
}

/// A block of queries of one head and the tokens they see.
#[derive(Clone)]
struct Block {
    /// The queries' tokens.
    rows: Range<usize>,
    /// The tokens of their own run, up to the last query.
    own: Range<usize>,
    /// The prompt's tokens that they see.
    prompt: Range<usize>,
}

impl Block {
    /// The blocks of a run.
    fn of(run: &Range<usize>, prompt: &Range<usize>) -> impl Iterator<Item = Self> + use<> {
        let (run, prompt) = (run.clone(), prompt.clone());
        run.clone().step_by(BLOCK).map(move |start| {
            let end = run.end.min(start + BLOCK);
            Self { rows: start..end, own: run.start..end, prompt: prompt.clone() }
        })
    }

    fn keys(&self) -> usize {
        self.prompt.len() + self.own.len()
    }

    /// The number of keys that a query sees.
    fn seen(&self, row: usize) -> usize {
        self.prompt.len() + (self.rows.start - self.own.start) + row + 1
    }
}

/// Queries, keys and values of all tokens.
#[derive(Clone, Copy)]
struct PackedQkv {
    shape: HeadShape,
    qkv: Rows,
    /// Keys and, for the backward pass, values: `[column, token]`.
    transposed: Rows,
}

/// One head of the prompt's tokens and of a run's own.
#[derive(Clone, Copy)]
struct Stack {
    prompt: Rows,
    own: Rows,
}

impl PackedQkv {
    /// Writes one head of [`forward`] for the tokens of a group.
    ///
    /// # Safety
    /// The group's tokens are rows of all views, and nothing else uses this head's columns of `to` and `log_sums` in
    /// them.
    unsafe fn forward(self, group: &PackedGroup, head: usize, scratch: &mut Scratch, to: RowsMut, log_sums: RowsMut) {
        let (shape, dim) = (self.shape, self.shape.head_dim);
        let (key, value) = shape.key_and_value(head / shape.shared());
        // SAFETY: the caller's promise.
        unsafe {
            for (run, prompt) in group.runs() {
                let keys = self.transposed(&run, &prompt, key);
                let values = self.rows(&run, &prompt, value);
                for block in Block::of(&run, &prompt) {
                    let weights = RowsMut::at(grown(&mut scratch.weights, BLOCK * block.keys()), block.keys());
                    let queries = self.qkv.at_column(head * dim).at_row(block.rows.start);
                    matmul_nt(queries, keys, &block, dim, weights);
                    for row in 0..block.rows.len() {
                        let sum = log_sums.at_column(head).row(block.rows.start + row);
                        let seen = block.seen(row);
                        softmax_on(Instructions::best(), weights.row(row), seen, block.keys(), shape.scale(), sum);
                    }
                    matmul_nn(weights.read(), values, &block, dim, to.at_column(head * dim).at_row(block.rows.start));
                }
            }
        }
    }

    /// Writes one head of [`backward`] for the tokens of a group; gradients of keys and values go to `part`.
    ///
    /// # Safety
    /// As for [`Self::forward`]; the first `2 head_dim` columns of `part`, for keys and for values, too.
    unsafe fn backward(
        self,
        group: &PackedGroup,
        head: usize,
        scratch: &mut Scratch,
        saved: &Saved,
        to: RowsMut,
        part: RowsMut,
    ) {
        let (shape, dim) = (self.shape, self.shape.head_dim);
        let (key, value) = shape.key_and_value(head / shape.shared());
        // SAFETY: the caller's promise.
        unsafe {
            for (run, prompt) in group.runs() {
                let keys = self.transposed(&run, &prompt, key);
                let values = self.transposed(&run, &prompt, value);
                let key_rows = self.rows(&run, &prompt, key);
                for block in Block::of(&run, &prompt) {
                    let count = BLOCK * block.keys();
                    let weights = RowsMut::at(grown(&mut scratch.weights, count), block.keys());
                    let grads = RowsMut::at(grown(&mut scratch.grads, count), block.keys());
                    let at = |rows: Rows| rows.at_column(head * dim).at_row(block.rows.start);
                    let (queries, grad_mixed, mixed) = (at(self.qkv), at(saved.grad_mixed), at(saved.mixed));
                    matmul_nt(queries, keys, &block, dim, weights);
                    matmul_nt(grad_mixed, values, &block, dim, grads);
                    for row in 0..block.rows.len() {
                        let log_sum = *saved.log_sums.at_column(head).row(block.rows.start + row);
                        let seen = block.seen(row);
                        let softmax = SoftmaxRow { scale: shape.scale(), log_sum, seen, keys: block.keys(), dim };
                        let (p, s) = (weights.row(row), grads.row(row));
                        softmax_backward_on(Instructions::best(), p, s, grad_mixed.row(row), mixed.row(row), &softmax);
                    }
                    matmul_nn(grads.read(), key_rows, &block, dim, to.at_column(head * dim).at_row(block.rows.start));
                    let sums = RowsMut::at(grown(&mut scratch.sums, block.keys() * dim), dim);
                    add_matmul_tn(grads.read(), queries, &block, sums, part, dim);
                    add_matmul_tn(weights.read(), grad_mixed, &block, sums, part.at_column(dim), dim);
                }
            }
        }
    }

    /// The head at `column` as `[head_dim, token]`.
    fn transposed(self, run: &Range<usize>, prompt: &Range<usize>, column: usize) -> Stack {
        let head = self.transposed.at_row(column - self.shape.queries());
        Stack { prompt: head.at_column(prompt.start), own: head.at_column(run.start) }
    }

    /// The head at `column` as `[token, head_dim]`.
    fn rows(self, run: &Range<usize>, prompt: &Range<usize>, column: usize) -> Stack {
        let head = self.qkv.at_column(column);
        Stack { prompt: head.at_row(prompt.start), own: head.at_row(run.start) }
    }
}

/// Computes `x Mᵀ` for the tokens that a block sees, given `Mᵀ`: `[query, head_dim]` to `[query, key]`.
///
/// # Safety
/// See [`PackedQkv::forward`].
unsafe fn matmul_nt(x: Rows, transposed: Stack, block: &Block, dim: usize, to: RowsMut) {
    let (rows, prompt) = (block.rows.len(), block.prompt.len());
    let term = |weight| Term { left: x, weight: Matrix::F32(weight), depth: dim };
    // SAFETY: the caller's promise.
    unsafe {
        if prompt > 0 {
            gemm_backward_on(Instructions::best(), &[term(transposed.prompt)], 0..rows, 0..prompt, to);
        }
        let own = 0..block.own.len();
        gemm_backward_on(Instructions::best(), &[term(transposed.own)], 0..rows, own, to.at_column(prompt));
    }
}

/// Computes `W M` over the tokens that a block sees: `[query, key]` to `[query, head_dim]`.
///
/// # Safety
/// See [`PackedQkv::forward`].
unsafe fn matmul_nn(weights: Rows, rows: Stack, block: &Block, dim: usize, to: RowsMut) {
    let prompt = block.prompt.len();
    let term = |left, weight, depth| Term { left, weight: Matrix::F32(weight), depth };
    let own = term(weights.at_column(prompt), rows.own, block.own.len());
    // SAFETY: the caller's promise.
    unsafe {
        if prompt > 0 {
            let terms = [term(weights, rows.prompt, prompt), own];
            gemm_backward_on(Instructions::best(), &terms, 0..block.rows.len(), 0..dim, to);
        } else {
            gemm_backward_on(Instructions::best(), &[own], 0..block.rows.len(), 0..dim, to);
        }
    }
}

/// Adds `Wᵀ x` to the rows of the tokens that a block sees.
///
/// # Safety
/// See [`PackedQkv::backward`]; `sums` has space for a row per key.
unsafe fn add_matmul_tn(weights: Rows, x: Rows, block: &Block, sums: RowsMut, to: RowsMut, dim: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        matmul_tn_on(Instructions::best(), weights, block.keys(), x, block.rows.len(), 0..dim, sums);
        for (index, token) in block.prompt.clone().chain(block.own.clone()).enumerate() {
            for (to, sum) in to.slice(token, dim).iter_mut().zip(sums.read().slice(index, dim)) {
                *to += sum;
            }
        }
    }
}
