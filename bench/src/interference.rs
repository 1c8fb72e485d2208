//! Interference: the processor time that other processes take while something is measured.

use std::fs;
use std::time::Instant;

/// Cores kept busy by others above which a measurement is not to be trusted.
pub(crate) const DISTURBING: f64 = 0.15;

/// Ticks in which Linux counts processor time for programs, per second, whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// A meter of processor time since its start.
pub(crate) struct CpuMeter {
    began: Instant,
    busy: Option<f64>,
    own: Option<f64>,
}

impl CpuMeter {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), busy: busy(), own: own() }
    }

    /// Returns the number of cores that other processes kept busy since the start; `None` if the kernel does not say.
    pub(crate) fn others(&self) -> Option<f64> {
        let seconds = (busy()? - self.busy?) - (own()? - self.own?);
        Some((seconds / self.began.elapsed().as_secs_f64()).max(0.0))
    }
}

fn busy() -> Option<f64> {
    busy_s(&fs::read_to_string("/proc/stat").ok()?)
}

fn own() -> Option<f64> {
    own_s(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Returns the busy seconds of all processors together, from the first line of /proc/stat: user, nice, system, idle,
/// waiting, two kinds of interrupts.
fn busy_s(stat: &str) -> Option<f64> {
    let words = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = words.map_while(|word| word.parse().ok()).collect();
    let idle = ticks.get(3..5)?.iter().sum::<f64>();
    // The columns after these are counted in user time already, or were taken by a host.
    Some((ticks.get(..7)?.iter().sum::<f64>() - idle) / TICKS_PER_SECOND)
}

/// Returns the busy seconds of a process: fields 14 and 15 of /proc/PID/stat, in user and in system mode.
fn own_s(stat: &str) -> Option<f64> {
    let behind_name = &stat[stat.rfind(')')? + 1..];
    let mut ticks = behind_name.split_whitespace().skip(11).map(str::parse::<f64>);
    Some((ticks.next()?.ok()? + ticks.next()?.ok()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_are_read_as_the_kernel_writes_them() {
        // user 100, nice 20, system 30, idle 900, waiting 50, interrupts 7 and 3: 160 ticks.
        assert_eq!(busy_s("cpu  100 20 30 900 50 7 3 11 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"), Some(1.6));
        let stat = "42 (a (b) c) R 1 42 42 0 -1 4194304 103 0 0 0 250 50 0 0 20 0 1 0 12345 8192 1 184 1";
        assert_eq!(own_s(stat), Some(3.0));
        assert!(CpuMeter::start().others().is_some_and(|cores| cores >= 0.0));
    }
}
