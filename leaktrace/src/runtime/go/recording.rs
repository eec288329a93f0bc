//! A process's runtime as it was read once: for tests and fuzz targets, which change bytes of it and read it again.
//!
//! The form on disk is gzip over a JSON header with its length in front, the pclntab and the memory image.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::error::Area;
use super::gc::{self, CollectorState};
use super::goroutines::{self, GoroutineSnapshot};
use super::heap::{self, HeapSnapshot};
use super::locate::Globals;
use super::memory::{MemoryImage, Recorder, word};
use super::offsets::{Layout, candidates};
use super::pclntab::PclnTable;
use super::process::GoProcess;
use super::spans::{self, ObjectSnapshot, SpanSnapshot};
use super::version::GoVersion;

/// Largest recording that is read, decompressed.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    version: String,
    globals: Globals,
    text: u64,
    table_len: usize,
}

/// All that the readers need of a process.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Toolchain.
    pub version: GoVersion,
    /// Addresses of globals.
    pub globals: Globals,
    /// First address of the text.
    pub text: u64,
    /// The pclntab.
    pub table: Vec<u8>,
    /// Memory.
    pub image: MemoryImage,
}

/// What every reader makes of a recording; `None` where it refuses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Heap profile.
    pub heap: Option<HeapSnapshot>,
    /// Goroutines.
    pub goroutines: Option<GoroutineSnapshot>,
    /// Collector.
    pub collector: Option<CollectorState>,
    /// Spans.
    pub spans: Option<SpanSnapshot>,
    /// Sampled objects.
    pub objects: Option<ObjectSnapshot>,
}

impl Recording {
    /// Reads everything once and keeps it.
    pub fn of(process: &GoProcess) -> Option<Self> {
        let recorder = Recorder::new(process.memory());
        let (layout, _) = process.layout(Area::Heap).ok()?;
        let readings = read_all(&recorder, &process.globals, layout, process.table());
        readings.objects?;
        Some(Self {
            version: process.version.clone(),
            globals: process.globals,
            text: process.table().text(),
            table: process.table().bytes().to_vec(),
            image: recorder.into_image(),
        })
    }

    /// What the readers make of it.
    pub fn read(&self) -> Readings {
        let layout = candidates(&self.version)
            .first()
            .and_then(|column| Layout::from_map(&column.map).ok());
        let table = PclnTable::new(self.table.as_slice(), self.text);
        match (layout, table) {
            (Some(layout), Ok(table)) => read_all(&self.image, &self.globals, &layout, &table),
            _ => Readings::default(),
        }
    }

    /// The form on disk.
    pub fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let header = serde_json::to_vec(&Header {
            version: self.version.to_string(),
            globals: self.globals,
            text: self.text,
            table_len: self.table.len(),
        })?;
        let mut out = GzEncoder::new(Vec::new(), Compression::best());
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(&self.table)?;
        out.write_all(&self.image.to_bytes())?;
        out.finish()
    }

    /// Reads [`Recording::to_bytes`]; `None` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut data = Vec::new();
        GzDecoder::new(bytes).take(MAX_BYTES).read_to_end(&mut data).ok()?;
        let (len, rest) = data.split_first_chunk::<8>()?;
        let (header, rest) = rest.split_at_checked(usize::try_from(word(len, 0)).ok()?)?;
        let header: Header = serde_json::from_slice(header).ok()?;
        let (table, image) = rest.split_at_checked(header.table_len)?;
        Some(Self {
            version: GoVersion::parse(&header.version)?,
            globals: header.globals,
            text: header.text,
            table: table.to_vec(),
            image: MemoryImage::from_bytes(image),
        })
    }
}

