//! The rows of runs: appended once, read back bit for bit, graded again in later scorings.

pub(crate) mod append;
pub(crate) mod blob;
pub(crate) mod read;
pub(crate) mod run;
pub(crate) mod scoring;
pub(crate) mod verdict;
