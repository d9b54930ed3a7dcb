//! Between those who see something happen and the thread that writes it down.

use super::notes::Note;
use crate::pool::observe::Levels;
use crate::pool::scheduler::Nanos;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most notes of tasks and levels that wait to be written.
const MOST: usize = 65_536;

/// How many more there may be of workers: what becomes of those is to be seen in a flood of tasks too.
const RESERVE: usize = 4_096;

/// With so many the writer does not wait for more.
const MANY: usize = MOST / 4;

/// How long the writer waits for more when there is something: waking it for each would cost more.
const PAUSE: Duration = Duration::from_millis(20);

/// Levels are noted so often at most, in nanoseconds; and the last ones of a time in any case.
const LEVELS_EVERY: Nanos = 1_000_000;

#[derive(Default)]
pub(super) struct Mailbox {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

#[derive(Default)]
struct Inner {
    notes: Vec<Note>,
    /// How many notes there was no room for.
    dropped: u64,
    /// The last levels, while they are not among the notes.
    latest: Option<Levels>,
    last_number: u64,
    levels_due: Nanos,
    is_closed: bool,
    /// The writer waits for anything to come.
    is_asleep: bool,
}

/// What has come beside notes.
pub(super) struct Post {
    /// How many notes were dropped so far.
    pub(super) dropped: u64,
    pub(super) is_last: bool,
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.latest.is_none() && !self.is_closed
    }

    fn add(&mut self, note: Note) {
        let room = if matches!(note, Note::Task(_) | Note::Levels(_)) { MOST } else { MOST + RESERVE };
        if self.notes.len() < room {
            self.notes.push(note);
        } else {
            self.dropped += 1;
        }
    }

    fn add_levels(&mut self, levels: Levels) {
        if levels.number <= self.last_number {
            return;
        }
        self.last_number = levels.number;
        let earlier = self.latest.take();
        // What is left out of them is not missed, so it does not count as dropped.
        if levels.at < self.levels_due || self.notes.len() + 2 > MOST {
            self.latest = Some(levels);
            return;
        }
        self.levels_due = levels.at.saturating_add(LEVELS_EVERY);
        self.notes.extend(earlier.into_iter().chain([levels]).map(Note::Levels));
    }
}

impl Mailbox {
    pub(super) fn put(&self, note: Note) {
        self.change(|inner| inner.add(note));
    }

    pub(super) fn put_levels(&self, levels: Levels) {
        self.change(|inner| inner.add_levels(levels));
    }

    /// Takes nothing more in.
    pub(super) fn close(&self) {
        self.change(|inner| inner.is_closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        if inner.is_closed {
            return;
        }
        let had = inner.notes.len();
        change(&mut inner);
        let is_many = had < MANY && inner.notes.len() >= MANY;
        let wakes = inner.is_asleep && !inner.is_empty();
        if wakes || is_many || inner.is_closed {
            inner.is_asleep = false;
            drop(inner);
            self.arrived.notify_one();
        }
    }

    /// Waits until there is something, and a little longer, and takes it all.
    pub(super) fn take(&self, notes: &mut Vec<Note>) -> Post {
        let mut inner = self.lock();
        inner.is_asleep = inner.is_empty();
        inner =
            self.arrived.wait_while(inner, |inner| inner.is_empty()).unwrap_or_else(PoisonError::into_inner);
        inner.is_asleep = false;
        let is_few = |inner: &mut Inner| inner.notes.len() < MANY && !inner.is_closed;
        inner = match self.arrived.wait_timeout_while(inner, PAUSE, is_few) {
            Ok((inner, _)) => inner,
            Err(poisoned) => poisoned.into_inner().0,
        };
        std::mem::swap(&mut inner.notes, notes);
        notes.extend(inner.latest.take().map(Note::Levels));
        Post { dropped: inner.dropped, is_last: inner.is_closed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_start() -> Note {
        Note::StartFailed { reason: String::new(), at: 0 }
    }

    fn levels(number: u64, at: Nanos) -> Levels {
        Levels { number, at, ..Levels::default() }
    }

    fn numbers(notes: &[Note]) -> Vec<u64> {
        let number = |note: &Note| match note {
            Note::Levels(levels) => levels.number,
            _ => panic!("these are levels"),
        };
        notes.iter().map(number).collect()
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mailbox = Mailbox::default();
        for _ in 0..MOST + RESERVE + 3 {
            mailbox.put(failed_start());
        }
        mailbox.close();
        mailbox.put(failed_start());
        let mut notes = Vec::new();
        let post = mailbox.take(&mut notes);
        assert_eq!((notes.len(), post.dropped, post.is_last), (MOST + RESERVE, 3, true));
    }

    #[test]
    fn levels_are_thinned_out_but_for_the_last() {
        let mailbox = Mailbox::default();
        for (number, at) in [(1, 10), (2, 20), (4, 40), (3, 30)] {
            mailbox.put_levels(levels(number, at));
        }
        let mut notes = Vec::new();
        mailbox.take(&mut notes);
        // The third came too late to be the last.
        assert_eq!(numbers(&notes), [1, 4]);
        notes.clear();
        mailbox.put_levels(levels(5, 50));
        mailbox.put_levels(levels(6, 10 * LEVELS_EVERY));
        mailbox.take(&mut notes);
        assert_eq!(numbers(&notes), [5, 6]);
    }

    #[test]
    fn a_writer_that_sleeps_is_woken() {
        let mailbox = Mailbox::default();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| {
                let mut notes = Vec::new();
                while notes.is_empty() {
                    mailbox.take(&mut notes);
                }
                numbers(&notes)
            });
            while !mailbox.lock().is_asleep {
                std::thread::yield_now();
            }
            mailbox.put_levels(levels(1, 0));
            assert_eq!(taken.join().unwrap(), [1]);
        });
    }
}
