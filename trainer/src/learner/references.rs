//! Log-probabilities under the reference policy, kept: rows of a data set come back in every epoch, and the reference
//! does not move.
//!
//! Each group is scored in a pass of its own. What the other rows of a pass are can change the last bit of a number, and
//! a resumed run, which has forgotten what was kept, would score other rows together.

use crate::Result;
use crate::algorithm::SampleScores;
use crate::batch::{Cut, score_samples};
use model::packed::Packed;
use schema::{GradedGroup, Token};
use std::cell::RefCell;
use std::collections::HashMap;
use tch::Tensor;

/// The prompt and the completions of a group.
type Row = Vec<Vec<Token>>;

/// What is known of the rows that have been seen.
#[derive(Default)]
pub(super) struct References {
    known: RefCell<HashMap<Row, Vec<SampleScores>>>,
}

impl References {
    /// The reference's log-probabilities of each sample of each group; `score` is asked for those of new ones.
    pub(super) fn scores(
        &self,
        groups: &[GradedGroup],
        cut: Cut,
        score: impl Fn(&Packed) -> Tensor,
    ) -> Result<Vec<Vec<SampleScores>>> {
        let one = |group: &GradedGroup| {
            let row = row(group);
            if let Some(known) = self.known.borrow().get(&row) {
                return Ok(known.clone());
            }
            let columns = score_samples(std::slice::from_ref(group), cut, |packed| vec![score(packed)])?;
            let sample = |mut columns: Vec<Vec<f32>>| SampleScores {
                reference: columns.pop().unwrap_or_default(),
                ..SampleScores::default()
            };
            let scores: Vec<SampleScores> = columns.into_iter().flatten().map(sample).collect();
            self.known.borrow_mut().insert(row, scores.clone());
            Ok(scores)
        };
        groups.iter().map(one).collect()
    }
}

fn row(group: &GradedGroup) -> Row {
    let group = group.group();
    std::iter::once(&group.prompt_ids).chain(group.samples.iter().map(|sample| &sample.ids)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;
    use std::cell::Cell;

    #[test]
    fn a_row_is_scored_once_and_by_itself() {
        let references = References::default();
        let cut = Cut { micro_batch_tokens: 100, vocab: 50, device: model::device::HOST };
        let passes = Cell::new(0);
        let ask = |groups: &[GradedGroup]| {
            let score = |packed: &Packed| {
                passes.set(passes.get() + 1);
                Tensor::arange(packed.scored_tokens() as i64, (tch::Kind::Float, cut.device))
            };
            references.scores(groups, cut, score).unwrap()
        };
        // Samples of one and two tokens, then of one, two and three.
        let groups = scored(&[&[1.0, 0.0], &[1.0, 0.0, 0.0]]);
        let scores = ask(&groups);
        let numbers: Vec<_> = scores.iter().flatten().map(|score| score.reference.clone()).collect();
        assert_eq!(numbers, [vec![0.0], vec![1.0, 2.0], vec![0.0], vec![1.0, 2.0], vec![3.0, 4.0, 5.0]]);
        assert_eq!(passes.get(), 2);
        assert_eq!(ask(&groups[1..])[0], scores[1]);
        assert_eq!(passes.get(), 2);
    }
}
