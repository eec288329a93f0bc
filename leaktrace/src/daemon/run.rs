//! The daemon's life: start, signals, end.
//!
//! Everything that can be wrong is found before anything is traced: configuration, store, addresses. It ends within five
//! seconds of SIGTERM: last profiles, then no probe anywhere.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock, atomic::AtomicU32, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bpf::usage,
    monitor::{
        Monitor,
        clock::{Clock, wall},
        table::Scope,
    },
    proc::memory,
    session::signals,
};

use super::{
    backend::Snapshot,
    config::{Config, ConfigError, Http},
    controller::{Controller, Message},
    exporter::{Exporter, Job},
    http::{self, HttpError},
    own, privileges,
    push::Pusher,
    service::{Service, lock},
    store::{self, Store, StoreError},
    trace::engine::Engine,
};

/// How long last profiles may take after SIGTERM.
const LAST_PROFILES: Duration = Duration::from_millis(2500);
/// How long all threads may take to end: the profiles, and what then takes the probes away.
const LAST_THREADS: Duration = Duration::from_millis(4500);
/// And how long where none of them is stuck.
const SLOW_THREADS: Duration = Duration::from_secs(30);
/// How long push targets may take after that.
const LAST_PUSHES: Duration = Duration::from_millis(1000);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot listen.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A thread, a runtime or a signal handler could not be had.
    #[error("failed to start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What to run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub config: Config,
    /// Where it was read from, and is read again on SIGHUP; `None`: the default place.
    pub path: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Only before it has started: see [`DaemonError`].
