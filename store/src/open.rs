//! Opening a store by its URL, and the one connection behind it.
//!
//! The trainer is synchronous and sqlx is not, so a [`Store`] owns a small runtime and blocks on it. One connection is
//! enough: `SQLite` has one writer anyway, and readers in other processes have their own.

use crate::engine::time::now;
use crate::engine::{Access, Connection, DatabaseUrl, Engine, Migrations, Mode, News, Watch, postgres, sql, sqlite};
use crate::error::Doing;
use crate::session::{Session, connect_first};
use crate::{Error, Result, Scoring};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::runtime::Runtime;

const CREATE_SCHEMA_VERSION: &str = "CREATE TABLE IF NOT EXISTS schema_version (
    version BIGINT PRIMARY KEY, program_version TEXT NOT NULL, applied_at BIGINT NOT NULL)";
const ADD_SCHEMA_VERSION: &str =
    "INSERT INTO schema_version (version, program_version, applied_at) VALUES ($1, $2, $3)";
const SCHEMA_VERSION: &str = "SELECT COALESCE(MAX(version), 0) FROM schema_version";

/// An open store: every sample ever paid for, and everything needed to ask about it.
#[derive(Debug)]
pub struct Store {
    place: String,
    engine: Engine,
    runtime: Runtime,
    session: Mutex<Session>,
    /// Listeners on a server, one per kind of news that this handle has waited for.
    pub(crate) bells: Mutex<Vec<(News, postgres::Bell)>>,
    address: DatabaseUrl,
    /// The scoring whose grades this handle's queries see.
    pub(crate) scoring: Scoring,
}

