//! The token: a secret in a file that only root, or the daemon's own user, can read.
//!
//! Made once, kept over restarts. Invariant: a token that others could have read or written is not used.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq as _;

/// Shortest token that is taken from a file.
const MIN_LENGTH: usize = 32;
/// Longest.
const MAX_LENGTH: usize = 512;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It could not be read.
    #[error("failed to read the token `{path}`: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be made.
    #[error("failed to write a token to `{path}`: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may know or change it.
    #[error("the token `{path}` is not safe: {why}; delete the file, a new one is made at the next start", path = .path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A secret. It never shows in logs or errors.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// 32 random bytes in hexadecimal digits.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0u8; 32];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Whether this is it. The time tells the length at most.
    pub fn matches(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Reads the token, and makes it first where there is none.
pub(super) fn load(path: &Path) -> Result<Token, TokenError> {
    match read(path)? {
        Some(token) => Ok(token),
        None => {
            create(path).map_err(|source| TokenError::Write {
                path: path.to_owned(),
                source,
            })?;
            // Another daemon may have been quicker: what stands in the file counts.
            read(path)?.ok_or_else(|| TokenError::Read {
                path: path.to_owned(),
                source: io::ErrorKind::NotFound.into(),
            })
        }
    }
}

/// Reads the token; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Token>, TokenError> {
    let failed = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let unsafe_because = |why: String| {
        Err(TokenError::Unsafe {
            path: path.to_owned(),
            why,
        })
    };
    let metadata = file.metadata().map_err(failed)?;
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() {
        return unsafe_because("it is no regular file".to_owned());
    }
    if metadata.uid() != 0 && metadata.uid() != own {
        return unsafe_because(format!("it belongs to uid {}", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        return unsafe_because(format!("others may use it (mode {:04o})", metadata.mode() & 0o7777));
    }
    let mut text = String::new();
    (&mut file)
        .take(MAX_LENGTH as u64 + 3)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let token = text.trim();
    if !(MIN_LENGTH..=MAX_LENGTH).contains(&token.len()) {
        return unsafe_because(format!("it has to be {MIN_LENGTH} to {MAX_LENGTH} characters"));
    }
    if !token
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte))
    {
        return unsafe_because("it may hold letters, digits and `-_.~` only".to_owned());
    }
    Ok(Some(Token(token.to_owned())))
}

/// Writes a new token beside the place and links it there, so that no one ever sees half of it.
fn create(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(".token").tempfile_in(folder)?;
    writeln!(file, "{}", Token::random()?.reveal())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => File::open(folder)?.sync_all(),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/token");
        let token = load(&path).unwrap();
        assert_eq!(token.reveal().len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(load(&path).unwrap().reveal(), token.reveal());
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing left over"
        );
        assert!(token.matches(token.reveal()));
        assert!(!token.matches(""));
        assert!(!token.matches(&token.reveal()[1..]));
        assert!(!token.matches(&Token::random().unwrap().0));
    }

    #[test]
    fn what_others_could_know_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        load(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains("others may use it (mode 0640)"), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();

        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(load(&link), Err(TokenError::Read { .. })));

        for content in ["short", &"a b".repeat(20), &"x".repeat(600), ""] {
            fs::write(&path, content).unwrap();
            assert!(matches!(load(&path), Err(TokenError::Unsafe { .. })), "{content}");
        }
        fs::write(&path, format!("{}\n", "k".repeat(40))).unwrap();
        assert!(load(&path).unwrap().matches(&"k".repeat(40)));
        assert!(matches!(load(folder.path()), Err(TokenError::Unsafe { .. })));
        assert!(matches!(
            load(Path::new("/proc/leaktrace-token")),
            Err(TokenError::Write { .. })
        ));
    }
}
