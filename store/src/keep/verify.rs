//! Checks of a store against damage: pages, references, lengths, hashes, counts.
//!
//! The engine's own check sees broken pages, not a flipped bit inside a blob: that is what the content hashes are for.
//! Every check looks at everything and names the first rows that it finds wrong.

use crate::engine::{Access, Connection, sql};
use crate::error::{Doing, message, sqlite_code, sqlstate};
use crate::rows::blob;
use crate::table::Table;
use crate::{Result, Store};
use schema::Prompt;

const DOING: &str = "verifying the store";

/// Greatest number of rows that a check names.
const NAMED: usize = 10;
/// Samples, or prompts, that are hashed at a time.
const AT_ONCE: i64 = 512;

const HASHED_SAMPLES: &str = "SELECT id, finish, text, mask, token_ids, logprobs, hash FROM samples
    WHERE id > $1 ORDER BY id LIMIT $2";
const HASHED_PROMPTS: &str = "SELECT id, json, hash, token_ids, token_hash FROM prompts WHERE id > $1
    ORDER BY id LIMIT $2";

/// Faults that no row may have: a name each, and a statement that names every row with the fault.
const RULES: [(&str, &str); 14] = [
    (
        "samples without a group",
        "SELECT 'sample ' || id FROM samples s
        WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.id = s.group_id)",
    ),
    (
        "rewards without a sample",
        "SELECT DISTINCT 'rewards of sample ' || sample_id FROM rewards r
        WHERE NOT EXISTS (SELECT 1 FROM samples s WHERE s.id = r.sample_id)",
    ),
    (
        "comparisons without a sample, or with a rival that is not there",
        "SELECT DISTINCT 'comparisons of sample ' || sample_id FROM comparisons r
        WHERE NOT EXISTS (SELECT 1 FROM samples s WHERE s.id = r.sample_id)
            OR r.rival NOT IN ('own', 'opponent') OR (r.rival = 'own' AND NOT EXISTS
            (SELECT 1 FROM samples s JOIN samples o ON o.group_id = s.group_id AND o.place = r.rival_place
                WHERE s.id = r.sample_id AND o.id <> s.id))",
    ),
    (
        "groups without a run, prompt or policy",
        "SELECT 'group ' || id FROM groups g
        WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = g.run_id)
            OR NOT EXISTS (SELECT 1 FROM prompts q WHERE q.id = g.prompt_id)
            OR NOT EXISTS (SELECT 1 FROM policies p WHERE p.id = g.policy_id AND p.run_id = g.run_id)",
    ),
    (
        "other references that lead nowhere",
        "SELECT 'policy version ' || version || ' of run ' || run_id FROM policies
            WHERE run_id NOT IN (SELECT id FROM runs)
        UNION ALL SELECT 'step ' || step || ' of run ' || run_id FROM steps WHERE run_id NOT IN (SELECT id FROM runs)
        UNION ALL SELECT 'checkpoint ' || step || ' of run ' || run_id FROM checkpoints
            WHERE run_id NOT IN (SELECT id FROM runs)
        UNION ALL SELECT 'scoring ' || id FROM scorings WHERE run_id NOT IN (SELECT id FROM runs)
        UNION ALL SELECT 'job ' || id FROM jobs WHERE run_id NOT IN (SELECT id FROM runs)
        UNION ALL SELECT 'publication ' || version || ' of run ' || run_id FROM publications
            WHERE run_id NOT IN (SELECT id FROM runs)",
    ),
    (
        "groups without samples",
        "SELECT 'group ' || id FROM groups g
        WHERE NOT EXISTS (SELECT 1 FROM samples s WHERE s.group_id = g.id)",
    ),
    (
        "groups of no step",
        "SELECT 'group ' || id FROM groups g WHERE NOT EXISTS
        (SELECT 1 FROM steps t WHERE t.run_id = g.run_id AND t.step = g.step AND t.collected_at IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.run_id = g.run_id AND j.step = g.step)",
    ),
    (
        "steps whose counts are not theirs",
        "SELECT 'step ' || t.step || ' of run ' || t.run_id FROM steps t
        LEFT JOIN (SELECT run_id, step, COUNT(*) AS groups, SUM(samples) AS samples, SUM(tokens) AS tokens,
                MAX(place) AS last_place
            FROM (SELECT g.run_id, g.step, g.place, COUNT(s.id) AS samples, COALESCE(SUM(s.length), 0) AS tokens
                FROM groups g LEFT JOIN samples s ON s.group_id = g.id GROUP BY g.id) y
            GROUP BY run_id, step) x ON x.run_id = t.run_id AND x.step = t.step
        WHERE t.collected_at IS NOT NULL AND (t.groups <> COALESCE(x.groups, 0) OR t.samples <> COALESCE(x.samples, 0)
            OR t.tokens <> COALESCE(x.tokens, 0) OR COALESCE(x.last_place + 1, 0) <> COALESCE(x.groups, 0))",
    ),
    (
        "policies without samples",
        "SELECT 'policy version ' || p.version || ' of run ' || p.run_id FROM policies p
        WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.policy_id = p.id)
            AND NOT EXISTS (SELECT 1 FROM steps t WHERE t.run_id = p.run_id AND t.pruned_at IS NOT NULL)",
    ),
    (
        "prompts that nobody asked",
        "SELECT 'prompt ' || id FROM prompts q
        WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.prompt_id = q.id)
            AND NOT EXISTS (SELECT 1 FROM steps t WHERE t.pruned_at IS NOT NULL)",
    ),
    (
        "lengths of samples",
        "SELECT 'sample ' || id FROM samples WHERE length(token_ids) <> 4 * length
        OR length(logprobs) <> 4 * length OR length(mask) <> (length + 7) / 8",
    ),
    ("lengths of prompts", "SELECT 'prompt ' || id FROM prompts WHERE length(token_ids) <> 4 * length"),
    (
        "judged without a value, or the reverse",
        "SELECT 'scoring ' || scoring || ' of sample ' || sample_id FROM rewards
        WHERE (status = 'judged') <> (value IS NOT NULL)
        UNION ALL SELECT 'comparisons in scoring ' || scoring || ' of sample ' || sample_id FROM comparisons
        WHERE (status = 'judged') <> (win IS NOT NULL)",
    ),
    (
        "rewards of no scoring",
        "SELECT 'scoring ' || scoring || ' of sample ' || sample_id FROM rewards
        WHERE scoring <> 0 AND scoring NOT IN (SELECT id FROM scorings)
        UNION ALL SELECT 'comparisons in scoring ' || scoring || ' of sample ' || sample_id FROM comparisons
        WHERE scoring <> 0 AND scoring NOT IN (SELECT id FROM scorings)",
    ),
];

