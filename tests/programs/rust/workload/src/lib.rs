//! What each Rust test program does, whatever its allocator: it leaks boxes and vectors of known sizes, and drops many
//! more. It speaks the protocol of `../../c/protocol.h`.

use std::hint::black_box;
use std::io::{BufRead, Write, stdin, stdout};

/// Leaks one block of `size` bytes.
#[inline(never)]
#[unsafe(no_mangle)]
pub fn leak_here(size: usize) {
    let block: Vec<u8> = Vec::with_capacity(black_box(size));
    std::mem::forget(black_box(block));
}

/// Leaks one zeroed block of `size` bytes.
#[inline(never)]
#[unsafe(no_mangle)]
pub fn leak_zeroed(size: usize) {
    std::mem::forget(black_box(vec![0u8; black_box(size)]));
}

/// Grows a block in steps to `size` bytes, by reallocating, and leaks it.
#[inline(never)]
#[unsafe(no_mangle)]
pub fn leak_grown(size: usize) {
    let mut block: Vec<u8> = Vec::with_capacity(8);
    while block.capacity() < size {
        let more = (block.capacity() * 2).min(size) - block.len();
        block.reserve_exact(more);
        block.resize(block.capacity(), 1);
    }
    std::mem::forget(black_box(block));
}

/// An over-aligned block.
#[repr(align(256))]
struct Aligned([u8; 512]);

#[inline(never)]
#[unsafe(no_mangle)]
pub fn leak_aligned() {
    Box::leak(black_box(Box::new(Aligned([1; 512]))));
}

#[inline(never)]
fn use_and_drop(round: usize) {
    let mut names: Vec<String> = Vec::new();
    for index in 0..20 {
        names.push(format!("item {index} of {round}"));
    }
    black_box(&names);
}

fn wait_for(wanted: &str, line: &mut String) -> bool {
    loop {
        line.clear();
        match stdin().lock().read_line(line) {
            Ok(0) | Err(_) => return false,
            Ok(_) if line.trim_end() == wanted => return true,
            Ok(_) => {}
        }
    }
}

/// Runs the whole program.
pub fn run() {
    run_with(|| ());
}

/// Runs the whole program, and what it has to do besides, which leaks nothing.
pub fn run_with(besides: fn()) {
    // Everything that standard I/O keeps is allocated before the tracer comes.
    let mut line = String::with_capacity(64);
    println!("ready");
    if !wait_for("go", &mut line) {
        std::process::exit(3);
    }
    let (mut bytes, mut objects) = (0, 0);
    for round in 0..250 {
        let size = 32 + round % 13 * 24;
        leak_here(size);
        leak_zeroed(size);
        leak_grown(1000);
        leak_aligned();
        bytes += 2 * size + 1000 + 512;
        objects += 4;
        use_and_drop(round);
        besides();
    }
    let mut out = stdout().lock();
    let _ = writeln!(
        out,
        "{{\"function\":\"leak_here\",\"leaked_bytes\":{bytes},\"leaked_objects\":{objects},\"held_bytes\":0,\"held_objects\":0}}"
    );
    let _ = writeln!(out, "done");
    let _ = out.flush();
    wait_for("exit", &mut line);
}
