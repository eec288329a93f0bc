//! What is known of a traced process besides its probes: all that it takes to name the addresses in its ledger.
//!
//! It is plain data and can be copied, so that a profile can be made while tracing goes on, on another thread.

use std::{collections::HashMap, sync::Arc};

use super::{address_space::AddressSpace, survey::CodeFile};
use crate::{
    model::ProcessKey,
    probe::plan::Plan,
    proc::{files, identity},
    symbolize::PerfMap,
};

/// A process and the program that it runs.
#[derive(Clone)]
pub struct Program {
    /// Who it is.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
    /// Its code, for names.
    pub space: AddressSpace,
    /// Files that `space` refers to by index.
    pub files: Vec<Arc<CodeFile>>,
    /// Probes in place and how they were chosen.
    pub plan: Plan,
    /// Files that were not read, or not wholly: which, and why.
    pub unread: Vec<String>,
    /// Names of its threads by id, as they were last seen.
    pub threads: HashMap<u32, String>,
    /// Children that it was seen to have.
    pub children: u64,
    /// Names of code that was made at run time, where the program tells.
    pub jit: Option<PerfMap>,
}

impl Program {
    /// Of a process of which nothing but its name is known.
    pub fn new(key: ProcessKey, comm: String) -> Self {
        Self {
            key,
            comm,
            space: AddressSpace::default(),
            files: Vec::new(),
            plan: Plan::default(),
            unread: Vec::new(),
            threads: HashMap::new(),
            children: 0,
            jit: None,
        }
    }

    /// Whether some of its code is Go.
    pub fn is_go(&self) -> bool {
        self.files.iter().any(|file| file.go.is_some())
    }

    /// Reads what can be read only while the process lives: the names of its threads, and the map that a JIT compiler
    /// keeps of its code.
    pub fn read_names(&mut self) {
        let pid = self.key.pid;
        let map = format!("/tmp/perf-{pid}.map");
        // What was read earlier is better than nothing when the process is gone.
        if let Ok(names) = files::open_named(pid, map.as_ref(), MAX_MAP).and_then(PerfMap::read) {
            self.jit = Some(names);
        }
        let threads = identity::read_threads(pid).unwrap_or_default();
        // Threads that ended keep their names as long as there are few.
        if self.threads.len() > MAX_NAMES {
            self.threads.clear();
        }
        let names = threads
            .into_iter()
            .filter_map(|tid| Some((tid, identity::read_thread_name(pid, tid)?)));
        self.threads.extend(names);
    }

    /// Notes a new thread or child.
    pub fn note_task(&mut self, task: u32) {
        if identity::thread_group(task).is_ok_and(|process| process == task) {
            self.children += 1;
        }
    }
}

/// Most bytes of a JIT compiler's map where a copy of it is read.
const MAX_MAP: u64 = 64 << 20;
/// Names of threads that are kept.
const MAX_NAMES: usize = 1 << 16;
