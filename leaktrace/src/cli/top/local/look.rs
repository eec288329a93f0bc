//! One look at a process through `/proc`.

use crate::{
    daemon::api,
    model::ProcessKey,
    proc::{identity as proc_identity, living, read_bounded},
};

/// Longest status file; the kernel's is a few kilobytes.
const MAX_FILE: u64 = 64 << 10;

/// What a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Command name.
    pub comm: String,
    /// Resident bytes.
    pub rss: u64,
    /// Resident anonymous bytes.
    pub anonymous: u64,
    /// Swapped bytes.
    pub swap: u64,
    /// Major page faults since the start.
    pub major_faults: u64,
}

impl Look {
    /// Looks; `None` when the process has ended.
    pub fn at(key: ProcessKey) -> Option<Self> {
        let bytes = read_bounded(key.pid, "stat", MAX_FILE).ok()?;
        let stat = proc_identity::parse_stat(&bytes)?;
        if stat.key != key || living::has_ended(&stat) {
            return None;
        }
        let status = read_bounded(living::thread(key.pid), "status", MAX_FILE).ok()?;
        let mut look = parse_status(&status);
        look.comm = stat.comm;
        look.major_faults = parse_faults(&bytes).unwrap_or(0);
        Some(look)
    }
}

/// The lines on memory of `/proc/PID/status`.
fn parse_status(bytes: &[u8]) -> Look {
    let text = String::from_utf8_lossy(bytes);
    // The name is in the first line, its newlines escaped, so that no name looks like one of these lines.
    let value = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        number.unwrap_or(0).saturating_mul(1024)
    };
    Look {
        rss: value("VmRSS:"),
        anonymous: value("RssAnon:"),
        swap: value("VmSwap:"),
        ..Look::default()
    }
}

/// Major faults: field 12 of `/proc/PID/stat`.
fn parse_faults(bytes: &[u8]) -> Option<u64> {
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(12 - 3)?.parse().ok()
}

/// What this program costs itself: its CPU share since its start, its memory.
pub fn own() -> api::Own {
    let pid = std::process::id();
    let rss = read_bounded(pid, "status", MAX_FILE).map_or(0, |bytes| parse_status(&bytes).rss);
    let mut own = api::Own {
        rss,
        ..api::Own::default()
    };
    let share = || -> Option<f64> {
        let key = proc_identity::read_key(pid).ok()?;
        let age = proc_identity::age(key.start_time).as_secs_f64();
        let bytes = read_bounded(pid, "stat", MAX_FILE).ok()?;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let seconds = field(14)?.saturating_add(field(15)?) as f64 / ticks as f64;
        (age > 1.0).then(|| seconds / age)
    };
    own.cpu = share().unwrap_or(0.0);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_status_file() {
        let text = b"Name:\tVmRSS:\\n9 kB\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\nVmSwap:\t 4 kB\nRssFile:\t 7 kB\n";
        let look = parse_status(text);
        assert_eq!((look.rss, look.anonymous, look.swap), (2 << 20, 1 << 20, 4096));
        assert_eq!(parse_status(b"VmRSS:\t99999999999999999999 kB\n").rss, 0);
        assert_eq!(parse_faults(b"1 (a b) c) S 1 2 3 4 5 6 7 8 99 0\n"), Some(99));
        assert_eq!(parse_faults(b"1 (a"), None);
    }
}
