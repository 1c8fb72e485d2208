//! Progress bars for long work on samples. They show nothing if standard error is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A progress bar on standard error, shown until it is dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A spinner before `message`. The first call of [`samples`](Self::samples) makes it a bar.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        let bar = ProgressBar::no_length().with_style(style("{spinner} {wide_msg}")).with_message(message.into());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Shows that `done` samples of `total` are done.
    pub(crate) fn samples(&self, done: u64, total: u64) {
        if self.0.length() != Some(total) {
            self.0.set_style(style("{bar:24} {human_pos}/{human_len} {wide_msg} {per_sec} {eta_precise} left"));
            self.0.set_length(total);
        }
        self.0.set_position(done);
        if done == total {
            // The last state is shown even if it comes right after another.
            self.0.force_draw();
        }
    }

    /// Shows another message.
    pub(crate) fn say(&self, message: String) {
        self.0.set_message(message);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The style of an indicatif template; a template with a fault gives the default bar.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
