//! The memory that is shared with a worker.

use super::Input;
use crate::wire::{Batch, Garbled, Incoming, Page, Place, Record, SLOTS};
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The shared memory as both sides see it. Made once, as that takes a while; what is written to
/// must be cleared.
struct Both {
    pool: Arc<Page>,
    worker: Page,
}

thread_local! {
    static BOTH: RefCell<Option<Rc<Both>>> = const { RefCell::new(None) };
}

fn both() -> Rc<Both> {
    BOTH.with_borrow_mut(|both| {
        let make = || {
            let (pool, file) = Page::create().expect("there is memory");
            let worker = Page::open(file.as_fd()).expect("it can be opened");
            Rc::new(Both { pool: Arc::new(pool), worker })
        };
        both.get_or_insert_with(make).clone()
    })
}

impl Both {
    fn clear(&self, part: usize, words: usize) {
        let part = Page::PARTS[part].clone();
        self.worker.words()[part].iter().take(words).for_each(|word| word.store(0, Relaxed));
    }
}

/// Records in the ring, and frames in the pipe beside them, in any order.
pub(super) fn replies(data: &[u8]) {
    const SINGLE_WORDS: usize = 64;
    let both = both();
    both.clear(0, SINGLE_WORDS);
    let mut incoming = Incoming::new(Some(both.pool.clone()), 1 << 16, 1024);
    let (mut input, mut tail, mut batch) = (Input(data), 0, Batch::default());
    let mut said = 0;
    while !input.is_empty() {
        let (kind, length) = (input.byte(), usize::from(input.byte()));
        match kind % 4 {
            0 => drop(both.worker.push(&mut tail, input.bytes(length))),
            1 => drop(both.worker.push_in_pipe(&mut tail)),
            2 => incoming.buffer(length).extend_from_slice(input.bytes(length)),
            _ => drop(incoming.may_sleep()),
        }
        let gathered = incoming.gather(&mut batch);
        said += batch.drain().filter(|(_, body)| body.as_slice().len() <= 1 << 16).count();
        if gathered.is_err() {
            break;
        }
    }
    assert!(said <= data.len() / 2, "{said} replies were made of {} bytes", data.len());
}

/// The ring, with anything in it and anything for its bounds.
pub(super) fn ring(data: &[u8]) {
    const CAPACITY: u64 = 32 * 1024;
    let both = both();
    let mut input = Input(data);
    let (mut head, filled) = (input.word(), input.word());
    let start = head;
    let words = &both.worker.words()[Page::PARTS[2].clone()];
    assert_eq!(words.len() as u64, CAPACITY);
    let at = |at: u64| &words[(start.wrapping_add(at) % CAPACITY) as usize];
    let mut written = 0;
    while !input.is_empty() {
        at(written).store(input.word(), Relaxed);
        written += 1;
    }
    let [tail, ..] = Page::RING_WORDS;
    both.worker.words()[tail].store(start.wrapping_add(filled), Relaxed);
    let mut out = Vec::new();
    let mut left = filled.min(CAPACITY);
    loop {
        out.clear();
        let before = head;
        match both.pool.pop(&mut head, &mut out) {
            Ok(Some(Record::Here(length))) => assert_eq!(out.len(), length),
            Ok(Some(Record::InPipe)) => assert!(out.is_empty()),
            Ok(None) => break assert_eq!(head, start.wrapping_add(filled)),
            Err(Garbled) => break,
        }
        let read = head.wrapping_sub(before);
        assert!(read > 0 && read <= left, "{read} words were read where {left} were left");
        left -= read;
    }
    (0..written).for_each(|written| at(written).store(0, Relaxed));
}

/// A value that is said to be somewhere.
pub(super) fn places(data: &[u8]) {
    const ARENA: u64 = 4 << 20;
    let both = both();
    let mut input = Input(data);
    while !input.is_empty() {
        // Large ones now and then, as they take their time.
        let size = if input.byte() == 255 { u64::MAX } else { 4096 };
        let place = Place { at: input.word(), bytes: input.word() % size };
        let end = u128::from(place.at) + u128::from(place.bytes.div_ceil(8));
        let body = both.pool.read_result(input.word(), place);
        assert_eq!(body.is_some(), end <= u128::from(ARENA), "{place:?}");
        assert!(body.is_none_or(|body| body.len() as u64 == place.bytes));
        if size == u64::MAX {
            return;
        }
    }
}

/// What is said of who has a task.
pub(super) fn slots(data: &[u8]) {
    let both = both();
    both.clear(1, 2 * SLOTS as usize);
    let words = &both.worker.words()[Page::PARTS[1].clone()];
    let mut input = Input(data);
    while !input.is_empty() {
        let (kind, seq) = (input.byte(), input.word() >> 2);
        let at = 2 * (seq % SLOTS) as usize;
        match kind % 6 {
            0 => words[at].store(input.word(), Relaxed),
            1 => words[at].store(seq << 2 | u64::from(input.byte() % 4), Relaxed),
            2 => words[at + 1].store(input.word(), Relaxed),
            3 => {
                both.pool.offer(seq);
                assert_eq!(both.pool.began_at(seq), None);
            }
            4 => drop(both.worker.begin(seq, input.word())),
            _ => {}
        }
        let (began, is_finished) = (both.pool.began_at(seq), both.pool.is_finished(seq));
        assert!(!is_finished || began.is_some());
        assert!(began.is_none_or(|at_time| at_time == words[at + 1].load(Relaxed)));
        if both.pool.take_back(seq) {
            assert!(began.is_none() && !both.worker.begin(seq, 1) && !both.pool.take_back(seq));
            assert_eq!(both.pool.began_at(seq), None);
        }
    }
}

/// Where a task says that it was.
pub(super) fn whereabouts(data: &[u8]) {
    let both = both();
    let words = both.worker.whereabouts();
    let mut input = Input(data);
    let length = input.word();
    words[0].store(length, Relaxed);
    let rest = words[1..].iter().take(data.len().div_ceil(8));
    rest.for_each(|word| word.store(input.word(), Relaxed));
    let most = (words.len() as u64 - 1) * 8;
    let told = both.pool.read_whereabouts();
    assert_eq!(told.is_some(), (1..=most).contains(&length));
    let told = told.unwrap_or_default();
    // What is no text is replaced, byte by byte at worst, by a sign of three bytes.
    assert!(told.len() as u64 <= 3 * most);
    drop(crate::task::cut(&told, "handler"));
    words.iter().take(1 + data.len().div_ceil(8)).for_each(|word| word.store(0, Relaxed));
}
