//! What the administrator says of a target, and whether it can be meant.
//!
//! Reads nothing but the settings themselves; `try_out` in `target` looks at this machine as well. Invariant: settings
//! that pass [`TargetSettings::check`] can be made into a sender.

use std::{path::PathBuf, time::Duration};

use reqwest::{
    Url,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};

/// How a target wants its profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// OTLP profiles over gRPC.
    OtlpGrpc,
    /// OTLP profiles as protocol buffers over HTTP.
    OtlpHttp,
    /// Pyroscope's `/ingest`.
    Pyroscope,
}

impl Kind {
    /// All of them, and how they are written in the configuration.
    pub const ALL: [(&'static str, Self); 3] = [
        ("otlp-grpc", Self::OtlpGrpc),
        ("otlp-http", Self::OtlpHttp),
        ("pyroscope", Self::Pyroscope),
    ];

    /// How they are written.
    pub const NAMES: [&'static str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].0;
            index += 1;
        }
        names
    };

    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind)
    }
}

/// Bytes that wait for one target at most, unless told otherwise.
pub const QUEUE_BYTES: usize = 16 << 20;

/// A place that profiles are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSettings {
    /// Its name in the configuration; unique among the targets.
    pub name: String,
    /// What it speaks.
    pub kind: Kind,
    /// Where it is: `http://` or `https://`. For OTLP over HTTP `/v1development/profiles` is appended when there is no
    /// path; for Pyroscope `/ingest` is appended unless the path ends so.
    pub url: String,
    /// Headers sent along, such as `X-Scope-OrgID`.
    pub headers: Vec<(String, String)>,
    /// File with a token that is sent as `Authorization: Bearer`. It is read again for every attempt.
    pub token_file: Option<PathBuf>,
    /// Longest time that one attempt may take.
    pub timeout: Duration,
    /// Most profiles that wait, not counting the one that is being sent.
    pub queue_profiles: usize,
    /// Most bytes that waiting profiles take in memory.
    pub queue_bytes: usize,
    /// OTLP: send the pprof file along, for receivers that keep it.
    pub original_payload: bool,
}

/// Why settings cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The URL cannot be parsed.
    #[error("`{url}` is not a URL: {cause}; give something like `http://127.0.0.1:4318`")]
    Url {
        /// As it was given.
        url: String,
        /// What the parser says.
        cause: String,
    },
    /// Neither `http` nor `https`, or no host.
    #[error("`{0}` has to begin with `http://` or `https://` and to name a host")]
    Scheme(String),
    /// Fragments are never sent, and passwords do not belong where they are printed.
    #[error("the URL may have neither `#` nor user or password; use `token_file` or `headers`")]
    UrlPart,
    /// gRPC has no paths.
    #[error("`{0}` has a path or a query, which gRPC does not use; give scheme, host and port alone")]
    Path(String),
    /// A header that cannot be sent.
    #[error("`{0}` is not the name of a header, or its value has characters that a header cannot have")]
    Header(String),
    /// A header that the sender makes itself.
    #[error("the header `{0}` is made by the sender and cannot be set")]
    ReservedHeader(String),
    /// Two ways to say who we are.
    #[error("`token_file` and a header `authorization` exclude each other")]
    TwoTokens,
    /// Nothing could ever be sent.
    #[error("`{0}` may not be 0")]
    Zero(&'static str),
    /// The token cannot be sent.
    #[error("failed to read the token file `{}`: {cause}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// This machine has not what sending takes, such as certificates.
    #[error("nothing can be sent from this machine: {0}")]
    Machine(String),
}

impl SettingsError {
    /// The key of the configuration that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Url { .. } | Self::Scheme(_) | Self::UrlPart | Self::Path(_) | Self::Machine(_) => "url",
            Self::Header(_) | Self::ReservedHeader(_) => "headers",
            Self::TwoTokens | Self::Token { .. } => "token_file",
            Self::Zero("timeout") => "timeout",
            Self::Zero(_) => "queue",
        }
    }
}

/// Headers that belong to the transport.
const RESERVED: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header, in lower case, is made by the sender and cannot be set.
pub fn is_reserved_header(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with("grpc-")
}

/// Path of OTLP profiles over HTTP.
const OTLP_PATH: &str = "/v1development/profiles";

