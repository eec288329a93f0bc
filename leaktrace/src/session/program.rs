//! What is known of a traced process besides its probes: all that it takes to name the addresses in its ledger.
//!
//! It is plain data and can be copied, so that a profile can be made while tracing goes on, on another thread.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    address_space::{AddressSpace, CodeSpan},
    code::LeftOut,
    jit_names::JitNames,
    survey::{CodeFile, runtime_of},
};
use crate::{
    model::ProcessKey,
    probe::plan::Plan,
    proc::{identity, living},
    runtime::Runtime,
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
    /// Code that there was no room for in the kernel's arrays, when most was.
    pub left_out: LeftOut,
    /// Names of its threads by id, as they were last seen.
    pub threads: HashMap<u32, String>,
    /// Children that it was seen to have, with memory of their own.
    pub children: u64,
    /// Processes that use its memory, as far as they were seen: what they do is its doing.
    pub sharers: BTreeSet<u32>,
    /// How often its probes were gone for a moment: with the thread that they had been attached through.
    pub gaps: u64,
    /// Why the program that it runs now has no probes, if it has none.
    pub untraceable: Option<String>,
    /// It makes code itself.
    pub has_made_code: bool,
    /// Names of that, where the program tells.
    pub jit: Option<JitNames>,
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
            left_out: LeftOut::default(),
            threads: HashMap::new(),
            children: 0,
            sharers: BTreeSet::new(),
            gaps: 0,
            untraceable: None,
            has_made_code: false,
            jit: None,
        }
    }

    /// The managed runtime that some of its code is of.
    pub fn runtime(&self) -> Option<&'static dyn Runtime> {
        runtime_of(&self.files)
    }

    /// The same pieces of code with the numbers that their files have here.
    pub fn numbered(&mut self, spans: &[(CodeSpan, Arc<CodeFile>)]) -> Vec<CodeSpan> {
        let mut number = |file: &Arc<CodeFile>| {
            let known = self.files.iter().position(|known| Arc::ptr_eq(known, file));
            known.unwrap_or_else(|| {
                self.files.push(Arc::clone(file));
                self.files.len() - 1
            })
        };
        let numbered = spans.iter().map(|(span, file)| CodeSpan {
            file: number(file),
            ..*span
        });
        numbered.collect()
    }

    /// Notes code that is left out, and says so when it is the first.
    pub fn note_left_out(&mut self, left_out: LeftOut) {
        if left_out.is_some() && !self.left_out.is_some() {
            tracing::warn!("pid {}: {left_out}", self.key.pid);
        }
        if left_out.mappings + left_out.tables > self.left_out.mappings + self.left_out.tables {
            self.left_out = left_out;
        }
    }

    /// It runs another program now.
    pub fn forget_made_code(&mut self) {
        self.has_made_code = false;
        self.jit = None;
    }

    /// Holds the file with names of its own code open, if there is one: it can be read when the process has ended.
    pub fn hold_names(&mut self) {
        if !self.has_made_code {
            return;
        }
        match JitNames::open(self.key) {
            Ok(found) if self.jit.as_ref().is_none_or(|known| !known.is_of_same_file(&found)) => self.jit = Some(found),
            Ok(_) => {}
            Err(error) => tracing::debug!("no names of code that pid {} makes: {error}", self.key.pid),
        }
    }

    /// Reads what names can be read only while the process lives: those of its threads, and of the code that it makes, of
    /// which at most `limit` bytes are kept.
    pub fn read_names(&mut self, limit: usize) {
        let pid = self.key.pid;
        self.hold_names();
        if let Some(jit) = &mut self.jit
            && let Err(error) = jit.update(limit)
        {
            tracing::debug!("failed to read the names of code that pid {pid} makes: {error}");
        }
        if !living::is_running(self.key) {
            // Those that are there now may be another process's.
            return;
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

    /// Notes a process that uses its memory.
    pub fn note_sharer(&mut self, pid: u32) {
        if self.sharers.len() < MAX_NAMES {
            self.sharers.insert(pid);
        }
    }

    /// Notes a new thread or child.
    pub fn note_task(&mut self, task: u32) {
        if !self.sharers.contains(&task) && identity::thread_group(task).is_ok_and(|process| process == task) {
            self.children += 1;
        }
    }
}

/// Names of threads that are kept.
const MAX_NAMES: usize = 1 << 16;
