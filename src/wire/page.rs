//! The memory that a pool and one worker share.
//!
//! It holds the slots that say what has begun ([`slot`](super::slot)), the ring of replies
//! ([`ring`](super::ring)), and for large bodies an arena each way ([`arena`](super::arena)).
//!
//! Neither side believes the other: the worker may write anything here at any time. All the
//! pool concludes from it concerns that worker's own tasks, and what it takes for data it copies
//! out first, within bounds.

use super::arena::{GivenBack, Place, Room};
use super::ring::{Control, Garbled, Record, Ring};
use super::slot::Slot;
use crate::sys::memory::{SharedWords, copy_in, copy_out, words_for};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The most tasks that may be with one worker at a time.
pub(crate) const SLOTS: u64 = 1024;

/// Bodies from this size go through an arena: where copying them through a pipe, in pieces of
/// 64 KiB with both sides taking turns, costs more than finding them room.
pub(crate) const LARGE: usize = 32 * 1024;

/// The words of the ring: 256 KiB, which the caches hold, and a few hundred replies.
const RING: usize = 32 * 1024;

/// The words for where a task was when its time ran out: a length, and 16 KiB; in whole lines of the
/// cache.
const WHEREABOUTS: usize = 8 + 2048;

/// The words of an arena: 32 MiB. Only what has been written to takes up memory.
const ARENA: usize = 4 << 20;

// Single words, each on a cache line of its own.
const LAST_WORDS: usize = 0;
const TAIL: usize = 8;
const HEAD: usize = 16;
const ASLEEP: usize = 24;
const GIVEN_BACK: usize = 32;
const POSTED: usize = 40;

const SLOTS_AT: usize = 64;
const WHEREABOUTS_AT: usize = SLOTS_AT + 2 * SLOTS as usize;
const RING_AT: usize = WHEREABOUTS_AT + WHEREABOUTS;
const REQUESTS_AT: usize = RING_AT + RING;
const RESULTS_AT: usize = REQUESTS_AT + ARENA;
const WORDS: usize = RESULTS_AT + ARENA;

/// The memory that is shared with one worker.
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

    /// The word for a worker's last words.
    pub(crate) fn last_words(&self) -> &AtomicU64 {
        &self.0.words()[LAST_WORDS]
    }

    /// The words for where a task was when its time ran out.
    pub(crate) fn whereabouts(&self) -> &[AtomicU64] {
        &self.0.words()[WHEREABOUTS_AT..WHEREABOUTS_AT + WHEREABOUTS]
    }

    /// The words of an arena that a place names, if it names any.
    fn place(&self, arena_at: usize, place: Place) -> Option<(&[AtomicU64], usize)> {
        let arena = &self.0.words()[arena_at..arena_at + ARENA];
        let bytes = usize::try_from(place.bytes).ok()?;
        let at = usize::try_from(place.at).ok()?;
        let end = at.checked_add(words_for(bytes))?;
        Some((arena.get(at..end)?, bytes))
    }

    fn write_at(&self, arena_at: usize, at: u64, body: &[u8]) -> Place {
        let place = Place { at, bytes: body.len() as u64 };
        if let Some((words, _)) = self.place(arena_at, place) {
            copy_in(body, words);
        }
        place
    }

    fn read_at(&self, arena_at: usize, place: Place) -> Option<Vec<u8>> {
        let (words, bytes) = self.place(arena_at, place)?;
        let mut body = Vec::new();
        copy_out(words, bytes, &mut body);
        Some(body)
    }

    fn ring(&self) -> Ring<'_, AtomicU64> {
        let words = self.0.words();
        let control = Control { head: &words[HEAD], tail: &words[TAIL], asleep: &words[ASLEEP] };
        Ring { control, data: &words[RING_AT..RING_AT + RING] }
    }

    fn given_back(&self) -> GivenBack<'_, AtomicU64> {
        GivenBack(&self.0.words()[GIVEN_BACK])
    }

    fn slot(&self, seq: u64) -> Slot<'_, AtomicU64> {
        let at = SLOTS_AT + 2 * (seq % SLOTS) as usize;
        Slot { state: &self.0.words()[at], started: &self.0.words()[at + 1] }
    }
}

