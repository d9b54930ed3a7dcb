//! A steward at work: one worker, and what goes between it and the pool.

use super::Post;
use super::transport::wait;
use crate::process::remote::speech::{Channel, Command, Farewell, Frame, PIECE, Report, WINDOW, piece};
use crate::sys::child::{self, Ended, ProcessFd};
use crate::sys::memory::SharedWords;
use crate::sys::{monotonic_now, oom_kills};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::Pid;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The most that waits to be sent before the worker's streams are left alone for a while.
const MUCH: usize = 512 * 1024;

/// The most that is read of a stream whose worker is dead: more than a pipe holds by default.
const LAST_READS: usize = 128 * 1024;

/// How long a killed worker may take to be dead.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// A stream from the worker.
pub(super) struct Upstream {
    channel: Channel,
    pub(super) pipe: File,
    /// How much of it may be sent.
    room: usize,
    has_ended: bool,
}

/// The stream to the worker.
pub(super) struct Downstream {
    /// `None` once it has ended.
    pipe: Option<File>,
    waiting: VecDeque<u8>,
    ends: bool,
}

impl Upstream {
    pub(super) fn new(channel: Channel, pipe: OwnedFd) -> io::Result<Upstream> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Upstream { channel, pipe: pipe.into(), room: WINDOW, has_ended: false })
    }

    /// Sends on what there is, within this limit.
    fn send(&mut self, limit: usize, outgoing: &mut Vec<u8>) {
        let mut bytes = [0; PIECE];
        let mut left = limit;
        while left > 0 && !self.has_ended {
            let most = left.min(PIECE);
            match self.pipe.read(&mut bytes[..most]) {
                Ok(0) => self.has_ended = true,
                Ok(read) => {
                    outgoing.extend(piece(self.channel, &bytes[..read]));
                    self.room = self.room.saturating_sub(read);
                    left -= read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.has_ended = true,
            }
        }
    }
}

impl Downstream {
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Downstream> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Downstream { pipe: Some(pipe.into()), waiting: VecDeque::new(), ends: false })
    }

    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        // Asked for only before it has ended.
        self.pipe.as_ref().map_or(rustix::stdio::stdin(), AsFd::as_fd)
    }

    fn is_stuck(&self) -> bool {
        self.pipe.is_some() && !self.waiting.is_empty()
    }

    /// Writes what the worker takes; how much that was.
    fn write(&mut self) -> usize {
        let mut total = 0;
        while let Some(pipe) = &mut self.pipe {
            if self.waiting.is_empty() {
                if self.ends {
                    self.pipe = None;
                }
                break;
            }
            match pipe.write(self.waiting.as_slices().0) {
                Ok(written) => {
                    self.waiting.drain(..written);
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The worker reads no more: it is about to be found dead.
                Err(_) => self.pipe = None,
            }
        }
        total
    }
}

/// A worker, and what its steward holds of it.
pub(super) struct Household {
    pub(super) pid: Pid,
    pub(super) process: ProcessFd,
    /// Readable when a child has ended.
    pub(super) children_ended: OwnedFd,
    pub(super) board: SharedWords,
    pub(super) ups: Vec<Upstream>,
    pub(super) down: Option<Downstream>,
    /// The worker's own connection.
    pub(super) data: Option<OwnedFd>,
    /// Why the steward has ended the worker unasked.
    pub(super) why: Option<String>,
    /// How many processes the kernel had killed for want of memory when the worker started.
    pub(super) oom_kills: u64,
}

impl Drop for Household {
    /// Nobody is left behind, whatever happens.
    fn drop(&mut self) {
        self.process.kill();
        self.process.wait_ended(DEATH_LIMIT);
    }
}

impl Household {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Looks after the worker until it has ended, and says so.
    pub(super) fn keep(mut self, post: &mut Post) -> io::Result<()> {
        // The pool has waited until now without a word.
        post.heard = Instant::now();
        loop {
            post.beat()?;
            self.move_bytes(post);
            post.write()?;
            self.wait(post)?;
            let heard = post.read()?;
            while let Some(frame) = post.next()? {
                self.heed(frame, post)?;
            }
            if let Some(ended) = self.reap() {
                return self.say_goodbye(ended, post);
            }
            if !heard && post.heard.elapsed() > post.silence {
                return Err(io::Error::other("the pool was not heard of for too long"));
            }
            if self.launcher_is_gone(post) && self.why.is_none() {
                self.why = Some("by its steward, since what had started them is gone".into());
                self.process.kill();
            }
        }
    }

