//! Prefixes that several samples share, and what was drawn there: where a sampling error can be seen at all.
//!
//! A prefix that one sample visits says nothing about frequencies: its empirical distribution is a single token. So the
//! samples of each prompt are laid into a tree, and only its nodes with two visits or more count. With `c(s)` visits of
//! prefix `s`, the empirical distribution `π_D` there and the policy `π`:
//!
//! ```text
//! sampling error = Σ_s c(s) KL(π_D(·|s) ‖ π(·|s)) / Σ_s c(s)
//! ```
//!
//! Samples drawn from π itself have one too, about `(K − 1) / 2c` for K tokens that matter; what such samples would have
//! had with the same visits is the yardstick.

use crate::Result;
use model::Policy;
use model::packed::{Packed, Sequences};
use schema::{Seed, Token};
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Prefixes at most: what is computed for each of them is as wide as the vocabulary.
const MAX_PREFIXES: usize = 256;

/// How often draws from the policy itself are repeated for the yardstick.
const REPEATS: u64 = 8;

/// Visited prefixes and the draws from them.
#[derive(Debug)]
pub struct Visits {
    /// `[prefix, hidden]`: the policy's hidden states.
    pub hidden: Tensor,
    /// `[prefix, vocab]` f32: the policy's log-probabilities at the sampling temperature.
    pub logprobs: Tensor,
    /// Prefix and token of each draw.
    draws: Vec<(usize, Token)>,
}

/// The samples of one prompt, so far.
#[derive(Debug, Clone)]
pub(super) struct Drawn<'a> {
    pub(super) prompt: &'a [Token],
    pub(super) completions: Vec<&'a [Token]>,
}

impl Visits {
    /// Hidden states `[prefix, hidden]`, log-probabilities `[prefix, vocab]`, and the draws: prefix and token of each.
    pub fn new(hidden: Tensor, logprobs: Tensor, draws: Vec<(usize, Token)>) -> Self {
        Self { hidden, logprobs, draws }
    }

    /// The shared prefixes among the first `positions` tokens of these samples (0: all tokens), the most visited first.
    pub(super) fn of(policy: &Policy, drawn: &[Drawn<'_>], temperature: f64, positions: usize) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let limit = if positions == 0 { usize::MAX } else { positions };
        let mut hidden = Vec::new();
        let mut nodes: Vec<Vec<Token>> = Vec::new();
        for group in drawn {
            let completions: Vec<&[Token]> = group.completions.iter().map(|ids| &ids[..ids.len().min(limit)]).collect();
            let shared: Vec<Node> = tree(&completions).into_iter().filter(|node| node.tokens.len() > 1).collect();
            if shared.is_empty() {
                continue;
            }
            let sequences = Sequences { prompt: group.prompt, completions };
            let packed = Packed::new(&[sequences], policy.network().dimensions().vocab, policy.device())?;
            let places: Vec<i64> = shared.iter().map(|node| node.place as i64).collect();
            let places = Tensor::from_slice(&places).to_device(policy.device());
            hidden.push(policy.hidden_states(&packed).index_select(0, &places));
            nodes.extend(shared.into_iter().map(|node| node.tokens));
        }
        if hidden.is_empty() {
            let dimensions = policy.network().dimensions();
            let nothing = |width| Tensor::zeros([0, width], (Kind::Float, policy.device()));
            return Ok(Self::new(nothing(dimensions.hidden), nothing(dimensions.vocab), Vec::new()));
        }
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|node| std::cmp::Reverse(nodes[*node].len()));
        order.truncate(MAX_PREFIXES);
        let kept: Vec<i64> = order.iter().map(|node| *node as i64).collect();
        let hidden = Tensor::cat(&hidden, 0).index_select(0, &Tensor::from_slice(&kept).to_device(policy.device()));
        let logits = policy.logits(&hidden).to_kind(Kind::Float) / temperature;
        let draws =
            order.iter().enumerate().flat_map(|(prefix, node)| nodes[*node].iter().map(move |id| (prefix, *id)));
        Ok(Self::new(hidden, logits.log_softmax(-1, Kind::Float), draws.collect()))
    }

