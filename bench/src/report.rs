//! The report of a benchmark: one JSON object, whose figures of several processes are merged by their keys.

use crate::figure::{Figure, median};
use crate::roofline::Machine;
use crate::setup::{Setup, prose};
use serde_json::{Map, Value, json};

/// A benchmark's figures and conditions. Its JSON is the output of `proxrl bench --json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report(pub(crate) Value);

/// A figure as a reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The name of the figure.
    pub name: String,
    /// The unit of the values, such as `tokens/s`.
    pub unit: String,
    /// The median of the repetitions.
    pub median: Option<f64>,
    /// The least repetition.
    pub low: Option<f64>,
    /// The greatest repetition.
    pub high: Option<f64>,
    /// The machine's limit on the same work, in the same unit.
    pub limit: Option<f64>,
    /// The share of the limit that is reached; 1 is all of it.
    pub share_of_limit: Option<f64>,
}

impl Report {
    /// The report of one part, measured in this process. `others` is the number of cores that other processes kept busy.
    pub(crate) fn new(
        setup: &Setup,
        part: &str,
        others: Option<f64>,
        machine: Option<Machine>,
        figures: &[Figure],
    ) -> Self {
        let model = if setup.config.model.path.is_empty() { "random" } else { &setup.config.model.path };
        let mut report = json!({
            "program": format!("proxrl {}", env!("CARGO_PKG_VERSION")),
            "config": setup.name,
            "model": model,
            "dtype": setup.config.model.dtype,
            "threads": tch::get_num_threads(),
            "others": { part: others },
            "prose": prose(),
            "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
        });
        if let Some(machine) = machine {
            report["machine"] = machine.json();
        }
        Self(report)
    }

    /// Merges reports: figures of one key become one with all their repetitions.
    pub(crate) fn merge(reports: &[Self]) -> Self {
        let mut whole = reports.first().map_or_else(Value::default, |first| first.0.clone());
        let mut figures: Vec<Value> = Vec::new();
        let mut others = Map::new();
        for Self(report) in reports {
            if whole.get("machine").is_none()
                && let Some(machine) = report.get("machine")
            {
                whole["machine"] = machine.clone();
            }
            for figure in report["figures"].as_array().into_iter().flatten() {
                match figures.iter_mut().find(|known| known["key"] == figure["key"]) {
                    Some(known) => *known = with_values_of(known, figure),
                    None => figures.push(figure.clone()),
                }
            }
            for (part, cores) in report["others"].as_object().into_iter().flatten() {
                // Of several processes that measured one part, the most disturbed counts.
                let known = others.get(part).and_then(Value::as_f64);
                if known <= cores.as_f64() {
                    others.insert(part.clone(), cores.clone());
                }
            }
        }
        whole["figures"] = figures.into();
        whole["others"] = others.into();
        Self(whole)
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// Returns the conditions of the measurement on one line.
    pub fn title(&self) -> String {
        let report = &self.0;
        let text = |key: &str| report[key].as_str().unwrap_or_default();
        let title = format!("{} with {}, {} threads", text("program"), text("model"), report["threads"]);
        let Some(machine) = report.get("machine") else { return title };
        let rate = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
        let (products, reading) = (rate("gflop_per_s"), rate("read_gb_per_s"));
        format!("{title}, limits: {products:.0} GFLOP/s in products, {reading:.1} GB/s of reading")
    }

    /// Returns the figures in the order of their measurement.
    pub fn rows(&self) -> Vec<Row> {
        let row = |figure: &Value| {
            let text = |key: &str| figure[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| figure[key].as_f64();
            Row {
                name: text("name"),
                unit: text("unit"),
                median: number("median"),
                low: number("low"),
                high: number("high"),
                limit: number("limit"),
                share_of_limit: number("share_of_limit"),
            }
        };
        self.0["figures"].as_array().into_iter().flatten().map(row).collect()
    }
}

/// The first figure with the repetitions of both.
fn with_values_of(first: &Value, second: &Value) -> Value {
    let numbers = |figure: &Value| -> Vec<f64> {
        figure["values"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let values = [numbers(first), numbers(second)].concat();
    let mut figure = first.clone();
    figure["median"] = json!(median(&values));
    figure["low"] = json!(values.iter().copied().fold(f64::INFINITY, f64::min));
    figure["high"] = json!(values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    figure["values"] = json!(values);
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_of_several_processes_are_one_figure() {
        let report = |seconds: f64, others: f64| {
            let figures = [Figure::seconds("a", "a", vec![seconds], None).json()];
            Report(json!({"figures": figures, "others": {"decode": others}}))
        };
        let whole = Report::merge(&[report(3.0, 0.1), report(1.0, 0.5), report(2.0, 0.2)]);
        let rows = whole.rows();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].median, rows[0].low, rows[0].high), (Some(2.0), Some(1.0), Some(3.0)));
        assert_eq!((rows[0].unit.as_str(), rows[0].limit), ("s", None));
        assert_eq!(whole.json()["others"]["decode"], 0.5);
    }

    #[test]
    fn the_limits_of_the_machine_come_from_the_first_report_that_has_them() {
        let start = Report(json!({"program": "p", "model": "m", "threads": 2, "figures": []}));
        assert_eq!(start.title(), "p with m, 2 threads");
        let measured = Report(json!({"machine": {"gflop_per_s": 99.6, "read_gb_per_s": 20.0}, "figures": []}));
        let title = Report::merge(&[start, measured]).title();
        assert_eq!(title, "p with m, 2 threads, limits: 100 GFLOP/s in products, 20.0 GB/s of reading");
    }
}
