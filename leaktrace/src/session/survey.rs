//! Looks at a process without touching it: its files, their unwind tables, its allocators, the probes that it needs.

use std::{collections::HashMap, fs::File, os::unix::ffi::OsStrExt, path::PathBuf, sync::Arc};

use super::{address_space::Look, pump::monotonic};
use crate::{
    allocator::{
        detect::{self, DetectError, Detection},
        inspect::{InspectedFile, Inspector},
    },
    model::{BuildId, ElfAddress, FileOffset, ProcessKey},
    object::image::Source,
    probe::{
        plan::{Features, Plan, Planner},
        verify::{self, Difference},
    },
    proc::{
        ProcError,
        copy::Charge,
        files::{FileVersion, open_mapped},
        identity::{self, Identity, Seccomp},
        maps::{self, FileId, Mapping},
        memory::ProcessMemory,
        pagemap,
        release::Release,
    },
    runtime::{self, Code, Runtime},
    unwind::{CompileJob, TableCache, TableResult},
};

/// A file with code that a process maps.
pub struct CodeFile {
    /// Device and inode, as `/proc/PID/maps` shows them.
    pub id: FileId,
    /// The state of the file that all of this was learned of.
    pub version: FileVersion,
    /// Path as the process sees it.
    pub path: PathBuf,
    /// Held open, so that it can be probed and symbolized whatever happens to its name or to the process.
    pub file: File,
    /// `file` is a copy.
    pub copied: Option<Arc<Charge>>,
    /// What was found in it; `None` if it is no usable ELF file.
    pub inspected: Option<Arc<InspectedFile>>,
    /// What is known of its code if that is of a managed runtime.
    pub managed: Option<Arc<dyn Code>>,
    /// Its unwind table, or why there is none; `None` if it is no usable ELF file.
    pub table: Option<TableResult>,
}

impl CodeFile {
    /// Its build ID: a label for output, which proves nothing.
    pub fn build_id(&self) -> Option<&BuildId> {
        self.inspected.as_ref()?.image.build_id()
    }

    /// Whether its code is what the program fills itself: in memory that has a file's name alone, and is no ELF file.
    pub fn is_made(&self) -> bool {
        let anonymous = ["/memfd:", "/dev/shm/", "/dev/zero", "/SYSV"];
        self.inspected.is_none()
            && anonymous
                .iter()
                .any(|name| self.path.as_os_str().as_bytes().starts_with(name.as_bytes()))
    }

    /// What is known of the code at an address, if that is of a managed runtime.
    pub fn managed_at(&self, address: u64) -> Option<&dyn Code> {
        self.managed.as_deref().filter(|code| code.covers(address))
    }

    /// Address of the first byte of an executable mapping, as the file's headers state it.
    pub fn mapping_address(&self, offset: FileOffset) -> Option<ElfAddress> {
        self.inspected.as_ref()?.image.mapping_address(offset)
    }
}

/// Files that were not read wholly and are told, at most.
const MAX_UNREAD: usize = 16;

/// What was seen of a process at one moment.
pub struct Survey {
    /// Who it is.
    pub identity: Identity,
    /// Everything that it maps.
    pub mappings: Vec<Mapping>,
    /// When the mappings were read and their files opened.
    pub look: Look,
    /// Files with code.
    pub files: Vec<Arc<CodeFile>>,
    /// Allocators found, or that there are none.
    pub detection: Result<Detection, DetectError>,
    /// The probes to place.
    pub plan: Plan,
    /// Files that were inspected and could not be opened again.
    unopened: Vec<Unopened>,
}

/// Which file, and why it could not be opened.
type Unopened = (FileId, PathBuf, String);
/// The files that were opened, those that were not, and when all were.
type OpenFiles = (Vec<Arc<CodeFile>>, Vec<Unopened>, u64);

impl Survey {
    /// The process.
    pub fn key(&self) -> ProcessKey {
        self.identity.key
    }