    /// How many prefixes there are.
    pub fn prefixes(&self) -> usize {
        self.hidden.size()[0] as usize
    }

    /// Whether no prefix was visited twice.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// The prefix of each draw, `[draw]` i64.
    pub fn prefix_of_draw(&self) -> Tensor {
        let prefixes: Vec<i64> = self.draws.iter().map(|(prefix, _)| *prefix as i64).collect();
        Tensor::from_slice(&prefixes).to_device(self.logprobs.device())
    }

    /// Of each draw what `table`, `[prefix, vocab]`, says, `[draw]`.
    pub fn at_draws(&self, table: &Tensor) -> Tensor {
        let tokens: Vec<i64> = self.draws.iter().map(|(_, token)| i64::from(*token)).collect();
        let tokens = Tensor::from_slice(&tokens).to_device(table.device()).unsqueeze(1);
        table.index_select(0, &self.prefix_of_draw()).gather(1, &tokens, false).squeeze_dim(1)
    }

    /// The sampling error of the draws, in nats per draw; 0 if there are none.
    pub fn sampling_error(&self) -> f64 {
        self.error_of(&self.draws)
    }

    /// What draws from the policy itself would have had, with as many visits of each prefix: the mean of eight sets.
    pub fn iid_error(&self, seed: &Seed) -> f64 {
        (0..REPEATS).map(|repeat| self.error_of(&self.redrawn(&seed.at(repeat)))).sum::<f64>() / REPEATS as f64
    }

    fn error_of(&self, draws: &[(usize, Token)]) -> f64 {
        let mut counts: HashMap<(usize, Token), f64> = HashMap::new();
        let mut visits = vec![0.0; self.prefixes()];
        for &(prefix, token) in draws {
            *counts.entry((prefix, token)).or_default() += 1.0;
            visits[prefix] += 1.0;
        }
        // In a fixed order, so that the sum is the same in every run.
        let mut counts: Vec<((usize, Token), f64)> = counts.into_iter().collect();
        counts.sort_by_key(|(draw, _)| *draw);
        let each: Vec<(usize, Token)> = counts.iter().map(|(draw, _)| *draw).collect();
        let logprobs =
            Self { hidden: self.hidden.shallow_clone(), logprobs: self.logprobs.shallow_clone(), draws: each };
        let logprobs = logprobs.at_draws(&self.logprobs).to_kind(Kind::Double);
        let logprobs = Vec::<f64>::try_from(&logprobs).expect("log-probabilities are a vector");
        let sum: f64 = counts
            .iter()
            .zip(logprobs)
            .map(|(((prefix, _), count), logprob)| count * ((count / visits[*prefix]).ln() - logprob))
            .sum();
        sum / (draws.len().max(1) as f64)
    }

    /// As many draws from each prefix, by the policy itself.
    fn redrawn(&self, seed: &Seed) -> Vec<(usize, Token)> {
        let mut draws = Vec::with_capacity(self.draws.len());
        for own in self.draws.chunk_by(|a, b| a.0 == b.0) {
            let prefix = own[0].0;
            let cumulative = self.logprobs.get(prefix as i64).exp().cumsum(-1, Kind::Double);
            let uniforms: Vec<f64> = (0..own.len()).map(|draw| seed.uniform((draws.len() + draw) as u64)).collect();
            let total = cumulative.get(-1).double_value(&[]);
            let targets = Tensor::from_slice(&uniforms).to_device(cumulative.device()) * total;
            let last = cumulative.numel() as i64 - 1;
            let tokens = targets.searchsorted(&cumulative, false, true, "right", None::<&Tensor>).clamp_max(last);
            let tokens = Vec::<i64>::try_from(&tokens).expect("tokens are a vector");
            draws.extend(tokens.into_iter().map(|token| (prefix, token as Token)));
        }
        draws
    }
}

