//! Reads another process' memory without stopping it.
//!
//! Owns the system calls of inspection that need `unsafe`. What is read may change under the reader and may lie.
//! Invariant: no read waits for the process. Whoever touches memory that the process has left to a userfaultfd handler waits
//! for that handler, in `process_vm_readv` where only SIGKILL ends it. Reads of `/proc/PID/mem` cannot wait there, because the
//! kernel has no way to let go of the process's mappings meanwhile: they fail. (Memory of files that a process serves is
//! another matter: see [`mounts`](super::mounts).)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::ProcessAddress;
use crate::proc::{ProcError, living, process_exists, read_bounded};

/// Most bytes between two pieces of memory that are read as one: reading a page costs less than another call.
const MAX_GAP: u64 = 4096;
/// Most bytes that are read as one.
const MAX_TOGETHER: u64 = 64 << 10;

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Nothing readable is mapped there (or not for that many bytes).
    #[error("failed to read {len} bytes at {address} for pid {pid}: not mapped, or left to a userfaultfd handler")]
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

/// So many pieces are read in the order that they are asked for.
pub const MAX_ORDERED: usize = 8;

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

    /// Reads many pieces; one that is not mapped is left with `filled: false` and does not stop the others. More than
    /// [`MAX_ORDERED`] are read in any order, so what has to be read behind something else takes another call.
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
#[derive(Debug)]
pub struct ProcessMemory {
    pid: u32,
    /// `/proc/PID/mem`, which stays that of the program that ran when it was opened.
    file: Mutex<Option<Arc<File>>>,
}

impl ProcessMemory {
    /// No access yet: errors come from the reads.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            file: Mutex::new(None),
        }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/mem", living::thread(self.pid)).into()
    }

    fn error(&self, source: io::Error) -> MemoryError {
        match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) if !process_exists(self.pid) => {
                ProcError::NoSuchProcess { pid: self.pid }.into()
            }
            _ => ProcError::from_io(self.pid, format!("/proc/{}/mem", self.pid).as_ref(), source).into(),
        }
    }

    /// Makes sure that the memory is open, or that it is not for want of a privilege: what fails then fails for what is
    /// there.
    ///
    /// # Errors
    /// The process is gone, or this process lacks descriptors or memory.
    pub fn hold(&self) -> Result<(), ProcError> {
        match self.file(false) {
            Err(MemoryError::Process(error)) if !matches!(error, ProcError::Permission { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    fn open(&self) -> Result<Arc<File>, MemoryError> {
        let file = File::open(self.path()).map_err(|source| self.error(source))?;
        Ok(Arc::new(file))
    }

    /// The memory of the program that runs; of the one that ran before if that is not asked for `again`.
    fn file(&self, again: bool) -> Result<Arc<File>, MemoryError> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(file) if !again => Ok(Arc::clone(file)),
            _ => Ok(Arc::clone(held.insert(self.open()?))),
        }
    }

    /// Bytes that were read, up to the first that cannot be.
    fn transfer(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<usize, MemoryError> {
        let mut file = self.file(false)?;
        let mut is_new = false;
        let mut done = 0;
        while done < buffer.len() {
            let Some(from) = address
                .0
                .checked_add(done as u64)
                .filter(|from| i64::try_from(*from).is_ok())
            else {
                // No process has memory there that could be read.
                break;
            };
            match file.read_at(&mut buffer[done..], from) {
                // That program is gone, or the thread that it was opened through. Another one may be there.
                Ok(0) if is_new => return Err(ProcError::Exited { pid: self.pid }.into()),
                Ok(0) => {
                    file = self.file(true)?;
                    (is_new, done) = (true, 0);
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => break,
                Err(error) => return Err(self.error(error)),
            }
        }
        Ok(done)
    }

    /// Writes all of these bytes.
    ///
    /// # Errors
    /// As [`read`](MemoryReader::read).
    pub fn write(&self, address: ProcessAddress, bytes: &[u8]) -> Result<(), MemoryError> {
        let file = OpenOptions::new().write(true).open(self.path());
        let written = file.and_then(|file| file.write_all_at(bytes, address.0));
        written.map_err(|error| match error.raw_os_error() {
            Some(libc::EIO | libc::EFAULT) => self.unmapped(address, bytes.len()),
            _ => self.error(error),
        })
    }

    fn unmapped(&self, address: ProcessAddress, len: usize) -> MemoryError {
        MemoryError::Unmapped {
            pid: self.pid,
            address,
            len,
        }
    }
}

impl MemoryReader for ProcessMemory {
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        match self.transfer(address, buffer)? {
            done if done == buffer.len() => Ok(()),
            _ => Err(self.unmapped(address, buffer.len())),
        }
    }

    /// Pieces that lie close to each other are read as one.
    fn read_many(&self, requests: &mut [ReadRequest<'_>]) -> Result<(), MemoryError> {
        if requests.len() <= MAX_ORDERED {
            for request in requests {
                request.filled = self.transfer(request.address, request.buffer)? == request.buffer.len();
            }
            return Ok(());
        }
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_unstable_by_key(|index| requests[*index].address);
        let mut bytes = Vec::new();
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let start = requests[*first].address.0;
            let mut end = start;
            let together = rest
                .iter()
                .take_while(|index| {
                    let request = &requests[**index];
                    let next = request.address.0.saturating_add(request.buffer.len() as u64).max(end);
                    let is_near = request.address.0 <= end.saturating_add(MAX_GAP) && next - start <= MAX_TOGETHER;
                    end = if is_near { next } else { end };
                    is_near
                })
                .count()
                .max(1);
            let (group, others) = rest.split_at(together);
            rest = others;
            let read = if group.len() > 1 {
                bytes.resize((end - start) as usize, 0);
                self.transfer(ProcessAddress(start), &mut bytes)?
            } else {
                0
            };
            for index in group {
                let request = &mut requests[*index];
                let from = (request.address.0 - start) as usize;
                request.filled = match bytes[..read].get(from..from.saturating_add(request.buffer.len())) {
                    Some(found) if group.len() > 1 => {
                        request.buffer.copy_from_slice(found);
                        true
                    }
                    // By itself, or behind something that cannot be read.
                    _ => self.transfer(request.address, request.buffer)? == request.buffer.len(),
                };
            }
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
