//! Log-probs of whole sequences, computed in packed passes before a step's updates.

use super::{MicroBatchLimits, micro_batches, packed_sequences};
use crate::Result;
use crate::collected::PromptSequences;
use crate::companion::{ByRole, Role};
use model::packed::Packed;
use tch::Tensor;

/// Log-probs and values of one sequence at the start of a step, one number per token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SequenceLogprobs {
    /// Log-probs under the policy that is trained; empty if they were not asked for.
    pub policy: Vec<f32>,
    /// Log-probs under its companions.
    pub companions: ByRole<Vec<f32>>,
    /// The critic's value of the prefix before each token; empty without a critic.
    pub values: Vec<f32>,
}

impl SequenceLogprobs {
    /// The log-probs under a companion; none where it was not consulted.
    pub fn of(&self, role: Role) -> &[f32] {
        self.companions.get(role).map_or(&[], Vec::as_slice)
    }

    /// `log π − log other` at each token; empty where the companion was not consulted.
    pub(crate) fn log_ratios_to(&self, role: Role) -> Vec<f64> {
        self.policy.iter().zip(self.of(role)).map(|(own, other)| f64::from(*own) - f64::from(*other)).collect()
    }
}

/// Runs every sequence through packed passes, in order. `columns` gives any number of `[token]` tensors for a pass, which
/// come back as `[unit][sequence][column][token]`.
///
/// # Errors
/// If a pass cannot be packed (a token outside the vocabulary, a prompt without tokens).
pub(crate) fn per_sequence<U: PromptSequences>(
    units: &[U],
    limits: MicroBatchLimits,
    mut columns: impl FnMut(&Packed) -> Vec<Tensor>,
) -> Result<Vec<Vec<Vec<Vec<f32>>>>> {
    let every: Vec<super::Index> = super::Index::every(units);
    let mut found: Vec<Vec<Vec<Vec<f32>>>> = units.iter().map(|unit| Vec::with_capacity(unit.count())).collect();
    for part in micro_batches(units, &every, limits.tokens, super::Reads::Tokens, super::Together::Never) {
        let sequences = packed_sequences(units, &part);
        let packed = sequences.pack(super::Reads::Tokens, limits)?;
        let columns =
            columns(&packed).iter().map(|column| Ok(Vec::<f32>::try_from(column)?)).collect::<Result<Vec<_>>>()?;
        let mut start = 0;
        for index in &part {
            let tokens = start..start + index.sequence(units).len();
            start = tokens.end;
            found[index.unit].push(columns.iter().map(|column| column[tokens.clone()].to_vec()).collect());
        }
    }
    Ok(found)
}
