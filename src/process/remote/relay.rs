//! Moving bytes between a connection that many streams share and the pipes at this end of it.

use super::speech::{Channel, Command, PIECE, WINDOW, message, piece};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// What a steward may send more than it has room for: what was left in a dead worker's pipes.
const LAST_BYTES: usize = 512 * 1024;

/// How long what a worker has printed last may take to be taken up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Frames to be sent.
pub(super) type Outgoing = mpsc::UnboundedSender<Vec<u8>>;

/// The pipes at this end.
#[derive(Default)]
pub(super) struct Relays {
    pub(super) requests: Option<pipe::Receiver>,
    ups: Vec<(Channel, pipe::Sender)>,
}

impl Relays {
    pub(super) fn add(&mut self, channel: Channel, pipe: OwnedFd) -> io::Result<()> {
        self.ups.push((channel, pipe::Sender::from_owned_fd(pipe)?));
        Ok(())
    }

    /// Starts to move bytes.
    pub(super) fn run(self, outgoing: &Outgoing) -> Running {
        let (room, mut tasks) = (Arc::new(Semaphore::new(WINDOW)), JoinSet::new());
        if let Some(pipe) = self.requests {
            tasks.spawn(send_requests(pipe, room.clone(), outgoing.clone()));
        }
        let mut results = JoinSet::new();
        let mut prints = JoinSet::new();
        let ups = self.ups.into_iter().map(|(channel, pipe)| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let on_way = Arc::new(AtomicUsize::new(0));
            let tasks = if channel == Channel::Results { &mut results } else { &mut prints };
            tasks.spawn(write_up(channel, pipe, receiver, on_way.clone(), outgoing.clone()));
            Up { channel, sender: Some(sender), on_way }
        });
        Running { ups: ups.collect(), room, _requests: tasks, results, prints }
    }
}

/// Bytes on the move.
pub(super) struct Running {
    ups: Vec<Up>,
    /// How much may be sent to the worker.
    room: Arc<Semaphore>,
    _requests: JoinSet<()>,
    results: JoinSet<()>,
    prints: JoinSet<()>,
}

/// A stream from the worker.
struct Up {
    channel: Channel,
    /// `None` once it has ended.
    sender: Option<mpsc::UnboundedSender<Vec<u8>>>,
    on_way: Arc<AtomicUsize>,
}

impl Running {
    /// Takes in a piece from the worker.
    pub(super) fn take_in(&mut self, channel: Channel, bytes: Vec<u8>) -> io::Result<()> {
        let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let up = self.ups.iter_mut().find(|up| up.channel == channel);
        let up = up.ok_or_else(|| refused("a piece of a stream that there is not"))?;
        if bytes.is_empty() {
            up.sender = None;
            return Ok(());
        }
        let on_way = up.on_way.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if on_way > WINDOW + LAST_BYTES {
            return Err(refused("more than there was room for"));
        }
        if let Some(sender) = &up.sender {
            // Nobody reads it any more: so be it.
            let _ = sender.send(bytes);
        }
        Ok(())
    }

    /// The worker has taken in so much.
    pub(super) fn add_room(&self, bytes: u32) {
        let bytes = (bytes as usize).min(WINDOW.saturating_sub(self.room.available_permits()));
        self.room.add_permits(bytes);
    }

    /// Nothing more comes: waits until what was printed is where it belongs.
    pub(super) async fn finish_prints(&mut self) {
        self.ups.iter_mut().for_each(|up| up.sender = None);
        let printed = async { while self.prints.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, printed).await;
    }

    /// The same of results, which the pool reads to their end when it knows of the worker's, unless it has
    /// heard enough.
    pub(super) async fn finish_results(&mut self, limit: Duration) {
        let read = async { while self.results.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limit, read).await;
    }
}

async fn send_requests(mut pipe: pipe::Receiver, room: Arc<Semaphore>, outgoing: Outgoing) {
    let mut bytes = vec![0; PIECE];
    loop {
        // It is never closed.
        let Ok(first) = room.acquire().await else { return };
        let most = (room.available_permits() + 1).min(PIECE);
        let read = match pipe.read(&mut bytes[..most]).await {
            Ok(read @ 1..) => read,
            _ => {
                let _ = outgoing.send(piece(Channel::Requests, &[]));
                return;
            }
        };
        first.forget();
        // Only this task takes any.
        room.forget_permits(read - 1);
        if outgoing.send(piece(Channel::Requests, &bytes[..read])).is_err() {
            return;
        }
    }
}

async fn write_up(
    channel: Channel,
    mut pipe: pipe::Sender,
    mut pieces: mpsc::UnboundedReceiver<Vec<u8>>,
    on_way: Arc<AtomicUsize>,
    outgoing: Outgoing,
) {
    while let Some(bytes) = pieces.recv().await {
        // Should nobody read it any more, others go on.
        let _ = pipe.write_all(&bytes).await;
        on_way.fetch_sub(bytes.len(), Ordering::Relaxed);
        if let Ok(room) = message(&Command::Room { channel, bytes: bytes.len() as u32 }) {
            let _ = outgoing.send(room);
        }
    }
}
