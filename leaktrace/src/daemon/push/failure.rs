//! What came of an attempt, and whether another one makes sense.
//!
//! Judges answers; sends nothing and waits for nothing. Invariant: text of a receiver is shortened and free of control
//! characters before anyone sees it.

use std::{
    error::Error,
    iter,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;
use reqwest::StatusCode;
use tonic::Code;

/// A profile arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Parts that were sent: one per sample type for OTLP.
    pub parts: u64,
    /// Parts that the receiver did not take.
    pub rejected: u64,
    /// What the receiver said about it.
    pub note: String,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The same profile would fail again.
    Permanent(String),
    /// There was no answer because nobody was reached, or a file of ours could not be read.
    Unreachable(String),
    /// The receiver said "later", or nothing until time was up.
    Later {
        /// What happened.
        message: String,
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
    },
}

impl Failure {
    /// What happened.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Permanent(message) | Self::Unreachable(message) | Self::Later { message, .. } => message,
        }
    }
}

/// Which statuses mean "later".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retryable {
    /// 429, 502, 503 and 504, as OTLP lists them.
    Otlp,
    /// Those, and 408 and 500, which Pyroscope gives when a body came slowly or a part of it was down.
    Pyroscope,
}

/// What an HTTP status that is no success means.
pub(super) fn of_http(status: StatusCode, after: Option<Duration>, said: &str, retryable: Retryable) -> Failure {
    let mut message = format!("the receiver answered {status}");
    if status.is_redirection() {
        message.push_str(" to another place, which is not followed; give that place as `url`");
    }
    let said = printable(said);
    if !said.is_empty() {
        message.push_str(": ");
        message.push_str(&said);
    }
    let later = match status.as_u16() {
        429 | 502 | 503 | 504 => true,
        408 | 500 => retryable == Retryable::Pyroscope,
        _ => false,
    };
    if later {
        Failure::Later { message, after }
    } else {
        Failure::Permanent(message)
    }
}

/// What a gRPC status means, by the table of OTLP.
pub(super) fn of_grpc(status: &tonic::Status) -> Failure {
    let code = status.code();
    let said = printable(status.message());
    // A status with a source was made on this side: the connection failed, the receiver said nothing.
    if let Some(source) = Error::source(status) {
        let causes = causes(source);
        return if chain(source).any(|cause| cause.is::<tonic::ConnectError>()) {
            Failure::Unreachable(format!("failed to reach the receiver: {causes}"))
        } else {
            Failure::Later {
                message: format!("the receiver did not answer: {causes}"),
                after: None,
            }
        };
    }
    let name = format!("{code:?}");
    let message = match said.as_str() {
        "" => format!("the receiver answered {name}"),
        said => format!("the receiver answered {name}: {said}"),
    };
    let after = retry_info(status.details());
    let later = match code {
        // Also what an answer gives that is larger than is read; the profile was taken then, or will never be.
        Code::OutOfRange => !said.contains("message length too large"),
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::Unavailable | Code::DataLoss => true,
        Code::ResourceExhausted => after.is_some(),
        _ => false,
    };
    if later {
        Failure::Later {
            message,
            after: after.filter(|after| !after.is_zero()),
        }
    } else {
        Failure::Permanent(message)
    }
}

/// The message of a `google.rpc.Status`, which OTLP receivers send as the body of an error.
pub(super) fn status_message(body: &[u8]) -> Option<String> {
    RpcStatus::decode(body).ok().map(|status| status.message)
}

/// The time in a `RetryInfo` among the details of a `google.rpc.Status`.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).unwrap_or(0);
    let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
    Some(Duration::new(seconds, nanos))
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Details of a `google.rpc.Status` with one `RetryInfo`, as a receiver would send them.
#[cfg(test)]
pub(super) fn retry_details(seconds: i64, nanos: i32) -> Vec<u8> {
    let info = RetryInfo {
        retry_delay: Some(Delay { seconds, nanos }),
    };
    RpcStatus {
        code: 14,
        message: String::new(),
        details: vec![Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        }],
    }
    .encode_to_vec()
}

/// A `google.rpc.Status` with a message.
#[cfg(test)]
pub(super) fn status_body(message: &str) -> Vec<u8> {
    RpcStatus {
        code: 3,
        message: message.to_owned(),
        details: Vec::new(),
    }
    .encode_to_vec()
}

