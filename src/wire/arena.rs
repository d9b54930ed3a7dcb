//! Room for large bodies in shared memory, given out and given back in order.

use super::word::Word;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Where a body is, in an arena: word by word, so that places are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Place {
    /// The first word.
    pub(crate) at: u64,
    /// The length in bytes.
    pub(crate) bytes: u64,
}

/// Which words of an arena are in use. Whoever writes to the arena keeps this.
///
/// Bodies are given back in the order in which they were given room, because a worker does its
/// tasks in order. So the words in use are one stretch, or two when it wraps.
#[derive(Debug)]
pub(crate) struct Room {
    words: u64,
    /// The number of the body (for arguments, that of the task), and the first word after it.
    in_use: VecDeque<(u64, u64)>,
    /// The first word in use.
    start: u64,
}

impl Room {
    pub(crate) fn new(words: usize) -> Room {
        Room { words: words as u64, in_use: VecDeque::new(), start: 0 }
    }

    /// Finds room for so many words in a row; the place of the first.
    pub(crate) fn take(&mut self, seq: u64, words: usize) -> Option<u64> {
        let words = words as u64;
        let at = match self.in_use.back() {
            // Always from the start when nothing is in use: that memory is warm.
            None => {
                self.start = 0;
                (words <= self.words).then_some(0)
            }
            Some(&(_, end)) if end > self.start => {
                let behind = (words <= self.words - end).then_some(end);
                behind.or((words < self.start).then_some(0))
            }
            Some(&(_, end)) => (words < self.start - end).then_some(end),
        }?;
        self.in_use.push_back((seq, at + words));
        Some(at)
    }

    /// The bodies of all tasks up to this one are not needed any more.
    pub(crate) fn give_back(&mut self, seq: u64) {
        while let Some(&(first, end)) = self.in_use.front()
            && first <= seq
        {
            self.in_use.pop_front();
            // Where the next one begins: here, or at the start if it did not fit behind.
            self.start = match self.in_use.front() {
                Some(&(_, next)) if next < end => 0,
                _ => end,
            };
        }
    }
}

/// The word by which whoever reads an arena tells whoever writes to it which body has been read last.
pub(super) struct GivenBack<'a, W>(pub(super) &'a W);

impl<W: Word> GivenBack<'_, W> {
    pub(super) fn tell(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }

    pub(super) fn told(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_in_use_never_overlap(steps in prop::collection::vec(prop::option::of(1usize..60), 0..200)) {
            let mut room = Room::new(100);
            let mut in_use: VecDeque<(u64, u64, u64)> = VecDeque::new();
            for (seq, step) in steps.into_iter().enumerate() {
                match step {
                    Some(words) => if let Some(at) = room.take(seq as u64, words) {
                        let end = at + words as u64;
                        prop_assert!(end <= 100);
                        for (_, other, other_end) in &in_use {
                            prop_assert!(end <= *other || *other_end <= at, "{in_use:?} {at}..{end}");
                        }
                        in_use.push_back((seq as u64, at, end));
                    } else {
                        prop_assert!(!in_use.is_empty());
                    },
                    None => if let Some((seq, ..)) = in_use.pop_front() {
                        room.give_back(seq);
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "switches stacks")]
    fn room_is_given_back_only_when_what_was_there_has_been_read() {
        use loom::sync::Arc;
        use loom::sync::atomic::AtomicU64;
        loom::model(|| {
            let words = Arc::new((AtomicU64::new(0), AtomicU64::new(1)));
            let worker = loom::thread::spawn({
                let words = words.clone();
                move || {
                    let mut room = Room::new(1);
                    room.take(1, 1).unwrap();
                    room.give_back(GivenBack(&words.0).told());
                    if room.take(2, 1).is_some() {
                        words.1.store(2, Ordering::Relaxed);
                    }
                }
            });
            assert_eq!(words.1.load(Ordering::Relaxed), 1);
            GivenBack(&words.0).tell(1);
            worker.join().unwrap();
        });
    }

    #[test]
    fn it_starts_over_when_nothing_is_in_use() {
        let mut room = Room::new(100);
        for seq in 0..10 {
            assert_eq!(room.take(seq, 100), Some(0));
            assert_eq!(room.take(seq, 1), None);
            room.give_back(seq);
        }
    }
}
