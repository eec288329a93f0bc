//! Attaching: a process's code and settings to the kernel side, and probes to its code.
//!
//! Order matters for the truth of the numbers: a process is made known with its unwind tables before its first probe, and for
//! code that comes later `bpf::links` sees to the order of the probes.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    os::fd::AsFd,
    time::Instant,
};

use leaktrace_common::config::{PROCESS_ACTIVE, PROCESS_TRACK_MMAP, Process};

use super::{Settings, TraceError, Traced, Tracer};
use crate::{
    bpf::{
        kernel::UprobeMechanism,
        links::{Probe, Role},
        processes::ProcessTable,
        program_set::ProgramSet,
    },
    probe::plan::ReturnProbe,
    proc::{living, maps::FileId, sharing},
    session::{
        code::{Code, LeftOut},
        code_spans::{code_spans, file_code, made_code, makes_code},
        shares::Holder,
        survey::{CodeFile, Survey},
    },
};

impl Tracer {
    pub(super) fn update(&mut self, mut survey: Survey) -> Result<(), TraceError> {
        let pid = survey.key().pid;
        let key = survey.key();
        let Some(traced) = self.processes.get_mut(&pid).filter(|traced| traced.program.key == key) else {
            return Ok(());
        };
        let known = self.code.code(pid).map_or(&[][..], |code| &code.made);
        let code = Code {
            spans: code_spans(&survey),
            made: made_code(&survey.mappings, &survey.files, known),
        };
        traced.user = survey.identity.uid;
        traced.looked = Instant::now();
        traced.is_due = false;
        let program = &mut traced.program;
        program.comm.clone_from(&survey.identity.comm);
        program.has_made_code |= makes_code(&survey.mappings, &survey.files);
        program.hold_names();
        program.untraceable = match &survey.detection {
            Err(cause) if survey.runtime().is_none() => Some(cause.to_string()),
            _ => None,
        };
        let spans = program.numbered(&code.spans);
        program.space.note(survey.look, spans.into_iter());
        program.space.drop_unused(&mut program.files);
        let Some(slot) = self.store_code(pid, code)? else {
            return Ok(());
        };
        self.find_sharers(pid)?;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let follows_calls = traced.settings.growth_interval == 0 && !traced.ended;
        if follows_calls && !wanted(&survey, &traced.probed).is_empty() {
            // Some time may have passed since the survey.
            survey.verify_again()?;
        }
        let withdrawn = &survey.plan.withdrawn;
        if let Some(cause) = survey.plan.refused.last()
            && withdrawn.iter().any(|file| !traced.withdrawn.contains(file))
        {
            tracing::warn!(
                "pid {pid}: {} functions are not traced, such as {cause}",
                survey.plan.refused.len()
            );
            traced.withdrawn.extend(withdrawn);
        }
        if follows_calls && withdrawn.iter().any(|file| traced.has_probes_in(*file)) {
            let cause = survey.plan.refused.first().cloned();
            traced.program.plan = survey.plan;
            return self.withdraw(pid, cause);
        }
        let probes = wanted(&survey, &traced.probed);
        if !probes.is_empty() && follows_calls {
            let places: Vec<_> = probes.iter().map(|wanted| wanted.probe(slot)).collect();
            let links = self
                .kernel
                .attach(&places, Some(traced.thread), traced.programs.as_ref())?;
            traced.links.append(links);
            traced
                .probed
                .extend(probes.iter().map(|wanted| (wanted.file.id, wanted.offset)));
        }
        traced.program.unread = survey.unread();
        traced.program.plan = survey.plan;
        // Only now: what failed is tried again as a whole.
        traced.file_code = file_code(&survey.mappings).collect();
        Ok(())
    }

