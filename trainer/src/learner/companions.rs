//! The companions of a run: their adapters, renewals, log-probs, and their files in a checkpoint.
//!
//! Log-probs of the reference policy on rows of a data set are kept: rows come back in every epoch, and the reference does
//! not move. Each row is evaluated in a pass of its own. What the other rows of a pass are can change the last bit of a
//! number, and a resumed run, which has forgotten what was kept, would evaluate other rows together.

use crate::Result;
use crate::algorithm::{Needs, Schedule};
use crate::batch::{MicroBatchLimits, SequenceLogprobs, per_sequence};
use crate::checkpoint::Snapshot;
use crate::checkpoint::restore::alike;
use crate::collected::PromptSequences;
use crate::companion::{ByRole, Companion, Consults, Renewal, Role, Start};
use model::Policy;
use model::adapter::Adapter;
use model::packed::Packed;
use schema::Token;
use std::cell::RefCell;
use std::collections::HashMap;
use tch::Tensor;

/// The companions that a method asked for.
pub(super) struct Companions {
    asked: Vec<Companion>,
    adapters: ByRole<Adapter>,
    /// Log-probs of the reference, row by row of a data set.
    known: KnownRows,
}

impl Companions {
    /// Every companion with its first adapter. `continues` says that the policy's own first adapter is another run's, which
    /// is then what the reference starts with, too.
    pub(super) fn new(needs: &Needs, policy: &Policy, continues: bool) -> Self {
        let first = |companion: &Companion| {
            let untouched = companion.start == Start::BaseModel && !continues;
            (companion.role, if untouched { Adapter::none() } else { policy.adapter().copy() })
        };
        let adapters = needs.companions.iter().map(first).collect();
        Self { asked: needs.companions.clone(), adapters, known: KnownRows::default() }
    }

    /// The adapters by role.
    pub(super) fn adapters(&self) -> &ByRole<Adapter> {
        &self.adapters
    }

    /// The companions that the method consults in this way, but for idle ones, in the order of [`Role::ALL`].
    pub(super) fn consulted(&self, consults: Consults, schedule: &Schedule) -> Vec<(Role, &Adapter)> {
        let is_asked = |role| self.asked.iter().any(|it| it.role == role && it.consults == consults);
        self.adapters.iter().filter(|(role, _)| is_asked(*role) && !schedule.idle.contains(role)).collect()
    }

    /// The policy before a step's updates, for [`Companions::renew`]; `None` where no companion becomes it.
    pub(super) fn before_updates(&self, policy: &Policy) -> Option<Adapter> {
        let becomes_it = self.asked.iter().any(|companion| companion.renewal == Renewal::BeforeUpdates);
        becomes_it.then(|| policy.adapter().copy())
    }

    /// Renews, after the updates of `step`, what has a rule; `before` is the policy before them.
    ///
    /// # Errors
    /// If the shapes of an average and of the policy differ.
    pub(super) fn renew(&mut self, step: u64, before: Option<Adapter>, policy: &Policy) -> Result<()> {
        let mut before = before;
        for companion in &self.asked {
            match companion.renewal {
                Renewal::BeforeUpdates => {
                    if let Some(adapter) = before.take() {
                        self.adapters.set(companion.role, adapter);
                    }
                }
                Renewal::Average { share, every } if step.is_multiple_of(every) => {
                    if let Some(average) = self.adapters.get(companion.role) {
                        average.mix(policy.adapter(), share)?;
                    }
                }
                Renewal::Average { .. } | Renewal::Never | Renewal::ByMethod => {}
            }
        }
        Ok(())
    }

    /// Replaces a companion.
    pub(super) fn set(&mut self, role: Role, adapter: Adapter) {
        self.adapters.set(role, adapter);
    }

    /// The log-probs of rows of a data set under a reference that never moves; `logprobs` computes those of new rows.
    ///
    /// # Errors
    /// If a row cannot be packed.
    pub(super) fn of_rows<U: PromptSequences>(
        &self,
        rows: &[U],
        limits: MicroBatchLimits,
        logprobs: impl Fn(&Packed) -> Tensor,
    ) -> Result<Vec<Vec<SequenceLogprobs>>> {
        self.known.logprobs(rows, limits, logprobs)
    }

