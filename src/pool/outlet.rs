//! The stream of requests to one worker, which any thread may write to.

use crate::sys::signals::{broken_pipes_end_us, without_sigpipe};
use crate::wire::{Page, Request, write_frame};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// Bodies up to this size are copied behind their heads; longer ones are written from where
/// they are.
const COPY_LIMIT: usize = 16 * 1024;

/// So many bytes are written although more may follow at once.
const EAGER_FLUSH: usize = 32 * 1024;

/// How many pieces go into one write.
const MAX_SLICES: usize = 16;

/// A queue of frames, and the pipe that they go to.
pub(super) struct Outlet {
    queue: Mutex<Queue>,
    /// The pipe is full: whoever sees this waits for room and goes on.
    stuck: Notify,
}

struct Queue {
    /// `None` once closed.
    pipe: Option<pipe::Sender>,
    /// Where a worker that looks out for its next task sees that there is one.
    page: Option<Arc<Page>>,
    pieces: VecDeque<Bytes>,
    /// How much of the first piece is written.
    written: usize,
    /// The last piece, still growing.
    tail: Vec<u8>,
    is_stuck: bool,
    /// How many frames wait for their bodies to be copied to shared memory. Nothing is written
    /// meanwhile.
    held: u32,
    /// To write to a pipe that nobody reads would end this process.
    is_touchy: bool,
    /// How many bytes were ever queued, and how many of them written.
    queued: u64,
    total: u64,
}

/// What became of a frame that was queued.
pub(super) struct Queued {
    /// So much has come together that it should be written.
    pub(super) is_much: bool,
    /// How many bytes will have been written, ever, when this frame is.
    pub(super) end: u64,
}

impl Outlet {
    pub(super) fn new(pipe: pipe::Sender, page: Option<Arc<Page>>) -> Outlet {
        Outlet {
            queue: Mutex::new(Queue {
                pipe: Some(pipe),
                page,
                pieces: VecDeque::new(),
                written: 0,
                tail: Vec::new(),
                is_stuck: false,
                held: 0,
                is_touchy: broken_pipes_end_us(),
                queued: 0,
                total: 0,
            }),
            stuck: Notify::new(),
        }
    }

    /// Queues a frame.
    pub(super) fn push(&self, head: &Request, body: Bytes) -> Queued {
        self.lock().push(head, body)
    }

    /// Queues a frame whose body is elsewhere, or will be: nothing is written before
    /// [`release`](Self::release).
    pub(super) fn push_held(&self, head: &Request) -> Queued {
        let mut queue = self.lock();
        queue.held += 1;
        queue.push(head, Bytes::new())
    }

    /// How many bytes were written, ever: something that changes while the worker takes any.
    pub(super) fn total(&self) -> u64 {
        let queue = self.lock();
        // Of what a socket has taken, the other machine may have nothing yet.
        #[cfg(feature = "remote")]
        if let Some(pipe) = queue.pipe.as_ref().filter(|_| queue.page.is_none()) {
            return queue.total - crate::sys::fds::unacknowledged(pipe).min(queue.total);
        }
        queue.total
    }

    /// How many bytes the worker can have read, ever.
    pub(super) fn written(&self) -> u64 {
        self.lock().total
    }

    /// The body of a frame that was held is where the frame says.
    pub(super) fn release(&self) {
        self.lock().held -= 1;
        self.flush();
    }

    /// Writes what is queued, as far as the pipe takes it now.
    pub(super) fn flush(&self) {
        let mut queue = self.lock();
        if !queue.is_stuck && queue.write_all() {
            queue.is_stuck = true;
            self.stuck.notify_one();
        }
    }

    /// Ends the stream, once all that was queued is written; what is not is dropped.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.write_all();
        // What is read from is the same connection, and stays open.
        #[cfg(feature = "remote")]
        if let Some(pipe) = queue.pipe.as_ref().filter(|_| queue.page.is_none()) {
            let _ = rustix::net::shutdown(pipe, rustix::net::Shutdown::Write);
        }
        queue.pipe = None;
        queue.pieces.clear();
        queue.tail = Vec::new();
    }

    /// Whether the stream was ended from this side.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().pipe.is_none()
    }

    /// Goes on writing whenever the pipe has been full and has room again. Never returns.
    pub(super) async fn pump(&self) {
        loop {
            self.stuck.notified().await;
            while self.lock().is_stuck {
                self.wait_for_room().await;
                let mut queue = self.lock();
                queue.is_stuck = queue.write_all();
            }
        }
    }

    async fn wait_for_room(&self) {
        // The pipe stays where it is, so that other threads may close it meanwhile.
        std::future::poll_fn(|context| {
            let queue = self.lock();
            match &queue.pipe {
                Some(pipe) => pipe.poll_write_ready(context).map(drop),
                None => std::task::Poll::Ready(()),
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, head: &Request, body: Bytes) -> Queued {
        if self.pipe.is_none() {
            return Queued { is_much: false, end: self.queued };
        }
        let before = self.tail.len();
        write_frame(head, body.len(), &mut self.tail);
        self.queued += (self.tail.len() - before + body.len()) as u64;
        if body.len() <= COPY_LIMIT {
            self.tail.extend_from_slice(&body);
        } else {
            self.seal_tail();
            self.pieces.push_back(body);
        }
        let is_much = !self.pieces.is_empty() || self.tail.len() >= EAGER_FLUSH;
        Queued { is_much, end: self.queued }
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }

    /// Writes until nothing is left or the pipe is full; true if it is.
    fn write_all(&mut self) -> bool {
        let Some(pipe) = self.pipe.as_ref().filter(|_| self.held == 0) else { return false };
        if let Some(page) = &self.page {
            page.post();
        }
        // Mostly there is just the tail, whose memory is then kept.
        if self.pieces.is_empty() && !self.tail.is_empty() {
            match self.write(|| pipe.try_write(&self.tail)) {
                Ok(written) if written == self.tail.len() => {
                    self.total += written as u64;
                    self.tail.clear();
                    return false;
                }
                Ok(written) => {
                    self.total += written as u64;
                    self.seal_tail();
                    self.written = written;
                }
                Err(error) => return is_full(&error),
            }
        }
        self.seal_tail();
        while !self.pieces.is_empty() {
            let Some(pipe) = &self.pipe else { return false };
            match self.write(|| pipe.try_write_vectored(&self.slices())) {
                Ok(written) => self.advance(written),
                Err(error) => return is_full(&error),
            }
        }
        false
    }

    fn write(&self, write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        if self.is_touchy { without_sigpipe(write) } else { write() }
    }

    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut skip = self.written;
        let pieces = self.pieces.iter().take(MAX_SLICES);
        pieces.map(|piece| IoSlice::new(&piece[std::mem::take(&mut skip)..])).collect()
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
        self.total += written as u64;
        while let Some(first) = self.pieces.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            self.pieces.pop_front();
        }
    }
}

/// Whether a write should be tried again. If not, the worker does not read any more: it is about
/// to be found dead.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
