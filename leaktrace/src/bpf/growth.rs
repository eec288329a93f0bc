//! The programs that tell growth: attached while some process is followed without probes, since they run at every change
//! of every process's memory.

use std::time::Duration;

use aya::programs::{RawTracePoint, TracePoint, raw_trace_point::RawTracePointLink, trace_point::TracePointLink};

use super::{
    kernel::{Kernel, LoadError},
    program,
};

/// All of them.
const PROGRAMS: [&str; 4] = ["resident", "fault", "brk_leave", "madvise_enter"];

/// The attached programs; dropping them detaches.
pub struct GrowthProbes {
    _resident: RawTracePointLink,
    /// Both in user and in kernel mode; none on architectures that do not tell.
    _faults: Vec<RawTracePointLink>,
    _calls: [TracePointLink; 2],
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
            _resident: self.attach_raw("resident", "kmem", "rss_stat")?,
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
