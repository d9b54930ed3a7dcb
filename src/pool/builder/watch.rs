//! The builder's settings for whoever watches the pool.

use super::Builder;
use crate::pool::observe::Observe;
use crate::pool::timeline::Timeline;
use crate::task::PoolError;
use std::path::{Path, PathBuf};

/// Watching the pool; see `docs/observability.md`.
impl Builder {
    /// What the pool is called where it is watched: in the label `pool` of its metrics and in its
    /// [`timeline`](Builder::timeline). It is `default` without; two pools of one program with the same
    /// name are counted together.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// Writes what ran where and when to a file, which `ui.perfetto.dev` and `chrome://tracing` show:
    /// a track for each worker, with its start, each attempt at a task and its end, beside the length of
    /// the queue.
    ///
    /// It is for looking at a stretch of minutes: the file grows by some 300 bytes with each task. A
    /// file that is there is replaced. The pool never waits for it: a thread of its own writes, and when
    /// that lags 65,536 tasks behind, further ones are left out and counted in the file.
    ///
    /// The file is complete when [`shutdown`](crate::ProcessPool::shutdown) returns, or soon after the
    /// last worker has ended when all handles of the pool are dropped, or after its runtime is. At any
    /// other time, also after a crash of the program, it lacks no more than its last line (a `]`) and
    /// what happened in the last tenth of a second, and can be loaded. A shutdown waits for a disk that is
    /// stuck for 2 seconds, and then leaves the thread to end when it can. When writing fails, as on a
    /// full disk, the file ends there, and the pool goes on.
    ///
    /// While a pool writes to a file, no other can, in this process or another. So a task that builds a
    /// pool needs a path of its own for each process, for instance with [`std::process::id`] in it. That
    /// relies on locks of the file system.
    ///
    /// # Errors
    /// [`build`](Builder::build) gives [`PoolError::Timeline`] when the file cannot be opened for
    /// writing, or another pool writes to it.
    pub fn timeline(mut self, path: impl Into<PathBuf>) -> Builder {
        self.timeline = Some(path.into());
        self
    }
}

/// Those who are to watch a pool.
pub(super) fn observers(name: &str, timeline: Option<&Path>) -> Result<Vec<Box<dyn Observe>>, PoolError> {
    let mut observers: Vec<Box<dyn Observe>> = Vec::new();
    #[cfg(feature = "metrics")]
    observers.push(Box::new(crate::pool::metrics::Meters::new(name)));
    if let Some(path) = timeline {
        observers.push(Box::new(Timeline::start(name, path)?));
    }
    Ok(observers)
}
