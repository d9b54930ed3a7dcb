//! How a process of the program finds out that it is to be a worker.

use super::bench;
use crate::process::{self, Duties, MARKER, Role};
use crate::sys::{entry, fds};
use std::io;
use std::sync::OnceLock;

/// How many pools there are around this worker; unset in a process that is none.
static DEPTH: OnceLock<u32> = OnceLock::new();

#[cfg(feature = "auto-init")]
entry::before_main!(init);

/// Turns this process into a worker if it was started to be one; does nothing otherwise.
///
/// With the feature `auto-init`, which is on by default, this happens before `main` and need not
/// be called. Without it, call it as the first statement of a plain `fn main`, before any thread
/// or runtime is started:
///
/// ```
/// fn main() {
///     procession::init();
///     // from here on, this is no worker
/// }
/// ```
///
/// In a worker it does not return.
#[allow(clippy::needless_doctest_main)] // Where in `main` it stands is the point.
pub fn init() {
    if DEPTH.get().is_some() {
        return;
    }
    #[cfg(feature = "remote")]
    if std::env::var_os(MARKER).is_some_and(|role| role == process::STEWARD) {
        let _ = entry::take_env(MARKER);
        process::serve_as_steward(work);
    }
    // Taken out of the environment, so that what a worker starts in its turn is not taken for one.
    if !fds::stdin_is_socket() {
        return;
    }
    let Some(role) = entry::take_env(MARKER) else { return };
    if let Some(role) = Role::from_name(&role) {
        process::serve(role, work);
    }
}

fn work(duties: Duties) -> io::Result<()> {
    // Only set here, in a process that has just become a worker.
    let _ = DEPTH.set(duties.depth);
    bench::work(duties)
}

/// Whether this process is a worker of a pool.
///
/// True in tasks and initializers; false in your program and in the function given to
/// [`Builder::preload`](crate::Builder::preload), which runs in the fork server.
pub fn is_worker() -> bool {
    DEPTH.get().is_some()
}

/// How many pools there are around this process.
pub(crate) fn depth() -> u32 {
    DEPTH.get().copied().unwrap_or(0)
}

/// Whether this process was started to be a worker, but nobody has called [`init`].
pub(crate) fn was_told_to_enter() -> bool {
    #[cfg(feature = "remote")]
    if std::env::var_os(MARKER).is_some_and(|role| role == process::STEWARD) {
        return true;
    }
    std::env::var_os(MARKER).is_some() && fds::stdin_is_socket()
}
