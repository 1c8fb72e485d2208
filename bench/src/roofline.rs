//! The roofline: the least time that this machine needs for a piece of work (Williams et al. 2009).
//!
//! A pass over the network is bound by its matrix products at the rate of large ones, or by reading its weights, keys and
//! values from memory:
//!
//! ```text
//! limit = max(operations / rate of products, bytes / rate of reading)
//! ```
//!
//! Both rates are measured in the same process as the work: products of the network's own shapes with 1,024 rows, and a
//! sum over 256 MB. Counted operations are those that the work cannot do without (Kaplan et al. 2020, arXiv 2001.08361,
//! section 2.1, with a frozen base): `2 P` per token forward for `P` weights, as many for the backward pass through
//! them, and `6` per weight of the adapter, whose own gradients are wanted. Recomputation is not counted; nor are norms,
//! activations and softmax.

use anyhow::Result;
use model::Policy;
use serde_json::{Value, json};
use std::time::Instant;
use tch::{Kind, Tensor};

/// Rows of the matrix products that measure their rate.
const ROWS: i64 = 1024;

/// Bytes of the read that measures its rate: several times any cache.
const READ_BYTES: i64 = 256 << 20;

/// Tries, of which the best counts: a limit can be reached.
const TRIES: usize = 5;

/// The limits of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Operations per second in large matrix products of the network's shapes.
    pub(crate) operations: f64,
    /// Bytes per second that can be read from memory.
    pub(crate) bytes: f64,
}

impl Machine {
    /// Measures this machine with the shapes and the number format of a policy's network.
    ///
    /// # Errors
    ///
    /// Fails if there is no memory for the tensors of the measurement.
    pub(crate) fn measure(policy: &Policy) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let options = (policy.dtype().kind(), policy.device());
        let mut pairs = Vec::new();
        let mut operations = 0.0;
        // All layers have the shapes of the first one.
        for linear in policy.network().linears().iter().filter(|linear| linear.name.contains(".layers.0.")) {
            pairs.push((
                Tensor::f_ones([ROWS, linear.inputs], options)?,
                Tensor::f_ones([linear.outputs, linear.inputs], options)?,
            ));
            operations += 2.0 * (ROWS * linear.inputs * linear.outputs) as f64;
        }
        let products = best(|| {
            for (rows, weight) in &pairs {
                let _ = rows.linear(weight, None::<Tensor>);
            }
            model::device::wait(policy.device());
        });
        let memory = Tensor::f_ones([READ_BYTES / 4], (Kind::Float, policy.device()))?;
        let read = best(|| {
            let _ = memory.sum(Kind::Float).double_value(&[]);
        });
        Ok(Self { operations: operations / products, bytes: READ_BYTES as f64 / read })
    }

    pub(crate) fn json(self) -> Value {
        json!({ "gflop_per_s": self.operations / 1e9, "read_gb_per_s": self.bytes / 1e9 })
    }
}

/// Returns the seconds of the fastest try, after one that warms up.
fn best(mut work: impl FnMut()) -> f64 {
    work();
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..TRIES).map(time).fold(f64::INFINITY, f64::min)
}

/// A piece of work, as operations and bytes read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    operations: f64,
    bytes: f64,
}

impl Work {
    /// Returns the least time for it in seconds.
    pub(crate) fn seconds(self, machine: Machine) -> f64 {
        (self.operations / machine.operations).max(self.bytes / machine.bytes)
    }
}

/// The cost of passes over one network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Weights of the decoder's linear layers.
    layers: f64,
    /// Weights of the output head.
    head: f64,
    /// Weights of the adapter.
    adapter: f64,
    /// Operations of attention, per pair of a token and one that it sees.
    pair: f64,
    /// Bytes of the keys and values of one token.
    token_bytes: f64,
    /// Bytes of one weight.
    weight_bytes: f64,
}

impl Cost {
    pub(crate) fn of(policy: &Policy) -> Self {
        let dimensions = policy.network().dimensions();
        let [weight_bytes, state_bytes] =
            [policy.dtype().kind(), policy.kind()].map(|kind| kind.elt_size_in_bytes() as f64);
        let weights = policy.network().linears().iter().map(|linear| linear.inputs * linear.outputs);
        Self {
            layers: weights.sum::<i64>() as f64,
            head: (dimensions.vocab * dimensions.hidden) as f64,
            adapter: policy.adapter().parameters() as f64,
            pair: (4 * dimensions.layers * dimensions.heads * dimensions.head_dim) as f64,
            token_bytes: (2 * dimensions.layers * dimensions.kv_heads * dimensions.head_dim) as f64 * state_bytes,
            weight_bytes,
        }
    }

    /// One token for each of `rows` sequences that have `context` tokens on average.
    pub(crate) fn decode(&self, rows: f64, context: f64) -> Work {
        Work {
            operations: rows * (2.0 * (self.layers + self.head + self.adapter) + self.pair * context),
            bytes: (self.layers + self.head + self.adapter) * self.weight_bytes + rows * context * self.token_bytes,
        }
    }

