//! Records from the kernel side, decoded.
//!
//! The kernel side is trusted to be ours but its bytes are checked all the same: a record that is too short or of an
//! unknown kind decodes to `None` and is counted by the caller. Invariant: decoding never reads outside the record.

use leaktrace_common::{
    event::{
        FLAG_BEGIN_DEFERRED, FLAG_CODE_ANONYMOUS, FLAG_CODE_PROTECTED, FLAG_RESIDENT, FLAG_SHARER_MISSED, KIND_ALLOC,
        KIND_CODE_MAPPED, KIND_EXEC, KIND_FORK, KIND_FREE, KIND_GROWTH, KIND_MMAP, KIND_MREMAP, KIND_MREMAP_BEGIN,
        KIND_MUNMAP, KIND_REALLOC_BEGIN, KIND_REALLOC_END, KIND_SHARER, KIND_STACK, KIND_THREAD_EXIT, Stack,
    },
    reason::WalkEnd,
};

use crate::model::{ProcessAddress, StackId};

/// A new block, as told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewBlock {
    /// Where it lies.
    pub address: ProcessAddress,
    /// Requested bytes.
    pub size: u64,
    /// Who asked for it.
    pub stack: StackId,
    /// Thread id.
    pub tid: u32,
    /// Mean bytes between samples when it was taken; 0: every allocation was.
    pub interval: u64,
}

/// Code, as told. Times are the kernel's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCode {
    /// First address.
    pub start: ProcessAddress,
    /// First address behind it.
    pub end: ProcessAddress,
    /// When the call was entered.
    pub begun: u64,
    /// When it came back.
    pub done: u64,
    /// It is in memory without a file, which the program fills itself.
    pub is_made: bool,
    /// The memory was there before: nothing was replaced.
    pub was_there: bool,
}

/// What happened in a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A block was allocated.
    Alloc(NewBlock),
    /// A block was given back.
    Free(ProcessAddress),
    /// A thread entered a reallocation of a block.
    ReallocBegin {
        /// The block.
        old: ProcessAddress,
        /// The thread.
        tid: u32,
    },
    /// A thread came back from a reallocation.
    ReallocEnd {
        /// The block that went in.
        old: ProcessAddress,
        /// What came out: `None` when the old block is gone and nothing that is followed replaced it.
        new: Option<NewBlock>,
        /// The reallocation failed: the old block lives on.
        failed: bool,
        /// The thread.
        tid: u32,
        /// The beginning could not be told; the old block's release comes as a deferred free.
        begin_deferred: bool,
    },
    /// A stack that later events name.
    Stack {
        /// Its name.
        id: StackId,
        /// Where the walk ended.
        end: WalkEnd,
        /// Its frames.
        frames: Frames<'a>,
    },
    /// Anonymous memory was mapped outside an allocator.
    Mmap(NewBlock),
    /// A part of the address space was unmapped.
    Munmap {
        /// First address.
        address: ProcessAddress,
        /// Bytes.
        length: u64,
    },
    /// A thread entered an mremap of a mapping.
    MremapBegin {
        /// First address.
        old: ProcessAddress,
        /// Bytes.
        old_length: u64,
        /// The thread.
        tid: u32,
    },
    /// A thread came back from an mremap.
    MremapEnd {
        /// First address before.
        old: ProcessAddress,
        /// Bytes before.
        old_length: u64,
        /// The mapping now; `None`: it failed, and the old one is as it was.
        new: Option<NewBlock>,
        /// The thread.
        tid: u32,
        /// The beginning could not be told; it comes as a deferred release of the old addresses.
        begin_deferred: bool,
    },
    /// A process whose growth is sampled reserved address space, at no address.
    Reserved(NewBlock),
    /// Memory of such a process became resident: the page at the address, and what came with it.
    Resident(NewBlock),
    /// Code came to be at some place.
    CodeMapped(NewCode),
    /// Another program runs now.
    Exec,
    /// A thread or a child was made.
    Fork {
        /// Its thread or process id.
        child: u32,
    },
    /// A thread ended.
    ThreadExit(u32),
    /// A child goes on using the process's memory.
    Sharer {
        /// Its process id.
        pid: u32,
        /// What it gives back is not seen.
        missed: bool,
    },
}

