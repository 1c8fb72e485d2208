//! Data-parallel training: several processes train one policy over libtorch's c10d.
//!
//! Every process runs the same command; `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` in its environment
//! identify it, as set by torchrun, Slurm and Kubernetes' operators. Rank 0 *leads*: it alone has the run folder, the
//! store, the rewards and the held-out prompts. The other ranks execute its [`Call`]s, one after the other.
//!
//! | call | action of each rank |
//! |---|---|
//! | restore | loads a checkpoint, so that all start equal |
//! | draw | samples its share of a job's prompts; rank 0 gets all groups |
//! | learn | computes its share of each update's micro-batches; gradients and metric sums are added; all take the same step |
//! | end | leaves |
//!
//! The denominator of the loss is that of the whole batch, as with micro-batches in one process, so the sum of the
//! ranks' gradients is that of one process up to the rounding of another order of summation. After each step ranks
//! compare the hashes of their policies, and stop if they differ. Every rank computes log-probabilities and values
//! before an update (reference, critic) for itself.
//!
//! Gradients travel as f32 through the host's memory by Gloo, on every device: an adapter is small. Gloo has neither
//! encryption nor authentication, so it needs a private network; `GLOO_SOCKET_IFNAME` names the interface.

#[cfg(feature = "distributed")]
mod c10d;

use crate::checkpoint::{Snapshot, State};
use crate::collected::Collected;
use crate::objective::{MetricSums, Number};
use crate::optimizer::Parameter;
use crate::{Error, Result};
#[cfg(feature = "distributed")]
use c10d::Wire;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tch::{Kind, Tensor};

/// Connection of the processes; empty in a program built without the feature.
#[cfg(not(feature = "distributed"))]
#[derive(Debug)]
enum Wire {}

#[cfg(not(feature = "distributed"))]
impl Wire {
    fn sum(&self, _: &Tensor) -> Result<()> {
        match *self {}
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<()> {
        match *self {}
    }
}

/// The processes that train together, from the view of one of them.
#[derive(Debug)]
pub(crate) struct Team {
    rank: usize,
    size: usize,
    wire: Wire,
}

/// A call of rank 0 to the other ranks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call<'a> {
    /// A checkpoint follows: its state, and the names of its tensor files, whose bytes come next.
    Restore { state: Box<State>, parts: Vec<String> },
    /// Sampling: the part of the job of each rank; the last ranks may have none.
    Draw { step: u64, orders: Vec<String> },
    /// The data of a step to learn from.
    Learn { step: u64, collected: Cow<'a, Collected> },
    /// The run has ended.
    End,
}

/// Reads a number from the environment.
fn number(name: &str) -> Result<Option<usize>> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Error::input(format!("{name}={text} in the environment is no number; does a launcher set it?")))
}

impl Team {
    /// Joins the team that the environment describes and waits for the other ranks; `None` for a single process.
    pub(crate) fn join() -> Result<Option<Self>> {
        let Some(size) = number("WORLD_SIZE")?.filter(|size| *size > 1) else { return Ok(None) };
        let rank = number("RANK")?.filter(|rank| *rank < size).ok_or_else(|| {
            Error::input(format!(
                "WORLD_SIZE={size} in the environment asks for {size} processes, but RANK is no number below it; start them by torchrun, or unset WORLD_SIZE"
            ))
        })?;
        Self::connect(rank, size).map(Some)
    }

    #[cfg(feature = "distributed")]
    fn connect(rank: usize, size: usize) -> Result<Self> {
        let port = number("MASTER_PORT")?.and_then(|port| u16::try_from(port).ok()).unwrap_or(29_500);
        Ok(Self { rank, size, wire: Wire::join(rank, size, port)? })
    }

    #[cfg(not(feature = "distributed"))]
    fn connect(_rank: usize, size: usize) -> Result<Self> {
        Err(Error::input(format!(
            "WORLD_SIZE={size} in the environment asks for {size} processes, and this program was built for one; build it with `--features distributed`, or unset WORLD_SIZE"
        )))
    }

    pub(crate) fn leads(&self) -> bool {
        self.rank == 0
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns true if the item with this number is this rank's share.
    pub(crate) fn owns(&self, number: usize) -> bool {
        number % self.size == self.rank
    }

    /// Sends bytes to all.
    fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.wire.broadcast(&Tensor::from_slice(&[bytes.len() as i64]), self.rank)?;
        self.wire.broadcast(&Tensor::from_slice(bytes), self.rank)
    }

