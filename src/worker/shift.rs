//! Which task runs, as the task thread tells the watchdog, and how that one waits for the next.

use crate::wire::Word;
use std::sync::atomic::Ordering;

/// Tasks are counted from one here: 0 is none.
#[derive(Default)]
pub(super) struct Shift<W> {
    running: W,
    /// The task for which the watchdog is to read at once.
    urgent: W,
    /// The watchdog waits to be woken, or is about to.
    parked: W,
}

impl<W: Word> Shift<W> {
    /// The task thread begins a task; whether it is to wake the watchdog.
    pub(super) fn begin(&self, seq: u64) -> bool {
        self.running.store(seq + 1, Ordering::Release);
        // Neither side's write may be put off until after its look at what the other has written.
        W::fence();
        self.parked.load(Ordering::Relaxed) != 0
    }

    /// The task wants the watchdog to read at once. Then that is to be woken.
    pub(super) fn hurry(&self, seq: u64) {
        self.urgent.store(seq + 1, Ordering::Release);
    }

    /// The task is over.
    pub(super) fn end(&self) {
        self.running.store(0, Ordering::Release);
    }

    /// The task that runs, or 0.
    pub(super) fn running(&self) -> u64 {
        self.running.load(Ordering::Acquire)
    }

    pub(super) fn is_urgent(&self, task: u64) -> bool {
        self.urgent.load(Ordering::Acquire) == task
    }

    /// The watchdog wants to wait; false if there is a task after all.
    pub(super) fn park(&self) -> bool {
        self.parked.store(1, Ordering::Relaxed);
        // As above.
        W::fence();
        self.running.load(Ordering::Relaxed) == 0
    }

    /// It does not wait any more.
    pub(super) fn unpark(&self) {
        self.parked.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;
    use loom::thread;

    /// The watchdog, until it has seen a task. The model fails if it waits with nobody to wake it.
    fn watch_for_one(shift: &Shift<AtomicU64>) -> u64 {
        loop {
            let running = shift.running();
            if running != 0 {
                return running;
            }
            if shift.park() {
                thread::park();
            }
            shift.unpark();
        }
    }

    #[test]
    fn the_watchdog_does_not_miss_a_task() {
        loom::model(|| {
            let shift = Arc::new(Shift::<AtomicU64>::default());
            let watchdog = thread::spawn({
                let shift = shift.clone();
                move || watch_for_one(&shift)
            });
            if shift.begin(6) {
                watchdog.thread().unpark();
            }
            assert_eq!(watchdog.join().unwrap(), 7);
        });
    }

    #[test]
    fn the_watchdog_does_not_wait_beside_a_task_that_wants_it() {
        loom::model(|| {
            let shift = Arc::new(Shift::<AtomicU64>::default());
            let watchdog = thread::spawn({
                let shift = shift.clone();
                move || {
                    let task = watch_for_one(&shift);
                    while !shift.is_urgent(task) {
                        thread::park();
                    }
                }
            });
            if shift.begin(6) {
                watchdog.thread().unpark();
            }
            shift.hurry(6);
            watchdog.thread().unpark();
            watchdog.join().unwrap();
        });
    }
}
