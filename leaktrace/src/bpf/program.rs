//! Uprobe programs, which aya cannot load as sessions, nor one of them several times: relocated with aya-obj against the
//! maps that aya made, loaded and attached by [`super::syscall`] and [`super::perf_event`].

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use aya::programs::{ProgramError, ProgramFd};
use aya_obj::Object;

use super::{
    kernel::LoadError,
    perf_event, private_stack,
    syscall::{self, AttachType, ProgramImage},
};

/// The object, relocated, ready to load single programs from.
pub struct ProgramSource {
    object: Object,
    btf: Option<OwnedFd>,
    /// The code names maps by these descriptors: they have to stay open as long as programs may be loaded.
    _maps: Vec<OwnedFd>,
}

impl ProgramSource {
    /// Relocates the object against maps that exist: `map_fd` tells each by name.
    pub fn new<'m>(image: &[u8], map_fd: impl Fn(&str) -> Option<BorrowedFd<'m>>) -> Result<Self, LoadError> {
        let corrupt = |error: &dyn std::fmt::Display| LoadError::Object(error.to_string());
        let mut object = Object::parse(image).map_err(|error| corrupt(&error))?;
        let features = aya::features();
        let btf = match features.btf() {
            Some(features) => {
                let btf = object
                    .fixup_and_sanitize_btf(features)
                    .map_err(|error| corrupt(&error))?;
                btf.map(|btf| syscall::load_btf(&btf.to_bytes()))
                    .transpose()
                    .map_err(LoadError::Btf)?
            }
            None => None,
        };
        let text_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = std::mem::take(&mut object.maps);
        let mut known = Vec::with_capacity(maps.len());
        let mut open = Vec::with_capacity(maps.len());
        for (name, map) in &maps {
            let fd = map_fd(name).ok_or_else(|| LoadError::Object(format!("map `{name}` was not created")))?;
            let fd = fd.try_clone_to_owned().map_err(|error| corrupt(&error))?;
            known.push((name.as_str(), fd.as_raw_fd(), map));
            open.push(fd);
        }
        object
            .relocate_maps(known.into_iter(), &text_sections)
            .map_err(|error| corrupt(&error))?;
        object.relocate_calls(&text_sections).map_err(|error| corrupt(&error))?;
        object.sanitize_functions(features);
        Ok(Self {
            object,
            btf,
            _maps: open,
        })
    }

    /// Loads one program for an attach type.
    pub fn load(&self, name: &str, attach_type: AttachType) -> Result<OwnedFd, LoadError> {
        let program = self.object.programs.get(name);
        let program = program.ok_or_else(|| LoadError::Object(format!("program `{name}` is not in the object")))?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.ok_or_else(|| LoadError::Object(format!("program `{name}` has no code")))?;
        let func_info = function.func_info.func_info_bytes();
        let line_info = function.line_info.line_info_bytes();
        let image = ProgramImage {
            name,
            instructions: &function.instructions,
            license: &program.license,
            btf: self.btf.as_ref().map(OwnedFd::as_fd),
            func_info: (&func_info, function.func_info_rec_size),
            line_info: (&line_info, function.line_info_rec_size),
        };
        let loaded = syscall::load_program(&image, attach_type).map_err(|(cause, log)| LoadError::Verifier {
            program: name.to_owned(),
            cause,
            log,
        })?;
        refuse_private_stack(name, loaded.as_fd())?;
        Ok(loaded)
    }
}

/// An error if the kernel gave the program a stack that threads on one CPU would share.
fn refuse_private_stack(name: &str, program: BorrowedFd<'_>) -> Result<(), LoadError> {
    match private_stack::is_private(program) {
        Ok(Some(true)) => Err(LoadError::PrivateStack {
            program: name.to_owned(),
        }),
        Ok(Some(false)) => Ok(()),
        Ok(None) => {
            tracing::debug!("the kernel does not show what BPF program `{name}` was compiled to");
            Ok(())
        }
        Err(error) => {
            tracing::debug!("failed to read what BPF program `{name}` was compiled to: {error}");
            Ok(())
        }
    }
}

/// Loads a program that aya keeps, whatever signals come meanwhile.
pub fn load(program: &'static str, load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), LoadError> {
    syscall::through_signals(
        load,
        |error| matches!(error, ProgramError::LoadError { io_error, .. } if syscall::was_interrupted(io_error)),
    )
    .map_err(|cause| match cause {
        ProgramError::LoadError { io_error, verifier_log } => LoadError::Verifier {
            program: program.to_owned(),
            cause: io_error,
            log: verifier_log.to_string(),
        },
        cause => LoadError::Program { program, cause },
    })
}

/// The same as for uprobe programs, of one that aya keeps and has loaded.
pub fn refuse_private_stack_of(
    program: &'static str,
    loaded: Result<&ProgramFd, ProgramError>,
) -> Result<(), LoadError> {
    let fd = loaded.map_err(|cause| LoadError::Program { program, cause })?;
    refuse_private_stack(program, fd.as_fd())
}

/// A loaded uprobe program and how it is attached.
pub struct UprobeProgram {
    fd: OwnedFd,
    attach_type: AttachType,
    /// Of a perf event: whether it stands at the return.
    at_return: bool,
}

impl UprobeProgram {
    /// Loads an instance.
    pub fn load(source: &ProgramSource, name: &str, attach_type: AttachType) -> Result<Self, LoadError> {
        Ok(Self {
            fd: source.load(name, attach_type)?,
            attach_type,
            at_return: false,
        })
    }

    /// The same for returns alone, as perf events.
    pub fn load_for_returns(source: &ProgramSource, name: &str) -> Result<Self, LoadError> {
        Ok(Self {
            at_return: true,
            ..Self::load(source, name, AttachType::PerfEvent)?
        })
    }

    /// How often it ran and for how many nanoseconds, while the kernel counts.
    pub fn usage(&self) -> (u64, Duration) {
        let (runs, nanos) = syscall::program_usage(self.fd.as_fd()).unwrap_or_default();
        (runs, Duration::from_nanos(nanos))
    }

    /// Attaches it to places of a file, each with a cookie; `pid` confines the probes to one process.
    pub fn attach(&self, path: &CStr, places: &[(u64, u64)], pid: Option<u32>) -> io::Result<Vec<OwnedFd>> {
        if self.attach_type == AttachType::PerfEvent {
            return places
                .iter()
                .map(|(offset, cookie)| {
                    let event = perf_event::open_uprobe(path, *offset, self.at_return, pid)?;
                    syscall::link_perf_event(self.fd.as_fd(), event.as_fd(), *cookie)
                })
                .collect();
        }
        let (offsets, cookies): (Vec<u64>, Vec<u64>) = places.iter().copied().unzip();
        syscall::attach_uprobes(self.fd.as_fd(), self.attach_type, path, &offsets, &cookies, pid).map(|link| vec![link])
    }
}
