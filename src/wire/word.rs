//! A word of shared memory, as the protocols over it see it.

use crate::sys::memory::Copied;
use std::sync::atomic::{AtomicU64, Ordering};

/// An atomic word. A trait, so that the protocols can be run in a model checker too, which brings
/// words of its own.
pub(crate) trait Word: Copied {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// A sequentially consistent fence.
    fn fence();
    /// Whether the word was `old`, and is `new` now.
    fn replace(&self, old: u64, new: u64) -> bool;
}

macro_rules! word {
    ($atomic:ty, $fence:path) => {
        impl Word for $atomic {
            fn load(&self, order: Ordering) -> u64 {
                self.load(order)
            }

            fn store(&self, value: u64, order: Ordering) {
                self.store(value, order);
            }

            fn swap(&self, value: u64, order: Ordering) -> u64 {
                self.swap(value, order)
            }

            fn fence() {
                $fence(Ordering::SeqCst);
            }

            fn replace(&self, old: u64, new: u64) -> bool {
                self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
        }
    };
}

word!(AtomicU64, std::sync::atomic::fence);
#[cfg(test)]
word!(loom::sync::atomic::AtomicU64, loom::sync::atomic::fence);
