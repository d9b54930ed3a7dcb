//! The process of a launcher: an `srun`, an `ssh`, a client of containers.

use super::line::Wire;
use super::write_to;
use crate::process::output::{Follower, Output, Tail, WorkerStdio};
use crate::process::start::{END_DEADLINE, Start, start_error};
use crate::sys::child::{Ended, ProcessFd, exit_code, exit_signal, try_wait};
use crate::sys::readiness::watch_process;
use crate::task::PoolError;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a launcher may take to end by itself when it is not needed any more: what it has started
/// has ended, and word of that must come from another machine.
const GRACE: Duration = Duration::from_secs(5);

/// The most of a launcher's last words that is told.
const TOLD: usize = 600;

/// A running launcher: ended, and reaped, when dropped.
pub(super) struct Launched {
    child: LauncherGuard,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    tail: Tail,
    follower: Follower,
}

/// What [`Launched::run`] brings from the thread that has executed the program.
struct Executed {
    child: LauncherGuard,
    stdin: OwnedFd,
    stdout: Option<OwnedFd>,
}

impl Launched {
    /// Executes the command, on a thread of its own, which is held up until that has got so far.
    pub(super) async fn run(
        start: &Start,
        command: Command,
        over_stdio: bool,
    ) -> Result<Launched, PoolError> {
        let (stderr, theirs) = Output::new(WorkerStdio::Capture, None).map_err(start_error)?;
        let tail = stderr.tail();
        let (executed, receiver) = oneshot::channel();
        let (tracker, token) = (start.under_way.clone(), start.under_way.token());
        let thread = std::thread::Builder::new().name("procession".into());
        let name = command.get_program().to_string_lossy().into_owned();
        thread
            .spawn(move || {
                // A start that was called off ends here, with what it has started.
                let _ = executed.send(exec(command, theirs, over_stdio, tracker));
                drop(token);
            })
            .map_err(start_error)?;
        let executed = receiver.await.map_err(|_| PoolError::ShutDown)?;
        let executed =
            executed.map_err(|error| PoolError::Start { reason: format!("executing `{name}`: {error}") })?;
        let stdin = pipe::Sender::from_owned_fd(executed.stdin).map_err(start_error)?;
        let stdout = executed.stdout.map(pipe::Receiver::from_owned_fd).transpose().map_err(start_error)?;
        let follower = stderr.follow(&start.under_way);
        Ok(Launched { child: executed.child, stdin: Some(stdin), stdout, tail, follower })
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => write_to(stdin, bytes).await,
            None => Ok(()),
        }
    }

    /// Takes over its standard input and output.
    pub(super) fn take_stdio(&mut self) -> io::Result<Wire> {
        match (self.stdout.take(), self.stdin.take()) {
            (Some(stdout), Some(stdin)) => Ok((Box::new(stdout), Box::new(stdin))),
            _ => Err(io::Error::other("its standard input and output are in use")),
        }
    }

    /// Waits until it has ended, and says how.
    pub(super) async fn ended(&mut self) -> String {
        let ended = self.child.wait().await;
        self.explain(how(ended)).await
    }

    /// Adds to a text what the launcher, or what it has started, says to the matter.
    pub(super) async fn explain(&mut self, mut what: String) -> String {
        self.follower.finish().await;
        let text = self.tail.text();
        let said = text.trim();
        if !said.is_empty() && !what.contains(said) {
            let start = said.ceil_char_boundary(said.len().saturating_sub(TOLD));
            let shown: String = said[start..].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            what = format!("{what}; it said: {shown}");
        }
        what
    }

    /// How it ended, if it has.
    pub(super) fn end_so_far(&mut self) -> Option<String> {
        let has_ended = self.child.reaped || self.child.process.wait_ended(Duration::ZERO);
        has_ended.then(|| how(self.child.reap()))
    }

    /// It is not needed any more: waits until it has ended. What takes too long is ended elsewhere.
    pub(super) async fn finish(mut self) {
        drop((self.stdin.take(), self.stdout.take()));
        let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        self.follower.finish().await;
    }
}

fn how(ended: Option<Ended>) -> String {
    match ended {
        None => "it ended".into(),
        Some(ended) => match (exit_code(ended.status), exit_signal(ended.status)) {
            (_, Some((signal, _))) => format!("it was ended by signal {signal}"),
            (Some(code), _) => format!("it exited with code {code}"),
            _ => "it ended".into(),
        },
    }
}

fn exec(
    mut command: Command,
    stderr: Option<OwnedFd>,
    over_stdio: bool,
    under_way: TaskTracker,
) -> io::Result<Executed> {
    let (stdin_out, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut stdout = None;
    if over_stdio {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        stdout = Some(ours);
        command.stdout(Stdio::from(theirs));
    } else {
        command.stdout(Stdio::null());
    }
    command.stderr(stderr.map_or_else(Stdio::null, Stdio::from));
    // A process group of its own: Ctrl-C in a terminal is for the program to act on.
    let mut child = command.stdin(Stdio::from(stdin_out)).process_group(0).spawn()?;
    // The command holds the launcher's ends of the pipes.
    drop(command);
    let pid = Pid::from_child(&child);
    match ProcessFd::open(pid) {
        Ok(process) => {
            let child =
                LauncherGuard { pid, process: Arc::new(process), reaped: false, end: None, under_way };
            Ok(Executed { child, stdin, stdout })
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// A child of this process that has not been reaped.
struct LauncherGuard {
    pid: Pid,
    process: Arc<ProcessFd>,
    reaped: bool,
    end: Option<Ended>,
    under_way: TaskTracker,
}

impl LauncherGuard {
    async fn wait(&mut self) -> Option<Ended> {
        if !self.reaped {
            let watched = watch_process(self.process.clone()).ok()?;
            let _ready = watched.readable().await.ok()?;
        }
        self.reap()
    }

    /// Reaps the process, which has ended.
    fn reap(&mut self) -> Option<Ended> {
        if !std::mem::replace(&mut self.reaped, true) {
            self.end = try_wait(Some(self.pid)).ok().flatten().map(|(_, ended)| ended);
        }
        self.end
    }
}

impl Drop for LauncherGuard {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let end = Ending { pid: self.pid, process: self.process.clone(), _token: self.under_way.token() };
        // Without a thread it is ended here after all.
        let _ = std::thread::Builder::new().name("procession".into()).spawn(move || drop(end));
    }
}

/// A launcher whose standard input has ended, or is about to; and it with that.
struct Ending {
    pid: Pid,
    process: Arc<ProcessFd>,
    _token: TaskTrackerToken,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // `srun` calls its step off when it is asked to end, but not when it is killed.
        if !self.process.wait_ended(END_DEADLINE / 2) {
            // With what it has started. Not reaped, so the number is still that of its process group.
            if kill_process_group(self.pid, Signal::TERM).is_err() {
                self.process.terminate();
            }
            if !self.process.wait_ended(END_DEADLINE) {
                let _ = kill_process_group(self.pid, Signal::KILL);
                self.process.kill();
                self.process.wait_ended(END_DEADLINE);
            }
        }
        let _ = try_wait(Some(self.pid));
    }
}
