//! Uprobe programs that aya cannot load: relocated with aya-obj against the maps that aya made, loaded by
//! [`super::syscall`].

use std::{
    collections::HashSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya_obj::Object;

use super::{
    kernel::LoadError,
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
        syscall::load_program(&image, attach_type).map_err(|(cause, log)| LoadError::Verifier {
            program: name.to_owned(),
            cause,
            log,
        })
    }
}

/// A loaded program and how it is attached.
pub struct MultiProgram {
    fd: OwnedFd,
    attach_type: AttachType,
}

impl MultiProgram {
    pub fn new(fd: OwnedFd, attach_type: AttachType) -> Self {
        Self { fd, attach_type }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn attach_type(&self) -> AttachType {
        self.attach_type
    }
}
