//! Reading from the pool.
//!
//! There is one stream and there are two threads that read it, never both at a time. Between
//! tasks the task thread reads, so that a task costs no hop from thread to thread. While a task
//! runs for long, the watchdog reads: it hears of a cancellation, takes in what comes for later
//! so that the pool's writes do not stall, and ends the process when the pool is gone.
//!
//! Where there is no control page, this is also where tasks are taken back: whoever holds the stream
//! either takes a task out of it to begin it, or leaves it and says so.

use super::context::TaskContext;
use super::replies::Replies;
use super::shift::Shift;
use super::voice;
use crate::sys::fault::end_cut_off;
use crate::sys::monotonic_now;
use crate::wire::{Frame, FrameCodec, FrameError, Page, Reply, Request};
use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use tokio_util::codec::Decoder;

/// How long a task may run before the watchdog begins to read on its behalf.
const WATCH_AFTER: Duration = Duration::from_millis(10);

/// How often the watchdog looks whether the task that it reads for is over.
const WATCH_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How many times in a row the watchdog finds no task before it waits to be woken.
const IDLE_ROUNDS: u32 = 3;

/// How many times a processor idles between two looks at the clock.
const LOOKS: u32 = 8;

/// How much is read at once.
const READ_SIZE: usize = 64 * 1024;

/// The stream of requests.
pub(super) struct Inbox {
    /// Only read by who holds `stream`.
    file: File,
    stream: Mutex<Stream>,
    shift: Shift<AtomicU64>,
    watchdog: Thread,
    /// Where there is no control page: to say there what the page would show.
    replies: Option<&'static Replies>,
}

struct Stream {
    codec: FrameCodec<Request>,
    /// What has arrived but makes no frame yet.
    bytes: BytesMut,
    /// Frames that have arrived but were not asked for yet.
    frames: VecDeque<Frame<Request>>,
    look_out: LookOut,
    /// Where reads go first.
    scratch: Box<[u8]>,
    ended: bool,
    /// There is a call among the frames that was not heeded yet.
    has_calls: bool,
}

impl Inbox {
    /// The calling thread will be the watchdog.
    pub(super) fn new(file: OwnedFd, replies: &'static Replies, has_page: bool) -> Inbox {
        Inbox {
            file: file.into(),
            stream: Mutex::new(Stream {
                codec: FrameCodec::new(u32::MAX.into()),
                bytes: BytesMut::new(),
                frames: VecDeque::new(),
                look_out: LookOut::default(),
                scratch: vec![0; READ_SIZE].into(),
                ended: false,
                has_calls: false,
            }),
            shift: Shift::default(),
            watchdog: std::thread::current(),
            replies: (!has_page).then_some(replies),
        }
    }

    /// Waits for the next request; `None` when the pool wants no more, or is gone.
    pub(super) fn next(&self) -> Result<Option<Frame<Request>>, FrameError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that was taken back must not begin, should word of that be here already.
        if self.replies.is_some() && !stream.frames.is_empty() && self.has_input() {
            stream.read(&self.file)?;
        }
        loop {
            if let Some(replies) = self.replies {
                stream.leave_what_was_taken_back(replies);
                if stream.ended {
                    // With tasks left, the pool is gone.
                    return Ok(None);
                }
            }
            if let Some(frame) = stream.frames.pop_front() {
                return Ok(Some(frame));
            }
            if stream.ended {
                return Ok(None);
            }
            stream.look_out.wait();
            stream.read(&self.file)?;
            stream.look_out.learn();
        }
    }

    /// From now on, looks out for requests that long before it sleeps.
    pub(super) fn look_out(&self, page: Option<&'static Page>, limit: u64) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.look_out = LookOut { page, limit, ..LookOut::default() };
    }

    /// The initializer begins, which ends as a task does.
    pub(super) fn begin_initializer(&self) {
        self.begin(u64::MAX - 1);
    }

    /// A task begins.
    pub(super) fn begin(&self, seq: u64) {
        if self.shift.begin(seq) {
            self.watchdog.unpark();
        }
    }

    /// The task that runs waits for something that the pool is to say.
    pub(super) fn listen(&self, seq: u64) {
        self.shift.hurry(seq);
        // Either the watchdog sees this before it waits, or it is woken from that.
        self.watchdog.unpark();
    }

    /// The task is over, or the initializer.
    pub(super) fn end(&self) {
        self.shift.end();
    }

    /// Watches over the task thread, for ever.
    pub(super) fn watch(&self) -> ! {
        let mut idle_rounds = 0;
        loop {
            let running = self.shift.running();
            if running != 0 {
                idle_rounds = 0;
                if !self.shift.is_urgent(running) {
                    std::thread::park_timeout(WATCH_AFTER);
                }
                self.read_during(running);
                continue;
            }
            idle_rounds += 1;
            if idle_rounds < IDLE_ROUNDS {
                std::thread::park_timeout(WATCH_AFTER);
                continue;
            }
            if self.shift.park() {
                std::thread::park();
            }
            self.shift.unpark();
        }
    }

    /// Reads for as long as this task runs.
    fn read_during(&self, task: u64) {
        // A cancellation may have come together with the task.
        if let Ok(mut stream) = self.stream.try_lock() {
            stream.hear_signals(self.replies);
        }
        while self.shift.running() == task {
            TaskContext::send_due_report();
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            voice::ring();
            if !matches!(poll(&mut fds, Some(&WATCH_EVERY)), Ok(1..)) {
                continue;
            }
            let Ok(mut stream) = self.stream.try_lock() else { return };
            // Nobody has read since the poll unless the task is over, so this does not block.
            if self.shift.running() != task {
                return;
            }
            if stream.read(&self.file).is_err() || stream.ended {
                // The pool is gone, or has dropped this worker: nobody wants the task any more.
                end_cut_off();
            }
            stream.hear_signals(self.replies);
        }
    }

    fn has_input(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }
}

