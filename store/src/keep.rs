//! Keeping a store: checking it, making it smaller, copying it to another engine.

mod migrate;
mod prune;
mod shrink;
mod sweep;
mod turns;
mod verify;

pub use migrate::Migrated;
pub use prune::{MARGIN, Prune, Pruned};
pub use verify::Verification;
