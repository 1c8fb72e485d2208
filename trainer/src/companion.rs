//! Companions: policies that are kept beside the trained one, each with its rule of renewal and its name in a checkpoint.
//!
//! | role | which policy | renewed |
//! |---|---|---|
//! | reference | the base model, or the adapter that the run began with | never, or by the method (`ReMix`, APO) |
//! | previous | the policy of one step earlier | before each step's updates (`ReMix`) |
//! | ema | an exponential moving average of the policy | every few steps (Nash-MP) |
//! | iteration end | the end of the previous iteration, which is what a run deploys between two iterations | by the method (APO) |
//!
//! A method lists the companions that it needs ([`Companion`]); the learner keeps exactly those, evaluates their
//! log-probabilities when the method wants them, and saves them. Everything that is known per companion is a [`ByRole`].

use std::array;

/// The place of a companion beside the trained policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The policy that a KL penalty, or a log-ratio, is measured against.
    Reference,
    /// The policy of one step earlier.
    Previous,
    /// An exponential moving average of the policy.
    Ema,
    /// The end of the previous iteration.
    IterationEnd,
}

impl Role {
    /// Every role, in the order in which companions are evaluated.
    pub const ALL: [Self; 4] = [Self::Reference, Self::Ema, Self::Previous, Self::IterationEnd];

    /// The name of the file of a checkpoint that holds this companion's adapter, and names that older programs gave it.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Self::Reference => &["reference"],
            Self::Previous => &["previous"],
            Self::Ema => &["ema", "anchor"],
            Self::IterationEnd => &["iteration_end", "hat"],
        }
    }
}

/// The adapter that a companion starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// None, so that the companion is the base model; a copy of the policy's where the run goes on from another run's
    /// adapter (`model.adapter_from`).
    BaseModel,
    /// A copy of the policy's.
    Policy,
}

/// The rule by which a companion is renewed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Renewal {
    /// It stays what it was.
    Never,
    /// It becomes the policy as it was before the updates of the step that has just ended.
    BeforeUpdates,
    /// `θ̄ ← (1 − share) θ̄ + share θ` after every `every` steps.
    Average {
        /// The weight of the present policy, κ, in (0, 1].
        share: f64,
        /// Steps between two renewals.
        every: u64,
    },
    /// The method renews it at the end of steps of its choice (`Algorithm::end_step`).
    ByMethod,
}

/// The use that a method makes of a companion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consults {
    /// Its log-probs of the sampled tokens, known before the training signal is computed.
    Signal,
    /// Its log-probs of the sampled tokens, in the loss alone.
    Loss,
    /// The divergence `KL(policy ‖ companion)` over the whole vocabulary, in the loss of every pass.
    Divergence,
    /// None in a step; it is kept for the method's own renewals.
    Nothing,
}

/// A policy that a method needs beside the trained one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Companion {
    /// Its place.
    pub role: Role,
    /// Its first adapter.
    pub start: Start,
    /// The rule by which it changes.
    pub renewal: Renewal,
    /// The numbers that the method reads of it.
    pub consults: Consults,
}

impl Companion {
    /// The reference policy of a method that never renews it.
    pub fn reference(consults: Consults) -> Self {
        Self { role: Role::Reference, start: Start::BaseModel, renewal: Renewal::Never, consults }
    }
}

/// One value per companion; `None` for a companion that is not kept or not consulted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByRole<T>([Option<T>; Role::ALL.len()]);

impl<T> Default for ByRole<T> {
    fn default() -> Self {
        Self(array::from_fn(|_| None))
    }
}

impl<T> ByRole<T> {
    /// The value of this companion.
    pub fn get(&self, role: Role) -> Option<&T> {
        self.0[role as usize].as_ref()
    }

    /// Sets the value of this companion, replacing an earlier one.
    pub fn set(&mut self, role: Role, value: T) {
        self.0[role as usize] = Some(value);
    }

    /// The value of this companion, or a new default one in its place.
    pub fn entry(&mut self, role: Role) -> &mut T
    where
        T: Default,
    {
        self.0[role as usize].get_or_insert_default()
    }

    /// Every known value, in the order of [`Role::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Role, &T)> {
        Role::ALL.into_iter().filter_map(|role| Some((role, self.get(role)?)))
    }
}

impl<T> FromIterator<(Role, T)> for ByRole<T> {
    fn from_iter<I: IntoIterator<Item = (Role, T)>>(values: I) -> Self {
        let mut by_role = Self::default();
        values.into_iter().for_each(|(role, value)| by_role.set(role, value));
        by_role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_under_its_own_role() {
        let mut lengths: ByRole<usize> = [(Role::Ema, 2), (Role::Reference, 1)].into_iter().collect();
        *lengths.entry(Role::Previous) += 3;
        assert_eq!(lengths.iter().collect::<Vec<_>>(), [(Role::Reference, &1), (Role::Ema, &2), (Role::Previous, &3)]);
        assert_eq!(lengths.get(Role::IterationEnd), None);
    }

    #[test]
    fn no_two_companions_share_a_file() {
        let mut files: Vec<&str> = Role::ALL.iter().flat_map(|role| role.files()).copied().collect();
        files.sort_unstable();
        let count = files.len();
        files.dedup();
        assert_eq!(files.len(), count);
    }
}
