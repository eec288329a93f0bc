//! Reads another process' memory without stopping it.
//!
//! Owns the system calls of inspection that need `unsafe`. What is read may change under the reader and may lie.

use std::io;

use crate::model::ProcessAddress;
use crate::proc::{ProcError, living, process_exists, read_bounded};

/// Most vectors in one `process_vm_readv` (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Nothing readable is mapped there (or not for that many bytes).
    #[error("failed to read {len} bytes at {address} for pid {pid}: not mapped")]
    Unmapped {
        /// The process.
        pid: u32,
        /// First address asked for.
        address: ProcessAddress,
        /// Bytes asked for.
        len: usize,
    },
    /// The process is gone or cannot be read.
    #[error(transparent)]
    Process(#[from] ProcError),
}

/// Whether two processes, or threads of them, use one memory (`kcmp`).
///
/// # Errors
/// One of them is gone, a privilege is missing, or this kernel does not compare processes.
pub fn is_same_memory(one: u32, other: u32) -> io::Result<bool> {
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: takes numbers alone and writes nothing.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(one),
            libc::c_long::from(other),
            KCMP_VM,
            0,
            0,
        )
    };
    if order < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(order == 0)
}

/// One piece of memory to read.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// Where.
    pub address: ProcessAddress,
    /// Where to, and how much.
    pub buffer: &'a mut [u8],
    /// Whether the last [`MemoryReader::read_many`] filled it.
    pub filled: bool,
}

