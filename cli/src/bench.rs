//! `proxrl bench`: how fast this machine samples and trains with a model, and how near that is to its limit.
//!
//! Each part is measured in a process of its own, so that its peak memory is its own. Every figure is the median of some
//! repetitions with the least and the greatest, beside what the machine could do at best ([`limit`]).

mod figure;
mod limit;
mod others;
mod sampling;
mod steps;
mod training;

use crate::profile::Kept;
use crate::screen::{self, Usage};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use figure::{Figure, Patience, peak_memory_mb};
use limit::Machine;
use model::Policy;
use others::{DISTURBING, Meter};
use schema::{Seed, Token};
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use trainer::config::{Config, Override};

/// The config that is measured unless another one is given.
const CONFIG: &str = include_str!("../../configs/bench.toml");
const CONFIG_NAME: &str = "configs/bench.toml";

/// What prompts and rows are made of: C. Darwin, On the Origin of Species, 1859.
const PROSE: &str = include_str!("bench/prose.txt");

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to measure; all but growth if none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The model: a folder, a .gguf file, a name in the cache or a hub id; the config's if not given.
    #[arg(long, short, value_name = "PATH")]
    model: Option<String>,
    /// The config of a run that draws samples, whose model, rollout, algorithm and optimizer are measured.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one key of the config, such as `rollout.group_size=4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// No further repetition of a figure begins after so many seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How many sequences decode side by side.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    batches: Vec<usize>,
    /// Tokens of a prompt that decoding begins with.
    #[arg(long, default_value_t = 64)]
    prompt_tokens: usize,
    /// Tokens that are then drawn.
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// Tokens of a row that is scored or trained on.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512, 2048])]
    lengths: Vec<usize>,
    /// Tokens of all rows of an update together.
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Leave out the batch of rows of unequal lengths.
    #[arg(long)]
    no_ragged: bool,
    /// Print one JSON object with every repetition.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Tokens drawn per second, by the number of sequences that decode side by side.
    Decode,
    /// Prompt tokens per second.
    Prefill,
    /// Tokens per second whose log-probabilities are computed.
    Score,
    /// Tokens per second of forward, backward and update.
    Train,
    /// A step of the config: draw, judge, store, learn.
    Grpo,
    /// A step of DPO on 32 pairs of answers of 64 tokens to prompts of 64 tokens.
    Dpo,
    /// From the command to the first step.
    Startup,
    /// What a token costs as groups and rows grow.
    Growth,
}

impl Part {
    const USUAL: [Self; 7] =
        [Self::Decode, Self::Prefill, Self::Score, Self::Train, Self::Grpo, Self::Dpo, Self::Startup];

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn measure(self, bench: &Bench) -> Result<Vec<Figure>> {
        match self {
            Self::Decode => sampling::decode(bench),
            Self::Prefill => sampling::prefill(bench),
            Self::Score => training::score(bench),
            Self::Train => training::train(bench),
            Self::Grpo => steps::grpo(bench),
            Self::Dpo => steps::dpo(bench),
            Self::Startup => steps::startup(bench),
            Self::Growth => Ok([sampling::groups(bench)?, training::lengths(bench)?].concat()),
        }
    }
}

/// How large the pieces of work are.
struct Sizes {
    batches: Vec<usize>,
    prompt_tokens: usize,
    new_tokens: usize,
    lengths: Vec<usize>,
    tokens: usize,
    ragged: bool,
}

/// What every part is measured with.
struct Bench {
    config: Config,
    text: String,
    name: String,
    changes: Vec<Override>,
    sizes: Sizes,
    patience: Patience,
    phases: Kept,
    policy: OnceCell<Policy>,
    machine: OnceCell<Machine>,
}

