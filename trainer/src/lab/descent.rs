//! Gradient steps on logits in the same game, as a network would take them: exact expectations, inexact steps.
//!
//! A proximal step has no closed form for a network, so it is approximated by gradient steps on
//!
//! ```text
//! J(θ)   = P(o ≻ π_θ) + Σ_i w_i KL(π_θ ‖ m_i)
//! ∇J     = E_{y∼π_θ} [ ∇ log π_θ(y) · ( ½ − P(y ≻ o) + Σ_i w_i log(π_θ / m_i)(y) ) ]
//! ```
//!
//! with `w = β` for the reference and `β/η` for the proximal centre. The practical form never restarts: its centre is a
//! moving average of its own past ([`averaged_self_play`]). Its opponent must then be the current policy. Against the
//! average it is another method, which diverges if β is small; the tests hold both results.

use super::{Game, Tabular};

/// Opponent of the practical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opponent {
    /// The current policy itself.
    Present,
    /// The moving average of the policy.
    Average,
}

/// Returns the gradient of `P(opponent ≻ π) + Σ w KL(π ‖ m)` on the logits of `policy`, `[completion]`; `penalties`
/// holds the pairs `(w, m)`.
pub fn policy_gradient(game: &Game, policy: &Tabular, opponent: &Tabular, penalties: &[(f64, &Tabular)]) -> Vec<f64> {
    let mut cost: Vec<f64> = game.wins(opponent).iter().map(|wins| 0.5 - wins).collect();
    for (weight, towards) in penalties {
        for (cost, log_ratio) in cost.iter_mut().zip(policy.log_ratio(towards)) {
            *cost += weight * log_ratio;
        }
    }
    let mean = policy.mean(&cost);
    policy.probabilities().iter().zip(&cost).map(|(p, cost)| p * (cost - mean)).collect()
}

/// Runs `rounds` steps of Nash-MP from the reference. Each of its two proximal steps is approximated by `inner`
/// gradient steps, warm-started at the centre.
pub fn inexact_mirror_prox(game: &Game, eta: f64, rounds: usize, inner: usize, learning_rate: f64) -> Tabular {
    let step = |centre: &Tabular, opponent: &Tabular| {
        (0..inner).fold(centre.clone(), |policy, _| {
            let penalties = [(game.beta(), game.reference()), (game.beta() / eta, centre)];
            descend(&policy, &policy_gradient(game, &policy, opponent, &penalties), learning_rate)
        })
    };
    (0..rounds).fold(game.reference().clone(), |policy, _| {
        let half = step(&policy, &policy);
        step(&policy, &half)
    })
}

/// Runs `steps` gradient steps of self-play from the reference, with a KL penalty of weight `β/η` towards a moving
/// average of its own logits. The average takes the share `kappa` of the policy after each step; without `kappa` there
/// is no penalty.
pub fn averaged_self_play(
    game: &Game,
    opponent: Opponent,
    eta: f64,
    kappa: Option<f64>,
    steps: usize,
    learning_rate: f64,
) -> Tabular {
    let mut policy = game.reference().clone();
    let mut average = policy.clone();
    let no_tilt = vec![0.0; policy.logprobs().len()];
    for _ in 0..steps {
        let against = if opponent == Opponent::Present { &policy } else { &average };
        let mut penalties = vec![(game.beta(), game.reference())];
        penalties.extend(kappa.map(|_| (game.beta() / eta, &average)));
        policy = descend(&policy, &policy_gradient(game, &policy, against, &penalties), learning_rate);
        let share = kappa.unwrap_or_default();
        average = Tabular::product(&[(1.0 - share, &average), (share, &policy)], &no_tilt);
    }
    policy
}

/// Takes one extragradient step on the logits of EGPO's contrastive loss, with pairs drawn uniformly: `(1/n²) Σ_{y,y′}
/// ( log-ratio(y) − log-ratio(y′) − (P(y ≻ o) − P(y′ ≻ o))/β )²`, first against the policy itself, then, from the same
/// start, against the result. It equals the closed form at step `4 · learning rate / (n β)`.
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
    use super::super::testing::{close, has_probabilities};
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
        for index in 0..3 {
            let moved = |by: f64| {
                let mut logits = start().logprobs().to_vec();
                logits[index] += by;
                cost(&Tabular::from_logits(logits))
            };
            let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((gradient[index] - numeric).abs() < 1e-9);
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
        has_probabilities(&policy, &[0.389_337_941, 0.203_481_789, 0.407_180_270]);
        close(&[kl], &[8.322_937e-4], 5e-11);
        let (policy, kl) = distance(0.1, 10, 5);
        has_probabilities(&policy, &[0.394_787_087, 0.192_056_167, 0.413_156_746]);
        close(&[kl], &[1.858_103e-3], 5e-10);
        close(&[distance(0.01, 100, 20).1], &[5.623_761e-9], 5e-15);
    }

    #[test]
    fn the_opponent_must_be_the_present_policy() {
        // KL(π* ‖ π) after 1000 and 5000 steps at β = 0.01: (opponent, κ, after 1000, after 5000).
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
                let found = winner.kl(&averaged_self_play(&game, opponent, 0.02, kappa, steps, 1.0));
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
                let policy = averaged_self_play(&game, Opponent::Present, 2.0 * beta, Some(kappa), steps, 1.0);
                let found = game.equilibrium().kl(&policy);
                assert!((found - expected).abs() <= 5e-3 * expected, "{beta} {kappa}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn the_contrastive_loss_takes_extragradient_steps() {
        let game = Game::cycle(0.1).unwrap();
        let policy = contrastive_extragradient(&game, &start(), 0.05);
        has_probabilities(&policy, &[0.402_750_756_4, 0.237_536_475_8, 0.359_712_767_8]);
        let closed = Rule::Extragradient { step: 4.0 * 0.05 / (3.0 * 0.1) }.next(&game, &start());
        close(&policy.probabilities(), &closed.probabilities(), 1e-15);
    }
}
