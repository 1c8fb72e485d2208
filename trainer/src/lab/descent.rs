//! The same game by gradients on logits, as a network would take them: exact expectations, inexact steps.
//!
//! A proximal step has no closed form for a network, so it is approached by gradient steps on
//!
//! ```text
//! J(θ)   = P(o ≻ π_θ) + Σ_i w_i KL(π_θ ‖ m_i)
//! ∇J     = E_{y∼π_θ} [ ∇ log π_θ(y) · ( ½ − P(y ≻ o) + Σ_i w_i log(π_θ / m_i)(y) ) ]
//! ```
//!
//! with `w = β` for the reference and `β/η` for the anchor. The practical form never restarts: its anchor is a moving
//! average of its own past (`anchored_self_play`). The opponent must then be the present policy. Against the average
//! the method is another one, which diverges where β is small; the tests hold both.

use super::{Game, Tabular};

/// Whom the practical form plays against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opponent {
    /// The policy itself, as it is now.
    Present,
    /// The moving average.
    Average,
}

/// `[completion]`: the gradient on the logits of `policy` of `P(opponent ≻ π) + Σ w KL(π ‖ m)`.
pub fn policy_gradient(game: &Game, policy: &Tabular, opponent: &Tabular, pulls: &[(f64, &Tabular)]) -> Vec<f64> {
    let mut cost: Vec<f64> = game.wins(opponent).iter().map(|wins| 0.5 - wins).collect();
    for (weight, towards) in pulls {
        for (cost, log_ratio) in cost.iter_mut().zip(policy.log_ratio(towards)) {
            *cost += weight * log_ratio;
        }
    }
    let mean = policy.mean(&cost);
    policy.probabilities().iter().zip(&cost).map(|(p, cost)| p * (cost - mean)).collect()
}

/// Nash-MP whose proximal steps are `inner` gradient steps each, warm-started at the anchor: `rounds` of them, from the
/// reference.
pub fn inexact_mirror_prox(game: &Game, eta: f64, rounds: usize, inner: usize, learning_rate: f64) -> Tabular {
    let step = |anchor: &Tabular, opponent: &Tabular| {
        (0..inner).fold(anchor.clone(), |policy, _| {
            let pulls = [(game.beta(), game.reference()), (game.beta() / eta, anchor)];
            descend(&policy, &policy_gradient(game, &policy, opponent, &pulls), learning_rate)
        })
    };
    (0..rounds).fold(game.reference().clone(), |policy, _| {
        let half = step(&policy, &policy);
        step(&policy, &half)
    })
}

/// Self-play with a proximal pull of weight `β/η` towards a moving average of its own logits, which takes the share
/// `kappa` of the policy after each of `steps` gradient steps; without `kappa` there is no pull. From the reference.
pub fn anchored_self_play(
    game: &Game,
    opponent: Opponent,
    eta: f64,
    kappa: Option<f64>,
    steps: usize,
    learning_rate: f64,
) -> Tabular {
    let mut policy = game.reference().clone();
    let mut average = policy.clone();
    let still = vec![0.0; policy.logprobs().len()];
    for _ in 0..steps {
        let against = if opponent == Opponent::Present { &policy } else { &average };
        let mut pulls = vec![(game.beta(), game.reference())];
        pulls.extend(kappa.map(|_| (game.beta() / eta, &average)));
        policy = descend(&policy, &policy_gradient(game, &policy, against, &pulls), learning_rate);
        let share = kappa.unwrap_or_default();
        average = Tabular::product(&[(1.0 - share, &average), (share, &policy)], &still);
    }
    policy
}

/// One extragradient step on logits of EGPO's contrastive loss, with pairs drawn uniformly:
/// `(1/n²) Σ_{y,y′} ( log-ratio(y) − log-ratio(y′) − (P(y ≻ o) − P(y′ ≻ o))/β )²`, first against oneself, then, from the
/// same start, against the result. It equals the closed form at step `4 · learning rate / (n β)`.
pub fn contrastive_extragradient(game: &Game, policy: &Tabular, learning_rate: f64) -> Tabular {
    let count = policy.logprobs().len() as f64;
    let step = |opponent: &Tabular| {
        let off: Vec<f64> = policy
            .log_ratio(game.reference())
            .iter()
            .zip(game.wins(opponent))
            .map(|(log_ratio, wins)| log_ratio - wins / game.beta())
            .collect();
        let mean = off.iter().sum::<f64>() / count;
        let gradient: Vec<f64> = off.iter().map(|off| 4.0 / count * (off - mean)).collect();
        descend(policy, &gradient, learning_rate)
    };
    step(&step(policy))
}

