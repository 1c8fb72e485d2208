//! The likeliest tokens beside the ones that were drawn, and the scores of a prompt's own tokens.
//!
//! Both are asked for by requests of the daemon alone: a trainer wants the log-probability of the drawn token and
//! nothing else, so nothing is computed here for requests that are not watched. Probabilities are those of the raw
//! softmax at the sampling temperature, as for drawn tokens.

use super::{Engine, Event, Row};
use model::cache::Prefill;
use schema::Token;
use tch::{Kind, Tensor};

/// How a token that was given, and not drawn, is judged by the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The log of its probability, given the tokens before it.
    pub logprob: f32,
    /// Its place among all tokens, from 1 for the likeliest.
    pub rank: usize,
    /// The likeliest tokens of its place, likeliest first.
    pub likeliest: Vec<(Token, f32)>,
}

/// Numbers in one chunk of a prompt's logits: 16 MiB of f32.
const CHUNK_NUMBERS: i64 = 1 << 22;

impl Engine {
    /// Reports the `count` likeliest tokens before each draw of this request.
    pub fn watch(&mut self, request: usize, count: usize) {
        let requests = &self.requests;
        self.watched.retain(|request, _| requests.contains_key(request));
        if count > 0 {
            self.watched.insert(request, count);
        }
    }

    /// Scores the tokens of a text but the first, which nothing predicts, with the `count` likeliest of each place.
    pub fn score(&self, ids: &[Token], temperature: f64, count: usize) -> Vec<TokenScore> {
        let _no_grad = tch::no_grad_guard();
        let (Some((_, targets)), true) = (ids.split_first(), ids.len() > 1) else { return Vec::new() };
        let numbers: Vec<i64> = ids[..targets.len()].iter().map(|id| i64::from(*id)).collect();
        let positions: Vec<i64> = (0..numbers.len() as i64).collect();
        let mut attention = Prefill::new(&[numbers.len()]);
        let hidden = self.forward(&self.policy, &numbers, &positions, &mut attention);
        let size = (CHUNK_NUMBERS / self.policy.network().dimensions().vocab.max(1)).max(1);
        let mut scores = Vec::with_capacity(targets.len());
        for (chunk, start) in targets.chunks(size as usize).zip((0..).step_by(size as usize)) {
            let logits = self.policy.logits(&hidden.narrow(0, start, chunk.len() as i64)).to_kind(Kind::Float);
            let logprobs = (logits / temperature).log_softmax(-1, Kind::Float);
            let wanted = self.tensor(&chunk.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(1);
            let own = logprobs.gather(1, &wanted, false);
            let above = logprobs.gt_tensor(&own).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
            let above = Vec::<i64>::try_from(&above).expect("counts are a vector of i64");
            let own = Vec::<f32>::try_from(&own.squeeze_dim(1)).expect("log-probabilities are a vector of f32");
            let places = own.into_iter().zip(above).zip(top(&logprobs, count));
            scores.extend(places.map(|((logprob, above), likeliest)| TokenScore {
                logprob: logprob.min(0.0),
                rank: above as usize + 1,
                likeliest,
            }));
        }
        scores
    }

    /// One event for each watched row, before its token is drawn from `logits`, `[row, vocab]`.
    pub(super) fn report_likeliest(&self, logits: &Tensor, rows: &[Row], events: &mut Vec<Event>) {
        let watched = |row: &Row| self.watched.get(&row.id.request).copied();
        let found: Vec<(i64, &Row)> = (0..).zip(rows).filter(|(_, row)| watched(row).is_some()).collect();
        let Some(most) = found.iter().filter_map(|(_, row)| watched(row)).max() else { return };
        let places = self.tensor(&found.iter().map(|(place, _)| *place).collect::<Vec<_>>());
        let temperatures: Vec<f32> =
            found.iter().map(|(_, row)| self.requests[&row.id.request].settings.logprob_temperature() as f32).collect();
        let temperatures = Tensor::from_slice(&temperatures).to_device(logits.device()).unsqueeze(1);
        let logits = logits.index_select(0, &places).to_kind(Kind::Float) / temperatures;
        let tops = top(&logits.log_softmax(-1, Kind::Float), most);
        for ((_, row), mut tokens) in found.into_iter().zip(tops) {
            tokens.truncate(watched(row).unwrap_or_default());
            events.push(Event::Likeliest { id: row.id, tokens });
        }
    }
}

/// The `count` largest of each row of log-probabilities, `[row, vocab]`.
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
    use super::*;
    use crate::EngineConfig;
    use schema::SamplerSettings;

    #[test]
    fn scores_of_a_text_are_those_that_its_tokens_were_drawn_with() {
        let policy = policy();
        let settings = SamplerSettings { temperature: 0.7, ..settings() };
        let mut engine = Engine::new(&policy, EngineConfig::default());
        let request = requests(&settings).remove(2);
        let number = engine.submit(request.clone()).unwrap();
        engine.watch(number, 3);
        let (mut likeliest, mut sample) = (Vec::new(), None);
        while !engine.is_idle() {
            for event in engine.step() {
                match event {
                    Event::Likeliest { tokens, .. } => likeliest.push(tokens),
                    Event::Finished { sample: finished, .. } => sample = Some(finished),
                    Event::Token { .. } => {}
                }
            }
        }
        let sample = sample.unwrap();
        let ids: Vec<Token> = request.prompt_ids.iter().chain(&sample.ids).copied().collect();
        let scores = engine.score(&ids, 0.7, 3);
        assert_eq!((scores.len(), likeliest.len()), (ids.len() - 1, sample.len()));
        for (place, score) in scores[request.prompt_ids.len() - 1..].iter().enumerate() {
            assert!((score.logprob - sample.logprobs[place]).abs() < 1e-4);
            let tokens = |pairs: &[(Token, f32)]| pairs.iter().map(|(token, _)| *token).collect::<Vec<_>>();
            assert_eq!(tokens(&score.likeliest), tokens(&likeliest[place]));
            assert!(score.likeliest.is_sorted_by(|a, b| a.1 >= b.1));
            let found = score.likeliest.iter().position(|(token, _)| *token == sample.ids[place]);
            assert!(found.map_or(score.rank > 3, |found| found + 1 == score.rank));
        }
        assert!(engine.score(&ids[..1], 1.0, 3).is_empty());
    }

    #[test]
    fn nothing_is_reported_of_requests_that_nobody_watches() {
        let mut engine = Engine::new(&policy(), EngineConfig::default());
        let numbers: Vec<usize> =
            requests(&settings()).into_iter().map(|request| engine.submit(request).unwrap()).collect();
        engine.watch(numbers[1], 2);
        engine.watch(numbers[3], 5);
        let counts = |engine: &mut Engine| {
            let events = engine.step();
            let counts = events.into_iter().filter_map(|event| match event {
                Event::Likeliest { id, tokens } => Some((id.request, tokens.len())),
                _ => None,
            });
            counts.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(counts(&mut engine), [(numbers[1], 2), (numbers[3], 5)].into());
    }
}
