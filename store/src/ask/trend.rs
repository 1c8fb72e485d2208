//! A run step by step: the sums that comparing and auditing start from.

use crate::engine::{Connection, FromRow, Row, sql};
use crate::error::Doing;
use crate::{Result, RunId};

const DOING: &str = "summing up a run's steps";

// Materialized, so that a sample's reward is summed up once and not at every mention.
const STEP_SUMS: &str = "WITH judged AS MATERIALIZED (
        SELECT g.step, g.id AS group_id, s.length, s.finish, t.reward
        FROM groups g JOIN samples s ON s.group_id = g.id JOIN reward_view t ON t.sample_id = s.id
        WHERE g.run_id = $1),
    per_group AS (
        SELECT step, COUNT(*) AS samples, SUM(length) AS tokens, COUNT(reward) AS judged, SUM(reward) AS reward,
            SUM(CASE WHEN finish = 'length' THEN 1 ELSE 0 END) AS clipped,
            CASE WHEN MAX(reward) > MIN(reward) THEN 0 ELSE 1 END AS no_signal
        FROM judged GROUP BY step, group_id)
    SELECT step, COUNT(*) AS groups, CAST(SUM(samples) AS BIGINT) AS samples, CAST(SUM(tokens) AS BIGINT) AS tokens,
        CAST(SUM(judged) AS BIGINT) AS judged, CAST(COALESCE(SUM(reward), 0) AS DOUBLE PRECISION) AS reward,
        CAST(SUM(clipped) AS BIGINT) AS clipped, CAST(SUM(no_signal) AS BIGINT) AS no_signal
    FROM per_group GROUP BY step ORDER BY step";

/// Sums over the samples of one step, or of several steps added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct StepSums {
    pub(crate) step: i64,
    pub(crate) groups: i64,
    pub(crate) samples: i64,
    pub(crate) tokens: i64,
    pub(crate) judged: i64,
    pub(crate) reward: f64,
    pub(crate) clipped: i64,
    pub(crate) no_signal: i64,
}

impl FromRow for StepSums {
    fn from_row(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            step: row.try_get("step")?,
            groups: row.try_get("groups")?,
            samples: row.try_get("samples")?,
            tokens: row.try_get("tokens")?,
            judged: row.try_get("judged")?,
            reward: row.try_get("reward")?,
            clipped: row.try_get("clipped")?,
            no_signal: row.try_get("no_signal")?,
        })
    }
}

impl StepSums {
    /// Adds these steps up; the number is that of the last one.
    pub(crate) fn total(steps: &[Self]) -> Self {
        steps.iter().fold(Self::default(), |sum, step| Self {
            step: step.step,
            groups: sum.groups + step.groups,
            samples: sum.samples + step.samples,
            tokens: sum.tokens + step.tokens,
            judged: sum.judged + step.judged,
            reward: sum.reward + step.reward,
            clipped: sum.clipped + step.clipped,
            no_signal: sum.no_signal + step.no_signal,
        })
    }

    pub(crate) fn reward_mean(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.reward / self.judged as f64)
    }

    pub(crate) fn length_mean(&self) -> Option<f64> {
        share(self.tokens, self.samples)
    }

    pub(crate) fn clipped_share(&self) -> Option<f64> {
        share(self.clipped, self.samples)
    }

    pub(crate) fn no_signal_share(&self) -> Option<f64> {
        share(self.no_signal, self.groups)
    }

    pub(crate) fn unjudged_share(&self) -> Option<f64> {
        share(self.samples - self.judged, self.samples)
    }
}

fn share(part: i64, whole: i64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Every step of a run that has samples, in order.
pub(crate) async fn steps(connection: &mut Connection, run: RunId) -> Result<Vec<StepSums>> {
    sql::query_as(STEP_SUMS).bind(run.0).fetch_all(connection).await.doing(DOING)
}
