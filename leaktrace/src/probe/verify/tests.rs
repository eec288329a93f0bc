//! Which functions are left out, and why, by what a process's memory and a file hold.

use leaktrace_common::signature::Signature;

use super::*;
use crate::model::ElfAddress;
use crate::object::fixture;
use crate::probe::plan::ReturnProbe;
use crate::probe::site::{self, Demand};
use crate::proc::memory::MemoryError;

const LIBC: FileId = FileId { device: 1, inode: 1 };
const CPP: FileId = FileId { device: 1, inode: 2 };
const OWN: FileId = FileId { device: 1, inode: 3 };
const DEBUGGER: u32 = 77;
/// What lies here or higher was never written to.
const UNWRITTEN: u64 = 0x80_0000;

/// Where a file's code is mapped; its place in the file is 0x1000.
fn mapped_at(file: FileId) -> u64 {
    file.inode << 20
}

/// Functions of sixteen bytes, one behind the other: push rbx; mov rbx, rdi; ret; traps.
fn code() -> Vec<u8> {
    [0x53, 0x48, 0x89, 0xfb, 0xc3]
        .into_iter()
        .chain([0xcc; 11])
        .collect::<Vec<u8>>()
        .repeat(4)
}

fn probe(symbol: &str, index: u64, op: Op) -> PlannedProbe {
    let signature = match op {
        Op::Free => Signature::new(op).pointer(1),
        _ => Signature::new(op).size(1),
    };
    let function = ElfAddress(fixture::BASE + 16 * index);
    let demand = Demand {
        signature,
        return_probe: op != Op::Free,
        long_nops: true,
    };
    let image = fixture::code(&code());
    let entry = site::choose(&image, function, demand).unwrap();
    let mut decoded = entry.code.to_vec();
    decoded.extend(Decoded::runs(&image, vec![(ElfAddress(function.0 + 4), 1)]));
    PlannedProbe {
        symbol: symbol.to_owned(),
        aliases: Vec::new(),
        signature,
        function,
        entry,
        ret: match op {
            Op::Free => ReturnProbe::None,
            _ => ReturnProbe::Instructions(vec![FileOffset(0x1004 + 16 * index)]),
        },
        reason: String::new(),
        code: decoded,
    }
}

/// libc with everything, a C++ library without a way back of its own, a program with both.
fn plan() -> Plan {
    let file = |file, path: &str, probes| FilePlan {
        file,
        path: path.into(),
        access_path: path.into(),
        shape: None,
        probes,
    };
    let both = || {
        vec![
            probe("malloc", 0, Op::Alloc),
            probe("free", 1, Op::Free),
            probe("realloc", 2, Op::Realloc),
        ]
    };
    Plan {
        files: vec![
            file(LIBC, "/libc.so", both()),
            file(CPP, "/libc++.so", vec![probe("_Znwm", 0, Op::Alloc)]),
            file(OWN, "/program", both()),
        ],
        ..Plan::default()
    }
}

/// The memory of a process that maps the three files, each at its place.
struct Memory(HashMap<u64, Vec<u8>>);

impl Memory {
    fn new() -> Self {
        Self([LIBC, CPP, OWN].map(|file| (mapped_at(file), code())).into())
    }

