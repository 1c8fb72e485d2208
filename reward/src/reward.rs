//! The trait of reward functions, and the helpers that the rules share.

use schema::{Grade, Group, Sample};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::ops::RangeInclusive;

/// A reward function: samples in, one grade per sample out.
pub trait Reward {
    /// The kind of reward, such as `math_answer`; the config may give it another name.
    fn name(&self) -> &'static str;

    /// A version that changes whenever the code or a setting changes the grade of a sample; see [`fingerprint`].
    fn version(&self) -> String;

    /// The smallest and the largest value, where they are known beforehand.
    fn range(&self) -> Option<RangeInclusive<f32>> {
        None
    }

    /// Grades every sample of every group: one list per group, with one grade per sample, in order. All groups of a step
    /// come in one call, so that a program or a network runs once for all of them.
    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>>;
}

/// A version made of the code's revision, which its author raises, and the first eight hexadecimal digits of the
/// SHA-256 of its settings.
pub fn fingerprint(revision: u32, settings: &impl Serialize) -> String {
    let json = serde_json::to_vec(settings).unwrap_or_default();
    let digest = Sha256::digest(&json);
    format!("{revision}-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

/// Grades samples one by one, as all rules but external ones do.
pub(crate) fn each(groups: &[Group], grade: impl Fn(&Group, &Sample) -> Grade) -> Vec<Vec<Grade>> {
    groups.iter().map(|group| group.samples.iter().map(|sample| grade(group, sample)).collect()).collect()
}

/// Grades samples against the prompt's answer; without an answer they stay ungraded. `prepare` turns the answer into the
/// value that `right` compares with, once per group; it returns `None` for an answer that says nothing, which is none:
/// else a completion that ends at once would be right.
pub(crate) fn against_answer<A>(
    groups: &[Group],
    prepare: impl Fn(&str) -> Option<A>,
    right: impl Fn(&A, &str) -> bool,
) -> Vec<Vec<Grade>> {
    let grade = |group: &Group| {
        let missing = |reason: &str| vec![Grade::missing(reason); group.samples.len()];
        let Some(answer) = &group.prompt.answer else { return missing("the prompt has no answer") };
        let Some(answer) = prepare(answer) else { return missing("the prompt's answer is empty") };
        group.samples.iter().map(|sample| Grade::correct(right(&answer, &sample.text))).collect()
    };
    groups.iter().map(grade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_follows_revision_and_settings() {
        // The SHA-256 of the two bytes `{}` starts with 44136fa3.
        assert_eq!(fingerprint(1, &serde_json::json!({})), "1-44136fa3");
        assert_ne!(fingerprint(1, &serde_json::json!({})), fingerprint(2, &serde_json::json!({})));
        assert_ne!(fingerprint(1, &serde_json::json!({"n": 3})), fingerprint(1, &serde_json::json!({"n": 4})));
    }
}
