//! The integration tests, in one program so that libtorch is linked once.
//!
//! `architecture` and `tidy` hold the house's rules that no compiler checks; the others run the `proxrl` program.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod architecture;
mod bench;
mod circles;
#[path = "../../../store/src/tests/cluster.rs"]
mod cluster;
mod configs;
mod data;
mod errors;
mod export;
mod glossary;
mod guards;
mod judges;
mod learns;
mod methods;
mod postgres;
mod ppo;
mod preferences;
mod profile;
mod remote;
mod replay;
mod replay_docs;
mod replayed;
mod resume;
mod serve;
mod share;
mod sora;
mod support;
mod team;
mod tidy;

use std::path::Path;

/// The root of the checkout.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ lies in the workspace")
}