impl Store {
    /// Opens a store for writing, after creating it or bringing its schema up to date where needed. `url` is
    /// `sqlite://` and a path, relative (`sqlite://proxrl.db`) or absolute (`sqlite:///data/proxrl.db`), or the address
    /// of a `PostgreSQL` database (`postgres://user@host/database`). The parts of such a URL are those of libpq, and so
    /// are the variables (`PGPASSWORD`, `PGPASSFILE`) that stand for parts left out.
    ///
    /// # Errors
    /// [`Error::Url`] if the URL names no store; [`Error::MissingFolder`], [`Error::NotAStore`], [`Error::CannotOpen`]
    /// or [`Error::CannotConnect`] if there can be none at that location; [`Error::Unreachable`] if its server is not
    /// there; [`Error::NewerSchema`] if a newer program wrote it; [`Error::Locked`] if another process holds it for too
    /// long; or if its schema cannot be brought up to date.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_as(url, Mode::Create)
    }

    /// Opens a store for writing, but makes none where there is none.
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Missing`] if there is no store.
    pub fn open_existing(url: &str) -> Result<Self> {
        Self::open_as(url, Mode::Write)
    }

    /// Opens a store for reading alone. Creates nothing, and refuses every write.
    ///
    /// # Errors
    /// As [`Store::open`]; [`Error::Missing`] if there is no store, and [`Error::OlderSchema`] if its schema is not up
    /// to date.
    pub fn open_read_only(url: &str) -> Result<Self> {
        Self::open_as(url, Mode::Read)
    }

    fn open_as(url: &str, mode: Mode) -> Result<Self> {
        let address = DatabaseUrl::parse(url)?;
        if let DatabaseUrl::File(path) = &address {
            sqlite::check(path, mode)?;
        }
        let (place, engine) = (address.place(), address.engine());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
        // The schema is looked at before anything that would change a file, its journal mode included.
        let session = match &address {
            DatabaseUrl::File(path) => runtime.block_on(sqlite::connect(path, mode))?.into(),
            DatabaseUrl::Server(server) => {
                let mut session = Session::from(runtime.block_on(connect_first(server, mode))?);
                session.renew_on((**server).clone(), mode);
                session
            }
        };
        tracing::debug!(%place, "opened the store");
        let (session, bells) = (Mutex::new(session), Mutex::default());
        let store = Self { place, engine, runtime, session, bells, address, scoring: Scoring::default() };
        let (found, known) = (store.with(async |connection| store.schema_version(connection).await)?, store.latest());
        let place = || store.place.clone();
        if found > known {
            return Err(Error::NewerSchema { place: place(), found, known });
        }
        match mode {
            Mode::Read | Mode::Write if found == 0 && engine == Engine::Postgres => {
                return Err(Error::Missing { place: place() });
            }
            Mode::Read if found < known => return Err(Error::OlderSchema { place: place(), found, known }),
            Mode::Read => {}
            Mode::Create | Mode::Write => {
                if engine == Engine::Sqlite {
                    if found == 0 {
                        store.with(async |connection| sqlite::set_shrinkable(connection, &store.place).await)?;
                    }
                    store.with(async |connection| sqlite::set_durable(connection, &store.place).await)?;
                }
                if found < known {
                    store.with(async |connection| store.update(connection).await)?;
                }
                if let DatabaseUrl::File(path) = &store.address {
                    store.session().watch(Watch::of(path));
                }
            }
        }
        Ok(store)
    }

    /// Returns the location of the store: its file, or the URL of its database without the password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Runs something that may be done twice ([`Session::run`]) on the connection and waits for it. Calls take turns.
    pub(crate) fn with<T>(&self, work: impl AsyncFn(&mut Connection) -> Result<T>) -> Result<T> {
        self.runtime.block_on(self.session().run(work))
    }

    /// Runs something that must not be done twice on the connection and waits for it. Calls take turns.
    pub(crate) fn with_once<T>(&self, work: impl AsyncFnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        self.runtime.block_on(self.session().run_once(work))
    }

    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        // A panic elsewhere leaves no half-made state: an open transaction is rolled back when it is dropped.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something that needs no connection of the store.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn address(&self) -> &DatabaseUrl {
        &self.address
    }

    pub(crate) fn migrations(&self) -> Migrations {
        match self.engine {
            Engine::Sqlite => sqlite::MIGRATIONS,
            Engine::Postgres => postgres::MIGRATIONS,
        }
    }

    fn latest(&self) -> i64 {
        self.migrations().last().map_or(0, |(version, _)| *version)
    }

    /// The version of the schema that the store has; 0 if it holds nothing yet.
    async fn schema_version(&self, connection: &mut Connection) -> Result<i64> {
        let counts = match self.engine {
            Engine::Sqlite => sqlite::TABLES,
            Engine::Postgres => postgres::TABLES,
        };
        let (tables, ours): (i64, i64) = match sql::query_as(counts).fetch_one(&mut *connection).await {
            Ok(counts) => counts,
            Err(error) if self.engine == Engine::Sqlite => return Err(sqlite::cannot_open(&self.place, error)),
            Err(error) => return Err(error).doing("looking for the store's tables"),
        };
        if tables > 0 && ours == 0 {
            let reason = "it is a database of another program".to_owned();
            return Err(Error::NotAStore { place: self.place.clone(), reason });
        }
        if tables == 0 {
            return Ok(0);
        }
        sql::query_scalar(SCHEMA_VERSION).fetch_one(connection).await.doing("reading the schema's version")
    }

    /// Applies every migration that the store lacks, or none.
    async fn update(&self, connection: &mut Connection) -> Result<()> {
        const DOING: &str = "bringing the schema up to date";
        let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
        if self.engine == Engine::Postgres {
            transaction.script(postgres::LOCK_MIGRATIONS).await.doing(DOING)?;
        }
        // Another process may have come first while we waited for the lock.
        let found = self.schema_version(&mut transaction).await?;
        transaction.script(CREATE_SCHEMA_VERSION).await.doing(DOING)?;
        for (version, migration) in self.migrations().iter().filter(|(version, _)| *version > found) {
            transaction.script(*migration).await.doing(DOING)?;
            sql::query(ADD_SCHEMA_VERSION)
                .bind(version)
                .bind(env!("CARGO_PKG_VERSION"))
                .bind(now())
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            tracing::info!(place = %self.place, version, "brought the store's schema up to date");
        }
        transaction.commit().await.doing(DOING)
    }
}

impl Drop for Store {
    /// Closes the file before the store is gone, so that the next process to open it finds no lock.
    fn drop(&mut self) {
        let bells = std::mem::take(self.bells.get_mut().unwrap_or_else(PoisonError::into_inner));
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.runtime.block_on(async {
            drop(bells);
            if let Err(error) = session.close().await {
                tracing::warn!(place = %self.place, %error, "could not close the store cleanly");
            }
        });
    }
}

/// A store's URL as it may be shown and written down: without a password.
pub fn without_password(url: &str) -> String {
    if postgres::is_url(url) { postgres::without_password(url) } else { url.to_owned() }
}
