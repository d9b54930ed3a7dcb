//! Workers on other machines, from the pool's side.
//!
//! A [`Launcher`](super::Launcher) starts a steward there (`process/steward/`), which dials back. The
//! connection with it is for control: it says how the worker is to be, and how it has ended. The worker
//! has a connection of its own, the other end of which the pool reads and writes as it does the pipes of
//! a worker at home. Where that cannot be (over TLS, and over standard input and output) its bytes go
//! through the steward's connection, and through pipes at both ends.

mod command;
mod launched;
mod line;
mod listener;
mod relay;
pub(super) mod speech;
#[cfg(feature = "remote-tls")]
pub(super) mod tls;

use super::launcher::Launcher;
use super::output::{Output, own_stderr, own_stdout};
use super::start::{Start, start_error};
use super::{Far, FarEnd, Killer, Launch, Process, WorkerStdio, within};
use crate::task::PoolError;
use crate::wire::{PROTOCOL, build_identity};
use futures::future::{BoxFuture, FutureExt};
use launched::Launched;
use line::{Line, Talk, Wire};
use listener::{Connected, Listener, Ticket};
use relay::Relays;
use rustix::pipe::{PipeFlags, pipe_with};
use speech::{Channel, Command, Configuration, MAGIC, Part, Preamble, Refusal, Report, Route};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Starts workers on other machines.
pub(crate) struct Remote {
    start: Arc<Start>,
    launcher: Launcher,
    /// How long a worker may take until it has started.
    limit: Duration,
    /// `None` where frames go through standard input and output.
    listener: Option<Listener>,
    has_warned: AtomicBool,
}

/// The ends of a worker's link.
struct Link {
    requests: pipe::Sender,
    results: pipe::Receiver,
    relays: Relays,
    stdout: Output,
    stderr: Output,
}

impl Remote {
    /// Begins to listen.
    pub(crate) fn new(
        start: Start,
        launcher: Launcher,
        limit: Duration,
        runtime: &Handle,
    ) -> Result<Remote, PoolError> {
        let listener = match launcher.over_stdio {
            true => None,
            false => Some(Listener::open(&launcher, runtime)?),
        };
        Ok(Remote { start: Arc::new(start), launcher, limit, listener, has_warned: AtomicBool::new(false) })
    }

    async fn start_worker(&self) -> Result<Process, PoolError> {
        let started = within(self.limit, self.launch()).await;
        started.unwrap_or_else(|_| {
            let name = self.launcher.name();
            let limit = self.limit;
            Err(not_ready(format!("a worker that `{name}` was to start was not there within {limit:?}")))
        })
    }

    async fn launch(&self) -> Result<Process, PoolError> {
        let ticket = Ticket::new().map_err(start_error)?;
        let expected = self.listener.as_ref().map(|listener| listener.expect(&ticket));
        let mut launched =
            Launched::run(&self.start, self.launcher.to_command(), self.listener.is_none()).await?;
        let preamble = self.preamble(&ticket)?;
        // One that ends at once need not have read it.
        let _ = launched.write(&preamble).await;
        let (wire, data) = match expected {
            Some(mut expected) => tokio::select! {
                biased;
                connected = expected.next(Part::Control) => (wire_of(connected?), Some(expected)),
                error = launched.ended() => return Err(self.failure(error)),
            },
            None => (self.wire_through(&mut launched)?, None),
        };
        let mut talk = Talk::new(wire);
        let started = tokio::select! {
            biased;
            started = self.begin(&mut talk) => started,
            error = launched.ended() => Err(not_ready(error)),
        };
        match started {
            Ok(pid) => self.take_charge(pid, talk, data, launched).await,
            Err(PoolError::NotReady { reason }) => Err(self.failure(launched.explain(reason).await)),
            Err(error) => Err(error),
        }
    }

    fn failure(&self, reason: String) -> PoolError {
        not_ready(format!("the worker that `{}` was to start: {reason}", self.launcher.name()))
    }

    /// What the steward is to read first.
    fn preamble(&self, ticket: &Ticket) -> Result<Vec<u8>, PoolError> {
        let route = match &self.listener {
            None => Route::Stdio,
            Some(listener) => listener.route()?,
        };
        let Ticket { id, answer, token } = *ticket;
        let preamble = Preamble { id, answer, token, route, silence: self.launcher.node_timeout };
        let bytes = postcard::to_stdvec(&preamble).map_err(|error| start_error(io::Error::other(error)))?;
        Ok([&MAGIC[..], &(bytes.len() as u32).to_le_bytes(), &bytes].concat())
    }

