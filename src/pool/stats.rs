//! Looking at a pool.

use super::links::ReadyLink;
use super::scheduler::{Counts, WorkerPhase, WorkerView};
use super::times::Distribution;
use crate::sys::resident_bytes;
use crate::task::TaskId;
use std::time::Instant;

/// Counters and gauges of a pool, all of one moment.
#[derive(Clone, Debug)]
pub struct PoolStats {
    counts: Counts,
    queue_time: Distribution,
    run_time: Distribution,
}

/// Counted from the pool's start.
impl PoolStats {
    pub(super) fn new(counts: Counts, queue_time: Distribution, run_time: Distribution) -> PoolStats {
        PoolStats { counts, queue_time, run_time }
    }

    /// Tasks that were accepted. A task that is refused (queue full, shut down) does not count.
    pub fn submitted(&self) -> u64 {
        self.counts.submitted
    }

    /// Tasks that had a value. Chunks of a [`Map`](crate::Map) count as one task.
    pub fn succeeded(&self) -> u64 {
        self.counts.succeeded
    }

    /// Tasks that had an error other than having been cancelled or timed out.
    pub fn failed(&self) -> u64 {
        self.counts.failed
    }

    /// Tasks that were cancelled.
    pub fn cancelled(&self) -> u64 {
        self.counts.cancelled
    }

    /// Tasks that ran out of time.
    pub fn timed_out(&self) -> u64 {
        self.counts.timed_out
    }

    /// Attempts after the first.
    pub fn retried(&self) -> u64 {
        self.counts.retried
    }

    /// Workers that got ready.
    pub fn workers_started(&self) -> u64 {
        self.counts.workers_started
    }

    /// Workers that died or had to be killed. Those that were idle for long, were recycled or
    /// ended with the pool do not count.
    pub fn workers_died(&self) -> u64 {
        self.counts.workers_died
    }

    /// Workers that were replaced for their number of tasks, their memory or their processor time.
    pub fn workers_recycled(&self) -> u64 {
        self.counts.workers_recycled
    }
}

/// How long tasks take. Those that no worker began, such as one that was cancelled in the queue, are
/// not in it; nor are attempts that were followed by another.
impl PoolStats {
    /// From when a task was submitted until a worker began it.
    pub fn queue_time(&self) -> &Distribution {
        &self.queue_time
    }

    /// From when a worker began a task until it was done, by the worker's clock, or until the worker
    /// was found dead.
    pub fn run_time(&self) -> &Distribution {
        &self.run_time
    }
}

/// As they are now.
impl PoolStats {
    /// Accepted tasks that wait: for a worker, or, for a moment, for their answer to be read.
    pub fn queued(&self) -> usize {
        self.counts.queued
    }

    /// Tasks that a worker has begun.
    pub fn running(&self) -> usize {
        self.counts.running
    }

    /// Worker processes, in whatever state.
    pub fn workers(&self) -> usize {
        self.counts.workers
    }

    /// Workers with nothing to do.
    pub fn idle_workers(&self) -> usize {
        self.counts.idle
    }

    /// Workers that are not ready yet.
    pub fn starting_workers(&self) -> usize {
        self.counts.starting
    }
}

/// What a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It is being started, or runs its initializer.
    Starting,
    /// It waits for a task.
    Idle,
    /// It runs a task.
    Busy,
    /// It gets no more tasks: it finishes those that it has and ends.
    Retiring,
}

/// A worker as it was at one moment.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    pid: u32,
    state: WorkerState,
    tasks_done: u64,
    current_task: Option<TaskId>,
    started: Instant,
    rss: u64,
    stdout_tail: String,
    stderr_tail: String,
}

impl WorkerInfo {
    pub(super) fn new(view: &WorkerView, has_begun: bool, link: Option<&ReadyLink>) -> WorkerInfo {
        WorkerInfo {
            pid: link.map_or(0, |link| link.pid),
            state: match view.phase {
                WorkerPhase::Starting => WorkerState::Starting,
                WorkerPhase::Idle => WorkerState::Idle,
                WorkerPhase::Busy => WorkerState::Busy,
                WorkerPhase::Retiring => WorkerState::Retiring,
            },
            tasks_done: view.tasks_done,
            current_task: view.first_task.filter(|_| has_begun).map(|task| TaskId(task.id)),
            started: link.map_or_else(Instant::now, |link| link.started),
            rss: link.filter(|link| link.far.is_none()).map_or(0, |link| resident_bytes(link.pid)),
            stdout_tail: link.map(|link| link.stdout.text()).unwrap_or_default(),
            stderr_tail: link.map(|link| link.stderr.text()).unwrap_or_default(),
        }
    }

    /// A worker of another machine, as that tells of it.
    #[cfg(feature = "nats")]
    pub(super) fn elsewhere(
        pid: u32,
        state: WorkerState,
        tasks_done: u64,
        current_task: Option<TaskId>,
        started: Instant,
        rss: u64,
    ) -> WorkerInfo {
        let (stdout_tail, stderr_tail) = Default::default();
        WorkerInfo { pid, state, tasks_done, current_task, started, rss, stdout_tail, stderr_tail }
    }

    /// Its process id; 0 while it is starting.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it is about.
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// How many tasks it has run.
    pub fn tasks_done(&self) -> u64 {
        self.tasks_done
    }

    /// The task that it has begun and not finished.
    pub fn current_task(&self) -> Option<TaskId> {
        self.current_task
    }

    /// When its process was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its resident memory in bytes; 0 while it is starting, and of a worker on another machine.
    pub fn rss(&self) -> u64 {
        self.rss
    }

    /// The last that it wrote to standard output, if that is
    /// [`WorkerStdio::Capture`](crate::WorkerStdio::Capture); at most 8 KiB.
    pub fn stdout_tail(&self) -> &str {
        &self.stdout_tail
    }

    /// The last that it wrote to standard error; at most 8 KiB. Empty when that is
    /// [`WorkerStdio::Null`](crate::WorkerStdio::Null).
    pub fn stderr_tail(&self) -> &str {
        &self.stderr_tail
    }
}
