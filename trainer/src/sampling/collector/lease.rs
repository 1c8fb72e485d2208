//! Work under a lease, which a second thread extends meanwhile.

use crate::Result;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use store::{Lease, Store};

/// Runs `work` and extends the lease three times per lease length. `beat` is called each time as well, as a heartbeat.
///
/// A lost lease is noticed at the end, when the store refuses the samples: stopping in the middle would save little,
/// and a store that did not answer for a while is no reason to stop.
///
/// # Errors
/// If `work` fails.
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
