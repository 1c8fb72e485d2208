//! Comparisons of two answers: which pairs of a step are compared, and networks that compare.

pub(crate) mod comparisons;
pub(crate) mod preference_model;

pub(crate) use comparisons::PairComparer;
