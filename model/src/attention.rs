//! Attention rules: the seam between networks, which work on packed tokens, and sequences.

use std::cell::OnceCell;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Scaled dot-product attention over packed tokens.
pub trait Attention {
    /// Mixes values by the softmax of `q · k / √head_dim`.
    ///
    /// * `layer`: the index of the decoder layer (caches keep keys and values per layer)
    /// * `q`: `[token, heads, head_dim]`, `k`, `v`: `[token, kv_heads, head_dim]`, all with rotary positions applied
    ///
    /// Returns `[token, heads, head_dim]`.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor;

    /// The groups of the packed tokens, if each token sees the earlier tokens of its own group and nothing else. Our
    /// CPU kernels then replace [`Self::attend`].
    fn groups(&self) -> Option<&[PackedGroup]> {
        None
    }
}

/// The tokens of a prompt and of each completion, in packed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedGroup {
    /// The prompt's tokens; each sees those before it.
    pub prompt: Range<usize>,
    /// Each completion's tokens; they see the prompt and those before them in the same completion.
    pub completions: Vec<Range<usize>>,
}

impl PackedGroup {
    /// The approximate number of pairs of a token and one that it sees.
    pub(crate) fn pairs(&self) -> usize {
        self.runs().map(|(own, prompt)| own.len() * prompt.len() + own.len() * own.len() / 2).sum()
    }

    /// Each run of tokens that see their own past, with the part of the prompt that all of them see.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let nothing = self.prompt.start..self.prompt.start;
        std::iter::once((self.prompt.clone(), nothing))
            .chain(self.completions.iter().map(|own| (own.clone(), self.prompt.clone())))
            .filter(|(own, _)| !own.is_empty())
    }
}

/// Views `[token, head, head_dim]` of one sequence as `[1, head, token, head_dim]`.
fn batched(x: &Tensor) -> Tensor {
    x.transpose(0, 1).unsqueeze(0)
}

/// Views `[1, head, token, head_dim]` as `[token, head, head_dim]`, the reverse of [`batched`].
fn unbatched(x: &Tensor) -> Tensor {
    x.squeeze_dim(0).transpose(0, 1)
}

/// Fused attention over `[batch, head, token, head_dim]`; the keys may have fewer heads than the queries.
fn sdpa(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: Causal) -> Tensor {
    let grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal == Causal::Yes, None, grouped)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Causal {
    Yes,
    No,
}

/// Causal attention inside one sequence of packed tokens, `[token, head, head_dim]`.
pub(crate) fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    unbatched(&sdpa(&batched(q), &batched(k), &batched(v), None, Causal::Yes))
}

/// Attention of one query token per row to the row's cached keys; returns `[row, heads, head_dim]`.
///
/// * `q`: `[row, heads, head_dim]`
/// * `k`, `v`: `[row, token, kv_heads, head_dim]`
/// * `mask`: `[row, 1, 1, token]`, 0 for tokens of the row and -inf for padding
///
/// The query heads that share a key head are rows of one small matrix, so no key is repeated.
pub(crate) fn decode(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let (rows, heads, head_dim) = q.size3().expect("queries are [row, heads, head_dim]");
    let kv_heads = k.size()[2];
    let q = q.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
    sdpa(&q, &k.transpose(1, 2), &v.transpose(1, 2), Some(mask), Causal::No).reshape([rows, heads, head_dim])
}

/// Attention over groups: a prompt, and completions that each see the whole prompt and their own past.
///
/// Our CPU kernels use [`Attention::groups`] and need no padding. libtorch's fused attention, in [`Attention::attend`],
/// takes the completions of one group as a batch, padded to the longest; padded keys lie in every real query's future,
/// so the causal mask hides them.
#[derive(Debug)]
pub struct GroupAttention {
    groups: Vec<PackedGroup>,
    /// The groups in the form of [`Attention::attend`], made on its first call.
    spans: OnceCell<Vec<Span>>,
    device: Device,
    kind: Kind,
}

/// A group: the index of its first token and the length of its prompt, in tokens.
#[derive(Debug)]
struct Span {
    start: i64,
    prompt: i64,
    completions: Option<Completions>,
}

