//! Thin wrappers over `bpf(2)` for what aya 0.14 does not wrap: programs with the attach types `uprobe_multi` and
//! `uprobe_session`, several instances of a program, the links that attach them, what the kernel counts of those
//! programs, walking through a hash map and emptying it, reading and filling an array at once, and running a program once.
//!
//! Layouts are those of `union bpf_attr` in `include/uapi/linux/bpf.h`; the kernel accepts a prefix of the union if
//! what follows is zero.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::bpf_insn;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// How a link says that its target is a perf event.
const BPF_PERF_EVENT: u32 = 41;

/// How a uprobe program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// A perf event and a link for each place (cookies: kernel 5.15).
    PerfEvent = 0,
    /// One link for many places of a file (kernel 6.6).
    Multi = 48,
    /// The same, and one program for entry and return, which can skip the return (kernel 6.13).
    Session = 57,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    func_info_record_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_record_size: u32,
    line_info: u64,
    line_info_count: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_counter_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    pad: u32,
}

#[repr(C)]
struct PerfLinkCreate {
    program: u32,
    event: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

#[repr(C)]
struct ObjectInfo {
    object: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to and with `run_cnt`, in words of 8 bytes.
const PROGRAM_INFO_WORDS: usize = 26;
/// Lengths of the compiled code (low half) and of the checked instructions.
const LENGTHS_WORD: usize = 2;
/// Address of a buffer for the compiled code.
const COMPILED_WORD: usize = 3;
const RUN_TIME_WORD: usize = 24;
const RUN_COUNT_WORD: usize = 25;

/// What is made of a map here: one element of 4 bytes.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum MapType {
    /// A number.
    Array = 2,
    /// Another map.
    ArrayOfMaps = 12,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct MapBatch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is a live, zero-padded repr(C) prefix of `union bpf_attr`; the kernel reads and writes `size`
    // bytes of it, and the buffers that it points to, which the callers below keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as libc::c_int)
    }
}

/// Makes a link or loads something: what the kernel returns is a new descriptor.
fn bpf_fd<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands passed here return a new descriptor that no one else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How often something that signals cut short is tried.
const ATTEMPTS: usize = 8;

/// Whether a signal ended the verifier's work, which gives way to it: Ctrl-C while leaktrace starts would come out as a
/// program that the kernel refuses.
pub fn was_interrupted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

/// Tries again as long as signals alone are why it failed.
pub fn through_signals<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    interrupted: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if interrupted(&error) => {}
            done => return done,
        }
    }
    attempt()
}

/// Makes a map with one element; `inner` is an example of the maps in an array of maps.
pub fn create_map(map_type: MapType, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_MAP_CREATE,
        &mut MapCreate {
            map_type: map_type as u32,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
            inner_map: inner.map_or(0, |inner| inner.as_raw_fd() as u32),
        },
    )
}

/// Sets an element of a map that [`create_map`] made.
pub fn set_element(map: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<()> {
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &mut MapElement {
            map: map.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        },
    )?;
    Ok(())
}

/// Entries of a hash map that are looked at in one call. A bucket with more of them would end the walk.
const BATCH_ENTRIES: usize = 4096;
/// How often a walk is refused before it is given up.
const MOST_REFUSALS: usize = 1000;

/// Shows all entries of a hash map, some at a time (kernel 5.6). What is added or taken out meanwhile may be shown or not.
///
/// `K` and `V` must be the map's key and value types.
pub fn each_batch<K: aya::Pod + Default, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    show: impl FnMut(&[(K, V)]),
) -> io::Result<()> {
    walk(BPF_MAP_LOOKUP_BATCH, map, show)
}

/// The same, and takes them out: what is shown no one else can get after this, and what was there at the beginning is
/// shown unless this fails.
pub fn take_batches<K: aya::Pod + Default, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    show: impl FnMut(&[(K, V)]),
) -> io::Result<()> {
    walk(BPF_MAP_LOOKUP_AND_DELETE_BATCH, map, show)
}

