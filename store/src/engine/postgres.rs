//! A store in a `PostgreSQL` database, shared by many machines.

use crate::engine::{Connection, Migrations, Mode, Outcome};
use crate::error::{PATIENCE_S, is_unreachable, message};
use crate::{Error, Result};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::str::FromStr;
use std::time::Duration;

pub(crate) const MIGRATIONS: Migrations = &[
    (2, include_str!("../../migrations/postgres/0002_spine.sql")),
    (3, include_str!("../../migrations/postgres/0003_jobs.sql")),
    (4, include_str!("../../migrations/postgres/0004_comparisons.sql")),
];

/// Counts the tables, and those among them that hold the schema's version.
pub(crate) const TABLES: &str = "SELECT COUNT(*), COUNT(CASE WHEN table_name = 'schema_version' THEN 1 END)
    FROM information_schema.tables WHERE table_schema = current_schema()";

/// Lock of the connection that changes the schema, held until that is committed.
pub(crate) const LOCK_MIGRATIONS: &str = "SELECT pg_advisory_xact_lock(8104012097)";

pub(crate) fn is_url(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// A database on a server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    options: PgConnectOptions,
    place: String,
}

impl Server {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let place = without_password(url);
        match PgConnectOptions::from_str(url) {
            Ok(options) => Ok(Self { options: options.application_name("proxrl").disable_statement_logging(), place }),
            Err(error) => Err(Error::Url {
                url: place,
                reason: format!("{error}; write for example postgres://user@host:5432/database"),
            }),
        }
    }

    /// Its URL without the password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Connects, or fails after [`PATIENCE_S`] without an answer.
    ///
    /// # Errors
    /// The driver's error; [`cannot_open`](Self::cannot_open) makes it one of the store.
    pub(crate) async fn connect(&self, mode: Mode) -> Outcome<Connection> {
        let within = tokio::time::timeout(Duration::from_secs(PATIENCE_S), self.connect_at_last(mode));
        within.await.unwrap_or_else(|_| {
            let reason = format!("no answer within {PATIENCE_S} s");
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, reason)))
        })
    }

    async fn connect_at_last(&self, mode: Mode) -> Outcome<Connection> {
        let mut connection = Connection::from(self.options.connect().await?);
        let read_only = if mode == Mode::Read { "on" } else { "off" };
        // A commit is on the disk when it returns, whatever the server's default. Signs of life keep routers from
        // forgetting a connection that is idle for a step's length; they are nothing on a local socket.
        let settings = format!(
            "SET client_min_messages = warning; SET synchronous_commit = on; SET lock_timeout = '{PATIENCE_S}s';
            SET tcp_keepalives_idle = {PATIENCE_S}; SET default_transaction_read_only = {read_only}"
        );
        connection.script(settings).await?;
        Ok(connection)
    }

    /// Tries a second connection, which a server that works takes or refuses.
    ///
    /// # Errors
    /// If it does neither.
    pub(crate) async fn answers(&self) -> Outcome<()> {
        match self.connect(Mode::Read).await {
            Ok(connection) => connection.close().await,
            Err(error) if error.as_database_error().is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The store's error for one in connecting.
    pub(crate) fn cannot_open(&self, error: &sqlx::Error) -> Error {
        let (place, reason) = (self.place.clone(), message(error));
        if is_unreachable(error) {
            Error::Unreachable { place, reason }
        } else {
            Error::CannotConnect { place, reason }
        }
    }
}

/// A connection of its own that listens for the notifications of one channel.
#[derive(Debug)]
pub(crate) struct Bell(PgListener);

impl Bell {
    /// Listens to a channel of a server from now on.
    pub(crate) async fn new(server: &Server, channel: &str) -> std::result::Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new().max_connections(1).connect_with(server.options.clone()).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(channel).await?;
        Ok(Self(listener))
    }

    /// Waits for a notification, for `at_most`; a timeout is no error.
    pub(crate) async fn wait(&mut self, at_most: Duration) -> std::result::Result<(), sqlx::Error> {
        match tokio::time::timeout(at_most, self.0.recv()).await {
            Ok(heard) => heard.map(drop),
            Err(_) => Ok(()),
        }?;
        // Several notifications are one piece of news.
        while self.0.next_buffered().is_some() {}
        Ok(())
    }
}

/// A URL without its password, which stands behind the user's name or among the parameters.
pub(crate) fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (address, parameters) = rest.split_once('?').map_or((rest, None), |(address, it)| (address, Some(it)));
    // A password may hold an @ that is not percent-encoded, but no host does.
    let address = match address.rsplit_once('@') {
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => address.to_owned(),
    };
    let secret = |parameter: &&str| parameter.starts_with("password=") || parameter.starts_with("sslpassword=");
    let parameters: Vec<&str> =
        parameters.into_iter().flat_map(|all| all.split('&')).filter(|it| !secret(it)).collect();
    let question = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{address}{question}{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let cases = [
            ("postgres://me:secret@host:5433/db", "postgres://me@host:5433/db"),
            ("postgres://me:se@cret@host/db?sslmode=require", "postgres://me@host/db?sslmode=require"),
            ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me"),
            ("postgres://localhost/db?password=secret&host=/tmp", "postgres://localhost/db?host=/tmp"),
            ("postgres://me@host/db", "postgres://me@host/db"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
        let error = Server::parse("postgres://me:secret@host:port/db").unwrap_err();
        assert!(error.is_input() && !format!("{error} {error:?}").contains("secret"), "{error}");
    }
}
