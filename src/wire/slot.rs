//! Who has a task: the worker, to begin it, or the pool, to take it back.
//!
//! A slot is two words. The first holds the number of the task and one of four states: the pool
//! writes *offered* before it sends the task; then both sides try to replace that very word by
//! compare-and-swap, the worker with *begun* and the pool with *taken back*, and one of them
//! succeeds. A word with another number means that the slot has gone to a later task, and fails
//! both. The second word says when the task began. When it is done, and its answer on the way, the
//! worker writes *finished*.

use super::word::Word;
use std::sync::atomic::Ordering;

const OFFERED: u64 = 0;
const BEGUN: u64 = 1;
const TAKEN_BACK: u64 = 2;
const FINISHED: u64 = 3;

/// One slot.
pub(super) struct Slot<'a, W> {
    pub(super) state: &'a W,
    pub(super) started: &'a W,
}

impl<W: Word> Slot<'_, W> {
    pub(super) fn offer(&self, seq: u64) {
        self.state.store(word(seq, OFFERED), Ordering::Release);
    }

    pub(super) fn take_back(&self, seq: u64) -> bool {
        self.state.replace(word(seq, OFFERED), word(seq, TAKEN_BACK))
    }

    pub(super) fn begin(&self, seq: u64, now: u64) -> bool {
        // Before the swap, so that whoever sees the task begun sees when.
        self.started.store(now, Ordering::Relaxed);
        self.state.replace(word(seq, OFFERED), word(seq, BEGUN))
    }

    pub(super) fn begin_item(&self, now: u64) {
        self.started.store(now, Ordering::Relaxed);
    }

    pub(super) fn finish(&self, seq: u64) {
        self.state.store(word(seq, FINISHED), Ordering::Release);
    }

    pub(super) fn is_finished(&self, seq: u64) -> bool {
        self.state.load(Ordering::Acquire) == word(seq, FINISHED)
    }

    pub(super) fn began_at(&self, seq: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        let begun = state == word(seq, BEGUN) || state == word(seq, FINISHED);
        begun.then(|| self.started.load(Ordering::Relaxed))
    }
}

fn word(seq: u64, state: u64) -> u64 {
    seq << 2 | state
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;

    #[test]
    fn of_two_that_race_for_a_slot_exactly_one_wins_and_a_start_is_never_seen_without_its_time() {
        loom::model(|| {
            let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let slot = Slot { state: &words.0, started: &words.1 };
            slot.offer(7);
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || Slot { state: &words.0, started: &words.1 }.begin(7, 42)
            });
            if let Some(at) = slot.began_at(7) {
                assert_eq!(at, 42);
            }
            let back = slot.take_back(7);
            let begun = worker.join().unwrap();
            assert_ne!(begun, back);
            assert_eq!(slot.began_at(7).is_some(), begun);
        });
    }

    #[test]
    fn a_slot_that_goes_to_a_later_task_is_lost_to_the_earlier_one() {
        loom::model(|| {
            let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let slot = Slot { state: &words.0, started: &words.1 };
            slot.offer(1);
            assert!(slot.take_back(1));
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || Slot { state: &words.0, started: &words.1 }.begin(1, 42)
            });
            slot.offer(2);
            assert!(!worker.join().unwrap());
            assert!(slot.take_back(2));
        });
    }
}