impl Bench {
    fn new(args: &Args, phases: Kept) -> Result<Self> {
        let (text, name) = match &args.config {
            None => (CONFIG.to_owned(), CONFIG_NAME.to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Usage(format!("cannot read the config {}: {error}; configs/ has examples", path.display()))
                })?;
                (text, path.display().to_string())
            }
        };
        let model = args.model.iter().map(|path| format!("model.path={path:?}"));
        let changes = model
            .chain(args.set.iter().cloned())
            .map(|change| change.parse::<Override>().map_err(|error| Usage(format!("--set {error}")).into()))
            .collect::<Result<Vec<_>>>()?;
        let config = Config::parse(&text, &name, &changes)?;
        let sizes = Sizes {
            batches: args.batches.clone(),
            prompt_tokens: args.prompt_tokens,
            new_tokens: args.new_tokens,
            lengths: args.lengths.clone(),
            tokens: args.tokens,
            ragged: !args.no_ragged,
        };
        let positive = [
            ("--repetitions", args.repetitions),
            ("--prompt-tokens", sizes.prompt_tokens),
            ("--tokens", sizes.tokens),
            ("--batches", sizes.batches.iter().copied().min().unwrap_or(0)),
        ];
        if let Some((option, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Usage(format!("{option} must be at least 1, but is 0")).into());
        }
        if let Some(length) = sizes.lengths.iter().find(|length| **length < 2) {
            return Err(Usage(format!("--lengths has {length}; a row needs two tokens, one to begin with")).into());
        }
        if sizes.new_tokens < 3 {
            let given = sizes.new_tokens;
            return Err(Usage(format!("--new-tokens is {given}; at least 3 are needed, the first two warm up")).into());
        }
        Ok(Self {
            config,
            text,
            name,
            changes,
            sizes,
            patience: Patience { repetitions: args.repetitions, seconds: args.seconds },
            phases,
            policy: OnceCell::new(),
            machine: OnceCell::new(),
        })
    }

    /// The config with further changes.
    fn config_with(&self, changes: &[Override]) -> Result<Config> {
        let changes: Vec<Override> = self.changes.iter().chain(changes).cloned().collect();
        Ok(Config::parse(&self.text, &self.name, &changes)?)
    }

    /// The config's policy, loaded when it is first asked for.
    fn policy(&self) -> Result<&Policy> {
        if self.policy.get().is_none() {
            let mut policy = Policy::load(&self.config.model, &Seed::new(self.config.seed))?;
            // As if it had been trained: an adapter that does nothing might be left out.
            policy.adapter().perturb(1e-3);
            policy.set_version(1);
            let _ = self.policy.set(policy);
        }
        self.policy.get().context("the policy was just loaded")
    }

    /// What this machine can do, measured when it is first asked for.
    fn machine(&self) -> Result<Machine> {
        if self.machine.get().is_none() {
            let _ = self.machine.set(Machine::measure(self.policy()?)?);
        }
        self.machine.get().copied().context("the machine was just measured")
    }
}

/// The prose as tokens.
fn prose(policy: &Policy) -> Result<Vec<Token>> {
    Ok(policy.tokenizer().encode(&PROSE.replace('\n', " "))?)
}

pub(crate) fn run(args: &Args, phases: &Kept) -> Result<()> {
    // Refuses what is wrong before anything is measured, in whatever process.
    let bench = Bench::new(args, phases.clone())?;
    let mut parts = if args.parts.is_empty() { Part::USUAL.to_vec() } else { args.parts.clone() };
    parts.dedup();
    let results = match parts[..] {
        // How long a start takes, a process can say once.
        [Part::Startup] if args.repetitions > 1 => apart(args, &[Part::Startup].repeat(args.repetitions), 1)?,
        [part] => vec![alone(&bench, part)?],
        _ => apart(args, &parts, args.repetitions)?,
    };
    let whole = joined(&results);
    if args.json {
        screen::answer(&format!("{whole:#}\n"))?;
    } else {
        screen::answer(&table(&whole))?;
    }
    Ok(())
}

/// Measures one part in this process.
fn alone(bench: &Bench, part: Part) -> Result<Value> {
    let meter = Meter::start();
    let mut figures = part.measure(bench)?;
    let others = meter.others();
    let name = part.name();
    if let Some(cores) = others.filter(|cores| *cores > DISTURBING) {
        screen::note(&format!(
            "other processes kept {cores:.1} cores busy while {name} was measured: repeat it on a quiet machine"
        ));
    }
    let peak = Figure::amount(format!("{name}/peak_memory"), format!("peak memory of {name}"), "MB", peak_memory_mb());
    figures.push(peak);
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    let model = if bench.config.model.path.is_empty() { "random" } else { &bench.config.model.path };
    let mut report = json!({
        "program": format!("proxrl {}", env!("CARGO_PKG_VERSION")),
        "config": bench.name,
        "model": model,
        "dtype": bench.config.model.dtype,
        "threads": tch::get_num_threads(),
        "others": { name: others },
        "prose": PROSE.replace('\n', " "),
        "figures": figures,
    });
    // A start is not held against anything.
    if part != Part::Startup {
        report["machine"] = bench.machine()?.json();
    }
    Ok(report)
}

/// Measures each part in a process of its own: this program again, with one part named.
fn apart(args: &Args, parts: &[Part], repetitions: usize) -> Result<Vec<Value>> {
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let mut results = Vec::new();
    for part in parts {
        screen::note(&format!("measuring {}", part.name()));
        let child = Command::new(&program)
            .args(args.again(*part, repetitions))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(child.status.success(), "measuring {} failed", part.name());
        let report = serde_json::from_slice(&child.stdout).with_context(|| format!("{} gave no JSON", part.name()))?;
        results.push(report);
    }
    Ok(results)
}

