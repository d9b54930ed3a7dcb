//! File descriptors: closing what a process should not have, and placing its standard streams.

use rustix::fd::{FromRawFd, OwnedFd, RawFd};
use std::io;

/// The descriptor that carries the control socket into a started process.
pub(crate) const CONTROL_FD: RawFd = 0;

/// Closes every descriptor above the standard streams.
pub(crate) fn close_all_above_stdio() {
    // SAFETY: called when a started process has just been entered, before it has opened anything
    // of its own: what is closed here was leaked into it by its parent and has no owner in this
    // process. The call cannot touch memory.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Takes the control socket from descriptor 0, moves it out of the way of the standard streams,
/// close-on-exec, and puts `/dev/null` in its place.
pub(crate) fn take_control_socket() -> io::Result<OwnedFd> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: descriptor 0 was given to this process to be its control socket, and nobody else
    // in it has taken it: this runs once, before `main`. F_DUPFD_CLOEXEC returns a new one.
    let moved = unsafe { libc::fcntl(CONTROL_FD, libc::F_DUPFD_CLOEXEC, 3) };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::stdio::dup2_stdin(&null)?;
    // SAFETY: `moved` is open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Whether descriptor 0 is a socket.
pub(crate) fn stdin_is_socket() -> bool {
    rustix::fs::fstat(rustix::stdio::stdin())
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket())
}

/// Puts an open file on standard output.
pub(crate) fn replace_stdout(file: &OwnedFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdout(file)?)
}

/// Puts an open file on standard error.
pub(crate) fn replace_stderr(file: &OwnedFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(file)?)
}

/// Writes all of `bytes` to standard error with nothing but system calls.
pub(crate) fn write_stderr(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live slice.
        let written = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            _ => return,
        }
    }
}

/// Closes a descriptor that a forked child has inherited with its parent's memory.
///
/// The owner in this process must never be used or dropped again.
pub(crate) fn close_inherited(fd: &OwnedFd) {
    use rustix::fd::AsRawFd;
    // SAFETY: the descriptor is open in this process. Its owner lives on the stack of a function
    // that does not return in the child, so nobody closes or uses it a second time.
    unsafe { rustix::io::close(fd.as_raw_fd()) };
}

/// The same, of several; one may be named twice.
#[cfg(feature = "remote")]
pub(crate) fn close_inherited_all<'a>(fds: impl Iterator<Item = rustix::fd::BorrowedFd<'a>>) {
    use rustix::fd::AsRawFd;
    let fds: std::collections::BTreeSet<RawFd> = fds.map(|fd| fd.as_raw_fd()).collect();
    for fd in fds {
        // SAFETY: as above; nothing is opened in between, and each is closed once.
        unsafe { rustix::io::close(fd) };
    }
}

/// How many bytes that were written to a socket the other machine has not acknowledged.
#[cfg(feature = "remote")]
pub(crate) fn unacknowledged(socket: &impl rustix::fd::AsRawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes an int to the pointer, which is to a live local. It fails on what is
    // no socket.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}
