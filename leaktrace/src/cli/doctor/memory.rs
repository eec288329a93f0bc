//! How much memory the control groups of this process leave: memory of BPF maps is charged to them (since Linux 5.11).

use std::{fs, path::PathBuf};

/// Most levels of control groups that are looked at.
const MAX_CGROUP_DEPTH: usize = 64;

/// A memory limit of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes allowed.
    pub limit: u64,
    /// Bytes in use, caches among them.
    pub used: u64,
    /// The file that states it.
    pub file: PathBuf,
}

/// The limit with the least room among the control groups of this process.
pub fn memory_limit() -> Option<MemoryLimit> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let (root, path, names) = memory_group(&groups)?;
    let (limit_name, used_name) = names;
    let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let directory = PathBuf::from(root).join(path.trim_start_matches('/'));
    directory
        .ancestors()
        .take(MAX_CGROUP_DEPTH)
        .take_while(|ancestor| ancestor.starts_with(root))
        .filter_map(|ancestor| {
            let file = ancestor.join(limit_name);
            // "max", or in the older hierarchy a number near 2^63, is no limit.
            let limit = number(file.clone()).filter(|limit| *limit < 1 << 60)?;
            let used = number(ancestor.join(used_name)).unwrap_or(0);
            Some(MemoryLimit { limit, used, file })
        })
        .min_by_key(|found| found.limit.saturating_sub(found.used))
}

/// Where the memory controller's files are: mount point, path of the group, names of limit and usage.
fn memory_group(groups: &str) -> Option<(&'static str, &str, (&'static str, &'static str))> {
    let fields = || groups.lines().map(|line| line.splitn(3, ':'));
    let older = fields().find_map(|mut fields| {
        let controllers = fields.nth(1)?;
        let path = fields.next()?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    if let Some(path) = older {
        let names = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        return Some(("/sys/fs/cgroup/memory", path, names));
    }
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(("/sys/fs/cgroup", path, ("memory.max", "memory.current")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_of_both_hierarchies() {
        let (root, path, _) = memory_group("3:cpuset:/\n4:cpu,memory:/a\n0::/b\n").expect("the older one counts");
        assert_eq!((root, path), ("/sys/fs/cgroup/memory", "/a"));
        let (root, path, _) = memory_group("0::/b:c\n").expect("the unified one");
        assert_eq!((root, path), ("/sys/fs/cgroup", "/b:c"));
        assert_eq!(memory_group("1:cpu:/\n"), None);
    }
}