impl Args {
    /// The command line that measures one part with the same options.
    fn again(&self, part: Part, repetitions: usize) -> Vec<String> {
        let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut words = vec!["bench".to_owned(), part.name(), "--json".into()];
        let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
        option("repetitions", repetitions.to_string());
        option("seconds", self.seconds.to_string());
        option("batches", list(&self.batches));
        option("prompt-tokens", self.prompt_tokens.to_string());
        option("new-tokens", self.new_tokens.to_string());
        option("lengths", list(&self.lengths));
        option("tokens", self.tokens.to_string());
        self.model.iter().for_each(|model| option("model", model.clone()));
        self.config.iter().for_each(|config| option("config", config.display().to_string()));
        self.set.iter().for_each(|change| option("set", change.clone()));
        if self.no_ragged {
            words.push("--no-ragged".into());
        }
        words
    }
}

/// One report of several: figures of one key become one with all their repetitions.
fn joined(reports: &[Value]) -> Value {
    let mut whole = reports.first().cloned().unwrap_or_default();
    let mut figures: Vec<Value> = Vec::new();
    for report in reports {
        if whole.get("machine").is_none()
            && let Some(machine) = report.get("machine")
        {
            whole["machine"] = machine.clone();
        }
        for figure in report["figures"].as_array().into_iter().flatten() {
            match figures.iter_mut().find(|known| known["key"] == figure["key"]) {
                Some(known) => *known = both(known, figure),
                None => figures.push(figure.clone()),
            }
        }
    }
    whole["figures"] = figures.into();
    whole["others"] = reports.iter().filter_map(|report| report["others"].as_object()).flatten().fold(
        Value::Object(serde_json::Map::default()),
        |mut all, (part, cores)| {
            // Of several processes that measured one part, the most disturbed.
            if all[part].as_f64() <= cores.as_f64() {
                all[part] = cores.clone();
            }
            all
        },
    );
    whole
}

/// A figure that was measured twice.
fn both(first: &Value, second: &Value) -> Value {
    let numbers = |figure: &Value| -> Vec<f64> {
        figure["values"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let values = [numbers(first), numbers(second)].concat();
    let mut figure = first.clone();
    figure["median"] = json!(figure::median(&values));
    figure["low"] = json!(values.iter().copied().fold(f64::INFINITY, f64::min));
    figure["high"] = json!(values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    figure["values"] = json!(values);
    figure
}

/// The figures for a reader.
fn table(report: &Value) -> String {
    let mut text = format!(
        "{} with {}, {} threads",
        report["program"].as_str().unwrap_or_default(),
        report["model"].as_str().unwrap_or_default(),
        report["threads"]
    );
    if let Some(machine) = report.get("machine") {
        let rate = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
        let (products, reading) = (rate("gflop_per_s"), rate("read_gb_per_s"));
        let _ = write!(text, ", limits: {products:.0} GFLOP/s in products, {reading:.1} GB/s of reading");
    }
    text += "\n\n";
    let heads = ["figure", "median", "least", "greatest", "limit", "reached"].map(str::to_owned);
    let mut rows = vec![heads];
    for figure in report["figures"].as_array().into_iter().flatten() {
        let unit = figure["unit"].as_str().unwrap_or_default();
        let number = |key: &str| figure[key].as_f64().map_or_else(|| "–".to_owned(), digits);
        let share =
            figure["share_of_limit"].as_f64().map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
        let name = figure["name"].as_str().unwrap_or_default().to_owned();
        let limit = if figure["limit"].is_null() { String::new() } else { number("limit") };
        rows.push([name, format!("{} {unit}", number("median")), number("low"), number("high"), limit, share]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 { write!(text, "  {cell:width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Three digits that count.
fn digits(number: f64) -> String {
    let size = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    format!("{number:.*}", (2 - size).clamp(0, 9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (number, expected) in
            [(0.0, "0.00"), (0.001_234, "0.00123"), (1.234, "1.23"), (56.78, "56.8"), (12_345.0, "12345")]
        {
            assert_eq!(digits(number), expected);
        }
    }

    #[test]
    fn repetitions_of_two_processes_are_one_figure() {
        let report = |seconds: f64| json!({"figures": [Figure::seconds("a", "a", vec![seconds], None).json()]});
        let whole = joined(&[report(3.0), report(1.0), report(2.0)]);
        let figures = whole["figures"].as_array().unwrap();
        assert_eq!(figures.len(), 1);
        assert_eq!(
            (&figures[0]["median"], &figures[0]["low"], &figures[0]["high"]),
            (&json!(2.0), &json!(1.0), &json!(3.0))
        );
        assert!(table(&whole).contains("2.00 s"));
    }

    #[test]
    fn the_config_is_one_that_draws() {
        let config = Config::parse(CONFIG, CONFIG_NAME, &[]).unwrap();
        assert_eq!((config.rollout.prompts_per_step, config.rollout.group_size), (4, 8));
    }
}
