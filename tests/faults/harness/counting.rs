//! An allocator that counts. The books of the C library's say less: what its threads keep for later, they
//! have as allocated, and that goes up for a long time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// For the program to take as its own, as the soak does.
pub struct Counting;

static LIVE: AtomicU64 = AtomicU64::new(0);

/// How many bytes are allocated now; zero where the program has another allocator.
pub fn allocated() -> u64 {
    LIVE.load(Relaxed)
}

// SAFETY: all is done by the system's allocator, whose contract is the caller's to keep; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        counted(unsafe { System.alloc(layout) }, layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        counted(unsafe { System.alloc_zeroed(layout) }, layout)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) };
        LIVE.fetch_sub(layout.size() as u64, Relaxed);
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let moved = unsafe { System.realloc(place, layout, size) };
        if !moved.is_null() {
            LIVE.fetch_add(size as u64, Relaxed);
            LIVE.fetch_sub(layout.size() as u64, Relaxed);
        }
        moved
    }
}

fn counted(place: *mut u8, layout: Layout) -> *mut u8 {
    if !place.is_null() {
        LIVE.fetch_add(layout.size() as u64, Relaxed);
    }
    place
}
