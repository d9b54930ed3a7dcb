//! The connection with a steward.

use super::launched::Launched;
use super::relay::{Outgoing, Relays};
use super::speech::{Channel, Command, Farewell, Frame, Frames, MAX_REPORT, Report, message};
use crate::process::{FarEnd, Told, within};
use crate::sys::child::Ended;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How long connections are kept for what has not been read of them, when all is said.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// Both halves of a connection.
pub(super) type Wire = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// How long a worker that is to be killed may take to be dead, at the least: it may have much memory to
/// give back.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// A connection, as messages.
pub(super) struct Talk {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    frames: Frames,
    /// What its machine is called.
    pub(super) host: String,
}

impl Talk {
    pub(super) fn new((reader, writer): Wire) -> Talk {
        Talk { reader, writer, frames: Frames::new(MAX_REPORT), host: String::new() }
    }

    pub(super) async fn send(&mut self, command: &Command) -> io::Result<()> {
        self.writer.write_all(&message(command)?).await?;
        self.writer.flush().await
    }

    /// The next report, before there is anything else.
    pub(super) async fn next(&mut self) -> io::Result<Report> {
        match next_frame(&mut self.reader, &mut self.frames).await? {
            Frame::Message(report) => Ok(report),
            Frame::Piece(..) => Err(io::Error::other("it spoke out of turn")),
        }
    }
}

async fn next_frame(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    frames: &mut Frames,
) -> io::Result<Frame<Report>> {
    let mut bytes = [0; 16 * 1024];
    loop {
        if let Some(frame) = frames.next()? {
            return Ok(frame);
        }
        match reader.read(&mut bytes).await? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended")),
            read => frames.add(&bytes[..read]),
        }
    }
}

/// The connection with the steward of a worker that has started.
pub(super) struct Line {
    pub(super) talk: Talk,
    pub(super) relays: Relays,
    /// The worker is to be killed.
    pub(super) killed: CancellationToken,
    pub(super) end: Arc<FarEnd>,
    /// For how long nothing may be heard.
    pub(super) silence: Duration,
}

impl Line {
    /// Looks after the worker until it has ended or is lost, and says so; then after the rest.
    pub(super) async fn tend(
        self,
        tell: oneshot::Sender<Option<Ended>>,
        held: oneshot::Receiver<()>,
        mut launched: Launched,
    ) {
        let Line { talk, relays, killed, end, silence } = self;
        let Talk { mut reader, mut writer, mut frames, host } = talk;
        let (mut running, outgoing) = relays.run();
        let heard = async {
            loop {
                let frame = within(silence, next_frame(&mut *reader, &mut frames)).await;
                let frame =
                    frame.map_err(|_| io::Error::other(format!("nothing was heard for {silence:?}")))??;
                match frame {
                    Frame::Message(Report::Ended(farewell)) => return Ok::<Farewell, io::Error>(farewell),
                    Frame::Message(Report::Beat) => {}
                    Frame::Message(Report::Begun { seq, ran }) => end.note_begun(seq, ran),
                    Frame::Message(Report::Room { channel: Channel::Requests, bytes }) => {
                        end.note_progress(running.add_room(bytes) as u64);
                    }
                    Frame::Message(_) => return Err(io::Error::other("it spoke out of turn")),
                    Frame::Piece(channel, bytes) => running.take_in(channel, bytes)?,
                }
            }
        };
        let heard = tokio::select! {
            heard = heard => heard,
            error = overdue(&killed, silence.max(DEATH_LIMIT)) => Err(error),
            () = speak(&mut *writer, outgoing, &killed, &end, silence / 4) => unreachable!("it never returns"),
        };
        match heard {
            Ok(Farewell { ended, begun, ran, last_words, why, starved, cut_off }) => {
                end.note_begun(begun, ran);
                running.finish_prints().await;
                end.tell(Told::Goodbye { begun, last_words, why, starved, cut_off });
                let _ = tell.send(Some(ended));
                // Until then the pool may not have read all that the worker had sent.
                running.finish_results(HOLD_LIMIT).await;
                let _ = tokio::time::timeout(HOLD_LIMIT, held).await;
                drop((reader, writer));
                launched.finish().await;
            }
            Err(error) => {
                running.finish_prints().await;
                let launcher = launched.end_so_far().map(|how| format!("; of its launcher: {how}"));
                let why = format!("on {host}: {error}{}", launcher.unwrap_or_default());
                end.tell(Told::Lost(why));
                let _ = tell.send(None);
                // Connections end with this, and with them, should they be there yet, the others.
            }
        }
    }
}

/// Waits until the worker has been told to end for too long. The kernel may be stuck in it there, or its
/// steward does not heed what it is told: either way nobody is to wait for word of its end for ever.
async fn overdue(killed: &CancellationToken, limit: Duration) -> io::Error {
    killed.cancelled().await;
    let _ = within(limit, std::future::pending::<()>()).await;
    io::Error::other(format!("its worker was to be killed, and was not dead within {limit:?}"))
}

/// Sends what is to be sent, and a sign of life now and then. What fails here shows in what is heard.
async fn speak(
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    mut outgoing: Outgoing,
    killed: &CancellationToken,
    end: &FarEnd,
    interval: Duration,
) {
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut has_told = false;
    loop {
        let frame = tokio::select! {
            biased;
            () = killed.cancelled(), if !has_told => {
                has_told = true;
                message(&Command::Kill)
            }
            () = end.asked() => message(&Command::Look),
            frames = outgoing.next() => frames,
            _ = beat.tick() => message(&Command::Beat),
        };
        let sent = async {
            writer.write_all(&frame?).await?;
            writer.flush().await
        };
        if sent.await.is_err() {
            return std::future::pending().await;
        }
    }
}
