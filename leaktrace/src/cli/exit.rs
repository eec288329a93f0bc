//! Exit codes: one for each kind of failure, so that scripts can tell them apart.

use std::{io::ErrorKind, process::ExitCode};

use nix::errno::Errno;

use super::{report::ReportError, target::TargetError, top::source::SourceError};
use crate::{
    bpf::{features::FeatureError, kernel::LoadError, requirements::Obstacle},
    daemon::{config::ConfigError, http::HttpError, run::DaemonError, store::StoreError},
    export::file::WriteError,
    proc::ProcError,
    runtime::{RuntimeError, go::GoError},
    session::{launch::LaunchError, recording::RecordError, tracer::TraceError},
};

/// What went wrong, as the exit code tells it. 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything without a code of its own; `doctor`: recording would not work.
    Failure = 1,
    /// The arguments make no sense together; clap's own status.
    Usage = 2,
    /// There is no such process.
    NoSuchProcess = 3,
    /// The pid is a kernel thread.
    KernelThread = 4,
    /// The process ended while it was being attached to.
    ProcessGone = 5,
    /// A privilege is missing.
    Permission = 6,
    /// The kernel lacks something.
    KernelLacks = 7,
    /// The target has no allocator that is known, or none of its functions can be probed.
    NoAllocator = 8,
    /// The output cannot be written.
    Unwritable = 9,
    /// The input is no profile, or a damaged one.
    CorruptProfile = 10,
    /// The BPF programs were refused.
    Refused = 11,
    /// The command could not be run.
    CommandFailed = 12,
    /// The input cannot be read.
    Unreadable = 13,
    /// What was asked for is not in the profile: a sample type, a function; or two profiles do not compare.
    NotInProfile = 14,
    /// The process is no Go program.
    NotGo = 15,
    /// Its runtime is of a release that is not known.
    UnsupportedRuntime = 16,
    /// The profile store belongs to another version, is none, or is damaged beyond reading.
    ForeignStore = 17,
    /// Another daemon writes to the profile store.
    StoreInUse = 18,
    /// The daemon does not run, or does not answer.
    NoDaemon = 19,
    /// The daemon's configuration is missing or wrong.
    Configuration = 20,
    /// The daemon cannot listen: an address or socket is in use, or may not be used as it is meant.
    Address = 21,
    /// Calls were made, and all of them were lost.
    AllLost = 22,
    /// `why`: the memory of the process, or of a child of it, grows.
    Grows = 23,
    /// Several processes have the name that was asked for.
    Ambiguous = 24,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// One line for an error: its message, and each cause that the message does not tell already.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> ExitCode {
    let known = error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<RecordError>() {
            return Some(of_record(error));
        }
        if let Some(error) = cause.downcast_ref::<ProcError>() {
            return Some(of_process(error));
        }
        if let Some(error) = cause.downcast_ref::<GoError>() {
            return Some(of_go(error));
        }
        if let Some(error) = cause.downcast_ref::<ReportError>() {
            return Some(of_report(error));
        }
        if let Some(error) = cause.downcast_ref::<TargetError>() {
            return Some(of_target(error));
        }
        if cause.is::<ConfigError>() {
            return Some(Exit::Configuration);
        }
        if let Some(error) = cause.downcast_ref::<HttpError>() {
            return Some(of_http(error));
        }
        if let Some(error) = cause.downcast_ref::<DaemonError>() {
            return Some(of_daemon(error));
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return Some(of_store(error));
        }
        if let Some(error) = cause.downcast_ref::<SourceError>() {
            return Some(of_source(error));
        }
        if cause.is::<WriteError>() {
            return Some(Exit::Unwritable);
        }
        cause.downcast_ref::<FeatureError>().map(of_feature)
    });
    known.unwrap_or(Exit::Failure).into()
}

fn of_record(error: &RecordError) -> Exit {
    match error {
        RecordError::Process(error) => of_process(error),
        RecordError::NoAllocator { .. } | RecordError::NotProbed { .. } => Exit::NoAllocator,
        RecordError::Load(error) => of_load(error),
        RecordError::Trace(TraceError::Process(error)) => of_process(error),
        RecordError::Trace(TraceError::Load(error)) => of_load(error),
        RecordError::Trace(TraceError::Attach(_)) => Exit::Refused,
        RecordError::Trace(
            TraceError::Table { .. }
            | TraceError::Withdrawn { .. }
            | TraceError::Shared { .. }
            | TraceError::SharerMissed { .. }
            | TraceError::TooManySamples { .. }
            | TraceError::Shares { .. },
        )
        | RecordError::Thread(_)
        | RecordError::NoAnswer(_) => Exit::Failure,
        RecordError::Launch(LaunchError::Spawn { .. } | LaunchError::Ended { .. }) => Exit::CommandFailed,
        RecordError::Launch(LaunchError::Trace { cause, .. }) => match cause {
            Errno::EPERM | Errno::EACCES => Exit::Permission,
            _ => Exit::Failure,
        },
        RecordError::Gone(_) => Exit::ProcessGone,
    }
}

