//! Looks at a process without touching it: its files, their unwind tables, its allocators, the probes that it needs.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::PathBuf,
    sync::Arc,
};

use super::{address_space::Look, go, pump::monotonic};
use crate::{
    allocator::{
        detect::{self, DetectError, Detection},
        inspect::{InspectedFile, Inspector},
    },
    model::{BuildId, ElfAddress, FileOffset, ProcessKey},
    probe::plan::{Features, Plan, Planner},
    proc::{
        ProcError,
        files::open_mapped,
        identity::{self, Identity, Seccomp},
        maps::{self, FileId, Mapping},
        release::Release,
    },
    runtime::go::code::GoCode,
    unwind::{self, CompileJob, TableCache, TableKey, TableResult},
};

/// A file with code that a process maps.
pub struct CodeFile {
    /// Device and inode.
    pub id: FileId,
    /// Path as the process sees it.
    pub path: PathBuf,
    /// Held open, so that it can be probed and symbolized whatever happens to its name or to the process.
    pub file: File,
    /// What was found in it; `None` if it is no usable ELF file.
    pub inspected: Option<Arc<InspectedFile>>,
    /// What it has of Go; `None` if it is no Go binary.
    pub go: Option<Arc<GoCode>>,
    /// Its unwind table, or why there is none; `None` if it is no usable ELF file.
    pub table: Option<TableResult>,
}

impl CodeFile {
    /// Its build ID.
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

    /// Address of the first byte of an executable mapping, as the file's headers state it.
    pub fn mapping_address(&self, offset: FileOffset) -> Option<ElfAddress> {
        self.inspected.as_ref()?.image.mapping_address(offset)
    }
}

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
}

impl Survey {
    /// The process.
    pub fn key(&self) -> ProcessKey {
        self.identity.key
    }

    /// Whether some of its code is Go.
    pub fn is_go(&self) -> bool {
        self.files.iter().any(|file| file.go.is_some())
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
    files: HashMap<FileId, Arc<CodeFile>>,
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
        let (files, done) = self.open_files(pid, &mappings, &inspected.files);
        let detection = detect::detect(&inspected);
        let plan = match &detection {
            Ok(detection) => self.planner.plan(detection, &inspected.files, self.features(&identity)),
            Err(_) => Plan::default(),
        };
        Ok(Survey {
            identity,
            mappings,
            look: Look { begun, done },
            files,
            detection,
            plan,
        })
    }

    fn features(&self, identity: &Identity) -> Features {
        Features {
            uretprobes_kill: uretprobes_kill(identity.seccomp, self.kernel),
            long_nops: self.kernel >= (6, 16),
        }
    }

    /// Opens what is new among the mapped files and compiles its unwind tables, all at once. Also tells when all were
    /// open.
    fn open_files(
        &mut self,
        pid: u32,
        mappings: &[Mapping],
        inspected: &[crate::allocator::inspect::ProcessFile],
    ) -> (Vec<Arc<CodeFile>>, u64) {
        let mut files = Vec::new();
        let mut fresh = Vec::new();
        let mut seen = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.execute) {
            let Some(id) = mapping.file.filter(|id| !seen.contains(id)) else {
                continue;
            };
            seen.push(id);
            let image = inspected
                .iter()
                .find(|file| file.id == id)
                .map(|file| Arc::clone(&file.inspected));
            // The same inode may hold another file by now: it must still be the one that was inspected.
            let known = self.files.get(&id).filter(|known| match (&known.inspected, &image) {
                (Some(known), Some(image)) => Arc::ptr_eq(known, image),
                (None, None) => true,
                _ => false,
            });
            if let Some(known) = known {
                files.push(Arc::clone(known));
            } else if let Ok(opened) = open_mapped(pid, mapping) {
                fresh.push(CodeFile {
                    id,
                    path: mapping.path.clone(),
                    go: image.as_ref().and_then(|_| go::read_code(&opened.file)),
                    file: opened.file,
                    inspected: image,
                    table: None,
                });
            }
        }
        let done = monotonic();
        let tables = self.compile(&fresh);
        for (mut file, table) in fresh.into_iter().zip(tables) {
            file.table = table;
            let file = Arc::new(file);
            self.files.insert(file.id, Arc::clone(&file));
            files.push(file);
        }
        (files, done)
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
    let metadata = file.file.metadata().ok();
    let size = metadata.as_ref().map_or(0, MetadataExt::size);
    let modified = metadata.as_ref().map_or(0, |data| {
        i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec())
    });
    let key = match file.build_id() {
        Some(build_id) => TableKey::BuildId(build_id.clone()),
        None => TableKey::File(unwind::FileId {
            device: file.id.device,
            inode: file.id.inode,
            size,
            modified,
        }),
    };
    CompileJob {
        key,
        open: Box::new(|| file.file.try_clone()),
        forced: file.go.as_deref().map(go::forced_rules).unwrap_or_default(),
        size_hint: size,
    }
}

/// Whether a return probe gets a process killed: kernels 6.11 to 6.13 end it by a system call that seccomp does not let
/// pass, in either mode.
pub fn uretprobes_kill(seccomp: Seccomp, kernel: (u32, u32)) -> bool {
    seccomp != Seccomp::Off && ((6, 11)..=(6, 13)).contains(&kernel)
}
