//! Images for tests: nothing but code, without symbols or sections.

use crate::object::image::ElfImage;

/// Address of the first byte of code.
pub(crate) const BASE: u64 = 0x40_1000;

/// The smallest ELF file that holds `code`.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) fn code(code: &[u8]) -> ElfImage {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    file.extend(1u32.to_le_bytes());
    for word in [BASE, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend([1u32, 5].map(u32::to_le_bytes).concat()); // PT_LOAD, readable and executable
    let size = code.len() as u64;
    for word in [0x1000, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(code);
    ElfImage::new(Box::new(file)).unwrap()
}

/// A section of [`with_sections`]: name, type, flags, where its bytes begin among the given ones, how many, link.
pub(crate) type Section<'a> = (&'a str, u32, u64, u64, u64, u32);

/// A file with a page of code, these bytes behind it, and these sections in them.
pub(crate) fn with_sections(sections: &[Section<'_>], bytes: &[u8]) -> Vec<u8> {
    const CODE: u64 = 0x1000;
    let begin = 2 * CODE;
    let mut names = vec![0];
    let mut headers = vec![0; 64];
    let names_at = begin + bytes.len() as u64;
    let mut header = |names: &mut Vec<u8>, (name, kind, flags, start, size, link): Section<'_>| {
        headers.extend([names.len() as u32, kind].map(u32::to_le_bytes).concat());
        headers.extend([flags, 0, start, size].map(u64::to_le_bytes).concat());
        headers.extend([link, 0].map(u32::to_le_bytes).concat());
        headers.extend([8u64, if kind == 2 { 24 } else { 0 }].map(u64::to_le_bytes).concat());
        names.extend(name.as_bytes());
        names.push(0);
    };
    for &(name, kind, flags, start, size, link) in sections {
        header(&mut names, (name, kind, flags, begin + start, size, link));
    }
    let size = names.len() as u64 + 10;
    header(&mut names, (".shstrtab", 3, 0, names_at, size, 0));
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([3u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    let table = (names_at + names.len() as u64).next_multiple_of(8);
    file.extend([0, 64, table].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    let count = sections.len() as u16 + 2;
    file.extend([64, 56, 1, 64, count, count - 1].map(u16::to_le_bytes).concat());
    file.extend([1u32, 5].map(u32::to_le_bytes).concat());
    file.extend([0, 0, 0, begin, begin, CODE].map(u64::to_le_bytes).concat());
    file.resize(begin as usize, 0xc3);
    file.extend(bytes);
    file.extend(&names);
    file.resize(table as usize, 0);
    file.extend(headers);
    file
}
