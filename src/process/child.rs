//! The other side of [`start`](super::start): what a started process does before it is a worker.
//!
//! A process started as a fork server stays small and has a single thread for all its life, so
//! that forking it is cheap and safe. Everything in here blocks; there is no runtime.

use super::Limits;
use super::channel;
use super::control::{Notice, Order, Refusal};
use crate::sys::child::{self, Ended, Forked, ProcessFd};
use crate::sys::memory::SharedWords;
use crate::sys::{fds, signals, thread_count};
use crate::task::{self, Call, Fault, Host, TaskError};
use crate::wire::{PROTOCOL, Page, build_identity};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;

/// The environment variable that makes a process of this program a fork server or a worker.
pub(crate) const MARKER: &str = "PROCESSION_ROLE";

/// How many children are reaped before orders are looked for.
const AT_ONCE: usize = 256;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What a started process is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    ForkServer,
    Worker,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::ForkServer => "fork server",
            Role::Worker => "worker",
        }
    }

    /// The role with this name.
    pub(crate) fn from_name(name: &std::ffi::OsStr) -> Option<Role> {
        [Role::ForkServer, Role::Worker].into_iter().find(|role| name == role.as_str())
    }
}

/// Without a page, a worker has so many words for who looks after it: the number of the task that it has
/// begun last, what its handlers of faults have to say, and when that task began.
#[cfg(feature = "remote")]
pub(super) const BOARD: usize = 3;

/// What a worker is given to work with.
pub(crate) struct Duties {
    pub(crate) requests: OwnedFd,
    pub(crate) results: OwnedFd,
    pub(crate) page: Option<Page>,
    /// Without a page: what is read by who looks after the worker, in [`BOARD`] words.
    pub(crate) board: Option<SharedWords>,
    /// How many pools there are around this worker.
    pub(crate) depth: u32,
    pub(crate) limits: Limits,
}

/// Serves as what the process was started to be; `work` is what a worker then does.
pub(crate) fn serve(role: Role, work: fn(Duties) -> io::Result<()>) -> ! {
    let served = match role {
        Role::ForkServer => Control::open().and_then(|control| control.fork_workers(work)),
        Role::Worker => Control::open().and_then(|control| control.be_worker(work)),
    };
    end_with(role.as_str(), served)
}

/// Ends this process, with a word of what was the matter.
pub(super) fn end_with(role: &str, served: io::Result<()>) -> ! {
    match served {
        Ok(()) => child::exit_now(0),
        // The program is gone, or has no use for this process any more, which is nobody's mistake.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => child::exit_now(0),
        Err(error) => {
            eprintln!("procession: {role}: {error}");
            child::exit_now(1)
        }
    }
}

/// The control socket of a started process, and how it was configured.
struct Control {
    socket: OwnedFd,
    depth: u32,
    limits: Limits,
}

impl Control {
    /// Greets the program that started this process, and does as it is configured.
    fn open() -> io::Result<Control> {
        signals::leave_to_the_program();
        fds::close_all_above_stdio();
        let socket = fds::take_control_socket()?;
        let hello = Notice::Hello { protocol: PROTOCOL, build: build_identity() };
        channel::send(socket.as_fd(), &hello, &[])?;
        let Some((order, files)) = channel::receive(socket.as_fd())? else {
            child::exit_now(0);
        };
        let Order::Configure { protocol, build, depth, limits, preload } = order else {
            return Err(io::Error::other("was told to start before it was configured"));
        };
        let refused = if protocol != PROTOCOL || build != build_identity() {
            Some(Refusal::OtherBuild)
        } else {
            let run = |shim| read_arguments(files).and_then(|input| run_preload(shim, input));
            let refused = |shim| signals::while_nothing_is_said(socket.as_fd(), || run(shim).err());
            preload.and_then(refused).map(Refusal::Preload)
        };
        let is_refused = refused.is_some();
        channel::send(socket.as_fd(), &Notice::Configured { refused }, &[])?;
        if is_refused {
            child::exit_now(0);
        }
        Ok(Control { socket, depth, limits })
    }