    /// The adapter that the run would deploy now: the policy's, or the end of the previous iteration where the next one has
    /// just begun.
    pub(super) fn deployed<'a>(&'a self, policy: &'a Policy) -> &'a Adapter {
        let end = self.adapters.get(Role::IterationEnd).zip(self.adapters.get(Role::Reference));
        let has_begun = |(_, reference): &(_, &Adapter)| alike(policy.adapter().tensors(), reference.tensors());
        end.filter(has_begun).map_or_else(|| policy.adapter(), |(end, _)| end)
    }

    /// The files of a checkpoint that hold the companions. The untouched network has none.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Adapter)> {
        let touched = self.adapters.iter().filter(|(_, adapter)| adapter.layers().next().is_some());
        touched.map(|(role, adapter)| (role.files()[0], adapter))
    }

    /// Takes every companion from a checkpoint; `policy` has its adapter's shapes already.
    ///
    /// # Errors
    /// If a companion is not there, or has other shapes.
    pub(super) fn restore(&mut self, snapshot: &Snapshot, policy: &Policy) -> Result<()> {
        for companion in &self.asked {
            let files = companion.role.files();
            let saved = files.iter().find_map(|file| snapshot.part(file).ok());
            // A reference that was still the base model has no file; it may have been renewed since.
            if saved.is_none() && companion.role == Role::Reference && companion.start == Start::BaseModel {
                self.adapters.set(companion.role, Adapter::none());
                continue;
            }
            let saved = saved.map_or_else(|| snapshot.part(files[0]), Ok)?;
            let mut adapter = policy.adapter().copy();
            adapter.restore(saved)?;
            self.adapters.set(companion.role, adapter);
        }
        Ok(())
    }
}

/// The prompt and the completions of a row.
type Row = Vec<Vec<Token>>;

/// The rows that have been evaluated.
#[derive(Default)]
struct KnownRows(RefCell<HashMap<Row, Vec<SequenceLogprobs>>>);

impl KnownRows {
    fn logprobs<U: PromptSequences>(
        &self,
        rows: &[U],
        limits: MicroBatchLimits,
        logprobs: impl Fn(&Packed) -> Tensor,
    ) -> Result<Vec<Vec<SequenceLogprobs>>> {
        let one = |unit: &U| {
            let row = row(unit);
            if let Some(known) = self.0.borrow().get(&row) {
                return Ok(known.clone());
            }
            let columns = per_sequence(std::slice::from_ref(unit), limits, |packed| vec![logprobs(packed)])?;
            let sequence = |mut columns: Vec<Vec<f32>>| SequenceLogprobs {
                companions: columns.pop().map(|logprobs| (Role::Reference, logprobs)).into_iter().collect(),
                ..SequenceLogprobs::default()
            };
            let found: Vec<SequenceLogprobs> = columns.into_iter().flatten().map(sequence).collect();
            self.0.borrow_mut().insert(row, found.clone());
            Ok(found)
        };
        rows.iter().map(one).collect()
    }
}

fn row<U: PromptSequences>(unit: &U) -> Row {
    let completions = (0..unit.count()).map(|index| unit.sequence(index).ids.into_owned());
    std::iter::once(unit.prompt_ids().to_vec()).chain(completions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;
    use schema::Group;
    use std::cell::Cell;

    #[test]
    fn a_row_is_evaluated_once_and_by_itself() {
        let rows = KnownRows::default();
        let limits = MicroBatchLimits { tokens: 100, vocab: 50, device: model::device::HOST };
        let passes = Cell::new(0);
        let ask = |groups: &[Group]| {
            let logprobs = |packed: &Packed| {
                passes.set(passes.get() + 1);
                Tensor::arange(packed.target_tokens() as i64, (tch::Kind::Float, limits.device))
            };
            rows.logprobs(groups, limits, logprobs).unwrap()
        };
        // Samples of one and two tokens, then of one, two and three.
        let groups: Vec<Group> =
            scored(&[&[1.0, 0.0], &[1.0, 0.0, 0.0]]).iter().map(|group| group.group().clone()).collect();
        let found = ask(&groups);
        let numbers: Vec<_> = found.iter().flatten().map(|it| it.of(Role::Reference).to_vec()).collect();
        assert_eq!(numbers, [vec![0.0], vec![1.0, 2.0], vec![0.0], vec![1.0, 2.0], vec![3.0, 4.0, 5.0]]);
        assert_eq!(passes.get(), 2);
        assert_eq!(ask(&groups[1..])[0], found[1]);
        assert_eq!(passes.get(), 2);
    }
}