fn of_target(error: &TargetError) -> Exit {
    match error {
        TargetError::NotFound { .. } | TargetError::Empty { .. } => Exit::NoSuchProcess,
        TargetError::Ambiguous { .. } => Exit::Ambiguous,
        TargetError::Words { .. } => Exit::Usage,
    }
}

fn of_report(error: &ReportError) -> Exit {
    match error {
        ReportError::NotFound(_) | ReportError::Unreadable { .. } => Exit::Unreadable,
        ReportError::Corrupt { .. } => Exit::CorruptProfile,
        ReportError::Unwritable(_) => Exit::Unwritable,
        _ => Exit::NotInProfile,
    }
}

fn of_daemon(error: &DaemonError) -> Exit {
    match error {
        DaemonError::Config(_) => Exit::Configuration,
        DaemonError::Store(error) => of_store(error),
        DaemonError::Http(error) => of_http(error),
        DaemonError::Start { .. } => Exit::Failure,
    }
}

fn of_http(error: &HttpError) -> Exit {
    match error {
        HttpError::Token(_) | HttpError::Tls { .. } | HttpError::Exposed { .. } => Exit::Configuration,
        HttpError::Random(_) => Exit::Failure,
        HttpError::PortInUse { .. }
        | HttpError::Listen { .. }
        | HttpError::SocketInUse { .. }
        | HttpError::NotASocket { .. }
        | HttpError::Socket { .. } => Exit::Address,
    }
}

fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::NotAStore { .. } | StoreError::OtherVersion { .. } => Exit::ForeignStore,
        StoreError::InUse { .. } => Exit::StoreInUse,
        StoreError::NotFound(_) | StoreError::NoSuchProfile { .. } => Exit::Unreadable,
        StoreError::Damaged { .. } => Exit::CorruptProfile,
        StoreError::Insecure { .. } => Exit::Permission,
        StoreError::NotGzip(_) | StoreError::TooLarge { .. } | StoreError::Paused(_) => Exit::Unwritable,
        StoreError::Io { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => Exit::Permission,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem => Exit::Unwritable,
            _ => Exit::Unreadable,
        },
    }
}

fn of_source(error: &SourceError) -> Exit {
    match error {
        SourceError::NotRunning { .. } | SourceError::Silent { .. } => Exit::NoDaemon,
        SourceError::Denied { .. } | SourceError::Refused { status: 401 | 403, .. } => Exit::Permission,
        SourceError::Refused { .. }
        | SourceError::Foreign { .. }
        | SourceError::Nothing(_)
        | SourceError::Thread(_) => Exit::Failure,
        SourceError::Process(error) => of_process(error),
        SourceError::Feature(error) => of_feature(error),
        SourceError::Record(error) => of_record(error),
        SourceError::Runtime(error) => of_runtime(error),
    }
}

fn of_process(error: &ProcError) -> Exit {
    match error {
        ProcError::NoSuchProcess { .. } | ProcError::Thread { .. } => Exit::NoSuchProcess,
        ProcError::Exited { .. } => Exit::ProcessGone,
        ProcError::KernelThread { .. } => Exit::KernelThread,
        ProcError::Permission { .. } => Exit::Permission,
        ProcError::Malformed { .. } | ProcError::Io { .. } => Exit::Failure,
    }
}

fn of_go(error: &GoError) -> Exit {
    match error {
        GoError::Process(error) => of_process(error),
        GoError::NotGo { .. } => Exit::NotGo,
        GoError::Unsupported { .. } => Exit::UnsupportedRuntime,
        GoError::Memory { .. } | GoError::Corrupt { .. } => Exit::Failure,
    }
}

fn of_runtime(error: &RuntimeError) -> Exit {
    match error {
        RuntimeError::Process(error) => of_process(error),
        RuntimeError::Foreign(_) => Exit::NotGo,
        RuntimeError::Unsupported(_) => Exit::UnsupportedRuntime,
        RuntimeError::Unreadable(_) => Exit::Failure,
    }
}

fn of_load(error: &LoadError) -> Exit {
    match error {
        LoadError::Tracepoint { .. } if !error.is_refusal() => Exit::KernelLacks,
        // By its age, or by a lock.
        _ if Obstacle::here().is_some() => Exit::KernelLacks,
        _ => Exit::Refused,
    }
}

fn of_feature(error: &FeatureError) -> Exit {
    match error {
        FeatureError::Capability { .. } | FeatureError::Admin(_) | FeatureError::Closed => Exit::Permission,
        FeatureError::Unknown { .. } => Exit::Failure,
        _ => Exit::KernelLacks,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn stores_have_statuses_of_their_own() {
        let path = PathBuf::from("/x");
        let version = StoreError::OtherVersion {
            path: path.clone(),
            found: 2,
            known: 1,
        };
        assert_eq!(of_store(&version) as u8, 17);
        assert_eq!(of_store(&StoreError::InUse { path, pid: None }) as u8, 18);
        let error = anyhow::Error::from(version);
        assert_eq!(format!("{:?}", code(&error)), format!("{:?}", ExitCode::from(17)));
    }
}
