//! A worker's standard output and standard error.

use bytes::BytesMut;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// How much of a stream's end is kept.
const TAIL: usize = 8 * 1024;

/// The most that is read from a dead worker's stream: more than a pipe holds by default. A
/// daughter process that goes on writing cannot keep the pool reading.
const LAST_READS: usize = 128 * 1024;

/// Where a worker's standard output or standard error goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerStdio {
    /// To the program's own. The tail of standard error is kept too, for
    /// [`WorkerExit::stderr_tail`](crate::WorkerExit::stderr_tail).
    #[default]
    Inherit,
    /// Nowhere.
    Null,
    /// Only the tail is kept, for [`WorkerInfo`](crate::WorkerInfo) and
    /// [`WorkerExit`](crate::WorkerExit).
    Capture,
}

/// Opens the stream of the program's own that a worker's is passed on to.
pub(crate) type Forward = fn() -> Box<dyn AsyncWrite + Send + Unpin>;

pub(super) fn own_stdout() -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(tokio::io::stdout())
}

pub(super) fn own_stderr() -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(tokio::io::stderr())
}

/// One output stream of one worker, from the pool's side.
pub(crate) struct Output {
    redirected: bool,
    pipe: Option<pipe::Receiver>,
    forward: Option<Forward>,
    tail: Tail,
}

/// The last bytes of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(crate) fn text(&self) -> String {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(bytes.make_contiguous()).into_owned()
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
    }
}

/// Asks the task that follows a stream to read what is left and to stop.
pub(crate) struct Follower(Option<oneshot::Sender<oneshot::Sender<()>>>);

impl Follower {
    /// Completes the tail, once the worker has ended.
    pub(crate) async fn finish(&mut self) {
        let (done, finished) = oneshot::channel();
        if let Some(ask) = self.0.take()
            && ask.send(done).is_ok()
        {
            // An error means that the stream has ended already.
            let _ = finished.await;
        }
    }
}

impl Output {
    /// Makes a stream, and the worker's end of it if it is to be replaced.
    ///
    /// `inherit` says how to forward a stream that is inherited; without it the worker writes to
    /// the program's own directly.
    pub(crate) fn new(stdio: WorkerStdio, inherit: Option<Forward>) -> io::Result<(Output, Option<OwnedFd>)> {
        let forward = inherit.filter(|_| stdio == WorkerStdio::Inherit);
        let (pipe, theirs) = match stdio {
            WorkerStdio::Inherit if forward.is_none() => (None, None),
            WorkerStdio::Null => {
                let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
                (None, Some(null.into()))
            }
            WorkerStdio::Inherit | WorkerStdio::Capture => {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                (Some(pipe::Receiver::from_owned_fd(read)?), Some(write))
            }
        };
        let output = Output { redirected: theirs.is_some(), pipe, forward, tail: Tail::default() };
        Ok((output, theirs))
    }

    pub(super) fn is_redirected(&self) -> bool {
        self.redirected
    }

    pub(crate) fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// Starts to read the stream, in a task of its own.
    pub(crate) fn follow(self, tracker: &TaskTracker) -> Follower {
        let Some(pipe) = self.pipe else {
            return Follower(None);
        };
        let (ask, asked) = oneshot::channel();
        tracker.spawn(follow(pipe, self.tail, self.forward.map(|open| open()), asked));
        Follower(Some(ask))
    }
}

async fn follow(
    mut pipe: pipe::Receiver,
    tail: Tail,
    mut forward: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut asked: oneshot::Receiver<oneshot::Sender<()>>,
) {
    let mut bytes = BytesMut::with_capacity(4096);
    loop {
        bytes.clear();
        let early = tokio::select! {
            read = pipe.read_buf(&mut bytes) => match read {
                Ok(1..) => None,
                _ => return,
            },
            done = &mut asked => Some(done),
        };
        tail.push(&bytes);
        // The program's own stream may be stuck: that is this worker's business, but must not
        // keep word of its death from the pool.
        let rest = {
            let mut forwarding = std::pin::pin!(write_through(&mut forward, &bytes));
            let asked_for = match early {
                Some(done) => Some(done),
                None => tokio::select! {
                    () = &mut forwarding => None,
                    done = &mut asked => Some(done),
                },
            };
            match asked_for {
                None => continue,
                Some(done) => {
                    let rest = read_rest(&pipe);
                    tail.push(&rest);
                    let _ = done.map(|done| done.send(()));
                    forwarding.await;
                    rest
                }
            }
        };
        return write_through(&mut forward, &rest).await;
    }
}

/// Reads what a dead worker has left in its stream. The runtime is not asked whether there is
/// anything: it may not have looked yet.
fn read_rest(pipe: &pipe::Receiver) -> Vec<u8> {
    let (mut rest, mut piece) = (Vec::new(), [0; 4096]);
    while rest.len() < LAST_READS
        && let Ok(read @ 1..) = rustix::io::read(pipe, &mut piece)
    {
        rest.extend_from_slice(&piece[..read]);
    }
    rest
}

async fn write_through(forward: &mut Option<Box<dyn AsyncWrite + Send + Unpin>>, bytes: &[u8]) {
    if let Some(stream) = forward {
        // A program that has closed the stream has nowhere to send this to.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end() {
        let tail = Tail::default();
        tail.push(&[b'a'; TAIL]);
        tail.push(b"end");
        assert_eq!(tail.text().len(), TAIL);
        assert!(tail.text().ends_with("aend"));
        tail.push(&[b'b'; 3 * TAIL]);
        assert_eq!(tail.text(), "b".repeat(TAIL));
    }
}
