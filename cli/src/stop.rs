//! Stopping: the first SIGTERM or Ctrl-C asks for it, the second leaves at once.

use crate::screen::note;
use std::sync::atomic::{AtomicBool, Ordering};

/// Raised by the first SIGTERM or Ctrl-C.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Listens from now on; says `first` when asked to stop, and `again` before it leaves at once.
pub(crate) fn listen(first: &'static str, again: &'static str) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::SeqCst) {
            note(again);
            std::process::exit(130);
        }
        note(first);
    })?;
    Ok(())
}
