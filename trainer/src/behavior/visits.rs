//! Prefixes that several samples share, and the tokens sampled there: the places where a sampling error can be
//! measured.
//!
//! A prefix that one sample visits carries no information on frequencies: its empirical distribution is a single token.
//! So the samples of each prompt form a tree, and only its nodes with two visits or more count. With `c(s)` visits of
//! prefix `s`, the empirical distribution `π_D` there and the policy `π`:
//!
//! ```text
//! sampling error = Σ_s c(s) KL(π_D(·|s) ‖ π(·|s)) / Σ_s c(s)
//! ```
//!
//! Independent samples from π have an error too, about `(K − 1) / 2c` for K relevant tokens; the expected error of
//! independent samples with the same visits is the yardstick.

use crate::Result;
use model::Policy;
use model::packed::{Packed, Sequences};
use schema::{Seed, Token};
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Largest number of prefixes: the results for each of them are as wide as the vocabulary.
const MAX_PREFIXES: usize = 256;

/// Number of independent sets of samples that the yardstick averages over.
const REPEATS: u64 = 8;

/// Visited prefixes and the tokens sampled there.
#[derive(Debug)]
pub struct Visits {
    /// Hidden states of the policy, `[prefix, hidden]`.
    pub hidden: Tensor,
    /// Log-probabilities of the policy at the sampling temperature, `[prefix, vocab]` f32.
    pub logprobs: Tensor,
    /// Each sampled token with the index of its prefix.
    sampled: Vec<(usize, Token)>,
}

/// The samples of one prompt so far.
#[derive(Debug, Clone)]
pub(super) struct PromptSamples<'a> {
    pub(super) prompt: &'a [Token],
    pub(super) completions: Vec<&'a [Token]>,
}

impl Visits {
    /// Returns visits with these hidden states `[prefix, hidden]` and log-probabilities `[prefix, vocab]`; `sampled`
    /// holds each sampled token with the index of its prefix.
    pub fn new(hidden: Tensor, logprobs: Tensor, sampled: Vec<(usize, Token)>) -> Self {
        Self { hidden, logprobs, sampled }
    }

