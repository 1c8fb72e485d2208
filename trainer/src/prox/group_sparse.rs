//! Group k-sparsity: the proximal step of the weighted group sparse envelope (A. Beck and Y. Refael, "Sparse
//! regularization via bidualization", Journal of Global Optimization, 2022).
//!
//! "At most k groups are not zero" has no useful gradient. Its convex replacement is the largest convex function below
//! `½‖x‖²` on that set. With a cost `dⱼ` of each group it is
//!
//! ```text
//! S(x) = min { ½ Σⱼ ‖xⱼ‖²/uⱼ : 0 ≤ uⱼ ≤ 1, Σⱼ dⱼ uⱼ ≤ k }
//! ```
//!
//! Its proximal operator has one unknown, `s`:
//!
//! ```text
//! uⱼ = clip(s ‖vⱼ‖/√dⱼ − λ, 0, 1)      with s such that Σⱼ dⱼ uⱼ = k
//! xⱼ = vⱼ · uⱼ / (uⱼ + λ)
//! ```
//!
//! Derivation: minimise over x first; the remainder, `½ Σ ‖vⱼ‖² λ/(uⱼ + λ)`, has this u where its derivative equals a
//! multiple of d. Groups below `λ √dⱼ / s` close, those between are soft-thresholded by that number, and the clearly
//! largest lose only the share `λ/(1 + λ)`. If all groups fit into k, `u = 1` for all. The left side grows with `s` and
//! is linear between its kinks, so `s` is found exactly.
//!
//! A group is one rank, or the whole gate of a module; a closed module costs no time at all once it is pruned.

use super::threshold::{self, ThresholdScale};
use super::{Penalty, Prox, UpdateContext};
use crate::{Error, Result};
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Unit that is kept or closed as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// One rank of one layer.
    #[default]
    Rank,
    /// All ranks of a layer.
    Module,
}

/// Cost of a group against the budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// One for every group.
    #[default]
    Equal,
    /// Number of its parameters in `A` and `B`.
    Parameters,
}

/// `[prox.group_sparse]`: the weighted group sparse envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSparse {
    /// Strength λ of the envelope: used as given if `scale` is `constant`, multiplied by the gates' learning rate if it
    /// is `learning_rate`; 0 leaves gates unchanged.
    pub threshold: f64,
    /// Factor on the threshold: 1 (`constant`) or the learning rate (`learning_rate`).
    pub scale: ThresholdScale,
    /// Share k of all groups, by cost, that may stay open; above 0, at most 1.
    pub keep: f64,
    /// Unit of a group: `rank` or `module`.
    pub group: Group,
    /// Cost of a group: `equal` or `parameters`.
    pub cost: Cost,
}

impl Default for GroupSparse {
    fn default() -> Self {
        Self {
            threshold: 0.1,
            scale: ThresholdScale::default(),
            keep: 0.5,
            group: Group::default(),
            cost: Cost::default(),
        }
    }
}

/// Norm and cost of a group.
#[derive(Debug, Clone, Copy)]
struct Member {
    norm: f64,
    cost: f64,
}

impl GroupSparse {
    /// Returns the groups of a layer.
    fn members(&self, layer: &LowRank, gate: &Tensor) -> Vec<Member> {
        let each = match self.cost {
            Cost::Equal => 1.0,
            Cost::Parameters => (layer.a.size()[1] + layer.b.size()[0]) as f64,
        };
        match self.group {
            // The sum over groups needs every norm at once. They are few: one number per rank.
            Group::Rank => elements(&gate.abs()).map(|norm| Member { norm, cost: each }).collect(),
            Group::Module => {
                let cost = if self.cost == Cost::Equal { 1.0 } else { each * gate.numel() as f64 };
                vec![Member { norm: gate.norm().double_value(&[]), cost }]
            }
        }
    }
}

