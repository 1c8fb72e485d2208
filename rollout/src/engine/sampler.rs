//! Drawing one token per row.
//!
//! A token is drawn by inverting the cumulative distribution at one uniform number, so a draw needs one number of
//! randomness and not one per vocabulary entry, and the same number gives the same token whatever else is in the batch.
//! The recorded log-probability is that of the raw softmax at the sampling temperature: top-k, top-p and min-p cut what
//! can be drawn, not what is recorded.

use schema::{SamplerSettings, Token};
use tch::{Device, Kind, Tensor};

/// What one row wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw<'a> {
    pub(super) settings: &'a SamplerSettings,
    /// Uniform in [0, 1).
    pub(super) uniform: f64,
}

/// One token per row, with the log of its probability under the raw softmax.
pub(super) fn draw(logits: &Tensor, rows: &[Draw<'_>]) -> Vec<(Token, f32)> {
    let device = logits.device();
    let temperatures: Vec<f32> = rows.iter().map(|row| row.settings.logprob_temperature() as f32).collect();
    let scale = Tensor::from_slice(&temperatures).to_device(device).unsqueeze(1);
    let logits = logits.to_kind(Kind::Float) / scale;
    let logprobs = logits.log_softmax(-1, Kind::Float);

    let greedy = |row: &Draw<'_>| row.settings.temperature == 0.0;
    let tokens = if rows.iter().all(greedy) {
        logits.argmax(-1, false)
    } else {
        let drawn = invert(&truncated(logprobs.exp(), rows), rows, device);
        if rows.iter().any(greedy) {
            let greedy: Vec<bool> = rows.iter().map(greedy).collect();
            logits.argmax(-1, false).where_self(&Tensor::from_slice(&greedy).to_device(device), &drawn)
        } else {
            drawn
        }
    };
    let chosen = logprobs.gather(1, &tokens.unsqueeze(1), false).squeeze_dim(1);
    let tokens = Vec::<i64>::try_from(&tokens).expect("tokens are a vector of i64");
    let chosen = Vec::<f32>::try_from(&chosen).expect("log-probabilities are a vector of f32");
    tokens.into_iter().map(|token| token as Token).zip(chosen).collect()
}

/// The first token whose cumulative probability exceeds `uniform` of the total.
fn invert(probabilities: &Tensor, rows: &[Draw<'_>], device: Device) -> Tensor {
    let cumulative = probabilities.cumsum(-1, Kind::Double);
    let uniforms: Vec<f64> = rows.iter().map(|row| row.uniform).collect();
    let vocab = cumulative.size()[1];
    let total = cumulative.narrow(1, vocab - 1, 1);
    let target = Tensor::from_slice(&uniforms).to_device(device).unsqueeze(1) * total;
    // Rounding of the product may reach the total itself; the last token of positive probability is then meant.
    let last = probabilities.gt(0.0).to_kind(Kind::Int64) * Tensor::arange(vocab, (Kind::Int64, device));
    let last = last.amax([1i64].as_slice(), true);
    target.searchsorted(&cumulative, false, true, "right", None::<&Tensor>).minimum(&last).squeeze_dim(1)
}

/// Zeroes what top-k, top-p and min-p cut, in the rows that ask for it.
fn truncated(probabilities: Tensor, rows: &[Draw<'_>]) -> Tensor {
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.settings.truncates()) {
        let row_probabilities = probabilities.get(index as i64);
        let kept = cut(&row_probabilities, row.settings);
        row_probabilities.shallow_clone().copy_(&kept);
    }
    probabilities
}

/// One row, `[vocab]`, cut in the field's usual order: top-k, then top-p, then min-p.
fn cut(probabilities: &Tensor, settings: &SamplerSettings) -> Tensor {
    let (sorted, order) = probabilities.sort(0, true);
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
    probabilities.zeros_like().scatter_(0, &order, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5f32, 0.3, 0.15, 0.05]).log().unsqueeze(0)
    }

    fn draw_one(settings: &SamplerSettings, uniform: f64) -> (Token, f32) {
        draw(&logits(), &[Draw { settings, uniform }])[0]
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
            let (drawn, logprob) = draw_one(&settings, uniform);
            assert_eq!(drawn, token, "at {uniform}");
            assert!((logprob - probability.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn frequencies_match_probabilities() {
        let settings = SamplerSettings::default();
        let seed = schema::Seed::new(5);
        let draws = 4000;
        let rows: Vec<Draw<'_>> =
            (0..draws).map(|index| Draw { settings: &settings, uniform: seed.uniform(index) }).collect();
        let drawn = draw(&logits().expand([draws as i64, 4], false), &rows);
        let share = drawn.iter().filter(|(token, _)| *token == 1).count() as f64 / draws as f64;
        // standard error 0.0072
        assert!((share - 0.3).abs() < 0.03, "share {share}");
    }

    #[test]
    fn truncation_cuts_draws_and_not_records() {
        let top_k = SamplerSettings { top_k: 2, ..SamplerSettings::default() };
        let top_p = SamplerSettings { top_p: 0.6, ..SamplerSettings::default() };
        let min_p = SamplerSettings { min_p: 0.5, ..SamplerSettings::default() };
        for settings in [top_k, top_p, min_p] {
            let (token, logprob) = draw_one(&settings, 0.99);
            assert_eq!(token, 1, "{settings:?}");
            assert!((logprob - 0.3f32.ln()).abs() < 1e-6);
        }
        let tiny = SamplerSettings { top_p: 1e-9, ..SamplerSettings::default() };
        assert_eq!(draw_one(&tiny, 0.99).0, 0);
    }

    #[test]
    fn greedy_rows_and_sampled_rows_share_a_batch() {
        let greedy = SamplerSettings::default().greedy();
        let hot = SamplerSettings { temperature: 2.0, ..SamplerSettings::default() };
        let rows = [Draw { settings: &greedy, uniform: 0.99 }, Draw { settings: &hot, uniform: 0.99 }];
        let drawn = draw(&logits().expand([2, 4], false), &rows);
        assert_eq!(drawn[0].0, 0);
        assert!((drawn[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(drawn[1].0, 3);
        let total: f32 = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.sqrt()).sum();
        assert!((drawn[1].1 - (0.05f32.sqrt() / total).ln()).abs() < 1e-6);
    }
}
