//! The training signal: per sequence as a method gives it, and as the tensors of a batch.

use crate::objective::Rows;
use tch::{Device, Tensor};

/// The signal of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// One advantage for every token.
    Advantage(f64),
    /// An advantage for each token, and the return that the critic is fitted to.
    TokenAdvantages {
        /// One per token; ignored where the sequence's mask is off.
        advantages: Vec<f32>,
        /// One per token; empty without a critic.
        returns: Vec<f32>,
    },
    /// One completion of a pair.
    Compared {
        /// The probability that it is better, in [0, 1].
        win_rate: f32,
        /// `true` if an opponent sampled it.
        by_opponent: bool,
    },
    /// A completion with a label (KTO).
    Labelled {
        /// `true` for a completion to prefer.
        desirable: bool,
        /// Its weight in the loss, at least 0.
        weight: f64,
        /// The baseline z₀ in nats, the same for every sequence of a step.
        baseline: f64,
    },
    /// One completion of a pair whose rewards should differ by this much.
    Margin(f64),
    /// A completion to imitate.
    Imitate,
}

impl Signal {
    /// Returns `true` if it has no gradient: an advantage of exactly zero, and no return to fit.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Advantage(advantage) => *advantage == 0.0,
            Self::TokenAdvantages { advantages, returns } => returns.is_empty() && advantages.iter().all(|a| *a == 0.0),
            Self::Compared { .. } | Self::Labelled { .. } | Self::Margin(_) | Self::Imitate => false,
        }
    }
}

/// The signal of each sequence of each unit; `None` for a sequence that is not trained on.
pub type Signals = Vec<Vec<Option<Signal>>>;

/// One advantage per sequence as [`Signals`].
pub(crate) fn advantages(of_sequences: Vec<Vec<Option<f64>>>) -> Signals {
    of_sequences.into_iter().map(|unit| unit.into_iter().map(|it| it.map(Signal::Advantage)).collect()).collect()
}

/// The signal of a batch, as tensors. All its sequences have one kind of signal.
#[derive(Debug)]
pub enum BatchSignal {
    /// Of a policy gradient.
    Advantages {
        /// `[token]` f32.
        advantages: Tensor,
        /// `[token]` f32: what the critic is fitted to; `None` without a critic.
        returns: Option<Tensor>,
    },
    /// Of pairs: sequence 2i is the better completion of pair i, sequence 2i + 1 the other one.
    Pairs {
        /// `[sequence]` f32: the probability that the completion is better.
        win_rates: Tensor,
        /// `[sequence]` f32: 1 where an opponent sampled the completion, else 0.
        by_opponent: Tensor,
    },
    /// Of labelled completions.
    Labels {
        /// `[sequence]` f32: the weight in the loss; positive for desirable completions, negative for others.
        signed_weights: Tensor,
        /// `[sequence]` f32: z₀ in nats.
        baselines: Tensor,
    },
    /// `[sequence]` f32: by how much the rewards of a pair should differ, the same for both of its sequences.
    Margins(Tensor),
    /// Every completion is to be imitated.
    Imitation,
}

impl BatchSignal {
    /// Joins the signals of a batch's sequences, of which every one is trained on.
    pub(super) fn new(signals: &[&Signal], lengths: &[usize], device: Device) -> Self {
        let tensor = |numbers: Vec<f32>| Tensor::from_slice(&numbers).to_device(device);
        let each = |number: &dyn Fn(&Signal) -> f32| tensor(signals.iter().map(|signal| number(signal)).collect());
        match signals.first() {
            Some(Signal::Compared { .. }) => Self::Pairs {
                win_rates: each(&|it| if let Signal::Compared { win_rate, .. } = it { *win_rate } else { 0.0 }),
                by_opponent: each(&|it| f32::from(matches!(it, Signal::Compared { by_opponent: true, .. }))),
            },
            Some(Signal::Labelled { .. }) => Self::Labels {
                signed_weights: each(&|it| match it {
                    Signal::Labelled { desirable: true, weight, .. } => *weight as f32,
                    Signal::Labelled { weight, .. } => -*weight as f32,
                    _ => 0.0,
                }),
                baselines: each(&|it| if let Signal::Labelled { baseline, .. } = it { *baseline as f32 } else { 0.0 }),
            },
            Some(Signal::Margin(_)) => {
                Self::Margins(each(&|it| if let Signal::Margin(margin) = it { *margin as f32 } else { 0.0 }))
            }
            Some(Signal::Imitate) => Self::Imitation,
            Some(Signal::Advantage(_) | Signal::TokenAdvantages { .. }) | None => {
                let (mut of_tokens, mut fits) = (Vec::new(), Vec::new());
                for (signal, length) in signals.iter().zip(lengths) {
                    match signal {
                        Signal::Advantage(advantage) => of_tokens.resize(of_tokens.len() + length, *advantage as f32),
                        Signal::TokenAdvantages { advantages, returns } => {
                            of_tokens.extend(advantages);
                            fits.extend(returns);
                        }
                        _ => of_tokens.resize(of_tokens.len() + length, 0.0),
                    }
                }
                let returns = (!fits.is_empty()).then(|| tensor(fits));
                Self::Advantages { advantages: tensor(of_tokens), returns }
            }
        }
    }