    /// Files that were not read, or not wholly: which, and why.
    pub fn unread(&self) -> Vec<String> {
        let (Ok(Detection { looked_in, .. }) | Err(DetectError::NoAllocator { looked_in, .. })) = &self.detection;
        let unopened = self.unopened.iter().map(|(_, path, why)| (path, Some(why)));
        looked_in
            .iter()
            .map(|(path, why)| (path, why.as_ref()))
            .chain(unopened)
            .filter_map(|(path, why)| Some(format!("{}: {}", path.display(), why?)))
            .take(MAX_UNREAD)
            .collect()
    }

    /// The managed runtime that some of its code is of.
    pub fn runtime(&self) -> Option<&'static dyn Runtime> {
        runtime_of(&self.files)
    }

    /// Looks once more whether the code to be probed is what was decoded, and takes out of the plan what is not.
    ///
    /// # Errors
    /// The process ended meanwhile.
    pub fn verify_again(&mut self) -> Result<(), ProcError> {
        self.mappings = maps::read_maps(self.key().pid)?;
        self.verify()
    }

    fn verify(&mut self) -> Result<(), ProcError> {
        let pid = self.key().pid;
        let memory = ProcessMemory::new(pid);
        // Code that cannot be read is refused, so it must not be for a reason of this process's own.
        if !self.plan.files.is_empty() {
            memory.hold()?;
        }
        let process = verify::Process {
            mappings: &self.mappings,
            memory: &memory,
            unwritten: &|start, len| pagemap::is_unwritten(pid, start, len).unwrap_or(false),
            debugger: identity::debugger(pid),
        };
        let file = |id| {
            let opened = self.files.iter().find(|file| file.id == id && file.inspected.is_some());
            let unopened = || self.unopened.iter().find(|(unopened, ..)| *unopened == id);
            match opened {
                Some(file) => Ok(&file.file as &dyn Source),
                None => Err(unopened().map_or(Difference::Replaced, |(.., why)| Difference::Unopened(why.clone()))),
            }
        };
        verify::verify(&mut self.plan, &process, file);
        Ok(())
    }

    /// Rows and blocks of all unwind tables together.
    pub fn table_size(&self) -> (usize, usize) {
        let tables = self.files.iter().filter_map(|file| file.table.as_ref()?.as_ref().ok());
        tables.fold((0, 0), |(rows, blocks), table| {
            (rows + table.rows.len(), blocks + table.blocks.len())
        })
    }
}

/// Surveys processes and remembers what it learned of files.
pub struct Surveyor {
    inspector: Inspector,
    planner: Planner,
    tables: TableCache,
    files: HashMap<(FileId, FileVersion), Arc<CodeFile>>,
    kernel: (u32, u32),
}

impl Default for Surveyor {
    fn default() -> Self {
        Self::new()
    }
}

