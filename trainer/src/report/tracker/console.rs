//! A one-line summary of a step for the terminal.
//!
//! Libraries do not print: the program that owns the terminal asks for the line.

use schema::Metrics;

/// Columns of a step with rewards, in this order, each shown if the step has it: metric, label, digits after the point.
const REWARD_COLUMNS: [(&str, &str, usize); 7] = [
    ("reward", "reward", 3),
    ("kl", "kl", 4),
    ("entropy", "entropy", 2),
    ("completions/mean_length", "length", 1),
    ("grad_norm", "grad", 2),
    ("adapter/active_rank", "rank", 1),
    ("perf/generated_tokens_per_second", "tokens/s", 0),
];

/// Columns of a step that learned from a data set.
const DATASET_COLUMNS: [(&str, &str, usize); 7] = [
    ("loss", "loss", 4),
    ("accuracy", "accuracy", 3),
    ("margin", "margin", 3),
    ("mean_token_accuracy", "token accuracy", 3),
    ("completions/mean_length", "length", 1),
    ("grad_norm", "grad", 2),
    ("adapter/active_rank", "rank", 1),
];

/// Returns the main metrics of a step in one line.
pub fn summary_line(metrics: &Metrics) -> String {
    let columns = if metrics.get("reward").is_some() { REWARD_COLUMNS } else { DATASET_COLUMNS };
    let columns = columns.iter().filter_map(|(name, label, digits)| {
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
        metrics.set("loss", 0.25);
        assert_eq!(summary_line(&metrics), "reward 0.500 · grad 1.00");
    }

    #[test]
    fn without_rewards_the_loss_is_shown() {
        let mut metrics = Metrics::new();
        metrics.set("loss", 0.25);
        metrics.set("accuracy", 0.75);
        assert_eq!(summary_line(&metrics), "loss 0.2500 · accuracy 0.750");
    }
}