    /// Receives the order to start a worker; `None` when the program is gone or wants no more.
    fn next_start(&self) -> io::Result<Option<(u64, io::Result<Ends>)>> {
        match channel::receive(self.socket.as_fd())? {
            None => Ok(None),
            Some((Order::Start { id, stdout, stderr }, files)) => {
                Ok(Some((id, Ends::new(files, stdout, stderr))))
            }
            Some((Order::Configure { .. }, _)) => Err(io::Error::other("was configured twice")),
        }
    }

    fn be_worker(self, work: fn(Duties) -> io::Result<()>) -> io::Result<()> {
        match self.next_start()? {
            None => Ok(()),
            Some((_, ends)) => {
                drop(self.socket);
                work(ends?.take_up(self.depth, self.limits)?)
            }
        }
    }

    fn fork_workers(self, work: fn(Duties) -> io::Result<()>) -> io::Result<()> {
        let _ = rustix::thread::set_name(c"fork server");
        let mut server = Server {
            children_ended: child::watch_children()?,
            control: self,
            pid: rustix::process::getpid(),
            children: HashMap::new(),
        };
        let served = server.run(work);
        server.kill_all();
        served
    }
}

/// The worker's ends of a link.
struct Ends {
    requests: OwnedFd,
    results: OwnedFd,
    page: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Ends {
    fn new(files: Vec<OwnedFd>, stdout: bool, stderr: bool) -> io::Result<Ends> {
        let mut files = files.into_iter();
        let mut next =
            || files.next().ok_or_else(|| io::Error::other("there is no room for another descriptor"));
        Ok(Ends {
            requests: next()?,
            results: next()?,
            page: next()?,
            stdout: stdout.then(&mut next).transpose()?,
            stderr: stderr.then(&mut next).transpose()?,
        })
    }

    fn take_up(self, depth: u32, limits: Limits) -> io::Result<Duties> {
        let _ = rustix::thread::set_name(c"worker");
        self.stdout.as_ref().map_or(Ok(()), fds::replace_stdout)?;
        self.stderr.as_ref().map_or(Ok(()), fds::replace_stderr)?;
        Ok(Duties {
            page: Some(Page::open(self.page.as_fd())?),
            board: None,
            requests: self.requests,
            results: self.results,
            depth,
            limits,
        })
    }
}

/// A fork server at work.
struct Server {
    control: Control,
    /// Readable when a child has ended.
    children_ended: OwnedFd,
    pid: Pid,
    /// Workers that have not been reaped.
    children: HashMap<Pid, u64>,
}

impl Server {
    fn run(&mut self, work: fn(Duties) -> io::Result<()>) -> io::Result<()> {
        let mut may_be_more = false;
        loop {
            let (ordered, ended) = {
                let mut fds = [
                    PollFd::new(&self.control.socket, PollFlags::IN),
                    PollFd::new(&self.children_ended, PollFlags::IN),
                ];
                let wait = may_be_more.then_some(&NO_TIME);
                rustix::io::retry_on_intr(|| poll(&mut fds, wait))?;
                (!fds[0].revents().is_empty(), !fds[1].revents().is_empty())
            };
            if ended || may_be_more {
                may_be_more = self.reap()?;
            }
            if ordered {
                let Some((id, ends)) = self.control.next_start()? else {
                    return Ok(());
                };
                match ends {
                    Ok(ends) => self.start(id, ends, work)?,
                    Err(error) => self.refuse(id, &error)?,
                }
            }
        }
    }

    fn start(&mut self, id: u64, ends: Ends, work: fn(Duties) -> io::Result<()>) -> io::Result<()> {
        match child::fork() {
            Ok(Forked::Child) => self.become_worker(ends, work),
            Ok(Forked::Parent(pid)) => {
                // Not reaped yet, so the pid is still the child's.
                self.children.insert(pid, id);
                match ProcessFd::open(pid) {
                    Ok(process) => {
                        let forked = Notice::Forked { id, pid: pid.as_raw_nonzero().get() as u32 };
                        channel::send(self.control.socket.as_fd(), &forked, &[process.as_fd()])
                    }
                    // The worker sees its request pipe end, and ends.
                    Err(error) => self.refuse(id, &error),
                }
            }
            Err(error) => self.refuse(id, &error),
        }
    }

