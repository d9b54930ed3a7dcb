//! Making processes, and learning how they ended.

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// How a process ended, as the kernel tells its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The wait status.
    pub(crate) status: i32,
    /// The most resident memory it had, in bytes.
    pub(crate) max_rss: u64,
    /// The processor time that it used, in nanoseconds.
    pub(crate) cpu: u64,
}

/// A process as seen from [`fork`].
pub(crate) enum Forked {
    /// This is the new process.
    Child,
    /// This is the old one, and the new one has this pid.
    Parent(Pid),
}

/// Forks this process, which must have a single thread.
///
/// # Errors
/// Fails when there is a second thread (whose locks would stay locked for ever in the child), or
/// when the system has no room for another process.
pub(crate) fn fork() -> io::Result<Forked> {
    if super::thread_count()? != 1 {
        return Err(io::Error::other("a process with several threads cannot be forked safely"));
    }
    // SAFETY: there is no other thread, so no lock of libc or of the allocator can be held by
    // one; the child may go on using all of it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(io::Error::last_os_error),
    }
}

/// Waits for a child process without blocking: `None` when it has not ended yet.
///
/// With no pid it waits for any child.
pub(crate) fn try_wait(pid: Option<Pid>) -> io::Result<Option<(Pid, Ended)>> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = pid.map_or(-1, |pid| pid.as_raw_nonzero().get());
    // SAFETY: both pointers are to live locals of the right types.
    match unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            let max_rss = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
            let cpu = nanos(usage.ru_utime).saturating_add(nanos(usage.ru_stime));
            Ok(Pid::from_raw(pid).map(|pid| (pid, Ended { status, max_rss, cpu })))
        }
    }
}

fn nanos(time: libc::timeval) -> u64 {
    let part = |part: i64, scale: u64| u64::try_from(part).unwrap_or(0).saturating_mul(scale);
    part(time.tv_sec, 1_000_000_000).saturating_add(part(time.tv_usec, 1_000))
}

/// A process that can be signalled without fear that its pid has gone to another one.
#[derive(Debug)]
pub(crate) struct ProcessFd(OwnedFd);

impl ProcessFd {
    /// Opens a child that has not been reaped.
    pub(crate) fn open(pid: Pid) -> io::Result<ProcessFd> {
        Ok(ProcessFd(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// The code or the signal with which a child has ended, which stays to be reaped.
    pub(crate) fn peek(&self) -> Option<(Option<i32>, Option<i32>)> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::PidFd(self.0.as_fd()), options).ok()??;
        Some((status.exit_status(), status.terminating_signal()))
    }

    /// Takes over a descriptor that another process opened.
    pub(crate) fn from_fd(fd: OwnedFd) -> ProcessFd {
        ProcessFd(fd)
    }

    /// Kills the process; one that has ended already is no error.
    pub(crate) fn kill(&self) {
        // The only failures are that it has ended, and that it has become another user's.
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Asks the process to end.
    #[cfg(feature = "remote")]
    pub(crate) fn terminate(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::TERM);
    }

    /// Blocks until the process has ended, at most for the given time.
    pub(crate) fn wait_ended(&self, limit: std::time::Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec::try_from(limit).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, limit.as_ref()), Ok(1))
    }
}

impl AsFd for ProcessFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for ProcessFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that becomes readable when a child of this process has ended.
///
/// SIGCHLD is blocked for it, to be unblocked in forked children with [`unblock_all_signals`].
pub(crate) fn watch_children() -> io::Result<OwnedFd> {
    // SAFETY: a zeroed sigset is valid storage, and sigemptyset and sigaddset only fill it; the
    // process has one thread. signalfd returns a new descriptor that is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Clears the signal mask, which a forked child inherits.
pub(crate) fn unblock_all_signals() {
    // SAFETY: a zeroed sigset is valid storage that sigemptyset fills.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Ends the process at once, without running exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Ties the life of this process to its parent's main thread: SIGKILL when that ends.
///
/// Returns false when the parent (which had the given pid) is gone already.
pub(crate) fn die_with_parent(parent: Pid) -> bool {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    rustix::process::getppid() == Some(parent)
}

/// Whether a wait status says that the process ended by itself, and with which code.
pub(crate) fn exit_code(status: i32) -> Option<i32> {
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

/// The signal that ended a process, from its wait status, and whether it dumped core.
pub(crate) fn exit_signal(status: i32) -> Option<(i32, bool)> {
    libc::WIFSIGNALED(status).then(|| (libc::WTERMSIG(status), libc::WCOREDUMP(status)))
}
