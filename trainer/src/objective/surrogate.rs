//! The clipped surrogate of policy-gradient methods, one kernel for the whole family.
//!
//! ```text
//! r = exp(log π_θ − log π_anchor)         at token or sequence level
//! ℓ = −min(r A, clip(r) A)                per token; PPO (Schulman et al. 2017), GRPO, GSPO, RLOO, Mix-PPG
//! ℓ = −sg[clip(r)] A log π_θ              stop-gradient weight; CISPO (MiniMax-M1, 2025)
//! ```
//!
//! Where both sides of `min` are equal, libtorch halves the gradient between them, which adds up to the whole.

use super::{KlEstimator, Rows, bounded_exp};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Whose ratio it is: each token's own or its sequence's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The ratio of each token (PPO, GRPO).
    #[default]
    Token,
    /// The geometric mean of the token ratios of a sequence (GSPO).
    #[serde(alias = "sequence")]
    SequenceMean,
    /// The value of [`Level::SequenceMean`] with the gradient at the token itself (GSPO-token): for advantages that
    /// differ from token to token.
    #[serde(alias = "sequence_token")]
    SequenceMeanToken,
    /// The product of the token ratios of a sequence (TRL's RLOO).
    SequenceSum,
}

/// The policy in the ratio's denominator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// The policy at the start of the step.
    #[default]
    Proximal,
    /// The policy that drew the sample (Mix-PPG; also "bypass" mode, with [`Clip::Ratio`]).
    Behaviour,
}

/// What keeps an update small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Clip {
    /// No clip: `−r A`.
    None,
    /// The ratio is clipped to `[1 − low, 1 + high]`.
    Ratio {
        /// How far the ratio may fall below 1.
        low: f64,
        /// How far it may rise above 1.
        high: f64,
    },
    /// The ratio is clipped to `[c − epsilon, c + epsilon]`, where `c` is the ratio of the proximal policy to the
    /// anchor: a total-variation budget counted from the proximal policy however stale the sample is (`GePPO`,
    /// Queeney et al. 2021). With the proximal anchor, `c` is 1.
    Centred {
        /// How far the ratio may leave the centre, additively.
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

/// The settings of the surrogate. The defaults are PPO's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Surrogate {
    /// Token or sequence ratios.
    pub level: Level,
    /// The ratio's denominator.
    pub anchor: Anchor,
    /// The clip.
    pub clip: Clip,
    /// Caps the loss of a token with negative advantage at `−A` times this, which must exceed 1 (dual-clip PPO, Ye et
    /// al. 2020; 3 in verl).
    pub dual_clip: Option<f64>,
    /// Caps the ratio in the *unclipped* branch, so that a huge ratio with negative advantage cannot explode
    /// (INTELLECT-2's two-sided clip, TRL's `delta`; 4 there).
    pub delta: Option<f64>,
}

/// The log-probabilities of the drawn tokens under three policies, each `[token]`.
#[derive(Debug, Clone, Copy)]
pub struct LogProbs<'a> {
    /// Under the policy being trained; carries the gradient.
    pub policy: &'a Tensor,
    /// Under the policy at the start of the step. With a single update per step it is `policy.detach()`.
    pub proximal: &'a Tensor,
    /// Under the policy that drew the tokens, as stored with them.
    pub behaviour: &'a Tensor,
}

/// What the surrogate gives for each token.
#[derive(Debug)]
pub struct TokenLosses {
    /// The loss, `[token]`, zero where masked; carries the gradient.
    pub losses: Tensor,
    /// The ratio, `[token]`, without gradient.
    pub ratio: Tensor,
    /// Tokens below the lower bound with a negative advantage, bool `[token]`.
    pub clipped_low: Tensor,
    /// Tokens above the upper bound with a positive advantage, bool `[token]`.
    pub clipped_high: Tensor,
}

impl Surrogate {
    /// The loss of each token. `advantages` is `[token]`, without gradient.
    pub fn token_losses(&self, logprobs: LogProbs, advantages: &Tensor, rows: &Rows) -> TokenLosses {
        let policy = rows.keep(logprobs.policy);
        let proximal = rows.keep(&logprobs.proximal.detach());
        let behaviour = rows.keep(&logprobs.behaviour.detach());
        let advantages = rows.keep(&advantages.detach());
        let anchor = match self.anchor {
            Anchor::Proximal => &proximal,
            Anchor::Behaviour => &behaviour,
        };
        let ratio = bounded_exp(&self.at_level(&(&policy - anchor), rows));
        let centre = bounded_exp(&self.at_level(&(&proximal - anchor), rows));
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

    /// The lower and upper bound of each token's ratio, `[token]`.
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

/// A pull towards a reference policy, added to the loss of each token.
#[derive(Debug, Clone, Copy)]
pub struct KlPenalty<'a> {
    /// Its weight, `β`; 0 costs nothing.
    pub coefficient: f64,
    /// How the divergence is estimated.
    pub estimator: KlEstimator,
    /// Log-probabilities under the reference, `[token]`, without gradient.
    pub reference: &'a Tensor,
}

/// A reward for staying undecided, subtracted from the loss of each token.
#[derive(Debug, Clone, Copy)]
pub struct EntropyBonus<'a> {
    /// Its weight.
    pub coefficient: f64,
    /// The entropy of the distribution that each token was drawn from, `[token]`, in nats; carries the gradient.
    pub entropy: &'a Tensor,
}

/// `losses + Σ β KL − c H` per token, `[token]`. Rollout weights belong into `losses` beforehand: penalties are not
/// reweighted. Two penalties whose coefficients are λβ and (1−λ)β make ReMix's KL-Convex term.
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