/// Program counters of a stack, innermost first, in the bytes of its record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    /// The program counters.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = ProcessAddress> + ExactSizeIterator + 'a {
        self.0
            .as_chunks()
            .0
            .iter()
            .map(|bytes| ProcessAddress(u64::from_ne_bytes(*bytes)))
    }
}

fn u32_at(record: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?))
}

fn u64_at(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?))
}

fn new_block(record: &[u8]) -> Option<NewBlock> {
    let record: &[u8; 40] = record.first_chunk()?;
    Some(NewBlock {
        address: ProcessAddress(u64_at(record, 8)?),
        size: u64_at(record, 16)?,
        stack: StackId(u64_at(record, 24)?),
        tid: u32_at(record, 32)?,
        interval: u64::from(u32_at(record, 36)?) << 4,
    })
}

/// Decodes one record: the process id and what happened.
pub fn decode(record: &[u8]) -> Option<(u32, Event<'_>)> {
    let (kind, flags, pid) = (*record.first()?, *record.get(1)?, u32_at(record, 4)?);
    let event = match kind {
        KIND_ALLOC => Event::Alloc(new_block(record)?),
        KIND_FREE => Event::Free(ProcessAddress(u64_at(record, 8)?)),
        KIND_REALLOC_BEGIN => Event::ReallocBegin {
            old: ProcessAddress(u64_at(record, 8)?),
            tid: u32_at(record, 16)?,
        },
        KIND_REALLOC_END => {
            let new = new_block(record)?;
            Event::ReallocEnd {
                old: ProcessAddress(u64_at(record, 40)?),
                failed: new.address.0 == 0 && new.size != 0,
                tid: new.tid,
                begin_deferred: flags & FLAG_BEGIN_DEFERRED != 0,
                new: (new.address.0 != 0).then_some(new),
            }
        }
        KIND_STACK => {
            let depth = u32_at(record, 16)? as usize;
            Event::Stack {
                id: StackId(u64_at(record, 8)?),
                end: WalkEnd::from_wire(u32_at(record, 20)?)?,
                frames: Frames(record.get(Stack::PREFIX..Stack::PREFIX + depth.checked_mul(8)?)?),
            }
        }
        KIND_MMAP => Event::Mmap(new_block(record)?),
        KIND_MUNMAP => Event::Munmap {
            address: ProcessAddress(u64_at(record, 8)?),
            length: u64_at(record, 16)?,
        },
        KIND_MREMAP_BEGIN => Event::MremapBegin {
            old: ProcessAddress(u64_at(record, 8)?),
            old_length: u64_at(record, 16)?,
            tid: u32_at(record, 24)?,
        },
        KIND_MREMAP => {
            let new = new_block(record)?;
            Event::MremapEnd {
                old: ProcessAddress(u64_at(record, 40)?),
                old_length: u64_at(record, 48)?,
                tid: new.tid,
                begin_deferred: flags & FLAG_BEGIN_DEFERRED != 0,
                new: (new.address.0 != 0).then_some(new),
            }
        }
        KIND_GROWTH if flags & FLAG_RESIDENT != 0 => Event::Resident(new_block(record)?),
        KIND_GROWTH => Event::Reserved(new_block(record)?),
        KIND_CODE_MAPPED => {
            let start = u64_at(record, 8)?;
            Event::CodeMapped(NewCode {
                start: ProcessAddress(start),
                end: ProcessAddress(start.saturating_add(u64_at(record, 16)?)),
                begun: u64_at(record, 24)?,
                done: u64_at(record, 32)?,
                is_made: flags & (FLAG_CODE_ANONYMOUS | FLAG_CODE_PROTECTED) != 0,
                was_there: flags & FLAG_CODE_PROTECTED != 0,
            })
        }
        KIND_EXEC => Event::Exec,
        KIND_FORK => Event::Fork {
            child: u32_at(record, 8)?,
        },
        KIND_SHARER => Event::Sharer {
            pid: u32_at(record, 8)?,
            missed: flags & FLAG_SHARER_MISSED != 0,
        },
        KIND_THREAD_EXIT => Event::ThreadExit(u32_at(record, 8)?),
        _ => return None,
    };
    Some((pid, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, words: &[u64]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(7u32.to_ne_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn an_allocation_decodes_with_its_interval_in_bytes() {
        let bytes = record(KIND_ALLOC, &[0x1000, 64, 0xabc, 9 | 32768 << 32]);
        let block = NewBlock {
            address: ProcessAddress(0x1000),
            size: 64,
            stack: StackId(0xabc),
            tid: 9,
            interval: 512 * 1024,
        };
        assert_eq!(decode(&bytes), Some((7, Event::Alloc(block))));
    }

    #[test]
    fn growth_decodes_with_its_cause() {
        let mut bytes = record(KIND_GROWTH, &[0x7000, 8192, 0xabc, 0]);
        let block = NewBlock {
            address: ProcessAddress(0x7000),
            size: 8192,
            stack: StackId(0xabc),
            tid: 0,
            interval: 0,
        };
        assert_eq!(decode(&bytes), Some((7, Event::Reserved(block))));
        bytes[1] = FLAG_RESIDENT;
        assert_eq!(decode(&bytes), Some((7, Event::Resident(block))));
    }

    #[test]
    fn code_decodes_with_its_time() {
        let mut bytes = record(KIND_CODE_MAPPED, &[0x7000, 0x1000, 5, 6]);
        bytes[1] = FLAG_CODE_ANONYMOUS;
        let code = NewCode {
            start: ProcessAddress(0x7000),
            end: ProcessAddress(0x8000),
            begun: 5,
            done: 6,
            is_made: true,
            was_there: false,
        };
        assert_eq!(decode(&bytes), Some((7, Event::CodeMapped(code))));
    }

    #[test]
    fn a_failed_reallocation_differs_from_one_to_nothing() {
        let failed = record(KIND_REALLOC_END, &[0, 64, 0, 9, 0x1000]);
        let Some((
            _,
            Event::ReallocEnd {
                failed: true,
                new: None,
                ..
            },
        )) = decode(&failed)
        else {
            panic!("{:?}", decode(&failed));
        };
        let freed = record(KIND_REALLOC_END, &[0, 0, 0, 9, 0x1000]);
        let Some((
            _,
            Event::ReallocEnd {
                failed: false,
                new: None,
                ..
            },
        )) = decode(&freed)
        else {
            panic!("{:?}", decode(&freed));
        };
    }

    #[test]
    fn a_stack_that_claims_more_frames_than_it_has_is_refused() {
        let good = record(KIND_STACK, &[5, 2, 0x10, 0x20]);
        let Some((7, Event::Stack { frames, .. })) = decode(&good) else {
            panic!("{:?}", decode(&good))
        };
        assert_eq!(
            frames.iter().collect::<Vec<_>>(),
            [ProcessAddress(0x10), ProcessAddress(0x20)]
        );
        assert_eq!(decode(&record(KIND_STACK, &[5, 3, 0x10, 0x20])), None);
        assert_eq!(decode(&record(KIND_STACK, &[5, u64::MAX >> 32, 0x10])), None);
    }

    #[test]
    fn no_prefix_of_a_record_panics() {
        for kind in 0..=255 {
            let bytes = record(kind, &[1, 2, 3, 4, 5, 6, 7]);
            for length in 0..bytes.len() {
                let _ = decode(&bytes[..length]);
            }
        }
    }
}