    /// `[token]`: the advantages.
    ///
    /// # Panics
    /// If the method gave another signal: it then reads what it did not write.
    pub fn advantages(&self) -> &Tensor {
        if let Self::Advantages { advantages, .. } = self { advantages } else { self.is_not("advantages") }
    }

    /// `[token]`: the returns that the critic is fitted to; `None` without a critic.
    pub fn returns(&self) -> Option<&Tensor> {
        if let Self::Advantages { returns, .. } = self { returns.as_ref() } else { None }
    }

    /// `[pair]` each: the win rates of the better and of the other completions.
    ///
    /// # Panics
    /// If the method gave another signal.
    pub fn win_rates(&self) -> (Tensor, Tensor) {
        if let Self::Pairs { win_rates, .. } = self { sides(win_rates) } else { self.is_not("pairs") }
    }

    /// `[pair]` each: 1 where an opponent sampled the better, and the other, completion.
    ///
    /// # Panics
    /// If the method gave another signal.
    pub fn by_opponent(&self) -> (Tensor, Tensor) {
        if let Self::Pairs { by_opponent, .. } = self { sides(by_opponent) } else { self.is_not("pairs") }
    }

    /// `[pair]`: by how much the rewards of each pair should differ.
    ///
    /// # Panics
    /// If the method gave another signal.
    pub fn margins(&self) -> Tensor {
        if let Self::Margins(margins) = self { sides(margins).0 } else { self.is_not("margins") }
    }

    /// `[sequence]` each: signed weights, and baselines in nats.
    ///
    /// # Panics
    /// If the method gave another signal.
    pub fn labels(&self) -> (&Tensor, &Tensor) {
        if let Self::Labels { signed_weights, baselines } = self {
            (signed_weights, baselines)
        } else {
            self.is_not("labels")
        }
    }

    fn is_not(&self, wanted: &str) -> ! {
        unreachable!("this loss reads {wanted}, but its method's signal is {self:?}")
    }
}

/// The first and the second of every two numbers: `[sequence]` becomes `[pair]` twice.
pub(crate) fn sides(per_sequence: &Tensor) -> (Tensor, Tensor) {
    let pairs = per_sequence.reshape([-1, 2]);
    (pairs.select(1, 0), pairs.select(1, 1))
}

/// `[pair]` each: sums over the tokens of the better and of the other completions; `x` is `[token]`.
pub(crate) fn side_sums(x: &Tensor, rows: &Rows) -> (Tensor, Tensor) {
    sides(&rows.sequence_sum(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(tensor).unwrap()
    }

    #[test]
    fn each_kind_of_signal_has_its_own_tensors() {
        let device = model::device::HOST;
        let tokens = Signal::TokenAdvantages { advantages: vec![0.5, 1.0], returns: vec![2.0, 3.0] };
        let signal = BatchSignal::new(&[&tokens], &[2], device);
        assert_eq!((floats(signal.advantages()), floats(signal.returns().unwrap())), (vec![0.5, 1.0], vec![2.0, 3.0]));
        let whole = BatchSignal::new(&[&Signal::Advantage(-1.0), &Signal::Advantage(2.0)], &[1, 2], device);
        assert_eq!((floats(whole.advantages()), whole.returns().is_none()), (vec![-1.0, 2.0, 2.0], true));
        let compared = |win_rate, by_opponent| Signal::Compared { win_rate, by_opponent };
        let pairs = BatchSignal::new(&[&compared(0.75, false), &compared(0.25, true)], &[1, 4], device);
        let (chosen, rejected) = pairs.win_rates();
        assert_eq!((floats(&chosen), floats(&rejected)), (vec![0.75], vec![0.25]));
        assert_eq!(floats(&pairs.by_opponent().1), [1.0]);
        let label = |desirable, weight| Signal::Labelled { desirable, weight, baseline: 0.5 };
        let labels = BatchSignal::new(&[&label(true, 1.0), &label(false, 1.5)], &[1, 1], device);
        assert_eq!(floats(labels.labels().0), [1.0, -1.5]);
        assert_eq!(floats(&BatchSignal::new(&[&Signal::Margin(0.5); 4], &[1; 4], device).margins()), [0.5, 0.5]);
    }

    #[test]
    fn only_an_advantage_can_be_zero() {
        let compared = Signal::Compared { win_rate: 0.5, by_opponent: false };
        assert!(Signal::Advantage(0.0).is_zero() && !compared.is_zero() && !Signal::Margin(0.0).is_zero());
        let tokens = |returns: &[f32]| Signal::TokenAdvantages { advantages: vec![0.0], returns: returns.to_vec() };
        assert!(tokens(&[]).is_zero() && !tokens(&[0.0]).is_zero());
    }
}
