//! Forking the worker.

use super::household::{Downstream, Household, Upstream};
use super::{Post, dial, die_with};
use crate::process::child::{BOARD, Duties, end_with};
use crate::process::limits::Limits;
use crate::process::remote::speech::{Channel, Preamble, Refusal, cut};
use crate::sys::child::{self, Forked, ProcessFd};
use crate::sys::fds;
use crate::sys::memory::SharedWords;
use crate::sys::oom_kills;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, getpid};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// What a steward is to do.
pub(super) struct Errand<'a> {
    pub(super) preamble: &'a Preamble,
    pub(super) depth: u32,
    pub(super) limits: Limits,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// The worker's ends of everything.
struct Ends {
    requests: OwnedFd,
    results: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    board: SharedWords,
}

impl Errand<'_> {
    /// Starts the worker.
    pub(super) fn start(self, post: &Post, work: fn(Duties) -> io::Result<()>) -> Result<Household, Refusal> {
        self.fork(post, work).map_err(|error| Refusal::Other(cut(error)))
    }

    fn fork(self, post: &Post, work: fn(Duties) -> io::Result<()>) -> io::Result<Household> {
        let (mut ups, mut down, mut data) = (Vec::new(), None, None);
        let (requests, results) = match post.transport.plain() {
            Some(control) => {
                let connection = OwnedFd::from(dial::data(control, self.preamble)?);
                let ends = (connection.try_clone()?, connection.try_clone()?);
                data = Some(connection);
                ends
            }
            None => {
                let (requests, ours) = pipe_with(PipeFlags::CLOEXEC)?;
                down = Some(Downstream::new(ours)?);
                let (ours, results) = pipe_with(PipeFlags::CLOEXEC)?;
                ups.push(Upstream::new(Channel::Results, ours)?);
                (requests, results)
            }
        };
        let mut output = |channel, wanted: bool| -> io::Result<OwnedFd> {
            if !wanted {
                return Ok(OpenOptions::new().write(true).open("/dev/null")?.into());
            }
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            ups.push(Upstream::new(channel, ours)?);
            Ok(theirs)
        };
        let (stdout, stderr) = (output(Channel::Stdout, self.stdout)?, output(Channel::Stderr, self.stderr)?);
        // Both processes have the memory without the file.
        let (board, file) = SharedWords::create(BOARD)?;
        drop(file);
        let children_ended = child::watch_children()?;
        let (steward, oom_kills) = (getpid(), oom_kills());
        match child::fork()? {
            Forked::Parent(pid) => {
                let process = ProcessFd::open(pid)?;
                Ok(Household { pid, process, children_ended, board, ups, down, data, why: None, oom_kills })
            }
            Forked::Child => {
                let ends = Ends { requests, results, stdout, stderr, board };
                let theirs = ups.iter().map(|up| up.pipe.as_fd());
                let theirs = theirs
                    .chain(down.iter().map(Downstream::pipe))
                    .chain(data.iter().map(AsFd::as_fd))
                    .chain([children_ended.as_fd(), post.transport.input(), post.transport.output()])
                    .chain(post.stdin.iter().map(AsFd::as_fd));
                // Nothing of the steward's is dropped in here: this does not return.
                fds::close_inherited_all(theirs);
                let worked = be_worker(steward, ends, self.depth, self.limits, work);
                end_with("worker", worked)
            }
        }
    }
}

fn be_worker(
    steward: Pid,
    ends: Ends,
    depth: u32,
    limits: Limits,
    work: fn(Duties) -> io::Result<()>,
) -> io::Result<()> {
    child::unblock_all_signals();
    die_with(steward);
    // What a task sends to its whole process group is not for the steward.
    let _ = rustix::process::setpgid(None, None);
    let _ = rustix::thread::set_name(c"worker");
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    fds::replace_stdout(&ends.stdout)?;
    fds::replace_stderr(&ends.stderr)?;
    let Ends { requests, results, board, .. } = ends;
    work(Duties { requests, results, page: None, board: Some(board), depth, limits })
}
