//! The SQL that the two engines do not share.

use super::connection::Access;

/// The database engine that a store is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// One file, one machine.
    Sqlite,
    /// A server, many machines.
    Postgres,
}

impl Engine {
    /// Begins a transaction. A writer on `SQLite` takes the write lock at once, so that it never fails half-way because
    /// another came first; a reader sees one state of the store, whatever is appended meanwhile.
    pub(crate) fn begin(self, access: Access) -> &'static str {
        match (self, access) {
            // By what the connection may do.
            (Self::Sqlite, Access::Read | Access::Scratch) | (Self::Postgres, Access::Write) => "BEGIN",
            (Self::Sqlite, Access::Write) => "BEGIN IMMEDIATE",
            (Self::Postgres, Access::Read) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            // A handle that only reads has views of its own all the same.
            (Self::Postgres, Access::Scratch) => "BEGIN READ WRITE",
        }
    }

    /// Behind a SELECT of rows `j` inside an UPDATE: takes the row, or skips it if another writer is taking it.
    pub(crate) fn skip_locked(self) -> &'static str {
        match self {
            // There is one writer at a time.
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE OF j SKIP LOCKED",
        }
    }

    /// This moment by the store's own clock, in microseconds since 1970: clocks of several machines differ.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS BIGINT)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
        }
    }

    /// Behind a SELECT of rows: no other transaction removes them before this one ends. `SQLite` has one writer anyway.
    pub(crate) fn keep(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR KEY SHARE",
        }
    }

    /// The bytes that the store's rows take, without the room that is free for later ones. A server does not know
    /// that: there it is estimated from the size of each sample's columns, and about what rows and indexes cost beside.
    pub(crate) fn size(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "SELECT (page_count - freelist_count) * page_size
                FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
            }
            Self::Postgres => {
                "SELECT CAST((SELECT COALESCE(SUM(300 + pg_column_size(text) + pg_column_size(token_ids)
                        + pg_column_size(logprobs) + COALESCE(pg_column_size(mask), 0)), 0) FROM samples)
                    + (SELECT 150 * COUNT(*) FROM rewards) + (SELECT 200 * COUNT(*) FROM comparisons)
                    + (SELECT 400 * COUNT(*) FROM groups)
                    + (SELECT COALESCE(SUM(400 + pg_column_size(json) + pg_column_size(question)
                        + pg_column_size(token_ids)), 0) FROM prompts) AS BIGINT)"
            }
        }
    }

    /// Names every broken page, where the engine can tell.
    pub(crate) fn integrity(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => Some("SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'"),
            // The server checks pages as it reads them, where its administrator switched checksums on.
            Self::Postgres => None,
        }
    }
}
