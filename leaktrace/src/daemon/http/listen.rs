//! Where the daemon listens: TCP, with TLS or on loopback alone, and a Unix socket.
//!
//! Binds and says why it cannot. Invariant: a socket that a living daemon answers on is never taken away, and no
//! address beyond this machine is served without TLS.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::TlsFiles;
use super::token::TokenError;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port is taken.
    #[error("failed to listen on {address}: another program has the port; end it or set another in `listen`")]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// Something else is wrong with the address.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address can be reached from other machines, and there is no TLS.
    #[error(
        "refused to listen on {address} without TLS: other machines reach it; set a certificate and key, or listen on 127.0.0.1"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
    },
    /// A daemon answers on the socket.
    #[error("failed to listen on `{path}`: another daemon answers there", path = .path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in its place.
    #[error("failed to listen on `{path}`: what is there is no socket; remove it or name another path", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Something else is wrong with the socket.
    #[error("failed to listen on `{path}`: {source}", path = .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no token.
    #[error(transparent)]
    Token(TokenError),
    /// No random bytes for the session.
    #[error("failed to make a secret for the page: {0}")]
    Random(#[source] io::Error),
    /// A file for TLS is not usable.
    #[error("failed to use `{path}` for TLS: {why}", path = .path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A TCP address that is listened on.
pub(super) struct Tcp {
    pub listener: TcpListener,
    pub tls: Option<TlsAcceptor>,
    address: SocketAddr,
}

impl Tcp {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens on a TCP address.
pub(super) fn tcp(address: SocketAddr, tls: Option<TlsAcceptor>) -> Result<Tcp, HttpError> {
    if !address.ip().is_loopback() && tls.is_none() {
        return Err(HttpError::Exposed { address });
    }
    let bind = || -> io::Result<(TcpListener, SocketAddr)> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, bound))
    };
    let (listener, address) = bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => HttpError::PortInUse { address },
        _ => HttpError::Listen { address, source },
    })?;
    Ok(Tcp { listener, tls, address })
}

/// A Unix socket that is listened on; its file goes when this is dropped, unless another has taken its place.
pub(super) struct Unix {
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Drop for Unix {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // Should it stay, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens on a Unix socket. The file of a daemon that is gone is replaced.
pub(super) async fn unix(path: &Path) -> Result<Unix, HttpError> {
    let failed = |source: io::Error| HttpError::Socket {
        path: path.to_owned(),
        source,
    };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).await?;
            UnixListener::bind(path).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let socket = Unix {
        listener,
        path: path.to_owned(),
        file: identity(path).map_err(failed)?,
    };
    // Anybody may connect and is told why they get nothing: the kernel says who they are.
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(socket)
}

async fn remove_stale(path: &Path) -> Result<(), HttpError> {
    let failed = |source: io::Error| HttpError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(HttpError::NotASocket { path: path.to_owned() });
    }
    // Only a refusal says that nobody is there: a daemon with a full queue does not answer in time.
    match tokio::time::timeout(Duration::from_secs(1), UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(HttpError::SocketInUse { path: path.to_owned() }),
    }
}

/// Reads certificate and key.
pub(super) fn tls(files: &TlsFiles) -> Result<TlsAcceptor, HttpError> {
    let unusable = |path: &Path, why: String| HttpError::Tls {
        path: path.to_owned(),
        why,
    };
    let open = |path: &Path| fs::read(path).map_err(|error| unusable(path, error.to_string()));
    let certificates = CertificateDer::pem_slice_iter(&open(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(&files.certificate, error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable(&files.certificate, "it holds no PEM certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&open(&files.key)?).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound => "it holds no PEM private key".to_owned(),
            error => error.to_string(),
        };
        unusable(&files.key, why)
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.key, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| unusable(&files.key, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn addresses_beyond_the_machine_need_tls() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let error = tcp(address.parse().unwrap(), None).err().unwrap();
            assert!(matches!(error, HttpError::Exposed { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = tcp("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let error = tcp(first.address(), None).err().unwrap();
        assert!(matches!(error, HttpError::PortInUse { address } if address == first.address()));
    }

    #[tokio::test]
    async fn a_living_socket_stays_a_stale_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = unix(&path).await.unwrap();
        assert!(matches!(unix(&path).await, Err(HttpError::SocketInUse { .. })));
        UnixStream::connect(&path).await.unwrap();
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as after kill -9");
        let second = unix(&path).await.unwrap();
        // Another took the place: its file is not ours to remove.
        fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
        drop(other);

        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(&path).await, Err(HttpError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = folder.path().join("no/socket");
        assert!(matches!(unix(&nowhere).await, Err(HttpError::Socket { .. })));
    }

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let files = TlsFiles {
            certificate: certificate.clone(),
            key,
        };
        assert!(tls(&files).err().unwrap().to_string().contains("cert.pem"));
        fs::write(&certificate, "not PEM").unwrap();
        assert!(tls(&files).err().unwrap().to_string().contains("no PEM certificate"));
    }
}
