//! Preference games on a table: distance of each method from the equilibrium, against its preference queries.
//!
//! ```sh
//! cargo run --release --example matrix_game                     # tables
//! cargo run --release --example matrix_game -- --json           # every number, for machines
//! cargo run --release --example matrix_game -- --out pictures   # SVG and PNG as well
//! ```
//!
//! It fails if Nash-MP leaves its guaranteed bound at any step.
#![expect(clippy::print_stdout, reason = "an example shows its results")]

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use trainer::lab::{Game, Iteration, Rule, Tabular, iterations};
use trainer::report::plot::{Curve, Drawn, draw_logarithmic};

/// Preference queries of each run.
const QUERIES: u64 = 200;

/// Least distance in a plot: smaller ones are rounding errors.
const FLOOR: f64 = 1e-16;

/// Rewards of the four completions that APO runs on; each iteration learns them exactly.
const REWARD: [f64; 4] = [1.0, 0.5, 0.0, -1.0];
const ROUNDS: usize = 10;

#[derive(Parser)]
struct Arguments {
    /// Print every number as JSON.
    #[arg(long)]
    json: bool,
    /// Write the pictures into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let games = [0.5, 0.1, 0.01].map(Measured::new).into_iter().collect::<Result<Vec<_>>>()?;
    let accelerated =
        [0.0, 0.3, 0.6].map(|alpha| (alpha, iterations(&Tabular::uniform(4), &REWARD, 1.0, alpha, ROUNDS)));
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for game in &games {
            write(folder, &format!("matrix_game-beta-{}", game.game.beta()), &draw_logarithmic(&game.curve())?)?;
        }
        write(folder, "matrix_game-apo", &draw_logarithmic(&gaps(&accelerated))?)?;
    }
    if arguments.json {
        let games: Vec<Value> = games.iter().map(Measured::json).collect();
        println!("{:#}", json!({ "games": games, "acceleration": accelerated.each_ref().map(acceleration_json) }));
        return Ok(());
    }
    games.iter().for_each(Measured::print);
    print_acceleration(&accelerated);
    Ok(())
}

/// The game of the laboratory at one beta, and the runs of every rule on it.
struct Measured {
    game: Game,
    winner: Tabular,
    /// For each rule the distance `KL(π* ‖ π_k)`, k = 0, 1, …
    runs: Vec<(Rule, Vec<f64>)>,
    /// Upper bound of Nash-MP's distance, for the same k.
    bound: Vec<f64>,
}

impl Measured {
    fn new(beta: f64) -> Result<Self> {
        let game = Game::cycle(beta)?;
        let winner = game.equilibrium();
        let eta = 2.0 * beta;
        let step = Rule::extragradient_step(eta, beta);
        let rules = [
            Rule::MirrorProx { eta },
            Rule::Extragradient { step },
            Rule::SelfPlay { step },
            Rule::NashMd { step: 1.0 },
            Rule::NashMd { step: 0.2 },
        ];
        let runs: Vec<(Rule, Vec<f64>)> = rules
            .iter()
            .map(|rule| {
                let policies = rule.run(&game, (QUERIES / rule.queries()) as usize + 1);
                (*rule, policies.iter().map(|policy| winner.kl(policy)).collect())
            })
            .collect();
        let distances = &runs[0].1;
        let bound: Vec<f64> = (0..distances.len()).map(|k| distances[0] * (1.0 + eta).powi(-(k as i32))).collect();
        for (k, (distance, bound)) in distances.iter().zip(&bound).enumerate() {
            ensure!(*distance <= bound + 1e-14, "beta {beta}, step {k}: KL is {distance}, above its bound {bound}");
        }
        Ok(Self { game, winner, runs, bound })
    }

    /// A rule with its setting, as in legends.
    fn label(rule: Rule) -> String {
        match rule {
            Rule::MirrorProx { eta } => format!("{}, η = {eta}", rule.name()),
            Rule::NashMd { step } | Rule::SelfPlay { step } | Rule::Extragradient { step } => {
                format!("{}, step {step:.4}", rule.name())
            }
        }
    }

