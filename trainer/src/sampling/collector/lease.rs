//! Work under a lease: while it goes on, a thread beside it extends the lease.

use crate::Result;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use store::{Lease, Store};

/// Does `work`, and extends the lease three times in its length. `beat` is told each time, too, that somebody is alive.
///
/// That a lease is lost is found out at the end, when the store refuses what was drawn: breaking off in the middle would
/// save little, and a store that did not answer for a while is no reason to.
pub(super) fn under<T>(
    store: &Store,
    lease: &Lease,
    length: Duration,
    beat: &(dyn Fn() + Sync),
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while waiting.recv_timeout(length / 3) == Err(RecvTimeoutError::Timeout) {
                beat();
                match store.extend(lease, length) {
                    Ok(true) => {}
                    Ok(false) => return tracing::warn!("job {} was given to somebody else meanwhile", lease.job),
                    Err(error) => tracing::warn!("cannot extend the lease of job {}: {error}", lease.job),
                }
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}