impl TargetSettings {
    /// Whether a sender can be made of these settings. Connects to nothing and reads no file.
    ///
    /// # Errors
    /// The first thing that cannot be meant.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (name, zero) in [
            ("timeout", self.timeout.is_zero()),
            ("queue_profiles", self.queue_profiles == 0),
            ("queue_bytes", self.queue_bytes == 0),
        ] {
            if zero {
                return Err(SettingsError::Zero(name));
            }
        }
        self.endpoint()?;
        self.header_map().map(drop)
    }

    /// Where requests go.
    pub(super) fn endpoint(&self) -> Result<Url, SettingsError> {
        let mut url = Url::parse(&self.url).map_err(|cause| SettingsError::Url {
            url: self.url.clone(),
            cause: cause.to_string(),
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(SettingsError::Scheme(self.url.clone()));
        }
        if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(SettingsError::UrlPart);
        }
        let bare = matches!(url.path(), "" | "/");
        match self.kind {
            Kind::OtlpGrpc if !bare || url.query().is_some() => return Err(SettingsError::Path(self.url.clone())),
            Kind::OtlpHttp if bare => url.set_path(OTLP_PATH),
            Kind::Pyroscope if !url.path().trim_end_matches('/').ends_with("/ingest") => {
                let path = format!("{}/ingest", url.path().trim_end_matches('/'));
                url.set_path(&path);
            }
            _ => {}
        }
        Ok(url)
    }

    /// The administrator's headers; values are marked so that nothing prints them.
    pub(super) fn header_map(&self) -> Result<HeaderMap, SettingsError> {
        let mut map = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let bad = || SettingsError::Header(name.clone());
            let key = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
            if is_reserved_header(key.as_str()) {
                return Err(SettingsError::ReservedHeader(name.clone()));
            }
            // gRPC wants values of names that end so in base64, and panics are not an answer.
            if self.kind == Kind::OtlpGrpc && key.as_str().ends_with("-bin") {
                return Err(bad());
            }
            if self.token_file.is_some() && key == AUTHORIZATION {
                return Err(SettingsError::TwoTokens);
            }
            let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
            if self.kind == Kind::OtlpGrpc && value.to_str().is_err() {
                return Err(bad());
            }
            value.set_sensitive(true);
            map.append(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(kind: Kind, url: &str) -> TargetSettings {
        TargetSettings {
            name: "a".to_owned(),
            kind,
            url: url.to_owned(),
            headers: Vec::new(),
            token_file: None,
            timeout: Duration::from_secs(1),
            queue_profiles: 1,
            queue_bytes: 1,
            original_payload: false,
        }
    }

    fn endpoint(kind: Kind, url: &str) -> String {
        match settings(kind, url).endpoint() {
            Ok(url) => url.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn paths_are_completed() {
        assert_eq!(
            endpoint(Kind::OtlpHttp, "http://a:4318"),
            "http://a:4318/v1development/profiles"
        );
        assert_eq!(
            endpoint(Kind::OtlpHttp, "http://a:4318/"),
            "http://a:4318/v1development/profiles"
        );
        assert_eq!(endpoint(Kind::OtlpHttp, "https://a/x?y=z"), "https://a/x?y=z");
        assert_eq!(endpoint(Kind::Pyroscope, "http://a:4040"), "http://a:4040/ingest");
        assert_eq!(endpoint(Kind::Pyroscope, "http://a/p/"), "http://a/p/ingest");
        assert_eq!(endpoint(Kind::Pyroscope, "http://a/p/ingest"), "http://a/p/ingest");
        assert_eq!(endpoint(Kind::OtlpGrpc, "http://a:4317"), "http://a:4317/");
    }

    #[test]
    fn urls_that_cannot_be_meant() {
        insta::assert_snapshot!(endpoint(Kind::OtlpHttp, "a:4318/x"), @"`a:4318/x` has to begin with `http://` or `https://` and to name a host");
        insta::assert_snapshot!(endpoint(Kind::OtlpHttp, "nothing"), @"`nothing` is not a URL: relative URL without a base; give something like `http://127.0.0.1:4318`");
        insta::assert_snapshot!(endpoint(Kind::OtlpGrpc, "http://a/b"), @"`http://a/b` has a path or a query, which gRPC does not use; give scheme, host and port alone");
        insta::assert_snapshot!(endpoint(Kind::Pyroscope, "http://u:p@a"), @"the URL may have neither `#` nor user or password; use `token_file` or `headers`");
    }

    #[test]
    fn headers_that_cannot_be_sent() {
        let with = |name: &str, value: &str| {
            let mut settings = settings(Kind::OtlpGrpc, "http://a");
            settings.headers.push((name.to_owned(), value.to_owned()));
            settings
        };
        assert_eq!(with("X-Scope-OrgID", "1").check(), Ok(()));
        assert_eq!(with("a b", "1").check(), Err(SettingsError::Header("a b".to_owned())));
        assert_eq!(
            with("a", "1\r\nb: 2").check(),
            Err(SettingsError::Header("a".to_owned()))
        );
        assert_eq!(
            with("x-bin", "1").check(),
            Err(SettingsError::Header("x-bin".to_owned()))
        );
        assert_eq!(with("a", "ü").check(), Err(SettingsError::Header("a".to_owned())));
        assert_eq!(
            with("Content-Type", "a").check(),
            Err(SettingsError::ReservedHeader("Content-Type".to_owned()))
        );
        let mut both = with("Authorization", "Basic eA==");
        assert_eq!(both.check(), Ok(()));
        both.token_file = Some(PathBuf::from("/t"));
        assert_eq!(both.check(), Err(SettingsError::TwoTokens));
        both.timeout = Duration::ZERO;
        assert_eq!(both.check(), Err(SettingsError::Zero("timeout")));
    }
}
