//! Two runs side by side: the differences of their configs, samples and metrics.

use crate::ask::trend::{self, StepSums};
use crate::engine::{Access, Connection};
use crate::error::Doing;
use crate::rows::run::{Run, by_id, metrics_of};
use crate::table::{Table, Value};
use crate::{Result, RunId, Store};
use schema::Metrics;
use std::collections::{BTreeMap, BTreeSet};

const DOING: &str = "comparing runs";

/// Number of steps that count as the first, and as the last, of a run.
const SOME: usize = 10;

/// One of the two runs, with its config by dotted keys, its step sums and the means of its last metrics.
struct Side {
    run: Run,
    config: BTreeMap<String, String>,
    steps: Vec<StepSums>,
    metrics: BTreeMap<String, f64>,
}

impl Store {
    /// Compares two runs in three parts: the keys of their configs that differ; the statistics of their samples, at the
    /// start and at the end; the metrics of their last ten steps, averaged. `difference` is the second less the first.
    ///
    /// # Errors
    /// If either run does not exist, or the store cannot be read.
    pub fn diff(&self, first: RunId, second: RunId) -> Result<Table> {
        let (a, b) = self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            Ok((side(&mut snapshot, first).await?, side(&mut snapshot, second).await?))
        })?;
        let title = |side: &Side| format!("{} ({})", side.run.name, side.run.id);
        let mut table = Table::new(["what".to_owned(), title(&a), title(&b), "difference".into()]);
        table.rows.extend(config_rows(&a.config, &b.config));
        table.rows.extend(sample_rows(&a.steps, &b.steps));
        table.rows.extend(metric_rows(&a.metrics, &b.metrics));
        Ok(table)
    }
}

async fn side(connection: &mut Connection, run: RunId) -> Result<Side> {
    let run = by_id(connection, run).await?;
    let metrics = metrics_of(connection, run.id).await?;
    let steps = trend::steps(connection, run.id).await?;
    Ok(Side { config: keys(&run.config), metrics: last_means(&metrics), steps, run })
}

/// Every key of a config by its dotted path. A config that is no TOML has none.
fn keys(config: &str) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &toml::Value, keys: &mut BTreeMap<String, String>) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| walk(&below(key), value, keys)),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                items.iter().enumerate().for_each(|(place, value)| walk(&below(&place.to_string()), value, keys));
            }
            value => {
                keys.insert(path.to_owned(), value.to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    if let Ok(table) = config.parse::<toml::Table>() {
        walk("", &toml::Value::Table(table), &mut found);
    }
    found
}

fn config_rows(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Vec<Value>> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    let value = |side: &BTreeMap<String, String>, name: &String| Value::from(side.get(name).cloned());
    differing.map(|name| vec![format!("config {name}").into(), value(a, name), value(b, name), Value::Null]).collect()
}

/// A statistic of some steps; `None` where they have nothing to take it of.
type Quantity = fn(&StepSums) -> Option<f64>;

fn sample_rows(a: &[StepSums], b: &[StepSums]) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    let count = |name: &str, a: i64, b: i64| vec![name.into(), a.into(), b.into(), (b - a).into()];
    let (total_a, total_b) = (StepSums::total(a), StepSums::total(b));
    rows.push(count("steps", a.len() as i64, b.len() as i64));
    rows.push(count("samples", total_a.samples, total_b.samples));
    rows.push(count("tokens", total_a.tokens, total_b.tokens));
    let start = |steps: &[StepSums]| StepSums::total(&steps[..steps.len().min(SOME)]);
    let end = |steps: &[StepSums]| StepSums::total(&steps[steps.len().saturating_sub(SOME)..]);
    let parts = [("first", start(a), start(b)), ("last", end(a), end(b))];
    let quantities: [(&str, Quantity); 5] = [
        ("reward", StepSums::reward_mean),
        ("length", StepSums::length_mean),
        ("clipped", StepSums::clipped_share),
        ("no signal", StepSums::no_signal_share),
        ("unjudged", StepSums::unjudged_share),
    ];
    for (name, quantity) in quantities {
        for (part, a, b) in &parts {
            rows.push(compared(format!("{name}, {part} {SOME} steps"), quantity(a), quantity(b)));
        }
    }
    rows
}

/// The mean of each metric over the last steps that have it.
fn last_means(metrics: &[(u64, Metrics)]) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (_, step) in &metrics[metrics.len().saturating_sub(SOME)..] {
        for (name, value) in step.iter() {
            values.entry(name.to_owned()).or_default().push(value);
        }
    }
    values.into_iter().map(|(name, values)| (name, values.iter().sum::<f64>() / values.len() as f64)).collect()
}

fn metric_rows(a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>) -> Vec<Vec<Value>> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names
        .into_iter()
        .map(|name| compared(format!("metric {name}"), a.get(name).copied(), b.get(name).copied()))
        .collect()
}

fn compared(name: String, a: Option<f64>, b: Option<f64>) -> Vec<Value> {
    let difference = a.zip(b).map(|(a, b)| b - a);
    vec![name.into(), a.into(), b.into(), difference.into()]
}