    fn move_bytes(&mut self, post: &mut Post) {
        for up in &mut self.ups {
            if post.outgoing.len() < MUCH {
                up.send(up.room, &mut post.outgoing);
            }
        }
        if let Some(down) = &mut self.down {
            let written = down.write();
            if written > 0 {
                let room = Report::Room { channel: Channel::Requests, bytes: written as u32 };
                let _ = post.send(&room);
            }
        }
    }

    fn wait(&self, post: &Post) -> io::Result<()> {
        let mut fds = vec![(post.transport.input(), true), (self.children_ended.as_fd(), true)];
        if post.is_stuck() {
            fds.push((post.transport.output(), false));
        }
        if let Some(stdin) = post.stdin.as_ref().filter(|_| self.why.is_none()) {
            fds.push((stdin.as_fd(), true));
        }
        if let Some(down) = self.down.as_ref().filter(|down| down.is_stuck()) {
            fds.push((down.pipe(), false));
        }
        if post.outgoing.len() < MUCH {
            let open = self.ups.iter().filter(|up| up.room > 0 && !up.has_ended);
            fds.extend(open.map(|up| (up.pipe.as_fd(), true)));
        }
        let until_beat = post.next_beat.saturating_duration_since(Instant::now());
        wait(&fds, if post.has_more { Duration::ZERO } else { until_beat }).map(drop)
    }

    fn heed(&mut self, frame: Frame<Command>, post: &mut Post) -> io::Result<()> {
        match (frame, &mut self.down) {
            (Frame::Message(Command::Kill), _) => self.process.kill(),
            (Frame::Message(Command::Beat), _) => {}
            (Frame::Message(Command::Look), _) => {
                let (seq, ran) = self.begun();
                post.send(&Report::Begun { seq, ran })?;
            }
            (Frame::Message(Command::Room { channel, bytes }), _) => {
                let up = self.ups.iter_mut().find(|up| up.channel == channel);
                if let Some(up) = up {
                    up.room += bytes as usize;
                }
            }
            (Frame::Piece(Channel::Requests, bytes), Some(down)) => {
                down.ends |= bytes.is_empty();
                down.waiting.extend(bytes);
                self.move_bytes(post);
            }
            (Frame::Message(Command::Start(_)) | Frame::Piece(..), _) => {
                return Err(io::Error::other("was told what makes no sense"));
            }
        }
        Ok(())
    }

    /// Whether standard input has ended, which the launcher holds open.
    fn launcher_is_gone(&self, post: &Post) -> bool {
        let Some(stdin) = &post.stdin else { return false };
        if !matches!(wait(&[(stdin.as_fd(), true)], Duration::ZERO), Ok(true)) {
            return false;
        }
        // Nothing comes here any more; should there be something, it is passed over.
        matches!(rustix::io::read(stdin, &mut [0; 512]), Ok(0) | Err(_))
    }

    /// The number of the task that the worker has begun last, and how long ago.
    fn begun(&self) -> (u64, u64) {
        let words = self.board.words();
        let seq = words[0].load(Ordering::Acquire);
        (seq, monotonic_now().saturating_sub(words[2].load(Ordering::Relaxed)))
    }

    fn reap(&mut self) -> Option<Ended> {
        let mut drained = [0; 512];
        while rustix::io::read(&self.children_ended, &mut drained).is_ok_and(|read| read > 0) {}
        let mut found = None;
        // Others are what the preload function has started.
        while let Ok(Some((pid, ended))) = child::try_wait(None) {
            found = found.or((pid == self.pid).then_some(ended));
        }
        found
    }

    /// The worker is dead: passes on what it has left, and how it ended.
    fn say_goodbye(mut self, ended: Ended, post: &mut Post) -> io::Result<()> {
        for up in &mut self.ups {
            up.send(LAST_READS, &mut post.outgoing);
            if !up.has_ended {
                // A daughter process still holds it open.
                up.has_ended = true;
            }
            post.outgoing.extend(piece(up.channel, &[]));
        }
        let cut_off = self.data.as_ref().is_some_and(has_hung_up);
        if let Some(data) = &self.data {
            // For the pool to see the end of it, whoever else holds it open.
            let _ = rustix::net::shutdown(data, Shutdown::Write);
        }
        let (begun, ran) = self.begun();
        let last_words = self.board.words()[1].load(Ordering::Acquire);
        let starved = oom_kills() > self.oom_kills;
        let farewell = Farewell { ended, begun, ran, last_words, why: self.why.take(), starved, cut_off };
        post.send(&Report::Ended(farewell))?;
        post.flush()?;
        // Closing a connection with something unread in it would take back what was sent last.
        post.await_end(DEATH_LIMIT * 2)
    }
}

/// Whether the other end of this connection sends no more.
fn has_hung_up(connection: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(connection, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}
