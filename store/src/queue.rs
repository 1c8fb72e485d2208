//! The queue through which other processes and machines sample: jobs, published policies and workers.

mod job;

pub use job::{JobProgress, Lease, NewJob, Publication};
