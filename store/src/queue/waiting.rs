//! Waiting for news of jobs: by NOTIFY on `PostgreSQL`, by looking again on `SQLite`.

use crate::engine::postgres::Bell;
use crate::engine::{Connection, DatabaseUrl, Engine, News};
use crate::error::{Doing, is_lost};
use crate::{Result, Store};
use std::sync::PoisonError;
use std::time::Duration;

/// Time that a waiting caller sleeps on `SQLite` before it looks again.
const POLL: Duration = Duration::from_millis(20);
/// Time that it sleeps if the server does not let it wait.
const PAUSE: Duration = Duration::from_millis(200);

impl Store {
    /// Waits until there may be a job, but not longer than `at_most`. It may return early, so look and wait again.
    ///
    /// # Errors
    /// If the server refuses to tell of news; never on `SQLite`, and not if the connection is lost.
    pub fn wait_for_jobs(&self, at_most: Duration) -> Result<()> {
        self.wait(News::Jobs, at_most)
    }

    /// Waits until a job may be done, but not longer than `at_most`. It may return early, so look and wait again.
    ///
    /// # Errors
    /// If the server refuses to tell of news; never on `SQLite`, and not if the connection is lost.
    pub fn wait_for_results(&self, at_most: Duration) -> Result<()> {
        self.wait(News::Results, at_most)
    }

    fn wait(&self, news: News, at_most: Duration) -> Result<()> {
        const DOING: &str = "waiting for news of jobs";
        let DatabaseUrl::Server(server) = self.address() else {
            std::thread::sleep(at_most.min(POLL));
            return Ok(());
        };
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = self.block_on(async {
            match bells.iter_mut().find(|(heard, _)| *heard == news) {
                Some((_, bell)) => bell.wait(at_most).await,
                // Earlier notifications went unheard: the caller looks once more.
                None => Bell::new(server, news.channel()).await.map(|bell| bells.push((news, bell))),
            }
        });
        match heard {
            // The caller looks again, and that connects again or says why not.
            Err(error) if is_lost(&error) => {
                bells.retain(|(heard, _)| *heard != news);
                drop(bells);
                std::thread::sleep(at_most.min(PAUSE));
                Ok(())
            }
            heard => heard.doing(DOING),
        }
    }
}

/// Wakes the connections that wait for this news, when the transaction is committed.
pub(super) async fn ring(connection: &mut Connection, news: News) -> Result<()> {
    if connection.engine() == Engine::Postgres {
        connection.script(format!("NOTIFY {}", news.channel())).await.doing("waking who waits")?;
    }
    Ok(())
}
