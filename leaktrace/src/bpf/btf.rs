//! Where the kernel keeps two numbers that no interface tells: places of fields, by the kernel's own type information.
//!
//! The format is that of `Documentation/bpf/btf.rst`. Invariant: nothing is read outside the bytes given, and a walk
//! ends: names and types are looked at at most [`MAX_DEPTH`] levels deep, and at most [`MAX_MEMBERS`] members in all.

use std::{cell::Cell, fs, path::Path};

/// Type information of the running kernel.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Anonymous structures inside each other, and names of names.
const MAX_DEPTH: usize = 16;
/// Members that are looked at in all: those of the structures of interest are some hundreds.
const MAX_MEMBERS: u32 = 1 << 20;
/// `MM_ANONPAGES`: which of a process's counters.
const ANONYMOUS: u64 = 1;

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Places of fields that the kernel side reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Of the number of anonymous pages in `mm_struct`.
    pub anon_pages: u32,
    /// Of the `mm_struct` in `task_struct`.
    pub task_memory: u32,
    /// Of a thread's own number of anonymous pages in `task_struct`, an `int`, which it adds to that of its process from time
    /// to time. 0 from 6.2 on, where threads have none.
    pub thread_pages: u32,
}

impl Places {
    /// Of the running kernel; `None` if its type information cannot be read or does not have them.
    pub fn of_kernel() -> Option<Self> {
        Self::of(&fs::read(Path::new(KERNEL)).ok()?)
    }

    /// By type information.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let types = Types::read(bytes)?;
        let memory = types.named("mm_struct")?;
        let (counters_at, counters) = types.member(memory, "rss_stat", MAX_DEPTH)?;
        let task = types.named("task_struct")?;
        let (anon_pages, thread_pages) = match types.get(counters)?.kind() {
            // One `percpu_counter` for each kind of memory (6.2).
            KIND_ARRAY => {
                let counter = types.element(counters)?;
                let (count_at, _) = types.member(counter, "count", MAX_DEPTH)?;
                let at = counters_at + ANONYMOUS * u64::from(types.get(counter)?.size) + count_at;
                (at, 0)
            }
            // `struct mm_rss_stat` with an array of 8-byte numbers, and `struct task_rss_stat` with one of 4-byte numbers.
            _ => {
                let (count_at, _) = types.member(counters, "count", MAX_DEPTH)?;
                let (own_at, own) = types.member(task, "rss_stat", MAX_DEPTH)?;
                let (own_count_at, _) = types.member(own, "count", MAX_DEPTH)?;
                (
                    counters_at + count_at + ANONYMOUS * 8,
                    own_at + own_count_at + ANONYMOUS * 4,
                )
            }
        };
        let (task_memory, _) = types.member(task, "mm", MAX_DEPTH)?;
        Some(Self {
            anon_pages: u32::try_from(anon_pages).ok()?,
            task_memory: u32::try_from(task_memory).ok()?,
            thread_pages: u32::try_from(thread_pages).ok()?,
        })
    }
}

