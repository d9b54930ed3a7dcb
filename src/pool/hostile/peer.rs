//! Peers: threads that the pool takes for workers.

use super::script::{Line, Script, Spot, Step, Value};
use super::served::Served;
use crate::sys::monotonic_now;
use crate::task::{Call, Encoded, Fault, Progress, resolve};
use crate::wire::{Frame, FrameCodec, LARGE, PROTOCOL, Page, Place, Reply, Request, Room, Run, STREAM_BYTES};
use crate::wire::{build_identity, write_frame};
use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::codec::Decoder;

/// How long a hostile peer goes on that has nothing more to do.
const LINGER: Duration = Duration::from_millis(60);

/// How long a hostile peer lives at most: it may have stuck itself.
const LIFETIME: Duration = Duration::from_millis(400);

/// How long what a peer leaves behind goes on.
const DAUGHTER: Duration = Duration::from_millis(500);

/// What honest peers have done.
#[derive(Default)]
pub(super) struct Record {
    /// The tasks that they have answered.
    pub(super) answered: Mutex<HashSet<u64>>,
    /// How many of them were killed.
    pub(super) killed: AtomicUsize,
}

/// A peer's ends of its link, and how it stands.
pub(super) struct Peer {
    pub(super) requests: Option<std::fs::File>,
    pub(super) results: Option<Arc<std::fs::File>>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) page: Arc<Page>,
    /// Whether the pool sees that page, too.
    pub(super) shares_page: bool,
    pub(super) killed: Arc<AtomicBool>,
    /// When it ends by itself.
    pub(super) ends_at: Option<Instant>,
    pub(super) heard: BytesMut,
    /// The number of the last task that it read.
    pub(super) last_seq: u64,
    pub(super) tail: u64,
    pub(super) room: Room,
    /// How many results it has put into shared memory.
    pub(super) placed: u64,
    /// Tasks that it has read while it was at another.
    pub(super) ahead: VecDeque<Frame<Request>>,
}

/// Why a peer stops: the pool has closed its pipe, or has killed it.
pub(super) struct Over;

/// As a worker should be.
impl Peer {
    pub(super) fn be_honest(&mut self, record: &Record) -> Result<(), Over> {
        self.greet()?;
        loop {
            let (run, body) = self.next_task(None)?;
            self.serve(run, &body)?.into_iter().for_each(|id| {
                record.answered.lock().unwrap().insert(id);
            });
        }
    }

    fn greet(&mut self) -> Result<(), Over> {
        self.write(&Reply::Hello { protocol: PROTOCOL, build: build_identity() }, &[])?;
        while !matches!(self.hear(None)?.map(|frame| frame.head), Some(Request::Setup(_))) {}
        self.write(&Reply::Ready, &[])
    }

    /// The next task; past the limit, the peer gives up.
    fn next_task(&mut self, limit: Option<Instant>) -> Result<(Run, Vec<u8>), Over> {
        loop {
            let ahead = self.ahead.pop_front();
            let frame = if ahead.is_some() { ahead } else { self.hear(limit)? };
            if let Some(Frame { head: Request::Run(run), body }) = frame {
                self.last_seq = run.seq;
                return Ok((run, body.to_vec()));
            }
            if limit.is_some_and(|limit| Instant::now() > limit) {
                return Err(Over);
            }
        }
    }

    /// Does a task; its number in the pool, if it was not taken back.
    fn serve(&mut self, run: Run, body: &[u8]) -> Result<Option<u64>, Over> {
        let seq = run.seq;
        if !self.shares_page {
            self.write(&Reply::Began { seq }, &[])?;
        } else if !self.page.begin(seq, monotonic_now()) {
            return self.say(&Reply::Skipped { seq }, &[]).map(|()| None);
        }
        let input = match run.place {
            Some(place) => self.page.read_request(place).unwrap_or_default().into(),
            None => bytes::Bytes::copy_from_slice(body),
        };
        let host = Served { parts: Mutex::default(), items: run.window.map(|_| Arc::default()) };
        let mut output = Vec::new();
        let mut call = Call { input, output: &mut output, limit: u64::MAX, host: &host };
        let done = resolve(run.shim).map_or(Err(Fault::malformed_chunk()), |shim| shim(&mut call));
        for part in host.parts.into_inner().unwrap() {
            self.say(&Reply::Part { seq }, &part)?;
        }
        if let (Some(items), Some(window)) = (host.items, run.window) {
            self.say_items(seq, window, &items.take())?;
        }
        self.page.finish(seq);
        match done {
            Ok(()) => self.say_value(seq, &output)?,
            Err(fault) => {
                self.say(&Reply::Fault { seq, is_worn: false, dying: false, ran: 0, fault }, &[])?;
            }
        }
        Ok(Some(run.id))
    }

