//! The queue of samples that wait for a slot, in order of arrival.

use std::collections::VecDeque;

/// Waiting samples, grouped by request so that a prompt is prefilled once for all of its samples.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    request: usize,
    next: usize,
    samples: usize,
}

/// One sample of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId {
    /// Number of the request, as returned by [`Engine::submit`](super::Engine::submit).
    pub request: usize,
    /// Index among the samples of the request.
    pub sample: usize,
}

impl Queue {
    /// Adds a request's samples at the end.
    pub(super) fn push(&mut self, request: usize, samples: usize) {
        if samples > 0 {
            self.entries.push_back(Entry { request, next: 0, samples });
        }
    }

    /// Takes up to `free` samples from the front, as long as `fits` accepts their requests.
    pub(super) fn admit(&mut self, mut free: usize, fits: impl Fn(usize) -> bool) -> Vec<SampleId> {
        let mut admitted = Vec::new();
        while free > 0 {
            let Some(entry) = self.entries.front_mut().filter(|entry| fits(entry.request)) else { break };
            admitted.push(SampleId { request: entry.request, sample: entry.next });
            entry.next += 1;
            free -= 1;
            if entry.next == entry.samples {
                self.entries.pop_front();
            }
        }
        admitted
    }

    /// The request at the front.
    pub(super) fn front(&self) -> Option<usize> {
        self.entries.front().map(|entry| entry.request)
    }

    /// True if samples of this request are waiting.
    pub(super) fn waits(&self, request: usize) -> bool {
        self.entries.iter().any(|entry| entry.request == request)
    }

    /// Drops the samples of this request that have not been admitted.
    pub(super) fn cancel(&mut self, request: usize) {
        self.entries.retain(|entry| entry.request != request);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Seed;

    #[test]
    fn every_sample_is_admitted_exactly_once_and_in_order() {
        for trial in 0..50 {
            let seed = Seed::new(trial);
            let sizes: Vec<usize> = (0..10).map(|index| seed.below(index, 6) as usize).collect();
            let mut queue = Queue::default();
            let mut seen = Vec::new();
            for (request, samples) in sizes.iter().enumerate() {
                queue.push(request, *samples);
                seen.extend(queue.admit(seed.below(100 + request as u64, 4) as usize, |_| true));
            }
            while !queue.is_empty() {
                seen.extend(queue.admit(3, |_| true));
            }
            let all: Vec<SampleId> = sizes
                .iter()
                .enumerate()
                .flat_map(|(request, samples)| (0..*samples).map(move |sample| SampleId { request, sample }))
                .collect();
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn a_request_that_does_not_fit_waits_and_a_cancelled_one_goes() {
        let mut queue = Queue::default();
        queue.push(0, 2);
        queue.push(1, 1);
        assert!(queue.admit(5, |request| request != 0).is_empty());
        assert_eq!(queue.admit(1, |_| true), [SampleId { request: 0, sample: 0 }]);
        assert!(queue.waits(0));
        queue.cancel(0);
        assert!(!queue.waits(0));
        assert_eq!(queue.admit(5, |_| true), [SampleId { request: 1, sample: 0 }]);
    }
}
