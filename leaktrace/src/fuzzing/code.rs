//! Code and what describes it: call-frame information, and the analyses that choose where probes stand.

use leaktrace_common::signature::{Op, Signature};
use leaktrace_common::unwind::BLOCK_SIZE;

use super::elf::{BASE, Elf, symbol};
use super::input::Input;
use crate::allocator::flow::Walk;
use crate::allocator::inspect::InspectedFile;
use crate::allocator::partial;
use crate::model::ElfAddress;
use crate::object::code::Callee;
use crate::object::image::ElfImage;
use crate::probe::decoded::Decoded;
use crate::probe::returns;
use crate::probe::site::{self, Demand};
use crate::unwind::compile;

/// Functions of a file under analysis.
pub(super) const FUNCTIONS: &[&str] = &[
    "malloc",
    "free",
    "realloc",
    "posix_memalign",
    "_Znwm",
    "__rust_alloc",
    "__rust_dealloc",
    "helper",
];

/// `.eh_frame` or `.debug_frame` with entries as the input says, over 4 KiB of code.
pub(super) fn call_frames(data: &[u8]) {
    let mut input = Input::new(data);
    let mut elf = Elf::new();
    elf.section(".text", 1, 6, &[0x90; 4096], 0);
    let text_at = BASE + 512;
    let kind = input.byte();
    let is_debug = kind & 1 != 0;
    let begin = elf.next();
    let mut frames = Vec::new();
    let mut last_cie = 0;
    for _ in 0..=input.below(24) {
        let start = frames.len();
        let shape = input.byte();
        let mut body = Vec::new();
        if shape & 3 == 0 || start == 0 {
            last_cie = start;
            // Id, version, augmentation, alignment of code and data, return address, FDE encoding: pc-relative, 4 bytes.
            body.extend(if is_debug { u32::MAX } else { 0 }.to_le_bytes());
            if is_debug {
                body.extend([4, 0, 8, 0, 1, 0x78, 16]);
            } else {
                body.extend([1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b]);
            }
        } else {
            let cie = match shape & 0x0c {
                0x0c => input.number() as u32,
                _ if is_debug => last_cie as u32,
                _ => (start + 4 - last_cie) as u32,
            };
            body.extend(cie.to_le_bytes());
            let (first, length) = (input.below(4200), input.below(4200));
            if is_debug {
                body.extend([text_at + first, length].map(u64::to_le_bytes).concat());
            } else {
                let here = begin + start as u64 + 8;
                body.extend(((text_at + first).wrapping_sub(here) as u32).to_le_bytes());
                body.extend((length as u32).to_le_bytes());
                body.push(0);
            }
        }
        body.extend_from_slice(input.block());
        body.resize((body.len() + 4).next_multiple_of(8) - 4, 0);
        let length = match shape & 0xf0 {
            0xf0 => input.number() as u32,
            _ => body.len() as u32,
        };
        frames.extend(length.to_le_bytes());
        frames.extend(body);
    }
    let name = if is_debug { ".debug_frame" } else { ".eh_frame" };
    elf.section(name, 1, if is_debug { 0 } else { 2 }, &frames, 0);
    let bytes = elf.finish(if kind & 2 != 0 { text_at } else { 0 });
    let Ok(file) = object::File::parse(bytes.as_slice()) else {
        return;
    };
    let Ok(table) = compile(&file, &[]) else { return };
    assert!(table.base.0.is_multiple_of(BLOCK_SIZE));
    assert!(table.blocks.is_sorted() && table.blocks.last().copied() == Some(table.rows.len() as u32));
    for address in (table.base.0..table.end().0).step_by(61) {
        assert!(table.row_at(ElfAddress(address)).is_some(), "no row at {address:#x}");
    }
}

/// A file whose code is the input, with allocation functions in it.
pub(super) fn code(data: &[u8]) {
    let mut input = Input::new(data);
    let mut names = vec![0];
    let mut places = Vec::new();
    for name in FUNCTIONS {
        let (place, size) = (input.byte(), input.byte());
        places.push((names.len() as u32, u64::from(place) * 4, u64::from(size)));
        names.extend(name.bytes().chain([0]));
    }
    let text = input.rest();
    let mut elf = Elf::new();
    let section = elf.section(".text", 1, 6, text, 0);
    let begin = BASE + 512;
    let strings = elf.section(".strtab", 3, 0, &names, 0);
    let mut table = symbol(0, 0, 0, 0, 0);
    for (name, place, size) in &places {
        table.extend(symbol(*name, 0x12, section as u16, begin + place, *size));
    }
    // A variable that the code may refer to.
    let variable = elf.next();
    elf.section(".data", 1, 3, &[0; 64], 0);
    table.extend(symbol(0, 0x11, section as u16, variable, 64));
    elf.section(".symtab", 2, 0, &table, strings);
    let Ok(image) = ElfImage::new(Box::new(elf.finish(begin))) else {
        return;
    };
    let inspected = InspectedFile::new(image);
    let image = &inspected.image;
    let mut entries = Vec::new();
    for candidate in &inspected.candidates {
        let signature = candidate.entry.signature;
        for (return_probe, long_nops) in [(false, false), (true, false), (true, true)] {
            let demand = Demand {
                signature,
                return_probe,
                long_nops,
            };
            if let Ok(site) = site::choose(image, candidate.address, demand) {
                for run in site.code.iter() {
                    check(run);
                }
                assert!(image.is_code(site.address), "a probe outside of code");
            }
        }
        if let Ok(found) = returns::find(image, candidate.address, candidate.size, |_| false) {
            found.code.iter().for_each(check);
        }
        let is_malloc = |callee: &Callee| match callee {
            Callee::Local(address) => (address.0 == begin).then(|| "malloc".to_owned()),
            Callee::Symbol(_) | Callee::Unknown => None,
        };
        for frees in [false, true] {
            let mut reaches = is_malloc;
            Walk::new(image, frees, &mut reaches).funnel(candidate.address);
            let mut reaches = is_malloc;
            Walk::new(image, frees, &mut reaches).may_reach(candidate.address);
            let mut reaches = is_malloc;
            Walk::new(image, frees, &mut reaches).thunk_target(candidate.address);
        }
        entries.push(partial::Entry {
            address: candidate.address,
            signature,
        });
    }
    inspected.coverage(&entries);
    let helper = ElfAddress(begin + places.last().map_or(0, |place| place.1));
    let demand = Demand {
        signature: Signature::new(Op::Alloc).size(1),
        return_probe: true,
        long_nops: false,
    };
    let _ = site::choose(image, helper, demand);
}

/// A run of decoded code agrees with itself, and with itself under a breakpoint at each instruction.
fn check(run: &Decoded) {
    let mut breakpoints = Vec::new();
    assert_eq!(run.differs(&run.bytes, |_, _| false, &mut breakpoints), None);
    assert!(run.starts.is_sorted());
    let half = run.bytes.len() / 2;
    run.part(half, run.bytes.len());
}
