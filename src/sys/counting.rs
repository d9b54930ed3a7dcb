//! Memory as the tests see it: how much a thread has made at a time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a tally for each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: usize) {
    // The tally is gone when the thread is about to end.
    let now = NOW.try_with(|now| now.replace(now.get().wrapping_add(bytes)).wrapping_add(bytes));
    if let Ok(now) = now {
        // What another thread made and this one has dropped leaves less than nothing.
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(if now > usize::MAX / 2 { 0 } else { now })));
    }
}

// SAFETY: memory is the system allocator's business alone; the tallies are plain cells that need
// none themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(layout.size().wrapping_neg());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size.wrapping_sub(layout.size()));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// The most memory that this thread has at a time while it does something, beyond what it had.
pub(crate) fn peak_of(act: impl FnOnce()) -> usize {
    NOW.set(0);
    PEAK.set(0);
    act();
    PEAK.get()
}