    fn refuse(&self, id: u64, error: &io::Error) -> io::Result<()> {
        let notice = Notice::NotForked { id, reason: error.to_string() };
        channel::send(self.control.socket.as_fd(), &notice, &[])
    }

    fn become_worker(&mut self, ends: Ends, work: fn(Duties) -> io::Result<()>) -> ! {
        child::unblock_all_signals();
        if !child::die_with_parent(self.pid) {
            child::exit_now(1);
        }
        // What a task sends to its whole process group is not for the other workers.
        let _ = rustix::process::setpgid(None, None);
        // These are the fork server's business. Nothing else of it is open here.
        for inherited in [&self.control.socket, &self.children_ended] {
            fds::close_inherited(inherited);
        }
        let limits = std::mem::take(&mut self.control.limits);
        let worked = ends.take_up(self.control.depth, limits).and_then(work);
        end_with(Role::Worker.as_str(), worked)
    }

    /// Reports children that have ended; whether there may be more. A worker can see to it that there always
    /// are, by bearing children for its parent, and orders must not wait for that to end.
    fn reap(&mut self) -> io::Result<bool> {
        let mut drained = [0; 512];
        while rustix::io::read(&self.children_ended, &mut drained).is_ok_and(|read| read > 0) {}
        for _ in 0..AT_ONCE {
            let Ok(Some((pid, ended))) = child::try_wait(None) else { return Ok(false) };
            self.report(pid, ended)?;
        }
        Ok(true)
    }

    fn report(&mut self, pid: Pid, ended: Ended) -> io::Result<()> {
        match self.children.remove(&pid) {
            // Somebody whom the preload function started.
            None => Ok(()),
            Some(id) => channel::send(self.control.socket.as_fd(), &Notice::Ended { id, ended }, &[]),
        }
    }

    /// Ends the workers that are left, and reaps them so that nobody else has to.
    fn kill_all(&self) {
        for pid in self.children.keys() {
            // Not reaped, so the pid is still the child's.
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
        }
        for pid in self.children.keys() {
            let _ = rustix::process::waitpid(Some(*pid), rustix::process::WaitOptions::empty());
        }
    }
}

/// What the preload function runs in: no runtime, no parts.
struct NoHost;

impl Host for NoHost {
    fn block_on<'a>(&self, _: std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>) {
        // A runtime may start threads. Dropping the future counts as cancelling it.
    }

    fn run_item(&self, item: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
        item()
    }

    fn send_part(&self, _: &[u8]) {}
}

/// Reads the arguments of the preload function, which are in a memory file.
fn read_arguments(files: Vec<OwnedFd>) -> Result<Vec<u8>, String> {
    let mut input = Vec::new();
    let file = files.into_iter().next().ok_or("its arguments did not arrive")?;
    std::fs::File::from(file).read_to_end(&mut input).map_err(|error| error.to_string())?;
    Ok(input)
}

/// Runs the preload function.
pub(super) fn run_preload(shim: u64, input: Vec<u8>) -> Result<(), String> {
    let shim = task::resolve(shim).ok_or("it is not part of the program")?;
    let before = thread_count().map_err(|error| error.to_string())?;
    let mut output = Vec::new();
    let mut call = Call { input: input.into(), output: &mut output, limit: u64::MAX, host: &NoHost };
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| shim(&mut call)));
    let mut result = match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Fault::Cancelled)) => {
            Err("it is async, and there is no runtime in the fork server".to_string())
        }
        Ok(Err(Fault::Failed(report))) => Err(report.chain.join(": ")),
        Ok(Err(fault)) => Err(TaskError::from(fault).to_string()),
        Err(payload) => Err(format!("it panicked: {}", crate::task::panic_message(&*payload))),
    };
    let after = thread_count().map_err(|error| error.to_string())?;
    if result.is_ok() && after > 1 {
        let whose = if before > 1 { "the program's static constructors started" } else { "it started" };
        result = Err(format!(
            "{whose} a thread, and a process with several threads cannot be forked safely: \
             start threads in the initializer instead, or use `StartMethod::Spawn`"
        ));
    }
    result.map_err(|mut reason| {
        reason.truncate(reason.floor_char_boundary(channel::MAX_MESSAGE / 4));
        reason
    })
}