/// What the pool does.
impl Page {
    /// The pool is about to send this task.
    pub(crate) fn offer(&self, seq: u64) {
        self.slot(seq).offer(seq);
    }

    /// The pool wants this task back: true if it has not begun, and now never will.
    pub(crate) fn take_back(&self, seq: u64) -> bool {
        self.slot(seq).take_back(seq)
    }

    /// When the worker says that it began this task; `None` if it has not begun it.
    pub(crate) fn began_at(&self, seq: u64) -> Option<u64> {
        self.slot(seq).began_at(seq)
    }

    /// Where the worker says that its task was when its time ran out, if it says so.
    pub(crate) fn read_whereabouts(&self) -> Option<String> {
        let (length, words) = self.whereabouts().split_first()?;
        let length = usize::try_from(length.load(Ordering::Acquire)).ok()?;
        if length == 0 || length > words.len() * size_of::<u64>() {
            return None;
        }
        let mut text = Vec::new();
        copy_out(words, length, &mut text);
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// The pool is about to write to the request pipe.
    pub(crate) fn post(&self) {
        // Written under the lock of the outlet alone, so nothing is lost between the two.
        let posted = &self.0.words()[POSTED];
        posted.store(posted.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Whether the worker says that this task is done.
    pub(crate) fn is_finished(&self, seq: u64) -> bool {
        self.slot(seq).is_finished(seq)
    }

    /// Room for large arguments.
    pub(crate) fn room_for_requests() -> Room {
        Room::new(ARENA)
    }

    /// Puts arguments where there is room for them.
    pub(crate) fn write_request(&self, at: u64, body: &[u8]) -> Place {
        self.write_at(REQUESTS_AT, at, body)
    }

    /// Copies out a result, the so-manieth that was put here, and lets the worker use the room again.
    /// `None` if the place is none.
    pub(crate) fn read_result(&self, number: u64, place: Place) -> Option<Vec<u8>> {
        let body = self.read_at(RESULTS_AT, place)?;
        self.given_back().tell(number);
        Some(body)
    }

    /// Reads the next record from the ring.
    pub(crate) fn pop(&self, head: &mut u64, out: &mut Vec<u8>) -> Result<Option<Record>, Garbled> {
        self.ring().pop(head, out)
    }

    /// Gives the room of what was read from the ring back to the worker.
    pub(crate) fn release(&self, head: u64) {
        self.ring().release(head);
    }

    /// The pool is about to sleep; false if there is something in the ring after all.
    pub(crate) fn sleep(&self, head: u64) -> bool {
        self.ring().control.sleep(head)
    }

    /// The pool is awake.
    pub(crate) fn wake(&self) {
        self.ring().control.wake();
    }
}

/// What the worker does.
impl Page {
    /// The worker wants to begin this task: false if it was taken back.
    pub(crate) fn begin(&self, seq: u64, now: u64) -> bool {
        self.slot(seq).begin(seq, now)
    }

    /// The worker is done with this task, and about to answer.
    pub(crate) fn finish(&self, seq: u64) {
        self.slot(seq).finish(seq);
    }

    /// The worker begins the next item of a chunk, and the task's time anew.
    pub(crate) fn begin_item(&self, seq: u64, now: u64) {
        self.slot(seq).begin_item(now);
    }

    /// Changes with every write to the request pipe.
    pub(crate) fn posted(&self) -> u64 {
        self.0.words()[POSTED].load(Ordering::Acquire)
    }

    /// Copies out arguments.
    pub(crate) fn read_request(&self, place: Place) -> Option<Vec<u8>> {
        self.read_at(REQUESTS_AT, place)
    }

    /// Room for large results.
    pub(crate) fn room_for_results() -> Room {
        Room::new(ARENA)
    }

    /// Puts a result where there is room for it; its number is one more than that of the last one
    /// for which there was.
    pub(crate) fn write_result(&self, room: &mut Room, number: u64, body: &[u8]) -> Option<Place> {
        room.give_back(self.given_back().told());
        let at = room.take(number, words_for(body.len()))?;
        Some(self.write_at(RESULTS_AT, at, body))
    }

    /// Puts a record into the ring; `None` if there is no room, otherwise whether to wake the pool.
    pub(crate) fn push(&self, tail: &mut u64, bytes: &[u8]) -> Option<bool> {
        self.ring().push(tail, bytes)
    }

    /// Puts a record into the ring that the pool need not be woken for; `None` if there is no room.
    pub(crate) fn push_quietly(&self, tail: &mut u64, bytes: &[u8]) -> Option<()> {
        self.ring().push_quietly(tail, bytes)
    }

    /// Whether there is much room in the ring, for what may as well be left out.
    #[cfg(any(feature = "log", feature = "tracing"))]
    pub(crate) fn has_much_room(&self, tail: u64, bytes: usize) -> bool {
        self.ring().has_much_room(tail, bytes)
    }

    /// Whether to wake the pool for what was pushed quietly up to here.
    #[cfg(any(feature = "log", feature = "tracing"))]
    pub(crate) fn ring_bell(&self, tail: u64) -> bool {
        self.ring().control.publish(tail)
    }

    /// Says in the ring that the next record is in the pipe.
    pub(crate) fn push_in_pipe(&self, tail: &mut u64) -> Option<()> {
        self.ring().push_in_pipe(tail)
    }
}

/// For tests that write where they should not.
#[cfg(any(test, feature = "internals"))]
impl Page {
    /// Where the single words are, the slots, the ring, the arena of requests, that of results, and
    /// where a task was.
    pub(crate) const PARTS: [std::ops::Range<usize>; 6] = [
        0..SLOTS_AT,
        SLOTS_AT..WHEREABOUTS_AT,
        RING_AT..REQUESTS_AT,
        REQUESTS_AT..RESULTS_AT,
        RESULTS_AT..WORDS,
        WHEREABOUTS_AT..RING_AT,
    ];

    /// All of it.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }

    /// The words of the ring's tail, of its head, and of the flag that the pool sleeps.
    pub(crate) const RING_WORDS: [usize; 3] = [TAIL, HEAD, ASLEEP];
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let (pool, file) = Page::create().unwrap();
        let worker = Page::open(file.as_fd()).unwrap();
        pool.offer(1);
        assert!(worker.begin(1, 42));
        assert_eq!(pool.began_at(1), Some(42));

        let mut room = Page::room_for_requests();
        let body = vec![7; 100_001];
        let at = room.take(1, words_for(body.len())).unwrap();
        assert_eq!(worker.read_request(pool.write_request(at, &body)), Some(body.clone()));

        let mut room = Page::room_for_results();
        let place = worker.write_result(&mut room, 1, &body).unwrap();
        assert_eq!(pool.read_result(1, place), Some(body));

        let (mut head, mut tail, mut out) = (0, 0, Vec::new());
        assert!(pool.sleep(head));
        assert_eq!(worker.push(&mut tail, b"record"), Some(true));
        assert_eq!(pool.pop(&mut head, &mut out), Ok(Some(Record::Here(6))));
        assert_eq!(out, b"record");
    }

    #[test]
    fn places_outside_the_arena_are_refused() {
        let (pool, _file) = Page::create().unwrap();
        for (at, bytes) in [(u64::MAX, 1), (0, u64::MAX), (ARENA as u64, 1), (1, 8 * ARENA as u64)] {
            assert_eq!(pool.read_result(1, Place { at, bytes }), None);
        }
    }
}
