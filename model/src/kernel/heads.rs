//! Attention over packed groups for training and scoring, and its gradient, without padding and without copies.
//!
//! A group is a prompt, and completions that each see the whole prompt and their own past. Queries, keys and values lie
//! side by side in one sheet, as the fused layer wrote them. For a block of queries of one head, with `s = 1 / √head_dim`,
//!
//! ```text
//! P = softmax(s Q Kᵀ)     O = P V
//! ∂P = ∂O Vᵀ     ∂S = s P ∘ (∂P − rowsum(∂O ∘ O))     ∂Q = ∂S K     ∂K = ∂Sᵀ Q     ∂V = Pᵀ ∂O
//! ```
//!
//! Only the logarithm of each row's sum is kept for the way back, as by Dao et al. 2022 (`FlashAttention`, arXiv 2205.14135):
//! `P` is computed again.

use super::lanes::Instructions;
use super::panel::{self, Term};
use super::product::members;
use super::row::{Sizes, slopes_on, softmax_on};
use super::sheet::by_rows;
use super::team::together;
use super::thin::gathered_on;
use super::{Matrix, Rows, RowsMut};
use crate::attention::PackedGroup;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Kind, Tensor};

/// How the columns of a sheet are divided: queries, then keys, then values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl HeadShape {
    fn queries(self) -> usize {
        self.heads * self.head_dim
    }

    fn width(self) -> usize {
        self.queries() + 2 * self.kv_heads * self.head_dim
    }

    /// The columns of a key head, and of its values.
    fn key_and_value(self, kv_head: usize) -> (usize, usize) {
        let key = self.queries() + kv_head * self.head_dim;
        (key, key + self.kv_heads * self.head_dim)
    }

    /// How many query heads share a key head.
    fn shared(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Queries that are taken together.
const BLOCK: usize = 64;

/// Mixed values, `[token, heads · head_dim]`, and the logarithm of each sum of the softmax, `[token, heads]`.
///
/// * `qkv`: `[token, (heads + 2 kv_heads) · head_dim]`, turned by their positions
pub(crate) fn attend(qkv: &Tensor, groups: &[PackedGroup], shape: HeadShape) -> (Tensor, Tensor) {
    let tokens = qkv.size()[0];
    let empty = |width: usize| Tensor::empty([tokens, width as i64], (Kind::Float, qkv.device()));
    let (mixed, logs) = (empty(shape.queries()), empty(shape.heads));
    let turned = turned(qkv, shape.queries(), shape.kv_heads * shape.head_dim);
    let sheet = Sheet { shape, qkv: Rows::of(qkv), turned: Rows::of(&turned) };
    let (to, log_sums) = (RowsMut::of_tensor(&mixed, shape.queries()), RowsMut::of_tensor(&logs, shape.heads));
    by_heads(groups, shape, |group, head, room| {
        // SAFETY: each task writes the columns of its own head in the rows of its own group.
        unsafe { sheet.forward(group, head, room, to, log_sums) }
    });
    (mixed, logs)
}

/// The gradient of [`attend`] with respect to `qkv`, given that of the mixed values.
pub(crate) fn attend_gradient(
    qkv: &Tensor,
    mixed: &Tensor,
    logs: &Tensor,
    by_mixed: &Tensor,
    groups: &[PackedGroup],
    shape: HeadShape,
) -> Tensor {
    let (by_qkv, tokens, dim) = (qkv.empty_like(), qkv.size()[0], shape.head_dim);
    let turned = turned(qkv, shape.queries(), 2 * shape.kv_heads * dim);
    let sheet = Sheet { shape, qkv: Rows::of(qkv), turned: Rows::of(&turned) };
    let behind = Behind { mixed: Rows::of(mixed), logs: Rows::of(logs), by_mixed: Rows::of(by_mixed) };
    let to = RowsMut::of_tensor(&by_qkv, shape.width());
    // What each query head says of the keys and values that it shares with others: `[token, head, 2, head_dim]`.
    let each = Tensor::zeros([tokens, 2 * shape.queries() as i64], (Kind::Float, qkv.device()));
    let parts = RowsMut::of_tensor(&each, 2 * shape.queries());
    by_heads(groups, shape, |group, head, room| {
        // SAFETY: as above; a group's keys are its own, and each head has columns of its own for what it says of them.
        unsafe { sheet.backward(group, head, room, &behind, to, parts.at_column(2 * head * dim)) }
    });
    by_rows(tokens as usize, 2 * shape.queries(), |token| {
        for kv_head in 0..shape.kv_heads {
            let (key, value) = shape.key_and_value(kv_head);
            for (column, place) in [(key, 0), (value, dim)] {
                // SAFETY: columns that no task above has written, in a row that one thread writes.
                let sum = unsafe { to.at_column(column).slice(token, dim) };
                sum.fill(0.0);
                for head in kv_head * shape.shared()..(kv_head + 1) * shape.shared() {
                    // SAFETY: nobody writes to it any more.
                    let part = unsafe { parts.read().at_column(2 * head * dim + place).slice(token, dim) };
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            }
        }
    });
    by_qkv
}

/// `width` columns of a sheet from `first` on, as `[column, token]`.
fn turned(qkv: &Tensor, first: usize, width: usize) -> Tensor {
    qkv.narrow(1, first as i64, width as i64).tr().contiguous()
}

/// Runs `work` for every query head of every group; threads take what is next.
fn by_heads(groups: &[PackedGroup], shape: HeadShape, work: impl Fn(&PackedGroup, usize, &mut Room) + Sync) {
    let tasks = groups.len() * shape.heads;
    let pairs = groups.iter().map(PackedGroup::pairs).sum::<usize>();
    let next = AtomicUsize::new(0);
    together(members(pairs * shape.queries()).min(tasks.max(1)), |_, _| {
        let mut room = Room::default();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(&groups[task / shape.heads], task % shape.heads, &mut room);
        }
    });
}

/// What a thread works in; grows as needed.
#[derive(Default)]
struct Room {
    /// `P`, `[query, key]`, prompt first.
    weights: Vec<f32>,
    /// `∂P`, then `∂S`.
    slopes: Vec<f32>,
    /// A block's part of `∂K` or `∂V`, `[key, head_dim]`.
    sums: Vec<f32>,
}

/// At least `count` numbers.
fn grown(buffer: &mut Vec<f32>, count: usize) -> *mut f32 {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    buffer.as_mut_ptr()
}

/// What the way back starts from.
struct Behind {
    mixed: Rows,
    logs: Rows,
    by_mixed: Rows,
}

/// Some queries of one head and what they see.
#[derive(Clone)]
struct Block {
    /// The queries' tokens.
    rows: Range<usize>,
    /// The tokens of their own run up to the last of them, and those of the prompt.
    own: Range<usize>,
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

    /// How many keys a query sees.
    fn seen(&self, row: usize) -> usize {
        self.prompt.len() + (self.rows.start - self.own.start) + row + 1
    }
}

#[derive(Clone, Copy)]
struct Sheet {
    shape: HeadShape,
    qkv: Rows,
    /// Keys and, on the way back, values: `[column, token]`.
    turned: Rows,
}

/// Two matrices, of the prompt's tokens and of a run's own.
#[derive(Clone, Copy)]
struct Stack {
    prompt: Rows,
    own: Rows,
}

impl Sheet {
    /// # Safety
    /// The group's tokens are rows of all sheets, and nobody else uses this head's columns of `to` and `logs` in them.
    unsafe fn forward(self, group: &PackedGroup, head: usize, room: &mut Room, to: RowsMut, logs: RowsMut) {
        let (shape, dim) = (self.shape, self.shape.head_dim);
        let (key, value) = shape.key_and_value(head / shape.shared());
        // SAFETY: the caller's promise.
        unsafe {
            for (run, prompt) in group.runs() {
                let keys = self.transposed(&run, &prompt, key);
                let values = self.upright(&run, &prompt, value);
                for block in Block::of(&run, &prompt) {
                    let weights =
                        RowsMut { first: grown(&mut room.weights, BLOCK * block.keys()), stride: block.keys() };
                    let queries = self.qkv.at_column(head * dim).at_row(block.rows.start);
                    across(queries, keys, &block, dim, weights);
                    for row in 0..block.rows.len() {
                        let sum = logs.at_column(head).row(block.rows.start + row);
                        let seen = block.seen(row);
                        softmax_on(Instructions::best(), weights.row(row), seen, block.keys(), shape.scale(), sum);
                    }
                    down(weights.read(), values, &block, dim, to.at_column(head * dim).at_row(block.rows.start));
                }
            }
        }
    }

    /// # Safety
    /// As for [`Self::forward`]; the first `2 head_dim` columns of `part`, for keys and for values, too.
    unsafe fn backward(
        self,
        group: &PackedGroup,
        head: usize,
        room: &mut Room,
        behind: &Behind,
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
                let upright = self.upright(&run, &prompt, key);
                for block in Block::of(&run, &prompt) {
                    let count = BLOCK * block.keys();
                    let weights = RowsMut { first: grown(&mut room.weights, count), stride: block.keys() };
                    let slopes = RowsMut { first: grown(&mut room.slopes, count), stride: block.keys() };
                    let at = |rows: Rows| rows.at_column(head * dim).at_row(block.rows.start);
                    let (queries, by_mixed, mixed) = (at(self.qkv), at(behind.by_mixed), at(behind.mixed));
                    across(queries, keys, &block, dim, weights);
                    across(by_mixed, values, &block, dim, slopes);
                    for row in 0..block.rows.len() {
                        let log_sum = *behind.logs.at_column(head).row(block.rows.start + row);
                        let seen = block.seen(row);
                        let sizes = Sizes { scale: shape.scale(), log_sum, seen, keys: block.keys(), dim };
                        let (p, s) = (weights.row(row), slopes.row(row));
                        slopes_on(Instructions::best(), p, s, by_mixed.row(row), mixed.row(row), &sizes);
                    }
                    down(slopes.read(), upright, &block, dim, to.at_column(head * dim).at_row(block.rows.start));
                    let sums = RowsMut { first: grown(&mut room.sums, block.keys() * dim), stride: dim };
                    add_gathered(slopes.read(), queries, &block, sums, part, dim);
                    add_gathered(weights.read(), by_mixed, &block, sums, part.at_column(dim), dim);
                }
            }
        }
    }

    /// The head at `column` as `[head_dim, token]`.
    fn transposed(self, run: &Range<usize>, prompt: &Range<usize>, column: usize) -> Stack {
        let head = self.turned.at_row(column - self.shape.queries());
        Stack { prompt: head.at_column(prompt.start), own: head.at_column(run.start) }
    }

    /// The head at `column` as it lies, `[token, head_dim]`.
    fn upright(self, run: &Range<usize>, prompt: &Range<usize>, column: usize) -> Stack {
        let head = self.qkv.at_column(column);
        Stack { prompt: head.at_row(prompt.start), own: head.at_row(run.start) }
    }
}

