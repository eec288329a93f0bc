//! An allocator of a few lines: free lists by size class over an array. Small enough to be inlined whole
//! wherever the compiler sees it.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// All memory that there is.
#[repr(align(4096))]
struct Arena([u8; 16 << 20]);

struct Lists {
    heads: [*mut u8; 64],
    arena: Arena,
    used: usize,
}

struct FreeLists {
    locked: AtomicBool,
    lists: UnsafeCell<Lists>,
}

// SAFETY: the lists are used under the lock alone.
unsafe impl Sync for FreeLists {}

/// Blocks of a class have this size, and are aligned to it.
fn size_of_class(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(16).next_power_of_two()
}

impl FreeLists {
    fn with<R>(&self, work: impl FnOnce(&mut Lists) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {}
        // SAFETY: nobody else has the lock.
        let result = work(unsafe { &mut *self.lists.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

// SAFETY: a block is in use or in a list, never both.
unsafe impl GlobalAlloc for FreeLists {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = size_of_class(layout);
        self.with(|lists| {
            let head = &mut lists.heads[size.trailing_zeros() as usize];
            let first = *head;
            if !first.is_null() {
                // SAFETY: a listed block begins with the next one's address.
                *head = unsafe { first.cast::<*mut u8>().read() };
                return first;
            }
            let start = lists.used.next_multiple_of(size);
            let Some(block) = lists.arena.0.get_mut(start..start + size) else {
                return null_mut();
            };
            lists.used = start + size;
            block.as_mut_ptr()
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.with(|lists| {
            let head = &mut lists.heads[size_of_class(layout).trailing_zeros() as usize];
            // SAFETY: it is in use no longer, and large enough for an address.
            unsafe { block.cast::<*mut u8>().write(*head) };
            *head = block;
        });
    }
}

#[global_allocator]
static ALLOCATOR: FreeLists = FreeLists {
    locked: AtomicBool::new(false),
    lists: UnsafeCell::new(Lists {
        heads: [null_mut(); 64],
        arena: Arena([0; 16 << 20]),
        used: 0,
    }),
};

/// Strings are allocated in Rust's library, by calls of `__rust_alloc`, and dropped here, where that is inlined.
#[inline(never)]
fn exchange() {
    let read = || std::fs::read_to_string("/proc/self/status");
    let batch: Vec<String> = (0..4).flat_map(|_| read()).collect();
    drop(black_box(batch));
}

fn main() {
    workload::run_with(exchange);
}
