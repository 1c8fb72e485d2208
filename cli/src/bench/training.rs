//! Scoring and training on rows of tokens, through the policy and the optimizer that a run learns with.

use super::Bench;
use super::figure::Figure;
use super::limit::{Cost, causal};
use super::sampling::prompt_ids;
use anyhow::{Result, ensure};
use model::Policy;
use model::logprob::Want;
use model::packed::{Packed, Sequences};
use schema::Token;
use tch::Kind;
use trainer::optimizer::{self, Optimizer, Parameter, Role};

/// Rows of a ragged batch, and their mean length: the quantiles of an exponential distribution, as answers have it.
const RAGGED_ROWS: usize = 16;
const RAGGED_MEAN: f64 = 64.0;

/// Tokens per second of log-probabilities.
pub(crate) fn score(bench: &Bench) -> Result<Vec<Figure>> {
    let rows = Rows::equal(bench, bench.sizes.lengths.first().copied().unwrap_or(128))?;
    Ok(vec![rows.score("score", bench)?])
}

/// Tokens per second of forward, backward and update, for equal rows of several lengths and for a ragged batch.
pub(crate) fn train(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for length in &bench.sizes.lengths {
        figures.push(Rows::equal(bench, *length)?.train("train", bench)?);
    }
    if bench.sizes.ragged {
        figures.push(Rows::ragged(bench)?.train("train", bench)?);
    }
    Ok(figures)
}

/// Scoring and training on one row that grows: what a token costs, whatever the length.
pub(crate) fn lengths(bench: &Bench) -> Result<Vec<Figure>> {
    let policy = bench.policy()?;
    let longest = policy.network().dimensions().max_position as usize;
    let mut figures = Vec::new();
    for length in [64, 128, 256, 512, 1024, 2048, 4096, 8192].into_iter().filter(|length| *length <= longest) {
        let rows = Rows::of(bench, format!("{length}"), format!("a row of {length}"), vec![length])?;
        figures.push(rows.score("growth/score", bench)?);
        figures.push(rows.train("growth/train", bench)?);
    }
    Ok(figures)
}

/// Rows of tokens, and how they are packed.
struct Rows {
    key: String,
    name: String,
    lengths: Vec<usize>,
    packed: Vec<Packed>,
}

impl Rows {
    /// As many rows of one length as the bench's tokens allow.
    fn equal(bench: &Bench, length: usize) -> Result<Self> {
        let count = (bench.sizes.tokens / length).max(1);
        Self::of(bench, format!("{count}x{length}"), format!("{count} rows of {length}"), vec![length; count])
    }

    fn ragged(bench: &Bench) -> Result<Self> {
        let quantile = |row: usize| -(1.0 - (row as f64 + 0.5) / RAGGED_ROWS as f64).ln();
        let lengths: Vec<usize> = (0..RAGGED_ROWS).map(|row| (RAGGED_MEAN * quantile(row)).max(4.0) as usize).collect();
        let longest = lengths.iter().max().copied().unwrap_or_default();
        Self::of(bench, "ragged".into(), format!("{RAGGED_ROWS} rows of 4 to {longest}"), lengths)
    }

    /// A row's first token is its prompt: all others are scored.
    fn of(bench: &Bench, key: String, name: String, lengths: Vec<usize>) -> Result<Self> {
        let policy = bench.policy()?;
        let longest = lengths.iter().max().copied().unwrap_or_default();
        let context = policy.network().dimensions().max_position as usize;
        ensure!(
            longest <= context,
            "rows of {longest} tokens exceed the model's context of {context}; shorten --lengths"
        );
        let ids = prompt_ids(policy, lengths.len(), longest)?;
        let rows: Vec<&[Token]> = ids.iter().zip(&lengths).map(|(ids, length)| &ids[..*length]).collect();
        let mut packed = Vec::new();
        for part in parts(&rows, bench.config.micro_batch_tokens) {
            let sequences: Vec<Sequences<'_>> =
                part.iter().map(|row| Sequences { prompt: &row[..1], completions: vec![&row[1..]] }).collect();
            packed.push(Packed::new(&sequences, policy.network().dimensions().vocab, policy.device())?);
        }
        Ok(Self { key, name, lengths, packed })
    }

    fn tokens(&self) -> f64 {
        self.lengths.iter().sum::<usize>() as f64
    }