    /// Tells the kernel side where a process has which code, and what else it has to know of it. Returns its slot.
    pub(super) fn store_code(&mut self, pid: u32, code: Code) -> Result<Option<u16>, TraceError> {
        let Some(traced) = self.processes.get(&pid) else {
            return Ok(None);
        };
        let holder = Holder { user: traced.user, pid };
        let Self {
            code: tables,
            processes,
            table,
            generation,
            ..
        } = self;
        tables.store(holder, code, &mut |pid, run, left_out| {
            switch(processes, table, generation, pid, run, left_out);
        });
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(None);
        };
        if let Some(slot) = &traced.slot {
            return Ok(Some(slot.number()));
        }
        let slot = self.table.add(traced.process, traced.user);
        let slot = slot.map_err(|cause| TraceError::Table { pid, cause })?;
        Ok(Some(traced.slot.insert(slot).number()))
    }

    /// Later probes of a process are attached through this thread, which is not its first.
    pub(super) fn attach_through(&mut self, pid: u32, thread: u32) {
        if let Some(traced) = self.processes.get_mut(&pid) {
            traced.thread = thread;
            let suits = |programs: &ProgramSet| programs.mechanism() == UprobeMechanism::PerfEvent;
            if !traced.programs.as_ref().is_some_and(suits) {
                traced.programs = Some(self.kernel.thread_program_set());
            }
        }
    }

    /// A thread ended. If the probes of its process were attached through it, they are attached through another one: the
    /// kernel takes them away, or does so as soon as somebody else's are taken from the same places. New ones are there
    /// before the old ones go, and what both tell of one call is told once: the second entry is nested in the first, and
    /// finds its return taken.
    pub(super) fn replace_thread(&mut self, pid: u32, tid: u32) -> Result<(), TraceError> {
        let is_held_by = |traced: &&Traced| traced.thread == tid && traced.settings.growth_interval == 0;
        let Some(traced) = self.processes.get(&pid).filter(is_held_by) else {
            return Ok(());
        };
        // What the kernel counts as perf events is gone with the thread; sessions stay for the moment.
        let had_gap = self.mechanism_of(traced) == UprobeMechanism::PerfEvent;
        let Some(thread) = living::successor(pid) else {
            return Ok(());
        };
        self.attach_again(pid, thread)?;
        if let Some(traced) = self.processes.get_mut(&pid) {
            traced.program.gaps += u64::from(had_gap);
        }
        Ok(())
    }

    /// Attaches all probes of a process once more, as perf events through a thread of it, and then takes the old ones away.
    pub(super) fn attach_again(&mut self, pid: u32, thread: u32) -> Result<(), TraceError> {
        let survey = self.surveyor.survey(pid)?;
        self.attach_through(pid, thread);
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let old = std::mem::take(&mut traced.links);
        traced.probed.clear();
        let result = self.update(survey);
        drop(old);
        result
    }

    /// Looks for processes that use the memory of one that is new here. Those that come later the kernel side notes before
    /// their first instruction.
    fn find_sharers(&mut self, pid: u32) -> Result<(), TraceError> {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let Some(slot) = traced.slot.as_ref().filter(|_| !traced.has_sought_sharers) else {
            return Ok(());
        };
        traced.has_sought_sharers = true;
        for sharer in sharing::sharers(pid) {
            self.table
                .share(slot, sharer)
                .map_err(|cause| TraceError::Table { pid, cause })?;
            traced.program.note_sharer(sharer);
        }
        if !traced.program.sharers.is_empty() && traced.settings.growth_interval == 0 {
            let thread = traced.thread;
            self.attach_through(pid, thread);
        }
        Ok(())
    }

    pub(super) fn mechanism_of(&self, traced: &Traced) -> UprobeMechanism {
        traced
            .programs
            .as_ref()
            .map_or(self.kernel.mechanism(), ProgramSet::mechanism)
    }
}

/// Has a process's entry in the kernel refer to another run of mappings.
pub(super) fn switch(
    processes: &mut HashMap<u32, Traced>,
    table: &mut ProcessTable,
    generation: &mut u64,
    pid: u32,
    run: Range<u32>,
    left_out: LeftOut,
) {
    let Some(traced) = processes.get_mut(&pid) else {
        return;
    };
    *generation += 1;
    traced.process = Process {
        pid,
        flags: flags(&traced.settings, traced.active && !traced.ended),
        mapping_first: run.start,
        mapping_count: run.end - run.start,
        sample_interval: traced.settings.sample_interval,
        min_size: traced.settings.min_size,
        growth_interval: traced.settings.growth_interval,
        stack_seed: traced.seed,
        generation: *generation,
        ..Process::default()
    };
    if let Some(slot) = &mut traced.slot {
        table.change(slot, traced.process);
    }
    traced.program.note_left_out(left_out);
}

pub(super) fn flags(settings: &Settings, active: bool) -> u32 {
    let mmap = if settings.track_mmap { PROCESS_TRACK_MMAP } else { 0 };
    if active { mmap | PROCESS_ACTIVE } else { mmap }
}

/// A probe that is not in place yet.
pub(in crate::session) struct Wanted<'a> {
    file: &'a CodeFile,
    offset: u64,
    signature: leaktrace_common::signature::Signature,
    role: Role,
}

impl Wanted<'_> {
    pub(in crate::session) fn probe(&self, slot: u16) -> Probe<'_> {
        Probe {
            file: self.file.file.as_fd(),
            offset: self.offset,
            signature: self.signature.site(self.offset as u8).slot(slot),
            role: self.role,
        }
    }
}

/// The probes of a survey's plan that are not in place yet.
pub(in crate::session) fn wanted<'a>(survey: &'a Survey, probed: &HashSet<(FileId, u64)>) -> Vec<Wanted<'a>> {
    let mut result = Vec::new();
    for (file_plan, planned) in survey.plan.probes() {
        let Some(file) = survey.files.iter().find(|file| file.id == file_plan.file) else {
            continue;
        };
        let mut want = |offset: u64, role| {
            if !probed.contains(&(file.id, offset)) {
                result.push(Wanted {
                    file,
                    offset,
                    signature: planned.signature,
                    role,
                });
            }
        };
        match &planned.ret {
            ReturnProbe::None => want(planned.entry.offset.0, Role::Release),
            ReturnProbe::FunctionReturn => want(planned.entry.offset.0, Role::Call),
            ReturnProbe::Instructions(returns) => {
                want(planned.entry.offset.0, Role::Entry);
                returns.iter().for_each(|offset| want(offset.0, Role::ReturnSite));
            }
        }
    }
    result.sort_by_key(|wanted| (wanted.file.id, wanted.offset, wanted.role));
    result.dedup_by_key(|wanted| (wanted.file.id, wanted.offset));
    result
}
