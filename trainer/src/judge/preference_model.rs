//! A trained network as a judge: a preference model, which reads both answers at once, or a reward model, by its rewards.
//!
//! Like [rewards](crate::grading) that run networks, judges that do are made here, because the reward crate knows
//! none.

use crate::algorithm;
use crate::checkpoint::restore::resumed_config;
use crate::grading::RewardNetwork;
use crate::{Error, Result};
use model::Policy;
use reward::judge::{ByReward, Contestant, Judge, Matchup};
use schema::{Grade, Token};
use std::path::Path;

/// Checks the run in a folder, before anything is loaded.
///
/// # Errors
/// If the folder is no run, or a run of an algorithm that compares nothing.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let config = resumed_config(folder, &[])?;
    match config.algorithm {
        algorithm::Config::RewardModel(_) | algorithm::Config::PreferenceModel(_) => Ok(()),
        other => Err(Error::input(format!(
            "[judge]: {} is a run of algorithm.{}, which compares nothing; a judge is trained by algorithm.preference_model or algorithm.reward_model",
            folder.display(),
            other.name()
        ))),
    }
}

/// Loads the newest checkpoint of a run, to compare samples of the policy `judged` in passes of at most `micro_batch_tokens`
/// tokens.
pub(crate) fn open(
    folder: &Path,
    temperature: f64,
    judged: &Policy,
    model: &model::Config,
    micro_batch_tokens: usize,
) -> Result<Box<dyn Judge>> {
    check(folder)?;
    let config = resumed_config(folder, &[])?;
    let network = RewardNetwork::read(folder, &config, judged, model, micro_batch_tokens)?;
    Ok(match config.algorithm {
        algorithm::Config::PreferenceModel(_) => Box::new(PreferenceJudge { network }),
        _ => Box::new(ByReward::new(Box::new(network), temperature)),
    })
}

/// `P(a ≻ b) = σ(s(x, a, b) − s(x, b, a))`, the same whichever is named first.
struct PreferenceJudge {
    network: RewardNetwork,
}

impl PreferenceJudge {
    fn probabilities(&self, pairs: &[Matchup<'_>]) -> Result<Vec<f64>> {
        let orders = |(a, b): &Matchup<'_>| {
            let (first, second) = (self.tokens(a)?, self.tokens(b)?);
            let answers = vec![self.joined(&first, &second), self.joined(&second, &first)];
            Ok((self.network.prompt(a.group)?, answers))
        };
        let scores = self.network.score_tokens(pairs.iter().map(orders).collect::<Result<_>>()?)?;
        let probability = |scores: &Vec<f32>| 1.0 / (1.0 + f64::from(scores[1] - scores[0]).exp());
        Ok(scores.iter().map(probability).collect())
    }

    fn tokens(&self, contestant: &Contestant<'_>) -> Result<Vec<Token>> {
        self.network.answer(contestant.group, contestant.sample())
    }

    /// Concatenates two answers, appending EOS to the first if it was truncated, so that the boundary is visible.
    fn joined(&self, first: &[Token], second: &[Token]) -> Vec<Token> {
        let ends = self.network.ends();
        let end = ends.first().filter(|_| first.last().is_none_or(|last| !ends.contains(last)));
        first.iter().chain(end).copied().chain(second.iter().copied()).collect()
    }
}

impl Judge for PreferenceJudge {
    fn name(&self) -> &'static str {
        "preference_model"
    }

    fn version(&self) -> String {
        self.network.version_hash().to_owned()
    }

    fn is_symmetric(&self) -> bool {
        true
    }

    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        match self.probabilities(pairs) {
            Ok(found) => found.into_iter().map(|wins| Grade::of(wins as f32)).collect(),
            Err(error) => {
                vec![Grade::missing(format!("the preference model cannot judge it: {error}")); pairs.len()]
            }
        }
    }
}