/// `x Mᵀ` for what a block sees, given `Mᵀ`: `[query, head_dim]` to `[query, key]`.
///
/// # Safety
/// See [`Sheet::forward`].
unsafe fn across(x: Rows, transposed: Stack, block: &Block, dim: usize, to: RowsMut) {
    let (rows, prompt) = (block.rows.len(), block.prompt.len());
    let term = |weight| Term { left: x, weight: Matrix::Full(weight), depth: dim };
    // SAFETY: the caller's promise.
    unsafe {
        if prompt > 0 {
            panel::multiply_on(Instructions::best(), &[term(transposed.prompt)], 0..rows, 0..prompt, to);
        }
        let own = 0..block.own.len();
        panel::multiply_on(Instructions::best(), &[term(transposed.own)], 0..rows, own, to.at_column(prompt));
    }
}

/// `W M` over what a block sees: `[query, key]` to `[query, head_dim]`.
///
/// # Safety
/// See [`Sheet::forward`].
unsafe fn down(weights: Rows, upright: Stack, block: &Block, dim: usize, to: RowsMut) {
    let prompt = block.prompt.len();
    let term = |left, weight, depth| Term { left, weight: Matrix::Full(weight), depth };
    let own = term(weights.at_column(prompt), upright.own, block.own.len());
    // SAFETY: the caller's promise.
    unsafe {
        if prompt > 0 {
            let terms = [term(weights, upright.prompt, prompt), own];
            panel::multiply_on(Instructions::best(), &terms, 0..block.rows.len(), 0..dim, to);
        } else {
            panel::multiply_on(Instructions::best(), &[own], 0..block.rows.len(), 0..dim, to);
        }
    }
}

/// Adds `Wᵀ x` to the rows of the tokens that a block sees.
///
/// # Safety
/// See [`Sheet::backward`]; `sums` has room for a row for each key.
unsafe fn add_gathered(weights: Rows, x: Rows, block: &Block, sums: RowsMut, to: RowsMut, dim: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        gathered_on(Instructions::best(), weights, block.keys(), x, block.rows.len(), 0..dim, sums);
        for (place, token) in block.prompt.clone().chain(block.own.clone()).enumerate() {
            for (to, sum) in to.slice(token, dim).iter_mut().zip(sums.read().slice(place, dim)) {
                *to += sum;
            }
        }
    }
}
