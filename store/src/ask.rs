//! Questions about what is stored: SQL, and the reports that people ask for most.

mod audit;
mod diff;
pub(crate) mod query;
mod ranking;
mod report;
mod trend;

pub use ranking::{End, Ranking};
