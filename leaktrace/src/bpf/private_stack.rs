//! Whether the kernel gave a program a stack of its own.
//!
//! Since 6.13 the verifier gives uprobe programs, and functions of them, that need more than 48 bytes of stack a *private*
//! one: memory for each CPU. It relies on such programs not interrupting each other, but a uprobe program can be preempted,
//! and another thread then runs the same program on the same CPU, on the same stack: numbers come out wrong, and spilled
//! kernel pointers are followed. Our programs are built not to get one (`cargo xtask check` looks at their frames); this
//! looks at what the kernel made of them.
//!
//! Invariant: a program with a private stack is never attached.

use std::{io, os::fd::BorrowedFd};

use super::syscall;

/// `add r9, gs:[…]`: the compiled code adds the CPU's base to the address of a private stack, and does so for nothing else.
const PER_CPU_STACK: [u8; 5] = [0x65, 0x4c, 0x03, 0x0c, 0x25];

/// Whether a loaded program, or one of its functions, has a private stack. `None` where the kernel does not show the code
/// (`kernel.kptr_restrict`), or where it is not that of an x86-64.
pub fn is_private(program: BorrowedFd<'_>) -> io::Result<Option<bool>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let code = syscall::compiled_code(program)?;
    Ok(code.map(|code| has_private_stack(&code)))
}

fn has_private_stack(code: &[u8]) -> bool {
    code.windows(PER_CPU_STACK.len()).any(|bytes| bytes == PER_CPU_STACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_stack_shows_in_the_compiled_code() {
        // push rbp; mov rbp, rsp; movabs r9, …; add r9, gs:[…]
        let mut code = vec![0x55, 0x48, 0x89, 0xe5, 0x49, 0xb9, 1, 2, 3, 4, 5, 6, 7, 8];
        assert!(!has_private_stack(&code));
        code.extend([0x65, 0x4c, 0x03, 0x0c, 0x25, 0x28, 0xc0, 0x02, 0x00]);
        assert!(has_private_stack(&code));
        assert!(!has_private_stack(&[]));
    }
}
