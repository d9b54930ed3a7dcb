//! What the two ways to start a process have in common.

use super::channel;
use super::child::{MARKER, Role};
use super::control::{Notice, Order, Refusal};
use super::output::{Forward, Output, WorkerStdio, own_stderr, own_stdout};
use super::patience::within;
use super::{Killer, Limits, Probe, Process};
use crate::sys::child::{Ended, ProcessFd, try_wait};
use crate::sys::readiness::{watch_process, watch_socket};
use crate::task::{PoolError, SignalName};
use crate::wire::{PROTOCOL, Page, build_identity};
use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a started process may take to say its first word. It does so before `main`, after
/// no more than loading the program.
pub(super) const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long a process that was told to end may take before it is killed.
pub(super) const END_DEADLINE: Duration = Duration::from_secs(2);

/// How processes are to be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    pub(crate) clear_env: bool,
    /// What to set and, with `None`, to remove.
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stdout: WorkerStdio,
    pub(crate) stderr: WorkerStdio,
    pub(crate) preload: Option<Preload>,
    /// How many pools there are around the new processes.
    pub(crate) depth: u32,
    pub(crate) limits: Limits,
    /// Starts that are under way on threads of their own.
    pub(crate) under_way: TaskTracker,
}

/// A function to be run once in the fork server.
#[derive(Clone, Debug)]
pub(crate) struct Preload {
    pub(crate) shim: u64,
    pub(crate) arguments: Bytes,
}

/// A started process before anything else is known of it: killed and reaped when dropped.
pub(super) struct Started {
    pub(super) socket: Arc<AsyncFd<OwnedFd>>,
    pub(super) child: ChildGuard,
}

/// A child of this process that has not been reaped.
pub(super) struct ChildGuard {
    pub(super) pid: Pid,
    pub(super) process: Arc<ProcessFd>,
    /// What to hang up on so that it ends by itself, and cleans up, rather than be killed.
    socket: Option<Arc<AsyncFd<OwnedFd>>>,
    reaped: bool,
    /// Where its end counts as under way.
    under_way: TaskTracker,
}

impl ChildGuard {
    /// Waits for the end of the process.
    pub(super) async fn ended(mut self) -> Option<Ended> {
        let watched = watch_process(self.process.clone()).ok()?;
        let _ready = watched.readable().await.ok()?;
        self.reap()
    }

    /// How the process ends, which is about to, in words. It stays to be reaped.
    async fn how_it_ended(&self) -> String {
        let told = async {
            let _ready = watch_process(self.process.clone()).ok()?.readable().await.ok()?;
            self.process.peek()
        };
        match within(END_DEADLINE, told).await {
            Ok(Some((Some(code), _))) => format!("exited with code {code}"),
            Ok(Some((_, Some(signal)))) => format!("was ended by {}", SignalName(signal)),
            _ => "closed its connection".into(),
        }
    }

    /// Reaps the process, which has ended; `None` if somebody else in this program did.
    fn reap(&mut self) -> Option<Ended> {
        self.reaped = true;
        try_wait(Some(self.pid)).ok().flatten().map(|(_, ended)| ended)
    }
}

impl Drop for ChildGuard {
    /// Ends the process. That may take it a while, for which no thread of the runtime is to wait.
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let grace = match &self.socket {
            Some(socket) => {
                hang_up(socket);
                END_DEADLINE / 4
            }
            None => Duration::ZERO,
        };
        let (pid, process, token) = (self.pid, self.process.clone(), self.under_way.token());
        let end = Ending { pid, process, grace, token: Some(token) };
        // Without a thread it is ended here after all.
        let _ = std::thread::Builder::new().name("procession".into()).spawn(move || drop(end));
    }
}

/// A child that is ended, and reaped, when this is dropped.
struct Ending {
    pid: Pid,
    process: Arc<ProcessFd>,
    /// How long it may take to end by itself.
    grace: Duration,
    token: Option<TaskTrackerToken>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.process.wait_ended(self.grace);
        self.process.kill();
        // A killed process ends within milliseconds unless the kernel itself is stuck, or a tracer holds it. Then
        // it is reaped when it does end, and nobody waits for that but this thread.
        if !self.process.wait_ended(END_DEADLINE) {
            self.token.take();
            self.process.wait_ended(Duration::MAX);
        }
        let _ = try_wait(Some(self.pid));
    }
}