/// Where the draws from shared prefixes stand, if these completions lie end to end.
pub(super) fn shared_places(completions: &[&[Token]]) -> Vec<i64> {
    let (nodes, node_of_place) = walk(completions);
    let shared = |(_, node): &(i64, usize)| nodes[*node].tokens.len() > 1;
    (0..).zip(node_of_place).filter(shared).map(|(place, _)| place).collect()
}

/// A prefix: where its hidden state stands among the packed tokens, and the tokens drawn after it.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    place: usize,
    tokens: Vec<Token>,
}

/// Every prefix of these completions, in the order of its first visit.
fn tree(completions: &[&[Token]]) -> Vec<Node> {
    walk(completions).0
}

/// Every prefix, and the prefix that each token was drawn at.
fn walk(completions: &[&[Token]]) -> (Vec<Node>, Vec<usize>) {
    let mut nodes: Vec<Node> = Vec::new();
    let mut node_of_place = Vec::new();
    // A prefix is known by the one before it and the token between; the empty one has neither.
    let mut known: HashMap<Option<(usize, Token)>, usize> = HashMap::new();
    for completion in completions {
        let mut behind = None;
        for token in *completion {
            let place = node_of_place.len();
            let node = *known.entry(behind).or_insert_with(|| {
                nodes.push(Node { place, tokens: Vec::new() });
                nodes.len() - 1
            });
            nodes[node].tokens.push(*token);
            node_of_place.push(node);
            behind = Some((node, *token));
        }
    }
    (nodes, node_of_place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_counted_by_what_follows_them() {
        let nodes = tree(&[&[1, 2], &[1, 3, 4], &[5]]);
        let expected = [(0, vec![1, 1, 5]), (1, vec![2, 3]), (4, vec![4])];
        assert_eq!(nodes, expected.map(|(place, tokens)| Node { place, tokens }));
        assert!(tree(&[&[], &[]]).is_empty());
        assert_eq!(shared_places(&[&[1, 2], &[1, 3, 4], &[5]]), [0, 1, 2, 3, 5]);
    }

    /// Draws by token 0, 1 and 2 at prefixes whose policy has these probabilities.
    fn visits(policy: &[[f64; 3]], counts: &[[usize; 3]]) -> Visits {
        let logprobs: Vec<f64> = policy.iter().flatten().map(|p| p.ln()).collect();
        let logprobs = Tensor::from_slice(&logprobs).reshape([-1, 3]);
        let of_prefix = |(prefix, counts): (usize, &[usize; 3])| {
            let counts = *counts;
            (0..3u32).flat_map(move |token| std::iter::repeat_n((prefix, token), counts[token as usize]))
        };
        let draws = counts.iter().enumerate().flat_map(of_prefix).collect();
        Visits::new(logprobs.shallow_clone(), logprobs, draws)
    }

    #[test]
    fn errors_of_prefixes_are_weighed_by_their_visits() {
        let (first, second) = ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1]);
        let check = |policy: &[[f64; 3]], counts: &[[usize; 3]], expected: f64| {
            let error = visits(policy, counts).sampling_error();
            assert!((error - expected).abs() < 1e-6, "{error}");
        };
        check(&[first], &[[3, 1, 0]], 0.258_518_44);
        check(&[second], &[[2, 1, 0]], 0.137_748_43);
        check(&[first], &[[1, 2, 1]], 0.137_911_9);
        check(&[first, second, first], &[[3, 1, 0], [2, 1, 0], [1, 2, 1]], 0.181_724_24);
        let softmax = [0.546_549_39, 0.331_498_96, 0.121_951_65];
        check(&[softmax], &[[6, 1, 1]], 0.118_508_67);
    }

    #[test]
    fn the_policys_own_draws_have_the_error_that_theory_says() {
        // (K − 1) / 2c = 2 / 200 for three tokens and a hundred draws, averaged over fifty such prefixes.
        let many = visits(&[[0.5, 0.3, 0.2]; 50], &[[100, 0, 0]; 50]);
        let error = many.iid_error(&Seed::new(1));
        assert!((error - 0.01).abs() < 0.002, "{error}");
    }
}
