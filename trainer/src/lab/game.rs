//! Preferences as a matrix game, regularised towards a reference policy.
//!
//! `P(y ≻ y′)` need not be transitive: three completions may beat each other in a circle. The solution is then not the
//! best completion but the policy that no other beats, the von Neumann winner; with a KL penalty it is unique:
//!
//! ```text
//! P(π ≻ π′)   = E_{y∼π, y′∼π′} P(y ≻ y′)
//! P_β(π ≻ π′) = P(π ≻ π′) − β KL(π ‖ ref) + β KL(π′ ‖ ref)
//! log π*(y)   = log ref(y) + P(y ≻ π*) / β + const                      the equilibrium, each side's best response
//! ```
//!
//! The game is that of Munos et al. 2024 (Nash learning from human feedback, arXiv 2312.00886); the closed form of a
//! proximal step and the last line follow by setting a gradient to zero.

use super::{Rule, Tabular};
use crate::{Error, Result};

/// A symmetric two-player game over completions `0..n`.
#[derive(Debug, Clone, PartialEq)]
pub struct Game {
    /// `[completion, completion]`: in row y and column y′ the probability that y beats y′.
    preference: Vec<Vec<f64>>,
    reference: Tabular,
    beta: f64,
}

impl Game {
    /// Returns a game with this preference matrix `[completion, completion]`, reference policy and weight of the KL
    /// penalty.
    ///
    /// # Errors
    /// If the matrix is not square, a probability lies outside [0, 1], `P(y ≻ y′) + P(y′ ≻ y)` is not 1, the reference
    /// has another size, or beta is not above zero.
    pub fn new(preference: Vec<Vec<f64>>, reference: Tabular, beta: f64) -> Result<Self> {
        let size = preference.len();
        if preference.iter().any(|row| row.len() != size) || reference.logprobs().len() != size {
            return Err(Error::input(format!("the game needs {size} rows, columns and reference probabilities")));
        }
        if beta.is_nan() || beta <= 0.0 {
            return Err(Error::input(format!("beta must be above 0 for an equilibrium to be unique, but is {beta}")));
        }
        for (y, row) in preference.iter().enumerate() {
            for (other, p) in row.iter().enumerate() {
                if !(0.0..=1.0).contains(p) || (p + preference[other][y] - 1.0).abs() > 1e-12 {
                    return Err(Error::input(format!(
                        "P({y} beats {other}) is {p} and P({other} beats {y}) is {}; they must sum to 1",
                        preference[other][y]
                    )));
                }
            }
        }
        Ok(Self { preference, reference, beta })
    }

    /// Returns the laboratory's standard game: 0 beats 1, 1 beats 2, 2 beats 0, each by a different margin.
    ///
    /// # Errors
    /// If beta is not above zero.
    pub fn cycle(beta: f64) -> Result<Self> {
        let preference = vec![vec![0.5, 0.9, 0.2], vec![0.1, 0.5, 0.8], vec![0.8, 0.2, 0.5]];
        Self::new(preference, Tabular::new(&[0.5, 0.3, 0.2]), beta)
    }

    /// Returns rock, paper, scissors with a uniform reference, which is the equilibrium for every beta.
    ///
    /// # Errors
    /// If beta is not above zero.
    pub fn rock_paper_scissors(beta: f64) -> Result<Self> {
        let preference = vec![vec![0.5, 1.0, 0.0], vec![0.0, 0.5, 1.0], vec![1.0, 0.0, 0.5]];
        Self::new(preference, Tabular::uniform(3), beta)
    }

    /// Returns the reference policy of the KL penalty.
    pub fn reference(&self) -> &Tabular {
        &self.reference
    }

    /// Returns the weight of the KL penalty.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// Returns the probability that each completion beats one of the opponent's, `[completion]`.
    pub fn wins(&self, opponent: &Tabular) -> Vec<f64> {
        self.preference.iter().map(|row| opponent.mean(row)).collect()
    }

    /// Returns `argmin_π P(opponent ≻ π) + β KL(π ‖ ref) + (β/η) KL(π ‖ centre)`, which has a closed form:
    /// `log π = [η log ref + log centre + (η/β) P(y ≻ opponent)] / (1 + η) + const`.
    pub fn proximal_step(&self, centre: &Tabular, opponent: &Tabular, eta: f64) -> Tabular {
        let tilt: Vec<f64> = self.wins(opponent).iter().map(|wins| eta / self.beta * wins / (1.0 + eta)).collect();
        Tabular::product(&[(eta / (1.0 + eta), &self.reference), (1.0 / (1.0 + eta), centre)], &tilt)
    }

    /// Returns the best response to this opponent under the KL penalty.
    pub fn best_response(&self, opponent: &Tabular) -> Tabular {
        let tilt: Vec<f64> = self.wins(opponent).iter().map(|wins| wins / self.beta).collect();
        Tabular::product(&[(1.0, &self.reference)], &tilt)
    }

