//! HTTP: the API, the pprof addresses, metrics and the page, for callers that may ask.
//!
//! [`serve`] binds first and fails with a typed error; what then runs asks the daemon through
//! [`Backend`](super::backend::Backend) alone. `listen` binds, `connection` accepts and serves, `token` and `guard` say
//! who may ask, `limits` what a caller may take; `processes`, `profiles`, `metrics` and `page` answer.
//! Invariant: nothing is answered beyond `/healthz` and the login page before `guard` has let the request in.

mod answer;
mod connection;
mod guard;
mod limits;
mod listen;
mod metrics;
mod openapi;
mod page;
mod processes;
mod profiles;
mod text;
mod token;

#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};
use tokio::task::JoinHandle;
use tower_http::compression::CompressionLayer;

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::answer_any;
pub use listen::HttpError;
pub use token::TokenError;

use super::backend::Backend;
use guard::Guard;
use limits::{Clients, Downloads, Gate};

/// Where to listen and whom to let in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP address; `None`: no TCP. Anything but a loopback address needs [`tls`](Self::tls).
    pub listen: Option<SocketAddr>,
    /// Unix socket; `None`: none. Root and the daemon's own user may ask there without the token.
    pub socket: Option<PathBuf>,
    /// The file with the token. Made if missing, with its folder.
    pub token_file: PathBuf,
    /// Certificate chain and key for TCP.
    pub tls: Option<TlsFiles>,
    /// DNS names that callers may use for this machine, beside the addresses, without a dot at the end; they count with
    /// TLS only.
    pub names: Vec<String>,
    /// Connections at a time, on TCP and on the socket each.
    pub max_clients: usize,
}

/// PEM files for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, the own one first.
    pub certificate: PathBuf,
    /// Private key (PKCS#1, PKCS#8 or SEC1).
    pub key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 7373))),
            socket: Some(PathBuf::from("/run/leaktrace.sock")),
            token_file: PathBuf::from("/var/lib/leaktrace/token"),
            tls: None,
            names: Vec::new(),
            max_clients: 64,
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: Option<SocketAddr>,
    task: JoinHandle<()>,
}

impl Server {
    /// The TCP address in use: it tells the port where the settings said 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits until it has ended, which takes at most a second from the shutdown on. Calls into the backend that run
    /// then are not waited for.
    pub async fn finished(self) {
        // The task is never cancelled; should it panic there is nothing left to end.
        let _ = self.task.await;
    }
}

/// Whether certificate and key can be used.
///
/// # Errors
/// The file that cannot, and why.
pub fn check_tls(files: &TlsFiles) -> Result<(), (PathBuf, String)> {
    match listen::tls(files) {
        Ok(_) => Ok(()),
        Err(HttpError::Tls { path, why }) => Err((path, why)),
        Err(other) => Err((files.certificate.clone(), other.to_string())),
    }
}

/// Whether the token can be used, where there is one yet. Makes none.
///
/// # Errors
/// It cannot be read, or others could have.
pub fn check_token(path: &Path) -> Result<(), TokenError> {
    token::read(path).map(drop)
}

/// What all handlers share.
struct App {
    backend: Arc<dyn Backend>,
    guard: Guard,
    /// Calls that read from a process or write much.
    slow: Gate,
    /// Calls that the backend answers at once.
    quick: Gate,
    /// Requests that wait between two profiles: each holds one in memory.
    deltas: Gate,
    downloads: Downloads,
    tcp: Arc<Clients>,
    unix: Arc<Clients>,
}

/// Binds, then serves until `shutdown`. What is open then may finish within a second.
///
/// # Errors
/// [`HttpError`] when it cannot listen or has no token; nothing is left behind then.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn serve(
    settings: Settings,
    backend: Arc<dyn Backend>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Server, HttpError> {
    let tls = settings.tls.as_ref().map(listen::tls).transpose()?;
    let token = token::load(&settings.token_file).map_err(HttpError::Token)?;
    let mut listeners = Vec::new();
    let mut address = None;
    if let Some(wanted) = settings.listen {
        let listener = listen::tcp(wanted, tls)?;
        address = Some(listener.address());
        listeners.push(connection::Listener::Tcp(listener));
    }
    if let Some(path) = &settings.socket {
        listeners.push(connection::Listener::Unix(listen::unix(path).await?));
    }
    let app = Arc::new(App {
        backend,
        guard: Guard::new(token, address, settings.tls.is_some(), &settings.names)?,
        slow: Gate::slow(),
        quick: Gate::quick(),
        deltas: Gate::deltas(),
        downloads: Downloads::default(),
        tcp: Clients::new(settings.max_clients),
        unix: Clients::new(settings.max_clients),
    });
    let router = router(Arc::clone(&app));
    let task = tokio::spawn(connection::run(listeners, app, router, shutdown));
    Ok(Server { address, task })
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/api/v1/status", get(processes::status))
        .route("/api/v1/processes", get(processes::list))
        .route("/api/v1/processes/{pid}", get(processes::details))
        .route("/api/v1/processes/{pid}/timeline", get(processes::timeline))
        .route("/api/v1/processes/{pid}/top", get(profiles::top))
        .route("/api/v1/processes/{pid}/stacks", get(profiles::stacks))
        .route("/api/v1/processes/{pid}/goroutines", get(processes::goroutines))
        .route("/api/v1/processes/{pid}/gc", get(processes::gc))
        .route("/api/v1/processes/{pid}/profiles", get(processes::stored_of))
        .route("/api/v1/processes/{pid}/profiles/{id}", get(profiles::download_of))
        .route(
            "/api/v1/processes/{pid}/trace",
            post(processes::start_trace).delete(processes::stop_trace),
        )
        .route("/api/v1/decisions", get(processes::decisions))
        .route("/api/v1/profiles", get(processes::stored))
        .route("/api/v1/profiles/{id}", get(profiles::download))
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/debug/pprof", get(profiles::index))
        .route("/debug/pprof/", get(profiles::index))
        .route("/debug/pprof/heap", get(profiles::heap))
        .route("/debug/pprof/allocs", get(profiles::allocs))
        .route("/debug/pprof/goroutine", get(profiles::goroutine))
        .route("/healthz", get(page::healthz))
        .route(page::LOGIN_PATH, get(page::login).post(page::take_token))
        .route("/metrics", get(metrics::page))
        .fallback(page::file)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::check))
        .layer(CompressionLayer::new().compress_when(limits::worth_compressing))
        .layer(middleware::map_response(guard::harden))
        .with_state(app)
}