/// Looking out for the next request for a while, which is cheaper than sleeping and being woken
/// when that comes soon.
#[derive(Default)]
struct LookOut {
    page: Option<&'static Page>,
    /// For how long, in nanoseconds; 0 for not at all.
    limit: u64,
    /// What the page said last.
    posted: u64,
    waits_since: u64,
    /// The last request came within the limit, so the next one may.
    is_worth_it: bool,
}

impl LookOut {
    fn wait(&mut self) {
        let Some(page) = self.page.filter(|_| self.limit > 0) else { return };
        self.waits_since = monotonic_now();
        while self.is_worth_it && page.posted() == self.posted {
            for _ in 0..LOOKS {
                std::hint::spin_loop();
            }
            if monotonic_now() - self.waits_since > self.limit {
                break;
            }
        }
    }

    fn learn(&mut self) {
        if let Some(page) = self.page.filter(|_| self.limit > 0) {
            self.posted = page.posted();
            self.is_worth_it = monotonic_now() - self.waits_since <= self.limit;
        }
    }
}

impl Stream {
    /// Reads once, blocking, and takes apart what has come.
    fn read(&mut self, mut file: &File) -> Result<(), FrameError> {
        let read = match file.read(&mut self.scratch) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            read => read?,
        };
        self.ended = read == 0;
        self.bytes.extend_from_slice(&self.scratch[..read]);
        while let Some(frame) = self.codec.decode(&mut self.bytes)? {
            self.has_calls |= matches!(frame.head, Request::Cancel { .. } | Request::Recall { .. });
            self.frames.push_back(frame);
        }
        Ok(())
    }

    /// Acts on what is meant for the running task. It comes behind it in the stream, so there is
    /// no task between the two that has not been taken in.
    fn hear_signals(&mut self, replies: Option<&Replies>) {
        if let Some(replies) = replies {
            self.leave_what_was_taken_back(replies);
        }
        self.frames.retain(|frame| match frame.head {
            Request::Cancel { seq } => {
                TaskContext::cancel_current(seq);
                false
            }
            Request::Grant { seq, items, bytes } => {
                TaskContext::grant_current(seq, items, bytes);
                false
            }
            Request::Run(_) | Request::Setup(_) | Request::Listen(_) => true,
            Request::Recall { .. } => false,
        });
    }

    /// Without a control page: takes tasks out that were taken back, or cancelled, before they began.
    fn leave_what_was_taken_back(&mut self, replies: &Replies) {
        if !std::mem::take(&mut self.has_calls) {
            return;
        }
        let called = |frame: &Frame<Request>| match frame.head {
            Request::Cancel { seq } | Request::Recall { seq } => Some(seq),
            _ => None,
        };
        let calls: Vec<u64> = self.frames.iter().filter_map(called).collect();
        for call in calls {
            let is_called =
                |frame: &Frame<Request>| matches!(&frame.head, Request::Run(run) if run.seq == call);
            if let Some(at) = self.frames.iter().position(is_called) {
                self.frames.remove(at);
                replies.send(&Reply::Skipped { seq: call }, &[]);
            }
        }
        // Cancellations are kept for the task that runs.
        self.frames.retain(|frame| !matches!(frame.head, Request::Recall { .. }));
    }
}