/// The completions of a group as a padded batch.
#[derive(Debug)]
struct Completions {
    tokens: i64,
    count: i64,
    longest: i64,
    /// `[count · longest]` i64: the packed token at each padded index; padding repeats token 0.
    gather: Tensor,
    /// `[tokens]` i64: the padded index of each packed token.
    scatter: Tensor,
    /// `[longest, prompt + longest]`: 0 or -inf.
    mask: Tensor,
}

impl GroupAttention {
    /// Attention over groups given by the number of tokens of their prompt and of each completion, in packed order.
    ///
    /// * `kind`: the format of activations
    pub fn new(groups: &[(usize, Vec<usize>)], device: Device, kind: Kind) -> Self {
        let mut end = 0;
        let mut take = |count: usize| {
            let start = end;
            end += count;
            start..end
        };
        let groups = groups
            .iter()
            .map(|(prompt, completions)| PackedGroup {
                prompt: take(*prompt),
                completions: completions.iter().map(|tokens| take(*tokens)).collect(),
            })
            .collect();
        Self { groups, spans: OnceCell::new(), device, kind }
    }

    fn spans(&self) -> &[Span] {
        self.spans.get_or_init(|| {
            let span = |group: &PackedGroup| {
                let prompt = group.prompt.len() as i64;
                let lengths: Vec<usize> = group.completions.iter().map(ExactSizeIterator::len).collect();
                let completions = Completions::new(prompt, &lengths, self.device, self.kind);
                Span { start: group.prompt.start as i64, prompt, completions }
            };
            self.groups.iter().map(span).collect()
        })
    }
}

impl Completions {
    fn new(prompt: i64, lengths: &[usize], device: Device, kind: Kind) -> Option<Self> {
        let longest = *lengths.iter().max().filter(|longest| **longest > 0)?;
        let mut gather = vec![0i64; lengths.len() * longest];
        let mut scatter = Vec::new();
        for (row, &length) in lengths.iter().enumerate() {
            for token in 0..length {
                gather[row * longest + token] = scatter.len() as i64;
                scatter.push((row * longest + token) as i64);
            }
        }
        let longest = longest as i64;
        let future = Tensor::full([longest, longest], f64::NEG_INFINITY, (kind, device)).triu(1);
        let mask = Tensor::cat(&[Tensor::zeros([longest, prompt], (kind, device)), future], 1);
        Some(Self {
            tokens: scatter.len() as i64,
            count: lengths.len() as i64,
            longest,
            gather: Tensor::from_slice(&gather).to_device(device),
            scatter: Tensor::from_slice(&scatter).to_device(device),
            mask,
        })
    }

    /// Mixes values of the completions of `span`; packed `[token, head, head_dim]` as in [`Attention::attend`].
    fn attend(&self, span: &Span, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let packed = |x: &Tensor| x.narrow(0, span.start + span.prompt, self.tokens);
        // [token, head, dim] -> [count, head, longest, dim]
        let padded = |x: &Tensor| {
            let size = x.size();
            packed(x)
                .index_select(0, &self.gather)
                .reshape([self.count, self.longest, size[1], size[2]])
                .transpose(1, 2)
        };
        let with_prompt = |x: &Tensor| {
            let own = padded(x);
            let prompt = batched(&x.narrow(0, span.start, span.prompt));
            let size = own.size();
            Tensor::cat(&[prompt.expand([size[0], size[1], span.prompt, size[3]], false), own], 2)
        };
        let mixed = sdpa(&padded(q), &with_prompt(k), &with_prompt(v), Some(&self.mask), Causal::No);
        let size = mixed.size();
        mixed.transpose(1, 2).reshape([self.count * self.longest, size[1], size[3]]).index_select(0, &self.scatter)
    }
}

impl Attention for GroupAttention {
    fn attend(&mut self, _layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let spans = self.spans();
        let mut mixed = Vec::with_capacity(2 * spans.len());
        for span in spans {
            let prompt = |x: &Tensor| x.narrow(0, span.start, span.prompt);
            mixed.push(causal(&prompt(q), &prompt(k), &prompt(v)));
            if let Some(completions) = &span.completions {
                mixed.push(completions.attend(span, q, k, v));
            }
        }
        Tensor::cat(&mixed, 0)
    }

    fn groups(&self) -> Option<&[PackedGroup]> {
        Some(&self.groups)
    }
}
