//! Tables shared by all processes that map the same file in the same state, compiled by a bounded set of threads.
//!
//! It does not find files: a job says how to open its own. Nothing is kept on disk.
//! Invariant: a key is compiled once at a time, however many callers ask for it; a file that could not be opened is
//! asked for again, a file without usable information is not.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use hashbrown::HashMap;
use object::read::ReadCache;

use super::cfi::{CompileError, ForcedRule, compile};
use super::compact::UnwindTable;
use crate::proc::files::FileVersion;

/// Threads that compile at once, at most.
const MAX_THREADS: usize = 8;

/// A file to compile.
pub struct CompileJob<'a> {
    /// The file and its state: a table serves nothing else.
    pub key: FileVersion,
    /// Opens it; called at most once, on any thread, and not when the table is known.
    pub open: Box<dyn Fn() -> io::Result<File> + Send + Sync + 'a>,
    /// Rules that the caller knows better than the file.
    pub forced: Vec<ForcedRule>,
    /// Length of the file or another measure of the work: the longest begin first.
    pub size_hint: u64,
}

/// A shared table, or why there is none.
pub type TableResult = Result<Arc<UnwindTable>, Arc<CompileError>>;

type Slot = Arc<OnceLock<TableResult>>;

/// Tables by file.
#[derive(Debug, Default)]
pub struct TableCache {
    slots: Mutex<HashMap<FileVersion, Slot>>,
}

impl TableCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The table of a key that was compiled before.
    pub fn get(&self, key: &FileVersion) -> Option<TableResult> {
        self.lock().get(key)?.get().cloned()
    }

    /// The table of a file, compiled on this thread unless it is known.
    pub fn get_or_compile(&self, job: &CompileJob<'_>) -> TableResult {
        let slot = Arc::clone(self.lock().entry(job.key).or_default());
        let result = slot
            .get_or_init(|| compile_job(job).map(Arc::new).map_err(Arc::new))
            .clone();
        let retry = matches!(&result, Err(error) if matches!(**error, CompileError::Open(_)));
        if retry {
            let mut slots = self.lock();
            // Another thread may have put a newer slot there.
            if slots.get(&job.key).is_some_and(|current| Arc::ptr_eq(current, &slot)) {
                slots.remove(&job.key);
            }
        }
        result
    }

    /// The tables of many files, in the order of `jobs`. Uses at most as many threads as there are processors.
    pub fn compile_all(&self, jobs: &[CompileJob<'_>]) -> Vec<TableResult> {
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(jobs.get(index).map(|job| job.size_hint)));
        let results: Vec<OnceLock<TableResult>> = jobs.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let (Some(job), Some(result)) = (jobs.get(index), results.get(index)) {
                    result.get_or_init(|| self.get_or_compile(job));
                }
            }
        };
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let helpers = processors.min(MAX_THREADS).min(jobs.len()).saturating_sub(1);
        thread::scope(|scope| {
            for _ in 0..helpers {
                // This thread does the work alone if no other can be started.
                let _ = thread::Builder::new()
                    .name("unwind-table".into())
                    .spawn_scoped(scope, work);
            }
            work();
        });
        results
            .into_iter()
            .map(|result| result.into_inner().expect("every index was taken by one thread"))
            .collect()
    }

    /// Forgets the tables that nobody but the cache holds, and every remembered failure. Returns how many tables went.
    pub fn drop_unused(&self) -> usize {
        let mut dropped = 0;
        self.lock().retain(|_, slot| match slot.get() {
            None => true,
            Some(Ok(table)) if Arc::strong_count(table) > 1 => true,
            Some(Ok(_)) => {
                dropped += 1;
                false
            }
            Some(Err(_)) => false,
        });
        dropped
    }

    /// Tables held, and the bytes that they take.
    pub fn usage(&self) -> (usize, usize) {
        let slots = self.lock();
        let tables = slots.values().filter_map(|slot| slot.get()?.as_ref().ok());
        tables.fold((0, 0), |(count, bytes), table| (count + 1, bytes + table.bytes()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<FileVersion, Slot>> {
        // Nothing panics while the map is changed.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compile_job(job: &CompileJob<'_>) -> Result<UnwindTable, CompileError> {
    let file = (job.open)().map_err(CompileError::Open)?;
    let cache = ReadCache::new(file);
    let image = object::File::parse(&cache).map_err(CompileError::Parse)?;
    compile(&image, &job.forced)
}
