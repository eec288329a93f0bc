//! How much stack the programs and functions of the BPF object use.
//!
//! Invariant: none uses more than [`MOST`] bytes. From 6.13 on the kernel keeps the frame of a uprobe program, or of one of
//! its functions, per CPU if it has more (`leaktrace/src/bpf/private_stack.rs` says what comes of that).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The kernel rounds frames up to 16 bytes and gives those of 64 and more a stack per CPU.
const MOST: u32 = 48;

/// Opcodes, and the register that holds the frame's upper end.
const FRAME: u8 = 10;
const CLASS: u8 = 0x07;
const LOAD: u8 = 0x01;
const STORE_IMMEDIATE: u8 = 0x02;
const STORE: u8 = 0x03;
const MOVE_REGISTER: u8 = 0xbf;
const ADD_IMMEDIATE: u8 = 0x07;
const LOAD_64: u8 = 0x18;

/// An error if a frame is too large; else the largest one, with its function.
pub fn check(object: &Path) -> Result<(String, u32)> {
    let frames = read(object)?;
    let too_large: String = frames
        .iter()
        .filter(|(_, bytes)| **bytes > MOST)
        .map(|(name, bytes)| format!("\n  {name}: {bytes} bytes"))
        .collect();
    if !too_large.is_empty() {
        bail!(
            "frames of more than {MOST} bytes, which the kernel would keep per CPU (see leaktrace-ebpf/src/main.rs):{too_large}"
        );
    }
    let largest = frames.into_iter().max_by_key(|(_, bytes)| *bytes);
    largest.context("the BPF object has no functions")
}

/// Bytes of stack by function.
fn read(path: &Path) -> Result<BTreeMap<String, u32>> {
    let bytes = std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("failed to parse `{}`", path.display()))?;
    let mut frames = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(section) = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
        else {
            continue;
        };
        let code = section.data()?;
        let first = symbol.address() as usize;
        let code = code.get(first..first + symbol.size() as usize);
        let code = code.with_context(|| format!("`{}` lies outside its section", symbol.name().unwrap_or("?")))?;
        frames.insert(symbol.name()?.to_owned(), frame_bytes(code));
    }
    Ok(frames)
}

/// How far below the frame's end a function reads, writes or points.
fn frame_bytes(code: &[u8]) -> u32 {
    let mut deepest = 0i32;
    // Registers that hold the frame's end just now.
    let mut copies = 0u16;
    let mut instructions = code.chunks_exact(8);
    while let Some(instruction) = instructions.next() {
        let (opcode, destination, source) = (instruction[0], instruction[1] & 0xf, instruction[1] >> 4);
        let offset = i32::from(i16::from_le_bytes([instruction[2], instruction[3]]));
        let immediate = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        let copied = copies & (1 << destination) != 0;
        match opcode & CLASS {
            LOAD if source == FRAME => deepest = deepest.min(offset),
            STORE | STORE_IMMEDIATE if destination == FRAME => deepest = deepest.min(offset),
            _ if opcode == ADD_IMMEDIATE && copied => deepest = deepest.min(immediate),
            _ => {}
        }
        // Stores and jumps leave registers as they are.
        if !matches!(opcode & CLASS, STORE | STORE_IMMEDIATE | 0x05 | 0x06) {
            copies &= !(1 << destination);
        }
        if opcode == MOVE_REGISTER && source == FRAME {
            copies |= 1 << destination;
        }
        if opcode == LOAD_64 {
            instructions.next();
        }
    }
    deepest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Vec<u8> {
        let mut bytes = vec![opcode, destination | (source << 4)];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(immediate.to_le_bytes());
        bytes
    }

    #[test]
    fn a_frame_is_as_deep_as_its_deepest_place() {
        // *(u64 *)(r10 - 8) = r1; r2 = r10; r2 += -56; r3 = 0; r3 += -400; exit
        let store = instruction(0x7b, 10, 1, -8, 0);
        let mut code = store.clone();
        assert_eq!(frame_bytes(&code), 8);
        code.extend(instruction(0xbf, 2, 10, 0, 0));
        code.extend(instruction(0x07, 2, 0, 0, -56));
        code.extend(instruction(0xb7, 3, 0, 0, 0));
        code.extend(instruction(0x07, 3, 0, 0, -400));
        code.extend(instruction(0x95, 0, 0, 0, 0));
        assert_eq!(frame_bytes(&code), 56);
        assert_eq!(frame_bytes(&[]), 0);
    }

    #[test]
    fn a_register_that_was_overwritten_points_to_no_frame() {
        let mut code = instruction(0xbf, 2, 10, 0, 0);
        code.extend(instruction(0xb7, 2, 0, 0, 5));
        code.extend(instruction(0x07, 2, 0, 0, -64));
        assert_eq!(frame_bytes(&code), 0);
    }
}