    /// Finds the shared prefixes among the first `positions` tokens of these samples (0: all tokens), the most visited
    /// first.
    pub(super) fn of(
        policy: &Policy,
        sampled: &[PromptSamples<'_>],
        temperature: f64,
        positions: usize,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let limit = if positions == 0 { usize::MAX } else { positions };
        let mut hidden = Vec::new();
        let mut nodes: Vec<Vec<Token>> = Vec::new();
        for group in sampled {
            let completions: Vec<&[Token]> = group.completions.iter().map(|ids| &ids[..ids.len().min(limit)]).collect();
            let shared: Vec<Node> = tree(&completions).into_iter().filter(|node| node.tokens.len() > 1).collect();
            if shared.is_empty() {
                continue;
            }
            let sequences = Sequences { prompt: group.prompt, completions };
            let packed = Packed::new(&[sequences], policy.network().dimensions().vocab, policy.device())?;
            let indices: Vec<i64> = shared.iter().map(|node| node.index as i64).collect();
            let indices = Tensor::from_slice(&indices).to_device(policy.device());
            hidden.push(policy.hidden_states(&packed).index_select(0, &indices));
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
        let tokens =
            order.iter().enumerate().flat_map(|(prefix, node)| nodes[*node].iter().map(move |id| (prefix, *id)));
        Ok(Self::new(hidden, logits.log_softmax(-1, Kind::Float), tokens.collect()))
    }

    /// Returns the number of prefixes.
    pub fn prefixes(&self) -> usize {
        self.hidden.size()[0] as usize
    }

    /// Returns true if no prefix was visited twice.
    pub fn is_empty(&self) -> bool {
        self.sampled.is_empty()
    }

    /// Returns the index of the prefix of each sampled token, `[token]` i64.
    pub fn prefix_of_token(&self) -> Tensor {
        let prefixes: Vec<i64> = self.sampled.iter().map(|(prefix, _)| *prefix as i64).collect();
        Tensor::from_slice(&prefixes).to_device(self.logprobs.device())
    }

    /// Selects the entry of each sampled token from `table`, `[prefix, vocab]`; returns `[token]`.
    pub fn at_tokens(&self, table: &Tensor) -> Tensor {
        let tokens: Vec<i64> = self.sampled.iter().map(|(_, token)| i64::from(*token)).collect();
        let tokens = Tensor::from_slice(&tokens).to_device(table.device()).unsqueeze(1);
        table.index_select(0, &self.prefix_of_token()).gather(1, &tokens, false).squeeze_dim(1)
    }

    /// Returns the sampling error, in nats per sampled token; 0 if there are no tokens.
    pub fn sampling_error(&self) -> f64 {
        self.error_of(&self.sampled)
    }

    /// Returns the expected sampling error of independent samples from the policy with the same visits, in nats per
    /// sampled token: the mean over eight sets.
    pub fn iid_error(&self, seed: &Seed) -> f64 {
        (0..REPEATS).map(|repeat| self.error_of(&self.resampled(&seed.at(repeat)))).sum::<f64>() / REPEATS as f64
    }

    fn error_of(&self, sampled: &[(usize, Token)]) -> f64 {
        let mut counts: HashMap<(usize, Token), f64> = HashMap::new();
        let mut visits = vec![0.0; self.prefixes()];
        for &(prefix, token) in sampled {
            *counts.entry((prefix, token)).or_default() += 1.0;
            visits[prefix] += 1.0;
        }
        // In a fixed order, so that the sum is the same in every run.
        let mut counts: Vec<((usize, Token), f64)> = counts.into_iter().collect();
        counts.sort_by_key(|(token, _)| *token);
        let each: Vec<(usize, Token)> = counts.iter().map(|(token, _)| *token).collect();
        let logprobs =
            Self { hidden: self.hidden.shallow_clone(), logprobs: self.logprobs.shallow_clone(), sampled: each };
        let logprobs = logprobs.at_tokens(&self.logprobs).to_kind(Kind::Double);
        let logprobs = Vec::<f64>::try_from(&logprobs).expect("log-probabilities are a vector");
        let sum: f64 = counts
            .iter()
            .zip(logprobs)
            .map(|(((prefix, _), count), logprob)| count * ((count / visits[*prefix]).ln() - logprob))
            .sum();
        sum / (sampled.len().max(1) as f64)
    }

    /// Samples as many tokens at each prefix from the policy itself.
    fn resampled(&self, seed: &Seed) -> Vec<(usize, Token)> {
        let mut sampled = Vec::with_capacity(self.sampled.len());
        for own in self.sampled.chunk_by(|a, b| a.0 == b.0) {
            let prefix = own[0].0;
            let cumulative = self.logprobs.get(prefix as i64).exp().cumsum(-1, Kind::Double);
            let uniforms: Vec<f64> = (0..own.len()).map(|index| seed.uniform((sampled.len() + index) as u64)).collect();
            let total = cumulative.get(-1).double_value(&[]);
            let targets = Tensor::from_slice(&uniforms).to_device(cumulative.device()) * total;
            let last = cumulative.numel() as i64 - 1;
            let tokens = targets.searchsorted(&cumulative, false, true, "right", None::<&Tensor>).clamp_max(last);
            let tokens = Vec::<i64>::try_from(&tokens).expect("tokens are a vector");
            sampled.extend(tokens.into_iter().map(|token| (prefix, token as Token)));
        }
        sampled
    }
}

/// Returns the indices of the tokens sampled at shared prefixes, among the concatenated completions.
pub(super) fn shared_indices(completions: &[&[Token]]) -> Vec<i64> {
    let (nodes, node_of_token) = walk(completions);
    let shared = |(_, node): &(i64, usize)| nodes[*node].tokens.len() > 1;
    (0..).zip(node_of_token).filter(shared).map(|(index, _)| index).collect()
}

/// A prefix: the index of its hidden state among the packed tokens, and the tokens sampled after it.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    index: usize,
    tokens: Vec<Token>,
}

/// Returns every prefix of these completions, in the order of its first visit.
fn tree(completions: &[&[Token]]) -> Vec<Node> {
    walk(completions).0
}

/// Returns every prefix, and for each token the index of the prefix at which it was sampled.
fn walk(completions: &[&[Token]]) -> (Vec<Node>, Vec<usize>) {
    let mut nodes: Vec<Node> = Vec::new();
    let mut node_of_token = Vec::new();
    // A prefix is identified by the one before it and the token between; the empty one has neither.
    let mut known: HashMap<Option<(usize, Token)>, usize> = HashMap::new();
    for completion in completions {
        let mut behind = None;
        for token in *completion {
            let index = node_of_token.len();
            let node = *known.entry(behind).or_insert_with(|| {
                nodes.push(Node { index, tokens: Vec::new() });
                nodes.len() - 1
            });
            nodes[node].tokens.push(*token);
            node_of_token.push(node);
            behind = Some((node, *token));
        }
    }
    (nodes, node_of_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_counted_by_what_follows_them() {
        let nodes = tree(&[&[1, 2], &[1, 3, 4], &[5]]);
        let expected = [(0, vec![1, 1, 5]), (1, vec![2, 3]), (4, vec![4])];
        assert_eq!(nodes, expected.map(|(index, tokens)| Node { index, tokens }));
        assert!(tree(&[&[], &[]]).is_empty());
        assert_eq!(shared_indices(&[&[1, 2], &[1, 3, 4], &[5]]), [0, 1, 2, 3, 5]);
    }

    /// Samples of the tokens 0, 1 and 2, by count, at prefixes with these probabilities under the policy.
    fn visits(policy: &[[f64; 3]], counts: &[[usize; 3]]) -> Visits {
        let logprobs: Vec<f64> = policy.iter().flatten().map(|p| p.ln()).collect();
        let logprobs = Tensor::from_slice(&logprobs).reshape([-1, 3]);
        let of_prefix = |(prefix, counts): (usize, &[usize; 3])| {
            let counts = *counts;
            (0..3u32).flat_map(move |token| std::iter::repeat_n((prefix, token), counts[token as usize]))
        };
        let sampled = counts.iter().enumerate().flat_map(of_prefix).collect();
        Visits::new(logprobs.shallow_clone(), logprobs, sampled)
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
        // (K − 1) / 2c = 2 / 200 for three tokens and a hundred samples, averaged over fifty such prefixes.
        let many = visits(&[[0.5, 0.3, 0.2]; 50], &[[100, 0, 0]; 50]);
        let error = many.iid_error(&Seed::new(1));
        assert!((error - 0.01).abs() < 0.002, "{error}");
    }
}
