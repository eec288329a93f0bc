//! The programs that tell growth: attached while some process is followed without probes, since they run at every change
//! of every process's memory.

use std::time::Duration;

use aya::{
    programs::{
        PerfEvent, ProgramError, RawTracePoint, TracePoint,
        perf_event::{PerfEventConfig, PerfEventLink, PerfEventScope, SamplePolicy, SoftwareEvent},
        raw_trace_point::RawTracePointLink,
        trace_point::TracePointLink,
    },
    util::online_cpus,
};

use super::{
    kernel::{Kernel, LoadError},
    program,
};

/// All of them.
const PROGRAMS: [&str; 5] = ["resident", "settled", "fault", "brk_leave", "madvise_enter"];

/// The attached programs; dropping them detaches.
pub struct GrowthProbes {
    _arrivals: Arrivals,
    /// Both in user and in kernel mode; none on architectures that do not tell.
    _faults: Vec<RawTracePointLink>,
    _calls: [TracePointLink; 2],
}

/// How memory is seen to become resident. Dropping it detaches.
enum Arrivals {
    /// By the process's number of pages, which changes at each.
    Counted(#[expect(dead_code, reason = "kept attached")] RawTracePointLink),
    /// By the end of each fault, on each processor: before 6.2 threads count for themselves.
    Settled(#[expect(dead_code, reason = "kept attached")] Vec<PerfEventLink>),
}

impl Kernel {
    /// Attaches the programs that tell growth.
    ///
    /// # Errors
    /// When the kernel does not tell what they need, or refuses them.
    pub fn attach_growth(&mut self) -> Result<GrowthProbes, LoadError> {
        if self.places.anon_pages == 0 {
            return Err(LoadError::Places);
        }
        let mut faults = Vec::new();
        for name in ["page_fault_user", "page_fault_kernel"] {
            match self.attach_raw("fault", "exceptions", name) {
                Ok(link) => faults.push(link),
                // Then nothing is seen to become resident.
                Err(error) => tracing::debug!("{error}"),
            }
        }
        Ok(GrowthProbes {
            _arrivals: if self.places.thread_pages == 0 {
                Arrivals::Counted(self.attach_raw("resident", "kmem", "rss_stat")?)
            } else {
                Arrivals::Settled(self.attach_to_settled()?)
            },
            _faults: faults,
            _calls: [
                self.attach_call("brk_leave", "sys_exit_brk")?,
                self.attach_call("madvise_enter", "sys_enter_madvise")?,
            ],
        })
    }

    /// How often these programs ran and for how long, while the kernel counted.
    pub fn growth_usage(&self) -> (u64, Duration) {
        let loaded = PROGRAMS.iter().filter_map(|name| self.ebpf.program(name)?.info().ok());
        loaded.fold((0, Duration::ZERO), |(runs, time), program| {
            (runs + program.run_count(), time + program.run_time())
        })
    }

    fn attach_raw(
        &mut self,
        program: &'static str,
        category: &'static str,
        name: &'static str,
    ) -> Result<RawTracePointLink, LoadError> {
        let loaded: &mut RawTracePoint = self.program(program)?;
        if loaded.fd().is_err() {
            program::load(program, || loaded.load())?;
            program::refuse_private_stack_of(program, loaded.fd())?;
        }
        let link = loaded.attach(name).and_then(|id| loaded.take_link(id));
        link.map_err(|cause| LoadError::Tracepoint { category, name, cause })
    }

    fn attach_to_settled(&mut self) -> Result<Vec<PerfEventLink>, LoadError> {
        let program = "settled";
        let failed = |cause| LoadError::Program { program, cause };
        let loaded: &mut PerfEvent = self.program(program)?;
        if loaded.fd().is_err() {
            program::load(program, || loaded.load())?;
            program::refuse_private_stack_of(program, loaded.fd())?;
        }
        let cpus = online_cpus().map_err(|(_, cause)| failed(ProgramError::IOError(cause)))?;
        let event = PerfEventConfig::Software(SoftwareEvent::PageFaultsMin);
        let links = cpus.into_iter().map(|cpu| {
            let scope = PerfEventScope::AllProcessesOneCpu { cpu };
            let id = loaded.attach(event, scope, SamplePolicy::Period(1), false)?;
            loaded.take_link(id)
        });
        links.collect::<Result<_, _>>().map_err(failed)
    }

    fn attach_call(&mut self, program: &'static str, name: &'static str) -> Result<TracePointLink, LoadError> {
        let category = "syscalls";
        let loaded: &mut TracePoint = self.program(program)?;
        if loaded.fd().is_err() {
            program::load(program, || loaded.load())?;
            program::refuse_private_stack_of(program, loaded.fd())?;
        }
        let link = loaded.attach(category, name).and_then(|id| loaded.take_link(id));
        link.map_err(|cause| LoadError::Tracepoint { category, name, cause })
    }
}
