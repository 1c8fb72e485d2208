//! A policy as a table of log-probabilities, one per completion.
//!
//! Everything is computed on log-probabilities, because the methods multiply powers of policies and a probability that
//! has underflowed to zero could never recover.

/// A distribution over completions `0..n`, all of positive probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Tabular {
    /// Log-probabilities `[completion]`, normalised.
    logprobs: Vec<f64>,
}

impl Tabular {
    /// Returns the distribution in proportion to these weights, each above zero.
    pub fn new(weights: &[f64]) -> Self {
        Self::from_logits(weights.iter().map(|weight| weight.ln()).collect())
    }

    /// Returns the uniform distribution.
    pub fn uniform(completions: usize) -> Self {
        Self::from_logits(vec![0.0; completions])
    }

    /// Returns the softmax of these logits `[completion]`.
    pub fn from_logits(mut logits: Vec<f64>) -> Self {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let normaliser = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
        for logit in &mut logits {
            *logit -= normaliser;
        }
        Self { logprobs: logits }
    }

    /// Returns the log-probabilities, `[completion]`.
    pub fn logprobs(&self) -> &[f64] {
        &self.logprobs
    }

    /// Returns the probabilities, `[completion]`.
    pub fn probabilities(&self) -> Vec<f64> {
        self.logprobs.iter().map(|logprob| logprob.exp()).collect()
    }

    /// Returns the expectation of `values`, `[completion]`.
    pub fn mean(&self, values: &[f64]) -> f64 {
        self.logprobs.iter().zip(values).map(|(logprob, value)| logprob.exp() * value).sum()
    }

    /// Returns KL(self ‖ other), in nats.
    pub fn kl(&self, other: &Self) -> f64 {
        self.mean(&self.log_ratio(other))
    }

    /// Returns `log(self / other)`, `[completion]`.
    pub fn log_ratio(&self, other: &Self) -> Vec<f64> {
        self.logprobs.iter().zip(&other.logprobs).map(|(own, theirs)| own - theirs).collect()
    }

    /// Returns the distribution in proportion to `∏ policyᵢ^powerᵢ · exp(tilt)`; powers may be negative. `factors`
    /// holds the pairs `(power, policy)` and `tilt` is `[completion]`.
    pub fn product(factors: &[(f64, &Self)], tilt: &[f64]) -> Self {
        let logit = |(index, tilt): (usize, &f64)| {
            factors.iter().map(|(power, policy)| power * policy.logprobs[index]).sum::<f64>() + tilt
        };
        Self::from_logits(tilt.iter().enumerate().map(logit).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::close;
    use super::*;

    #[test]
    fn products_of_powers_are_normalised() {
        let (a, b) = (Tabular::new(&[0.5, 0.5]), Tabular::new(&[0.8, 0.2]));
        // a²·b⁻¹·exp(0, ln 4) is in proportion to 1/0.8 and 4/0.2: 1.25 and 20.
        let product = Tabular::product(&[(2.0, &a), (-1.0, &b)], &[0.0, 4f64.ln()]);
        close(&product.probabilities(), &[1.25 / 21.25, 20.0 / 21.25], 1e-15);
    }

    #[test]
    fn kl_is_worked_by_hand() {
        // ½ ln(½ / ¼) + ½ ln(½ / ¾) = ½ ln 2 + ½ ln ⅔.
        let kl = Tabular::uniform(2).kl(&Tabular::new(&[1.0, 3.0]));
        close(&[kl], &[0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln()], 1e-15);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let policy = Tabular::from_logits(vec![2000.0, -2000.0]);
        assert_eq!(policy.logprobs(), [0.0, -4000.0]);
    }
}