    fn wire_through(&self, launched: &mut Launched) -> Result<Wire, PoolError> {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            // Standard error may be a pipe that nobody reads any more.
            let _ = writeln!(
                io::stderr(),
                "procession: workers speak through the standard input and output of `{}`, which is slow: see \
                 `Launcher::over_stdio`",
                self.launcher.name()
            );
        }
        launched.take_stdio().map_err(start_error)
    }

    /// Makes sure of the build, and has the worker started; its process id there.
    async fn begin(&self, talk: &mut Talk) -> Result<u32, PoolError> {
        let broken = |error: io::Error| not_ready(error.to_string());
        match talk.next().await.map_err(broken)? {
            Report::Hello { protocol, build, host } => {
                if protocol != PROTOCOL || build != build_identity() {
                    return Err(PoolError::BuildMismatch);
                }
                talk.host = host;
            }
            _ => return Err(not_ready("it spoke out of turn".into())),
        }
        let start = Command::Start(Box::new(self.configuration()));
        talk.send(&start).await.map_err(broken)?;
        loop {
            // Preloading takes what it takes.
            match talk.next().await.map_err(broken)? {
                Report::Started { pid } => return Ok(pid),
                Report::NotStarted(refusal) => {
                    return Err(match refusal {
                        Refusal::OtherBuild => PoolError::BuildMismatch,
                        Refusal::Preload(reason) => PoolError::Preload { reason },
                        Refusal::NotConfined(reason) => PoolError::NotConfined { reason },
                        Refusal::Other(reason) => PoolError::Start { reason },
                    });
                }
                Report::Beat => {}
                _ => return Err(not_ready("it spoke out of turn".into())),
            }
        }
    }

    fn configuration(&self) -> Configuration {
        let start = &self.start;
        Configuration {
            protocol: PROTOCOL,
            build: build_identity(),
            depth: start.depth,
            limits: start.limits.clone(),
            clear_env: start.clear_env,
            env: start.env.clone(),
            current_dir: start.current_dir.clone().map(Into::into),
            stdout: start.stdout != WorkerStdio::Null,
            stderr: start.stderr != WorkerStdio::Null,
            preload: start.preload.as_ref().map(|preload| (preload.shim, preload.arguments.to_vec())),
        }
    }

    /// From here on the worker is looked after by a task of its own.
    async fn take_charge(
        &self,
        pid: u32,
        talk: Talk,
        data: Option<listener::Expected>,
        launched: Launched,
    ) -> Result<Process, PoolError> {
        let data = match data.filter(|_| !self.launcher.encrypted) {
            // It was made before the steward said that the worker had started.
            Some(mut expected) => match expected.next(Part::Data).await? {
                Connected::Plain(stream) => Some(stream),
                #[cfg(feature = "remote-tls")]
                Connected::Tls(_) => None,
            },
            None => None,
        };
        let link = self.link(data).map_err(start_error)?;
        let end = Arc::new(FarEnd::default());
        let killed = CancellationToken::new();
        let killer = killed.clone();
        let (hold, held) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let silence = self.launcher.node_timeout;
        let line = Line { talk, relays: link.relays, killed, end: end.clone(), silence };
        let token = self.start.under_way.token();
        tokio::spawn(async move {
            line.tend(tell, held, launched).await;
            drop(token);
        });
        Ok(Process {
            pid,
            requests: link.requests,
            results: link.results,
            page: None,
            stdout: link.stdout,
            stderr: link.stderr,
            killer: Killer::new(move || killer.cancel()),
            probe: None,
            earlier_rss: 0,
            ended: async { told.await.ok().flatten() }.boxed(),
            far: Some(Far { end, _hold: hold }),
        })
    }

    fn link(&self, data: Option<TcpStream>) -> io::Result<Link> {
        let mut relays = Relays::default();
        let (requests, results) = match data {
            Some(stream) => {
                let stream = OwnedFd::from(stream.into_std()?);
                // A connection is written to and read from as a pipe is.
                let requests = pipe::Sender::from_owned_fd_unchecked(stream.try_clone()?)?;
                (requests, pipe::Receiver::from_owned_fd_unchecked(stream)?)
            }
            None => {
                let (down, requests) = pipe_with(PipeFlags::CLOEXEC)?;
                let (results, up) = pipe_with(PipeFlags::CLOEXEC)?;
                relays.requests = Some(pipe::Receiver::from_owned_fd(down)?);
                relays.add(Channel::Results, up)?;
                (pipe::Sender::from_owned_fd(requests)?, pipe::Receiver::from_owned_fd(results)?)
            }
        };
        let (stdout, stdout_in) = Output::new(self.start.stdout, Some(own_stdout))?;
        let (stderr, stderr_in) = Output::new(self.start.stderr, Some(own_stderr))?;
        for (channel, stdio, end) in
            [(Channel::Stdout, self.start.stdout, stdout_in), (Channel::Stderr, self.start.stderr, stderr_in)]
        {
            if let Some(end) = end.filter(|_| stdio != WorkerStdio::Null) {
                relays.add(channel, end)?;
            }
        }
        Ok(Link { requests, results, relays, stdout, stderr })
    }
}

impl Launch for Remote {
    fn start(&self) -> BoxFuture<'_, Result<Process, PoolError>> {
        self.start_worker().boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(listener) = &self.listener {
                listener.close().await;
            }
            self.start.finish().await;
        }
        .boxed()
    }

    /// Each worker's task is dropped, and its connections with it, upon which the steward ends.
    fn abandon(&self) {}
}

fn wire_of(connected: Connected) -> Wire {
    match connected {
        Connected::Plain(stream) => {
            let (read, write) = stream.into_split();
            (Box::new(read), Box::new(write))
        }
        #[cfg(feature = "remote-tls")]
        Connected::Tls(stream) => {
            let (read, write) = tokio::io::split(stream);
            (Box::new(read), Box::new(write))
        }
    }
}

fn not_ready(reason: String) -> PoolError {
    PoolError::NotReady { reason }
}

/// Writes to a launcher, whose pipe may be full.
async fn write_to(pipe: &mut pipe::Sender, bytes: &[u8]) -> io::Result<()> {
    pipe.write_all(bytes).await
}

/// Reads what comes as a steward's word, in pieces of this length; what it was, and how much was read.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_as_pool(bytes: &[u8], piece: usize) -> Vec<String> {
    speech::read_in_pieces::<Report>(bytes, piece, speech::MAX_REPORT)
}

#[cfg(any(test, feature = "internals"))]
pub(crate) use listener::read_knocks;
