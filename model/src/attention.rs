//! Which token may see which: the seam between networks, which work on packed tokens, and sequences.

use std::cell::OnceCell;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Scaled dot-product attention over packed tokens.
pub trait Attention {
    /// Mixes values by the softmax of `q · k / √head_dim`.
    ///
    /// * `layer`: which decoder layer asks (caches keep keys and values per layer)
    /// * `q`: `[token, heads, head_dim]`, `k`, `v`: `[token, kv_heads, head_dim]`, all with rotary positions applied
    ///
    /// Returns `[token, heads, head_dim]`.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor;

    /// The groups that the packed tokens are, if each token sees those of its own group before it and nothing else: then
    /// there is a shorter way than [`Self::attend`] on some devices.
    fn groups(&self) -> Option<&[PackedGroup]> {
        None
    }
}

/// The tokens of a prompt and of each completion, in packed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedGroup {
    /// The prompt's, each of which sees those before it.
    pub prompt: Range<usize>,
    /// Each completion's, which see the prompt and those before them in the same completion.
    pub completions: Vec<Range<usize>>,
}

impl PackedGroup {
    /// Pairs of a token and one that it sees, about.
    pub(crate) fn pairs(&self) -> usize {
        self.runs().map(|(own, prompt)| own.len() * prompt.len() + own.len() * own.len() / 2).sum()
    }

    /// Each run of tokens that see their own past, and how much of the prompt they all see.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let nothing = self.prompt.start..self.prompt.start;
        std::iter::once((self.prompt.clone(), nothing))
            .chain(self.completions.iter().map(|own| (own.clone(), self.prompt.clone())))
            .filter(|(own, _)| !own.is_empty())
    }
}

/// `[token, head, head_dim]` of one sequence as `[1, head, token, head_dim]`.
fn batched(x: &Tensor) -> Tensor {
    x.transpose(0, 1).unsqueeze(0)
}

/// The reverse of [`batched`].
fn unbatched(x: &Tensor) -> Tensor {
    x.squeeze_dim(0).transpose(0, 1)
}

/// Fused attention where the keys have fewer heads than the queries.
fn sdpa(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: Causal) -> Tensor {
    let grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal == Causal::Yes, None, grouped)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Causal {
    Yes,
    No,
}

/// Causal attention inside one sequence of packed tokens.
pub(crate) fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    unbatched(&sdpa(&batched(q), &batched(k), &batched(v), None, Causal::Yes))
}

/// One query token per row against the row's cached keys.
///
/// * `q`: `[row, heads, head_dim]`
/// * `k`, `v`: `[row, token, kv_heads, head_dim]`
/// * `mask`: `[row, 1, 1, token]`, 0 where the row has a token and -inf where it has none
///
/// The query heads that share a key head stand as rows of one small matrix, so no key is repeated.
pub(crate) fn decode(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let (rows, heads, head_dim) = q.size3().expect("queries are [row, heads, head_dim]");
    let kv_heads = k.size()[2];
    let q = q.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
    sdpa(&q, &k.transpose(1, 2), &v.transpose(1, 2), Some(mask), Causal::No).reshape([rows, heads, head_dim])
}

/// Attention over groups: a prompt, and completions that each see the whole prompt and their own past.
///
/// The linear layers never see padding. Only here, completions of one group stand side by side, padded to the longest;
/// padded keys lie in every real query's future, so the causal mask hides them.
#[derive(Debug)]
pub struct GroupAttention {
    groups: Vec<PackedGroup>,
    /// The same for [`Attention::attend`], when it is first asked for.
    spans: OnceCell<Vec<Span>>,
    device: Device,
    kind: Kind,
}

#[derive(Debug)]
struct Span {
    start: i64,
    prompt: i64,
    completions: Option<Completions>,
}

#[derive(Debug)]
struct Completions {
    tokens: i64,
    count: i64,
    longest: i64,
    /// `[count · longest]` the packed token at each padded place; padding repeats token 0.
    gather: Tensor,
    /// `[tokens]` the padded place of each packed token.
    scatter: Tensor,
    /// `[longest, prompt + longest]` 0 or -inf.
    mask: Tensor,
}

impl GroupAttention {
    /// One entry per group: the tokens of its prompt and of each completion, in packed order, prompt first.
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
            for place in 0..length {
                gather[row * longest + place] = scatter.len() as i64;
                scatter.push((row * longest + place) as i64);
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