    /// The items of a stream, no more than the pool has room for.
    fn say_items(&mut self, seq: u64, window: u64, items: &[Encoded]) -> Result<(), Over> {
        let (mut room, mut bytes) = (window, STREAM_BYTES as i64);
        for item in items {
            while room == 0 || bytes <= 0 {
                let Some(frame) = self.hear(None)? else { continue };
                match frame.head {
                    Request::Grant { seq: granted, items, bytes: more } if granted == seq => {
                        (room, bytes) = (room + items, bytes + more as i64);
                    }
                    Request::Cancel { seq: cancelled } if cancelled == seq => return Ok(()),
                    _ => self.ahead.push_back(frame),
                }
            }
            (room, bytes) = (room - 1, bytes - item.bytes.len() as i64);
            let place = self.place(&item.bytes);
            let body = if place.is_some() { &[][..] } else { &item.bytes };
            let progress = Progress::new(room);
            self.say(&Reply::Progress { seq, progress }, &[])?;
            self.say(&Reply::Item { seq, is_fault: item.is_fault, place }, body)?;
        }
        Ok(())
    }

    fn say_value(&mut self, seq: u64, body: &[u8]) -> Result<(), Over> {
        let place = self.place(body);
        let body = if place.is_some() { &[] } else { body };
        self.say(&Reply::Value { seq, is_worn: false, ran: 0, place }, body)
    }

    fn place(&mut self, body: &[u8]) -> Option<Place> {
        let place = match body.len() {
            LARGE.. if self.shares_page => self.page.write_result(&mut self.room, self.placed + 1, body),
            _ => None,
        };
        self.placed += u64::from(place.is_some());
        place
    }

    fn say(&mut self, head: &Reply, body: &[u8]) -> Result<(), Over> {
        if !self.shares_page {
            return self.write(head, body);
        }
        match self.push(head, body) {
            Some(true) => return self.write(&Reply::Bell, &[]),
            Some(false) => return Ok(()),
            None => {}
        }
        while self.page.push_in_pipe(&mut self.tail).is_none() {
            self.pause(Duration::from_millis(1))?;
        }
        self.write(head, body)
    }

    fn push(&mut self, head: &Reply, body: &[u8]) -> Option<bool> {
        let mut record = postcard::to_stdvec(head).unwrap();
        record.extend_from_slice(body);
        self.page.push(&mut self.tail, &record)
    }
}

/// As no worker should be.
impl Peer {
    pub(super) fn be_hostile(&mut self, script: &Script) -> Result<(), Over> {
        self.ends_at = Some(Instant::now() + LIFETIME);
        if script.greets {
            self.greet()?;
        }
        for step in &script.steps {
            self.play(step)?;
        }
        if script.lingers {
            self.pause(LINGER)?;
        }
        Ok(())
    }

    fn play(&mut self, step: &Step) -> Result<(), Over> {
        let soon = Some(Instant::now() + LINGER);
        match step {
            Step::Serve => {
                let (run, body) = self.next_task(soon)?;
                self.serve(run, &body).map(drop)
            }
            Step::Take(state) => {
                let (run, _) = self.next_task(soon)?;
                match state {
                    None => drop(self.page.begin(run.seq, monotonic_now())),
                    Some(state) => self.set(Spot::Slot(0), Value::State(*state)),
                }
                Ok(())
            }
            Step::Bytes(bytes) => self.write_all(bytes),
            Step::Claim(length) => {
                self.write_all(&length.to_le_bytes())?;
                self.write_all(&vec![5; (*length as usize).min(300_000)])
            }
            Step::Frame(line) => self.write(&line.reply(self.last_seq), &line.body),
            Step::Record(line) => {
                if self.push(&line.reply(self.last_seq), &line.body) == Some(true) {
                    self.write(&Reply::Bell, &[])?;
                }
                Ok(())
            }
            Step::Flood(line, count) => (0..*count).try_for_each(|_| self.play(&Step::Record(line.clone()))),
            Step::Mark => {
                self.page.push_in_pipe(&mut self.tail);
                Ok(())
            }
            Step::Bells(count) => self.write_all(&frame(&Reply::Bell, &[]).repeat(usize::from(*count))),
            Step::Chatter(body) => self.chatter(body),
            Step::Blind(count) => self.answer_blindly(*count),
            Step::Word(spot, value) => {
                self.set(*spot, *value);
                Ok(())
            }
            Step::Haunt(seed) => {
                haunt(self.page.clone(), self.killed.clone(), *seed);
                Ok(())
            }
            Step::Daughter(line) => {
                self.leave_behind(line);
                Ok(())
            }
            Step::Stderr(bytes) => self.write_stderr(*bytes),
            Step::Pause(time) => self.pause(Duration::from_millis(u64::from(*time))),
            Step::CloseResults => {
                self.results = None;
                Ok(())
            }
            Step::CloseRequests => {
                self.requests = None;
                Ok(())
            }
        }
    }

    fn chatter(&mut self, body: &[u8]) -> Result<(), Over> {
        for _ in 0..20_000 {
            match self.push(&Reply::Voice { task: Some(self.last_seq) }, body) {
                Some(true) => self.write(&Reply::Bell, &[])?,
                Some(false) => {}
                None => self.pause(Duration::from_micros(100))?,
            }
        }
        Ok(())
    }

