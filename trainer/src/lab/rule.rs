//! Exact updates towards the equilibrium of a regularised preference game.
//!
//! ```text
//! Nash-MP        half = prox(π, opponent π),  π⁺ = prox(π, opponent half),  prox as in `Game::proximal_step`
//! Nash-MD        mix ∝ π^(1−ηβ) ref^(ηβ),     log π⁺ = log mix + η P(· ≻ mix) + const
//! self-play      log π⁺ = (1−eβ) log π + eβ log ref + e P(· ≻ π) + const                        (online IPO)
//! extragradient  half by self-play,           log π⁺ = (1−eβ) log π + eβ log ref + e P(· ≻ half) + const
//! ```
//!
//! Nash-MP is mirror prox (Tiapkin et al. 2025, Accelerating Nash learning from human feedback, arXiv 2505.19731). With
//! η ≤ 2β each step contracts: `KL(π* ‖ π_{k+1}) ≤ KL(π* ‖ π_k) / (1 + η)`. The proof adds the three-point inequalities
//! of both steps; the cross term `⟨c_k − c_{k+½}, π_{k+½} − π_{k+1}⟩ / β` is at most half the sum of two KL by Pinsker,
//! since `P − ½` lies in [−½, ½], and the prox terms absorb it. On tables it *is* the extragradient method (Zhou et al.
//! 2025, EGPO, arXiv 2503.08942) at step `e = η / (β (1 + η))`. Nash-MD is by Munos et al. 2024, arXiv 2312.00886.

use super::{Game, Tabular};

/// Update rule from one policy to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Nash-MP: two proximal steps from the same centre, the second against the result of the first.
    MirrorProx {
        /// Step size η; the guarantee holds up to 2β.
        eta: f64,
    },
    /// Nash-MD: a step against the geometric mixture of policy and reference.
    NashMd {
        /// Step size.
        step: f64,
    },
    /// Regularised mirror descent against the policy itself: online IPO.
    SelfPlay {
        /// Step size.
        step: f64,
    },
    /// EGPO: a look-ahead step by self-play, then a step from the start against its result.
    Extragradient {
        /// Step size.
        step: f64,
    },
}

impl Rule {
    /// Returns the step size at which the extragradient method and self-play equal Nash-MP at `eta`.
    pub fn extragradient_step(eta: f64, beta: f64) -> f64 {
        eta / (beta * (1.0 + eta))
    }

    /// Returns the name in tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Self::MirrorProx { .. } => "Nash-MP",
            Self::NashMd { .. } => "Nash-MD",
            Self::SelfPlay { .. } => "self-play",
            Self::Extragradient { .. } => "extragradient",
        }
    }

    /// Returns the number of times one update evaluates the win rates against a whole policy.
    pub fn queries(self) -> u64 {
        match self {
            Self::MirrorProx { .. } | Self::Extragradient { .. } => 2,
            Self::NashMd { .. } | Self::SelfPlay { .. } => 1,
        }
    }

    /// Returns the next policy.
    pub fn next(self, game: &Game, policy: &Tabular) -> Tabular {
        match self {
            Self::MirrorProx { eta } => {
                let half = game.proximal_step(policy, policy, eta);
                game.proximal_step(policy, &half, eta)
            }
            Self::NashMd { step } => {
                let pull = step * game.beta();
                let no_tilt = vec![0.0; policy.logprobs().len()];
                let mixture = Tabular::product(&[(1.0 - pull, policy), (pull, game.reference())], &no_tilt);
                let tilt: Vec<f64> = game.wins(&mixture).iter().map(|wins| step * wins).collect();
                Tabular::product(&[(1.0, &mixture)], &tilt)
            }
            Self::SelfPlay { step } => against(game, policy, policy, step),
            Self::Extragradient { step } => {
                let half = against(game, policy, policy, step);
                against(game, policy, &half, step)
            }
        }
    }

    /// Returns the first `count` policies of a run that starts at the reference, the reference included.
    pub fn run(self, game: &Game, count: usize) -> Vec<Tabular> {
        std::iter::successors(Some(game.reference().clone()), |policy| Some(self.next(game, policy)))
            .take(count)
            .collect()
    }
}

