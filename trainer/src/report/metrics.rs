//! Metrics of the samples of a step, under TRL's names.

use crate::batch::SequenceLogprobs;
use crate::collected::Unit;
use model::adapter::{Adapter, LowRank};
use schema::{Finish, GradedGroup, Metrics, Sample};
use std::collections::BTreeMap;

/// Computes rewards, lengths and signal of the samples of one step.
///
/// | metric | meaning |
/// |---|---|
/// | `reward`, `reward_std` | mean total reward; mean over groups of its deviation (Bessel) |
/// | `frac_reward_zero_std` | share of groups with equal rewards, which carry no signal |
/// | `rewards/<name>/mean`, `rewards/<name>/std` | each part before weighting |
/// | `completions/{mean,min,max}_length` | sampled tokens |
/// | `completions/{mean,min,max}_terminated_length` | the same for completions that were not truncated |
/// | `completions/clipped_ratio` | share of completions truncated at the token limit |
/// | `samples/unjudged` | ungraded samples, which are not trained on |
pub(crate) fn samples(groups: &[GradedGroup]) -> Metrics {
    let mut metrics = reward::metrics(groups);
    let per_group: Vec<Vec<f64>> =
        groups.iter().map(|group| group.rewards().into_iter().flatten().map(f64::from).collect()).collect();
    let all: Vec<f64> = per_group.concat();
    if !all.is_empty() {
        metrics.set("reward", mean(&all));
        let deviations: Vec<f64> =
            per_group.iter().filter(|rewards| !rewards.is_empty()).map(|r| deviation(r)).collect();
        metrics.set("reward_std", mean(&deviations));
        let flat = per_group.iter().filter(|rewards| rewards.windows(2).all(|pair| pair[0] == pair[1])).count();
        metrics.set("frac_reward_zero_std", flat as f64 / groups.len() as f64);
    }
    let samples: Vec<&Sample> = groups.iter().flat_map(|group| &group.group().samples).collect();
    metrics.set("samples/unjudged", (samples.len() - all.len()) as f64);

    metrics.merge(lengths(samples.iter().map(|sample| (sample.len(), sample.finish == Finish::Length))));
    let clipped = samples.iter().filter(|sample| sample.finish == Finish::Length).count();
    metrics.set("completions/clipped_ratio", clipped as f64 / samples.len().max(1) as f64);
    metrics
}

/// Tokens of completions: `completions/{mean,min,max}_length`, and of those that were not cut. `completions` gives the
/// tokens of each, and whether it was cut.
pub(crate) fn lengths(completions: impl Iterator<Item = (usize, bool)>) -> Metrics {
    let mut metrics = Metrics::new();
    let completions: Vec<(usize, bool)> = completions.collect();
    let every: Vec<f64> = completions.iter().map(|(length, _)| *length as f64).collect();
    let terminated: Vec<f64> = completions.iter().filter(|(_, cut)| !cut).map(|(length, _)| *length as f64).collect();
    for (kind, lengths) in [("length", &every), ("terminated_length", &terminated)] {
        if !lengths.is_empty() {
            metrics.set(format!("completions/mean_{kind}"), mean(lengths));
            metrics.set(format!("completions/min_{kind}"), lengths.iter().copied().fold(f64::INFINITY, f64::min));
            metrics.set(format!("completions/max_{kind}"), lengths.iter().copied().fold(0.0, f64::max));
        }
    }
    metrics
}

