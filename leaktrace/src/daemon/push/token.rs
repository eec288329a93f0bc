//! The token of a target.
//!
//! Read again for each attempt, so that a renewed one is used at once. Invariant: at most [`MOST`] bytes are read.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use reqwest::header::HeaderValue;

use super::{failure::Failure, settings::SettingsError};

/// Largest token that is read.
const MOST: u64 = 16 << 10;

/// The value of `Authorization` with the token in a file. A failure passes when the file is repaired.
pub(super) async fn authorization(path: &Path) -> Result<HeaderValue, Failure> {
    let owned = path.to_owned();
    tokio::task::spawn_blocking(move || read_value(&owned))
        .await
        .map_err(|error| Failure::Unreachable(format!("failed to read a token file: {error}")))?
        .map_err(|error| Failure::Unreachable(error.to_string()))
}

/// As [`authorization`], on the thread that asks.
pub(super) fn read_value(path: &Path) -> Result<HeaderValue, SettingsError> {
    let failed = |cause: &dyn std::fmt::Display| SettingsError::Token {
        path: path.to_owned(),
        cause: cause.to_string(),
    };
    let text = read(path).map_err(|error| failed(&error))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(failed(&"it is not one word of printable characters"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| failed(&error))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(path: &Path) -> io::Result<String> {
    // Opening a named pipe would wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::other("it is larger than 16 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_what_the_file_holds_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let message = |failure: Failure| failure.message().to_owned();
        assert!(message(authorization(&path).await.unwrap_err()).starts_with("failed to read the token file `"));
        for token in ["one", "two"] {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            let value = authorization(&path).await.unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {token}"));
            assert!(value.is_sensitive());
        }
        for bad in ["", "\n", "a b", "a\nb", "ä"] {
            std::fs::write(&path, bad).unwrap();
            assert!(
                message(authorization(&path).await.unwrap_err())
                    .ends_with("it is not one word of printable characters")
            );
        }
        std::fs::write(&path, "x".repeat(MOST as usize + 1)).unwrap();
        assert!(message(authorization(&path).await.unwrap_err()).ends_with("it is larger than 16 KiB"));
        assert!(message(authorization(folder.path()).await.unwrap_err()).ends_with("it is not a regular file"));
    }
}