fn read_all<M: crate::proc::memory::MemoryReader>(
    memory: &M,
    globals: &Globals,
    layout: &Layout,
    table: &PclnTable,
) -> Readings {
    let heap = heap::read(memory, globals, layout).ok();
    let spans = spans::read(memory, globals, layout).ok();
    let objects = heap.as_ref().zip(spans.as_ref()).and_then(|(heap, spans)| {
        let buckets = heap.buckets.iter().map(|bucket| bucket.address).collect();
        spans::read_objects(memory, layout, spans, &buckets).ok()
    });
    Readings {
        heap,
        goroutines: goroutines::read(memory, globals, layout, table).ok(),
        collector: gc::read(memory, globals, layout).ok(),
        spans,
        objects,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use std::time::{Duration, Instant};

    /// Recorded from `tests/programs/go/small` of Go 1.23 by the end-to-end test `hostile::record_the_fixture`.
    static FIXTURE: LazyLock<Recording> =
        LazyLock::new(|| Recording::from_bytes(include_bytes!("../../../fixtures/go-1.23.recording")).unwrap());

    #[test]
    fn the_fixture_reads_as_the_process_did() {
        let readings = FIXTURE.read();
        let heap = readings.heap.unwrap();
        assert!(
            heap.cut.is_none() && heap.torn == 0 && heap.buckets.len() > 20,
            "{}",
            heap.buckets.len()
        );
        let goroutines = readings.goroutines.unwrap();
        assert_eq!((goroutines.incomplete, goroutines.unreadable), (0, 0));
        assert!(goroutines.goroutines.len() > 10);
        assert!(readings.collector.unwrap().finished > 0);
        assert!(readings.spans.unwrap().spans.len() > 10);
        assert!(!readings.objects.unwrap().objects.is_empty());
    }

    /// Changes words of the image; one in two changes makes a word into another word of the image, as a pointer that
    /// leads somewhere readable does more harm than noise.
    fn mutate(recording: &mut Recording, changes: &[(usize, usize, u64, bool)]) {
        let starts: Vec<u64> = recording.image.segments().map(|(start, _)| start).collect();
        for &(segment, at, value, pointer) in changes {
            let target = starts[value as usize % starts.len()];
            let bytes = recording.image.segment_mut(starts[segment % starts.len()]).unwrap();
            if bytes.len() >= 8 {
                let at = at % (bytes.len() / 8) * 8;
                let value = if pointer { target } else { value };
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn changed_memory_ends_in_bounded_time(
            changes in prop::collection::vec((any::<usize>(), any::<usize>(), any::<u64>(), any::<bool>()), 1..40),
        ) {
            let mut recording = FIXTURE.clone();
            mutate(&mut recording, &changes);
            let begin = Instant::now();
            let readings = recording.read();
            prop_assert!(begin.elapsed() < Duration::from_secs(20));
            if let Some(heap) = readings.heap {
                prop_assert!(heap.buckets.len() < 100_000);
            }
        }

        #[test]
        fn a_changed_table_names_wrongly_at_worst(
            changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..60),
            pcs in prop::collection::vec(0u64..1 << 20, 20),
            header in any::<bool>(),
        ) {
            let mut table = FIXTURE.table.clone();
            for (at, value) in changes {
                let reach = if header { 80 } else { table.len() };
                let at = at % reach;
                table[at] = value;
            }
            if let Ok(table) = PclnTable::new(table, FIXTURE.text) {
                for pc in pcs {
                    let frames = table.frames(FIXTURE.text + pc);
                    prop_assert!(frames.len() <= 65);
                    if let Some(function) = table.function_at(FIXTURE.text + pc) {
                        let _ = table.stack_depth(&function, FIXTURE.text + pc);
                    }
                }
                let _ = table.find_by_name(["runtime.main", "main.main"]);
            }
        }
    }

    #[test]
    fn absurd_counts_are_refused() {
        let mut recording = FIXTURE.clone();
        let count = recording.globals.goroutine_count.unwrap();
        recording.image.insert(count, u64::MAX.to_le_bytes().to_vec());
        let heap = recording.globals.heap.unwrap();
        let layout = Layout::from_map(&candidates(&recording.version)[0].map).unwrap();
        let mut header = 0x1000u64.to_le_bytes().to_vec();
        header.extend(u64::MAX.to_le_bytes());
        recording.image.insert(heap + layout.heap.spans.offset as u64, header);
        let readings = recording.read();
        assert!(readings.goroutines.is_none() && readings.spans.is_none());
        assert!(readings.heap.is_some(), "the others are not affected");
    }

    #[test]
    fn damaged_recordings_are_none() {
        let bytes = FIXTURE.to_bytes().unwrap();
        assert!(Recording::from_bytes(&bytes[..bytes.len() / 2]).is_none());
        assert!(Recording::from_bytes(b"").is_none());
    }
}