/// Measures the divergence of samples of other policies from the current one, whose hash is `present`; empty if there
/// are none.
///
/// | metric | meaning |
/// |---|---|
/// | `replay/mismatch_kl` | mean over their tokens of k3, an estimate of KL(sampling policy ‖ current policy), in nats |
/// | `replay/effective_sample_share` | `(Σ ρ)² / (n Σ ρ²)` over their n tokens (Kish), ρ the ratio to the sampling policy |
/// | `replay/effective_samples` | that share of their number |
pub(crate) fn replayed(units: &[Unit<'_>], logprobs: &[Vec<SequenceLogprobs>], present: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let groups = units.iter().zip(logprobs).filter_map(|(unit, logprobs)| Some((unit.group()?.group(), logprobs)));
    let old = groups.filter(|(group, _)| group.policy.hash != present);
    let samples: Vec<(&Sample, &SequenceLogprobs)> =
        old.flat_map(|(group, logprobs)| group.samples.iter().zip(logprobs)).collect();
    let log_ratios: Vec<f64> = samples.iter().flat_map(|(sample, logprobs)| log_ratios(sample, logprobs)).collect();
    if log_ratios.is_empty() {
        return metrics;
    }
    let ratios: Vec<f64> = log_ratios.iter().map(|log_ratio| log_ratio.clamp(-20.0, 20.0).exp()).collect();
    let k3: Vec<f64> = ratios.iter().zip(&log_ratios).map(|(ratio, log_ratio)| ratio - 1.0 - log_ratio).collect();
    let squares: f64 = ratios.iter().map(|ratio| ratio * ratio).sum();
    let share = ratios.iter().sum::<f64>().powi(2) / (ratios.len() as f64 * squares);
    metrics.set("replay/mismatch_kl", mean(&k3));
    metrics.set("replay/effective_sample_share", share);
    metrics.set("replay/effective_samples", share * samples.len() as f64);
    metrics
}

/// `log π − log π_drawing` of each trained token of a sample, at the start of the step.
pub(crate) fn log_ratios(sample: &Sample, logprobs: &SequenceLogprobs) -> Vec<f64> {
    let pairs = logprobs.policy.iter().zip(&sample.logprobs).zip(&sample.mask);
    pairs.filter(|(_, trained)| **trained).map(|((now, then), _)| f64::from(now - then)).collect()
}

/// Returns the number of sampled tokens.
pub(crate) fn generated_tokens(groups: &[GradedGroup]) -> u64 {
    groups.iter().flat_map(|group| &group.group().samples).map(|sample| sample.len() as u64).sum()
}

/// Computes the open ranks of an adapter.
///
/// | metric | meaning |
/// |---|---|
/// | `adapter/active_rank` | mean of open ranks per adapted layer |
/// | `adapter/rank_min`, `adapter/rank_max`, `adapter/rank_total` | over adapted layers; only with gates |
/// | `adapter/rank/<module>` | mean over the layers with this last name part, such as `q_proj` |
/// | `adapter/rank_computed` | open and closed ranks together: the cost of a forward pass |
pub(crate) fn ranks(adapter: &Adapter) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.set("adapter/active_rank", adapter.active_rank());
    let gated: Vec<(&LowRank, f64)> = adapter
        .layers()
        .filter(|layer| layer.gate.is_some())
        .map(|layer| (layer, layer.active_rank() as f64))
        .collect();
    if gated.is_empty() {
        return metrics;
    }
    let all = || gated.iter().map(|(_, rank)| *rank);
    metrics.set("adapter/rank_min", all().fold(f64::INFINITY, f64::min));
    metrics.set("adapter/rank_max", all().fold(0.0, f64::max));
    metrics.set("adapter/rank_total", all().sum());
    metrics.set("adapter/rank_computed", adapter.ranks() as f64);
    let mut by_module: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (layer, rank) in &gated {
        by_module.entry(layer.name.rsplit('.').next().unwrap_or(&layer.name)).or_default().push(*rank);
    }
    for (module, ranks) in by_module {
        metrics.set(format!("adapter/rank/{module}"), mean(&ranks));
    }
    metrics
}

/// Returns the peak resident memory of this process, in MB (10^6 bytes), as counted by the kernel; 0 if the kernel does
/// not report it.
pub(crate) fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e6
}

pub(crate) fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// Returns the standard deviation with Bessel's correction; 0 for a single number.
fn deviation(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / numbers.len().saturating_sub(1).max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;

    #[test]
    fn rewards_and_lengths_are_counted() {
        // two groups: rewards 1, 0 and 1, 1; lengths 1..=4, the last one truncated
        let metrics = samples(&scored(&[&[1.0, 0.0], &[1.0, 1.0]]));
        assert_eq!(metrics.get("reward"), Some(0.75));
        assert!((metrics.get("reward_std").unwrap() - 0.5f64.sqrt() / 2.0).abs() < 1e-12);
        assert_eq!(metrics.get("frac_reward_zero_std"), Some(0.5));
        assert_eq!(metrics.get("completions/mean_length"), Some(1.5));
        assert_eq!(metrics.get("completions/max_length"), Some(2.0));
        assert_eq!(metrics.get("completions/clipped_ratio"), Some(0.5));
        assert_eq!(metrics.get("completions/mean_terminated_length"), Some(1.0));
        assert_eq!(metrics.get("samples/unjudged"), Some(0.0));
        assert!(peak_rss_mb() > 1.0);
    }

    #[test]
    fn old_samples_are_weighed_against_the_present_policy() {
        // the first sample has one token and the second two, all sampled with log-probability -1.0
        let groups = scored(&[&[1.0, 0.0]]);
        let logprobs = |policy: &[f32]| SequenceLogprobs { policy: policy.to_vec(), ..SequenceLogprobs::default() };
        let doubled = -1.0 + std::f32::consts::LN_2;
        let units: Vec<Unit<'_>> = groups.iter().map(Unit::Group).collect();
        let logprobs = [vec![logprobs(&[-1.0]), logprobs(&[-1.0, doubled])]];
        let metrics = replayed(&units, &logprobs, "another");
        let near = |name: &str, expected: f64| {
            let value = metrics.get(name).unwrap();
            assert!((value - expected).abs() < 1e-6, "{name} is {value}");
        };
        // ratios 1, 1 and 2: (4)² / (3 · 6); of k3 only 2 − 1 − ln 2 is not 0
        near("replay/effective_sample_share", 16.0 / 18.0);
        near("replay/effective_samples", 32.0 / 18.0);
        near("replay/mismatch_kl", (1.0 - std::f64::consts::LN_2) / 3.0);
        assert_eq!(replayed(&units, &logprobs, &groups[0].group().policy.hash).iter().count(), 0);
    }
}
