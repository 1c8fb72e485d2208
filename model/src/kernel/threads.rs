//! Threads that go through the phases of one computation together.
//!
//! A decode pass has some nine phases per layer, each a few tens of microseconds: too short to wake a sleeping thread
//! for. So threads are started once per pass and meet at a spinning barrier; a thread that spins long yields its core.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A reusable spinning barrier for a fixed number of threads.
#[derive(Debug)]
pub(crate) struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

/// Looks at the counter before a waiting thread yields its core.
const PATIENCE: u32 = 1 << 14;

impl Barrier {
    fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Returns once every thread has called it. All of them then see each other's earlier writes.
    pub(crate) fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut looks = 0;
        while self.round.load(Ordering::Acquire) == round {
            looks += 1;
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs `work` on `threads` threads, the caller's being the first, and returns when all are done. `work` gets its
/// thread's index and the barrier. It must not panic: the other threads would wait forever.
pub(crate) fn run_threads(threads: usize, work: impl Fn(usize, &Barrier) + Sync) {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || work(thread, barrier));
        }
        work(0, &barrier);
    });
}

/// The number of threads worth starting for this many multiplications: libtorch's number, or one if the work is shorter
/// than their start.
pub(crate) fn thread_count(multiplications: usize) -> usize {
    const WORTH_A_THREAD: usize = 1 << 19;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    threads.min(multiplications / WORTH_A_THREAD).max(1)
}

/// The share of `0..count` that belongs to one of `threads` threads, in multiples of `unit` except at the end.
pub(crate) fn share_of(thread: usize, threads: usize, count: usize, unit: usize) -> Range<usize> {
    let units = count.div_ceil(unit);
    let at = |thread: usize| (units * thread / threads * unit).min(count);
    at(thread)..at(thread + 1)
}
