//! The clipped surrogate of policy-gradient methods: one function for the whole family.
//!
//! ```text
//! r = exp(log π_θ − log π_r)              at token or sequence level
//! ℓ = −min(r A, clip(r) A)                per token; PPO (Schulman et al. 2017), GRPO, GSPO, RLOO, Mix-PPG
//! ℓ = −sg[clip(r)] A log π_θ              stop-gradient weight; CISPO (MiniMax-M1, 2025)
//! ```
//!
//! If both sides of `min` are equal, libtorch gives each half of the gradient, which adds up to the whole.

use super::{KlEstimator, Rows, bounded_exp};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Level at which the ratio is taken: each token's own or its sequence's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Ratio of each token (PPO, GRPO).
    #[default]
    Token,
    /// Geometric mean of the token ratios of a sequence (GSPO).
    #[serde(alias = "sequence")]
    SequenceMean,
    /// Value of [`Level::SequenceMean`] with the gradient at the token itself (GSPO-token): for advantages that differ
    /// from token to token.
    #[serde(alias = "sequence_token")]
    SequenceMeanToken,
    /// Product of the token ratios of a sequence (TRL's RLOO).
    SequenceSum,
}

/// Policy in the denominator of the ratio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioReference {
    /// Proximal policy: the policy at the start of the step.
    #[default]
    Proximal,
    /// Behaviour policy, which sampled the tokens (Mix-PPG; also "bypass" mode, with [`Clip::Ratio`]).
    Behaviour,
}

/// Clip that keeps an update small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Clip {
    /// No clip: `−r A`.
    None,
    /// The ratio is clipped to `[1 − low, 1 + high]`.
    Ratio {
        /// Distance by which the ratio may fall below 1.
        low: f64,
        /// Distance by which the ratio may rise above 1.
        high: f64,
    },
    /// The ratio is clipped to `[c − epsilon, c + epsilon]`, with `c` the ratio of the proximal policy to the policy in
    /// the denominator: a total-variation budget counted from the proximal policy however stale the sample is (`GePPO`,
    /// Queeney et al. 2021). With the proximal policy in the denominator, `c` is 1.
    Centred {
        /// Largest difference of the ratio from the centre.
        epsilon: f64,
    },
    /// The ratio, clipped to `[floor, cap]`, is a constant weight on `−A log π_θ`: no token loses its gradient.
    /// The bounds are absolute, as TRL's `epsilon_high` is; verl's `clip_ratio_high` is `cap − 1`.
    Weight {
        /// Smallest weight; 0 for none.
        floor: f64,
        /// Largest weight; 5 in `ScaleRL`, 1.2 in verl's example.
        cap: f64,
    },
}

impl Default for Clip {
    fn default() -> Self {
        Self::Ratio { low: 0.2, high: 0.2 }
    }
}

/// Settings of the surrogate. The defaults are PPO's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Surrogate {
    /// Level of the ratio.
    pub level: Level,
    /// Policy in the denominator of the ratio.
    pub ratio_reference: RatioReference,
    /// Clip of the ratio.
    pub clip: Clip,
    /// Cap on the loss of a token with negative advantage, as a multiple of `−A`; above 1 (dual-clip PPO, Ye et al.
    /// 2020; 3 in verl). `None` for no cap.
    pub dual_clip: Option<f64>,
    /// Cap on the ratio in the *unclipped* branch, which bounds the loss of a huge ratio with negative advantage
    /// (INTELLECT-2's two-sided clip, TRL's `delta`; 4 there). `None` for no cap.
    pub delta: Option<f64>,
}

/// Log-probabilities of the sampled tokens under three policies, each `[token]`.
#[derive(Debug, Clone, Copy)]
pub struct LogProbs<'a> {
    /// Under the policy being trained; carries the gradient.
    pub policy: &'a Tensor,
    /// Under the policy at the start of the step. With a single update per step it is `policy.detach()`.
    pub proximal: &'a Tensor,
    /// Under the behaviour policy, as stored with the tokens.
    pub behaviour: &'a Tensor,
}

/// Token losses of the surrogate, with the clip statistics.
#[derive(Debug)]
pub struct TokenLosses {
    /// Loss, `[token]`, zero where masked; carries the gradient.
    pub losses: Tensor,
    /// Ratio, `[token]`, without gradient.
    pub ratio: Tensor,
    /// Tokens below the lower bound with a negative advantage, bool `[token]`.
    pub clipped_low: Tensor,
    /// Tokens above the upper bound with a positive advantage, bool `[token]`.
    pub clipped_high: Tensor,
}

