//! One line per step for a person who watches.
//!
//! Libraries do not print: whoever has a screen asks for the line.

use schema::Metrics;

/// What the line shows, in this order, where the step has it: the metric, its label, digits after the point.
const COLUMNS: [(&str, &str, usize); 7] = [
    ("reward", "reward", 3),
    ("kl", "kl", 4),
    ("entropy", "entropy", 2),
    ("completions/mean_length", "length", 1),
    ("grad_norm", "grad", 2),
    ("adapter/active_rank", "rank", 1),
    ("perf/generated_tokens_per_second", "tokens/s", 0),
];

/// The main metrics of a step in one line.
pub fn summary_line(metrics: &Metrics) -> String {
    let columns = COLUMNS.iter().filter_map(|(name, label, digits)| {
        let value = metrics.get(name)?;
        Some(format!("{label} {value:.digits$}"))
    });
    columns.collect::<Vec<_>>().join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_the_step_has() {
        let mut metrics = Metrics::new();
        metrics.set("reward", 0.5);
        metrics.set("grad_norm", 1.0);
        metrics.set("unknown", 7.0);
        assert_eq!(summary_line(&metrics), "reward 0.500 · grad 1.00");
    }
}
