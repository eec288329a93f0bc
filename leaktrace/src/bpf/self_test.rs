//! Functions of this program that stand in for an allocator's: a recording can follow their calls, and every number that
//! it should find is known.
//!
//! They allocate nothing: a call returns the address that it was given. Beside them a child that runs another program at a
//! moment that is known. Invariant: probes on the functions are this process's alone.

use std::{
    hint::black_box,
    io::{self, PipeWriter, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
};

use leaktrace_common::signature::{Op, Signature};
use memmap2::MmapMut;

use super::{
    links::{Probe, Role},
    own_code::{OwnCode, OwnCodeError},
};
use crate::model::page_size;

/// Takes a size and the address that it returns.
type Allocate = extern "C" fn(u64, u64) -> u64;
/// Takes an address.
type Release = extern "C" fn(u64) -> u64;

/// Offset of the return instruction in each function.
const RETURN_AT: u64 = 5;

#[derive(Clone, Copy)]
struct Functions {
    by_return_probe: Allocate,
    by_return_site: Allocate,
    release: Release,
}

/// All different, so that no linker makes one of them.
#[cfg(target_arch = "x86_64")]
fn functions() -> Option<Functions> {
    use std::arch::naked_asm;

    #[unsafe(naked)]
    extern "C" fn by_return_probe(_size: u64, _address: u64) -> u64 {
        naked_asm!("push rbp", "mov rax, rsi", "pop rbp", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn by_return_site(_size: u64, _address: u64) -> u64 {
        naked_asm!("push rbp", "pop rbp", "mov rax, rsi", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn release(_address: u64) -> u64 {
        naked_asm!("push rbp", "mov rax, rdi", "pop rbp", "ret")
    }
    Some(Functions {
        by_return_probe,
        by_return_site,
        release,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn functions() -> Option<Functions> {
    None
}

/// How the return of a call is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// By a return probe.
    Probe,
    /// By a probe on the return instruction.
    Site,
}

/// The functions, and where they are to be probed.
pub struct Subject {
    code: OwnCode,
    functions: Functions,
}

impl Subject {
    /// Finds the functions in this program's file.
    ///
    /// # Errors
    /// When they are not there to be found.
    pub fn find() -> Result<Self, OwnCodeError> {
        Ok(Self {
            functions: functions().ok_or(OwnCodeError::Architecture)?,
            code: OwnCode::open()?,
        })
    }

    /// The probes that follow the calls, for the process in `slot`. The caller leaves return probes out where one would end
    /// this program.
    ///
    /// # Errors
    /// When the functions are in no file.
    pub fn probes(&self, slot: u16, with_return_probe: bool) -> Result<Vec<Probe<'_>>, OwnCodeError> {
        let allocate = Signature::new(Op::Alloc).size(1);
        let release = Signature::new(Op::Free).pointer(1);
        let probe = |offset: u64, signature: Signature, role| Probe {
            file: self.code.file(),
            offset,
            signature: signature.site(offset as u8).slot(slot),
            role,
        };
        let by_site = self.code.offset(self.functions.by_return_site as usize)?;
        let mut probes = vec![
            probe(
                self.code.offset(self.functions.release as usize)?,
                release,
                Role::Release,
            ),
            probe(by_site, allocate, Role::Entry),
            probe(by_site + RETURN_AT, allocate, Role::ReturnSite),
        ];
        if with_return_probe {
            let entry = self.code.offset(self.functions.by_return_probe as usize)?;
            probes.push(probe(entry, allocate, Role::Call));
        }
        Ok(probes)
    }

    /// A call that allocates.
    pub fn allocate(&self, ret: Return, size: u64, address: u64) {
        let function = match ret {
            Return::Probe => self.functions.by_return_probe,
            Return::Site => self.functions.by_return_site,
        };
        black_box(black_box(function)(black_box(size), black_box(address)));
    }

    /// A call that gives a block back.
    pub fn release(&self, address: u64) {
        black_box(black_box(self.functions.release)(black_box(address)));
    }
}

/// Memory that is mapped and resident, until this is dropped.
pub struct Mapped(#[expect(dead_code, reason = "dropping it unmaps")] MmapMut);

impl Mapped {
    /// Maps so many bytes and touches each page.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn touched(bytes: usize) -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(bytes)?;
        memory
            .iter_mut()
            .step_by(page_size() as usize)
            .for_each(|byte| *byte = 1);
        Ok(Self(memory))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_functions_return_where_they_are_probed() {
        let functions = functions().expect("there are some");
        assert_eq!((functions.by_return_probe)(1, 0x1234), 0x1234);
        assert_eq!((functions.by_return_site)(1, 0x5678), 0x5678);
        let places = [
            functions.by_return_probe as usize,
            functions.by_return_site as usize,
            functions.release as usize,
        ];
        for place in places {
            // SAFETY: the function is code of this program, which is mapped as long as it runs.
            let byte = unsafe { (place as *const u8).add(RETURN_AT as usize).read() };
            assert_eq!(byte, 0xc3, "`ret`");
        }
        assert_eq!(
            places.iter().collect::<std::collections::HashSet<_>>().len(),
            places.len()
        );
    }

    #[test]
    fn they_are_found_in_the_file() {
        let subject = Subject::find().expect("this program has a file");
        assert_eq!(subject.probes(0, true).expect("they are in it").len(), 4);
        assert_eq!(subject.probes(0, false).expect("they are in it").len(), 3);
    }
}

/// A child of this program that is about to run a program, and waits until it may.
pub struct WaitingChild {
    pid: u32,
    /// Closed, it lets the child go on.
    hold: PipeWriter,
    spawning: JoinHandle<io::Result<Child>>,
}

impl WaitingChild {
    /// Forks. What it will run is this program once more, which says its version and ends.
    ///
    /// # Errors
    /// When there is no pipe, thread or child to be had.
    pub fn fork() -> io::Result<Self> {
        let (mut pid, mut tell_pid) = io::pipe()?;
        let (mut gate, hold) = io::pipe()?;
        let copy_of_hold = hold.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let wait = move || {
            tell_pid.write_all(&std::process::id().to_ne_bytes())?;
            // SAFETY: the child's own copy of a descriptor, which nothing in the child uses.
            unsafe { libc::close(copy_of_hold) };
            // Ends when this program closes its end, and with this program.
            let _ = gate.read(&mut [0])?;
            Ok(())
        };
        // SAFETY: between fork and execve `wait` makes system calls alone; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(wait) };
        // spawn() returns when the child runs its program. The closure and its ends of the pipes go with the command.
        let spawning = thread::Builder::new()
            .name("self-test".to_owned())
            .spawn(move || command.spawn())?;
        let mut bytes = [0; 4];
        match pid.read_exact(&mut bytes) {
            Ok(()) => Ok(Self {
                pid: u32::from_ne_bytes(bytes),
                hold,
                spawning,
            }),
            Err(closed) => Err(joined(spawning).err().unwrap_or(closed)),
        }
    }

    /// The child.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it run its program, and waits for its end.
    ///
    /// # Errors
    /// When it did not run.
    pub fn run(self) -> io::Result<()> {
        drop(self.hold);
        joined(self.spawning)?.wait().map(drop)
    }
}

fn joined(spawning: JoinHandle<io::Result<Child>>) -> io::Result<Child> {
    spawning.join().map_err(|_| io::Error::other("the thread panicked"))?
}
