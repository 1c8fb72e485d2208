//! Losses on pairs of completions, one of them preferred: pure functions on log-probabilities of whole sequences.
//!
//! With `p_c, p_r` the log-probabilities of chosen and rejected under the policy, `r_c, r_r` under the reference, `L`
//! their numbers of tokens and `h = (p_c − r_c) − (p_r − r_r)`, per pair:
//!
//! | function | loss | source |
//! |---|---|---|
//! | [`sigmoid`] | `−log σ(βh)` | DPO: Rafailov et al. 2023, 2305.18290 |
//! | … [`LabelNoise::Smooth`] | `−(1−ε) log σ(βh) − ε log σ(−βh)` | cDPO: Mitchell 2023 |
//! | … [`LabelNoise::Robust`] | `[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε)` | Chowdhury et al. 2024, 2403.00409 |
//! | [`hinge`] | `max(0, 1 − βh)` | `SLiC`: Zhao et al. 2023, 2305.10425 |
//! | [`squared`] | `(h − (P − ½)/β)²` | IPO: Azar et al. 2023, 2310.12036; with `P = 1`, `(h − 1/2β)²` |
//! | [`margin`] | `−log σ(β(p_c/L_c − p_r/L_r) − γ)` | `SimPO`: Meng et al. 2024, 2405.14734 |
//! | [`margin`] | `−log σ(β(p_c − p_r))` | CPO: Xu et al. 2024, 2401.08417 |
//! | [`odds_ratio`] | `−log σ(log odds(p_c/L_c) − log odds(p_r/L_r))` | ORPO: Hong et al. 2024, 2403.07691 |
//! | [`prospect`] | `1 − σ(±β((p − r) − z₀))` | KTO: Ethayarajh et al. 2024, 2402.01306 |
//! | [`self_play`] | `½[((p_c−r_c) − t_c)² + ((p_r−r_r) − t_r)²]` | SPPO: Wu et al. 2024, 2405.00675 |
//! | [`anchored_zero`] | `1 − σ(β(p_c−r_c)) + σ(β(p_r−r_r))` | Anchored PO: D'Oosterlinck et al. 2024, 2408.06266 |
//! | [`anchored_down`] | `σ(β(p_c−r_c)) + 1 − σ(βh)` | the same |
//!
//! Constants and factors are those of TRL for each method that TRL has.

use tch::Tensor;

/// Assumed share of wrong labels, and its treatment in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum LabelNoise {
    /// All labels are taken to be right.
    #[default]
    None,
    /// Each label is taken to be wrong with this probability (conservative DPO).
    Smooth(f64),
    /// Correction that makes the loss unbiased if this share of labels, below one half, is wrong (robust DPO).
    Robust(f64),
}

/// Sequence log-probabilities of both completions of each pair, in nats; every tensor is `[pair]`.
#[derive(Debug)]
pub struct PairLogprobs {
    /// `p_c`: sum over the chosen completion's tokens, under the policy.
    pub chosen: Tensor,
    /// `p_r`: log-probability of the rejected completion under the policy.
    pub rejected: Tensor,
    /// `r_c`: log-probability of the chosen completion under the reference; zero for a method without reference.
    pub chosen_reference: Tensor,
    /// `r_r`: log-probability of the rejected completion under the reference; zero for a method without reference.
    pub rejected_reference: Tensor,
    /// `L_c`: tokens of the chosen completion, at least 1.
    pub chosen_tokens: Tensor,
    /// `L_r`: tokens of the rejected completion, at least 1.
    pub rejected_tokens: Tensor,
}

impl PairLogprobs {
    /// `p_c − r_c`, `[pair]`.
    pub fn chosen_ratio(&self) -> Tensor {
        &self.chosen - &self.chosen_reference
    }

    /// Returns `p_r − r_r`, `[pair]`: the log-ratio of the rejected completion.
    pub fn rejected_ratio(&self) -> Tensor {
        &self.rejected - &self.rejected_reference
    }

    /// Returns `h`, `[pair]`: the difference of the two log-ratios.
    pub fn ratio_margin(&self) -> Tensor {
        self.chosen_ratio() - self.rejected_ratio()
    }

    /// Returns the difference of the log-ratios per token, `(p_c − r_c)/L_c − (p_r − r_r)/L_r`, `[pair]`.
    pub fn mean_ratio_margin(&self) -> Tensor {
        self.chosen_ratio() / &self.chosen_tokens - self.rejected_ratio() / &self.rejected_tokens
    }

