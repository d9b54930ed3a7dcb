//! Saying things to the pool: through the ring in shared memory where there is one, with no system
//! call unless the pool sleeps, otherwise through the pipe.

use crate::sys::fault::end_cut_off;
use crate::task::{Fault, Progress};
use crate::wire::{LARGE, Page, Place, Reply, Room, write_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::OwnedFd;
#[cfg(any(feature = "log", feature = "tracing"))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

/// Bodies up to this size are copied behind their head, to leave in one write.
const COPY_LIMIT: usize = 16 * 1024;

/// The stream of replies.
pub(super) struct Replies {
    stream: Mutex<Stream>,
    /// Whether what tasks log goes through the ring.
    #[cfg(any(feature = "log", feature = "tracing"))]
    logs_in_ring: AtomicBool,
}

struct Stream {
    pipe: File,
    page: Option<&'static Page>,
    /// How far the ring is written.
    tail: u64,
    room: Room,
    /// How many bodies were put into the arena.
    placed: u64,
    /// Kept for its memory.
    buffer: Vec<u8>,
    /// Whether the ring is in use, or only the pipe yet.
    is_ready: bool,
    #[cfg(any(feature = "log", feature = "tracing"))]
    bell: voice::Bell,
}

impl Replies {
    pub(super) fn new(pipe: OwnedFd, page: Option<&'static Page>) -> Replies {
        let stream = Mutex::new(Stream {
            pipe: pipe.into(),
            page,
            tail: 0,
            room: Page::room_for_results(),
            placed: 0,
            buffer: Vec::new(),
            is_ready: false,
            #[cfg(any(feature = "log", feature = "tracing"))]
            bell: voice::Bell::default(),
        });
        Replies {
            stream,
            #[cfg(any(feature = "log", feature = "tracing"))]
            logs_in_ring: AtomicBool::new(false),
        }
    }

    /// Says something of no task, through the pipe.
    pub(super) fn greet(&self, head: &Reply) {
        self.with(|stream| {
            stream.is_ready |= matches!(head, Reply::Ready);
            #[cfg(any(feature = "log", feature = "tracing"))]
            self.logs_in_ring.store(stream.is_ready && stream.page.is_some(), Ordering::Relaxed);
            stream.write(head, &[])
        });
    }

    /// Says something of a task, which has arrived when this returns, whatever then becomes of
    /// this process.
    pub(super) fn send(&self, head: &Reply, body: &[u8]) {
        self.with(|stream| stream.send(head, body));
    }

    /// Says how a task ended.
    pub(super) fn send_outcome(&self, seq: u64, is_worn: bool, ran: u64, outcome: Result<&[u8], Fault>) {
        match outcome {
            Ok(body) => self.with(|stream| stream.send_value(seq, is_worn, ran, body)),
            Err(fault) => {
                let fault = fault.bounded();
                self.send(&Reply::Fault { seq, is_worn, dying: false, ran, fault }, &[]);
            }
        }
    }

    /// Sends the next item of a stream, or the fault in its place.
    pub(super) fn send_item(&self, seq: u64, is_fault: bool, body: &[u8]) {
        self.with(|stream| {
            let place = stream.place(body);
            let body = if place.is_some() { &[] } else { body };
            stream.send(&Reply::Item { seq, is_fault, place }, body)
        });
    }

    /// Tells how far a task has got, unless that would have to wait; whether it was told.
    pub(super) fn try_report(&self, seq: u64, progress: &Progress) -> bool {
        let mut stream = match self.stream.try_lock() {
            Ok(stream) => stream,
            Err(TryLockError::Poisoned(stream)) => stream.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        match stream.try_send(&Reply::Progress { seq, progress: progress.clone() }) {
            Ok(is_sent) => is_sent,
            Err(_) => end_cut_off(),
        }
    }

    /// Tells how far a task has got whose end follows.
    pub(super) fn send_last_report(&self, seq: u64, progress: Progress) {
        self.send(&Reply::Progress { seq, progress }, &[]);
    }

    /// A pool that is gone ends the process.
    fn with(&self, send: impl FnOnce(&mut Stream) -> std::io::Result<()>) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if send(&mut stream).is_err() {
            end_cut_off();
        }
    }
}

impl Stream {
    fn send_value(&mut self, seq: u64, is_worn: bool, ran: u64, body: &[u8]) -> std::io::Result<()> {
        let place = self.place(body);
        let body = if place.is_some() { &[] } else { body };
        self.send(&Reply::Value { seq, is_worn, ran, place }, body)
    }

    /// Puts a large body into the arena, if there is room.
    fn place(&mut self, body: &[u8]) -> Option<Place> {
        let page = self.page.filter(|_| body.len() >= LARGE)?;
        let place = page.write_result(&mut self.room, self.placed + 1, body)?;
        self.placed += 1;
        Some(place)
    }

    /// Says something short if that need not wait; whether it was said.
    fn try_send(&mut self, head: &Reply) -> std::io::Result<bool> {
        let Some(page) = self.page else {
            // A pipe that has room takes a short frame whole.
            let mut fds = [PollFd::new(&self.pipe, PollFlags::OUT)];
            let has_room = matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..));
            return if has_room { self.write(head, &[]).map(|()| true) } else { Ok(false) };
        };
        self.buffer.clear();
        // As below.
        let _ = postcard::to_io(head, &mut self.buffer);
        match page.push(&mut self.tail, &self.buffer) {
            None => Ok(false),
            Some(false) => Ok(true),
            // A pool that sleeps has read the pipe until it was empty.
            Some(true) => self.write(&Reply::Bell, &[]).map(|()| true),
        }
    }

    fn send(&mut self, head: &Reply, body: &[u8]) -> std::io::Result<()> {
        let Some(page) = self.page.filter(|_| self.is_ready) else {
            return self.write(head, body);
        };
        if body.len() < LARGE {
            self.buffer.clear();
            // Heads consist of what postcard always encodes.
            let _ = postcard::to_io(head, &mut self.buffer);
            self.buffer.extend_from_slice(body);
            // A part is not worth waking the pool for: its chunk is not done before its value comes.
            // Nor is the last report, or the last of what was logged, which the result follows.
            let pushed = match head {
                Reply::Part { .. } | Reply::Progress { .. } | Reply::Voice { task: Some(_) } => {
                    page.push_quietly(&mut self.tail, &self.buffer).map(|()| false)
                }
                _ => page.push(&mut self.tail, &self.buffer),
            };
            if let Some(pool_sleeps) = pushed {
                return if pool_sleeps { self.write(&Reply::Bell, &[]) } else { Ok(()) };
            }
        }
        while page.push_in_pipe(&mut self.tail).is_none() {
            // The ring is full of what the pool has not read: it has not slept since.
            self.wait_for_pool()?;
        }
        self.write(head, body)
    }

    /// Waits a moment; an error when the pool is gone.
    fn wait_for_pool(&self) -> std::io::Result<()> {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let mut fds = [PollFd::new(&self.pipe, PollFlags::empty())];
        match poll(&mut fds, Some(&MOMENT)) {
            Ok(1..) => Err(std::io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    fn write(&mut self, head: &Reply, body: &[u8]) -> std::io::Result<()> {
        let Stream { pipe, buffer, .. } = self;
        buffer.clear();
        write_frame(head, body.len(), buffer);
        if body.len() <= COPY_LIMIT {
            buffer.extend_from_slice(body);
            pipe.write_all(buffer)
        } else {
            write_both(pipe, buffer, body)
        }
    }
}

/// Writes a head and a long body without copying the body.
fn write_both(file: &mut File, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    let written = loop {
        match file.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            written => break written?,
        }
    };
    match head.get(written..) {
        Some(rest) => {
            file.write_all(rest)?;
            file.write_all(body)
        }
        None => file.write_all(&body[written - head.len()..]),
    }
}

/// What a task logs, which never waits.
#[cfg(any(feature = "log", feature = "tracing"))]
mod voice {
    use super::*;
    use crate::sys::monotonic_now;
    use crate::wire::voice::LONGEST;
    use std::sync::MutexGuard;

    /// So much goes into a pipe that has room at all.
    const PIPE_BUF: usize = 4096;

    /// What frames and heads add.
    const FRAME: usize = 64;

    /// How often it is tried to say something while others do.
    const TRIES: usize = 8;

    /// The pool is woken for what is logged at most this often; what comes meanwhile is told later.
    const PAUSE: u64 = 2_000_000;

    /// The pool is woken for so many bytes in any case.
    const MUCH: usize = 64 * 1024;

    /// There is something in the ring that the pool was not woken for.
    static IS_QUIET: AtomicBool = AtomicBool::new(false);

    /// When the pool was last woken for what is logged, and how much has come since.
    #[derive(Default)]
    pub(super) struct Bell {
        rung: u64,
        since: usize,
    }

    impl Replies {
        /// The longest body that there may be room for.
        pub(in crate::worker) fn longest_to_say(&self) -> usize {
            if self.logs_in_ring.load(Ordering::Relaxed) { LONGEST } else { PIPE_BUF - FRAME }
        }

        /// Says something if there is much room for it, and nobody else is about to say anything for long.
        pub(in crate::worker) fn try_say(&self, head: &Reply, body: &[u8]) -> bool {
            let Some(mut stream) = self.hold_soon() else { return false };
            match stream.try_say(head, body) {
                Ok(is_said) => is_said,
                Err(_) => end_cut_off(),
            }
        }

        /// Whoever says something short is let through; who waits for the pool is not waited for.
        fn hold_soon(&self) -> Option<MutexGuard<'_, Stream>> {
            (0..TRIES).find_map(|tried| {
                if tried > 0 {
                    std::thread::yield_now();
                }
                self.hold_now()
            })
        }

        fn hold_now(&self) -> Option<MutexGuard<'_, Stream>> {
            match self.stream.try_lock() {
                Ok(stream) => Some(stream),
                Err(TryLockError::Poisoned(stream)) => Some(stream.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }

        /// Wakes the pool for what was said quietly.
        pub(in crate::worker) fn ring(&self) {
            if !IS_QUIET.load(Ordering::Relaxed) {
                return;
            }
            // Who holds it is about to say something, or waits for the pool, which is awake then.
            let Some(mut stream) = self.hold_now() else { return };
            if stream.ring().is_err() {
                end_cut_off();
            }
        }
    }

    impl Stream {
        fn try_say(&mut self, head: &Reply, body: &[u8]) -> std::io::Result<bool> {
            let Some(page) = self.page.filter(|_| self.is_ready) else {
                if body.len() + FRAME > PIPE_BUF || !self.pipe_has_room() {
                    return Ok(false);
                }
                return self.write(head, body).map(|()| true);
            };
            if !page.has_much_room(self.tail, body.len()) {
                // What is there already may be what the pool sleeps over.
                return self.ring().map(|()| false);
            }
            self.buffer.clear();
            // Heads consist of what postcard always encodes.
            let _ = postcard::to_io(head, &mut self.buffer);
            self.buffer.extend_from_slice(body);
            if page.push_quietly(&mut self.tail, &self.buffer).is_none() {
                return Ok(false);
            }
            self.bell.since += body.len();
            let now = monotonic_now();
            let is_in_task = matches!(head, Reply::Voice { task: Some(_) });
            if !is_in_task || self.bell.since >= MUCH || now.saturating_sub(self.bell.rung) >= PAUSE {
                self.bell.rung = now;
                self.ring()?;
            } else {
                IS_QUIET.store(true, Ordering::Relaxed);
            }
            Ok(true)
        }

        fn ring(&mut self) -> std::io::Result<()> {
            IS_QUIET.store(false, Ordering::Relaxed);
            self.bell.since = 0;
            match self.page {
                Some(page) if page.ring_bell(self.tail) => self.write(&Reply::Bell, &[]),
                _ => Ok(()),
            }
        }

        fn pipe_has_room(&self) -> bool {
            let mut fds = [PollFd::new(&self.pipe, PollFlags::OUT)];
            let polled = poll(&mut fds, Some(&Timespec::default()));
            matches!(polled, Ok(1..)) && fds[0].revents().contains(PollFlags::OUT)
        }
    }
}

#[cfg(all(test, any(feature = "log", feature = "tracing")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_waits_for_nobody() {
        let (_ours, theirs) = rustix::pipe::pipe().unwrap();
        let replies = Replies::new(theirs, None);
        let voice = Reply::Voice { task: None };
        {
            // Somebody waits for the pool to read.
            let _held = replies.stream.lock().unwrap();
            assert!(replies.longest_to_say() > 0 && !replies.try_say(&voice, &[1]));
        }
        assert!(replies.try_say(&voice, &[1]));
    }
}
