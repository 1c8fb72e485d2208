//! Threads that take the phases of one computation together.
//!
//! A decode pass has some nine phases per layer, each a few tens of microseconds: too short to wake a sleeping thread
//! for. So a team is started once per pass and its members wait for each other by watching a counter; who waits long
//! gives its processor away.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the members of a team wait for each other.
#[derive(Debug)]
pub(crate) struct Barrier {
    members: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

/// Looks at the counter before a waiting member lets others have its processor.
const PATIENCE: u32 = 1 << 14;

impl Barrier {
    fn new(members: usize) -> Self {
        Self { members, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Returns when every member has called it. What they wrote before is then seen by all.
    pub(crate) fn wait(&self) {
        if self.members == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
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

/// Runs `work` on `members` threads, the caller's being the first, and returns when all are done. It gets the member's
/// number and the barrier, and must not panic: the others would wait for ever.
pub(crate) fn together(members: usize, work: impl Fn(usize, &Barrier) + Sync) {
    let barrier = Barrier::new(members);
    std::thread::scope(|scope| {
        for member in 1..members {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || work(member, barrier));
        }
        work(0, &barrier);
    });
}

/// The part of `0..count` that is a member's, in multiples of `unit` but for the last.
pub(crate) fn share_of(member: usize, members: usize, count: usize, unit: usize) -> Range<usize> {
    let units = count.div_ceil(unit);
    let at = |member: usize| (units * member / members * unit).min(count);
    at(member)..at(member + 1)
}
