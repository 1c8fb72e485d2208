//! The questions themselves: each a pure function of the two ends of a run, with its threshold beside it.

use super::{Quarter, Seen};
use crate::SampleId;
use schema::{Finish, Token};
use std::collections::{BTreeMap, HashSet};

/// The answer to a question: a verdict, the evidence in words, and the samples to read.
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) evidence: String,
    pub(super) samples: Vec<SampleId>,
}

/// The verdict of a question: nothing to do, samples to look at, or too little data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    Look,
    Unknown,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Look => "look",
            Self::Unknown => "unknown",
        }
    }
}

/// A question to the early and the late samples.
type Ask = fn(&Quarter<'_>, &Quarter<'_>) -> Finding;

/// Every question, by the name of the symptom that it looks for.
pub(super) const QUESTIONS: [(&str, Ask); 6] = [
    ("length_drift", length_drift),
    ("repetition_drift", repetition_drift),
    ("near_duplicate_winners", near_duplicate_winners),
    ("answer_format", answer_format),
    ("rewarded_truncation", rewarded_truncation),
    ("unjudged_drift", unjudged_drift),
];

/// Drift of the mean length that the reward follows, by the correlation of both within groups, so that long questions
/// do not count.
fn length_drift(early: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const CORRELATED: f64 = 0.4;
    const LONGER: f64 = 1.5;
    let length = |seen: &Seen<'_>| Some(seen.sample.len() as f64);
    let (Some(before), Some(after)) = (early.mean(length), late.mean(length)) else { return unknown("no samples") };
    let centred: Vec<(f64, f64)> = late.seen.iter().filter_map(|seen| seen.centred).collect();
    let correlation = correlation(&centred);
    let grown = after / before.max(1.0);
    let drifted = !(1.0 / LONGER..=LONGER).contains(&grown);
    let mut samples = late.winners();
    samples.sort_by_key(|seen| seen.sample.len());
    if correlation.unwrap_or(0.0) > 0.0 {
        samples.reverse();
    }
    let shown = correlation.map_or("unknown".into(), |r| format!("{r:.2}"));
    finding(
        drifted && correlation.is_some_and(|r| r.abs() >= CORRELATED),
        format!("mean length {before:.1} to {after:.1} tokens; late correlation of reward and length {shown}"),
        &samples,
    )
}

/// Growth of repetition at undiminished reward: the share of an answer's token 4-grams that occur earlier in it.
fn repetition_drift(early: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const MORE: f64 = 0.1;
    let share = |seen: &Seen<'_>| repeated(&seen.sample.ids);
    let (Some(before), Some(after)) = (early.mean(share), late.mean(share)) else {
        return unknown("answers are too short to repeat themselves");
    };
    let reward = |seen: &Seen<'_>| seen.reward;
    let kept = late.mean(reward) >= early.mean(reward);
    let mut samples: Vec<&Seen<'_>> = late.seen.iter().filter(|seen| share(seen).is_some_and(|it| it > 0.0)).collect();
    samples.sort_by(|a, b| share(b).partial_cmp(&share(a)).unwrap_or(std::cmp::Ordering::Equal));
    finding(
        after - before >= MORE && kept,
        format!("repeated 4-grams {:.1} % to {:.1} %", 100.0 * before, 100.0 * after),
        &samples,
    )
}

/// One text as the answer to many questions: winners of different questions that share most of their token trigrams.
fn near_duplicate_winners(_: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const ALIKE: f64 = 0.8;
    const MANY: f64 = 0.5;
    /// Short answers are alike by nature.
    const LONG_ENOUGH: usize = 16;
    /// Pairs grow with the square.
    const COMPARED: usize = 256;
    let winners: Vec<(&Seen<'_>, HashSet<&[Token]>)> = late
        .winners()
        .into_iter()
        .filter(|seen| seen.sample.len() >= LONG_ENOUGH)
        .take(COMPARED)
        .map(|seen| (seen, seen.sample.ids.windows(3).collect()))
        .collect();
    if winners.len() < 2 {
        return unknown("fewer than two long answers won");
    }
    let has_twin = |(seen, trigrams): &&(&Seen<'_>, HashSet<&[Token]>)| {
        winners.iter().any(|(other, others)| other.question != seen.question && jaccard(trigrams, others) >= ALIKE)
    };
    let twins: Vec<&Seen<'_>> = winners.iter().filter(has_twin).map(|(seen, _)| *seen).collect();
    let share = twins.len() as f64 / winners.len() as f64;
    finding(
        share >= MANY,
        format!("{} of {} long winners are near-duplicates across questions", twins.len(), winners.len()),
        &twins,
    )
}

/// Change of the form of answers: the form whose share has grown most from early to late.
fn answer_format(early: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const MOVED: f64 = 0.3;
    let (before, after) = (forms(early), forms(late));
    let share = |shares: &BTreeMap<&str, f64>, form| shares.get(form).copied().unwrap_or(0.0);
    let names: HashSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let moved = names
        .into_iter()
        .map(|form| (form, share(&after, form) - share(&before, form)))
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(a.0)));
    let Some((form, grown)) = moved else { return unknown("no samples") };
    let samples: Vec<&Seen<'_>> = late.seen.iter().filter(|seen| form_of(&seen.sample.text) == form).collect();
    finding(
        grown >= MOVED,
        format!("`{form}` {:.0} % to {:.0} % of answers", 100.0 * share(&before, form), 100.0 * share(&after, form)),
        &samples,
    )
}

