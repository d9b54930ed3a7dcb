//! What the fuzz targets have in common: they hold a decoder to the memory that it may make.
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir tests/fuzz frames
//! cargo +nightly fuzz cmin --fuzz-dir tests/fuzz frames
//! ```
//!
//! The corpus is replayed by `cargo test` too, without any of this.

use procession::decoders::Decoder;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: memory is the system allocator's business alone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Relaxed);
        add(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Gives some bytes to a decoder, and panics if it makes more memory of them than it may.
pub fn check(decoder: &str, data: &[u8]) {
    let decoder = Decoder::named(decoder).expect("there is such a decoder");
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    (decoder.run)(data);
    let peak = PEAK.load(Relaxed) - before;
    let allowance = decoder.allowance(data.len());
    assert!(peak <= allowance, "{peak} bytes of memory, not {allowance}");
}