impl Prox for GroupSparse {
    fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let lambda = self.scale.apply(self.threshold, context.learning_rate);
        if lambda == 0.0 {
            return;
        }
        let _guard = tch::no_grad_guard();
        let gated: Vec<(&LowRank, &Tensor)> =
            layers.iter().filter_map(|layer| Some((*layer, layer.gate.as_ref()?))).collect();
        let members: Vec<Vec<Member>> = gated.iter().map(|(layer, gate)| self.members(layer, gate)).collect();
        let all: Vec<Member> = members.iter().flatten().copied().collect();
        let k = self.keep * all.iter().map(|member| member.cost).sum::<f64>();
        let mut factors = factors(&all, lambda, k).into_iter();
        for ((_, gate), members) in gated.iter().zip(&members) {
            let factors: Vec<f64> = factors.by_ref().take(members.len()).collect();
            let factors = Tensor::from_slice(&factors).to_kind(gate.kind()).to_device(gate.device());
            gate.shallow_clone().copy_(&(*gate * factors));
        }
    }
}

impl Penalty for GroupSparse {
    fn threshold(&self) -> f64 {
        self.threshold
    }

    fn at(&self, threshold: f64) -> Box<dyn Prox> {
        Box::new(Self { threshold, ..self.clone() })
    }

    fn validate(&self, threshold: f64, _learning_rate: f64) -> Result<()> {
        threshold::validate("group_sparse", threshold)?;
        if self.keep > 0.0 && self.keep <= 1.0 {
            return Ok(());
        }
        Err(Error::input(format!("`prox.group_sparse.keep` is {}; it must be a share above 0, at most 1", self.keep)))
    }
}

fn elements(tensor: &Tensor) -> impl Iterator<Item = f64> {
    let host = tensor.to_device(model::device::HOST).to_kind(Kind::Double);
    (0..host.size()[0]).map(move |index| host.double_value(&[index]))
}