    /// What it is offered it can see in the page.
    fn answer_blindly(&mut self, count: u16) -> Result<(), Over> {
        let patience = Instant::now() + LINGER;
        for _ in 0..count {
            let seq = self.last_seq + 1;
            while !self.page.begin(seq, monotonic_now()) {
                if Instant::now() > patience {
                    return Ok(());
                }
                self.pause(Duration::from_micros(50))?;
            }
            self.last_seq = seq;
            self.play(&Step::Record(Line { kind: 5, offset: 0, place: None, body: vec![66] }))?;
        }
        Ok(())
    }

    fn set(&self, spot: Spot, value: Value) {
        let word = &self.page.words()[spot.at(self.last_seq)];
        let value = match value {
            Value::Any(value) => value,
            Value::More(more) => word.load(Ordering::Relaxed).wrapping_add(more),
            Value::State(state) => self.last_seq << 2 | state,
            Value::Time(from_now) => monotonic_now().wrapping_add_signed(i64::from(from_now) * 1_000_000),
        };
        word.store(value, Ordering::Release);
    }

    /// A thread that goes on ringing and answering when the peer is dead.
    fn leave_behind(&self, line: &Line) {
        let Some(results) = self.results.clone() else { return };
        let (page, mut tail, reply) = (self.page.clone(), self.tail, line.reply(self.last_seq));
        let record = postcard::to_stdvec(&reply).unwrap();
        let bells = frame(&Reply::Bell, &[]).repeat(1000);
        std::thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < DAUGHTER {
                page.push(&mut tail, &record);
                match (&*results).write(&bells) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        });
    }

    fn write_stderr(&mut self, bytes: u32) -> Result<(), Over> {
        let Some(stderr) = self.stderr.take() else { return Ok(()) };
        let _ = rustix::io::ioctl_fionbio(&stderr, true);
        let mut left = bytes as usize;
        while left > 0 {
            self.pause(Duration::ZERO)?;
            match rustix::io::write(&stderr, &[0xff; 4096][..left.min(4096)]) {
                Ok(written) => left -= written,
                Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        self.stderr = Some(stderr);
        Ok(())
    }
}

/// Reading and writing, until the peer is killed.
impl Peer {
    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.is_killed() || self.ends_at.is_some_and(|end| Instant::now() > end)
    }

    fn pause(&self, time: Duration) -> Result<(), Over> {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
        Err(Over)
    }

    /// The next request; `None` now and then if there is none.
    fn hear(&mut self, limit: Option<Instant>) -> Result<Option<Frame<Request>>, Over> {
        let Some(mut requests) = self.requests.as_ref() else {
            self.pause(Duration::from_millis(1))?;
            return if limit.is_some() { Ok(None) } else { Err(Over) };
        };
        let mut codec = FrameCodec::<Request>::new(1 << 30);
        if let Some(frame) = codec.decode(&mut self.heard).map_err(|_| Over)? {
            return Ok(Some(frame));
        }
        if self.is_over() {
            return Err(Over);
        }
        if is_ready(requests.as_fd(), PollFlags::IN) {
            let mut bytes = [0; 64 * 1024];
            match requests.read(&mut bytes) {
                Ok(read @ 1..) => self.heard.extend_from_slice(&bytes[..read]),
                _ => return Err(Over),
            }
        }
        Ok(None)
    }

    fn write(&mut self, head: &Reply, body: &[u8]) -> Result<(), Over> {
        self.write_all(&frame(head, body))
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Over> {
        let Some(results) = &self.results else { return Ok(()) };
        while !bytes.is_empty() {
            if self.is_over() {
                return Err(Over);
            }
            match (&**results).write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    is_ready(results.as_fd(), PollFlags::OUT);
                }
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }
}

fn is_ready(file: std::os::fd::BorrowedFd<'_>, events: PollFlags) -> bool {
    const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    matches!(poll(&mut [PollFd::new(&file, events)], Some(&MOMENT)), Ok(1..))
}

fn frame(head: &Reply, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(head, body.len(), &mut frame);
    frame.extend_from_slice(body);
    frame
}

/// Writes to words all over the page until the peer is over, the more telling ones more often.
fn haunt(page: Arc<Page>, over: Arc<AtomicBool>, seed: u64) {
    std::thread::spawn(move || {
        let mut random = seed | 1;
        let start = Instant::now();
        while !over.load(Ordering::Acquire) && start.elapsed() < DAUGHTER {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let words = page.words();
            let at = match random >> 60 {
                0..4 => Page::RING_WORDS[(random >> 40) as usize % 3],
                4..8 => Page::PARTS[1].start + (random >> 40) as usize % 64,
                8..12 => Page::PARTS[2].start + (random >> 40) as usize % 64,
                _ => (random >> 20) as usize % Page::PARTS[3].start,
            };
            let value = match random >> 20 & 3 {
                0 => random,
                1 => random >> 32 & 0xff,
                2 => words[at].load(Ordering::Relaxed).wrapping_add(1),
                _ => monotonic_now(),
            };
            words[at].store(value, Ordering::Relaxed);
        }
    });
}