    /// Keys and values of prompts of these lengths, and the logits after each.
    pub(crate) fn prefill(&self, lengths: &[usize]) -> Work {
        let tokens: f64 = lengths.iter().map(|length| *length as f64).sum();
        let head = lengths.len() as f64 * 2.0 * self.head;
        Work {
            operations: tokens * 2.0 * (self.layers + self.adapter) + head + self.pair * causal(lengths),
            bytes: (self.layers + self.head) * self.weight_bytes,
        }
    }

    /// Log-probabilities of `scored` of these tokens, `pairs` of which see one another.
    pub(crate) fn score(&self, tokens: f64, scored: f64, pairs: f64) -> Work {
        Work {
            operations: tokens * 2.0 * (self.layers + self.adapter) + scored * 2.0 * self.head + self.pair * pairs,
            bytes: (self.layers + self.head) * self.weight_bytes,
        }
    }

    /// The work of [`score`](Self::score), and the gradient of each log-probability with respect to the hidden states,
    /// which is computed along with it.
    pub(crate) fn forward(&self, tokens: f64, scored: f64, pairs: f64) -> Work {
        let score = self.score(tokens, scored, pairs);
        Work { operations: score.operations + scored * 2.0 * self.head, ..score }
    }

    /// The backward pass from the hidden states to the adapter.
    pub(crate) fn backward(&self, tokens: f64, pairs: f64) -> Work {
        Work {
            operations: tokens * (2.0 * self.layers + 4.0 * self.adapter) + 2.0 * self.pair * pairs,
            bytes: self.layers * self.weight_bytes,
        }
    }

    /// Forward and backward pass.
    pub(crate) fn train(&self, tokens: f64, scored: f64, pairs: f64) -> Work {
        let (forward, backward) = (self.forward(tokens, scored, pairs), self.backward(tokens, pairs));
        Work { operations: forward.operations + backward.operations, bytes: forward.bytes + backward.bytes }
    }
}

/// Returns the number of pairs of a token and one that it sees, in sequences of these lengths.
pub(crate) fn causal(lengths: &[usize]) -> f64 {
    lengths.iter().map(|length| (length * (length + 1)) as f64 / 2.0).sum()
}

/// Returns the same number in a group: a prompt, and completions that see it and themselves.
pub(crate) fn group_pairs(prompt: usize, completions: &[usize]) -> f64 {
    let seen: f64 = completions.iter().map(|length| (prompt * length) as f64).sum();
    causal(&[prompt]) + seen + causal(completions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Seed;

    /// Two layers, hidden 8, two heads of 4 with one key head, intermediate 16, rank 2.
    fn policy() -> Policy {
        let random = json!({"family": "llama", "hidden_size": 8, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 16});
        let config = json!({"device": "cpu", "random": random, "adapter": {"lora": {"rank": 2}}});
        Policy::load(&serde_json::from_value(config).unwrap(), &Seed::new(0)).unwrap()
    }

    #[test]
    fn operations_and_bytes_of_a_pass_are_counted_by_hand() {
        let policy = policy();
        let cost = Cost::of(&policy);
        // q 8·8, k and v 8·4 each, o 8·8: 192; gate, up and down 8·16 each: 384; two layers.
        assert_eq!(cost.layers, 1152.0);
        // rank 2 · (inputs + outputs): q 16, k 12, v 12, o 16, gate, up and down 24 each: 128; two layers.
        assert_eq!(cost.adapter, 512.0);
        let vocab = policy.network().dimensions().vocab as f64;
        assert_eq!(cost.head, 8.0 * vocab);
        // Keys and values of 4 numbers in two layers, 4 bytes each.
        assert_eq!(cost.token_bytes, 64.0);

        let decode = cost.decode(3.0, 10.0);
        assert_eq!(decode.operations, 3.0 * (2.0 * (1152.0 + 512.0 + 8.0 * vocab) + 4.0 * 2.0 * 8.0 * 10.0));
        assert_eq!(decode.bytes, 4.0 * (1152.0 + 512.0 + 8.0 * vocab) + 3.0 * 10.0 * 64.0);
        let train = cost.train(5.0, 4.0, 0.0);
        assert_eq!(train.operations, 5.0 * (4.0 * 1152.0 + 6.0 * 512.0) + 4.0 * 4.0 * 8.0 * vocab);
    }

    #[test]
    fn pairs_of_attention_are_counted() {
        assert_eq!(causal(&[1, 3]), 7.0);
        // A prompt of 2 (3 pairs), completions of 1 and 2 that see it (2 + 4) and themselves (1 + 3).
        assert_eq!(group_pairs(2, &[1, 2]), 13.0);
    }

    #[test]
    fn the_limit_is_compute_or_memory_whichever_takes_longer() {
        let work = Work { operations: 100.0, bytes: 10.0 };
        assert_eq!(work.seconds(Machine { operations: 50.0, bytes: 10.0 }), 2.0);
        assert_eq!(work.seconds(Machine { operations: 200.0, bytes: 1.0 }), 10.0);
        let machine = Machine::measure(&policy()).unwrap();
        assert!(machine.operations > 0.0 && machine.bytes > 0.0);
    }
}