/// The pool's end of the control socket, and the process.
type Executed = io::Result<(OwnedFd, ChildGuard)>;

/// Lets the process at the other end see the end of its control socket.
pub(super) fn hang_up(socket: &AsyncFd<OwnedFd>) {
    // It may have closed its end already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

impl Start {
    /// Starts a process of this very program with the given role, and has it configured.
    pub(super) async fn run(self: &Arc<Self>, role: Role) -> Result<Started, PoolError> {
        let executed = self.exec_elsewhere(role).map_err(start_error)?.await;
        let (socket, mut child) =
            executed.map_err(|_| PoolError::ShutDown)?.map_err(|error| self.explain(&error))?;
        let socket = Arc::new(watch_socket(socket).map_err(start_error)?);
        if role == Role::ForkServer {
            child.socket = Some(socket.clone());
        }
        let started = Started { socket, child };
        match within(HELLO_DEADLINE, self.greet(role, &started)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(not_ready(role, &format!("it said nothing within {HELLO_DEADLINE:?}; {HINT}")));
            }
        }
        self.configure(role, &started).await?;
        Ok(started)
    }

    /// Waits until no start is under way any more, even one that was called off.
    pub(super) async fn finish(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    fn explain(&self, error: &io::Error) -> PoolError {
        let place = self.current_dir.as_ref().map(|directory| format!(" in {}", directory.display()));
        PoolError::Start { reason: format!("executing the program{}: {error}", place.unwrap_or_default()) }
    }

    /// Executes the program on a thread of its own, which is held up until the new process has got
    /// that far. The runtime's threads for what blocks may all be taken.
    fn exec_elsewhere(self: &Arc<Self>, role: Role) -> io::Result<oneshot::Receiver<Executed>> {
        let (executed, receiver) = oneshot::channel();
        let (start, token) = (self.clone(), self.under_way.token());
        std::thread::Builder::new().name("procession".into()).spawn(move || {
            // A start that was called off ends here, with what it has started.
            let _ = executed.send(start.exec(role));
            drop(token);
        })?;
        Ok(receiver)
    }

    fn exec(&self, role: Role) -> Executed {
        let (ours, theirs) = channel::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        // Not a saved path: a new build may have taken its place meanwhile.
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        if self.clear_env {
            command.env_clear();
        }
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(directory) = &self.current_dir {
            command.current_dir(directory);
        }
        // A process group of its own: Ctrl-C in a terminal is for the program to act on.
        let mut child =
            command.env(MARKER, role.as_str()).process_group(0).stdin(Stdio::from(theirs)).spawn()?;
        let pid = Pid::from_child(&child);
        match ProcessFd::open(pid) {
            Ok(process) => {
                let process = Arc::new(process);
                let under_way = self.under_way.clone();
                Ok((ours, ChildGuard { pid, process, socket: None, reaped: false, under_way }))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    async fn greet(&self, role: Role, started: &Started) -> Result<(), PoolError> {
        match receive(&started.socket).await {
            Ok(Some((Notice::Hello { protocol, build }, _))) => {
                let same = protocol == PROTOCOL && build == build_identity();
                if same { Ok(()) } else { Err(PoolError::BuildMismatch) }
            }
            Ok(Some(_)) => Err(not_ready(role, "it spoke out of turn")),
            Ok(None) => Err(not_ready(role, &format!("it ended at once; {HINT}"))),
            Err(error) => Err(not_ready(role, &error.to_string())),
        }
    }

    async fn configure(&self, role: Role, started: &Started) -> Result<(), PoolError> {
        let arguments = match &self.preload {
            Some(preload) if role == Role::ForkServer => {
                Some(memory_file(&preload.arguments).map_err(start_error)?)
            }
            _ => None,
        };
        let order = Order::Configure {
            protocol: PROTOCOL,
            build: build_identity(),
            depth: self.depth,
            limits: self.limits.clone(),
            preload: self.preload.as_ref().filter(|_| arguments.is_some()).map(|preload| preload.shim),
        };
        let fds: Vec<_> = arguments.iter().map(AsFd::as_fd).collect();
        send(&started.socket, &order, &fds).await.map_err(start_error)?;
        // Preloading takes what it takes; shutting the pool down ends it.
        let limit = if arguments.is_some() { Duration::MAX } else { HELLO_DEADLINE };
        let configured = within(limit, receive(&started.socket)).await;
        match configured.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some((Notice::Configured { refused: None }, _))) => Ok(()),
            Ok(Some((Notice::Configured { refused: Some(refusal) }, _))) => Err(match refusal {
                Refusal::OtherBuild => PoolError::BuildMismatch,
                Refusal::Preload(reason) => PoolError::Preload { reason },
            }),
            Ok(Some(_)) => Err(not_ready(role, "it spoke out of turn")),
            Ok(None) if arguments.is_some() => {
                let how = started.child.how_it_ended().await;
                let reason =
                    format!("it ended the fork server, which {how}: see the program's standard error");
                Err(PoolError::Preload { reason })
            }
            Ok(None) => Err(not_ready(role, "it ended while it was being configured")),
            Err(error) => Err(not_ready(role, &error.to_string())),
        }
    }
}

const HINT: &str = "without the feature `auto-init`, call `procession::init()` first in `main`";

fn not_ready(role: Role, reason: &str) -> PoolError {
    PoolError::NotReady { reason: format!("the {}: {reason}", role.as_str()) }
}

pub(super) fn start_error(error: io::Error) -> PoolError {
    PoolError::Start { reason: error.to_string() }
}

fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let file = rustix::fs::memfd_create(c"procession-preload", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Sends an order.
pub(super) async fn send(socket: &AsyncFd<OwnedFd>, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        if let Ok(sent) = ready.try_io(|socket| channel::send(socket.as_fd(), order, fds)) {
            return sent;
        }
    }
}

/// Receives a notice; `None` when the process is gone.
pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(received) = ready.try_io(|socket| channel::receive(socket.as_fd())) {
            return received;
        }
    }
}

