//! Who may ask: token, Host, Origin, and the peer of the Unix socket; and the headers that keep answers safe.
//!
//! Invariant: what changes something, or tells anything about a process, passes [`Guard::admit`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::answer::Problem;
use super::limits::Client;
use super::listen::HttpError;
use super::token::Token;
use super::{App, page};

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Somebody who reached this address of the machine.
    Tcp { local: IpAddr },
    /// A process of this user.
    Unix { uid: Option<u32> },
}

/// What is needed to be let in.
pub(super) struct Guard {
    token: Token,
    /// What the cookie holds: another secret, so that the token itself never lies in a browser. It lasts as long as the
    /// daemon. Cookies do not tell ports apart: another server on the same name sees them.
    session: Token,
    address: Option<SocketAddr>,
    tls: bool,
    names: Vec<String>,
    own_uid: u32,
}

/// The token was shown, or is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Known,
    Unknown,
}

impl Guard {
    pub fn new(token: Token, address: Option<SocketAddr>, tls: bool, names: &[String]) -> Result<Self, HttpError> {
        Ok(Self {
            token,
            session: Token::random().map_err(HttpError::Random)?,
            address,
            tls,
            names: names.to_vec(),
            own_uid: nix::unistd::geteuid().as_raw(),
        })
    }

    /// Looks at all but the path. An error is a request that no token helps.
    pub fn admit(&self, peer: Peer, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Admission, Problem> {
        let forbidden = |why: &str| Err(Problem::new(StatusCode::FORBIDDEN, why));
        if let Peer::Unix { uid } = peer
            && !uid.is_some_and(|uid| uid == 0 || uid == self.own_uid)
        {
            return forbidden("the socket answers root alone");
        }
        if let Peer::Tcp { local } = peer {
            self.check_host(local, uri, headers)?;
        }
        self.check_origin(headers)?;
        if !method.is_safe() {
            let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
            // A form on another site can send no such request without being asked for permission first. The login is a
            // form, and worth nothing to one who does not know the token.
            let wanted = match uri.path() {
                page::LOGIN_PATH => "application/x-www-form-urlencoded",
                _ => "application/json",
            };
            if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(wanted)) {
                return Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!("requests that change something need `Content-Type: {wanted}`"),
                ));
            }
        }
        match peer {
            Peer::Unix { .. } => Ok(Admission::Known),
            Peer::Tcp { .. } if self.shows_token(headers) => Ok(Admission::Known),
            Peer::Tcp { .. } => Ok(Admission::Unknown),
        }
    }

    /// A page that has its name point here ("DNS rebinding") still asks for its own name.
    fn check_host(&self, local: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            _ => None,
        };
        let Some(host) = host else {
            return Err(Problem::bad_request("the request needs one Host"));
        };
        if self.is_own(local, &host) && uri.authority().is_none_or(|named| self.is_own(local, named)) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "this is not `{}`; ask for {}",
                super::answer::one_line(host.as_str()),
                self.address
                    .map_or_else(|| "localhost".to_owned(), |address| address.to_string())
            ),
        ))
    }

    fn is_own(&self, local: IpAddr, host: &Authority) -> bool {
        let Some(address) = self.address else { return false };
        if self.port(host) != Some(address.port()) {
            return false;
        }
        let name = host.host();
        let literal = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .unwrap_or(name);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip == address.ip().to_canonical() || ip == local || (ip.is_loopback() && local.is_loopback());
        }
        let is_listed = || {
            let name = without_dot(name);
            self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
        };
        (local.is_loopback() && name.eq_ignore_ascii_case("localhost")) || (self.tls && is_listed())
    }

    /// The port that an authority names; `None` for one that no browser sends.
    fn port(&self, authority: &Authority) -> Option<u16> {
        // Nobody has a user name in a Host.
        if authority.as_str().contains('@') {
            return None;
        }
        match authority.port() {
            Some(port) => Some(port.as_u16()),
            // "localhost:" has an empty port, which is none.
            None if authority.as_str().ends_with(':') => None,
            None => Some(if self.tls { 443 } else { 80 }),
        }
    }

    /// Whether an Origin and a Host name one place.
    fn is_same_place(&self, origin: &str, host: &str) -> bool {
        let Some((scheme, origin)) = origin.split_once("://") else {
            return false;
        };
        let place = |text: &str| {
            let authority: Authority = text.parse().ok()?;
            let port = self.port(&authority)?;
            Some((without_dot(authority.host()).to_ascii_lowercase(), port))
        };
        let wanted = if self.tls { "https" } else { "http" };
        scheme.eq_ignore_ascii_case(wanted) && place(origin).is_some_and(|origin| Some(origin) == place(host))
    }

    /// Requests that another site's page makes are refused, with or without a token.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let foreign = || Problem::new(StatusCode::FORBIDDEN, "requests from pages of other sites are refused");
        let text = |name: &HeaderName| match headers.get(name) {
            None => Ok(None),
            Some(value) => value.to_str().map(Some).map_err(|_| foreign()),
        };
        if let Some(origin) = text(&header::ORIGIN)? {
            let host = text(&header::HOST)?.unwrap_or_default();
            if !self.is_same_place(origin, host) {
                return Err(foreign());
            }
        }
        // Another port on this machine is the same site, but another program.
        match text(&HeaderName::from_static("sec-fetch-site"))? {
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) => Err(foreign()),
        }
    }

    fn shows_token(&self, headers: &HeaderMap) -> bool {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let Some((scheme, secret)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else {
                return false;
            };
            let secret = secret.trim();
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token.matches(secret);
            }
            if scheme.eq_ignore_ascii_case("basic") {
                let decoded = STANDARD
                    .decode(secret)
                    .ok()
                    .and_then(|pair| String::from_utf8(pair).ok());
                return decoded
                    .and_then(|pair| pair.split_once(':').map(|(_, password)| self.token.matches(password)))
                    .unwrap_or(false);
            }
            return false;
        }
        let name = self.cookie_name();
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|cookies| cookies.to_str().ok())
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(key, value)| key == name && self.session.matches(value))
    }

    /// With the port, since cookies have none.
    fn cookie_name(&self) -> String {
        format!("leaktrace-{}", self.address.map_or(0, |address| address.port()))
    }

    /// The cookie for one who shows the token.
    pub fn cookie(&self, token: &str) -> Option<HeaderValue> {
        let secure = if self.tls { "; Secure" } else { "" };
        self.token.matches(token).then(|| {
            HeaderValue::try_from(format!(
                "{}={}; Path=/; HttpOnly; SameSite=Strict{secure}",
                self.cookie_name(),
                self.session.reveal()
            ))
            .expect("the name is ours and the secret is hexadecimal digits")
        })
    }
}

/// A DNS name without the dot that may stand at its end.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Lets a request through or answers in the handler's stead.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == "/healthz" {
        return next.run(request).await;
    }
    let pprof = path.starts_with("/debug/pprof");
    let refuse = |problem: Problem| {
        if pprof {
            problem.into_text()
        } else {
            problem.into_response()
        }
    };
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return refuse(Problem::internal("the connection has no peer"));
    };
    let admission = app
        .guard
        .admit(peer, request.method(), request.uri(), request.headers());
    match admission {
        Err(problem) => refuse(problem),
        Ok(Admission::Known) => {
            if let Some(client) = request.extensions().get::<Arc<Client>>() {
                client.prove();
            }
            next.run(request).await
        }
        Ok(Admission::Unknown) if path == page::LOGIN_PATH || page::is_public(path) => next.run(request).await,
        Ok(Admission::Unknown) if matches!(path, "/" | "/index.html") => page::ask_for_token(),
        Ok(Admission::Unknown) => {
            let mut response = refuse(Problem::new(
                StatusCode::UNAUTHORIZED,
                "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`, or open /login",
            ));
            let challenge = HeaderValue::from_static("Bearer realm=\"leaktrace\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
    }
}

/// Headers that every answer has.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
