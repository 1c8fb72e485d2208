//! Copying a whole store into an empty one, on either engine: how a store moves from one machine's file to a server.
//!
//! Everything is copied in one transaction, row for row with its number, then read back and compared by count and hash
//! before it is committed. A copy is whole and equal, or it is not there.

use crate::engine::{Access, Bind, Engine, Row, sql};
use crate::error::Doing;
use crate::{Error, Result, Store, Table};
use schema::hex;
use sha2::{Digest, Sha256};

const DOING: &str = "copying a store";

/// Rows that are in memory at a time, and in a statement.
const AT_ONCE: usize = 64;

/// A column's type: the four that both engines have.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Integer,
    Real,
    Text,
    Blob,
}

use Kind::{Blob as B, Integer as I, Real as R, Text as T};

/// A table: its name, how many of its first columns are its key, which are whole numbers all, and every column.
type Copied = (&'static str, usize, &'static [(&'static str, Kind)]);

/// Every table that outlives a process, in such an order that references point backwards.
const TABLES: [Copied; 12] = [
    (
        "runs",
        1,
        &[
            ("id", I),
            ("name", T),
            ("status", T),
            ("config", T),
            ("program_version", T),
            ("model_hash", T),
            ("out_dir", T),
            ("started_at", I),
            ("finished_at", I),
            ("kind", T),
        ],
    ),
    (
        "policies",
        1,
        &[("id", I), ("run_id", I), ("version", I), ("hash", T), ("adapter", T), ("created_at", I), ("origin", T)],
    ),
    (
        "prompts",
        1,
        &[
            ("id", I),
            ("hash", T),
            ("token_hash", T),
            ("question", T),
            ("answer", T),
            ("json", T),
            ("length", I),
            ("token_ids", B),
        ],
    ),
    (
        "groups",
        1,
        &[("id", I), ("run_id", I), ("step", I), ("place", I), ("prompt_id", I), ("policy_id", I), ("settings", T)],
    ),
    (
        "samples",
        1,
        &[
            ("id", I),
            ("group_id", I),
            ("place", I),
            ("length", I),
            ("finish", T),
            ("logprob_sum", R),
            ("text", T),
            ("mask", B),
            ("token_ids", B),
            ("logprobs", B),
            ("hash", T),
        ],
    ),
    (
        "rewards",
        3,
        &[
            ("sample_id", I),
            ("scoring", I),
            ("place", I),
            ("name", T),
            ("version", T),
            ("weight", R),
            ("value", R),
            ("status", T),
            ("created_at", I),
        ],
    ),
    (
        "comparisons",
        3,
        &[
            ("sample_id", I),
            ("scoring", I),
            ("place", I),
            ("judge", T),
            ("version", T),
            ("rival", T),
            ("rival_place", I),
            ("win", R),
            ("status", T),
            ("created_at", I),
        ],
    ),
    (
        "steps",
        2,
        &[
            ("run_id", I),
            ("step", I),
            ("groups", I),
            ("samples", I),
            ("tokens", I),
            ("metrics", T),
            ("collected_at", I),
            ("finished_at", I),
            ("pruned_at", I),
        ],
    ),
    ("checkpoints", 2, &[("run_id", I), ("step", I), ("path", T), ("hash", T), ("created_at", I)]),
    ("scorings", 1, &[("id", I), ("run_id", I), ("config", T), ("created_at", I), ("finished_at", I)]),
    (
        "jobs",
        1,
        &[
            ("id", I),
            ("run_id", I),
            ("step", I),
            ("place", I),
            ("groups", I),
            ("min_version", I),
            ("state", T),
            ("request", T),
            ("digest", T),
            ("worker", T),
            ("leased_until", I),
            ("attempts", I),
            ("created_at", I),
            ("finished_at", I),
        ],
    ),
    ("publications", 2, &[("run_id", I), ("version", I), ("hash", T), ("adapter", T), ("created_at", I)]),
];

/// The content of a finished copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Migrated {
    /// One row per table: its name, its rows, and the SHA-256 of their content.
    pub tables: Table,
    /// Rows in all.
    pub rows: u64,
}

impl Store {
    /// Copies the store at `from` into the one at `to`, which is made where it is not there, and must hold nothing.
    /// `progress` is called with the name of each table before it is copied.
    ///
    /// # Errors
    /// If either cannot be opened, the second holds runs, or the copy is not equal; then the second stays empty.
    pub fn migrate(from: &str, to: &str, progress: &mut dyn FnMut(&str)) -> Result<Migrated> {
        let source = Self::open_read_only(from)?;
        let target = Self::open(to)?;
        if !target.runs()?.is_empty() {
            return Err(Error::NotEmpty { place: target.place().to_owned() });
        }
        // Both transactions span many calls; whatever fails, the connections are closed and nothing is kept.
        source.with_once(async |connection| {
            connection.script(connection.engine().begin(Access::Read)).await.doing(DOING)
        })?;
        target.with_once(async |connection| {
            connection.script(connection.engine().begin(Access::Write)).await.doing(DOING)
        })?;
        let mut migrated = Migrated { tables: Table::new(["table", "rows", "sha256"]), rows: 0 };
        for table in &TABLES {
            progress(table.0);
            let (rows, hash) = walk(&source, table, &mut |rows| insert(&target, table, rows))?;
            let (copied, copied_hash) = walk(&target, table, &mut |_| Ok(()))?;
            if rows != copied {
                return Err(Error::Miscopied { table: table.0, what: format!("{copied} rows of {rows}") });
            }
            if hash != copied_hash {
                return Err(Error::Miscopied { table: table.0, what: "their content differs".into() });
            }
            migrated.tables.push(vec![table.0.into(), (rows as i64).into(), hash.into()]);
            migrated.rows += rows;
            if target.engine() == Engine::Postgres && table.1 == 1 {
                go_on_counting(&target, table.0)?;
            }
        }
        target.with_once(async |connection| connection.script("COMMIT").await.doing(DOING))?;
        Ok(migrated)
    }
}

/// Reads a table from its first row to its last; returns the number of rows and the SHA-256 of their content.
fn walk(store: &Store, table: &Copied, take: &mut dyn FnMut(Vec<Vec<Bind>>) -> Result<()>) -> Result<(u64, String)> {
    let (name, keys, columns) = *table;
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let key = names[..keys].join(", ");
    let sql = format!(
        "SELECT {} FROM {name} WHERE ({key}) > {} ORDER BY {key} LIMIT {AT_ONCE}",
        names.join(", "),
        sql::places(1, keys)
    );
    let (mut count, mut digest) = (0, Sha256::new());
    let mut last: Vec<Bind> = vec![Bind::Integer(Some(i64::MIN)); keys];
    loop {
        let rows: Vec<Vec<Bind>> = store.with_once(async |connection| {
            let mut query = sql::query(sql.clone());
            for value in &last {
                query = query.bind(value.clone());
            }
            let rows = query.fetch_all(connection).await.doing(DOING)?;
            rows.iter()
                .map(|row| columns.iter().enumerate().map(|(place, (_, kind))| read(row, place, *kind)).collect())
                .collect()
        })?;
        let Some(newest) = rows.last() else { return Ok((count, hex(&digest.finalize()))) };
        last = newest[..keys].to_vec();
        count += rows.len() as u64;
        rows.iter().flatten().for_each(|value| add(&mut digest, value));
        take(rows)?;
    }
}

fn read(row: &Row, place: usize, kind: Kind) -> Result<Bind> {
    let value = match kind {
        Kind::Integer => row.try_get(place).map(Bind::Integer),
        Kind::Real => row.try_get(place).map(Bind::Real),
        Kind::Text => row.try_get(place).map(Bind::Text),
        Kind::Blob => row.try_get(place).map(Bind::Blob),
    };
    value.doing(DOING)
}

/// Adds a value to a hash so that no two rows read alike: whether it is there, how long it is, and its bytes.
fn add(digest: &mut Sha256, value: &Bind) {
    let bytes = match value {
        Bind::Integer(number) => number.map(|number| number.to_le_bytes().to_vec()),
        Bind::Real(number) => number.map(|number| number.to_bits().to_le_bytes().to_vec()),
        Bind::Text(text) => text.as_ref().map(|text| text.as_bytes().to_vec()),
        Bind::Blob(bytes) => bytes.clone(),
    };
    digest.update(bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
    digest.update(bytes.unwrap_or_default());
}

fn insert(store: &Store, table: &Copied, rows: Vec<Vec<Bind>>) -> Result<()> {
    let (name, _, columns) = *table;
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let places = sql::places(rows.len(), columns.len());
    let sql = format!("INSERT INTO {name} ({}) VALUES {places}", names.join(", "));
    store.with_once(async |connection| {
        let mut query = sql::query(sql);
        for value in rows.into_iter().flatten() {
            query = query.bind(value);
        }
        query.execute(connection).await.doing(DOING).map(drop)
    })
}

/// New rows get numbers behind those that were copied.
fn go_on_counting(store: &Store, table: &str) -> Result<()> {
    let sql = format!(
        "SELECT setval(pg_get_serial_sequence('{table}', 'id'), COALESCE(MAX(id), 1), MAX(id) IS NOT NULL) FROM {table}"
    );
    store.with_once(async |connection| connection.script(sql).await.doing(DOING))
}
