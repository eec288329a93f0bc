//! Connections: accepted within limits, served, and ended in time.
//!
//! Invariant: a connection ends when its caller leaves, stalls or is sent away, and a second after the shutdown at the
//! latest.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::App;
use super::guard::Peer;
use super::limits::{BODY_TIME, Clients, HEAD_TIME, MAX_HEAD, Paced, Place};
use super::listen::{Tcp, Unix};

/// What open connections may still take after the shutdown.
const GRACE: Duration = Duration::from_millis(900);
/// Pause after a failed accept, such as one for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Told to a connection too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 51\r\n\r\n{\"error\":\"too many connections; try again shortly\"}";

pub(super) enum Listener {
    Tcp(Tcp),
    Unix(Unix),
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(tcp) => tcp.listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
            Self::Unix(unix) => unix.listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }

    fn clients<'a>(&self, app: &'a App) -> &'a Arc<Clients> {
        match self {
            Self::Tcp(_) => &app.tcp,
            Self::Unix(_) => &app.unix,
        }
    }
}

/// Serves until the shutdown and [`GRACE`] after it.
pub(super) async fn run(
    listeners: Vec<Listener>,
    app: Arc<App>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) {
    let (stop, stopped) = watch::channel(false);
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        acceptors.spawn(accept(listener, Arc::clone(&app), router.clone(), stopped.clone()));
    }
    shutdown.await;
    // Acceptors that have gone already need not hear it.
    let _ = stop.send(true);
    let all = async { while acceptors.join_next().await.is_some() {} };
    if timeout(GRACE, all).await.is_err() {
        acceptors.shutdown().await;
    }
}

async fn accept(listener: Listener, app: Arc<App>, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("failed to accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = listener.clients(&app).enter() else {
            refuse(stream);
            continue;
        };
        let (router, stopped) = (router.clone(), stopped.clone());
        match stream {
            Accepted::Unix(stream) => {
                // Without credentials it is nobody, and is told so.
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                connections.spawn(serve(Paced::new(stream), Peer::Unix { uid }, place, router, stopped));
            }
            Accepted::Tcp(stream) => {
                let tls = match &listener {
                    Listener::Tcp(tcp) => tcp.tls.clone(),
                    Listener::Unix(_) => None,
                };
                // Answers are written whole; waiting for more to send would only delay them.
                let _ = stream.set_nodelay(true);
                let Ok(local) = stream.local_addr() else { continue };
                let peer = Peer::Tcp {
                    local: local.ip().to_canonical(),
                };
                let stream = Paced::new(stream);
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, peer, place, router, stopped).await,
                        Some(tls) => {
                            let client = Arc::clone(&place.client);
                            let shaken = tokio::select! {
                                shaken = timeout(BODY_TIME, tls.accept(stream)) => shaken,
                                () = client.sent_away() => return,
                            };
                            if let Ok(Ok(stream)) = shaken {
                                serve(stream, peer, place, router, stopped).await;
                            }
                        }
                    }
                });
            }
        }
    }
    // Closes the port and removes the socket before the last answers are given.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Says that there are too many and closes, without waiting for the other end.
fn refuse(stream: Accepted) {
    // Whether it reads that is its own affair.
    let _ = match &stream {
        Accepted::Tcp(stream) => stream.try_write(FULL),
        Accepted::Unix(stream) => stream.try_write(FULL),
    };
}

pub(super) async fn serve<S>(stream: S, peer: Peer, place: Place, router: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = Arc::clone(&place.client);
    let service = service_fn(|request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(Arc::clone(&client));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // How a connection ended concerns its caller alone.
            _ = connection.as_mut() => return,
            () = client.sent_away() => return,
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
