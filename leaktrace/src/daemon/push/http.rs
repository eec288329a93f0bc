//! POST requests, as OTLP over HTTP and Pyroscope need them.
//!
//! Owns the client, what is read of an answer, and where redirects may lead. Knows nothing of bodies. Invariants: at
//! most [`MOST_ANSWER`] bytes of an answer are held; nothing is sent to a host that the settings do not name.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use reqwest::{
    Client, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
    redirect,
};

use super::{
    failure::{Failure, causes, retry_after},
    settings::{SettingsError, TargetSettings},
    token,
};

/// Most bytes of an answer that are read, after decompression.
pub(super) const MOST_ANSWER: usize = 64 << 10;

/// Redirects that are followed, one after the other.
const MOST_REDIRECTS: usize = 3;

/// Sends to one target.
#[derive(Debug)]
pub(super) struct Poster {
    client: Client,
    url: Url,
    token_file: Option<PathBuf>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// What its header `Retry-After` asks for.
    pub after: Option<Duration>,
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its body; `None` when it was longer than [`MOST_ANSWER`] or broke off.
    pub body: Option<Vec<u8>>,
}

impl Poster {
    /// A client of its own, which keeps its connection.
    pub(super) fn new(settings: &TargetSettings) -> Result<Self, String> {
        let url = settings.endpoint().map_err(|error| error.to_string())?;
        let headers = settings
            .header_map()
            .map_err(|error: SettingsError| error.to_string())?;
        let mut builder = Client::builder()
            .user_agent(concat!("leaktrace/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(connect_timeout(settings.timeout))
            .pool_max_idle_per_host(1)
            .redirect(redirect::Policy::custom(follow));
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            client: builder.build().map_err(|error| causes(&error))?,
            url,
            token_file: settings.token_file.clone(),
        })
    }

    /// Where requests go.
    pub(super) const fn url(&self) -> &Url {
        &self.url
    }

    /// Sends a body and reads the answer.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when nobody was reached, [`Failure::Later`] when the answer did not come in time.
    pub(super) async fn post(
        &self,
        url: Url,
        content_type: &str,
        gzipped: bool,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let mut request = self.client.post(url).header(CONTENT_TYPE, content_type).body(body);
        if gzipped {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        if let Some(path) = &self.token_file {
            request = request.header(AUTHORIZATION, token::authorization(path).await?);
        }
        let mut response = request.send().await.map_err(|error| {
            let (connect, builder) = (error.is_connect(), error.is_builder());
            let causes = causes(&error.without_url());
            if connect {
                Failure::Unreachable(format!("failed to reach the receiver: {causes}"))
            } else if builder {
                Failure::Permanent(format!("failed to make a request: {causes}"))
            } else {
                // Once connected, it is the receiver that hangs up, and this profile may be why.
                Failure::Later {
                    message: format!("the receiver did not answer: {causes}"),
                    after: None,
                }
            }
        })?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let after = text(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        let content_type = text(CONTENT_TYPE).unwrap_or_default().to_owned();
        let status = response.status();
        let mut body = Some(Vec::new());
        while let Some(bytes) = &mut body {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= MOST_ANSWER => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                // The status counts, whatever becomes of the rest. Dropping the response closes the connection.
                Ok(Some(_)) | Err(_) => body = None,
            }
        }
        Ok(Answer {
            status,
            after,
            content_type,
            body,
        })
    }
}

/// Time for the connection alone: shorter, so that a receiver that is not there is told from one that is silent.
pub(super) fn connect_timeout(timeout: Duration) -> Duration {
    timeout.mul_f64(0.75)
}

/// Follows what keeps method and body (307, 308), within the host that the settings name.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let keeps = matches!(attempt.status().as_u16(), 307 | 308);
    let same = attempt
        .previous()
        .first()
        .is_some_and(|first| first.origin() == attempt.url().origin());
    if keeps && same && attempt.previous().len() <= MOST_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// Whether a URL leads to this machine: such requests never go through a proxy.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