/// What a header `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        return value.parse().ok().map(Duration::from_secs);
    }
    let then = UNIX_EPOCH + Duration::from_secs(http_date(value)?);
    Some(then.duration_since(now).unwrap_or(Duration::ZERO))
}

/// Seconds since 1970 of a date as HTTP writes it today: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, date) = text.split_once(", ")?;
    let mut parts = date.split(' ');
    let mut next = || parts.next();
    let day: u64 = next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year: u64 = next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut time = next()?.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if next()? != "GMT" || next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970, counting years from March so that the leap day comes last.
    let (years, months) = if month >= 2 {
        (year, month - 2)
    } else {
        (year - 1, month + 10)
    };
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Text of a receiver as it may be shown: one line of at most 300 characters.
pub(super) fn printable(text: &str) -> String {
    const MOST: usize = 300;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.trim().chars().take(MOST).map(clean).collect();
    if text.trim().chars().nth(MOST).is_some() {
        line.push('…');
    }
    line
}

/// An error and what caused it, in a line.
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            let colon = if line.is_empty() { "" } else { ": " };
            line.push_str(colon);
            line.push_str(&text);
        }
    }
    printable(&line)
}

/// An error and its causes.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| error.source()).take(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let later = |status: u16, kind| {
            let status = StatusCode::from_u16(status).expect("a status");
            matches!(of_http(status, None, "", kind), Failure::Later { .. })
        };
        for status in [429, 502, 503, 504] {
            assert!(later(status, Retryable::Otlp) && later(status, Retryable::Pyroscope));
        }
        for status in [408, 500] {
            assert!(!later(status, Retryable::Otlp) && later(status, Retryable::Pyroscope));
        }
        for status in [301, 307, 400, 401, 403, 404, 413, 422, 501] {
            assert!(!later(status, Retryable::Otlp) && !later(status, Retryable::Pyroscope));
        }
        let said = "no\r\n\u{1b}[31msuch tenant";
        let failure = of_http(StatusCode::UNAUTHORIZED, None, said, Retryable::Otlp);
        assert_eq!(
            failure.message(),
            "the receiver answered 401 Unauthorized: no   [31msuch tenant"
        );
    }

    #[test]
    fn grpc_codes() {
        let judge = |code, details: Vec<u8>| of_grpc(&tonic::Status::with_details(code, "why", details.into()));
        let after = |failure: Failure| match failure {
            Failure::Later { after, .. } => Some(after),
            _ => None,
        };
        assert_eq!(after(judge(Code::Unavailable, Vec::new())), Some(None));
        assert_eq!(
            after(judge(Code::Unavailable, retry_details(2, 500_000_000))),
            Some(Some(Duration::from_millis(2500)))
        );
        assert_eq!(after(judge(Code::Unavailable, retry_details(-1, -1))), Some(None));
        assert_eq!(after(judge(Code::ResourceExhausted, Vec::new())), None);
        assert_eq!(
            after(judge(Code::ResourceExhausted, retry_details(1, 0))),
            Some(Some(Duration::from_secs(1)))
        );
        assert_eq!(after(judge(Code::InvalidArgument, retry_details(1, 0))), None);
        assert_eq!(
            after(judge(Code::Unavailable, vec![0xff; 50])),
            Some(None),
            "damaged details"
        );
        let large =
            tonic::Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is 1 bytes");
        assert!(matches!(of_grpc(&large), Failure::Permanent(_)));
    }

    #[test]
    fn retry_after_as_seconds_or_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let parse = |text| retry_after(text, now).map(|after| after.as_secs());
        assert_eq!(parse("120"), Some(120));
        assert_eq!(parse(" 0 "), Some(0));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(77));
        assert_eq!(parse("Sun, 06 Nov 1994 08:48:19 GMT"), Some(0), "in the past");
        for bad in [
            "",
            "-1",
            "1.5",
            "soon",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "99999999999999999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Thu, 29 Feb 2024 12:00:00 GMT", 1_709_208_000),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
        ] {
            assert_eq!(http_date(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"ä".repeat(1000)).chars().count(), 301);
    }
}