pub fn run(options: Options) -> Result<(), DaemonError> {
    let start = |what| move |source| DaemonError::Start { what, source };
    privileges::raise_file_limit();
    memory::keep_few_arenas();
    let config = options.config.clone();
    let store = Store::open(store_settings(&config))?;
    // Before any thread is made: capabilities belong to threads.
    if let Err(error) = privileges::drop_capabilities() {
        tracing::warn!("failed to give up capabilities that are not needed: {error}");
    }
    signals::check().map_err(start("the handlers of signals"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("server")
        .enable_all()
        .build()
        .map_err(start("the servers' threads"))?;
    let host = host();
    let pusher = {
        let _inside = runtime.enter();
        Pusher::start(config.push.clone(), &host)
    };
    let (messages, told) = mpsc::channel();
    let service = Arc::new(Service {
        clock: Clock::default(),
        monitor: Mutex::new(Monitor::new(Scope::Machine, config.watch.monitor())),
        engine: Engine::start().map_err(start("the engine's thread"))?,
        messages,
        decided: RwLock::default(),
        store: Mutex::new(store),
        pusher,
        snapshot: RwLock::new(Arc::new(Snapshot::default())),
        published: AtomicU32::new(0),
        own: Mutex::new(own::Figures::default()),
        host,
        started: wall(),
        troubles: Mutex::new(HashMap::new()),
        config: RwLock::new(Arc::new(config)),
    });
    service.trouble("budget of probes", usage::obstacle());
    runtime.block_on(serve(&service, told, options))
}

async fn serve(service: &Arc<Service>, told: mpsc::Receiver<Message>, options: Options) -> Result<(), DaemonError> {
    let start = |what| move |source| DaemonError::Start { what, source };
    let mut hangup = signal(SignalKind::hangup()).map_err(start("the handler of SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(start("the handler of SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start("the handler of SIGINT"))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let backend = Arc::clone(service);
    let server = http::serve(http_settings(&options.config.http), backend, shutdown).await?;
    announce(&options.config, &server);

    let (jobs, todo) = mpsc::channel();
    let controller = Controller::new(Arc::clone(service), jobs.clone());
    let controlling = thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || controller.run(&told))
        .map_err(start("the controller's thread"))?;
    let exporter = Exporter::new(Arc::clone(service));
    let exporting = thread::Builder::new()
        .name("exporter".to_owned())
        .spawn(move || exporter.run(&todo))
        .map_err(start("the exporting thread"))?;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let mut watchdog = watchdog();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Reloading]);
                if reload(service, &options) {
                    let _ = service.messages.send(Message::Reload);
                }
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
            }
            () = tick(&mut watchdog) => {
                if service.stuck().is_none() {
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!("shutting down: writing final profiles, then detaching");
    let deadline = Instant::now() + LAST_PROFILES;
    let _ = service.messages.send(Message::Stop);
    let _ = jobs.send(Job::Finish { deadline });
    let _ = stop.send(());
    let waited = Arc::clone(service);
    let service = Arc::clone(service);
    let ending = tokio::task::spawn_blocking(move || {
        let _ = exporting.join();
        service.engine.stop();
        let _ = controlling.join();
        service
    });
    tokio::pin!(ending);
    let mut ended = tokio::time::timeout(LAST_THREADS, &mut ending).await;
    // One that has not begun to end by now waits for a process. On a slow machine they end later, but they do.
    if ended.is_err() && waited.engine.busy().is_none_or(|time| time < LAST_THREADS) {
        ended = tokio::time::timeout(SLOW_THREADS, &mut ending).await;
    }
    match ended {
        Ok(Ok(service)) => {
            service.pusher.flush(Instant::now() + LAST_PUSHES).await;
        }
        Ok(Err(_)) => {}
        Err(_) => {
            // The kernel takes away what they hold. Returning would wait for them in the runtime.
            tracing::error!("a thread is stuck in a process that does not answer; ending without it");
            std::process::exit(0);
        }
    }
    server.finished().await;
    Ok(())
}

fn announce(config: &Config, server: &http::Server) {
    if let Some(address) = server.address() {
        let scheme = if config.http.tls_certificate.is_some() {
            "https"
        } else {
            "http"
        };
        eprintln!(
            "leaktrace: listening on {scheme}://{address}/, token in {}",
            config.http.token_file.display()
        );
    }
    if let Some(socket) = &config.http.socket {
        eprintln!("leaktrace: listening on {}", socket.display());
    }
    eprintln!("leaktrace: profiles go to {}", config.export.directory.display());
}

/// Reads the configuration again. Returns whether there is a new one; an impossible one changes nothing.
fn reload(service: &Service, options: &Options) -> bool {
    let read = match &options.path {
        Some(path) => Config::load(path),
        None => Config::load_default(),
    };
    let new = match read {
        Ok(new) => new,
        Err(error) => {
            service.trouble("configuration", Some(format!("configuration not read again: {error}")));
            return false;
        }
    };
    let old = service.config();
    let waiting = old.restart_needed(&new);
    service.trouble(
        "configuration",
        (!waiting.is_empty()).then(|| format!("a restart is needed for: {}", waiting.join(", "))),
    );
    lock(&service.store).configure(store_settings(&new));
    service.pusher.reload(new.push.clone());
    *service.config.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(new);
    tracing::info!("configuration reloaded");
    true
}

fn watchdog() -> Option<tokio::time::Interval> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros)
        .then(|| tokio::time::interval(Duration::from_micros((micros / 2).max(1000))))
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        directory: config.export.directory.clone(),
        keep_count_per_process: usize::try_from(config.export.keep_count).unwrap_or(usize::MAX),
        keep_age: config.export.keep_age,
        keep_bytes: config.export.keep_bytes,
        ..store::Settings::default()
    }
}

fn http_settings(http: &Http) -> http::Settings {
    http::Settings {
        listen: http.listen,
        socket: http.socket.clone(),
        token_file: http.token_file.clone(),
        tls: http
            .tls_certificate
            .clone()
            .zip(http.tls_key.clone())
            .map(|(certificate, key)| http::TlsFiles { certificate, key }),
        names: http.names.clone(),
        max_clients: http.max_clients,
    }
}
