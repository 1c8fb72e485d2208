//! The most likely tokens beside each sampled one, and the log-probabilities of a prompt's own tokens.
//!
//! Only requests of the daemon ask for either. A trainer needs the log-probability of the sampled token alone, so
//! nothing is computed here for its requests. Probabilities are those of the raw softmax at the sampling temperature, as
//! for sampled tokens.

use super::{Engine, Row};
use model::cache::Prefill;
use schema::Token;
use tch::{Kind, Tensor};

/// The log-probability of a prompt token, given the tokens before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogprob {
    /// Log-probability of the token.
    pub logprob: f32,
    /// Rank of the token in the vocabulary, from 1 for the most likely.
    pub rank: usize,
    /// The most likely tokens at this position with their log-probabilities, most likely first.
    pub top_logprobs: Vec<(Token, f32)>,
}

/// Elements in one chunk of a prompt's logits: 16 MiB of f32.
const CHUNK_ELEMENTS: i64 = 1 << 22;

impl Engine {
    /// Computes the log-probabilities of all tokens but the first, each with the `count` most likely tokens of its
    /// position. Returns one entry less than `ids`; none if `ids` is empty.
    pub fn prompt_logprobs(&self, ids: &[Token], temperature: f64, count: usize) -> Vec<PromptLogprob> {
        let _no_grad = tch::no_grad_guard();
        let (Some((_, targets)), true) = (ids.split_first(), ids.len() > 1) else { return Vec::new() };
        let inputs: Vec<i64> = ids[..targets.len()].iter().map(|id| i64::from(*id)).collect();
        let positions: Vec<i64> = (0..inputs.len() as i64).collect();
        let mut attention = Prefill::new(&[inputs.len()]);
        let hidden = self.forward(&self.policy, &inputs, &positions, &mut attention);
        let size = (CHUNK_ELEMENTS / self.policy.network().dimensions().vocab.max(1)).max(1);
        let mut entries = Vec::with_capacity(targets.len());
        for (chunk, start) in targets.chunks(size as usize).zip((0..).step_by(size as usize)) {
            let logits = self.policy.logits(&hidden.narrow(0, start, chunk.len() as i64)).to_kind(Kind::Float);
            let logprobs = (logits / temperature).log_softmax(-1, Kind::Float);
            let wanted = self.tensor(&chunk.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(1);
            let own = logprobs.gather(1, &wanted, false);
            let above = logprobs.gt_tensor(&own).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
            let above = Vec::<i64>::try_from(&above).expect("counts are a vector of i64");
            let own = Vec::<f32>::try_from(&own.squeeze_dim(1)).expect("log-probabilities are a vector of f32");
            let positions = own.into_iter().zip(above).zip(top(&logprobs, count));
            entries.extend(positions.map(|((logprob, above), top_logprobs)| PromptLogprob {
                logprob: logprob.min(0.0),
                rank: above as usize + 1,
                top_logprobs,
            }));
        }
        entries
    }

    /// Returns the most likely tokens of each row of `logits`, `[row, vocab]`: as many as the row's request asks for.
    pub(super) fn top_logprobs(&self, logits: &Tensor, rows: &[Row]) -> Vec<Vec<(Token, f32)>> {
        let mut tops = vec![Vec::new(); rows.len()];
        let asked: Vec<usize> = rows.iter().map(|row| self.requests[&row.id.request].top_logprobs).collect();
        let indices: Vec<i64> = (0..).zip(&asked).filter(|(_, count)| **count > 0).map(|(index, _)| index).collect();
        let Some(most) = asked.iter().max().filter(|_| !indices.is_empty()) else { return tops };
        let temperature = |index: &i64| {
            let request = &self.requests[&rows[*index as usize].id.request];
            request.settings.logprob_temperature() as f32
        };
        let temperatures: Vec<f32> = indices.iter().map(temperature).collect();
        let temperatures = Tensor::from_slice(&temperatures).to_device(logits.device()).unsqueeze(1);
        let logits = logits.index_select(0, &self.tensor(&indices)).to_kind(Kind::Float) / temperatures;
        for (index, mut tokens) in indices.into_iter().zip(top(&logits.log_softmax(-1, Kind::Float), *most)) {
            tokens.truncate(asked[index as usize]);
            tops[index as usize] = tokens;
        }
        tops
    }
}

/// Returns the `count` largest entries of each row of log-probabilities, `[row, vocab]`, largest first.
fn top(logprobs: &Tensor, count: usize) -> Vec<Vec<(Token, f32)>> {
    let (rows, vocab) = logprobs.size2().expect("log-probabilities are a matrix");
    let count = (count as i64).min(vocab);
    if count == 0 {
        return vec![Vec::new(); rows as usize];
    }
    let (values, tokens) = logprobs.topk(count, -1, true, true);
    let values = Vec::<f32>::try_from(values.reshape([-1])).expect("log-probabilities are a vector of f32");
    let tokens = Vec::<i64>::try_from(tokens.reshape([-1])).expect("tokens are a vector of i64");
    let pairs: Vec<(Token, f32)> =
        tokens.into_iter().zip(values).map(|(token, value)| (token as Token, value.min(0.0))).collect();
    pairs.chunks(count as usize).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{policy, requests, settings};
    use super::super::{Event, Request};
    use super::*;
    use crate::EngineConfig;
    use schema::SamplerSettings;

    #[test]
    fn logprobs_of_a_text_are_those_that_its_tokens_were_sampled_with() {
        let policy = policy();
        let settings = SamplerSettings { temperature: 0.7, ..settings() };
        let mut engine = Engine::new(&policy, EngineConfig::default());
        let request = Request { top_logprobs: 3, ..requests(&settings).remove(2) };
        engine.submit(request.clone()).unwrap();
        let (mut sampled, mut sample) = (Vec::new(), None);
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                match event {
                    Event::Token { token, .. } => sampled.push(token),
                    Event::Finished { sample: finished, .. } => sample = Some(finished),
                }
            }
        }
        let sample = sample.unwrap();
        let ids: Vec<Token> = request.prompt_ids.iter().chain(&sample.ids).copied().collect();
        let entries = engine.prompt_logprobs(&ids, 0.7, 3);
        assert_eq!((entries.len(), sampled.len()), (ids.len() - 1, sample.len()));
        for (index, entry) in entries[request.prompt_ids.len() - 1..].iter().enumerate() {
            assert!((entry.logprob - sample.logprobs[index]).abs() < 1e-4);
            let tokens = |pairs: &[(Token, f32)]| pairs.iter().map(|(token, _)| *token).collect::<Vec<_>>();
            assert_eq!(tokens(&entry.top_logprobs), tokens(&sampled[index].top_logprobs));
            assert!(entry.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1));
            let found = entry.top_logprobs.iter().position(|(token, _)| *token == sample.ids[index]);
            assert!(found.map_or(entry.rank > 3, |found| found + 1 == entry.rank));
            // The same number under both names, to the last bit.
            let own = sampled[index].top_logprobs.iter().find(|(token, _)| *token == sampled[index].id);
            assert!(own.is_none_or(|(_, logprob)| *logprob == sample.logprobs[index]));
        }
        assert!(engine.prompt_logprobs(&ids[..1], 1.0, 3).is_empty());
    }

    #[test]
    fn only_requests_that_ask_get_top_logprobs() {
        let mut engine = Engine::new(&policy(), EngineConfig::default());
        let counts = [0, 2, 0, 5, 0];
        let submit = |(request, top_logprobs)| engine.submit(Request { top_logprobs, ..request }).unwrap();
        let numbers: Vec<usize> = requests(&settings()).into_iter().zip(counts).map(submit).collect();
        let found = engine.step().unwrap().into_iter().filter_map(|event| match event {
            Event::Token { id, token } => Some((id.request, token.top_logprobs.len())),
            Event::Finished { .. } => None,
        });
        let expected: std::collections::BTreeSet<_> = numbers.into_iter().zip(counts).collect();
        assert_eq!(found.collect::<std::collections::BTreeSet<_>>(), expected);
    }
}
