//! Sampling one token per row.
//!
//! A token is sampled by inverting the cumulative distribution at one uniform number. This needs one random number per
//! token instead of one per vocabulary entry, and the same number gives the same token whatever else is in the batch.
//! The vocabulary is passed over as few times as possible: the largest logit, one exponential, one sum per block of
//! tokens; then a search for the block that holds the number, and one for the token in that block.
//! The recorded log-probability is that of the raw softmax at the sampling temperature: top-k, top-p and min-p restrict
//! the tokens that can be sampled, not the recorded value.

use crate::{Error, Result};
use schema::{SamplerSettings, Token};
use tch::{Kind, Tensor};

/// The sampler settings of one row, and its random number.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowSampler<'a> {
    pub(super) settings: &'a SamplerSettings,
    /// Uniform in [0, 1).
    pub(super) uniform: f64,
}

/// Samples one token per row of `logits`, `[row, vocab]`; returns tokens with their raw log-probabilities.
///
/// # Errors
///
/// A runtime error if a logit is NaN, or every one is infinite: no token has a probability then. Some may be −∞.
pub(super) fn sample(logits: &Tensor, rows: &[RowSampler<'_>]) -> Result<Vec<(Token, f32)>> {
    let logits = scaled(logits.to_kind(Kind::Float), rows);
    let highest = logits.amax([-1i64].as_slice(), true);
    let weights = (&logits - &highest).exp_();
    let blocks = Blocks::new(&weights);
    let logsumexp = blocks.total().log().to_kind(Kind::Float) + &highest;

    let greedy = |row: &RowSampler<'_>| row.settings.temperature == 0.0;
    let tokens = if rows.iter().all(greedy) {
        logits.argmax(-1, true)
    } else {
        let blocks = if rows.iter().any(|row| row.settings.truncates()) {
            Blocks::new(&truncated(weights, rows))
        } else {
            blocks
        };
        let sampled = blocks.invert(rows);
        if rows.iter().any(greedy) {
            let greedy: Vec<bool> = rows.iter().map(greedy).collect();
            let greedy = Tensor::from_slice(&greedy).to_device(logits.device()).unsqueeze(1);
            logits.argmax(-1, true).where_self(&greedy, &sampled)
        } else {
            sampled
        }
    };
    let chosen = (logits.gather(1, &tokens, false) - logsumexp).squeeze_dim(1);
    let tokens = Vec::<i64>::try_from(&tokens.squeeze_dim(1)).expect("tokens are a vector of i64");
    let chosen = Vec::<f32>::try_from(&chosen).expect("log-probabilities are a vector of f32");
    if chosen.iter().any(|logprob| !logprob.is_finite()) {
        return Err(Error::runtime(
            "the network's outputs are no finite numbers, so no token can be sampled; its weights or its adapter hold a NaN or an infinity, or overflow model.dtype",
        ));
    }
    Ok(tokens.into_iter().map(|token| token as Token).zip(chosen).collect())
}

/// Divides each row by its temperature.
fn scaled(logits: Tensor, rows: &[RowSampler<'_>]) -> Tensor {
    let temperatures: Vec<f32> = rows.iter().map(|row| row.settings.logprob_temperature() as f32).collect();
    if temperatures.iter().all(|temperature| *temperature == 1.0) {
        return logits;
    }
    &logits / Tensor::from_slice(&temperatures).to_device(logits.device()).unsqueeze(1)
}

/// Weights of tokens, `[row, vocab]`, with their sums over blocks of neighbouring tokens.
struct Blocks {
    /// `[row, block, token of the block]` f32
    weights: Tensor,
    /// `[row, block]` f64
    sums: Tensor,
}

/// Maximum tokens per block. The square root of a vocabulary makes both searches equally short.
const BLOCK: i64 = 256;

impl Blocks {
    fn new(weights: &Tensor) -> Self {
        let (rows, vocab) = weights.size2().expect("weights are a matrix");
        // Vocabularies are multiples of a power of two as a rule; the others are filled up with tokens of no weight.
        let block = (BLOCK / 8..=BLOCK).rev().find(|size| vocab % size == 0).unwrap_or(BLOCK);
        let missing = (block - vocab % block) % block;
        let filled =
            if missing == 0 { weights.shallow_clone() } else { weights.constant_pad_nd([0, missing].as_slice()) };
        let weights = filled.reshape([rows, -1, block]);
        let sums = weights.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).to_kind(Kind::Double);
        Self { weights, sums }
    }

    /// The sum of all weights of each row, `[row, 1]` f64.
    fn total(&self) -> Tensor {
        self.sums.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double)
    }

    /// Returns the first token at which the cumulative weight exceeds `uniform` of the total, `[row, 1]`.
    fn invert(&self, rows: &[RowSampler<'_>]) -> Tensor {
        let device = self.sums.device();
        let uniforms: Vec<f64> = rows.iter().map(|row| row.uniform).collect();
        let cumulative = self.sums.cumsum(-1, Kind::Double);
        let end = cumulative.size()[1] - 1;
        let target = Tensor::from_slice(&uniforms).to_device(device).unsqueeze(1) * cumulative.narrow(1, end, 1);
        let block = first_above(&target, &cumulative, &self.sums);

        let size = self.weights.size()[2];
        let index = block.unsqueeze(2).expand([rows.len() as i64, 1, size], false);
        let inside = self.weights.gather(1, &index, false).squeeze_dim(1);
        let before = cumulative.gather(1, &block, false) - self.sums.gather(1, &block, false);
        let token = first_above(&(target - before), &inside.cumsum(-1, Kind::Double), &inside);
        block * size + token
    }
}

/// Returns the first index, `[row, 1]`, whose cumulative weight exceeds the target. Rounding may lift the target to the
/// total; the last index of positive weight is returned then.
fn first_above(target: &Tensor, cumulative: &Tensor, weights: &Tensor) -> Tensor {
    let indices = Tensor::arange(weights.size()[1], (Kind::Int64, weights.device()));
    let last = (weights.gt(0.0).to_kind(Kind::Int64) * indices).amax([1i64].as_slice(), true);
    target.searchsorted(cumulative, false, true, "right", None::<&Tensor>).minimum(&last)
}

/// Zeroes the tokens that top-k, top-p and min-p exclude, in the rows that use them. Only ratios of weights matter.
fn truncated(weights: Tensor, rows: &[RowSampler<'_>]) -> Tensor {
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.settings.truncates()) {
        let own = weights.get(index as i64);
        own.shallow_clone().copy_(&cut(&own, row.settings));
    }
    weights
}

/// Truncates one row, `[vocab]`, in the field's usual order: top-k, then top-p, then min-p.
fn cut(weights: &Tensor, settings: &SamplerSettings) -> Tensor {
    let (sorted, order) = weights.sort(0, true);
    let rank = Tensor::arange(sorted.size()[0], (Kind::Int64, sorted.device()));
    let mut keep = sorted.ge_tensor(&(sorted.get(0) * settings.min_p));
    if settings.top_k > 0 {
        keep = keep.logical_and(&rank.lt(i64::from(settings.top_k)));
    }
    if settings.top_p < 1.0 {
        let kept_by_k = sorted.where_self(&keep, &sorted.zeros_like());
        let share = &kept_by_k / kept_by_k.sum(Kind::Float);
        // A token stays while the mass before it is below top_p, so the most likely one always stays.
        let before = share.cumsum(0, Kind::Double) - &share;
        keep = keep.logical_and(&before.lt(settings.top_p));
    }
    let kept = sorted.where_self(&keep, &sorted.zeros_like());
    weights.zeros_like().scatter_(0, &order, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5f32, 0.3, 0.15, 0.05]).log().unsqueeze(0)
    }

    fn sample_one(settings: &SamplerSettings, uniform: f64) -> (Token, f32) {
        sample(&logits(), &[RowSampler { settings, uniform }]).unwrap()[0]
    }

    #[test]
    fn nothing_is_sampled_from_what_is_no_number() {
        let settings = SamplerSettings { temperature: 1.0, ..SamplerSettings::default() };
        let greedy = SamplerSettings { temperature: 0.0, ..SamplerSettings::default() };
        let of = |logits: [f32; 4], settings| {
            sample(&Tensor::from_slice(&logits).unsqueeze(0), &[RowSampler { settings, uniform: 0.5 }])
        };
        for settings in [&settings, &greedy] {
            for wrong in [f32::NAN, f32::INFINITY] {
                let error = of([0.0, wrong, 0.0, 0.0], settings).unwrap_err();
                assert!(!error.is_input() && error.to_string().contains("no finite numbers"), "{error}");
            }
            assert!(of([f32::NEG_INFINITY; 4], settings).is_err());
            // A token may be excluded.
            assert_eq!(
                of([f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY], settings).unwrap(),
                [(1, 0.0)]
            );
        }
    }

    #[test]
    fn uniform_numbers_pick_by_cumulative_probability() {
        let settings = SamplerSettings::default();
        for (uniform, token, probability) in [
            (0.0, 0, 0.5f32),
            (0.49, 0, 0.5),
            (0.51, 1, 0.3),
            (0.81, 2, 0.15),
            (0.96, 3, 0.05),
            (0.999_999_999, 3, 0.05),
        ] {
            let (sampled, logprob) = sample_one(&settings, uniform);
            assert_eq!(sampled, token, "at {uniform}");
            assert!((logprob - probability.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn blocks_find_the_token_that_a_plain_search_finds() {
        let settings = SamplerSettings::default();
        let seed = schema::Seed::new(3);
        for vocab in [7, 259, 512, 1000] {
            let rows = 40;
            let logits = Tensor::from_slice(&seed.at(vocab).normals((rows * vocab) as usize)) * 3.0;
            let logits = logits.reshape([rows as i64, vocab as i64]);
            let uniforms: Vec<f64> = (0..rows).map(|row| seed.uniform(row)).collect();
            let samplers: Vec<RowSampler<'_>> =
                uniforms.iter().map(|&uniform| RowSampler { settings: &settings, uniform }).collect();
            let logprobs = logits.log_softmax(-1, Kind::Double);
            let cumulative = logprobs.exp().cumsum(-1, Kind::Double);
            for (row, (token, logprob)) in sample(&logits, &samplers).unwrap().into_iter().enumerate() {
                let plain = Vec::<f64>::try_from(cumulative.get(row as i64)).unwrap();
                assert_eq!(token as usize, plain.partition_point(|sum| *sum <= uniforms[row]), "vocabulary of {vocab}");
                let expected = logprobs.double_value(&[row as i64, i64::from(token)]);
                assert!((f64::from(logprob) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn frequencies_match_probabilities() {
        let settings = SamplerSettings::default();
        let seed = schema::Seed::new(5);
        let count = 4000;
        let rows: Vec<RowSampler<'_>> =
            (0..count).map(|index| RowSampler { settings: &settings, uniform: seed.uniform(index) }).collect();
        let sampled = sample(&logits().expand([count as i64, 4], false), &rows).unwrap();
        let share = sampled.iter().filter(|(token, _)| *token == 1).count() as f64 / count as f64;
        // standard error 0.0072
        assert!((share - 0.3).abs() < 0.03, "share {share}");
    }

    #[test]
    fn truncation_restricts_sampling_and_not_recorded_logprobs() {
        let top_k = SamplerSettings { top_k: 2, ..SamplerSettings::default() };
        let top_p = SamplerSettings { top_p: 0.6, ..SamplerSettings::default() };
        let min_p = SamplerSettings { min_p: 0.5, ..SamplerSettings::default() };
        for settings in [top_k, top_p, min_p] {
            let (token, logprob) = sample_one(&settings, 0.99);
            assert_eq!(token, 1, "{settings:?}");
            assert!((logprob - 0.3f32.ln()).abs() < 1e-6);
        }
        let tiny = SamplerSettings { top_p: 1e-9, ..SamplerSettings::default() };
        assert_eq!(sample_one(&tiny, 0.99).0, 0);
    }

    #[test]
    fn greedy_rows_and_sampled_rows_share_a_batch() {
        let greedy = SamplerSettings::default().greedy();
        let hot = SamplerSettings { temperature: 2.0, ..SamplerSettings::default() };
        let rows = [RowSampler { settings: &greedy, uniform: 0.99 }, RowSampler { settings: &hot, uniform: 0.99 }];
        let sampled = sample(&logits().expand([2, 4], false), &rows).unwrap();
        assert_eq!(sampled[0].0, 0);
        assert!((sampled[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(sampled[1].0, 3);
        let total: f32 = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.sqrt()).sum();
        assert!((sampled[1].1 - (0.05f32.sqrt() / total).ln()).abs() < 1e-6);
    }
}
