//! Uprobes as perf events, one for each place: what kernels before 6.13 have.
//!
//! The layout is a prefix of `struct perf_event_attr` in `include/uapi/linux/perf_event.h`; the kernel takes what is behind
//! its size for zero.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Where the kernel tells the numbers of its uprobe events.
const DEVICE: &str = "/sys/bus/event_source/devices/uprobe";

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr` up to and with `config2`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    event_type: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    path: u64,
    offset: u64,
}

/// A software event that counts nothing (`PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_DUMMY`).
const SOFTWARE: u32 = 1;
const DUMMY: u64 = 9;
/// Neither kernel nor hypervisor: what mainline's kernels let anybody count in a process of their own.
const USER_ALONE: u64 = 1 << 5 | 1 << 6;

/// `PERF_ATTR_SIZE_VER1`.
const _: () = assert!(size_of::<Attributes>() == 72);

/// Opens the event of a place in a file, at its entry or at its return; `pid` confines it to one process.
pub fn open_uprobe(path: &CStr, offset: u64, at_return: bool, pid: Option<u32>) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        event_type: number("type")?,
        size: size_of::<Attributes>() as u32,
        config: if at_return { 1 << return_bit()? } else { 0 },
        path: path.as_ptr() as u64,
        offset,
        ..Default::default()
    };
    let (pid, cpu) = pid.map_or((-1, 0), |pid| (pid as libc::pid_t, -1));
    open(&attributes, pid, cpu)
}

/// Whether this process may open no event at all: with `kernel.perf_event_paranoid` above 2 the kernels of Debian and
/// Ubuntu ask for CAP_SYS_ADMIN where others ask for CAP_PERFMON.
pub fn is_closed() -> bool {
    let attributes = Attributes {
        event_type: SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: DUMMY,
        flags: USER_ALONE,
        ..Default::default()
    };
    open(&attributes, 0, -1).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn open(attributes: &Attributes, pid: libc::pid_t, cpu: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a live repr(C) prefix of `struct perf_event_attr` of the size that it says; the kernel reads
    // it and the path that it may point to, which the callers keep alive.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            pid,
            cpu,
            -1,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that no one else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn number(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("{DEVICE}/{name}"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Which bit of `config` asks for the return: `format/retprobe` says `config:0`.
fn return_bit() -> io::Result<u32> {
    let text = fs::read_to_string(format!("{DEVICE}/format/retprobe"))?;
    parse_bit(&text).ok_or_else(|| io::Error::other(format!("`{DEVICE}/format/retprobe` says `{}`", text.trim())))
}

fn parse_bit(text: &str) -> Option<u32> {
    let bit = text.trim().strip_prefix("config:")?.parse().ok()?;
    (bit < 64).then_some(bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_for_returns_is_read_from_its_format() {
        assert_eq!(parse_bit("config:0\n"), Some(0));
        assert_eq!(parse_bit("config:63"), Some(63));
        assert_eq!(parse_bit("config:64"), None);
        assert_eq!(parse_bit("config1:0"), None);
        assert_eq!(parse_bit(""), None);
    }
}
