//! Connections: how many there may be, how long they may be silent, and their end.
//!
//! HTTP/1.1 alone is spoken. A request's head must arrive within `serve.body_timeout_s` of the connection's beginning, or
//! of the answer before it, so a silent connection is closed; and no more than `serve.max_connections` are open at once.
//! Otherwise a client could use up the process's files without a token.

use super::config::Config;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Pause after a connection could not be accepted, for want of files as a rule.
const RETRY: Duration = Duration::from_millis(50);

/// Serves until `closed`, then waits for the connections that have a request under way.
pub(super) async fn serve(listener: TcpListener, router: Router, config: &Config, closed: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(config.max_connections));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    if config.body_timeout_s > 0.0 {
        builder.header_read_timeout(Duration::from_secs_f64(config.body_timeout_s));
    }
    let open = GracefulShutdown::new();
    tokio::pin!(closed);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut closed => break,
            accepted = accepted => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = open.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that breaks off is no fault of the daemon.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    open.shutdown().await;
}
