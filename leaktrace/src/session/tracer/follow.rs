//! What changes in a traced process: new code, another program, threads, sharers of its memory, its end.
//!
//! Invariant: a pid is looked at for nobody but the process that was attached to; another one that has got the pid meanwhile
//! is neither looked at nor counted.

use std::time::{Duration, Instant};

use super::{TraceError, Traced, Tracer, attach::switch, seed};
use crate::{
    proc::{identity, living, maps},
    session::{
        address_space::{AddressSpace, Look},
        code::Code,
        code_spans::{file_code, made_code, makes_code},
        pump::{Notice, monotonic},
    },
};

/// How often a process is looked at that makes code itself: a compiler may do so a thousand times a second.
const MADE_CODE_INTERVAL: Duration = Duration::from_millis(100);

impl Tracer {
    /// Looks at a process again after code came to be in it.
    pub fn refresh(&mut self, pid: u32) -> Result<(), TraceError> {
        if !self.is_there(pid) {
            return Ok(());
        }
        if self.look_at_made_code(pid)? {
            return Ok(());
        }
        self.survey_again(pid)
    }

    /// Looks at all of a process again, its files too: one may be another than before where nothing else is.
    fn survey_again(&mut self, pid: u32) -> Result<(), TraceError> {
        if !self.is_there(pid) {
            return Ok(());
        }
        let survey = self.surveyor.survey(pid)?;
        self.update(survey)
    }

    /// Looks where the program has made code itself, if that is all that changed. Returns whether it is.
    fn look_at_made_code(&mut self, pid: u32) -> Result<bool, TraceError> {
        let begun = monotonic();
        let mappings = maps::read_maps(pid)?;
        let look = Look {
            begun,
            done: monotonic(),
        };
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(true);
        };
        if traced.file_code.is_empty() || !file_code(&mappings).eq(traced.file_code.iter().copied()) {
            return Ok(false);
        }
        traced.looked = Instant::now();
        traced.is_due = false;
        let files: Vec<_> = traced
            .program
            .files
            .iter()
            .filter(|file| file.is_made())
            .cloned()
            .collect();
        let Some(code) = self.code.code(pid) else {
            return Ok(false);
        };
        let made = made_code(&mappings, &files, &code.made);
        traced.program.has_made_code |= makes_code(&mappings, &files);
        traced.program.hold_names();
        let spans = traced.program.numbered(&code.spans);
        traced.program.space.note(look, spans.into_iter());
        if made == code.made {
            return Ok(true);
        }
        let spans = code.spans.clone();
        self.store_code(pid, Code { spans, made })?;
        Ok(true)
    }

    /// Looks at processes that made code of late. To be called several times a second, or as [`due`](Self::due) says.
    pub fn catch_up(&mut self) {
        if std::mem::take(&mut self.has_room) {
            let Self {
                code,
                processes,
                table,
                generation,
                ..
            } = self;
            code.extend(&mut |pid, run, left_out| switch(processes, table, generation, pid, run, left_out));
        }
        let is_due = |traced: &Traced| traced.is_due && traced.looked.elapsed() >= MADE_CODE_INTERVAL;
        let due: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, traced)| is_due(traced))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            if let Some(traced) = self.processes.get_mut(&pid) {
                // Whatever comes of it.
                traced.is_due = false;
            }
            if let Err(error) = self.refresh(pid) {
                tracing::debug!("failed to look for new code of pid {pid}: {error}");
            }
        }
    }

    /// When [`catch_up`](Self::catch_up) has something to do.
    pub fn due(&self) -> Option<Instant> {
        let due = self.processes.values().filter(|traced| traced.is_due);
        let due = due.map(|traced| traced.looked + MADE_CODE_INTERVAL);
        due.chain(self.has_room.then(Instant::now)).min()
    }

    /// Notes that a process has made code; it is looked at now, or later if that was done just before.
    fn note_made_code(&mut self, pid: u32) -> Result<(), TraceError> {
        match self.processes.get_mut(&pid) {
            Some(traced) if traced.looked.elapsed() < MADE_CODE_INTERVAL => {
                traced.is_due = true;
                Ok(())
            }
            _ => self.refresh(pid),
        }
    }

    /// Begins anew with a process that runs another program now.
    pub fn restart(&mut self, pid: u32) -> Result<(), TraceError> {
        let generation = self.generation;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        if let Some(slot) = &traced.slot {
            self.table.forget_earlier(slot);
        }
        traced.ended = false;
        traced.program.space = AddressSpace::default();
        traced.program.files.clear();
        traced.program.forget_made_code();
        traced.program.sharers.clear();
        traced.file_code.clear();
        self.code.forget_made(pid);
        // Of all threads the one that asked for this is left, and it has its process's pid now.
        traced.thread = pid;
        traced.seed = seed(traced.program.key, generation + 1);
        self.refresh(pid)
    }

    /// Acts on something that the kernel side noticed.
    pub fn act_on(&mut self, notice: Notice) -> Result<(), TraceError> {
        match notice {
            // The notice of a sharer may be among those that were lost; this one stands for all.
            Notice::CodeMapped { pid, is_made: false } => match self.sharer_without_probes(pid) {
                Some(sharer) => self.include_sharer(pid, sharer),
                None => self.survey_again(pid),
            },
            Notice::CodeMapped { pid, is_made: true } => self.note_made_code(pid),
            Notice::Exec(pid) => self.restart(pid),
            Notice::Fork { pid, child } => {
                if let Some(program) = self.program_mut(pid) {
                    program.note_task(child);
                }
                Ok(())
            }
            Notice::Sharer { pid, sharer, missed } => self.note_sharer(pid, sharer, missed),
            Notice::ThreadExit { pid, tid } => {
                let key = self.processes.get(&pid).map(|traced| traced.program.key);
                if key.is_some_and(|key| !living::is_running(key)) {
                    self.end(pid);
                    return Ok(());
                }
                self.replace_thread(pid, tid)
            }
        }
    }

    /// A process has ended: nothing that its pid does from now on is its doing. What is known of it stays.
    pub fn end(&mut self, pid: u32) {
        self.set_active(pid, false);
        if let Some(traced) = self.processes.get_mut(&pid)
            && let Some(slot) = &mut traced.slot
        {
            traced.has_ended = true;
            self.table.end(slot);
        }
    }

    /// Whether a process is still the one that was attached to. If not, it is left alone from now on.
    fn is_there(&mut self, pid: u32) -> bool {
        let Some(traced) = self.processes.get(&pid).filter(|traced| !traced.has_ended) else {
            return false;
        };
        let key = traced.program.key;
        let is_there = identity::read_key(pid).is_ok_and(|now| now == key);
        if !is_there {
            self.end(pid);
        }
        is_there
    }
}
