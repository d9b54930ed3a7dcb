//! Frames through a pipe to another process and back, with nothing of a pool around them: what the
//! system's pipes cost.
//!
//! The other process reads with blocking calls, as much as comes, and answers each frame with one
//! write. This side reads and writes through tokio. A frame is its length (u32, little-endian) and
//! so many bytes.

use super::roles::Partner;
use anyhow::{bail, ensure};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

const HEAD: usize = 4;

/// The other process: answers frames until there are no more.
pub(crate) fn answer() -> io::Result<()> {
    let requests = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    answer_frames(requests, answers)
}

/// The same over whatever connects the two.
pub(crate) fn answer_frames(mut requests: impl Read, mut answers: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut filled = 0;
    loop {
        let mut done = 0;
        while let Some(frame) = first_frame(&buffer[done..filled]) {
            answers.write_all(frame)?;
            done += frame.len();
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
        let needed = frame_length(&buffer[..filled]).unwrap_or(HEAD);
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        match requests.read(&mut buffer[filled..])? {
            0 => return Ok(()),
            read => filled += read,
        }
    }
}

fn frame_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.first_chunk::<HEAD>()?;
    Some(HEAD + u32::from_le_bytes(*head) as usize)
}

fn first_frame(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..frame_length(bytes)?)
}

/// One frame at a time.
#[derive(Debug)]
pub(crate) struct PipeEcho {
    partner: Partner,
    buffer: Vec<u8>,
}

impl PipeEcho {
    /// Must be called within a runtime.
    pub(crate) fn start() -> anyhow::Result<PipeEcho> {
        Ok(PipeEcho { partner: Partner::start("pipe-echo")?, buffer: Vec::new() })
    }

    /// Sends a frame of 8 bytes there and back.
    pub(crate) async fn number(&mut self, number: u64) -> anyhow::Result<u64> {
        let mut bytes = number.to_le_bytes();
        self.bytes(&mut bytes).await?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sends bytes there and back, into the same memory.
    pub(crate) async fn bytes(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let head = (bytes.len() as u32).to_le_bytes();
        if bytes.len() <= 1 << 12 {
            self.buffer.clear();
            self.buffer.extend_from_slice(&head);
            self.buffer.extend_from_slice(bytes);
            self.partner.requests.write_all(&self.buffer).await?;
            self.partner.answers.read_exact(&mut self.buffer).await?;
            bytes.copy_from_slice(&self.buffer[HEAD..]);
            return Ok(());
        }
        self.partner.requests.write_all(&head).await?;
        self.partner.requests.write_all(bytes).await?;
        let mut answered = [0; HEAD];
        self.partner.answers.read_exact(&mut answered).await?;
        ensure!(answered == head, "an answer of another length");
        self.partner.answers.read_exact(bytes).await?;
        Ok(())
    }
}

/// Many frames in flight, with a oneshot channel for each, as a pool has to have.
#[derive(Debug)]
pub(crate) struct Pipeline {
    state: Arc<State>,
    loops: [JoinHandle<anyhow::Result<()>>; 2],
}

#[derive(Debug, Default)]
struct State {
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// Frames to be written together.
    frames: Vec<u8>,
    /// Who waits, in the order of the answers.
    waiting: VecDeque<oneshot::Sender<u64>>,
}

impl Pipeline {
    /// Must be called within a runtime.
    pub(crate) fn start() -> anyhow::Result<Pipeline> {
        let state = Arc::<State>::default();
        let Partner { requests, answers, process } = Partner::start("pipe-echo")?;
        let reading = state.clone();
        let loops = [
            tokio::spawn(write(state.clone(), requests)),
            tokio::spawn(async move {
                let _process = process;
                read(&reading, answers).await
            }),
        ];
        Ok(Pipeline { state, loops })
    }

    /// Sends a number there and back.
    pub(crate) fn send(&self, number: u64) -> oneshot::Receiver<u64> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.state.lock();
        let is_first = queue.frames.is_empty();
        queue.frames.extend_from_slice(&8u32.to_le_bytes());
        queue.frames.extend_from_slice(&number.to_le_bytes());
        queue.waiting.push_back(sender);
        drop(queue);
        if is_first {
            self.state.more.notify_one();
        }
        receiver
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.loops.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(state: Arc<State>, mut requests: pipe::Sender) -> anyhow::Result<()> {
    let mut frames = Vec::new();
    loop {
        state.more.notified().await;
        std::mem::swap(&mut frames, &mut state.lock().frames);
        requests.write_all(&frames).await?;
        frames.clear();
    }
}

async fn read(state: &State, mut answers: pipe::Receiver) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut filled = 0;
    let (mut numbers, mut served) = (Vec::new(), Vec::new());
    loop {
        match answers.read(&mut buffer[filled..]).await? {
            0 => bail!("the echo has ended"),
            read => filled += read,
        }
        let mut done = 0;
        while let Some(frame) = first_frame(&buffer[done..filled]) {
            done += frame.len();
            numbers.extend(frame[HEAD..].first_chunk().copied().map(u64::from_le_bytes));
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
        served.extend(state.lock().waiting.drain(..numbers.len()));
        for (sender, number) in served.drain(..).zip(numbers.drain(..)) {
            let _ = sender.send(number);
        }
    }
}
