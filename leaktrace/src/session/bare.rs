//! Probes that do nothing, at the places that a recording would choose: what the probes cost by themselves.

use std::time::Duration;

use super::{
    recording::RecordError,
    survey::Surveyor,
    tracer::{self, TraceError},
};
use crate::{bpf::kernel::Kernel, model::page_size};

/// Attaches to a process and waits, or until standard input ends.
pub fn hold(pid: u32, entry_only: bool, duration: Duration) -> Result<(), RecordError> {
    let survey = Surveyor::new().survey(pid)?;
    let parts = Kernel::load(tracer::sizes(std::slice::from_ref(&survey), page_size() as u32))?;
    let wanted = tracer::wanted(&survey, &Default::default());
    let probes: Vec<_> = wanted.iter().map(|wanted| wanted.probe(0)).collect();
    let links = parts
        .kernel
        .attach_bare(&probes, Some(pid), entry_only)
        .map_err(TraceError::from)?;
    eprintln!("tracing pid {pid} with {} bare probes", links.len());
    std::thread::sleep(duration);
    Ok(())
}
