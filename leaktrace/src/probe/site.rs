//! Where in a function's prologue its entry probe stands.
//!
//! A uprobe on an instruction that the kernel emulates costs a fraction of one that it must single-step, so the probe goes
//! to the first such instruction that every call of the function passes exactly once, while the arguments that the
//! [`Signature`] names are still in argument registers (not always in the original ones: see [`Site::signature`]).
//! Invariant: up to the site there is no way in or out but the entry.

mod aarch64;
mod x86_64;

use std::sync::Arc;

use leaktrace_common::signature::Signature;

use crate::model::{ElfAddress, FileOffset};
use crate::object::image::{ElfImage, Machine};
use crate::probe::decoded::Decoded;

/// What a site has to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Argument registers that the probe reads.
    pub signature: Signature,
    /// A return probe goes with it: the kernel replaces the return address at the stack pointer, which must not have moved.
    pub return_probe: bool,
    /// The kernel emulates long NOPs (Linux 6.16 and later), not only the one-byte NOP.
    pub long_nops: bool,
}

/// A place for an entry probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Position in the file: what the probe is attached by.
    pub offset: FileOffset,
    /// Address of the instruction.
    pub address: ElfAddress,
    /// Bytes from the function's entry.
    pub distance: u32,
    /// The instruction, roughly as an assembler writes it.
    pub instruction: String,
    /// Where the arguments are *at the site*: a function may have moved them to other argument registers by then.
    pub signature: Signature,
    /// Bytes between the stack pointer and the return address when the probe fires.
    pub stack_offset: u32,
    /// The kernel emulates the instruction (cheap) rather than single-stepping it.
    pub emulated: bool,
    /// Why here.
    pub reason: String,
    /// The code from the entry to the end of this instruction, which all of that was concluded from.
    pub code: Arc<[Decoded]>,
}

/// There is no place for a probe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The symbol's address has no code in the file.
    #[error("no code at {0} in the file")]
    NoCode(ElfAddress),
}

/// Chooses the site of a function.
pub fn choose(image: &ElfImage, entry: ElfAddress, demand: Demand) -> Result<Site, SiteError> {
    let offset = image
        .file_offset(entry)
        .filter(|_| image.is_code(entry))
        .ok_or(SiteError::NoCode(entry))?;
    Ok(match image.machine() {
        Machine::X86_64 => x86_64::choose(image, entry, offset, demand),
        Machine::Aarch64 => aarch64::choose(image, entry, offset, demand),
    })
}

