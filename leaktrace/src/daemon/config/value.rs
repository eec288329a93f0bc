//! One value of the file: is it what its key wants, and within the limits?
//!
//! Pure. A message says what is wrong and how to write it right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::pattern::Pattern;
use super::schema::{Kind, duration_text, size_text};
use crate::daemon::push;
use crate::model::quantity;

/// Longest text that is accepted.
const MAX_TEXT: usize = 4096;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// Most names.
const MAX_NAMES: usize = 64;
/// What an array of names looks like.
const HOST_NAMES: &str = r#"an array such as ["host-a.example"]"#;

/// A type that values of some kind have in the program.
pub(super) trait FromValue: Sized {
    /// `None` if the value is of another.
    fn from_value(value: Value) -> Option<Self>;
}

macro_rules! values {
    ($($(#[$doc:meta])* $variant:ident($type:ty),)*) => {
        /// A checked value.
        #[derive(Clone, Debug, PartialEq)]
        pub(super) enum Value {
            /// Switched off.
            Nothing,
            $($(#[$doc])* $variant($type),)*
        }

        $(impl FromValue for $type {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }
        })*
    };
}

values! {
    Boolean(bool),
    /// Counts and bytes.
    Number(u64),
    Duration(Duration),
    /// Shares and bytes per hour.
    Real(f64),
    /// Names, choices, URLs.
    Text(String),
    Path(PathBuf),
    Pattern(Pattern),
    Headers(BTreeMap<String, String>),
    Address(SocketAddr),
    /// In lower case, without the dot at the end.
    Names(Vec<String>),
}

/// What is wrong with a value, and where in it if that is known.
#[derive(Debug)]
pub(super) struct Fault {
    pub message: String,
    pub place: Option<Range<usize>>,
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self { message, place: None }
    }
}

/// Checks a value against what its key wants.
///
/// # Errors
/// What is wrong and what to write instead.
pub(super) fn check(kind: Kind, value: &DeValue<'_>) -> Result<Value, Fault> {
    match kind {
        Kind::HostNames => host_names(value),
        kind => Ok(check_whole(kind, value)?),
    }
}

fn check_whole(kind: Kind, value: &DeValue<'_>) -> Result<Value, String> {
    match kind {
        Kind::Boolean => value
            .as_bool()
            .map(Value::Boolean)
            .ok_or_else(|| wrong(value, "true or false")),
        Kind::Count { least, most } => {
            let number = integer(value).ok_or_else(|| wrong(value, "a whole number such as 256"))?;
            in_range(number, i128::from(least), i128::from(most), ToString::to_string)
        }
        Kind::Size { least, most } => {
            let bytes = match (integer(value), value.as_str()) {
                (Some(bytes), _) => bytes,
                (None, Some(text)) => i128::from(quantity::size(text)?),
                _ => return Err(wrong(value, r#"a size such as "64KiB", or bytes"#)),
            };
            in_range(bytes, i128::from(least), i128::from(most), |&bytes| {
                u64::try_from(bytes).map_or_else(|_| bytes.to_string(), size_text)
            })
        }
        Kind::Duration { least, most } => duration(value, least, most),
        Kind::Rate => {
            let rate = quantity::rate(text(value, r#"a rate such as "10MiB/h""#)?)?;
            if rate > 0.0 {
                Ok(Value::Real(rate))
            } else {
                Err(r#"must be more than 0; write a rate such as "10MiB/h""#.to_owned())
            }
        }
        Kind::Share { most } => {
            let share = quantity::share(text(value, r#"a percentage such as "5%""#)?)?;
            if share <= 0.0 {
                Err(r#"must be more than 0; write a percentage such as "5%""#.to_owned())
            } else if share > most {
                Err(format!("is {}%; at most {}% is possible", share * 100.0, most * 100.0))
            } else {
                Ok(Value::Real(share))
            }
        }
        Kind::Name => name(text(value, "a name")?),
        Kind::Path { empty } => path(text(value, r#"a path such as "/var/lib/leaktrace""#)?, empty),
        Kind::Pattern => {
            let pattern = match integer(value) {
                // A user or the like that is a number.
                Some(number) => Pattern::new(&number.to_string()),
                None => Pattern::new(text(value, r#"a pattern such as "nginx*""#)?),
            };
            pattern
                .map(Value::Pattern)
                .map_err(|error| format!("not a pattern: {error}"))
        }
        Kind::Choice(known) => {
            let text = text(value, &format!("one of {}", known.join(", ")))?;
            if known.contains(&text) {
                return Ok(Value::Text(text.to_owned()));
            }
            let meant = super::problem::nearest(text, known.iter().copied())
                .map_or_else(String::new, |meant| format!(" (did you mean `{meant}`?)"));
            Err(format!("`{text}` is not known{meant}; known are {}", known.join(", ")))
        }
        Kind::Url => url(text(value, r#"a URL such as "http://127.0.0.1:4317""#)?),
        Kind::Headers => headers(value),
        Kind::Address => {
            let text = text(value, r#"an address such as "127.0.0.1:7373""#)?;
            if text.is_empty() {
                return Ok(Value::Nothing);
            }
            match text.parse::<SocketAddr>() {
                Ok(address) => Ok(Value::Address(address)),
                Err(_) => Err(format!(
                    r#"`{text}` is no address with a port; write "127.0.0.1:7373" or "[::1]:7373" (host names are not looked up)"#
                )),
            }
        }
        Kind::HostNames => Err(wrong(value, HOST_NAMES)),
    }
}

fn wrong(value: &DeValue<'_>, wanted: &str) -> String {
    format!("is of the wrong type ({}); write {wanted}", value.type_str())
}

fn text<'v>(value: &'v DeValue<'_>, wanted: &str) -> Result<&'v str, String> {
    let text = value.as_str().ok_or_else(|| wrong(value, wanted))?;
    if text.len() > MAX_TEXT {
        return Err(format!("longer than {MAX_TEXT} bytes"));
    }
    if text.contains('\0') {
        return Err("holds a NUL character".to_owned());
    }
    Ok(text)
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    // TOML's numbers have 64 bits; what has more is out of every range.
    Some(i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX))
}

fn in_range(number: i128, least: i128, most: i128, show: impl Fn(&i128) -> String) -> Result<Value, String> {
    match u64::try_from(number) {
        Ok(fits) if (least..=most).contains(&number) => Ok(Value::Number(fits)),
        _ => Err(format!(
            "is {}; from {} to {} is possible",
            show(&number),
            show(&least),
            show(&most)
        )),
    }
}

fn duration(value: &DeValue<'_>, least: Duration, most: Duration) -> Result<Value, String> {
    let wanted = r#"a duration such as "30s" or "10m""#;
    let number = match (value.as_integer(), value.as_float()) {
        (Some(integer), _) => Some(integer.as_str()),
        (None, Some(float)) => Some(float.as_str()),
        _ => None,
    };
    let found = match number {
        Some(seconds) => quantity::duration(seconds),
        None => quantity::duration(text(value, wanted)?),
    };
    let found = found.map_err(|error| format!("{error}; write {wanted}"))?;
    if (least..=most).contains(&found) {
        Ok(Value::Duration(found))
    } else {
        Err(format!(
            "is {}; from {} to {} is possible",
            duration_text(found),
            duration_text(least),
            duration_text(most)
        ))
    }
}

fn name(text: &str) -> Result<Value, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(format!(
            "`{text}` is no name; write 1 to 64 letters, digits, `-`, `_` or `.`"
        ))
    }
}

fn path(text: &str, empty: bool) -> Result<Value, String> {
    if text.is_empty() && empty {
        Ok(Value::Nothing)
    } else if text.starts_with('/') {
        Ok(Value::Path(PathBuf::from(text)))
    } else {
        Err(format!("`{text}` is not absolute; write a path that begins with `/`"))
    }
}

fn url(text: &str) -> Result<Value, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    // The libraries that send have their own opinion on the rest; what no one could reach is caught here.
    let parsed = text.parse::<axum::http::Uri>().ok();
    match (authority, parsed) {
        (Some(authority), Some(_)) if authority.contains('@') => Err(
            "holds a user name or password, which would be shown in messages; use `token_file` or `headers`".to_owned(),
        ),
        _ if text.contains('#') => Err(format!(
            "`{text}` has a part behind `#`, which is never sent; leave it out"
        )),
        (Some(_), Some(uri)) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(Value::Text(text.to_owned())),
        _ => Err(format!(
            "`{text}` is no URL that can be sent to; write http://HOST:PORT or https://HOST:PORT"
        )),
    }
}

fn headers(value: &DeValue<'_>) -> Result<Value, String> {
    let wanted = r#"a table such as { "X-Scope-OrgID" = "ops" }"#;
    let table = value.as_table().ok_or_else(|| wrong(value, wanted))?;
    if table.len() > MAX_HEADERS {
        return Err(format!("more than {MAX_HEADERS} headers"));
    }
    let mut headers = BTreeMap::new();
    for (name, value) in table {
        let name: &str = name.get_ref();
        let value = text(value.get_ref(), wanted).map_err(|error| format!("header `{name}`: {error}"))?;
        if axum::http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(format!("`{name}` is no header name"));
        }
        let lower = name.to_ascii_lowercase();
        if push::is_reserved_header(&lower) {
            return Err(format!("header `{name}` is made by the sender and cannot be set"));
        }
        if axum::http::HeaderValue::from_str(value).is_err() {
            return Err(format!(
                "header `{name}`: its value holds characters that no header may have"
            ));
        }
        if headers.insert(lower, value.to_owned()).is_some() {
            return Err(format!("header `{name}` is there twice"));
        }
    }
    Ok(Value::Headers(headers))
}

fn host_names(value: &DeValue<'_>) -> Result<Value, Fault> {
    let entries = value.as_array().ok_or_else(|| wrong(value, HOST_NAMES))?;
    if entries.len() > MAX_NAMES {
        return Err(format!("more than {MAX_NAMES} names").into());
    }
    let mut names: Vec<String> = Vec::with_capacity(entries.len());
    for entry in entries {
        let at = |message: String| Fault {
            message,
            place: Some(entry.span()),
        };
        let name = text(entry.get_ref(), HOST_NAMES).and_then(host_name).map_err(at)?;
        if names.contains(&name) {
            return Err(at(format!("`{name}` is there twice")));
        }
        names.push(name);
    }
    Ok(Value::Names(names))
}

/// A DNS name as it is compared: in lower case, without the dot at the end.
fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_address = name.parse::<std::net::IpAddr>().is_ok() || name.starts_with('[');
    if is_address {
        return Err(format!(
            "`{text}` is an address; those that `listen` is reached at are known"
        ));
    }
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name)
    } else {
        Err(format!(
            "`{text}` is no DNS name; write it without scheme and port, such as \"host-a.example\" (`xn--…` for one with \
             other letters)"
        ))
    }
}
