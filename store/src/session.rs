//! The one connection behind a store: watched where it is a file, renewed where it is a server's.
//!
//! # A server that restarts
//!
//! An operation whose connection is lost is done once more on a new one, as soon as the server takes it, within
//! [`RENEWAL`]. It is not known then how far the first try came: its commit may have been the last thing that the server
//! did. So only what may be done twice comes here by [`Session::run`]: what reads; what writes the same rows under the
//! same keys; and what looks first whether its rows are there ([`Connection::is_repeated`]). Everything else goes by
//! [`Session::run_once`], and a lost connection is its error.
//!
//! # A server that does not answer
//!
//! A frozen server, or a network that drops packets, closes no connection: the wait would never end. After
//! [`PATIENCE`] a second connection is tried. If that is taken, the operation is a long one, and is waited for; if not,
//! the connection counts as lost.

use crate::engine::postgres::Server;
use crate::engine::{Connection, Mode, Watch};
use crate::error::{Doing, PATIENCE_S, is_starting, is_unreachable, message};
use crate::{Error, Result};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Time within which a lost connection must be renewed.
pub(crate) const RENEWAL: Duration = Duration::from_mins(1);
/// Time without an answer after which it is asked whether the server is there.
const PATIENCE: Duration = Duration::from_secs(PATIENCE_S);
/// Pauses between two tries to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The connection of a store, and all that is needed to notice that it is lost.
#[derive(Debug)]
pub(crate) struct Session {
    /// `None` if it is lost, or closed.
    connection: Option<Connection>,
    /// The files of a store that is written to; `None` on a server, and where it is only read.
    watch: Option<Watch>,
    /// The server that a lost connection is renewed on.
    server: Option<(Server, Mode)>,
    /// SQL that a new connection begins with.
    prelude: String,
}

impl From<Connection> for Session {
    fn from(connection: Connection) -> Self {
        Self { connection: Some(connection), watch: None, server: None, prelude: String::new() }
    }
}

impl Session {
    /// Watches the files of a store from now on.
    pub(crate) fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    /// Renews a lost connection from now on.
    pub(crate) fn renew_on(&mut self, server: Server, mode: Mode) {
        self.server = Some((server, mode));
    }

    /// Notes SQL that every later connection begins with.
    pub(crate) fn begin_with(&mut self, prelude: String) {
        self.prelude = prelude;
    }

    /// Does something that may be done twice, and does it again if the connection is lost meanwhile.
    ///
    /// # Errors
    /// As `work`; [`Error::Removed`] if the file is not at its path any more; [`Error::Unreachable`] or
    /// [`Error::CannotConnect`] if a lost connection cannot be renewed.
    pub(crate) async fn run<T>(&mut self, work: impl AsyncFn(&mut Connection) -> Result<T>) -> Result<T> {
        let (mut until, mut repeated) = (None, false);
        loop {
            let again = async |connection: &mut Connection| {
                connection.set_repeated(repeated);
                work(connection).await
            };
            let lost = match self.run_once(again).await {
                Err(error @ Error::Disconnected { .. }) if self.server.is_some() => error,
                done => return done,
            };
            // A connection that is lost again and again is not renewed for ever.
            let until = *until.get_or_insert_with(|| Instant::now() + RENEWAL);
            if Instant::now() >= until {
                return Err(lost);
            }
            tracing::warn!("{lost}; trying to connect again for {} s", RENEWAL.as_secs());
            self.renew(until).await?;
            repeated = true;
        }
    }

    /// Does something that must not be done twice.
    ///
    /// # Errors
    /// As `work`; [`Error::Removed`] if the file is not at its path any more; [`Error::Disconnected`] if the connection
    /// is lost, and it is not known whether the work was done.
    pub(crate) async fn run_once<T>(&mut self, work: impl AsyncFnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        if self.connection.is_none() {
            self.renew(Instant::now()).await?;
        }
        let connection = self.connection.as_mut().expect("it was renewed if it was lost");
        if let Some(watch) = &mut self.watch
            && watch.is_lost()
            && !watch.is_writable()
        {
            return Err(watch.rescue(connection).await);
        }
        let done = match &self.server {
            Some((server, _)) => while_it_answers(server, PATIENCE, work(&mut *connection)).await,
            None => work(&mut *connection).await,
        };
        if self.server.is_some() && matches!(done, Err(Error::Disconnected { .. })) {
            self.connection = None;
            return done;
        }
        connection.set_repeated(false);
        // Locks that an abandoned transaction holds would last until the next call. If this fails, the next call fails
        // too, and says why.
        let _ = connection.settle().await;
        match &mut self.watch {
            Some(watch) if watch.is_lost() => Err(watch.rescue(connection).await),
            _ => done,
        }
    }