/// Counts the policies and prompts without groups whose steps were pruned: nothing is wrong with them, and the next
/// pruning removes them.
const UNSWEPT: &str = "SELECT (SELECT COUNT(*) FROM policies p
        WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.policy_id = p.id)
            AND EXISTS (SELECT 1 FROM steps t WHERE t.run_id = p.run_id AND t.pruned_at IS NOT NULL))
    + (SELECT COUNT(*) FROM prompts q
        WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.prompt_id = q.id)
            AND EXISTS (SELECT 1 FROM steps t WHERE t.pruned_at IS NOT NULL))";

/// The findings of a verification.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    /// One row per check: its name, how many rows are wrong, and the first of them.
    pub checks: Table,
    /// Wrong rows in all.
    pub wrong: u64,
    /// Samples that were stored before there were hashes, so that their content cannot be checked.
    pub unverifiable: u64,
    /// Policies and prompts that pruned steps left behind. They are no damage: the next pruning removes them.
    pub unswept: u64,
}

impl Verification {
    /// Returns true if nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.wrong == 0
    }

    fn add(&mut self, check: &str, found: &[String]) {
        self.wrong += found.len() as u64;
        let mut named = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if found.len() > NAMED {
            named.push_str(", …");
        }
        self.checks.push(vec![check.into(), (found.len() as i64).into(), named.into()]);
    }
}

