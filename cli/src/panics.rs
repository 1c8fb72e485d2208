//! Panics: one sentence and exit code 1 instead of frames of C++.
//!
//! libtorch's failures arrive as panics of `tch`. The usual one is that memory ran out, and it is told with the keys that
//! lower what is needed. No backtrace is taken: it allocates, which is just what cannot be done then.

use crate::terminal::note;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Mutex, PoisonError};

/// The place and the message of the last panic of the main thread.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Words by which libtorch says that it got no memory, on the CPU and on CUDA.
const NO_MEMORY: [&str; 3] = ["can't allocate memory", "not enough memory", "out of memory"];

/// The longest message that is shown of a fault of this program, in characters.
const SHOWN: usize = 300;

/// Runs the program's work; a panic becomes an error.
///
/// # Errors
///
/// The error of the work, or a sentence about its panic.
pub(crate) fn told<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    panic::set_hook(Box::new(take_note));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(anyhow::anyhow!(sentence(&last.unwrap_or_default())))
    })
}

/// Keeps a panic of the main thread for [`told`]. Those of other threads are shown at once, in a line.
fn take_note(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let place = info.location().map_or_else(String::new, |place| format!("{}:{}: ", place.file(), place.line()));
    let said = format!("{place}{}", message.unwrap_or_default());
    if std::thread::current().name() == Some("main") {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    } else {
        note(&sentence(&said));
    }
}

/// Returns what to tell of a panic.
fn sentence(said: &str) -> String {
    if NO_MEMORY.iter().any(|words| said.contains(words)) {
        let asked = said.rsplit("allocate ").next().and_then(|rest| rest.split_once(" bytes"));
        let asked = asked.and_then(|(bytes, _)| bytes.parse::<f64>().ok());
        let asked = asked.map_or_else(String::new, |bytes| format!(" ({:.0} MB more were asked for)", bytes / 1e6));
        return format!(
            "out of memory{asked}: lower micro_batch_tokens, rollout.engine.max_running, rollout.group_size or rollout.max_new_tokens, or set model.gradient_checkpointing = true; `proxrl plan` estimates what a config needs"
        );
    }
    let short: String = said.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    format!("a fault of this program, at {short}; please report it with the command and the output of `proxrl doctor`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_ran_out_is_told_with_keys() {
        let torch = "/x/tch/src/wrappers.rs:7: called `Result::unwrap()` on an `Err` value: Torch(\"[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 50331648 bytes. Error code 12\")\nframe #0";
        let said = sentence(torch);
        assert!(said.starts_with("out of memory (50 MB more were asked for): lower micro_batch_tokens"), "{said}");
        assert!(sentence("CUDA out of memory. Tried to allocate 2.00 GiB").starts_with("out of memory: lower"));
    }

    #[test]
    fn another_panic_is_one_line_with_its_place() {
        let said = sentence("trainer/src/run.rs:10: index out of bounds\nframe #0: c10");
        assert!(said.contains("at trainer/src/run.rs:10: index out of bounds;") && !said.contains("frame"), "{said}");
    }
}