    /// Returns `p_c / L_c`, `[pair]`: the mean log-probability of the chosen tokens.
    pub fn chosen_mean(&self) -> Tensor {
        &self.chosen / &self.chosen_tokens
    }

    /// Returns `p_r / L_r`, `[pair]`: the mean log-probability of the rejected tokens.
    pub fn rejected_mean(&self) -> Tensor {
        &self.rejected / &self.rejected_tokens
    }
}

/// Returns `−log σ(βh)`, `[pair]`, corrected for the assumed label noise.
pub fn sigmoid(h: &Tensor, beta: f64, noise: LabelNoise) -> Tensor {
    let right = -(h * beta).log_sigmoid();
    let wrong = || -(h * -beta).log_sigmoid();
    match noise {
        LabelNoise::None => right,
        LabelNoise::Smooth(share) => right * (1.0 - share) + wrong() * share,
        LabelNoise::Robust(share) => (right * (1.0 - share) - wrong() * share) / (1.0 - 2.0 * share),
    }
}

/// Returns `max(0, 1 − βh)`, `[pair]`.
pub fn hinge(h: &Tensor, beta: f64) -> Tensor {
    (h * -beta + 1.0).relu()
}

/// Returns `(h − (P − ½)/β)²`, `[pair]`; `win_rate` is P, `[pair]`: 1 for a certain label.
pub fn squared(h: &Tensor, win_rate: &Tensor, beta: f64) -> Tensor {
    (h - (win_rate - 0.5) / beta).square()
}

/// Returns `−log σ(β (better − worse) − γ)`, `[pair]`: the loss of methods without a reference, on log-probabilities of
/// the two completions.
pub fn margin(better: &Tensor, worse: &Tensor, beta: f64, gamma: f64) -> Tensor {
    -((better - worse) * beta - gamma).log_sigmoid()
}

/// Returns `−log σ` of the log odds ratio of two mean log-probabilities per token, `[pair]`.
pub fn odds_ratio(better: &Tensor, worse: &Tensor) -> Tensor {
    -log_odds_ratio(better, worse).log_sigmoid()
}

/// Returns `log odds(e^a) − log odds(e^b)`, `[pair]`, with `log odds(e^a) = a − log(1 − e^a)`.
pub fn log_odds_ratio(a: &Tensor, b: &Tensor) -> Tensor {
    (a - b) - (log_1m_exp(a) - log_1m_exp(b))
}

/// Returns `1 − σ(β (ratio − z₀))` for samples with `sign` 1 and `1 − σ(β (z₀ − ratio))` for those with `sign` −1,
/// `[sample]`.
pub fn prospect(ratio: &Tensor, sign: &Tensor, baseline: &Tensor, beta: f64) -> Tensor {
    ((ratio - baseline) * sign * -beta).sigmoid()
}

/// Returns `½[(chosen − t_c)² + (rejected − t_r)²]` of two log-ratios and their targets, `[pair]`.
pub fn self_play(chosen: &Tensor, rejected: &Tensor, chosen_target: &Tensor, rejected_target: &Tensor) -> Tensor {
    ((chosen - chosen_target).square() + (rejected - rejected_target).square()) * 0.5
}

/// Returns `1 − σ(β chosen) + σ(β rejected)` of two log-ratios, `[pair]`: raises the chosen completion and lowers the
/// rejected one.
pub fn anchored_zero(chosen: &Tensor, rejected: &Tensor, beta: f64) -> Tensor {
    (chosen * -beta).sigmoid() + (rejected * beta).sigmoid()
}

/// Returns `σ(β chosen) + 1 − σ(β (chosen − rejected))` of two log-ratios, `[pair]`: lowers both completions, the
/// rejected one more; for policies that are better than the chosen completions.
pub fn anchored_down(chosen: &Tensor, rejected: &Tensor, beta: f64) -> Tensor {
    (chosen * beta).sigmoid() + ((chosen - rejected) * -beta).sigmoid()
}

/// Returns `log(1 − e^a)` for a ≤ 0, accurate on both sides of `−ln 2` (Mächler 2012). A certain completion, a = 0,
/// would have infinite odds: a is clamped to at most −1e-7.
fn log_1m_exp(a: &Tensor) -> Tensor {
    let a = a.clamp_max(-1e-7);
    let near = a.expm1().neg().log();
    // The branch that is not selected must not contain an infinity, whose gradient times zero is NaN.
    let far = a.clamp_max(-0.5).exp().neg().log1p();
    near.where_self(&a.gt(-std::f64::consts::LN_2), &far)
}

#[cfg(test)]
mod tests;