/// Returns the factor `uⱼ / (uⱼ + λ)` of each group, exactly zero for closed ones.
fn factors(members: &[Member], lambda: f64, k: f64) -> Vec<f64> {
    let factor = |u: f64| u / (u + lambda);
    let open = |member: &&Member| member.norm > 0.0;
    if members.iter().filter(open).map(|member| member.cost).sum::<f64>() <= k {
        return vec![factor(1.0); members.len()];
    }
    let share = |member: &Member, s: f64| (s * member.norm / member.cost.sqrt() - lambda).clamp(0.0, 1.0);
    let used = |s: f64| members.iter().map(|member| member.cost * share(member, s)).sum::<f64>();
    // The values of s at which a group begins to open and at which it is fully open.
    let mut kinks: Vec<f64> = members
        .iter()
        .filter(open)
        .flat_map(|member| [lambda, 1.0 + lambda].map(|height| height * member.cost.sqrt() / member.norm))
        .collect();
    kinks.sort_by(f64::total_cmp);
    // At the last kink all are open, which costs more than k; before the first none is.
    let above = kinks.partition_point(|kink| used(*kink) < k).min(kinks.len() - 1);
    let (low, high) = (kinks[above.saturating_sub(1)], kinks[above]);
    let (used_low, used_high) = (used(low), used(high));
    let rise = used_high - used_low;
    let s = if rise > 0.0 { low + (high - low) * ((k - used_low) / rise).clamp(0.0, 1.0) } else { high };
    members.iter().map(|member| factor(share(member, s))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, context, gates, layer};
    use super::*;
    use schema::Seed;

    fn equal(norms: &[f64]) -> Vec<Member> {
        norms.iter().map(|norm| Member { norm: *norm, cost: 1.0 }).collect()
    }

    #[test]
    fn two_gates_and_room_for_one() {
        // Both interior: 2s − 1 + 1.5s − 1 = 1, s = 6/7, u = (5/7, 2/7), x = v u/(u + 1) = (5/6, 1/3).
        let found = factors(&equal(&[2.0, 1.5]), 1.0, 1.0);
        close(&[2.0 * found[0], 1.5 * found[1]], &[5.0 / 6.0, 1.0 / 3.0], 1e-12);
        // A clear winner: u = (1, 0), x = (3/2, 0).
        let found = factors(&equal(&[3.0, 1.0]), 1.0, 1.0);
        close(&[3.0 * found[0], found[1]], &[1.5, 0.0], 1e-12);
        assert_eq!(found[1], 0.0);
    }

    #[test]
    fn where_all_fit_each_loses_the_same_share() {
        close(&factors(&equal(&[3.0, 1.0, 0.0]), 0.25, 2.0), &[0.8, 0.8, 0.8], 1e-12);
    }

    #[test]
    fn an_expensive_group_must_be_larger_to_stay() {
        let members = [Member { norm: 1.0, cost: 4.0 }, Member { norm: 0.9, cost: 1.0 }];
        // s/2 − 1 = 0 at s = 2, where 0.9·2 − 1 = 0.8 < 1 fills k = 0.8: only the cheap one is open.
        let found = factors(&members, 1.0, 0.8);
        assert_eq!(found[0], 0.0);
        close(&found[1..], &[0.8 / 1.8], 1e-12);
    }

    /// The objective that remains after minimising over x.
    fn objective(members: &[Member], lambda: f64, shares: &[f64]) -> f64 {
        members.iter().zip(shares).map(|(member, u)| 0.5 * member.norm.powi(2) * lambda / (u + lambda)).sum()
    }

    #[test]
    fn no_other_feasible_choice_is_better() {
        for trial in 0..200 {
            let seed = Seed::new(trial);
            let lambda = 0.05 + seed.child("lambda").uniform(0);
            let members: Vec<Member> = (0..5)
                .map(|index| Member {
                    norm: 2.0 * seed.child("norm").uniform(index),
                    cost: 0.5 + seed.child("cost").uniform(index),
                })
                .collect();
            let k = 0.3 + 3.0 * seed.child("k").uniform(0);
            let shares: Vec<f64> = factors(&members, lambda, k).iter().map(|f| lambda * f / (1.0 - f)).collect();
            let cost = |shares: &[f64]| members.iter().zip(shares).map(|(member, u)| member.cost * u).sum::<f64>();
            assert!(cost(&shares) <= k + 1e-9 || shares.iter().all(|u| (u - 1.0).abs() < 1e-9));
            let ours = objective(&members, lambda, &shares);
            for other in 0..200 {
                let draw = seed.child("other").at(other);
                let mut random: Vec<f64> = (0..5).map(|index| draw.uniform(index)).collect();
                // Filled up to the budget where that is possible.
                let fill = (k / cost(&random)).min(1.0 / random.iter().copied().fold(0.0, f64::max));
                for u in &mut random {
                    *u *= fill;
                }
                assert!(ours <= objective(&members, lambda, &random) + 1e-9, "trial {trial}");
            }
        }
    }

    #[test]
    fn ranks_and_modules_close_exactly() {
        let prox = GroupSparse { threshold: 0.5, scale: ThresholdScale::Constant, ..GroupSparse::default() };
        let (first, second) = (layer(&[2.0, -0.01]), layer(&[0.02, -3.0]));
        prox.apply(&[&first, &second], context(1.0));
        close(&gates(&[&first, &second]), &[2.0 / 1.5, 0.0, 0.0, -2.0], 1e-12);

        let (first, second) = (layer(&[2.0, -0.01]), layer(&[0.02, -0.3]));
        GroupSparse { group: Group::Module, cost: Cost::Parameters, ..prox }.apply(&[&first, &second], context(1.0));
        let moved = gates(&[&first, &second]);
        close(&moved[..2], &[2.0 / 1.5, -0.01 / 1.5], 1e-12);
        assert_eq!(moved[2..], [0.0, 0.0]);
    }

    #[test]
    fn a_share_outside_of_all_is_refused() {
        for keep in [0.0, 1.5, f64::NAN] {
            assert!(GroupSparse { keep, ..GroupSparse::default() }.validate(0.1, 1.0).unwrap_err().is_input());
        }
    }
}