/// Both ends of what connects a pool and a worker.
pub(super) struct Link {
    requests: pipe::Sender,
    results: pipe::Receiver,
    page: Page,
    stdout: Output,
    stderr: Output,
    /// The worker's ends, in the order in which they are sent.
    theirs: Vec<OwnedFd>,
}

impl Link {
    pub(super) fn new(start: &Start) -> io::Result<Link> {
        let (requests_out, requests_in) = pipe_with(PipeFlags::CLOEXEC)?;
        let (results_out, results_in) = pipe_with(PipeFlags::CLOEXEC)?;
        let (page, page_file) = Page::create()?;
        let mut theirs = vec![requests_out, results_in, page_file];
        // Who is shut in is not given the program's own standard output, which may be a terminal.
        let forward_stdout = start.limits.sandbox.is_some().then_some(own_stdout as Forward);
        let (stdout, stdout_in) = Output::new(start.stdout, forward_stdout)?;
        let (stderr, stderr_in) = Output::new(start.stderr, Some(own_stderr))?;
        theirs.extend(stdout_in);
        theirs.extend(stderr_in);
        Ok(Link {
            requests: pipe::Sender::from_owned_fd(requests_in)?,
            results: pipe::Receiver::from_owned_fd(results_out)?,
            page,
            stdout,
            stderr,
            theirs,
        })
    }

    /// Sends the order to start a worker, with its ends of the link.
    pub(super) async fn send_start(&mut self, socket: &AsyncFd<OwnedFd>, id: u64) -> io::Result<()> {
        let theirs = std::mem::take(&mut self.theirs);
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let (stdout, stderr) = (self.stdout.is_redirected(), self.stderr.is_redirected());
        send(socket, &Order::Start { id, stdout, stderr }, &fds).await
    }

    pub(super) fn into_process(
        self,
        pid: u32,
        process: Arc<ProcessFd>,
        earlier_rss: u64,
        ended: BoxFuture<'static, Option<Ended>>,
    ) -> Process {
        Process {
            pid,
            earlier_rss,
            requests: self.requests,
            results: self.results,
            page: Some(self.page),
            stdout: self.stdout,
            stderr: self.stderr,
            probe: Some(Probe { pid, process: process.clone() }),
            far: None,
            killer: Killer::new(move || process.kill()),
            ended,
        }
    }
}