/// The entry itself, for the reason given.
fn at_entry(
    entry: ElfAddress,
    offset: FileOffset,
    demand: Demand,
    instruction: String,
    reason: String,
    code: Vec<Decoded>,
) -> Site {
    let signature = demand.signature;
    Site {
        offset,
        address: entry,
        distance: 0,
        instruction,
        signature,
        stack_offset: 0,
        emulated: false,
        reason,
        code: code.into(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::object::fixture;
    use leaktrace_common::signature::Op;
    use proptest::prelude::*;

    const MALLOC: Demand = Demand {
        signature: Signature::new(Op::Alloc).size(1),
        return_probe: true,
        long_nops: true,
    };
    const FREE: Demand = Demand {
        signature: Signature::new(Op::Free).pointer(1),
        return_probe: false,
        long_nops: true,
    };

    fn site(code: &[u8], demand: Demand) -> (u32, bool, u32) {
        let mut code = code.to_vec();
        code.extend([0xc3; 32]);
        let image = fixture::code(&code);
        let site = choose(&image, ElfAddress(fixture::BASE), demand).unwrap();
        assert_eq!(site.offset.0, 0x1000 + u64::from(site.distance));
        assert_eq!(site.address.0, fixture::BASE + u64::from(site.distance));
        // What the place was concluded from begins at the entry and ends with the instruction.
        let [decoded] = &*site.code else {
            panic!("one run: {:?}", site.code)
        };
        assert!(decoded.offset.0 == 0x1000 && decoded.has(site.offset));
        assert_eq!(decoded.starts.last(), Some(&site.distance));
        (site.distance, site.emulated, site.stack_offset)
    }

    #[test]
    fn what_the_kernel_emulates() {
        for (code, emulated) in [
            (&[0x55][..], true),                // push rbp
            (&[0x41, 0x57], true),              // push r15
            (&[0x90], true),                    // nop
            (&[0x0f, 0x1f, 0x44, 0, 0], true),  // nop of five bytes
            (&[0xeb, 0x10], true),              // jmp
            (&[0xf2, 0xe9, 0, 0, 0, 0], true),  // bnd jmp
            (&[0x74, 0x05], true),              // je
            (&[0x0f, 0x87, 5, 0, 0, 0], true),  // ja
            (&[0xe8, 5, 0, 0, 0], true),        // call
            (&[0x66, 0x0f, 0x84, 5, 0], false), // 16-bit je: refused
            (&[0xff, 0xe0], false),             // jmp rax
            (&[0xff, 0x25, 0, 0, 0, 0], false), // jmp [rip]
            (&[0xc3], false),                   // ret
        ] {
            assert_eq!(site(code, MALLOC), (0, emulated, 0), "{code:x?}");
        }
        // On older kernels only the one-byte NOP.
        let old = Demand {
            long_nops: false,
            ..MALLOC
        };
        assert_eq!(site(&[0x0f, 0x1f, 0x44, 0, 0, 0x55], old), (5, true, 0));
        assert_eq!(site(&[0x90], old), (0, true, 0));
    }

    #[test]
    fn behind_a_landing_pad() {
        // endbr64; push rbx
        assert_eq!(site(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53], MALLOC), (4, true, 0));
    }

    #[test]
    fn on_the_null_test_of_free() {
        // test rdi,rdi; je
        assert_eq!(site(&[0x48, 0x85, 0xff, 0x74, 0x05], FREE), (3, true, 0));
    }

    #[test]
    fn arguments_must_be_intact() {
        // mov rdi,rsi; push rbx
        assert_eq!(site(&[0x48, 0x89, 0xf7, 0x53], MALLOC), (0, false, 0));
        // add edi,7 writes a part; push rbx
        assert_eq!(site(&[0x83, 0xc7, 0x07, 0x53], MALLOC), (0, false, 0));
        // mov rsi,rdi does not concern malloc's argument, but calloc's
        assert_eq!(site(&[0x48, 0x89, 0xfe, 0x53], MALLOC), (3, true, 0));
        let calloc = Demand {
            signature: Signature::new(Op::Alloc).count(1).size(2),
            ..MALLOC
        };
        assert_eq!(site(&[0x48, 0x89, 0xfe, 0x53], calloc), (0, false, 0));
        // cmove rdi,rsi writes it sometimes; push rbx
        assert_eq!(site(&[0x48, 0x0f, 0x44, 0xfe, 0x53], MALLOC), (0, false, 0));
    }

    #[test]
    fn a_moved_argument_is_followed() {
        // mov rsi,rdi; mov rdi,fs:[rax]; cmp rsi,1; ja
        let code = [
            0x48, 0x89, 0xfe, 0x64, 0x48, 0x8b, 0x38, 0x48, 0x83, 0xfe, 0x01, 0x77, 0x05, 0xc3,
        ];
        let image = fixture::code(&code);
        let site = choose(&image, ElfAddress(fixture::BASE), MALLOC).unwrap();
        assert_eq!((site.distance, site.signature), (11, Signature::new(Op::Alloc).size(2)));
        // xchg moves too, but is not followed; nor is a copy of half the register: mov esi,edi; xor edi,edi; push rbx
        assert_eq!(self::site(&[0x48, 0x87, 0xfe, 0x53], MALLOC), (0, false, 0));
        assert_eq!(self::site(&[0x89, 0xfe, 0x31, 0xff, 0x53], MALLOC), (0, false, 0));
        // A copy that is overwritten later is no copy: mov rsi,rdi; xor edi,edi; xor esi,esi; push rbx
        assert_eq!(
            self::site(&[0x48, 0x89, 0xfe, 0x31, 0xff, 0x31, 0xf6, 0x53], MALLOC),
            (0, false, 0)
        );
    }

    #[test]
    fn the_stack_pointer_must_be_known() {
        // sub rsp,24; je: where the return address is replaced it must not have moved
        let moved = [0x48, 0x83, 0xec, 0x18, 0x74, 0x05];
        assert_eq!(site(&moved, MALLOC), (0, false, 0));
        assert_eq!(site(&moved, FREE), (4, true, 24));
        // push 1 (not emulated); je
        assert_eq!(site(&[0x6a, 0x01, 0x74, 0x05], FREE), (2, true, 8));
        // and rsp,-16; je: unknown
        assert_eq!(site(&[0x48, 0x83, 0xe4, 0xf0, 0x74, 0x05], FREE), (0, false, 0));
        // mov rsp,rax; je
        assert_eq!(site(&[0x48, 0x89, 0xc4, 0x74, 0x05], FREE), (0, false, 0));
    }

    #[test]
    fn nothing_jumps_back_to_the_site() {
        // mov rax,rdi; push rbx; dec rax; jne to the push
        let code = [0x48, 0x89, 0xf8, 0x53, 0x48, 0xff, 0xc8, 0x75, 0xfa];
        assert_eq!(site(&code, MALLOC), (0, false, 0));
        // the same loop behind the push
        let code = [0x48, 0x89, 0xf8, 0x53, 0x48, 0xff, 0xc8, 0x75, 0xfb];
        assert_eq!(site(&code, MALLOC), (3, true, 0));
    }

    #[test]
    fn control_must_stay_on_the_line() {
        // jrcxz (not emulated); push rbx
        assert_eq!(site(&[0xe3, 0x05, 0x53], MALLOC), (0, false, 0));
        // call [rip+0]; push rbx
        assert_eq!(site(&[0xff, 0x15, 0, 0, 0, 0, 0x53], MALLOC), (0, false, 0));
        // syscall; push rbx
        assert_eq!(site(&[0x0f, 0x05, 0x53], MALLOC), (0, false, 0));
    }

    #[test]
    fn no_code_no_site() {
        let image = fixture::code(&[0x55]);
        assert_eq!(
            choose(&image, ElfAddress(8), MALLOC),
            Err(SiteError::NoCode(ElfAddress(8)))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_site_inside(code in proptest::collection::vec(any::<u8>(), 1..200), free in any::<bool>()) {
            let image = fixture::code(&code);
            let site = choose(&image, ElfAddress(fixture::BASE), if free { FREE } else { MALLOC }).unwrap();
            prop_assert!((site.distance as usize) < code.len());
            prop_assert!(site.distance == 0 || site.emulated);
        }
    }
}
