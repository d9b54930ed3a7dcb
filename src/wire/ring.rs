//! Replies in shared memory: a queue of records from one worker to its pool.
//!
//! A record is a word with its length in bytes, and its bytes in words. Records do not wrap: one
//! that would run over the end begins anew at the start, with a mark where it would have been.
//! `tail` and `head` count words that were written and read, for ever.
//!
//! The worker needs no system call to say something, unless the pool sleeps: the pool raises
//! `asleep` and looks once more before it does, the worker writes and then looks at `asleep`. So
//! one of them sees what the other has done, and a record is never left lying.

use super::word::Word;
use crate::sys::memory::{copy_in, copy_out, words_for};
use std::sync::atomic::Ordering;

/// What stands for a length where the records go on at the start.
const WRAP: u64 = u64::MAX;

/// What stands for a length where the next record was too long, and is in the pipe.
const IN_PIPE: u64 = u64::MAX - 1;

/// The words that both sides write to.
pub(super) struct Control<'a, W> {
    pub(super) head: &'a W,
    pub(super) tail: &'a W,
    pub(super) asleep: &'a W,
}

impl<W: Word> Control<'_, W> {
    /// The pool is about to sleep; false if there is something to be read after all.
    pub(super) fn sleep(&self, head: u64) -> bool {
        self.asleep.store(1, Ordering::Relaxed);
        // Neither side's write may be put off until after its look at what the other has written.
        W::fence();
        if self.tail.load(Ordering::Relaxed) == head {
            return true;
        }
        self.wake();
        false
    }

    /// The pool is awake.
    pub(super) fn wake(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    /// The worker has written up to here; true if the pool is to be woken.
    pub(super) fn publish(&self, tail: u64) -> bool {
        self.tail.store(tail, Ordering::Release);
        // As above.
        W::fence();
        self.asleep.load(Ordering::Relaxed) != 0 && self.asleep.swap(0, Ordering::Relaxed) != 0
    }
}

/// A record that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Its bytes were appended to the buffer.
    Here(usize),
    /// It is the next frame in the pipe.
    InPipe,
}

/// The worker has written what makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Garbled;

/// A ring, over the words that hold it.
pub(super) struct Ring<'a, W> {
    pub(super) control: Control<'a, W>,
    pub(super) data: &'a [W],
}

