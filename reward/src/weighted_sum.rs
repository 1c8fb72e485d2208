//! Several rewards as one: `total = Σ weight · value`, with every part kept.
//!
//! A total hides which part moved it, so the parts are stored and logged; the total is a view of them
//! ([`schema::Verdict::total`]). An ungraded part that carries weight leaves the whole sample ungraded.

use crate::{Error, Result, Reward};
use schema::{GradedGroup, Group, Metrics, RewardPart, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// One reward of the sum.
pub struct Term {
    /// The name in metrics and in the store.
    pub name: String,
    /// Its factor in the sum; 0 records its grades without training on them.
    pub weight: f64,
    /// The reward function.
    pub reward: Box<dyn Reward>,
}

/// A weighted sum of rewards that keeps its parts.
pub struct WeightedSum {
    terms: Vec<Term>,
}

impl WeightedSum {
    /// Joins terms.
    ///
    /// # Errors
    ///
    /// Fails if a name is empty, holds a slash or a line break, or occurs twice; if a weight is not finite; or if no term
    /// carries weight.
    pub fn new(terms: Vec<Term>) -> Result<Self> {
        let mut names = BTreeSet::new();
        for Term { name, weight, .. } in &terms {
            if name.is_empty() || name.contains(['/', '\n']) {
                return Err(Error::input(format!("reward `{name}`: a name must not be empty nor hold a slash")));
            }
            if !names.insert(name) {
                return Err(Error::input(format!("two rewards are called `{name}`; give one of them a `name`")));
            }
            if !weight.is_finite() {
                return Err(Error::input(format!("reward `{name}`: the weight {weight} is not a finite number")));
            }
        }
        if terms.iter().all(|term| term.weight == 0.0) {
            return Err(Error::input("no reward carries weight; add a [[reward]] table whose `weight` is not 0"));
        }
        Ok(Self { terms })
    }

    /// The empty sum, for runs without rewards: it leaves every sample ungraded.
    pub fn nothing() -> Self {
        Self { terms: Vec::new() }
    }

    /// The terms, in the config's order.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Grades groups: each reward sees all of them in one call.
    ///
    /// # Errors
    ///
    /// Fails if a reward does not return exactly one grade per sample.
    pub fn grade(&mut self, groups: Vec<Group>) -> Result<Vec<GradedGroup>> {
        let mut verdicts: Vec<Vec<Verdict>> =
            groups.iter().map(|group| vec![Verdict::default(); group.samples.len()]).collect();
        for Term { name, weight, reward } in &mut self.terms {
            let grades = reward.grade(&groups);
            let fits = grades.len() == groups.len()
                && grades.iter().zip(&groups).all(|(graded, group)| graded.len() == group.samples.len());
            if !fits {
                return Err(Error::runtime(format!("reward `{name}` must return one grade per sample")));
            }
            let version = reward.version();
            for (verdict, grade) in verdicts.iter_mut().flatten().zip(grades.into_iter().flatten()) {
                let part = RewardPart { name: name.clone(), version: version.clone(), weight: *weight, grade };
                verdict.rewards.push(part);
            }
        }
        let scored = groups.into_iter().zip(verdicts).map(|(group, verdicts)| GradedGroup::new(group, verdicts));
        Ok(scored.collect::<std::result::Result<_, _>>()?)
    }
}

/// Computes the metrics of each part, over the samples that it graded: `rewards/<name>/mean`, `rewards/<name>/std` (with
/// Bessel's correction, as in TRL; 0 for one sample) and `rewards/<name>/unjudged_fraction`. A part that graded nothing
/// has no mean.
pub fn metrics(scored: &[GradedGroup]) -> Metrics {
    let mut values: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    for part in scored.iter().flat_map(GradedGroup::verdicts).flat_map(|verdict| &verdict.rewards) {
        values.entry(&part.name).or_default().push(part.grade.value().map(f64::from));
    }
    let mut metrics = Metrics::new();
    for (name, values) in values {
        let judged: Vec<f64> = values.iter().copied().flatten().collect();
        if !judged.is_empty() {
            let mean = judged.iter().sum::<f64>() / judged.len() as f64;
            let squares: f64 = judged.iter().map(|value| (value - mean).powi(2)).sum();
            metrics.set(format!("rewards/{name}/mean"), mean);
            metrics.set(format!("rewards/{name}/std"), (squares / (judged.len().max(2) - 1) as f64).sqrt());
        }
        let unjudged = (values.len() - judged.len()) as f64 / values.len() as f64;
        metrics.set(format!("rewards/{name}/unjudged_fraction"), unjudged);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::group;
    use crate::{build, rule};
    use schema::Grade;

    /// A reward that returns these grades for any text.
    struct Fixed(Vec<Vec<Grade>>);

    impl Reward for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }
        fn version(&self) -> String {
            "1".into()
        }
        fn grade(&mut self, _: &[Group]) -> Vec<Vec<Grade>> {
            self.0.clone()
        }
    }

    fn fixed(name: &str, weight: f64, values: &[Option<f32>]) -> Term {
        let judge = |value: &Option<f32>| value.map_or(Grade::missing("asleep"), Grade::of);
        let reward = Box::new(Fixed(vec![values.iter().map(judge).collect()]));
        Term { name: name.into(), weight, reward }
    }

    #[test]
    fn the_total_is_the_sum_of_weighted_parts_and_the_parts_stay() {
        let terms = vec![fixed("a", 1.0, &[Some(1.0), Some(0.0)]), fixed("b", 0.5, &[Some(-1.0), None])];
        let scored = WeightedSum::new(terms).unwrap().grade(vec![group("", Some(""), &["x", "y"])]).unwrap();
        assert_eq!(scored[0].rewards(), [Some(0.5), None]);
        assert_eq!(scored[0].verdicts()[0].rewards[1].grade, Grade::Value(-1.0));
        assert_eq!(scored[0].verdicts()[1].rewards[1].grade, Grade::missing("asleep"));
    }

    #[test]
    fn metrics_are_over_graded_samples() {
        let term = fixed("a", 1.0, &[Some(1.0), Some(0.0), Some(0.5), None]);
        let texts = ["", "", "", ""];
        let scored = WeightedSum::new(vec![term]).unwrap().grade(vec![group("", None, &texts)]).unwrap();
        let metrics = metrics(&scored);
        assert_eq!(metrics.get("rewards/a/mean"), Some(0.5));
        // The squared deviations 1/4 + 1/4 + 0, over 3 - 1, are 1/4.
        assert_eq!(metrics.get("rewards/a/std"), Some(0.5));
        assert_eq!(metrics.get("rewards/a/unjudged_fraction"), Some(0.25));
    }

    #[test]
    fn a_reward_that_miscounts_is_found_out() {
        let mut sum = WeightedSum::new(vec![fixed("a", 1.0, &[Some(1.0)])]).unwrap();
        let error = sum.grade(vec![group("", None, &["x", "y"])]).unwrap_err();
        assert!(!error.is_input() && error.to_string().contains("one grade per sample"), "{error}");
    }

    #[test]
    fn bad_configs_are_refused_with_a_sentence() {
        let config = |name: Option<&str>, weight| crate::Config {
            name: name.map(Into::into),
            weight,
            rule: Some(rule::Config::MathAnswer(rule::math_answer::Config::default())),
            model: None,
        };
        let problem = |configs: &[crate::Config]| {
            let error = build(configs).err().expect("this config is bad");
            assert!(error.is_input());
            error.to_string()
        };
        assert!(problem(&[]).contains("no reward carries weight"));
        assert!(problem(&[config(None, 0.0)]).contains("no reward carries weight"));
        assert!(problem(&[config(None, f64::NAN)]).contains("not a finite number"));
        assert!(problem(&[config(None, 1.0), config(None, 1.0)]).contains("two rewards are called `math_answer`"));
        assert!(problem(&[config(Some("a/b"), 1.0)]).contains("slash"));
        assert_eq!(build(&[config(Some("beats_1"), 1.0)]).unwrap().terms().len(), 1);
        assert_eq!(build(&[config(None, 1.0), config(Some("again"), 1.0)]).unwrap().terms().len(), 2);
        let neither = crate::Config { rule: None, ..config(None, 1.0) };
        assert!(problem(&[neither]).contains("needs a `rule` or a `model`"));
        let model = Some(crate::ModelConfig { path: "runs/judge".into() });
        assert!(problem(&[crate::Config { model: model.clone(), ..config(None, 1.0) }]).contains("keep one of them"));
        assert!(
            problem(&[crate::Config { rule: None, model, ..config(None, 1.0) }]).contains("no network can run here")
        );
    }

    #[test]
    fn a_model_comes_from_the_caller() {
        let model = Some(crate::ModelConfig { path: "runs/judge".into() });
        let config = crate::Config { name: None, weight: 2.0, rule: None, model };
        let mut asked = Vec::new();
        let mut open = |config: &crate::ModelConfig| {
            asked.push(config.path.clone());
            Ok(Box::new(Fixed(vec![vec![Grade::of(0.5)]])) as Box<dyn Reward>)
        };
        let mut sum = crate::build_with(&[config], &mut open).unwrap();
        let scored = sum.grade(vec![group("", None, &["x"])]).unwrap();
        assert_eq!(scored[0].rewards(), [Some(1.0)]);
        assert_eq!(scored[0].verdicts()[0].rewards[0].name, "model");
        assert_eq!(asked, [std::path::PathBuf::from("runs/judge")]);
    }

    #[test]
    fn the_empty_sum_grades_nothing() {
        let scored = WeightedSum::nothing().grade(vec![group("", None, &["x"])]).unwrap();
        assert_eq!(scored[0].rewards(), [None]);
    }
}
