//! Which token belongs to which sequence, and which are trained on.
//!
//! Sums per sequence are scatter-adds over a `[token]` index, so sequences of any length lie side by side without
//! padding. The numbers of trained tokens are also kept on the host: denominators and the question "is there anything
//! to train on" never wait for the device.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// The layout of packed sequences: for each token its sequence and whether it is trained on.
#[derive(Debug)]
pub struct Rows {
    sequence_of_token: Tensor,
    mask: Tensor,
    trained: Vec<i64>,
}

impl Rows {
    /// Sequences of the given lengths, end to end; `mask` has one entry per token and says whether it is trained on.
    ///
    /// # Errors
    /// If the mask does not have as many entries as the sequences have tokens.
    pub fn new(lengths: &[usize], mask: &[bool], device: Device) -> Result<Self> {
        let tokens: usize = lengths.iter().sum();
        if mask.len() != tokens {
            let given = mask.len();
            return Err(Error::input(format!(
                "the mask has {given} entries for {tokens} tokens; give one entry per token of each sequence"
            )));
        }
        let mut rest = mask;
        let mut trained = Vec::with_capacity(lengths.len());
        let mut sequence_of_token = Vec::with_capacity(tokens);
        for (sequence, &length) in lengths.iter().enumerate() {
            let (own, after) = rest.split_at(length);
            trained.push(own.iter().filter(|kept| **kept).count() as i64);
            sequence_of_token.extend(std::iter::repeat_n(sequence as i64, length));
            rest = after;
        }
        let sequence_of_token = Tensor::from_slice(&sequence_of_token).to_device(device);
        Ok(Self { sequence_of_token, mask: Tensor::from_slice(mask).to_device(device), trained })
    }

    /// The number of sequences, empty ones included.
    pub fn sequences(&self) -> i64 {
        self.trained.len() as i64
    }

    /// The number of tokens, masked ones included.
    pub fn tokens(&self) -> i64 {
        self.mask.numel() as i64
    }

    /// The number of trained tokens over all sequences.
    pub fn trained_tokens(&self) -> i64 {
        self.trained.iter().sum()
    }

    /// The number of trained tokens of each sequence.
    pub fn trained_per_sequence(&self) -> &[i64] {
        &self.trained
    }

    /// The tokens that are trained on, bool `[token]`.
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// The sequence of each token, i64 `[token]`.
    pub fn sequence_of_token(&self) -> &Tensor {
        &self.sequence_of_token
    }

    /// `x` where it is trained on and zero elsewhere, `[token]`. Stops NaN in masked entries, and their gradients.
    pub fn keep(&self, x: &Tensor) -> Tensor {
        x.where_self(&self.mask, &Tensor::zeros([], (x.kind(), x.device())))
    }

    /// The sum of `x` over trained tokens, a scalar.
    pub fn sum(&self, x: &Tensor) -> Tensor {
        self.keep(x).sum(None)
    }

    /// The mean of `x` over trained tokens, a scalar; zero if there are none.
    pub fn mean(&self, x: &Tensor) -> Tensor {
        self.sum(x) / self.trained_tokens().max(1) as f64
    }

    /// The unbiased (Bessel) variance of `x` over trained tokens, a scalar; zero for fewer than two tokens.
    pub fn variance(&self, x: &Tensor) -> Tensor {
        let degrees = (self.trained_tokens() - 1).max(1) as f64;
        self.sum(&(self.keep(x) - self.mean(x)).square()) / degrees
    }

    /// `x` shifted and scaled to mean 0 and variance 1 over trained tokens, zero elsewhere, `[token]`. Fewer than two
    /// tokens have no variance and are left as they are.
    pub fn whiten(&self, x: &Tensor) -> Tensor {
        if self.trained_tokens() < 2 {
            return self.keep(x);
        }
        self.keep(&((self.keep(x) - self.mean(x)) * (self.variance(x) + 1e-8).rsqrt()))
    }

    /// The sum of `x` over the trained tokens of each sequence, `[sequence]`.
    pub fn sequence_sum(&self, x: &Tensor) -> Tensor {
        let zeros = Tensor::zeros([self.sequences()], (x.kind(), x.device()));
        zeros.index_add(0, &self.sequence_of_token, &self.keep(x))
    }

    /// The mean of `x` over the trained tokens of each sequence, `[sequence]`; zero for an empty one.
    pub fn sequence_mean(&self, x: &Tensor) -> Tensor {
        self.sequence_sum(x) / self.lengths(x.kind())
    }

    /// One value per sequence, `[sequence]`, repeated for each of its tokens, `[token]`.
    pub fn spread(&self, per_sequence: &Tensor) -> Tensor {
        per_sequence.index_select(0, &self.sequence_of_token)
    }

    /// The number of trained tokens of each sequence, at least 1, `[sequence]`: a divisor.
    pub fn lengths(&self, kind: Kind) -> Tensor {
        let counts: Vec<i64> = self.trained.iter().map(|count| (*count).max(1)).collect();
        Tensor::from_slice(&counts).to_device(self.mask.device()).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, device, f64s, full_rows, values};
    use super::*;

    fn ragged() -> (Rows, Tensor) {
        let mask = [true, true, true, false, true, true, false, false];
        let x = f64s(&[1.0, 2.0, 3.0, f64::NAN, 4.0, 0.0, 9.0, 9.0]);
        (Rows::new(&[4, 4], &mask, device()).unwrap(), x)
    }

    #[test]
    fn masked_statistics_do_not_see_masked_nan() {
        let (rows, x) = ragged();
        check(&rows.sum(&x), &[10.0]);
        check(&rows.mean(&x), &[2.0]);
        check(&rows.variance(&x), &[2.5]);
        check(&rows.whiten(&x), &[-0.632_455_53, 0.0, 0.632_455_53, 0.0, 1.264_911_1, -1.264_911_1, 0.0, 0.0]);
        check(&rows.sequence_sum(&x), &[6.0, 4.0]);
        check(&rows.sequence_mean(&x), &[2.0, 2.0]);
    }

    #[test]
    fn masked_nan_gets_no_gradient_and_spoils_none() {
        let (rows, x) = ragged();
        let x = x.set_requires_grad(true);
        rows.whiten(&x).exp().sum(None).backward();
        let gradient = values(&x.grad());
        assert_eq!([gradient[3], gradient[6], gradient[7]], [0.0; 3]);
        assert!(gradient.iter().all(|entry| entry.is_finite()));
    }

    #[test]
    fn whitening_one_token_leaves_it_alone() {
        let rows = full_rows(&[1]);
        check(&rows.whiten(&f64s(&[0.7])), &[0.7]);
        check(&rows.variance(&f64s(&[0.7])), &[0.0]);
    }

    #[test]
    fn an_empty_sequence_has_mean_zero() {
        let rows = full_rows(&[2, 0, 1]);
        check(&rows.sequence_mean(&f64s(&[1.0, 3.0, 5.0])), &[2.0, 0.0, 5.0]);
        check(&rows.spread(&f64s(&[1.0, 2.0, 3.0])), &[1.0, 1.0, 3.0]);
        assert_eq!((rows.sequences(), rows.tokens(), rows.trained_per_sequence()), (3, 3, [2, 0, 1].as_slice()));
    }

    #[test]
    fn a_mask_of_the_wrong_length_is_refused() {
        let error = Rows::new(&[2, 1], &[true, true], device()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("2 entries for 3 tokens"), "{error}");
    }
}
