//! What a caller may take: connections, time, memory, calls into the backend.
//!
//! Invariant: every wait for a caller ends, and what a caller makes the daemon hold is bounded whoever it is.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Extensions, HeaderMap, StatusCode, Version, header};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::answer::Problem;

/// Bytes of a request's head.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Bytes of a request's body.
pub(super) const MAX_BODY: usize = 64 << 10;
/// Time for a request's head, counted from the last answer.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(20);
/// Time for a request's body, and for a TLS handshake.
pub(super) const BODY_TIME: Duration = Duration::from_secs(10);
/// Bytes of one answer before compression.
pub(super) const MAX_ANSWER: usize = 64 << 20;
/// Bytes of all answers that callers have not taken yet.
const MAX_DOWNLOADS: usize = 192 << 20;
/// Answers up to this size are not counted among the downloads.
const SMALL: usize = 64 << 10;
/// A caller must take [`PACE_BYTES`] in this time, or all there is.
const PACE_TIME: Duration = Duration::from_secs(15);
const PACE_BYTES: usize = 256 << 10;

/// Lets a few calls at a time into the backend, on threads that may wait.
pub(super) struct Gate {
    permits: Arc<Semaphore>,
    /// How long a call waits for its turn.
    patience: Duration,
    what: &'static str,
}

impl Gate {
    pub fn slow() -> Self {
        Self::new(4, Duration::from_secs(5), "reading from processes")
    }

    pub fn quick() -> Self {
        Self::new(16, Duration::from_secs(2), "answering")
    }

    pub fn deltas() -> Self {
        Self::new(4, Duration::ZERO, "waiting between two profiles")
    }

    pub fn new(permits: usize, patience: Duration, what: &'static str) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            patience,
            what,
        }
    }

    /// Waits for a turn.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::busy(format!("the daemon is busy {}; try again in a moment", self.what));
        let permits = Arc::clone(&self.permits);
        if self.patience.is_zero() {
            return permits.try_acquire_owned().map_err(|_| busy());
        }
        match tokio::time::timeout(self.patience, permits.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }

    /// Runs the work on a thread that may wait. A caller that leaves does not end it, so its turn lasts as long.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.enter().await?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        task.await
            .map_err(|_| Problem::internal("the daemon failed to answer: see its log"))?
    }
}

/// Connections of one listener.
pub(super) struct Clients {
    max: usize,
    open: Mutex<Open>,
    refused: AtomicU64,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// Oldest first.
    clients: BTreeMap<u64, Arc<Client>>,
}

/// A connection.
#[derive(Default)]
pub(super) struct Client {
    /// It has shown that it may ask.
    known: AtomicBool,
    leave: Notify,
}

impl Client {
    /// It has shown that it may ask: it is not sent away for another.
    pub fn prove(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Returns when its place is needed.
    pub async fn sent_away(&self) {
        self.leave.notified().await;
    }
}

/// A place among the connections, given back when dropped.
pub(super) struct Place {
    clients: Arc<Clients>,
    number: u64,
    pub client: Arc<Client>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.open().clients.remove(&self.number);
    }
}

impl Clients {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            open: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// A place for one more. Where all are taken the oldest that has not shown a token goes, so that nobody without one
    /// can keep others out; where all have, the new one is refused.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.clients.len() >= self.max {
            let oldest = open
                .clients
                .iter()
                .find(|(_, client)| !client.known.load(Ordering::Relaxed))
                .map(|(number, _)| *number);
            self.refused.fetch_add(1, Ordering::Relaxed);
            open.clients.remove(&oldest?)?.leave.notify_one();
        }
        let number = open.next;
        open.next += 1;
        let client = Arc::new(Client::default());
        open.clients.insert(number, Arc::clone(&client));
        drop(open);
        Some(Place {
            clients: Arc::clone(self),
            number,
            client,
        })
    }

    /// Connections open now.
    pub fn len(&self) -> usize {
        self.open().clients.len()
    }

    /// Connections that were refused or sent away because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        // Nothing that holds the lock can leave it half-changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers that callers have not taken yet.
pub(super) struct Downloads {
    /// In KiB.
    room: Arc<Semaphore>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_DOWNLOADS >> 10)),
        }
    }
}

impl Downloads {
    /// A body that counts among the downloads until it is sent.
    pub fn body(&self, bytes: Vec<u8>) -> Result<Body, Problem> {
        if bytes.len() <= SMALL {
            return Ok(Body::from(bytes));
        }
        let size = u32::try_from(bytes.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(size)
            .map_err(|_| Problem::busy("too many large answers are being sent; try again in a moment"))?;
        Ok(Body::new(Held {
            bytes: Bytes::from(bytes),
            _room: room,
        }))
    }
}

/// A body that holds its room among the downloads.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        // In pieces, so that the room is held until the last of them is on its way.
        let piece = self.bytes.len().min(SMALL);
        Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// Bytes up to [`MAX_ANSWER`].
#[derive(Default)]
pub(super) struct Bounded {
    bytes: Vec<u8>,
}

impl Bounded {
    pub fn into_inner(self) -> Vec<u8> {
        self.bytes
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_ANSWER {
            return Err(io::Error::other(format!("it takes more than {} MiB", MAX_ANSWER >> 20)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an answer is text that shrinks; profiles are compressed already.
pub(super) fn worth_compressing(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    length.is_none_or(|length: u64| length >= 512)
        && kind.is_some_and(|kind| {
            ["text/", "application/json", "application/javascript", "image/svg+xml"]
                .iter()
                .any(|text| kind.starts_with(text))
        })
}

/// A connection whose other end must take what is written at a pace.
pub(super) struct Paced<S> {
    stream: S,
    /// Since a write could not go on.
    due: Option<Pin<Box<Sleep>>>,
    /// Written since then.
    taken: usize,
    time: Duration,
}

impl<S> Paced<S> {
    pub fn new(stream: S) -> Self {
        Self::with(stream, PACE_TIME)
    }

    pub fn with(stream: S, time: Duration) -> Self {
        Self {
            stream,
            due: None,
            taken: 0,
            time,
        }
    }

    fn pace<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>, bytes: usize) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.taken += bytes;
            if self.taken >= PACE_BYTES {
                self.due = None;
            }
            return written;
        }
        let due = self.due.get_or_insert_with(|| {
            self.taken = 0;
            Box::pin(tokio::time::sleep_until(Instant::now() + self.time))
        });
        ready!(due.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the other end does not read",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let count = match &written {
            Poll::Ready(Ok(count)) => *count,
            _ => 0,
        };
        self.pace(cx, written, count)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            // All that there was is taken.
            self.due = None;
        }
        self.pace(cx, flushed, 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.pace(cx, shut, 0)
    }
}
