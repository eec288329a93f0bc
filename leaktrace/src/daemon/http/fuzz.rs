//! For `fuzzing`: a connection on which any bytes come, in front of a daemon that knows no process.
//!
//! All is the server's own but sockets: limits, guard, routes, answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use super::guard::{Guard, Peer};
use super::limits::{Clients, Downloads, Gate, Paced};
use super::token::Token;
use super::{App, connection, router};
use crate::api;
use crate::daemon::backend::{Backend, Failure, ProfileKind, Snapshot};
use crate::report::profile::Profile;

/// The longest that a caller who has sent all may have to wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// A daemon that watches nobody.
struct Nobody;

impl Backend for Nobody {
    fn processes(&self) -> Arc<Snapshot> {
        Arc::default()
    }

    fn decisions(&self, _: Option<u32>) -> Vec<api::Decision> {
        Vec::new()
    }

    fn timeline(&self, pid: u32, _: u64, _: u64) -> Result<api::Timeline, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn profile(&self, _: u32, _: ProfileKind) -> Result<Profile, Failure> {
        Ok(Profile::default())
    }

    fn goroutines(&self, pid: u32, _: Duration) -> Result<api::Goroutines, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn goroutine_dump(&self, pid: u32) -> Result<String, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn gc(&self, pid: u32) -> Result<api::Gc, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn stored(&self, _: Option<u32>) -> Result<Vec<api::StoredProfile>, Failure> {
        Ok(Vec::new())
    }

    fn stored_profile(&self, id: &str) -> Result<Vec<u8>, Failure> {
        Err(Failure::UnknownProfile(id.to_owned()))
    }

    fn start_trace(&self, pid: u32, _: Option<u64>) -> Result<api::Tracing, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn stop_trace(&self, pid: u32) -> Result<api::Tracing, Failure> {
        Err(Failure::UnknownProcess(pid))
    }

    fn status(&self) -> api::Status {
        api::Status::default()
    }
}

/// Serves what comes, from root on the socket or from somebody on TCP.
pub(crate) async fn answer_any(bytes: &[u8], is_root: bool) {
    let address = "127.0.0.1:7373".parse().expect("an address");
    let token = Token::random().expect("random bytes");
    let app = Arc::new(App {
        backend: Arc::new(Nobody),
        guard: Guard::new(token, Some(address), false, &[]).expect("random bytes"),
        slow: Gate::slow(),
        quick: Gate::quick(),
        deltas: Gate::deltas(),
        downloads: Downloads::default(),
        tcp: Clients::new(1),
        unix: Clients::new(1),
    });
    let place = app.unix.enter().expect("the first one");
    let peer = if is_root {
        Peer::Unix { uid: Some(0) }
    } else {
        Peer::Tcp { local: address.ip() }
    };
    let (near, far) = tokio::io::duplex(64 << 10);
    let (_stop, stopped) = watch::channel(false);
    let served = connection::serve(Paced::new(far), peer, place, router(Arc::clone(&app)), stopped);
    let asked = async {
        let (mut read, mut write) = tokio::io::split(near);
        let mut answer = Vec::new();
        let (_, _) = tokio::join!(
            async {
                // A caller who is sent away early is not heard to the end.
                let _ = write.write_all(bytes).await;
                let _ = write.shutdown().await;
            },
            read.read_to_end(&mut answer),
        );
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "no answer of HTTP");
    };
    let both = async { tokio::join!(served, asked) };
    // A request may ask to wait (`seconds=`), and is then left.
    let waits = bytes.windows(8).any(|part| part == b"seconds=");
    let time = if waits { Duration::from_millis(20) } else { PATIENCE };
    let done = timeout(time, both).await;
    assert!(done.is_ok() || waits, "a caller waits for an answer");
}
