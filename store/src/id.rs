//! The numbers that rows go by, and the scoring that a query means.

use std::fmt;
use std::str::FromStr;

/// The number of a run in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub i64);

/// The number of a group in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub i64);

impl GroupId {
    /// A number below that of any group: the start of a walk through all of them.
    pub const FIRST: Self = Self(0);
}

/// The number of a sample in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId(pub i64);

macro_rules! display {
    ($($id:ident)+) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

display! { RunId GroupId SampleId }

/// The number of the scoring that training saw.
pub(crate) const FIRST_SCORING: i64 = 0;

/// The condition by which views and statements name training's scoring; another scoring replaces it.
const OF_TRAINING: &str = "r.scoring = 0";

/// The scoring whose grades count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scoring {
    /// The one that training saw.
    #[default]
    Training,
    /// Of each sample the newest finished one, which may be the one that training saw.
    Latest,
    /// The one with this number. A sample that it did not grade has no reward.
    Number(i64),
}

impl Scoring {
    /// The condition on rows of `rewards` or `comparisons`, called `r`.
    pub(crate) fn condition(self) -> String {
        match self {
            Self::Training => OF_TRAINING.into(),
            Self::Latest => "r.scoring = COALESCE((SELECT MAX(x.scoring) FROM rewards x WHERE x.sample_id = r.sample_id
                AND (x.scoring = 0 OR x.scoring IN (SELECT c.id FROM scorings c WHERE c.finished_at IS NOT NULL))), 0)"
                .into(),
            Self::Number(number) => format!("r.scoring = {number}"),
        }
    }

    /// Rewrites a statement or view that names training's scoring so that it names this one.
    pub(crate) fn applied_to(self, sql: &str) -> String {
        sql.replace(OF_TRAINING, &self.condition())
    }
}

impl fmt::Display for Scoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Training => f.write_str("training"),
            Self::Latest => f.write_str("latest"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for Scoring {
    type Err = String;

    /// Parses `training` (or 0), `latest`, or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "training" | "0" => Ok(Self::Training),
            "latest" => Ok(Self::Latest),
            number => match number.parse() {
                Ok(number) if number > FIRST_SCORING => Ok(Self::Number(number)),
                _ => Err(format!("`{text}` is no scoring; write training, latest or a scoring's number")),
            },
        }
    }
}