fn descend(policy: &Tabular, gradient: &[f64], learning_rate: f64) -> Tabular {
    Tabular::from_logits(policy.logprobs().iter().zip(gradient).map(|(logit, g)| logit - learning_rate * g).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Rule;
    use super::super::testing::{close, is};
    use super::*;

    fn start() -> Tabular {
        Tabular::from_logits(vec![0.2, -0.3, 0.1])
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let game = Game::cycle(0.1).unwrap();
        let opponent = start();
        let gradient = policy_gradient(&game, &start(), &opponent, &[(0.1, game.reference())]);
        close(&gradient, &[-0.007_242_572_6, 0.005_457_536_7, 0.001_785_036_0], 1e-10);
        let cost = |policy: &Tabular| 0.1 * policy.kl(game.reference()) - policy.mean(&game.wins(&opponent));
        for place in 0..3 {
            let moved = |by: f64| {
                let mut logits = start().logprobs().to_vec();
                logits[place] += by;
                cost(&Tabular::from_logits(logits))
            };
            let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((gradient[place] - numeric).abs() < 1e-9);
        }
    }

    #[test]
    fn inexact_nash_mp_ends_where_measured() {
        let distance = |beta: f64, rounds, inner| {
            let game = Game::cycle(beta).unwrap();
            let policy = inexact_mirror_prox(&game, 2.0 * beta, rounds, inner, 2.0);
            (policy.clone(), game.equilibrium().kl(&policy))
        };
        let (policy, kl) = distance(0.1, 10, 20);
        is(&policy, &[0.389_337_941, 0.203_481_789, 0.407_180_270]);
        close(&[kl], &[8.322_937e-4], 5e-11);
        let (policy, kl) = distance(0.1, 10, 5);
        is(&policy, &[0.394_787_087, 0.192_056_167, 0.413_156_746]);
        close(&[kl], &[1.858_103e-3], 5e-10);
        close(&[distance(0.01, 100, 20).1], &[5.623_761e-9], 5e-15);
    }

    #[test]
    fn the_opponent_must_be_the_present_policy() {
        // KL(π* ‖ π) after 1000 and 5000 steps at β = 0.01: (whom, κ, after 1000, after 5000).
        let game = Game::cycle(0.01).unwrap();
        let winner = game.equilibrium();
        for (opponent, kappa, expected) in [
            (Opponent::Present, None, [6.42e-3, 1.21e-7]),
            (Opponent::Present, Some(0.1), [1.43e-5, 0.0]),
            (Opponent::Present, Some(0.05), [5.82e-5, 0.0]),
            (Opponent::Present, Some(0.01), [1.20e-2, 5.71e-7]),
            (Opponent::Average, Some(0.1), [1.69e-1, 3.43e-1]),
            (Opponent::Average, Some(0.05), [1.43e-1, 1.44e-1]),
        ] {
            for (steps, expected) in [1000, 5000].into_iter().zip(expected) {
                let found = winner.kl(&anchored_self_play(&game, opponent, 0.02, kappa, steps, 1.0));
                assert!(
                    (found - expected).abs() <= 5e-3 * expected + 1e-15,
                    "{opponent:?} {kappa:?} {steps}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn a_close_average_is_sooner_where_the_penalty_is_strong_and_later_where_it_is_weak() {
        // (β, steps, KL(π* ‖ π) with κ = 0.1, with κ = 0.5)
        for (beta, steps, expected) in [(0.1, 100, [4.56e-3, 4.70e-4]), (0.01, 1000, [1.43e-5, 1.81e-3])] {
            let game = Game::cycle(beta).unwrap();
            for (kappa, expected) in [0.1, 0.5].into_iter().zip(expected) {
                let policy = anchored_self_play(&game, Opponent::Present, 2.0 * beta, Some(kappa), steps, 1.0);
                let found = game.equilibrium().kl(&policy);
                assert!((found - expected).abs() <= 5e-3 * expected, "{beta} {kappa}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn the_contrastive_loss_takes_extragradient_steps() {
        let game = Game::cycle(0.1).unwrap();
        let policy = contrastive_extragradient(&game, &start(), 0.05);
        is(&policy, &[0.402_750_756_4, 0.237_536_475_8, 0.359_712_767_8]);
        let closed = Rule::Extragradient { step: 4.0 * 0.05 / (3.0 * 0.1) }.next(&game, &start());
        close(&policy.probabilities(), &closed.probabilities(), 1e-15);
    }
}
