//! Kernel side of leaktrace: entry points only.
//!
//! Each program reads what its probe carries (registers, cookie) and hands over to the call family in `probes/`.
//! Three shapes of attachment lead to the same code: *session* programs serve an entry and its return in one
//! attachment (kernel 6.13 and later), *enter/leave* programs serve older kernels and functions that must not have
//! a return probe, and tracepoints follow the address space and the life of a process.
//!
//! A program may be preempted, and another task may run the same program on the same CPU, so scratch memory belongs to
//! the thread (`thread.rs`), never to the CPU. The programs' own stacks are no exception: since 6.13 the kernel keeps the
//! frame of a uprobe program or of one of its functions *per CPU* if it has more than 48 bytes. So no frame has
//! (`cargo xtask check` looks), and the programs that walk stacks rule such stacks out besides
//! ([`arch::rule_out_private_stack`]).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod arch;
mod emit;
mod maps;
mod probes;
mod sample;
mod stack;
mod task_storage;
mod thread;
mod unwind;

use aya_ebpf::{
    cty::c_void,
    macros::{tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

use crate::probes::{allocate, growth, lifecycle, mapping, release};

/// Keep going: deliver the return to this program as well.
const WANT_RETURN: u32 = 0;
/// Skip the return: nothing is pending.
const SKIP_RETURN: u32 = 1;

/// Allocation calls, entry and return in one program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn allocate_session(ctx: *mut c_void) -> u32 {
    arch::rule_out_private_stack();
    if allocate::enter_or_leave(ctx) {
        WANT_RETURN
    } else {
        SKIP_RETURN
    }
}

/// Entry of an allocation call whose return `allocate_leave` serves.
#[uprobe]
pub fn allocate_enter(ctx: ProbeContext) -> u32 {
    arch::rule_out_private_stack();
    allocate::enter(ctx.regs.cast(), true);
    0
}

/// Entry of an allocation call whose return `allocate_return_site` serves.
#[uprobe]
pub fn allocate_enter_site(ctx: ProbeContext) -> u32 {
    arch::rule_out_private_stack();
    allocate::enter(ctx.regs.cast(), false);
    0
}

/// Return of an allocation call, by return probe.
#[uretprobe]
pub fn allocate_leave(ctx: RetProbeContext) -> u32 {
    arch::rule_out_private_stack();
    let ctx = ctx.regs.cast();
    let regs = arch::Registers::from_context(ctx);
    allocate::leave(ctx, regs.ip(), regs.sp());
    0
}

/// Return of an allocation call, by a probe on its return instruction.
#[uprobe]
pub fn allocate_return_site(ctx: ProbeContext) -> u32 {
    arch::rule_out_private_stack();
    let ctx = ctx.regs.cast();
    let regs = arch::Registers::from_context(ctx);
    if let Some((ip, sp)) = arch::caller_at_return_instruction(&regs) {
        allocate::leave(ctx, ip, sp);
    }
    0
}

/// Calls that give a block back.
#[uprobe]
pub fn release_enter(ctx: ProbeContext) -> u32 {
    let ctx = ctx.regs.cast();
    release::enter(ctx, &arch::Registers::from_context(ctx));
    0
}

/// Does nothing: what a probe costs by itself.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn bare(_ctx: *mut c_void) -> u32 {
    WANT_RETURN
}

/// Does nothing and asks for no return: what an entry probe costs by itself.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn bare_entry(_ctx: *mut c_void) -> u32 {
    SKIP_RETURN
}

/// Makes records without a target; run by `bpf(BPF_PROG_TEST_RUN)` with the first number and the live set as arguments.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn feed(ctx: *mut u64) -> u32 {
    // SAFETY: a raw tracepoint's context holds its arguments, of which the caller gives two.
    let (next, live) = unsafe { (*ctx, *ctx.add(1)) };
    probes::feed::feed(next, live);
    0
}

/// Resident memory of a process changed (`kmem:rss_stat`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn resident(ctx: *mut u64) -> u32 {
    // SAFETY: a raw tracepoint's context holds its arguments, of which this one has two or three.
    let (memory, kind) = unsafe { (*ctx, *ctx.add(1)) };
    growth::resident(memory, kind as u32);
    0
}

/// A page is missing (`exceptions:page_fault_user`, `page_fault_kernel`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn fault(ctx: *mut u64) -> u32 {
    // SAFETY: a raw tracepoint's context holds its arguments, of which this one has three.
    growth::fault(unsafe { *ctx });
    0
}

/// A fault is over (the software event `page-faults-min`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "perf_event")]
pub extern "C" fn settled(_ctx: *mut c_void) -> u32 {
    growth::settled();
    0
}

#[tracepoint]
pub fn brk_leave(ctx: TracePointContext) -> u32 {
    mapping::brk_leave(&ctx);
    0
}

#[tracepoint]
pub fn madvise_enter(ctx: TracePointContext) -> u32 {
    mapping::madvise_enter(&ctx);
    0
}

#[tracepoint]
pub fn mmap_enter(ctx: TracePointContext) -> u32 {
    mapping::mmap_enter(&ctx);
    0
}

#[tracepoint]
pub fn mmap_leave(ctx: TracePointContext) -> u32 {
    mapping::mmap_leave(&ctx);
    0
}

#[tracepoint]
pub fn mprotect_enter(ctx: TracePointContext) -> u32 {
    mapping::mprotect_enter(&ctx);
    0
}

#[tracepoint]
pub fn mprotect_leave(ctx: TracePointContext) -> u32 {
    mapping::mprotect_leave(&ctx);
    0
}

#[tracepoint]
pub fn munmap_enter(ctx: TracePointContext) -> u32 {
    mapping::munmap_enter(&ctx);
    0
}

#[tracepoint]
pub fn mremap_enter(ctx: TracePointContext) -> u32 {
    mapping::mremap_enter(&ctx);
    0
}

#[tracepoint]
pub fn mremap_leave(ctx: TracePointContext) -> u32 {
    mapping::mremap_leave(&ctx);
    0
}

#[tracepoint]
pub fn task_created(ctx: TracePointContext) -> u32 {
    lifecycle::task_created(&ctx);
    0
}

#[tracepoint]
pub fn process_exec(ctx: TracePointContext) -> u32 {
    lifecycle::exec(&ctx);
    0
}

#[tracepoint]
pub fn process_fork(ctx: TracePointContext) -> u32 {
    lifecycle::fork(&ctx);
    0
}

#[tracepoint]
pub fn thread_exit(_ctx: TracePointContext) -> u32 {
    lifecycle::thread_exit();
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
