//! The builder's settings for what a worker may use and do.

use super::Builder;
use crate::process::{Limits, Sandbox};
use std::time::Duration;

/// Limits on what workers may use. They are in place before the initializer or any task runs.
impl Builder {
    /// The most memory that a worker can have: a hard limit, upheld by the kernel.
    ///
    /// It counts the private memory of the process, 8 MiB for its stack and what was preloaded
    /// included. An allocation beyond it fails, which ends a Rust program: the task's error is
    /// [`TaskError::WorkerDied`](crate::TaskError::WorkerDied) with the cause
    /// [`ExitCause::OutOfMemory`](crate::ExitCause::OutOfMemory).
    ///
    /// Backtraces take memory as well: a panic or an error with less than 64 MiB left has none.
    pub fn worker_memory_limit(mut self, bytes: u64) -> Builder {
        self.limits.memory = Some(bytes);
        self
    }

    /// The most processor time that a worker can use up, all its threads together: a hard limit,
    /// upheld by the kernel in whole seconds, rounded up.
    ///
    /// It is a limit for tasks that spin: one that reaches it ends as
    /// [`TaskError::WorkerDied`](crate::TaskError::WorkerDied) with the cause
    /// [`ExitCause::CpuTime`](crate::ExitCause::CpuTime). So that no task is ended for what those
    /// before it have used up, a worker is replaced after the task with which it passes half of the
    /// limit: each task has at least the other half.
    pub fn worker_cpu_limit(mut self, time: Duration) -> Builder {
        self.limits.cpu = Some(time);
        self
    }

    /// The most files and other descriptors that a worker can have open, the five or so that it
    /// works with included; at least 16.
    pub fn worker_open_files_limit(mut self, files: u64) -> Builder {
        self.limits.open_files = Some(files);
        self
    }

    /// Whether a worker that crashes may leave a core dump: as large as the system allows, or none.
    /// By default that is as it is for your program; in a [`sandbox`](Builder::sandbox), none.
    pub fn worker_core_dumps(mut self, allowed: bool) -> Builder {
        self.limits.core_dumps = Some(allowed);
        self
    }

    /// Adds to the nice value of workers, from 1 to 19, so that your program goes before them when
    /// processors are scarce. Less than 0, which puts workers first, needs a privilege
    /// (`CAP_SYS_NICE`).
    pub fn worker_nice(mut self, by: i32) -> Builder {
        self.limits.nice = Some(by);
        self
    }

    /// Keeps workers, and what they start, from gaining privileges by executing setuid programs and
    /// the like. A [`sandbox`](Builder::sandbox) does that in any case.
    pub fn worker_no_new_privs(mut self, renounced: bool) -> Builder {
        self.limits.no_new_privs = renounced;
        self
    }

    /// Shuts workers in, for code that is not trusted; see [`Sandbox`].
    ///
    /// [`build`](Builder::build) fails with
    /// [`PoolError::NotConfined`](crate::PoolError::NotConfined) where the kernel cannot do it, and where
    /// a path is missing or lies in a directory that tasks may write to. If a worker cannot be shut in
    /// later, no worker starts, and tasks fail as [`TaskError::PoolBroken`](crate::TaskError::PoolBroken)
    /// with the same error.
    pub fn sandbox(mut self, sandbox: Sandbox) -> Builder {
        self.limits.sandbox = Some(sandbox);
        self
    }
}

/// The most bytes that limits may have, encoded: they travel in one packet, with others.
const MAX_ENCODED: usize = 12 * 1024;

/// What is wrong with the limits, if anything.
pub(super) fn complaints(limits: &Limits) -> [(bool, &'static str); 6] {
    let encoded = postcard::to_stdvec(limits).map_or(usize::MAX, |bytes| bytes.len());
    [
        (limits.rss_mark == Some(0), "`max_worker_rss` must be at least 1 byte"),
        (limits.memory == Some(0), "`worker_memory_limit` must be at least 1 byte"),
        (limits.cpu == Some(Duration::ZERO), "`worker_cpu_limit` must not be zero"),
        (limits.open_files.is_some_and(|files| files < 16), "`worker_open_files_limit` must be at least 16"),
        (
            limits.nice.is_some_and(|by| !(-40..=39).contains(&by)),
            "`worker_nice` must be from -40 to 39: nice values are from -20 to 19",
        ),
        (
            encoded > MAX_ENCODED,
            "the paths of the `sandbox` are more than 12 KiB, or one of them is not UTF-8",
        ),
    ]
}
