//! Whether signals to this process can be waited for.

use std::{io, os::unix::net::UnixStream};

/// tokio makes a pair of sockets with the first runtime of a process that waits for signals, and panics if it cannot. So it
/// is tried before.
///
/// # Errors
/// When the kernel refuses, for want of descriptors or memory.
pub fn check() -> io::Result<()> {
    UnixStream::pair().map(drop)
}