    /// Writes over the function of an index.
    fn patch(&mut self, file: FileId, index: usize, bytes: &[u8]) {
        let start = index * 16;
        self.0.get_mut(&mapped_at(file)).unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl MemoryReader for Memory {
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped {
            pid: 1,
            address,
            len: buffer.len(),
        };
        let code = self.0.get(&(address.0 & !0xfff)).ok_or(unmapped)?;
        let start = (address.0 & 0xfff) as usize;
        buffer.copy_from_slice(&code[start..start + buffer.len()]);
        Ok(())
    }
}

fn mappings() -> Vec<Mapping> {
    let mapping = |file: FileId| Mapping {
        start: ProcessAddress(mapped_at(file)),
        end: ProcessAddress(mapped_at(file) + 0x1000),
        read: true,
        write: false,
        execute: true,
        shared: false,
        offset: FileOffset(0x1000),
        file: Some(file),
        path: "/x".into(),
        deleted: false,
    };
    [LIBC, CPP, OWN].map(mapping).into()
}

/// The verified plan: functions that stay, and those that are refused with the reason.
fn verified(memory: &Memory, mappings: &[Mapping], debugger: Option<u32>) -> (Vec<String>, Vec<(String, String)>) {
    let mut file = vec![0; 0x1000];
    file.extend(code());
    verified_with(memory, mappings, debugger, Some(&file))
}

fn verified_with(
    memory: &Memory,
    mappings: &[Mapping],
    debugger: Option<u32>,
    file: Option<&Vec<u8>>,
) -> (Vec<String>, Vec<(String, String)>) {
    let mut plan = plan();
    let process = Process {
        mappings,
        memory,
        unwritten: &|start, _| start.0 >= UNWRITTEN,
        debugger,
    };
    verify(&mut plan, &process, |_| {
        file.map(|file| file as &dyn Source).ok_or(Difference::Replaced)
    });
    let name = |path: &std::path::Path, symbol: &str| format!("{}:{symbol}", path.display());
    let kept = plan
        .probes()
        .map(|(file, probe)| name(&file.path, &probe.symbol))
        .collect();
    let refused = plan
        .refused
        .iter()
        .map(|refused| (name(&refused.path, &refused.symbol), refused.reason.clone()));
    (kept, refused.collect())
}

fn names(refused: &[(String, String)]) -> Vec<&str> {
    refused.iter().map(|(name, _)| name.as_str()).collect()
}

const ALL_OF_LIBC: [&str; 3] = ["/libc.so:malloc", "/libc.so:free", "/libc.so:realloc"];
const ALL_OF_OWN: [&str; 3] = ["/program:malloc", "/program:free", "/program:realloc"];

#[test]
fn what_is_as_it_was_decoded_stays() {
    let (kept, refused) = verified(&Memory::new(), &mappings(), Some(DEBUGGER));
    assert_eq!(kept.len(), 7);
    assert_eq!(refused, []);
}

#[test]
fn a_jump_over_any_function_leaves_its_file_out_and_who_depends_on_it() {
    for (index, function) in ALL_OF_LIBC.into_iter().enumerate() {
        let mut memory = Memory::new();
        memory.patch(LIBC, index, &[0xe9, 1, 2, 3, 4]);
        let (kept, refused) = verified(&memory, &mappings(), None);
        // The program gives back what it allocates.
        assert_eq!(kept, ALL_OF_OWN);
        // The cause comes first.
        assert_eq!(refused[0].0, function);
        assert!(refused[0].1.contains("another tool has patched it"), "{refused:?}");
        let mut all = names(&refused);
        all.sort_unstable();
        assert_eq!(
            all,
            [
                "/libc++.so:_Znwm",
                "/libc.so:free",
                "/libc.so:malloc",
                "/libc.so:realloc"
            ]
        );
        for (_, reason) in &refused[1..] {
            assert!(reason.contains("would look leaked"), "{reason}");
        }
    }
}

#[test]
fn a_changed_return_instruction_counts() {
    let mut memory = Memory::new();
    memory.patch(LIBC, 0, &[0x53, 0x48, 0x89, 0xfb, 0x90]);
    let (kept, refused) = verified(&memory, &mappings(), None);
    assert_eq!(kept, ALL_OF_OWN);
    assert!(
        refused[0]
            .1
            .contains(&format!("{}", ProcessAddress(mapped_at(LIBC) + 4))),
        "{refused:?}"
    );
}

#[test]
fn what_gives_nothing_back_takes_no_other_file_with_it() {
    let mut memory = Memory::new();
    memory.patch(CPP, 0, &[0xe9]);
    let (kept, refused) = verified(&memory, &mappings(), None);
    assert_eq!(kept, [ALL_OF_LIBC, ALL_OF_OWN].concat());
    assert_eq!(names(&refused), ["/libc++.so:_Znwm"]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_breakpoint_is_another_probes_unless_there_is_a_debugger() {
    let mut memory = Memory::new();
    memory.patch(LIBC, 0, &[0xcc]);
    assert_eq!(verified(&memory, &mappings(), None).1, []);
    let (kept, refused) = verified(&memory, &mappings(), Some(DEBUGGER));
    assert_eq!(kept, ALL_OF_OWN);
    assert!(refused[0].1.contains("process 77 debugs this one"), "{refused:?}");
}

#[test]
fn a_file_that_changed_or_was_replaced_is_refused() {
    let mut file = vec![0; 0x1000];
    file.extend(code());
    file[0x1000] = 0x55;
    let (kept, refused) = verified_with(&Memory::new(), &mappings(), None, Some(&file));
    assert_eq!(kept, Vec::<String>::new());
    assert!(refused[0].1.contains("changed in place, at 0x1000"), "{refused:?}");
    file.truncate(0x1002);
    let (kept, _) = verified_with(&Memory::new(), &mappings(), None, Some(&file));
    assert_eq!(kept, Vec::<String>::new());
    let (_, refused) = verified_with(&Memory::new(), &mappings(), None, None);
    assert!(
        refused.iter().all(|(_, reason)| reason.contains("replaced")),
        "{refused:?}"
    );
}

#[test]
fn every_mapping_counts_and_the_kernel_must_be_able_to_probe_it() {
    // Mapped once more, and changed there only.
    let mut memory = Memory::new();
    let mut both = mappings();
    let mut second = both[0].clone();
    (second.start, second.end) = (ProcessAddress(0x70_0000), ProcessAddress(0x70_1000));
    both.push(second);
    memory.0.insert(0x70_0000, code());
    assert_eq!(verified(&memory, &both, None).1, []);
    memory.0.get_mut(&0x70_0000).unwrap()[0] = 0xe9;
    assert_eq!(verified(&memory, &both, None).0, ALL_OF_OWN);
    // As data it is written to, and no probe goes there.
    let last = both.len() - 1;
    both[last].write = true;
    both[last].execute = false;
    assert_eq!(verified(&memory, &both, None).1, []);
    // Code that may be written to gets no probe, code that cannot be read is not known.
    for (write, shared) in [(true, false), (false, true)] {
        let mut maps = mappings();
        (maps[0].write, maps[0].shared) = (write, shared);
        let (kept, refused) = verified(&Memory::new(), &maps, None);
        assert_eq!(kept, ALL_OF_OWN);
        assert!(refused[0].1.contains("no probes"), "{refused:?}");
    }
    let mut memory = Memory::new();
    memory.0.remove(&mapped_at(LIBC));
    let (kept, refused) = verified(&memory, &mappings(), None);
    assert_eq!(kept, ALL_OF_OWN);
    assert!(refused[0].1.contains("cannot be compared"), "{refused:?}");
    // Unless nobody has written to it.
    let mut maps = mappings();
    (maps[0].start, maps[0].end) = (ProcessAddress(UNWRITTEN), ProcessAddress(UNWRITTEN + 0x1000));
    assert_eq!(verified(&memory, &maps, None).1, []);
}

#[test]
fn the_comparison_is_bounded() {
    let mut maps = mappings();
    let copy = maps[2].clone();
    maps.extend(std::iter::repeat_n(copy, MAX_READS));
    let (kept, refused) = verified(&Memory::new(), &maps, None);
    assert_eq!(kept, ALL_OF_LIBC);
    assert!(
        refused
            .iter()
            .any(|(_, reason)| reason.contains("more code to compare")),
        "{refused:?}"
    );
}
