//! The best and the worst samples by the reward or by one part of it.

use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::table::{Table, Value};
use crate::{Error, Result, RunId, Store};

const DOING: &str = "ranking samples";

// Numbers are ranked first, and only the winners' texts are read.
const RANKED: &str = "WITH ranked (id, worth) AS (SELECT s.id, {worth}
        WHERE g.run_id = COALESCE($1, g.run_id) AND {worth} IS NOT NULL
        ORDER BY {worth} {direction}, s.id LIMIT $2)
    SELECT s.id, runs.name, g.step, x.worth, s.length, s.finish, q.question, s.text
    FROM ranked x JOIN samples s ON s.id = x.id JOIN groups g ON g.id = s.group_id
    JOIN runs ON runs.id = g.run_id JOIN prompts q ON q.id = g.prompt_id
    ORDER BY x.worth {direction}, s.id";
const OF_REWARD: &str = "FROM groups g JOIN samples s ON s.group_id = g.id JOIN reward_view t ON t.sample_id = s.id";
const OF_PART: &str = "FROM groups g JOIN samples s ON s.group_id = g.id
    JOIN part_view t ON t.sample_id = s.id AND t.name = $3";
const PARTS: &str = "SELECT DISTINCT name FROM (SELECT name FROM part_view LIMIT 10000) some_parts ORDER BY name";

/// An end of the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The greatest rewards first.
    Top,
    /// The smallest rewards first.
    Bottom,
}

/// A ranking: the samples that enter it, their order, and the number to show.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// The run whose samples are ranked; every run if absent.
    pub run: Option<RunId>,
    /// The part of the reward that is ranked by, before weighting; the reward itself if absent.
    pub part: Option<String>,
    /// The end that is shown.
    pub end: End,
    /// The greatest number of samples that is shown.
    pub count: usize,
}

impl Store {
    /// Returns the best or the worst samples, one row each; ungraded ones have no rank. Of equal ones the older come
    /// first.
    ///
    /// # Errors
    /// [`Error::NoSuchPart`] if the ranking is empty and no part of a reward has the name, or if the store cannot be
    /// read.
    pub fn rank(&self, ranking: &Ranking) -> Result<Table> {
        type Row = (i64, String, i64, f64, i64, String, String, String);
        let (worth, from) = if ranking.part.is_some() { ("t.value", OF_PART) } else { ("t.reward", OF_REWARD) };
        let direction = if ranking.end == End::Top { "DESC" } else { "ASC" };
        let sql = RANKED
            .replacen("{worth}", &format!("{worth} {from}"), 1)
            .replace("{worth}", worth)
            .replace("{direction}", direction);
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let mut query = sql::query_as(sql.clone()).bind(ranking.run.map(|run| run.0)).bind(ranking.count as i64);
            if let Some(part) = ranking.part.as_deref() {
                query = query.bind(part);
            }
            let rows: Vec<Row> = query.fetch_all(&mut snapshot).await.doing(DOING)?;
            if let (true, Some(part)) = (rows.is_empty(), &ranking.part) {
                refuse_unknown(&mut snapshot, part).await?;
            }
            let name = ranking.part.as_deref().unwrap_or("reward");
            let mut table = Table::new(["sample_id", "run", "step", name, "length", "finish", "question", "text"]);
            for (id, run, step, worth, length, finish, question, text) in rows {
                table.push(vec![
                    id.into(),
                    run.into(),
                    step.into(),
                    Value::Real(worth),
                    length.into(),
                    finish.into(),
                    question.into(),
                    text.into(),
                ]);
            }
            Ok(table)
        })
    }
}

/// An empty ranking by a part that exists is an answer; by one that does not it is a slip.
async fn refuse_unknown(connection: &mut Connection, part: &str) -> Result<()> {
    let names: Vec<String> = sql::query_scalar(PARTS).fetch_all(connection).await.doing(DOING)?;
    if names.iter().any(|name| name == part) {
        return Ok(());
    }
    let known = if names.is_empty() { "there are none yet".into() } else { format!("there are {}", names.join(", ")) };
    Err(Error::NoSuchPart { wanted: part.to_owned(), known })
}