/// Share of the winners that the token limit cut off.
fn rewarded_truncation(_: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const MANY: f64 = 0.3;
    let winners = late.winners();
    if winners.is_empty() {
        return unknown("every late reward is the same");
    }
    let cut: Vec<&Seen<'_>> = winners.iter().filter(|seen| seen.sample.finish == Finish::Length).copied().collect();
    let share = cut.len() as f64 / winners.len() as f64;
    finding(share >= MANY, format!("{} of {} late winners were cut off", cut.len(), winners.len()), &cut)
}

/// Growth of the share of ungraded samples.
fn unjudged_drift(early: &Quarter<'_>, late: &Quarter<'_>) -> Finding {
    const MORE: f64 = 0.1;
    let unjudged = |seen: &Seen<'_>| Some(f64::from(u8::from(seen.reward.is_none())));
    let (Some(before), Some(after)) = (early.mean(unjudged), late.mean(unjudged)) else { return unknown("no samples") };
    let samples: Vec<&Seen<'_>> = late.seen.iter().filter(|seen| seen.reward.is_none()).collect();
    finding(after - before >= MORE, format!("unjudged {:.1} % to {:.1} %", 100.0 * before, 100.0 * after), &samples)
}

fn finding(look: bool, evidence: String, samples: &[&Seen<'_>]) -> Finding {
    let verdict = if look { Verdict::Look } else { Verdict::Fine };
    Finding { verdict, evidence, samples: samples.iter().map(|seen| seen.id).collect() }
}

fn unknown(why: &str) -> Finding {
    Finding { verdict: Verdict::Unknown, evidence: why.into(), samples: Vec::new() }
}

/// Pearson's correlation of pairs whose means are zero; `None` where one side does not vary.
fn correlation(centred: &[(f64, f64)]) -> Option<f64> {
    let sum = |term: fn(&(f64, f64)) -> f64| centred.iter().map(term).sum::<f64>();
    let (xy, xx, yy) = (sum(|it| it.0 * it.1), sum(|it| it.0 * it.0), sum(|it| it.1 * it.1));
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

/// The share of 4-grams that occur earlier; `None` for fewer than eight tokens.
fn repeated(ids: &[Token]) -> Option<f64> {
    if ids.len() < 8 {
        return None;
    }
    let all = ids.windows(4);
    let total = all.len();
    let distinct: HashSet<&[Token]> = all.collect();
    Some(1.0 - distinct.len() as f64 / total as f64)
}

/// |A ∩ B| / |A ∪ B|.
fn jaccard(a: &HashSet<&[Token]>, b: &HashSet<&[Token]>) -> f64 {
    let shared = a.intersection(b).count();
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

/// The share of answers of each form.
fn forms(quarter: &Quarter<'_>) -> BTreeMap<&'static str, f64> {
    let each = 1.0 / quarter.seen.len().max(1) as f64;
    quarter.seen.iter().fold(BTreeMap::new(), |mut shares, seen| {
        *shares.entry(form_of(&seen.sample.text)).or_default() += each;
        shares
    })
}

/// The form of an answer, by the marks that graders look for; the strongest mark decides.
fn form_of(text: &str) -> &'static str {
    let lower = text.to_lowercase();
    let has = |mark: &str| lower.contains(mark);
    match lower.trim() {
        "" => "empty",
        _ if has("\\boxed") => "boxed",
        _ if has("<answer>") => "answer tag",
        _ if has("####") => "####",
        _ if has("```") => "code block",
        _ if has("answer is") || has("answer:") => "answer is",
        bare if bare.chars().all(|it| it.is_ascii_digit() || "+-.,/ %$".contains(it)) => "bare number",
        _ => "plain text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_counts_what_stood_before() {
        // Ten equal tokens have seven 4-grams, of which one is new: 6/7 are repeated.
        assert!((repeated(&[5; 10]).unwrap() - 6.0 / 7.0).abs() < 1e-12);
        assert_eq!(repeated(&[1, 2, 3, 4, 5, 6, 7, 8]), Some(0.0));
        assert_eq!(repeated(&[5; 7]), None);
    }

    #[test]
    fn correlation_is_pearsons() {
        // x = -1 0 1, y = -1 1 0: sum xy = 1, sum xx = sum yy = 2.
        assert!((correlation(&[(-1.0, -1.0), (0.0, 1.0), (1.0, 0.0)]).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(correlation(&[(0.0, 1.0), (0.0, -1.0)]), None);
    }

    #[test]
    fn forms_are_told_apart() {
        let cases = [
            (" \n", "empty"),
            ("so \\boxed{4}", "boxed"),
            ("<answer>4</answer>", "answer tag"),
            ("2+2\n#### 4", "####"),
            ("The answer is 4.", "answer is"),
            ("Answer: 4", "answer is"),
            ("-4.5", "bare number"),
            ("```\n4\n```", "code block"),
            ("four", "plain text"),
        ];
        for (text, form) in cases {
            assert_eq!(form_of(text), form, "{text}");
        }
    }

    #[test]
    fn overlap_is_of_the_union() {
        let (a, b): ([Token; 4], [Token; 4]) = ([1, 2, 3, 4], [1, 2, 3, 5]);
        let set = |ids| -> HashSet<&[Token]> { <[Token]>::windows(ids, 3).collect() };
        // {123, 234} and {123, 235} share one of three.
        assert!((jaccard(&set(&a), &set(&b)) - 1.0 / 3.0).abs() < 1e-12);
    }
}