/// One type: its header, and where its details begin.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Bytes of a structure, or the type that this one is made of.
    size: u32,
    details: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 31
    }

    fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Bytes behind the header.
    fn length(self) -> Option<usize> {
        Some(match self.kind() {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            KIND_ARRAY => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * self.members(),
            // ENUM, FUNC_PROTO
            6 | 13 => 8 * self.members(),
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }

    /// Whether it is another type by a further name or with a qualifier.
    fn is_alias(self) -> bool {
        matches!(self.kind(), 8..=11 | 18)
    }
}

/// All types; their ids begin at 1.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    types: Vec<Type>,
    /// Members that may still be looked at.
    left: Cell<u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Types<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let field = |at| u32_at(bytes, at).map(|value| value as usize);
        let (header, types_at, types_length) = (field(4)?, field(8)?, field(12)?);
        let (strings_at, strings_length) = (field(16)?, field(20)?);
        let part = |at: usize, length: usize| {
            let begin = header.checked_add(at)?;
            bytes.get(begin..begin.checked_add(length)?)
        };
        let mut result = Self {
            bytes: part(types_at, types_length)?,
            strings: part(strings_at, strings_length)?,
            types: Vec::new(),
            left: Cell::new(MAX_MEMBERS),
        };
        let mut at = 0;
        while at < result.bytes.len() {
            let kind = Type {
                name: u32_at(result.bytes, at)?,
                info: u32_at(result.bytes, at + 4)?,
                size: u32_at(result.bytes, at + 8)?,
                details: at + 12,
            };
            result.types.push(kind);
            at = kind.details + kind.length()?;
        }
        Some(result)
    }

    /// A type by its id, behind further names and qualifiers.
    fn get(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let found = *self.types.get((id as usize).checked_sub(1)?)?;
            if !found.is_alias() {
                return Some(found);
            }
            id = found.size;
        }
        None
    }

    fn name(&self, at: u32) -> &[u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Id of the structure with this name.
    fn named(&self, name: &str) -> Option<u32> {
        let index = self
            .types
            .iter()
            .position(|one| one.kind() == KIND_STRUCT && self.name(one.name) == name.as_bytes())?;
        u32::try_from(index + 1).ok()
    }

    /// Type of an array's elements.
    fn element(&self, array: u32) -> Option<u32> {
        u32_at(self.bytes, self.get(array)?.details)
    }

    /// Offset in bytes and type of a structure's member, those of anonymous structures inside included.
    fn member(&self, structure: u32, name: &str, depth: usize) -> Option<(u64, u32)> {
        let owner = self.get(structure)?;
        if depth == 0 || !matches!(owner.kind(), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        // With the flag, the upper byte is the width of a bit field.
        let bits = |offset: u32| {
            u64::from(if owner.info >> 31 == 1 {
                offset & 0xff_ffff
            } else {
                offset
            })
        };
        for index in 0..owner.members() {
            self.left.set(self.left.get().checked_sub(1)?);
            let at = owner.details + 12 * index;
            let called = self.name(u32_at(self.bytes, at)?);
            let kind = u32_at(self.bytes, at + 4)?;
            let offset = bits(u32_at(self.bytes, at + 8)?) / 8;
            if called == name.as_bytes() {
                return Some((offset, kind));
            }
            if called.is_empty()
                && let Some((inner, found)) = self.member(kind, name, depth - 1)
            {
                return Some((offset + inner, found));
            }
        }
        None
    }
}

/// Whether the running kernel's type information names something: a type, a function, a variable of each CPU.
pub fn names(name: &str) -> bool {
    let Ok(information) = std::fs::read(KERNEL) else {
        return false;
    };
    // Names stand in one section, each with a zero byte behind it.
    information.split(|byte| *byte == 0).any(|text| text == name.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Type information that is put together by hand.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Builder {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn push(&mut self, words: &[u32]) -> u32 {
            self.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            self.count += 1;
            self.count
        }

        fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
            let mut words = vec![self.name(name), KIND_STRUCT << 24 | members.len() as u32, size];
            for (name, kind, offset) in members {
                words.extend([self.name(name), *kind, offset * 8]);
            }
            self.push(&words)
        }

        fn finish(self) -> Vec<u8> {
            let mut bytes = MAGIC.to_le_bytes().to_vec();
            bytes.extend([1, 0]);
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [24, 0, types, types, strings] {
                bytes.extend(word.to_le_bytes());
            }
            [bytes, self.types, self.strings].concat()
        }
    }

    /// As since 6.2: an array of counters inside an anonymous structure.
    pub(crate) fn new_kernel() -> Vec<u8> {
        let mut builder = Builder::default();
        let long = builder.push(&[0, 1 << 24, 8, 0]);
        let counter = builder.structure("percpu_counter", 40, &[("lock", long, 0), ("count", long, 8)]);
        let alias_name = builder.name("alias");
        let alias = builder.push(&[alias_name, 8 << 24, counter]);
        let array = builder.push(&[0, KIND_ARRAY << 24, 0, alias, long, 4]);
        let inner = builder.structure("", 400, &[("users", long, 0), ("rss_stat", array, 64)]);
        builder.structure("mm_struct", 500, &[("first", long, 0), ("", inner, 16)]);
        builder.structure("task_struct", 500, &[("mm", long, 72)]);
        builder.finish()
    }

    #[test]
    fn fields_are_found_in_both_forms() {
        let expected = Places {
            anon_pages: 16 + 64 + 40 + 8,
            task_memory: 72,
            thread_pages: 0,
        };
        assert_eq!(Places::of(&new_kernel()), Some(expected));

        let mut builder = Builder::default();
        let long = builder.push(&[0, 1 << 24, 8, 0]);
        let array = builder.push(&[0, KIND_ARRAY << 24, 0, long, long, 4]);
        let counters = builder.structure("mm_rss_stat", 32, &[("count", array, 0)]);
        let own = builder.structure("task_rss_stat", 20, &[("events", long, 0), ("count", array, 4)]);
        builder.structure("mm_struct", 500, &[("rss_stat", counters, 24)]);
        builder.structure("task_struct", 500, &[("mm", long, 8), ("rss_stat", own, 80)]);
        let expected = Places {
            anon_pages: 24 + 8,
            task_memory: 8,
            thread_pages: 80 + 4 + 4,
        };
        assert_eq!(Places::of(&builder.finish()), Some(expected));
    }

    #[test]
    fn damaged_type_information_gives_nothing() {
        let whole = new_kernel();
        for length in 0..whole.len() {
            assert_eq!(Places::of(&whole[..length]), None, "cut to {length} bytes");
        }
        // Whatever a byte is changed to, there is an answer or none, and an end.
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = Places::of(&changed);
        }
    }

    #[test]
    fn a_structure_that_contains_itself_ends() {
        let mut builder = Builder::default();
        // Its own id is 1.
        builder.structure("mm_struct", 8, &[("", 1, 0)]);
        assert_eq!(Places::of(&builder.finish()), None);
    }

    #[test]
    fn a_structure_that_contains_itself_often_ends_soon() {
        let mut builder = Builder::default();
        builder.structure("mm_struct", 8, &[("", 1, 0); 100]);
        let begin = std::time::Instant::now();
        assert_eq!(Places::of(&builder.finish()), None);
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
    }

    #[test]
    fn the_running_kernel_has_them() {
        if Path::new(KERNEL).exists() {
            let places = Places::of_kernel().expect("the kernel's type information");
            assert!(places.anon_pages > 0 && places.task_memory > 0, "{places:?}");
        }
    }
}