    fn curve(&self) -> Curve {
        let points = |queries: u64, values: &[f64]| {
            let point = |(k, value): (usize, &f64)| ((k as u64 * queries) as f64, value.max(FLOOR));
            values.iter().enumerate().map(point).collect::<Vec<_>>()
        };
        // Nash-MP and the extragradient method have the same curve, so only the first is plotted.
        let shown = self.runs.iter().filter(|(rule, _)| !matches!(rule, Rule::Extragradient { .. }));
        let mut series: Vec<_> =
            shown.map(|(rule, distances)| (Self::label(*rule), points(rule.queries(), distances))).collect();
        series.push(("bound of Nash-MP".into(), points(2, &self.bound)));
        Curve {
            title: format!("Distance to the equilibrium, β = {}", self.game.beta()),
            x_label: "preference queries".into(),
            y_label: "KL(π* ‖ π)".into(),
            series,
        }
    }

    fn json(&self) -> Value {
        let runs = self.runs.iter().map(|(rule, distances)| {
            json!({
                "rule": rule.name(),
                "setting": Self::label(*rule),
                "queries_per_update": rule.queries(),
                "kl": distances,
            })
        });
        json!({
            "beta": self.game.beta(),
            "equilibrium": self.winner.probabilities(),
            "kl_to_reference": self.winner.kl(self.game.reference()),
            "residual": self.game.residual(&self.winner),
            "exploitability_of_reference": self.game.exploitability(self.game.reference()),
            "nash_mp_bound": self.bound,
            "runs": runs.collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        let winner: Vec<String> = self.winner.probabilities().iter().map(|p| format!("{p:.12}")).collect();
        println!("β = {}: equilibrium {}", self.game.beta(), winner.join(" "));
        let columns = [0, 2, 4, 10, 20, 40, 100, 200];
        let cells = |values: &dyn Fn(u64) -> f64| numbers(columns.iter().map(|queries| values(*queries)));
        let heading = columns.map(|queries| format!("{queries:>11}")).concat();
        println!("{:<28}{heading}", "KL after so many queries");
        for (rule, distances) in &self.runs {
            println!("{:<28}{}", Self::label(*rule), cells(&|queries| distances[(queries / rule.queries()) as usize]));
        }
        println!("{:<28}{}\n", "bound of Nash-MP", cells(&|queries| self.bound[(queries / 2) as usize]));
    }
}

fn gaps(runs: &[(f64, Vec<Iteration>)]) -> Curve {
    let series = runs.iter().map(|(alpha, run)| {
        let name = if *alpha == 0.0 { "iterative DPO".to_owned() } else { format!("APO, α = {alpha}") };
        (name, run.iter().enumerate().map(|(t, iteration)| ((t + 1) as f64, iteration.gap)).collect())
    });
    Curve {
        title: "Reward that the shipped policy still misses".into(),
        x_label: "iteration".into(),
        y_label: "max r − E r".into(),
        series: series.collect(),
    }
}

fn acceleration_json((alpha, run): &(f64, Vec<Iteration>)) -> Value {
    let iterations = run.iter().map(|iteration| {
        json!({
            "hat": iteration.proximal.probabilities(),
            "extrapolated": iteration.policy.probabilities(),
            "gap": iteration.gap,
        })
    });
    json!({ "alpha": alpha, "iterations": iterations.collect::<Vec<_>>() })
}

fn print_acceleration(runs: &[(f64, Vec<Iteration>)]) {
    let heading = (1..=ROUNDS).map(|t| format!("{t:>11}")).collect::<Vec<_>>().concat();
    println!("{:<28}{heading}", "max r − E r after iteration");
    for ((name, _), (_, run)) in gaps(runs).series.iter().zip(runs) {
        println!("{name:<28}{}", numbers(run.iter().map(|iteration| iteration.gap)));
    }
}

/// The cells of a row.
fn numbers(values: impl Iterator<Item = f64>) -> String {
    values.map(|value| format!("{value:>11.3e}")).collect::<Vec<_>>().concat()
}

fn write(folder: &Path, name: &str, drawn: &Drawn) -> Result<()> {
    for (extension, bytes) in [("svg", drawn.svg.as_bytes()), ("png", &drawn.png)] {
        let path = folder.join(format!("{name}.{extension}"));
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
