//! Does a process's code differ from its file? A uprobe is a breakpoint written into the process's copy of a page.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// Every executable file mapping of `pid` whose bytes differ from the file's: path and first differing file offset. What
/// has another name here, or none, is left out.
///
/// # Errors
/// When the process or one of its files cannot be read.
pub fn changed_code(pid: u32) -> Result<Vec<(String, u64)>> {
    let mut maps = String::new();
    File::open(format!("/proc/{pid}/maps"))?.read_to_string(&mut maps)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut changed = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, permissions, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !permissions.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (start, end) = range.split_once('-').context("a range has two ends")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let offset = u64::from_str_radix(offset, 16)?;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("failed to open `{path}`")),
        };
        let length = usize::try_from((end - start).min(file.metadata()?.len().saturating_sub(offset)))?;
        let (mut live, mut original) = (vec![0; length], vec![0; length]);
        memory
            .read_exact_at(&mut live, start)
            .with_context(|| format!("failed to read the code of `{path}`"))?;
        file.read_exact_at(&mut original, offset)?;
        if let Some(position) = live.iter().zip(&original).position(|(a, b)| a != b) {
            changed.push((path.to_owned(), offset + u64::try_from(position)?));
        }
    }
    Ok(changed)
}
