//! `leaktrace doctor`: what would work here, what would not, and what to do about it.
//!
//! Gathers facts, turns them into a [`report`], prints it. Invariant: nothing on the machine or in the target is
//! changed: what is loaded to try the kernel out is gone when the program ends, and no process but this one is probed.

mod allocators;
mod machine;
mod memory;
mod names;
mod privileges;
mod report;
mod target;
mod unwinding;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use self::{machine::Machine, report::Report, target::Target};
use super::{exit::Exit, record, terminal};
use crate::{bpf::features, session::tracer};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Process to look at.
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,
}

/// Runs `doctor`.
pub fn run(arguments: &DoctorArgs) -> Result<ExitCode> {
    // First, so that a pid that names nothing to look at is told in one line, as `record` does.
    let target = arguments.pid.map(Target::inspect).transpose()?;
    let machine = Machine::inspect();
    let report = report(&machine, target.as_ref());
    let colour = terminal::width().is_some() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    terminal::print(&report.render(colour))?;
    Ok(if report.obstacles().is_empty() {
        ExitCode::SUCCESS
    } else {
        Exit::Failure.into()
    })
}

fn report(machine: &Machine, target: Option<&Target>) -> Report {
    let survey = target.and_then(|target| target.survey.as_ref().ok());
    let sizes = tracer::sizes(survey.map(std::slice::from_ref).unwrap_or_default(), record::RING_BYTES);
    let mut sections = vec![machine.kernel(features::map_bytes(&sizes)), machine.privileges()];
    if let Some(target) = target {
        sections.push(target.section(machine.release.version()));
    }
    if let Some(survey) = survey {
        sections.push(allocators::section(survey.key().pid, &survey.detection, &survey.plan));
        sections.push(unwinding::section(&unwinding::mappings(survey)));
        sections.extend(names::section(survey));
    }
    Report { sections }
}