    /// Connects anew, with growing pauses until this moment.
    async fn renew(&mut self, until: Instant) -> Result<()> {
        const DOING: &str = "connecting again";
        let Some((server, mode)) = &self.server else {
            return Err(Error::Disconnected { doing: DOING, reason: "it is closed".into() });
        };
        let mut connection = connect(server, *mode, until, is_unreachable).await?;
        if !self.prelude.is_empty() {
            connection.script(self.prelude.clone()).await.doing(DOING)?;
        }
        tracing::info!(place = server.place(), "connected to the store again");
        self.connection = Some(connection);
        Ok(())
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// If the engine cannot close it cleanly.
    pub(crate) async fn close(&mut self) -> std::result::Result<(), sqlx::Error> {
        match self.connection.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }
}

/// Connects to a server; to one that is starting up, when it has started.
///
/// # Errors
/// [`Error::Unreachable`] or [`Error::CannotConnect`] if it cannot be reached, or takes no connection from this user.
pub(crate) async fn connect_first(server: &Server, mode: Mode) -> Result<Connection> {
    connect(server, mode, Instant::now() + RENEWAL, is_starting).await
}

/// Connects, with growing pauses until this moment as long as failures are `passing`.
async fn connect(server: &Server, mode: Mode, until: Instant, passing: fn(&sqlx::Error) -> bool) -> Result<Connection> {
    let (mut pause, longest) = PAUSES;
    loop {
        match server.connect(mode).await {
            Ok(connection) => return Ok(connection),
            Err(error) if passing(&error) && Instant::now() + pause < until => {
                if pause == PAUSES.0 {
                    let (place, reason, left) = (server.place(), message(&error), until - Instant::now());
                    tracing::warn!("{place} takes no connection yet: {reason}; trying again for {} s", left.as_secs());
                }
            }
            Err(error) => return Err(server.cannot_open(&error)),
        }
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// Waits for something as long as the server takes connections.
async fn while_it_answers<T>(server: &Server, patience: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    loop {
        if let Ok(done) = timeout(patience, &mut work).await {
            return done;
        }
        if let Err(error) = server.answers().await {
            let doing = "waiting for an answer";
            return Err(Error::Disconnected {
                doing,
                reason: format!("none came for {} s, and: {error}", patience.as_secs()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn waiting<T>(port: u16, patience_ms: u64, work: impl Future<Output = Result<T>>) -> Result<T> {
        let server = Server::parse(&format!("postgres://me@127.0.0.1:{port}/db?sslmode=disable")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(while_it_answers(&server, Duration::from_millis(patience_ms), work))
    }

    #[test]
    fn an_answer_that_never_comes_is_a_lost_connection_if_the_server_is_gone() {
        // No server listens at port 1.
        let error = waiting(1, 10, std::future::pending::<Result<()>>()).unwrap_err();
        assert!(matches!(error, Error::Disconnected { .. }) && !error.is_input(), "{error}");
        assert!(error.to_string().contains("waiting for an answer: none came for"), "{error}");
    }

    #[test]
    fn a_long_operation_is_waited_for_while_the_server_takes_or_refuses_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            // invalid_password
            let fields = b"SFATAL\0VFATAL\0C28P01\0Mno\0\0";
            let mut answer = vec![b'E', 0, 0, 0, fields.len() as u8 + 4];
            answer.extend(fields);
            listener.accept().unwrap().0.write_all(&answer).unwrap();
            asked.send(()).unwrap();
        });
        let done = waiting(port, 10, async {
            was_asked.await.unwrap();
            Ok(7)
        });
        assert_eq!(done.unwrap(), 7);
    }
}
