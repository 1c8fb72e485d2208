//! Giving the room of removed rows back to the file system, beside other processes.
//!
//! A file of this version is made smaller some pages at a time, each time in a short transaction. A file of an earlier
//! version has to be written anew as a whole, which keeps every writer waiting for as long as that takes: that is done
//! only while no other process has the store open, and makes it a file that can be shrunk in pieces from then on. On a
//! server, `VACUUM` makes the room free for later rows and locks no one out; `VACUUM FULL` would give it back, and lock
//! the tables meanwhile.

use super::turns;
use crate::engine::{Connection, Engine, sql};
use crate::error::{Doing, PATIENCE_S, sqlite_code};
use crate::{Error, Result};
use tokio::time::Instant;

const DOING: &str = "making the store smaller";

/// Pages that are given back in one transaction: two megabytes.
const PIECE: i64 = 512;

const FREE: &str = "SELECT freelist_count FROM pragma_freelist_count";
const AUTO_VACUUM: &str = "SELECT auto_vacuum FROM pragma_auto_vacuum";
const PAGE_SIZE: &str = "SELECT page_size FROM pragma_page_size";

/// Folds the write-ahead log into the file, which shrinks then; if a reader is in the way, a later writer does it.
const FOLD_LOG: &str = "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)";
/// Takes the file for this connection alone, or fails at once.
const TAKE_ALONE: &str = "PRAGMA busy_timeout = 0; PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT";
const REWRITE: &str = "PRAGMA auto_vacuum = INCREMENTAL; VACUUM";
/// A file is let go by the next transaction that writes, and by nothing before.
const LET_GO: &str = "PRAGMA locking_mode = NORMAL; BEGIN IMMEDIATE; COMMIT";

const ON_SERVER: &str = "VACUUM (ANALYZE) prompts, policies, groups, samples, rewards, comparisons";

/// Gives free room back. Returns what was not done, and what to try, as a sentence; `None` if all of it was given back.
pub(super) async fn shrink(connection: &mut Connection) -> Result<Option<String>> {
    match connection.engine() {
        Engine::Sqlite => shrink_file(connection).await,
        Engine::Postgres => {
            match connection.script(ON_SERVER).await.doing(DOING) {
                // The server's own daemon is at it, or will be.
                Ok(()) | Err(Error::Locked { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(Some(
                "the room is free for later samples; to give it back to the server's disk, run VACUUM FULL in the \
                 database while no run uses it"
                    .into(),
            ))
        }
    }
}

async fn shrink_file(connection: &mut Connection) -> Result<Option<String>> {
    let (free, mode) = (number(connection, FREE).await?, number(connection, AUTO_VACUUM).await?);
    let refused = match (free, mode) {
        (0, _) => None,
        // NONE
        (_, 0) => rewrite(connection).await?,
        _ => shrink_in_pieces(connection).await?,
    };
    connection.script(FOLD_LOG).await.doing(DOING)?;
    connection.script(format!("PRAGMA busy_timeout = {}", PATIENCE_S * 1000)).await.doing(DOING)?;
    let Some(reason) = refused else { return Ok(None) };
    let left = (number(connection, FREE).await? * number(connection, PAGE_SIZE).await?) as f64 / 1e6;
    Ok(Some(format!(
        "the file still has {left:.1} MB that are free for later samples, because {reason}; the next `prune` that is \
         alone with the store gives them back"
    )))
}

async fn number(connection: &mut Connection, sql: &'static str) -> Result<i64> {
    sql::query_scalar(sql).fetch_one(connection).await.doing(DOING)
}

/// Moves the last pages of the file to where free ones are, and cuts it off; returns why it stopped before the end.
async fn shrink_in_pieces(connection: &mut Connection) -> Result<Option<&'static str>> {
    let mut free = number(connection, FREE).await?;
    while free > 0 {
        let began = Instant::now();
        match connection.script(format!("PRAGMA incremental_vacuum({PIECE})")).await.doing(DOING) {
            Ok(()) => {}
            Err(Error::Locked { .. }) => return Ok(Some("another process holds it")),
            Err(error) => return Err(error),
        }
        turns::leave_to_others(began).await;
        let left = number(connection, FREE).await?;
        if left >= free {
            return Ok(Some("another process frees room meanwhile"));
        }
        free = left;
    }
    Ok(None)
}

/// Writes the file anew if no other process has it; returns why not.
async fn rewrite(connection: &mut Connection) -> Result<Option<&'static str>> {
    let rewritten = match connection.script(TAKE_ALONE).await {
        Ok(()) => connection.script(REWRITE).await,
        Err(error) => Err(error),
    };
    // Whatever came of it: other processes need the file again.
    connection.script(format!("PRAGMA busy_timeout = {}", PATIENCE_S * 1000)).await.doing(DOING)?;
    connection.script(LET_GO).await.doing(DOING)?;
    match rewritten {
        Ok(()) => Ok(None),
        // SQLITE_BUSY
        Err(error) if sqlite_code(&error) == Some(5) => Ok(Some("another process has the store open")),
        // SQLITE_FULL
        Err(error) if sqlite_code(&error) == Some(13) => Ok(Some("the disk has no room for a second copy of it")),
        Err(error) => Err(error).doing(DOING),
    }
}
