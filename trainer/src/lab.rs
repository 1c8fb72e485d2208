//! A laboratory: games small enough that a policy is a table, for checking theory numerically.
//!
//! Methods that learn from preferences are proved for exact steps on tables and then run with noisy steps on networks.
//! Here the exact steps are taken in f64 and without a network, so that a wrong formula shows as a wrong number. `cargo
//! run --release --example matrix_game` prints the numbers that these files compute.
//!
//! | file | holds |
//! |---|---|
//! | `tabular` | a policy as a table of log-probabilities |
//! | `game` | preferences as a matrix, regularised towards a reference: equilibrium, best response, exploitability |
//! | `rule` | exact updates: Nash-MP, Nash-MD, self-play (online IPO), extragradient |
//! | `descent` | the same by gradients on logits, as a network would take them |
//! | `acceleration` | iterative preference optimisation, and its extrapolation (APO) |

mod acceleration;
mod descent;
mod game;
mod rule;
mod tabular;

pub use acceleration::{Iteration, extrapolate, iterations, theorem_4_1};
pub use descent::{Opponent, averaged_self_play, contrastive_extragradient, inexact_mirror_prox, policy_gradient};
pub use game::Game;
pub use rule::Rule;
pub use tabular::Tabular;

#[cfg(test)]
mod testing {
    //! Assertions of the laboratory's tests.

    use super::Tabular;

    /// Asserts equality to `tolerance`, entry by entry.
    pub(super) fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{actual:?} against {expected:?}");
        }
    }

    /// Asserts that a policy has these probabilities, to nine decimals.
    pub(super) fn has_probabilities(policy: &Tabular, expected: &[f64]) {
        close(&policy.probabilities(), expected, 1e-9);
    }
}
