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