impl<W: Word> Ring<'_, W> {
    /// Writes a record, from where the worker knows the tail to be, which moves on. `None` if
    /// there is no room for it; otherwise whether the pool is to be woken.
    pub(super) fn push(&self, tail: &mut u64, bytes: &[u8]) -> Option<bool> {
        self.push_quietly(tail, bytes).map(|()| self.control.publish(*tail))
    }

    /// The same for a record that the pool need not be woken for: more are to come.
    pub(super) fn push_quietly(&self, tail: &mut u64, bytes: &[u8]) -> Option<()> {
        // Room for the mark that the next record is in the pipe is always left.
        let at = self.make_room(tail, 1 + words_for(bytes.len()), 1)?;
        self.data[at].store(bytes.len() as u64, Ordering::Relaxed);
        copy_in(bytes, &self.data[at + 1..]);
        *tail += 1 + words_for(bytes.len()) as u64;
        self.control.tail.store(*tail, Ordering::Release);
        Some(())
    }

    /// Whether a record of so many bytes would leave a quarter of the ring free.
    #[cfg(any(feature = "log", feature = "tracing"))]
    pub(super) fn has_much_room(&self, tail: u64, bytes: usize) -> bool {
        let used = tail.wrapping_sub(self.control.head.load(Ordering::Acquire)) as usize;
        used.saturating_add(1 + words_for(bytes)) <= self.data.len() / 4 * 3
    }

    /// Writes that the next record is in the pipe. `None` if there is no room even for that.
    pub(super) fn push_in_pipe(&self, tail: &mut u64) -> Option<()> {
        let at = self.make_room(tail, 1, 0)?;
        self.data[at].store(IN_PIPE, Ordering::Relaxed);
        *tail += 1;
        // What comes through the pipe wakes the pool.
        self.control.publish(*tail);
        Some(())
    }

    /// Finds room for so many words in a row, with some to spare; the place of the first.
    fn make_room(&self, tail: &mut u64, words: usize, spare: usize) -> Option<usize> {
        let used = tail.wrapping_sub(self.control.head.load(Ordering::Acquire)) as usize;
        let at = (*tail % self.data.len() as u64) as usize;
        let to_end = self.data.len() - at;
        let skipped = if words > to_end { to_end } else { 0 };
        if used.saturating_add(skipped + words + spare) > self.data.len() {
            return None;
        }
        if skipped == 0 {
            return Some(at);
        }
        self.data[at].store(WRAP, Ordering::Relaxed);
        *tail += skipped as u64;
        Some(0)
    }

    /// Reads the next record, from where the pool knows the head to be, which moves on; `None` if
    /// there is none.
    pub(super) fn pop(&self, head: &mut u64, out: &mut Vec<u8>) -> Result<Option<Record>, Garbled> {
        let capacity = self.data.len() as u64;
        loop {
            let filled = self.control.tail.load(Ordering::Acquire).wrapping_sub(*head);
            if filled == 0 {
                return Ok(None);
            }
            if filled > capacity {
                return Err(Garbled);
            }
            let at = (*head % capacity) as usize;
            let to_end = capacity - at as u64;
            match self.data[at].load(Ordering::Relaxed) {
                // Never at the start, or there might be no end of them.
                WRAP if at > 0 && to_end <= filled => *head = head.wrapping_add(to_end),
                IN_PIPE => {
                    *head = head.wrapping_add(1);
                    return Ok(Some(Record::InPipe));
                }
                length if length < filled.min(to_end) * 8 => {
                    let length = length as usize;
                    let words = words_for(length);
                    if words as u64 + 1 > filled.min(to_end) {
                        return Err(Garbled);
                    }
                    copy_out(&self.data[at + 1..=at + words], length, out);
                    *head = head.wrapping_add(words as u64 + 1);
                    return Ok(Some(Record::Here(length)));
                }
                _ => return Err(Garbled),
            }
        }
    }

    /// Gives what was read back to the worker.
    pub(super) fn release(&self, head: u64) {
        self.control.head.store(head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicU64;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    fn ring<W>(words: &[W]) -> Ring<'_, W> {
        let control = Control { head: &words[0], tail: &words[1], asleep: &words[2] };
        Ring { control, data: &words[3..] }
    }

    proptest! {
        #[test]
        fn records_come_out_whole_and_in_order(
            size in 8usize..64,
            steps in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..200)), 0..200),
        ) {
            let words = words(size + 3);
            let ring = ring(&words);
            let (mut head, mut tail, mut expected) = (0, 0, VecDeque::new());
            for step in steps {
                if let Some(bytes) = step {
                    if ring.push(&mut tail, &bytes).is_some() {
                        expected.push_back(Some(bytes));
                    } else if ring.push_in_pipe(&mut tail).is_some() {
                        expected.push_back(None);
                    }
                } else {
                    let mut out = Vec::new();
                    let record = ring.pop(&mut head, &mut out).unwrap();
                    ring.release(head);
                    match expected.pop_front() {
                        Some(Some(bytes)) => {
                            prop_assert_eq!(record, Some(Record::Here(bytes.len())));
                            prop_assert_eq!(out, bytes);
                        }
                        Some(None) => prop_assert_eq!(record, Some(Record::InPipe)),
                        None => prop_assert_eq!(record, None),
                    }
                }
            }
        }

        #[test]
        fn whatever_a_worker_writes_is_read_without_a_panic_and_within_bounds(
            garbage in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..300, Just(WRAP), Just(IN_PIPE)], 40),
            mut head in prop_oneof![any::<u64>(), 0u64..100],
        ) {
            let words: Vec<_> = garbage.into_iter().map(AtomicU64::new).collect();
            let ring = ring(&words);
            for _ in 0..100 {
                let mut out = Vec::new();
                match ring.pop(&mut head, &mut out) {
                    Ok(Some(Record::Here(length))) => prop_assert!(out.len() == length && length <= 37 * 8),
                    Ok(Some(Record::InPipe)) => {}
                    Ok(None) | Err(Garbled) => break,
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "switches stacks")]
    fn a_record_is_never_left_lying_while_the_pool_sleeps() {
        use loom::sync::Arc;
        use loom::sync::atomic::AtomicU64;
        loom::model(|| {
            let words = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || Control { head: &words[0], tail: &words[1], asleep: &words[2] }.publish(1)
            });
            let pool = Control { head: &words[0], tail: &words[1], asleep: &words[2] };
            let sleeps = pool.sleep(0);
            let rung = worker.join().unwrap();
            assert!(!sleeps || rung, "the pool sleeps, and nobody wakes it");
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "switches stacks")]
    fn what_was_pushed_quietly_is_not_left_lying_when_it_is_rung_for() {
        use loom::sync::Arc;
        use loom::sync::atomic::AtomicU64;
        loom::model(|| {
            let words: Arc<[AtomicU64; 7]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || {
                    let (ring, mut tail) = (ring(&words[..]), 0);
                    ring.push_quietly(&mut tail, b"a").unwrap();
                    ring.control.publish(tail)
                }
            });
            let pool = ring(&words[..]);
            let (mut head, mut out) = (0, Vec::new());
            let heard = pool.pop(&mut head, &mut out).unwrap().is_some();
            let sleeps = pool.control.sleep(head);
            let rung = worker.join().unwrap();
            assert!(heard || !sleeps || rung, "the pool sleeps, and nobody wakes it");
        });
    }

    /// The room of the first record is used again for the last.
    #[test]
    #[cfg_attr(miri, ignore = "switches stacks")]
    fn room_is_used_again_only_when_what_was_there_has_been_read() {
        use loom::sync::Arc;
        use loom::sync::atomic::AtomicU64;
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let words: Arc<[AtomicU64; 8]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || {
                    let (ring, mut tail) = (ring(&words[..]), 0);
                    [b"a", b"b", b"c"]
                        .into_iter()
                        .take_while(|text| ring.push(&mut tail, *text).is_some())
                        .count()
                }
            });
            let pool = ring(&words[..]);
            let (mut head, mut out) = (0, Vec::new());
            for _ in 0..2 {
                pool.pop(&mut head, &mut out).unwrap();
                pool.release(head);
            }
            let pushed = worker.join().unwrap();
            while pool.pop(&mut head, &mut out).unwrap().is_some() {}
            assert!(pushed >= 2);
            assert_eq!(out, b"abc"[..pushed]);
        });
    }
}
