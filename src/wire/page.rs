//! The control page: memory that a pool and one worker share, which says exactly what has begun.
//!
//! Every task that is sent to a worker has a number, counted up for that worker, and a slot: the
//! number modulo [`SLOTS`]. The slot's state word holds the number and one of three states. The
//! pool writes `OFFERED` before it sends the task. Then the worker, to begin it, and the pool, to
//! take it back, both try to replace that very word by compare-and-swap: one of them succeeds, so
//! a task either begins or comes back, never both. A word with another number means that the
//! slot has gone to a later task, and fails both.
//!
//! Neither side believes the other: the worker may write anything here at any time. All the
//! pool concludes from it is whether that worker's own tasks have begun, and when.

use crate::sys::memory::SharedWords;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The most tasks that may be with one worker at a time.
pub(crate) const SLOTS: u64 = 1024;

const OFFERED: u64 = 0;
const BEGUN: u64 = 1;
const TAKEN_BACK: u64 = 2;

/// Words ahead of the slots: the first is for a worker's last words, the others are spare and
/// keep the slots on cache lines of their own.
const HEADER: usize = 8;
const WORDS: usize = HEADER + 2 * SLOTS as usize;

/// The control page of one worker.
#[derive(Debug)]
pub(crate) struct Page(SharedWords);

impl Page {
    /// Makes a page, and the file by which a worker opens it.
    pub(crate) fn create() -> io::Result<(Page, OwnedFd)> {
        let (words, file) = SharedWords::create(WORDS)?;
        Ok((Page(words), file))
    }

    /// Opens the page that the pool made.
    pub(crate) fn open(file: BorrowedFd<'_>) -> io::Result<Page> {
        Ok(Page(SharedWords::open(file, WORDS)?))
    }

    /// The pool is about to send this task.
    pub(crate) fn offer(&self, seq: u64) {
        self.state(seq).store(word(seq, OFFERED), Ordering::Release);
    }

    /// The pool wants this task back: true if it has not begun, and now never will.
    pub(crate) fn take_back(&self, seq: u64) -> bool {
        self.replace(seq, TAKEN_BACK)
    }

    /// The worker wants to begin this task: false if it was taken back.
    pub(crate) fn begin(&self, seq: u64, now: u64) -> bool {
        // Before the swap, so that whoever sees the task begun sees when.
        self.started(seq).store(now, Ordering::Relaxed);
        self.replace(seq, BEGUN)
    }

    /// The worker begins the next item of a chunk, and the task's time anew.
    pub(crate) fn begin_item(&self, seq: u64, now: u64) {
        self.started(seq).store(now, Ordering::Relaxed);
    }

    /// When the worker says that it began this task; `None` if it has not begun it.
    pub(crate) fn began_at(&self, seq: u64) -> Option<u64> {
        let begun = self.state(seq).load(Ordering::Acquire) == word(seq, BEGUN);
        begun.then(|| self.started(seq).load(Ordering::Relaxed))
    }

    /// The word for a worker's last words.
    pub(crate) fn last_words(&self) -> &AtomicU64 {
        &self.0.words()[0]
    }

    fn replace(&self, seq: u64, state: u64) -> bool {
        self.state(seq)
            .compare_exchange(word(seq, OFFERED), word(seq, state), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn state(&self, seq: u64) -> &AtomicU64 {
        &self.0.words()[HEADER + 2 * (seq % SLOTS) as usize]
    }

    fn started(&self, seq: u64) -> &AtomicU64 {
        &self.0.words()[HEADER + 2 * (seq % SLOTS) as usize + 1]
    }
}

fn word(seq: u64, state: u64) -> u64 {
    seq << 2 | state
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_task_begins_or_comes_back_but_never_both() {
        let (pool, file) = Page::create().unwrap();
        let worker = Page::open(file.as_fd()).unwrap();
        pool.offer(1);
        assert_eq!(pool.began_at(1), None);
        assert!(worker.begin(1, 42));
        assert!(!pool.take_back(1));
        assert_eq!(pool.began_at(1), Some(42));
        pool.offer(2);
        assert!(pool.take_back(2));
        assert!(!pool.take_back(2));
        assert!(!worker.begin(2, 43));
        assert_eq!(pool.began_at(2), None);
    }

    #[test]
    fn a_slot_that_has_gone_to_a_later_task_fails_the_earlier_one() {
        let (pool, _file) = Page::create().unwrap();
        pool.offer(1);
        pool.offer(1 + SLOTS);
        assert!(!pool.begin(1, 0));
        assert!(!pool.take_back(1));
        assert!(pool.begin(1 + SLOTS, 0));
    }

    #[test]
    fn of_two_that_race_for_a_slot_exactly_one_wins() {
        let (pool, file) = Page::create().unwrap();
        let worker = Page::open(file.as_fd()).unwrap();
        let start = std::sync::Barrier::new(2);
        for seq in 0..200 {
            pool.offer(seq);
            let (begun, back) = std::thread::scope(|scope| {
                let begun = scope.spawn(|| {
                    start.wait();
                    worker.begin(seq, 0)
                });
                start.wait();
                let back = pool.take_back(seq);
                (begun.join().unwrap(), back)
            });
            assert_ne!(begun, back);
        }
    }
}
