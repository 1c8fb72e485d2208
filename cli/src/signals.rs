//! Signals: the first SIGTERM or Ctrl-C asks the program to stop, the second leaves at once.

use crate::terminal::note;
use std::sync::atomic::{AtomicBool, Ordering};

/// Raised by the first SIGTERM or Ctrl-C.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Ends the process without the destructors of libtorch, which would run beside a computation that is under way.
fn leave() -> ! {
    // SAFETY: `_exit` takes a number and does not return; it runs no code of this process.
    unsafe { libc::_exit(130) }
}

/// Installs the handler, which prints `first` when asked to stop, and `again` before it leaves at once.
///
/// # Errors
///
/// Fails if the system refuses the handler, or if the program has one already.
pub(crate) fn listen(first: &'static str, again: &'static str) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::SeqCst) {
            note(again);
            leave();
        }
        note(first);
    })?;
    Ok(())
}
