//! Moving bytes between a connection that many streams share and the pipes at this end of it.

use super::speech::{Channel, Command, PIECE, WINDOW, message, piece};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

/// What a steward may send more than it has room for: what was left in a dead worker's pipes.
const LAST_BYTES: usize = 512 * 1024;

/// How long what a worker has printed last may take to be taken up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How many pieces may wait to be sent: who takes none has no more made for it.
const WAITING_PIECES: usize = 4;

/// What is to be sent: pieces for the worker, and word of the room for what comes from it. Of that there is a
/// number for each stream, however much has come: a steward that sends and reads nothing takes up no memory.
pub(super) struct Outgoing {
    pieces: mpsc::Receiver<Vec<u8>>,
    rooms: Arc<Rooms>,
}

/// Room that was made, and is to be told of.
#[derive(Default)]
struct Rooms {
    bytes: [AtomicU32; 5],
    some: Notify,
}

impl Rooms {
    fn add(&self, channel: Channel, bytes: usize) {
        // It only comes to more than that where the steward reads nothing, and has no use for it.
        self.bytes[channel as usize].fetch_add(bytes as u32, Ordering::Relaxed);
        self.some.notify_one();
    }

    fn take(&self) -> io::Result<Vec<u8>> {
        let mut frames = Vec::new();
        for channel in [Channel::Results, Channel::Stdout, Channel::Stderr] {
            let bytes = self.bytes[channel as usize].swap(0, Ordering::Relaxed);
            if bytes > 0 {
                frames.extend(message(&Command::Room { channel, bytes })?);
            }
        }
        Ok(frames)
    }
}

impl Outgoing {
    /// The next frames to be sent, of which there are some.
    pub(super) async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let frames = tokio::select! {
                () = self.rooms.some.notified() => self.rooms.take()?,
                Some(frame) = self.pieces.recv() => frame,
            };
            if !frames.is_empty() {
                return Ok(frames);
            }
        }
    }
}

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
    pub(super) fn run(self) -> (Running, Outgoing) {
        let (sender, pieces) = mpsc::channel(WAITING_PIECES);
        let rooms = Arc::new(Rooms::default());
        let (room, mut tasks) = (Arc::new(Semaphore::new(WINDOW)), JoinSet::new());
        if let Some(pipe) = self.requests {
            tasks.spawn(send_requests(pipe, room.clone(), sender.clone()));
        }
        let mut results = JoinSet::new();
        let mut prints = JoinSet::new();
        let ups = self.ups.into_iter().map(|(channel, pipe)| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let on_way = Arc::new(AtomicUsize::new(0));
            let tasks = if channel == Channel::Results { &mut results } else { &mut prints };
            tasks.spawn(write_up(channel, pipe, receiver, on_way.clone(), rooms.clone()));
            Up { channel, sender: Some(sender), on_way }
        });
        let running =
            Running { ups: ups.collect(), room, _requests: tasks, _pieces: sender, results, prints };
        (running, Outgoing { pieces, rooms })
    }
}

/// Bytes on the move.
pub(super) struct Running {
    ups: Vec<Up>,
    /// How much may be sent to the worker.
    room: Arc<Semaphore>,
    _requests: JoinSet<()>,
    /// Kept, so that there may always be another.
    _pieces: mpsc::Sender<Vec<u8>>,
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

    /// The worker has taken in so much, as its steward says; how much of that can be.
    pub(super) fn add_room(&self, bytes: u32) -> usize {
        let bytes = (bytes as usize).min(WINDOW.saturating_sub(self.room.available_permits()));
        self.room.add_permits(bytes);
        bytes
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

async fn send_requests(mut pipe: pipe::Receiver, room: Arc<Semaphore>, outgoing: mpsc::Sender<Vec<u8>>) {
    let mut bytes = vec![0; PIECE];
    loop {
        // It is never closed.
        let Ok(first) = room.acquire().await else { return };
        let most = (room.available_permits() + 1).min(PIECE);
        let read = match pipe.read(&mut bytes[..most]).await {
            Ok(read @ 1..) => read,
            _ => {
                let _ = outgoing.send(piece(Channel::Requests, &[])).await;
                return;
            }
        };
        first.forget();
        // Only this task takes any.
        room.forget_permits(read - 1);
        if outgoing.send(piece(Channel::Requests, &bytes[..read])).await.is_err() {
            return;
        }
    }
}

async fn write_up(
    channel: Channel,
    mut pipe: pipe::Sender,
    mut pieces: mpsc::UnboundedReceiver<Vec<u8>>,
    on_way: Arc<AtomicUsize>,
    rooms: Arc<Rooms>,
) {
    while let Some(bytes) = pieces.recv().await {
        // Should nobody read it any more, others go on.
        let _ = pipe.write_all(&bytes).await;
        on_way.fetch_sub(bytes.len(), Ordering::Relaxed);
        rooms.add(channel, bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relays of results and requests, with the pool's ends.
    fn relays() -> (Relays, pipe::Receiver, pipe::Sender) {
        let ends = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((results, up), (down, requests)) = (ends(), ends());
        let mut relays = Relays::default();
        relays.add(Channel::Results, up).unwrap();
        relays.requests = Some(pipe::Receiver::from_owned_fd(down).unwrap());
        let (results, requests) =
            (pipe::Receiver::from_owned_fd(results), pipe::Sender::from_owned_fd(requests));
        (relays, results.unwrap(), requests.unwrap())
    }

    #[tokio::test]
    async fn a_steward_that_reads_nothing_is_owed_a_single_word() {
        let (relays, mut results, _requests) = relays();
        let (mut running, mut outgoing) = relays.run();
        for _ in 0..10_000 {
            running.take_in(Channel::Results, vec![0; 3]).unwrap();
            results.read_exact(&mut [0; 3]).await.unwrap();
        }
        running.finish_prints().await;
        running.finish_results(Duration::MAX).await;
        let room = Command::Room { channel: Channel::Results, bytes: 30_000 };
        assert_eq!(outgoing.next().await.unwrap(), message(&room).unwrap());
        assert!(outgoing.rooms.take().unwrap().is_empty());
    }

    #[tokio::test]
    async fn no_more_is_read_for_a_worker_than_is_sent_to_it() {
        let (relays, _results, mut requests) = relays();
        let (running, outgoing) = relays.run();
        let flood = async {
            loop {
                requests.write_all(&[0; PIECE]).await.unwrap();
                // Whatever its steward says.
                running.add_room(u32::MAX);
            }
        };
        tokio::time::timeout(Duration::from_millis(300), flood).await.unwrap_err();
        assert_eq!(outgoing.pieces.len(), WAITING_PIECES);
    }

    #[tokio::test]
    async fn what_was_never_sent_is_no_progress() {
        let (relays, _results, mut requests) = relays();
        let (running, mut outgoing) = relays.run();
        assert!(running.add_room(u32::MAX) <= 1);
        requests.write_all(b"request").await.unwrap();
        assert_eq!(outgoing.next().await.unwrap(), piece(Channel::Requests, b"request"));
        assert!(running.add_room(u32::MAX) <= 8);
        assert_eq!(running.add_room(u32::MAX), 0);
    }
}
