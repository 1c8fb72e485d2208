//! Taking turns with other writers.
//!
//! A waiting writer of `SQLite` is not queued: it looks again, at most every 100 ms. A process that began one short
//! transaction right after another would keep the file from it for as long as that goes on.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Shortest and longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// Leaves the store to others for as long as a transaction took that began at this moment.
pub(super) async fn leave_to_others(began: Instant) {
    let (shortest, longest) = PAUSES;
    sleep(began.elapsed().clamp(shortest, longest)).await;
}
