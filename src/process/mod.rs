//! How a worker's process comes to be, and ends.
//!
//! This is a seam: a [`Launch`] yields a [`Process`], which is a byte stream each way, a way to
//! kill it, and word of its end. The control page is there when the pool and the worker share a
//! kernel; everything works without it.

mod channel;
mod child;
mod control;
mod far;
mod fork_server;
#[cfg(feature = "remote")]
mod launcher;
mod limits;
mod output;
mod patience;
mod probe;
#[cfg(feature = "remote")]
mod remote;
mod sandbox;
mod spawn;
mod start;
#[cfg(feature = "remote")]
mod steward;

pub(crate) use child::{Duties, MARKER, Role, serve};
#[cfg(feature = "remote")]
pub(crate) use far::Told;
pub(crate) use far::{Far, FarEnd};
pub(crate) use fork_server::ForkServer;
#[cfg(feature = "remote")]
pub use launcher::Launcher;
pub(crate) use limits::Limits;
pub use output::WorkerStdio;
pub(crate) use output::{Follower, Output, Tail};
pub(crate) use patience::within;
pub(crate) use probe::Probe;
#[cfg(feature = "remote")]
pub(crate) use remote::Remote;
pub use sandbox::Sandbox;
pub(crate) use spawn::Spawn;
pub(crate) use start::{Preload, Start};
#[cfg(feature = "remote")]
pub(crate) use steward::{STEWARD, serve_as_steward};

use crate::sys::child::Ended;
use crate::task::PoolError;
use crate::wire::Page;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::net::unix::pipe;

/// A way to start workers.
pub(crate) trait Launch: Send + Sync {
    /// Starts a process that will be a worker.
    fn start(&self) -> BoxFuture<'_, Result<Process, PoolError>>;

    /// Ends what was started beside the workers, once these are gone.
    fn stop(&self) -> BoxFuture<'_, ()>;

    /// Kills everything at once, with no runtime to wait on.
    fn abandon(&self);
}

/// A process that was started to be a worker.
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// To the worker.
    pub(crate) requests: pipe::Sender,
    /// From the worker.
    pub(crate) results: pipe::Receiver,
    pub(crate) page: Option<Page>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) killer: Killer,
    /// To look at it, if it runs under this kernel.
    pub(crate) probe: Option<Probe>,
    /// The most resident memory that it had before it was this program, which the kernel counts too.
    pub(crate) earlier_rss: u64,
    /// What there is to be known of a process on another machine.
    pub(crate) far: Option<Far>,
    /// Resolves when the process has ended, to `None` if nobody can tell how.
    pub(crate) ended: BoxFuture<'static, Option<Ended>>,
}

/// Kills one process, and never another that got its pid.
#[derive(Clone)]
pub(crate) struct Killer(Arc<dyn Fn() + Send + Sync>);

impl Killer {
    /// What kills it: at once, or soon, without blocking, and any number of times.
    pub(crate) fn new(kill: impl Fn() + Send + Sync + 'static) -> Killer {
        Killer(Arc::new(kill))
    }

    pub(crate) fn kill(&self) {
        (self.0)();
    }
}

#[cfg(all(feature = "remote", any(test, feature = "internals")))]
pub(crate) use {
    remote::{read_as_pool, read_knocks},
    steward::read_as_steward,
};

/// Reads a message of the fork server's, and says it again.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_notice(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let notice: control::Notice = channel::decode(&bytes[..bytes.len().min(channel::MAX_MESSAGE)]).ok()?;
    Some((format!("{notice:?}"), postcard::to_stdvec(&notice).ok()?))
}