    fn scored(&self) -> f64 {
        self.packed.iter().map(Packed::scored_tokens).sum::<usize>() as f64
    }

    fn figure(&self, part: &str, verb: &str, seconds: &[f64], limit_s: f64) -> Figure {
        let (key, name) = (format!("{part}/{}", self.key), format!("{verb}, {}", self.name));
        let mut figure = Figure::rate(key, name, self.tokens(), seconds, limit_s);
        let longest = self.lengths.iter().max().copied().unwrap_or_default();
        figure.work.push(("rows", self.lengths.len() as f64));
        figure.work.push(("longest", longest as f64));
        figure
    }

    fn score(&self, part: &str, bench: &Bench) -> Result<Figure> {
        let policy = bench.policy()?;
        let work = || {
            for packed in &self.packed {
                drop(policy.logprobs(packed, 1.0, policy.adapter()));
            }
            model::device::wait(policy.device());
            Ok(())
        };
        drop(policy.logprobs(&self.packed[0], 1.0, policy.adapter()));
        let seconds = bench.patience.time(work)?;
        let least = Cost::of(policy).score(self.tokens(), self.scored(), causal(&self.lengths));
        Ok(self.figure(part, "score", &seconds, least.seconds(bench.machine()?)))
    }

    fn train(&self, part: &str, bench: &Bench) -> Result<Figure> {
        let policy = bench.policy()?;
        let mut learner = Learner::new(bench, policy)?;
        let scored = self.scored();
        learner.learn(policy, &self.packed[..1], scored)?;
        let seconds = bench.patience.time(|| learner.learn(policy, &self.packed, scored))?;
        let least = Cost::of(policy).train(self.tokens(), scored, causal(&self.lengths));
        Ok(self.figure(part, "train", &seconds, least.seconds(bench.machine()?)))
    }
}

/// Cuts rows into parts of at most `limit` tokens; a longer row still is a part.
fn parts<'a, 'b>(rows: &'b [&'a [Token]], limit: usize) -> Vec<&'b [&'a [Token]]> {
    let mut parts = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (place, row) in rows.iter().enumerate() {
        if place > start && tokens + row.len() > limit {
            parts.push(&rows[start..place]);
            (start, tokens) = (place, 0);
        }
        tokens += row.len();
    }
    parts.push(&rows[start..]);
    parts
}

/// The config's optimizer over the policy's adapter.
struct Learner {
    optimizer: Box<dyn Optimizer>,
    parameters: Vec<Parameter>,
    learning_rate: f64,
    max_grad_norm: f64,
}

impl Learner {
    fn new(bench: &Bench, policy: &Policy) -> Result<Self> {
        let rule = &bench.config.optimizer;
        let parameter = |(name, tensor): (String, &tch::Tensor)| {
            let gate = name.rsplit('.').next() == Some("gate");
            let role = if gate { Role::Gate } else { Role::Weight };
            Parameter::new(name, tensor.shallow_clone(), role)
        };
        Ok(Self {
            optimizer: rule.build()?,
            parameters: policy.adapter().tensors().map(parameter).collect(),
            learning_rate: rule.rate().at(1, 1000),
            max_grad_norm: rule.max_grad_norm(),
        })
    }

    /// One update by the mean negative log-probability of the tokens.
    fn learn(&mut self, policy: &Policy, micro_batches: &[Packed], scored: f64) -> Result<()> {
        for packed in micro_batches {
            let evaluation = policy.evaluate(packed, 1.0, Want::Logprobs, None);
            let loss = -evaluation.logprobs.sum(Kind::Float) / scored;
            evaluation.backward(&loss);
        }
        let update =
            optimizer::update(&mut *self.optimizer, &mut self.parameters, self.learning_rate, self.max_grad_norm)?;
        model::device::wait(policy.device());
        ensure!(update.is_taken(), "the gradient is not finite: is this model trained?");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_where_the_next_would_not_fit() {
        let ids: Vec<Token> = (0..10).collect();
        let rows: Vec<&[Token]> = vec![&ids[..3], &ids[..3], &ids[..9], &ids[..1]];
        let lengths = |limit| parts(&rows, limit).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lengths(6), [2, 1, 1]);
        assert_eq!(lengths(5), [1, 1, 1, 1]);
        assert_eq!(lengths(100), [4]);
    }
}