impl Surrogate {
    /// Computes the loss of each token. `advantages` is `[token]`; no gradient flows through it.
    pub fn token_losses(&self, logprobs: LogProbs, advantages: &Tensor, rows: &Rows) -> TokenLosses {
        let policy = rows.keep(logprobs.policy);
        let proximal = rows.keep(&logprobs.proximal.detach());
        let behaviour = rows.keep(&logprobs.behaviour.detach());
        let advantages = rows.keep(&advantages.detach());
        let ratio_reference = match self.ratio_reference {
            RatioReference::Proximal => &proximal,
            RatioReference::Behaviour => &behaviour,
        };
        let ratio = bounded_exp(&self.at_level(&(&policy - ratio_reference), rows));
        let centre = bounded_exp(&self.at_level(&(&proximal - ratio_reference), rows));
        let bounds = self.bounds(&centre);

        let losses = match (&bounds, self.clip) {
            (None, _) => -(self.capped(&ratio) * &advantages),
            (Some((low, high)), Clip::Weight { .. }) => {
                -(ratio.detach().clamp_tensor(Some(low), Some(high)) * &advantages * &policy)
            }
            (Some((low, high)), _) => {
                let clipped = ratio.clamp_tensor(Some(low), Some(high));
                -(self.capped(&ratio) * &advantages).minimum(&(clipped * &advantages))
            }
        };
        let losses = rows.keep(&self.dual_clipped(losses, &advantages));

        let ratio = ratio.detach();
        let (clipped_low, clipped_high) = match bounds {
            Some((low, high)) => (
                ratio.lt_tensor(&low).logical_and(&advantages.lt(0.0)),
                ratio.gt_tensor(&high).logical_and(&advantages.gt(0.0)),
            ),
            None => (rows.mask().zeros_like(), rows.mask().zeros_like()),
        };
        TokenLosses { losses, ratio, clipped_low, clipped_high }
    }

    fn at_level(&self, log_ratio: &Tensor, rows: &Rows) -> Tensor {
        match self.level {
            Level::Token => log_ratio.shallow_clone(),
            Level::SequenceMean => rows.spread(&rows.sequence_mean(log_ratio)),
            Level::SequenceMeanToken => {
                let value = rows.spread(&rows.sequence_mean(&log_ratio.detach()));
                log_ratio - log_ratio.detach() + value
            }
            Level::SequenceSum => rows.spread(&rows.sequence_sum(log_ratio)),
        }
    }

    /// Returns the lower and upper bound of each token's ratio, `[token]`; `None` without a clip.
    fn bounds(&self, centre: &Tensor) -> Option<(Tensor, Tensor)> {
        let one = centre.ones_like();
        match self.clip {
            Clip::None => None,
            Clip::Ratio { low, high } => Some((&one - low, &one + high)),
            Clip::Centred { epsilon } => Some((centre - epsilon, centre + epsilon)),
            Clip::Weight { floor, cap } => Some((&one * floor, &one * cap)),
        }
    }

    fn capped(&self, ratio: &Tensor) -> Tensor {
        self.delta.map_or_else(|| ratio.shallow_clone(), |delta| ratio.clamp_max(delta))
    }

    fn dual_clipped(&self, losses: Tensor, advantages: &Tensor) -> Tensor {
        match self.dual_clip {
            Some(limit) => losses.minimum(&(advantages * -limit)).where_self(&advantages.lt(0.0), &losses),
            None => losses,
        }
    }
}

/// KL penalty towards a reference policy, added to the loss of each token.
#[derive(Debug, Clone, Copy)]
pub struct KlPenalty<'a> {
    /// Weight `β` of the penalty; 0 skips its computation.
    pub coefficient: f64,
    /// Estimator of the divergence.
    pub estimator: KlEstimator,
    /// Log-probabilities under the reference, `[token]`, without gradient.
    pub reference: &'a Tensor,
}

/// Entropy bonus, subtracted from the loss of each token.
#[derive(Debug, Clone, Copy)]
pub struct EntropyBonus<'a> {
    /// Weight `c` of the bonus.
    pub coefficient: f64,
    /// Entropy of the distribution at each token, `[token]`, in nats; carries the gradient.
    pub entropy: &'a Tensor,
}

/// Returns `losses + Σ β KL − c H` per token, `[token]`. Rollout weights are applied to `losses` beforehand: penalties
/// are not reweighted. Two penalties with the coefficients λβ and (1−λ)β give ReMix's KL-Convex term.
pub fn penalised(
    losses: &Tensor,
    policy: &Tensor,
    penalties: &[KlPenalty],
    bonus: Option<EntropyBonus>,
    rows: &Rows,
) -> Tensor {
    let mut total = losses.shallow_clone();
    let policy = rows.keep(policy);
    for penalty in penalties.iter().filter(|penalty| penalty.coefficient != 0.0) {
        let reference = rows.keep(&penalty.reference.detach());
        total = &total + penalty.estimator.estimate(&policy, &reference) * penalty.coefficient;
    }
    if let Some(EntropyBonus { coefficient, entropy }) = bonus.filter(|bonus| bonus.coefficient != 0.0) {
        total = &total - rows.keep(entropy) * coefficient;
    }
    total
}

#[cfg(test)]
mod tests;