/// Takes one step of regularised mirror descent from `policy` against `opponent`.
fn against(game: &Game, policy: &Tabular, opponent: &Tabular, step: f64) -> Tabular {
    let pull = step * game.beta();
    let tilt: Vec<f64> = game.wins(opponent).iter().map(|wins| step * wins).collect();
    Tabular::product(&[(1.0 - pull, policy), (pull, game.reference())], &tilt)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, has_probabilities};
    use super::*;

    /// Returns the distances to the equilibrium, `KL(π* ‖ π_k)`, for k = 0, 1, …
    fn distances(rule: Rule, beta: f64, count: usize) -> Vec<f64> {
        let game = Game::cycle(beta).unwrap();
        let winner = game.equilibrium();
        rule.run(&game, count).iter().map(|policy| winner.kl(policy)).collect()
    }

    #[test]
    fn nash_mp_comes_as_close_as_an_independent_program_found() {
        let steps = [0, 1, 2, 3, 5, 10, 20];
        for (beta, expected) in [
            (
                0.1,
                [
                    9.365_376_036e-2,
                    5.874_078_824e-2,
                    3.697_910_597e-2,
                    2.316_470_033e-2,
                    8.981_709_432e-3,
                    8.272_649_675e-4,
                    6.252_268_783e-6,
                ],
            ),
            (
                0.5,
                [
                    1.360_163_415e-2,
                    3.042_880_813e-3,
                    6.935_602_653e-4,
                    1.590_305_257e-4,
                    8.363_813_649e-6,
                    5.251_366_750e-9,
                    2.070_785e-15,
                ],
            ),
            (
                0.01,
                [
                    1.236_529_199e-1,
                    1.062_604_222e-1,
                    9.234_825_107e-2,
                    7.974_298_682e-2,
                    5.811_658_466e-2,
                    2.722_365_467e-2,
                    4.916_923_030e-3,
                ],
            ),
        ] {
            let found = distances(Rule::MirrorProx { eta: 2.0 * beta }, beta, 101);
            // Ten digits of numbers of the order of 0.1 are given.
            close(&steps.map(|k| found[k]), &expected, 6e-11);
        }
        let slow = distances(Rule::MirrorProx { eta: 0.02 }, 0.01, 101);
        close(&[slow[50], slow[100]], &[2.914_926_500e-5, 5.524_735_511e-9], 1e-13);
        let fast = distances(Rule::MirrorProx { eta: 0.2 }, 0.1, 101);
        close(&[fast[50], fast[100]], &[2.759_431e-12, 0.0], 1e-15);
    }

    #[test]
    fn nash_mp_never_leaves_its_bound() {
        for beta in [0.5, 0.1, 0.05, 0.01] {
            let found = distances(Rule::MirrorProx { eta: 2.0 * beta }, beta, 400);
            for (k, distance) in found.iter().enumerate() {
                let bound = found[0] * (1.0 + 2.0 * beta).powi(-(k as i32));
                assert!(*distance <= bound + 1e-14, "beta {beta}, step {k}: {distance} above {bound}");
            }
        }
        // At β = 0.1 it contracts by 0.62 or so, where 0.83 is guaranteed.
        let found = distances(Rule::MirrorProx { eta: 0.2 }, 0.1, 12);
        assert!((0.61..0.64).contains(&(found[10] / found[9])), "{found:?}");
    }

    #[test]
    fn nash_mp_visits_these_policies() {
        let game = Game::cycle(0.1).unwrap();
        let run = Rule::MirrorProx { eta: 0.2 }.run(&game, 4);
        let half = |policy: &Tabular| game.proximal_step(policy, policy, 0.2);
        has_probabilities(&half(&run[0]), &[0.546_472_339_353, 0.234_938_724_905, 0.218_588_935_741]);
        has_probabilities(&run[1], &[0.529_307_769_177, 0.234_719_846_268, 0.235_972_384_555]);
        has_probabilities(&half(&run[1]), &[0.542_603_821_677, 0.192_522_811_722, 0.264_873_366_601]);
        has_probabilities(&run[2], &[0.527_414_668_729, 0.196_368_028_683, 0.276_217_302_588]);
        has_probabilities(&run[3], &[0.508_141_330_853, 0.176_158_815_589, 0.315_699_853_557]);
        for (k, expected) in [(0, 2.997_062e-2), (1, 1.831_771e-2)] {
            close(&[game.exploitability(&run[k])], &[expected], 5e-9);
        }
        let run = Rule::MirrorProx { eta: 0.2 }.run(&game, 21);
        close(&[game.exploitability(&run[10])], &[3.621_838e-4], 5e-11);
        close(&[game.exploitability(&run[20])], &[2.674_813e-6], 5e-13);
    }

    #[test]
    fn nash_mp_is_the_extragradient_method_at_another_step() {
        for (beta, eta) in [(0.5, 1.0), (0.1, 0.2), (0.01, 0.02), (0.1, 0.05)] {
            let game = Game::cycle(beta).unwrap();
            let step = Rule::extragradient_step(eta, beta);
            let prox = Rule::MirrorProx { eta }.run(&game, 30);
            let extra = Rule::Extragradient { step }.run(&game, 30);
            for (a, b) in prox.iter().zip(&extra) {
                close(&a.probabilities(), &b.probabilities(), 4e-15);
            }
        }
    }

    #[test]
    fn the_other_rules_converge_stall_or_circle_as_measured() {
        // KL(π* ‖ π_k) after 1, 10, 100 and 1000 updates.
        for (rule, beta, expected) in [
            (Rule::NashMd { step: 0.2 }, 0.1, [9.029_375e-2, 6.492_374e-2, 2.431_318e-3, 3.249_411e-5]),
            (Rule::NashMd { step: 1.0 }, 0.1, [8.010_291e-2, 2.329_060e-2, 9.152_511e-4, 9.173_161e-4]),
            (Rule::NashMd { step: 1.0 }, 0.01, [1.253_565e-1, 1.376_497e-1, 2.383_605e-1, 3.994_925e-1]),
            (Rule::SelfPlay { step: 1.0 / 0.6 }, 0.1, [7.538_559e-2, 7.850_478e-3, 2.998e-12, 0.0]),
            (Rule::SelfPlay { step: 0.02 / 0.0102 }, 0.01, [1.342_434e-1, 2.124_694e-1, 9.818_913e-1, 9.276e-1]),
        ] {
            let found = distances(rule, beta, 1001);
            for (k, expected) in [1, 10, 100, 1000].into_iter().zip(expected) {
                let tolerance = if expected == 9.276e-1 { 5e-5 } else { 5e-7 * expected + 1e-15 };
                assert!((found[k] - expected).abs() <= tolerance, "{rule:?} at {k}: {} for {expected}", found[k]);
            }
        }
    }

    #[test]
    fn rock_paper_scissors_ends_uniform() {
        let game = Game::rock_paper_scissors(0.1).unwrap();
        let rule = Rule::MirrorProx { eta: 0.2 };
        let start = Tabular::new(&[0.6, 0.3, 0.1]);
        let run: Vec<Tabular> =
            std::iter::successors(Some(start), |policy| Some(rule.next(&game, policy))).take(6).collect();
        has_probabilities(&run[1], &[0.597_493_665_1, 0.215_676_591_3, 0.186_829_743_5]);
        let distances: Vec<f64> = run.iter().map(|policy| Tabular::uniform(3).kl(policy)).collect();
        let expected = [
            2.405_155_517e-1,
            1.435_691_755e-1,
            7.985_802_559e-2,
            4.220_540_350e-2,
            2.252_036_940e-2,
            1.207_326_118e-2,
        ];
        close(&distances, &expected, 1e-10);
    }
}