impl Surveyor {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self {
            inspector: Inspector::new(),
            planner: Planner::new(),
            tables: TableCache::new(),
            files: HashMap::new(),
            kernel: Release::running().version(),
        }
    }

    /// Looks at a process.
    ///
    /// # Errors
    /// There is no such process, it is a kernel thread, it ended meanwhile, or a privilege is missing.
    pub fn survey(&mut self, pid: u32) -> Result<Survey, ProcError> {
        let identity = identity::read_identity(pid)?;
        let process = identity::thread_group(pid)?;
        if process != pid {
            return Err(ProcError::Thread { tid: pid, process });
        }
        let begun = monotonic();
        let mappings = maps::read_maps(pid)?;
        let inspected = self.inspector.inspect(pid, &mappings)?;
        let (files, unopened, done) = self.open_files(pid, &mappings, &inspected.files)?;
        let detection = detect::detect(&inspected);
        let plan = match &detection {
            Ok(detection) => self.planner.plan(detection, &inspected.files, self.features(&identity)),
            Err(_) => Plan::default(),
        };
        let mut survey = Survey {
            identity,
            mappings,
            look: Look { begun, done },
            files,
            detection,
            plan,
            unopened,
        };
        survey.verify()?;
        Ok(survey)
    }

    fn features(&self, identity: &Identity) -> Features {
        Features {
            uretprobes_kill: uretprobes_kill(identity.seccomp, self.kernel),
            long_nops: self.kernel >= (6, 16),
        }
    }

    /// Opens what is new among the mapped files and compiles its unwind tables, all at once. Also tells which were
    /// inspected and could not be opened, and when all were open.
    fn open_files(
        &mut self,
        pid: u32,
        mappings: &[Mapping],
        inspected: &[crate::allocator::inspect::ProcessFile],
    ) -> Result<OpenFiles, ProcError> {
        let mut files = Vec::new();
        let mut unopened = Vec::new();
        let mut fresh = Vec::new();
        let mut seen = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.execute) {
            let Some(id) = mapping.file.filter(|id| !seen.contains(id)) else {
                continue;
            };
            seen.push(id);
            let image = inspected.iter().find(|file| file.id == id);
            let known = image.and_then(|image| self.files.get(&(id, image.version)));
            if let Some(known) = known.filter(|known| known.inspected.is_some()) {
                files.push(Arc::clone(known));
                continue;
            }
            let opened = match open_mapped(pid, mapping) {
                Ok(opened) => opened,
                Err(error) if error.is_shortage() => return Err(error),
                Err(error) => {
                    // Of the others the inspection has told.
                    unopened.extend(image.map(|_| (id, mapping.path.clone(), error.to_string())));
                    continue;
                }
            };
            // Whatever was inspected must be this very file, and unchanged since.
            let image = image.filter(|image| image.version == opened.version);
            if let Some(known) = self.files.get(&(id, opened.version))
                && known.inspected.is_some() == image.is_some()
            {
                files.push(Arc::clone(known));
                continue;
            }
            fresh.push(CodeFile {
                id,
                version: opened.version,
                path: mapping.path.clone(),
                managed: image.and_then(|_| runtime::code(&opened.file)),
                file: opened.file,
                copied: opened.copied,
                inspected: image.map(|image| Arc::clone(&image.inspected)),
                table: None,
            });
        }
        let done = monotonic();
        let tables = self.compile(&fresh);
        for (mut file, table) in fresh.into_iter().zip(tables) {
            file.table = table;
            let file = Arc::new(file);
            self.files.insert((file.id, file.version), Arc::clone(&file));
            files.push(file);
        }
        Ok((files, unopened, done))
    }

    fn compile(&self, files: &[CodeFile]) -> Vec<Option<TableResult>> {
        let usable = || files.iter().enumerate().filter(|(_, file)| file.inspected.is_some());
        let jobs: Vec<CompileJob<'_>> = usable().map(|(_, file)| job(file)).collect();
        let mut tables: Vec<Option<TableResult>> = vec![None; files.len()];
        for ((index, _), table) in usable().zip(self.tables.compile_all(&jobs)) {
            tables[index] = Some(table);
        }
        tables
    }

    /// Forgets files and tables that no survey refers to.
    pub fn drop_unused(&mut self) {
        self.files.retain(|_, file| Arc::strong_count(file) > 1);
        self.tables.drop_unused();
        self.inspector.drop_unused();
    }
}

fn job(file: &CodeFile) -> CompileJob<'_> {
    CompileJob {
        key: file.version,
        open: Box::new(|| file.file.try_clone()),
        forced: file
            .managed
            .as_ref()
            .map(|code| code.unwind_rules())
            .unwrap_or_default(),
        size_hint: file.version.size,
    }
}

/// The managed runtime of the first file that has code of one.
pub(super) fn runtime_of(files: &[Arc<CodeFile>]) -> Option<&'static dyn Runtime> {
    files.iter().find_map(|file| Some(file.managed.as_ref()?.runtime()))
}

/// Whether a return probe gets a process killed: kernels 6.11 to 6.13 end it by a system call that seccomp does not let
/// pass, in either mode.
pub fn uretprobes_kill(seccomp: Seccomp, kernel: (u32, u32)) -> bool {
    seccomp != Seccomp::Off && ((6, 11)..=(6, 13)).contains(&kernel)
}
