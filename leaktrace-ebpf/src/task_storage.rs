//! Task-local storage (`BPF_MAP_TYPE_TASK_STORAGE`, kernel 5.11), which aya-ebpf 0.2 does not have yet.
//!
//! The definition follows the convention of BTF-defined maps: fields of pointer types that are never dereferenced tell
//! the loader type, key, value and flags.
//!
//! Since 7.3 the kernel takes an element from memory that serves at most 8 KiB in one piece; a greater one is accepted
//! when the map is made, and then no thread gets one. So [`TaskStorage::new`] does not compile for more than
//! [`MOST_BYTES`].

use core::{marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE, task_struct,
    },
    helpers::{bpf_get_current_task_btf, generated},
};

/// Most bytes of a value: 8 KiB less the kernel's own part of an element, which is 72 bytes so far.
const MOST_BYTES: usize = 8192 - 192;

/// One zeroed `T` for each task that asks.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
    owner: PhantomData<T>,
}

// SAFETY: the fields are placeholders that only the loader reads.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// The definition.
    pub const fn new() -> Self {
        const {
            assert!(
                size_of::<T>() <= MOST_BYTES,
                "the kernel would give no thread so much memory"
            )
        };
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            map_flags: ptr::null(),
            owner: PhantomData,
        }
    }

    #[inline(always)]
    fn find(&self, flags: u64) -> *mut T {
        // SAFETY: the loader replaces the definition by the map; the current task is a valid one.
        unsafe {
            let task = bpf_get_current_task_btf().cast::<task_struct>();
            generated::bpf_task_storage_get(ptr::from_ref(self).cast_mut().cast(), task, ptr::null_mut(), flags).cast()
        }
    }

    /// The current task's, if it has one.
    #[inline(always)]
    pub fn current(&self) -> *mut T {
        self.find(0)
    }

    /// The current task's; null if there is none and no memory for one.
    #[inline(always)]
    pub fn current_or_new(&self) -> *mut T {
        self.find(BPF_LOCAL_STORAGE_GET_F_CREATE.into())
    }
}
