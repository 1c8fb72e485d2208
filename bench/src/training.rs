//! Log-probabilities of, and training on, rows of tokens, through the policy and the optimizer that a run learns with.

use crate::figure::Figure;
use crate::roofline::{Cost, causal};
use crate::setup::{Setup, prompt_ids};
use anyhow::{Result, ensure};
use model::Policy;
use model::logprob::Want;
use model::packed::{Packed, Sequences};
use schema::Token;
use tch::Kind;
use trainer::optimizer::{self, Optimizer, Parameter, Role};

/// Rows of a ragged batch, and their mean length. Lengths are quantiles of an exponential distribution, as those of
/// answers are.
const RAGGED_ROWS: usize = 16;
const RAGGED_MEAN: f64 = 64.0;

/// Tokens per second of log-probabilities.
///
/// # Errors
///
/// Fails if the model cannot be loaded, or if a row exceeds its context.
pub(crate) fn score(setup: &Setup) -> Result<Vec<Figure>> {
    let rows = TokenRows::equal(setup, setup.sizes.lengths.first().copied().unwrap_or(128))?;
    Ok(vec![rows.score("score", setup)?])
}

/// Tokens per second of forward, backward and update, for equal rows of several lengths and for a ragged batch.
///
/// # Errors
///
/// Fails if the model cannot be loaded, if a row exceeds its context, or if an update fails.
pub(crate) fn train(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for length in &setup.sizes.lengths {
        figures.push(TokenRows::equal(setup, *length)?.train("train", setup)?);
    }
    if setup.sizes.ragged {
        figures.push(TokenRows::ragged(setup)?.train("train", setup)?);
    }
    Ok(figures)
}

/// Tokens per second of log-probabilities and of training for one row of growing length.
///
/// # Errors
///
/// Fails if the model cannot be loaded, or if an update fails.
pub(crate) fn lengths(setup: &Setup) -> Result<Vec<Figure>> {
    let policy = setup.policy()?;
    let longest = policy.network().dimensions().max_position as usize;
    let mut figures = Vec::new();
    for length in [64, 128, 256, 512, 1024, 2048, 4096, 8192].into_iter().filter(|length| *length <= longest) {
        let rows = TokenRows::of(setup, format!("{length}"), format!("a row of {length}"), vec![length])?;
        figures.push(rows.score("growth/score", setup)?);
        figures.push(rows.train("growth/train", setup)?);
    }
    Ok(figures)
}

/// Rows of tokens, packed into micro-batches.
struct TokenRows {
    key: String,
    name: String,
    lengths: Vec<usize>,
    packed: Vec<Packed>,
}

impl TokenRows {
    /// As many rows of one length as fit into `--tokens`.
    fn equal(setup: &Setup, length: usize) -> Result<Self> {
        let count = (setup.sizes.tokens / length).max(1);
        Self::of(setup, format!("{count}x{length}"), format!("{count} rows of {length}"), vec![length; count])
    }

    fn ragged(setup: &Setup) -> Result<Self> {
        let quantile = |row: usize| -(1.0 - (row as f64 + 0.5) / RAGGED_ROWS as f64).ln();
        let lengths: Vec<usize> = (0..RAGGED_ROWS).map(|row| (RAGGED_MEAN * quantile(row)).max(4.0) as usize).collect();
        let longest = lengths.iter().max().copied().unwrap_or_default();
        Self::of(setup, "ragged".into(), format!("{RAGGED_ROWS} rows of 4 to {longest}"), lengths)
    }

    /// Rows whose first token is the prompt; the log-probabilities of all others are computed.
    fn of(setup: &Setup, key: String, name: String, lengths: Vec<usize>) -> Result<Self> {
        let policy = setup.policy()?;
        let longest = lengths.iter().max().copied().unwrap_or_default();
        let context = policy.network().dimensions().max_position as usize;
        ensure!(
            longest <= context,
            "rows of {longest} tokens exceed the model's context of {context}; shorten --lengths"
        );
        let ids = prompt_ids(policy, lengths.len(), longest)?;
        let rows: Vec<&[Token]> = ids.iter().zip(&lengths).map(|(ids, length)| &ids[..*length]).collect();
        let mut packed = Vec::new();
        for part in parts(&rows, setup.config.micro_batch_tokens) {
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
        self.packed.iter().map(Packed::target_tokens).sum::<usize>() as f64
    }

    fn figure(&self, part: &str, verb: &str, seconds: &[f64], limit_s: f64) -> Figure {
        let (key, name) = (format!("{part}/{}", self.key), format!("{verb}, {}", self.name));
        let mut figure = Figure::rate(key, name, self.tokens(), seconds, limit_s);
        let longest = self.lengths.iter().max().copied().unwrap_or_default();
        figure.work.push(("rows", self.lengths.len() as f64));
        figure.work.push(("longest", longest as f64));
        figure
    }

    fn score(&self, part: &str, setup: &Setup) -> Result<Figure> {
        let policy = setup.policy()?;
        let work = || {
            for packed in &self.packed {
                drop(policy.logprobs(packed, 1.0, policy.adapter()));
            }
            model::device::wait(policy.device());
            Ok(())
        };
        drop(policy.logprobs(&self.packed[0], 1.0, policy.adapter()));
        let seconds = setup.repetition.time(work)?;
        let least = Cost::of(policy).score(self.tokens(), self.scored(), causal(&self.lengths));
        Ok(self.figure(part, "score", &seconds, least.seconds(setup.machine()?)))
    }

    fn train(&self, part: &str, setup: &Setup) -> Result<Figure> {
        let policy = setup.policy()?;
        let mut update = Update::new(setup, policy)?;
        let scored = self.scored();
        update.take(policy, &self.packed[..1], scored)?;
        let seconds = setup.repetition.time(|| update.take(policy, &self.packed, scored))?;
        let least = Cost::of(policy).train(self.tokens(), scored, causal(&self.lengths));
        Ok(self.figure(part, "train", &seconds, least.seconds(setup.machine()?)))
    }
}

/// Cuts rows into parts of at most `limit` tokens; a longer row is a part by itself.
fn parts<'a, 'b>(rows: &'b [&'a [Token]], limit: usize) -> Vec<&'b [&'a [Token]]> {
    let mut parts = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        if index > start && tokens + row.len() > limit {
            parts.push(&rows[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += row.len();
    }
    parts.push(&rows[start..]);
    parts
}

/// The config's optimizer over the policy's adapter.
struct Update {
    optimizer: Box<dyn Optimizer>,
    parameters: Vec<Parameter>,
    learning_rate: f64,
    max_grad_norm: f64,
}

impl Update {
    fn new(setup: &Setup, policy: &Policy) -> Result<Self> {
        let rule = &setup.config.optimizer;
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

    /// Takes one update by the mean negative log-probability of the tokens.
    fn take(&mut self, policy: &Policy, micro_batches: &[Packed], scored: f64) -> Result<()> {
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
