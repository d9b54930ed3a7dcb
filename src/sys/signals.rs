//! What signals from outside do to a process that belongs to a pool.
//!
//! Many signals are meant for the program but reach all of its processes: `systemctl stop` signals
//! everything in the service's control group, `pkill -f` everything that looks alike, a shutdown
//! of the system everything that there is. Workers that died of it would take along the tasks that
//! the program is about to wait for. So the three signals that ask a program to end do nothing in
//! the processes of its pools: these end when the program does, or when it says so.
//!
//! There are three ways to have it so, and each leaks into the programs that tasks start. An ignored
//! signal stays ignored in them, and a blocked one blocked, so that nobody could end them by one. A
//! handler does not outlive `exec`. Its price is that it interrupts the system calls of the thread
//! that it runs on. The kernel prefers the main thread, where a worker has its watchdog, not its
//! task; the task thread gets a signal only while another one is under way to the watchdog. Then
//! `SA_RESTART` hides it from most calls, though not from `poll` and its like.

use super::child::{exit_now, unblock_all_signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Ask a program to end: from the terminal, from a supervisor, and when the terminal is gone.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Stop a process that reads from a terminal, or writes to one under `stty tostop`, which has
/// another process in its foreground, as it has for a worker always: in process groups of their own.
const TERMINAL: [libc::c_int; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// Leaves it to the program what signals from outside are to mean.
///
/// To be called once, early, while this process has one thread.
pub(crate) fn leave_to_the_program() {
    for signal in ENDING {
        // SAFETY: a zeroed sigaction is valid storage that sigaction fills; nothing is installed.
        let current = unsafe {
            let mut current: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut current);
            current.sa_sigaction
        };
        // What the program was told to ignore, as by `nohup`, those whom it starts are to ignore too.
        if current != libc::SIG_DFL {
            continue;
        }
        // SAFETY: a zeroed sigaction is valid storage; the handler has the SA_SIGINFO signature and
        // only does what is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_ending as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
    for signal in TERMINAL {
        // No handler would do: the kernel would try the write again, for ever. Nor is it bad for the
        // programs that tasks start, which are in the background as well: reading fails instead of
        // stopping them with the task that waits for them.
        // SAFETY: setting a signal to be ignored installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // The thread that started this process may have had some blocked.
    unblock_all_signals();
}

/// Whether a write to a pipe that nobody reads any more ends this process. It does where a program has seen to it
/// that `program | head` ends quietly; workers should not be able to end it so.
pub(crate) fn broken_pipes_end_us() -> bool {
    // SAFETY: a zeroed sigaction is valid storage that sigaction fills; nothing is installed.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut current);
        current.sa_sigaction == libc::SIG_DFL
    }
}

/// Writes to what may be such a pipe, and fails in the ordinary way if it is.
pub(crate) fn without_sigpipe<T>(write: impl FnOnce() -> T) -> T {
    // SAFETY: zeroed sets and times are valid storage; all pointers are to live locals, or null where that is
    // allowed. What is changed is this thread's own mask, which is as before in the end. The signal is for the
    // thread that writes; one that had been sent to it before stays.
    unsafe {
        let (mut pipe, mut before, mut pending): (libc::sigset_t, libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut pipe);
        libc::sigaddset(&mut pipe, libc::SIGPIPE);
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut before);
        let written = write();
        if libc::sigismember(&pending, libc::SIGPIPE) == 0 {
            let at_once: libc::timespec = std::mem::zeroed();
            libc::sigtimedwait(&pipe, std::ptr::null_mut(), &at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        written
    }
}

/// Does nothing, unless the process has sent the signal to itself: that is the task's own doing.
extern "C" fn on_ending(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and one with a code of
    // this kind has a sender; getpid has no preconditions.
    let is_own = unsafe {
        matches!((*info).si_code, libc::SI_USER | libc::SI_TKILL | libc::SI_QUEUE)
            && (*info).si_pid() == libc::getpid()
    };
    if is_own {
        // SAFETY: setting a signal to its default installs no code; both calls are
        // async-signal-safe. The signal is blocked in here, and ends the process on return.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// Runs a function during which the kernel kills this process as soon as the other end of a socket says
/// anything or is closed: who is there does neither while it wants to know what comes of this.
///
/// Nobody else could see to that, where the function must find no other thread.
pub(crate) fn while_nothing_is_said<R>(socket: BorrowedFd<'_>, run: impl FnOnce() -> R) -> R {
    const F_SETSIG: libc::c_int = 10;
    let fd = socket.as_raw_fd();
    // SAFETY: these operations on an open descriptor take numbers, no pointers. Should one fail, the
    // process lives until the function is done.
    let flags = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGKILL);
        libc::fcntl(fd, libc::F_SETOWN, libc::getpid());
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC);
        flags
    };
    // What came before is no event any more.
    let mut fds = [PollFd::new(&socket, PollFlags::IN | PollFlags::RDHUP)];
    if matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
        exit_now(0);
    }
    let result = run();
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
    result
}