    /// Receives the bytes that a rank sends with [`Team::send_bytes`].
    pub(crate) fn get_bytes(&self, from: usize) -> Result<Vec<u8>> {
        let empty = |count: i64, kind: Kind| Tensor::zeros([count], (kind, model::device::HOST));
        let length = empty(1, Kind::Int64);
        self.wire.broadcast(&length, from)?;
        let bytes = empty(length.int64_value(&[0]), Kind::Uint8);
        self.wire.broadcast(&bytes, from)?;
        Ok(Vec::<u8>::try_from(bytes)?)
    }

    pub(crate) fn send(&self, value: &impl Serialize) -> Result<()> {
        self.send_bytes(&serde_json::to_vec(value).map_err(garbled)?)
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, from: usize) -> Result<T> {
        serde_json::from_slice(&self.get_bytes(from)?).map_err(garbled)
    }

    /// Exchanges one value per rank; returns all of them in the order of ranks.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        let mut all = Vec::with_capacity(self.size);
        for rank in 0..self.size {
            if rank == self.rank {
                self.send(&own)?;
            } else {
                all.push(self.get(rank)?);
            }
        }
        all.insert(self.rank, own);
        Ok(all)
    }

    /// Makes the other ranks start from a checkpoint.
    pub(crate) fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        let files = snapshot.files()?;
        let parts = files.iter().map(|(name, _)| name.clone()).collect();
        self.send(&Call::Restore { state: Box::new(snapshot.state.clone()), parts })?;
        files.iter().try_for_each(|(_, bytes)| self.send_bytes(bytes))
    }

    /// Makes the followers learn beside this rank.
    pub(crate) fn learn(&self, step: u64, collected: &Collected) -> Result<()> {
        self.send(&Call::Learn { step, collected: Cow::Borrowed(collected) })
    }

    /// Ends the other ranks.
    pub(crate) fn end(&self) -> Result<()> {
        self.send(&Call::End)
    }

    /// Adds up the ranks' gradients, losses and metric sums: afterwards every rank has the result of a single process.
    pub(crate) fn add_up(&self, parameters: &[Parameter], loss: f64, sums: &MetricSums) -> Result<(f64, MetricSums)> {
        let host = |gradient: Tensor| gradient.to_device(model::device::HOST).to_kind(Kind::Float).reshape([-1]);
        let flat: Vec<Tensor> = parameters.iter().map(|parameter| host(parameter.gradient())).collect();
        let flat = Tensor::cat(&flat, 0);
        self.wire.sum(&flat)?;
        let mut start = 0;
        for Parameter { tensor, .. } in parameters {
            let count = tensor.numel() as i64;
            let sum = flat.narrow(0, start, count).reshape(tensor.size());
            tensor.shallow_clone().zero_grad();
            // Only autograd may give a leaf its first gradient.
            (tensor * sum.to_device(tensor.device()).to_kind(tensor.kind())).sum(tensor.kind()).backward();
            start += count;
        }
        let mut total = (0.0, MetricSums::new());
        for (loss, counts) in self.gather((Number::from(loss), sums.counts()))? {
            total.0 += f64::from(loss);
            total.1.merge(MetricSums::of(counts));
        }
        Ok(total)
    }

    /// Returns an error if ranks hold different policies after a step.
    pub(crate) fn agree(&self, step: u64, hash: &str) -> Result<()> {
        let hashes = self.gather(hash.to_owned())?;
        let Some(rank) = hashes.iter().position(|other| *other != hashes[0]) else { return Ok(()) };
        // All ranks receive the hashes before any of them leaves.
        let _ = self.gather(());
        Err(Error::runtime(format!(
            "after step {step} rank {rank} holds the policy {} and rank 0 holds {}: they no longer train the same one. Do all run the same program, config and kind of machine? The newest checkpoint stands",
            hashes[rank], hashes[0]
        )))
    }
}

pub(crate) fn garbled(error: impl std::fmt::Display) -> Error {
    Error::runtime(format!("ranks do not understand each other: {error}; do all run the same program?"))
}