/// Source of a process' memory: the process itself, or a recorded image in tests.
pub trait MemoryReader {
    /// Fills the whole buffer.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] when not all of it can be read; the buffer's content is then unspecified.
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads many pieces; one that is not mapped is left with `filled: false` and does not stop the others.
    ///
    /// # Errors
    /// [`MemoryError::Process`] when the process is gone or out of reach.
    fn read_many(&self, requests: &mut [ReadRequest<'_>]) -> Result<(), MemoryError> {
        for request in requests {
            request.filled = match self.read(request.address, request.buffer) {
                Ok(()) => true,
                Err(MemoryError::Unmapped { .. }) => false,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// One little-endian word.
    fn read_u64(&self, address: ProcessAddress) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Memory of a live process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pid: u32,
    /// The thread that it is read through.
    thread: u32,
}

impl ProcessMemory {
    /// No access yet: errors come from the reads.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            thread: living::thread(pid),
        }
    }

    /// Bytes transferred by one call over these requests, which are filled in order up to the first unreadable page.
    fn transfer(&self, requests: &mut [ReadRequest<'_>]) -> Result<usize, MemoryError> {
        let result = self.transfer_through(self.thread, requests);
        if let Err(MemoryError::Process(ProcError::Exited { .. } | ProcError::NoSuchProcess { .. })) = result {
            // That thread ended. Another one may still be there.
            let thread = living::thread(self.pid);
            if thread != self.thread {
                return self.transfer_through(thread, requests);
            }
        }
        result
    }

    fn transfer_through(&self, thread: u32, requests: &mut [ReadRequest<'_>]) -> Result<usize, MemoryError> {
        debug_assert!(requests.len() <= MAX_VECTORS);
        let local: Vec<libc::iovec> = requests
            .iter_mut()
            .map(|r| libc::iovec {
                iov_base: r.buffer.as_mut_ptr().cast(),
                iov_len: r.buffer.len(),
            })
            .collect();
        let remote: Vec<libc::iovec> = requests
            .iter()
            .map(|r| libc::iovec {
                iov_base: r.address.0 as *mut libc::c_void,
                iov_len: r.buffer.len(),
            })
            .collect();
        let count = requests.len() as libc::c_ulong;
        let pid = libc::pid_t::try_from(thread).map_err(|_| ProcError::NoSuchProcess { pid: self.pid })?;
        // SAFETY: each local vector is an exclusively borrowed buffer of exactly `iov_len` bytes that outlives the call;
        // remote addresses are not dereferenced in this process, the kernel checks them; both arrays hold `count` elements.
        let done = unsafe { libc::process_vm_readv(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
        match usize::try_from(done) {
            Ok(done) => Ok(done),
            Err(_) => {
                let source = io::Error::last_os_error();
                match source.raw_os_error() {
                    Some(libc::EFAULT) => Ok(0),
                    Some(libc::ESRCH) if !process_exists(self.pid) => {
                        Err(ProcError::NoSuchProcess { pid: self.pid }.into())
                    }
                    _ => Err(ProcError::from_io(self.pid, format!("/proc/{}/mem", self.pid).as_ref(), source).into()),
                }
            }
        }
    }
}

impl MemoryReader for ProcessMemory {
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let len = buffer.len();
        if len == 0 {
            return Ok(());
        }
        match self.transfer(&mut [ReadRequest {
            address,
            buffer,
            filled: false,
        }])? {
            done if done == len => Ok(()),
            _ => Err(MemoryError::Unmapped {
                pid: self.pid,
                address,
                len,
            }),
        }
    }

    fn read_many(&self, requests: &mut [ReadRequest<'_>]) -> Result<(), MemoryError> {
        let mut start = 0;
        // Each round handles at least one request, so this ends.
        while start < requests.len() {
            let end = requests.len().min(start + MAX_VECTORS);
            let batch = &mut requests[start..end];
            let mut done = self.transfer(batch)?;
            let mut filled = 0;
            for request in batch.iter_mut() {
                request.filled = done >= request.buffer.len();
                if !request.filled {
                    break;
                }
                done -= request.buffer.len();
                filled += 1;
            }
            // The request at which the kernel stopped is not readable: step over it.
            start += if filled == batch.len() { filled } else { filled + 1 };
        }
        Ok(())
    }
}

/// Where the executable's program headers are (`AT_PHDR`).
pub const AT_PHDR: u64 = 3;
/// How many there are (`AT_PHNUM`).
pub const AT_PHNUM: u64 = 5;
/// Entry point of the executable (`AT_ENTRY`).
pub const AT_ENTRY: u64 = 9;
/// Where the vdso's ELF header is mapped (`AT_SYSINFO_EHDR`).
pub const AT_SYSINFO_EHDR: u64 = 33;
/// Base address of the dynamic loader (`AT_BASE`), 0 for a static program.
pub const AT_BASE: u64 = 7;

/// The auxiliary vector that the kernel gave a process at exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuxVector(Vec<(u64, u64)>);

impl AuxVector {
    /// Parses pairs of 64-bit words, up to `AT_NULL`.
    pub fn parse(bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let pairs = bytes.chunks_exact(16).map(|pair| (word(&pair[..8]), word(&pair[8..])));
        Self(pairs.take_while(|(key, _)| *key != 0).collect())
    }

    /// Reads `/proc/PID/auxv`.
    pub fn read(pid: u32) -> Result<Self, ProcError> {
        Ok(Self::parse(&read_bounded(living::thread(pid), "auxv", 1 << 14)?))
    }

    /// The value of one entry.
    pub fn get(&self, key: u64) -> Option<u64> {
        self.0.iter().find(|(found, _)| *found == key).map(|(_, value)| *value)
    }
}

/// Makes this process's allocator keep little: few arenas. To be called before other threads allocate.
pub fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives the kernel what this process's allocator has and does not need.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it gives back free pages and touches no block.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(bytes: &[u8]) -> ProcessAddress {
        ProcessAddress(bytes.as_ptr() as u64)
    }

    #[test]
    fn reads_its_own_memory_and_reports_holes() {
        let memory = ProcessMemory::new(std::process::id());
        let data = *b"twelve bytes";
        let mut buffer = [0; 12];
        memory.read(at(&data), &mut buffer).unwrap();
        assert_eq!(buffer, data);
        assert!(matches!(
            memory.read(ProcessAddress(8), &mut buffer),
            Err(MemoryError::Unmapped { .. })
        ));
        let gone = ProcessMemory::new(u32::MAX >> 1);
        let error = gone.read(at(&data), &mut buffer).unwrap_err();
        assert!(
            matches!(error, MemoryError::Process(ProcError::NoSuchProcess { .. })),
            "{error}"
        );
    }

    #[test]
    fn many_pieces_with_holes_among_them() {
        let memory = ProcessMemory::new(std::process::id());
        let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let mut buffers = vec![[0u8; 1]; 3000];
        let mut requests: Vec<ReadRequest<'_>> = buffers
            .iter_mut()
            .enumerate()
            .map(|(index, buffer)| ReadRequest {
                // Every 700th piece is unmapped.
                address: if index % 700 == 699 {
                    ProcessAddress(16)
                } else {
                    at(&data[index..])
                },
                buffer,
                filled: false,
            })
            .collect();
        memory.read_many(&mut requests).unwrap();
        for (index, request) in requests.iter().enumerate() {
            assert_eq!(request.filled, index % 700 != 699, "{index}");
            assert!(!request.filled || request.buffer[0] == data[index]);
        }
    }

    #[test]
    fn auxiliary_vector() {
        let own = AuxVector::read(std::process::id()).unwrap();
        assert!(own.get(AT_ENTRY).is_some_and(|entry| entry != 0));
        assert_eq!(AuxVector::parse(&[1, 2, 3]), AuxVector::default());
    }
}
