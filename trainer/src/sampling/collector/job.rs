//! The request of a job in the form in which it is stored.

use crate::{Error, Result};
use rollout::collector::{Job, JobPosition};
use schema::{Prompt, SamplerSettings, Seed};
use serde::{Deserialize, Serialize};
use store::{Lease, NewJob};

/// A part of a step's sampling.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    prompts: Vec<Prompt>,
    group_size: usize,
    settings: SamplerSettings,
    /// Seed of the whole step's job, in hexadecimal.
    seed: String,
    /// Number of the first prompt under that seed.
    first: u64,
}

/// Splits a step's sampling into jobs of at most `prompts_per_job` prompts.
pub(crate) fn cut(job: &Job, prompts_per_job: usize, min_version: u64) -> Vec<NewJob> {
    let piece = |(number, prompts): (usize, &[Prompt])| {
        let offset = number * prompts_per_job;
        let order = Order {
            prompts: prompts.to_vec(),
            group_size: job.group_size,
            settings: job.settings.clone(),
            seed: job.seed.to_hex(),
            first: job.position.first_prompt + offset as u64,
        };
        NewJob {
            place: job.position.first_group + offset,
            groups: prompts.len(),
            min_version,
            request: serde_json::to_string(&order).expect("a record of strings and numbers is JSON"),
        }
    };
    job.prompts.chunks(prompts_per_job).enumerate().map(piece).collect()
}

/// Parses the request of a lease.
pub(super) fn read(lease: &Lease) -> Result<Job> {
    parse(&lease.request, lease.step, lease.place).map_err(|what| {
        Error::input(format!("job {} cannot be read: {what}; is this worker older than the trainer?", lease.job))
    })
}

/// Parses a request that [`cut`] wrote.
pub(crate) fn parse(request: &str, step: u64, place: usize) -> std::result::Result<Job, String> {
    let order: Order = serde_json::from_str(request).map_err(|error| error.to_string())?;
    let seed = Seed::from_hex(&order.seed).ok_or("its seed is no key")?;
    let position = JobPosition { step, first_group: place, first_prompt: order.first };
    Ok(Job { prompts: order.prompts, group_size: order.group_size, settings: order.settings, seed, position })
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::RunId;

    #[test]
    fn pieces_keep_their_places_and_their_seeds() {
        let job = Job {
            prompts: (0..5).map(|number| Prompt::user(format!("question {number}"))).collect(),
            group_size: 3,
            settings: SamplerSettings { temperature: 0.1 + 0.2, ..SamplerSettings::default() },
            seed: Seed::new(1).child("rollout"),
            position: JobPosition { step: 7, first_group: 10, first_prompt: 0 },
        };
        let pieces = cut(&job, 2, 6);
        let shapes: Vec<_> = pieces.iter().map(|piece| (piece.place, piece.groups, piece.min_version)).collect();
        assert_eq!(shapes, [(10, 2, 6), (12, 2, 6), (14, 1, 6)]);
        let lease = |piece: &NewJob| Lease {
            job: 1,
            run: RunId(1),
            step: 7,
            place: piece.place,
            groups: piece.groups,
            min_version: 6,
            request: piece.request.clone(),
            worker: "a".into(),
            attempt: 1,
        };
        for (piece, first) in pieces.iter().zip([0, 2, 4]) {
            let read = read(&lease(piece)).unwrap();
            assert_eq!(read.position, JobPosition { step: 7, first_group: piece.place, first_prompt: first });
            assert_eq!((read.group_size, &read.settings, &read.seed), (3, &job.settings, &job.seed));
            assert_eq!(read.prompts, job.prompts[first as usize..(first as usize + 2).min(5)]);
        }
        let wrong = Lease { request: "{}".into(), ..lease(&pieces[0]) };
        assert!(read(&wrong).unwrap_err().is_input());
    }
}