impl Store {
    /// Reads the whole store and checks it, in one state of it, whatever is appended meanwhile. Writes nothing. Damage
    /// is a finding and no error.
    ///
    /// # Errors
    /// If the store cannot be read for another reason than damage.
    pub fn verify(&self) -> Result<Verification> {
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let checks = Table::new(["check", "wrong", "rows"]);
            let mut found = Verification { checks, wrong: 0, unverifiable: 0, unswept: 0 };
            if let Some(integrity) = self.engine().integrity() {
                found.add("pages", &named(&mut snapshot, integrity).await?);
            }
            for (check, sql) in RULES {
                found.add(check, &named(&mut snapshot, sql).await?);
            }
            found.add("hashes of prompts", &wrong_prompts(&mut snapshot).await?);
            let (wrong, unverifiable) = wrong_samples(&mut snapshot).await?;
            found.add("hashes of samples", &wrong);
            found.unverifiable = unverifiable;
            found.unswept = match sql::query_scalar::<i64>(UNSWEPT).fetch_one(&mut snapshot).await {
                Ok(unswept) => unswept as u64,
                // The checks above have named it.
                Err(error) if is_corrupt(&error) => 0,
                Err(error) => return Err(error).doing(DOING),
            };
            Ok(found)
        })
    }
}

/// The rows that a rule names. What is too broken to be read counts as one.
async fn named(connection: &mut Connection, sql: &'static str) -> Result<Vec<String>> {
    match sql::query_scalar(sql).fetch_all(connection).await {
        Ok(rows) => Ok(rows),
        Err(error) if is_corrupt(&error) => Ok(vec![message(&error)]),
        Err(error) => Err(error).doing(DOING),
    }
}

/// Returns true if the engine reports that its data is malformed.
fn is_corrupt(error: &sqlx::Error) -> bool {
    sqlite_code(error) == Some(11) || sqlstate(error).is_some_and(|state| state.starts_with("XX"))
}

async fn wrong_prompts(connection: &mut Connection) -> Result<Vec<String>> {
    type Row = (i64, String, String, Vec<u8>, String);
    let mut wrong = Vec::new();
    let mut last = i64::MIN;
    loop {
        let rows: Result<Vec<Row>, _> =
            sql::query_as(HASHED_PROMPTS).bind(last).bind(AT_ONCE).fetch_all(&mut *connection).await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) if is_corrupt(&error) => {
                wrong.push(format!("unreadable behind prompt {last}"));
                return Ok(wrong);
            }
            Err(error) => return Err(error).doing(DOING),
        };
        let Some((newest, ..)) = rows.last() else { return Ok(wrong) };
        last = *newest;
        for (id, json, hash, token_ids, token_hash) in &rows {
            let prompt: Option<Prompt> = serde_json::from_str(json).ok();
            if prompt.is_none_or(|prompt| prompt.hash() != *hash) || blob::sha256(token_ids) != *token_hash {
                wrong.push(format!("prompt {id}"));
            }
        }
    }
}

/// Returns the samples whose content does not match their hash, and the number of those without a hash.
async fn wrong_samples(connection: &mut Connection) -> Result<(Vec<String>, u64)> {
    type Row = (i64, String, String, Option<Vec<u8>>, Vec<u8>, Vec<u8>, Option<String>);
    let (mut wrong, mut unverifiable) = (Vec::new(), 0);
    let mut last = i64::MIN;
    loop {
        let rows: Result<Vec<Row>, _> =
            sql::query_as(HASHED_SAMPLES).bind(last).bind(AT_ONCE).fetch_all(&mut *connection).await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) if is_corrupt(&error) => {
                wrong.push(format!("unreadable behind sample {last}"));
                return Ok((wrong, unverifiable));
            }
            Err(error) => return Err(error).doing(DOING),
        };
        let Some((newest, ..)) = rows.last() else { return Ok((wrong, unverifiable)) };
        last = *newest;
        for (id, finish, text, mask, token_ids, logprobs, hash) in &rows {
            match hash {
                None => unverifiable += 1,
                Some(hash) if *hash == blob::sample_hash(finish, text, mask.as_deref(), token_ids, logprobs) => {}
                Some(_) => wrong.push(format!("sample {id}")),
            }
        }
    }
}
