//! Waiting for descriptors on the runtime.

use super::child::ProcessFd;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// A process whose end a runtime can wait for: it becomes readable then.
pub(crate) struct Watched(Arc<ProcessFd>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for a process to end.
pub(crate) fn watch_process(process: Arc<ProcessFd>) -> io::Result<AsyncFd<Watched>> {
    // SAFETY: the shared `ProcessFd` owns its descriptor and never closes or replaces it before it
    // is dropped, which is not before the `AsyncFd` is.
    Ok(unsafe { AsyncFd::register(Watched(process)) }?)
}

/// Waits for messages on a socket, and for room for them.
pub(crate) fn watch_socket(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same descriptor, until it is dropped, which is not
    // before the `AsyncFd` is.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