fn walk<K: aya::Pod + Default, V: aya::Pod + Default>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    mut show: impl FnMut(&[(K, V)]),
) -> io::Result<()> {
    let mut refusals = 0;
    let (mut keys, mut values) = (vec![K::default(); BATCH_ENTRIES], vec![V::default(); BATCH_ENTRIES]);
    let mut place = 0u32;
    let mut from = 0;
    loop {
        let mut batch = MapBatch {
            from,
            to: (&raw mut place) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH_ENTRIES as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let looked = bpf(command, &mut batch).map_err(|error| error.raw_os_error());
        // With other errors the kernel has counted nothing.
        if matches!(looked, Ok(_) | Err(Some(libc::ENOENT | libc::EBUSY))) {
            let count = (batch.count as usize).min(BATCH_ENTRIES);
            let entries: Vec<(K, V)> = keys.iter().copied().zip(values.iter().copied()).take(count).collect();
            show(&entries);
        }
        match looked {
            Ok(_) => {}
            Err(Some(libc::ENOENT)) => return Ok(()),
            // A program holds the bucket; the walk goes on at it.
            Err(Some(libc::EBUSY)) if refusals < MOST_REFUSALS => refusals += 1,
            Err(error) => return Err(error.map_or_else(io::Error::last_os_error, io::Error::from_raw_os_error)),
        }
        from = (&raw mut place) as u64;
    }
}

/// The first `count` elements of a per-CPU array of words, at once (kernel 5.13): the values of all possible CPUs of the
/// first element, then those of the second.
pub fn per_cpu_elements(map: BorrowedFd<'_>, count: usize, cpus: usize) -> io::Result<Vec<u64>> {
    let mut keys = vec![0u32; count];
    let mut values = vec![0u64; count * cpus];
    let mut place = 0u32;
    let mut batch = MapBatch {
        from: 0,
        to: (&raw mut place) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: count as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
        Ok(_) => {}
        // The array has no more elements.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    if batch.count as usize == count {
        Ok(values)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sets the first elements of an array of words, at once (kernel 5.6).
pub fn set_elements(map: BorrowedFd<'_>, values: &[u64]) -> io::Result<()> {
    let keys: Vec<u32> = (0..).take(values.len()).collect();
    bpf(
        BPF_MAP_UPDATE_BATCH,
        &mut MapBatch {
            from: 0,
            to: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: values.len() as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        },
    )?;
    Ok(())
}

/// Runs a raw tracepoint program once, on this CPU, with the given arguments.
pub fn run_once(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<()> {
    bpf(
        BPF_PROG_TEST_RUN,
        &mut TestRun {
            program: program.as_raw_fd() as u32,
            context_in_size: size_of_val(arguments) as u32,
            context_in: arguments.as_ptr() as u64,
            ..Default::default()
        },
    )?;
    Ok(())
}

/// How often a program ran and for how many nanoseconds, counted while someone asks for statistics.
pub fn program_usage(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut info = [0u64; PROGRAM_INFO_WORDS];
    program_info(program, &mut info)?;
    Ok((info[RUN_COUNT_WORD], info[RUN_TIME_WORD]))
}

/// What a loaded program and its functions were compiled to, one behind the other. `None` where the kernel keeps it to itself.
pub fn compiled_code(program: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut info = [0u64; PROGRAM_INFO_WORDS];
    program_info(program, &mut info)?;
    let length = info[LENGTHS_WORD] as u32;
    let mut code = vec![0u8; length as usize];
    info = [0; PROGRAM_INFO_WORDS];
    info[LENGTHS_WORD] = u64::from(length);
    info[COMPILED_WORD] = code.as_mut_ptr() as u64;
    program_info(program, &mut info)?;
    Ok((length != 0 && info[COMPILED_WORD] != 0).then_some(code))
}

fn program_info(program: BorrowedFd<'_>, info: &mut [u64; PROGRAM_INFO_WORDS]) -> io::Result<()> {
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut ObjectInfo {
            object: program.as_raw_fd() as u32,
            length: size_of_val(info) as u32,
            info: info.as_mut_ptr() as u64,
        },
    )?;
    Ok(())
}

/// Loads type information.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_BTF_LOAD,
        &mut BtfLoad {
            btf: btf.as_ptr() as u64,
            btf_size: btf.len() as u32,
            ..Default::default()
        },
    )
}

/// A program as the verifier wants it.
pub struct ProgramImage<'a> {
    /// Name, cut to 15 bytes.
    pub name: &'a str,
    /// Relocated instructions.
    pub instructions: &'a [bpf_insn],
    /// Licence.
    pub license: &'a CStr,
    /// Type information of the object; needed for callbacks.
    pub btf: Option<BorrowedFd<'a>>,
    /// Function records and the size of one.
    pub func_info: (&'a [u8], usize),
    /// Line records and the size of one.
    pub line_info: (&'a [u8], usize),
}

/// Loads a uprobe program for an attach type. On failure the verifier's log comes with the error.
pub fn load_program(image: &ProgramImage<'_>, attach_type: AttachType) -> Result<OwnedFd, (io::Error, String)> {
    let mut name = [0; 16];
    let length = image.name.len().min(15);
    name[..length].copy_from_slice(&image.name.as_bytes()[..length]);
    let mut attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: image.instructions.len() as u32,
        instructions: image.instructions.as_ptr() as u64,
        license: image.license.as_ptr() as u64,
        name,
        expected_attach_type: attach_type as u32,
        ..Default::default()
    };
    if let Some(btf) = image.btf {
        attributes.btf = btf.as_raw_fd() as u32;
        attributes.func_info = image.func_info.0.as_ptr() as u64;
        attributes.func_info_record_size = image.func_info.1 as u32;
        attributes.func_info_count = image.func_info.0.len().checked_div(image.func_info.1).unwrap_or(0) as u32;
        attributes.line_info = image.line_info.0.as_ptr() as u64;
        attributes.line_info_record_size = image.line_info.1 as u32;
        attributes.line_info_count = image.line_info.0.len().checked_div(image.line_info.1).unwrap_or(0) as u32;
    }
    match through_signals(|| bpf_fd(BPF_PROG_LOAD, &mut attributes), was_interrupted) {
        Ok(fd) => Ok(fd),
        Err(error) => {
            // Once more, for the log.
            let mut log = vec![0u8; 1 << 24];
            attributes.log_level = 1;
            attributes.log = log.as_mut_ptr() as u64;
            attributes.log_size = log.len() as u32;
            let _ = bpf_fd(BPF_PROG_LOAD, &mut attributes);
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((error, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// Attaches a program to places of a file.
///
/// `path` names the file (uprobes are placed on its inode), `offsets` are file offsets, `cookies` one value for each;
/// `pid` confines the probes to one process.
pub fn attach_uprobes(
    program: BorrowedFd<'_>,
    attach_type: AttachType,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    assert_eq!(offsets.len(), cookies.len(), "one cookie for each offset");
    bpf_fd(
        BPF_LINK_CREATE,
        &mut LinkCreate {
            program: program.as_raw_fd() as u32,
            attach_type: attach_type as u32,
            path: path.as_ptr() as u64,
            offsets: offsets.as_ptr() as u64,
            cookies: cookies.as_ptr() as u64,
            count: offsets.len() as u32,
            pid: pid.unwrap_or(0),
            ..Default::default()
        },
    )
}

/// Puts a program behind a perf event, with a cookie (kernel 5.15). The link holds the event.
pub fn link_perf_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_LINK_CREATE,
        &mut PerfLinkCreate {
            program: program.as_raw_fd() as u32,
            event: event.as_raw_fd() as u32,
            attach_type: BPF_PERF_EVENT,
            flags: 0,
            cookie,
        },
    )
}