    /// Returns `P_β(π ≻ other)`.
    pub fn regularised_win_rate(&self, policy: &Tabular, other: &Tabular) -> f64 {
        policy.mean(&self.wins(other)) - self.beta * policy.kl(&self.reference) + self.beta * other.kl(&self.reference)
    }

    /// Returns the exploitability `max_μ P_β(μ ≻ π) − ½`: the advantage of a best response over a tie. It is zero at
    /// the equilibrium alone.
    pub fn exploitability(&self, policy: &Tabular) -> f64 {
        self.regularised_win_rate(&self.best_response(policy), policy) - 0.5
    }

    /// Returns the range of `log π − log ref − P(· ≻ π)/β` over completions; it is zero at the equilibrium alone.
    pub fn residual(&self, policy: &Tabular) -> f64 {
        let gap: Vec<f64> =
            policy.log_ratio(&self.reference).iter().zip(self.wins(policy)).map(|(h, p)| h - p / self.beta).collect();
        let range = gap.iter().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        range.1 - range.0
    }

    /// Returns the regularised von Neumann winner, to rounding error.
    pub fn equilibrium(&self) -> Tabular {
        // Nash-MP at its guaranteed step shrinks the distance by the factor 1/(1 + 2β) or better in each step.
        let rule = Rule::MirrorProx { eta: 2.0 * self.beta };
        let mut policy = self.reference.clone();
        for _ in 0..1_000_000 {
            let next = rule.next(self, &policy);
            let moved = next.log_ratio(&policy).iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            policy = next;
            if moved < 1e-15 {
                break;
            }
        }
        policy
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::close;
    use super::*;

    #[test]
    fn equilibria_are_those_of_the_fixed_point() {
        for (beta, expected, kl) in [
            (0.1, [0.400_888_850_377, 0.211_822_256_838, 0.387_288_892_785], 0.093_653_760_362_2),
            (0.5, [0.527_119_338_413, 0.230_675_454_208, 0.242_205_207_380], 0.013_601_634_146_0),
            (0.01, [0.307_447_242_258, 0.288_094_645_951, 0.404_458_111_791], 0.123_652_919_869_7),
        ] {
            let game = Game::cycle(beta).unwrap();
            let winner = game.equilibrium();
            close(&winner.probabilities(), &expected, 1e-12);
            close(&[winner.kl(game.reference())], &[kl], 1e-12);
            // The residual is in units of 1/β.
            assert!(game.residual(&winner) < 1e-14 / beta, "{}", game.residual(&winner));
            assert!(game.exploitability(&winner).abs() < 1e-14);
        }
    }

    #[test]
    fn the_winner_is_preferred_to_each_completion_as_computed() {
        let win = |beta: f64| {
            let game = Game::cycle(beta).unwrap();
            game.wins(&game.equilibrium())
        };
        close(&win(0.1), &[0.468_542_234_9, 0.455_831_127_7, 0.556_719_978_1], 1e-10);
        close(&win(0.5), &[0.519_608_619_5, 0.361_813_826_8, 0.588_933_165_3], 1e-10);
        close(&win(0.01), &[0.493_900_424_8, 0.498_358_536_6, 0.505_805_778_9], 1e-10);
    }

    #[test]
    fn every_policy_but_the_winner_can_be_exploited() {
        let game = Game::cycle(0.1).unwrap();
        close(&[game.exploitability(game.reference())], &[2.997_062e-2], 1e-8);
        assert!(game.exploitability(&Tabular::uniform(3)) > 1e-3);
        // No policy of a fine grid beats the winner.
        let winner = game.equilibrium();
        for a in 1..40 {
            for b in 1..40 - a {
                let mu = Tabular::new(&[f64::from(a), f64::from(b), f64::from(40 - a - b)]);
                assert!(game.regularised_win_rate(&mu, &winner) <= 0.5 + 1e-12);
            }
        }
    }

    #[test]
    fn matrices_that_are_no_preferences_are_refused() {
        let uniform = || Tabular::uniform(2);
        let refused = |matrix: [[f64; 2]; 2], beta| {
            let rows = matrix.iter().map(|row| row.to_vec()).collect();
            Game::new(rows, uniform(), beta).unwrap_err().to_string()
        };
        assert!(refused([[0.5, 0.7], [0.7, 0.5]], 0.1).contains("sum to 1"));
        assert!(refused([[0.5, 1.2], [-0.2, 0.5]], 0.1).contains("sum to 1"));
        assert!(refused([[0.5, 0.7], [0.3, 0.5]], 0.0).contains("beta"));
        assert!(Game::new(vec![vec![0.5]], uniform(), 0.1).is_err());
    }
}
