//! Runs in which nothing can be graded: said in the first such step, and ended after three in a row.
//!
//! A sample without a grade is not trained on, which is right for one that timed out, and a waste of all sampling where
//! the cause concerns every sample: no prompt has the answer that a rule needs, or an external grader prints what is no
//! number.

use schema::{Grade, GradedGroup, Verdict};

/// Steps in a row after which the run ends.
const LIMIT: u32 = 3;

/// Counts the steps in a row in which no sample could be graded.
#[derive(Debug, Default)]
pub(crate) struct Ungraded {
    steps: u32,
}

/// The consequence of a step's grades.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Some are graded, or there are none.
    Fine,
    /// None is graded, for the first time in a row; with the reason.
    Warn(String),
    /// None was graded in too many steps; with the reason.
    Stop(String),
}

impl Ungraded {
    /// Looks at the samples of a step.
    pub(crate) fn watch(&mut self, fresh: &[GradedGroup]) -> Finding {
        let verdicts = || fresh.iter().flat_map(GradedGroup::verdicts);
        if verdicts().next().is_none() || verdicts().any(|it| it.total().is_some() || it.win_rate().is_some()) {
            self.steps = 0;
            return Finding::Fine;
        }
        self.steps += 1;
        let reason = verdicts().find_map(reason).unwrap_or_else(|| "nothing was graded or compared".to_owned());
        match self.steps {
            1 => Finding::Warn(reason),
            LIMIT.. => Finding::Stop(reason),
            _ => Finding::Fine,
        }
    }
}

/// Names the first reward or comparison that is missing, and why.
fn reason(verdict: &Verdict) -> Option<String> {
    let of = |name: &str, grade: &Grade| match grade {
        Grade::Missing(reason) => Some(format!("{name}: {reason}")),
        Grade::Value(_) => None,
    };
    let rewards = verdict.rewards.iter().filter(|part| part.weight != 0.0).map(|part| of(&part.name, &part.grade));
    rewards.chain(verdict.comparisons.iter().map(|it| of(&it.judge, &it.win))).flatten().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;

    #[test]
    fn three_ungraded_steps_in_a_row_end_a_run() {
        let (graded, ungraded) = (scored(&[&[1.0, f32::NAN]]), scored(&[&[f32::NAN, f32::NAN]]));
        let mut watch = Ungraded::default();
        assert_eq!(watch.watch(&graded), Finding::Fine);
        assert!(matches!(watch.watch(&ungraded), Finding::Warn(reason) if reason.starts_with("made_up: ")));
        assert_eq!(watch.watch(&ungraded), Finding::Fine);
        assert!(matches!(watch.watch(&ungraded), Finding::Stop(reason) if reason.starts_with("made_up: ")));
        // A graded step begins anew, and a step without samples says nothing.
        assert_eq!((watch.watch(&graded), watch.watch(&[])), (Finding::Fine, Finding::Fine));
        assert!(matches!(watch.watch(&ungraded), Finding::Warn(_)));
    }
}
