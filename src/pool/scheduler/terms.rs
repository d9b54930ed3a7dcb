//! What the scheduler and its driver say to each other.

use crate::task::{PoolError, Priority};

/// Nanoseconds of a monotonic clock.
pub(in crate::pool) type Nanos = u64;

/// A worker, by its place in the scheduler.
pub(in crate::pool) type WorkerKey = usize;

/// An accepted task: its place in the scheduler, and its number, which no other task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) struct TaskKey {
    pub(in crate::pool) place: u32,
    pub(in crate::pool) id: u64,
}

/// What is known of tasks that were sent.
pub(in crate::pool) trait Ledger {
    /// A task is about to be sent.
    fn offer(&self, worker: WorkerKey, seq: u64);
    /// Takes a task back, unless it has begun: true if it never will.
    fn take_back(&self, worker: WorkerKey, seq: u64) -> bool;
    /// Whether a task is done, and its answer on the way.
    fn is_finished(&self, worker: WorkerKey, seq: u64) -> bool;
    /// How much the worker has been sent, ever: something that changes while it is.
    fn written(&self, worker: WorkerKey) -> u64;
    /// When a task began, if it has.
    fn began_at(&self, worker: WorkerKey, seq: u64) -> Option<Nanos>;
}

/// How a pool is to behave.
#[derive(Clone, Debug)]
pub(in crate::pool) struct Config {
    pub(in crate::pool) max_workers: usize,
    pub(in crate::pool) min_workers: usize,
    pub(in crate::pool) idle_timeout: Nanos,
    pub(in crate::pool) cancel_grace: Nanos,
    pub(in crate::pool) max_tasks_per_worker: u64,
    /// Replace workers that are worn as soon as they are, not by and by.
    pub(in crate::pool) recycles_at_once: bool,
    /// How long a worker whose task's time ran out may take to be dead, before the task is given up.
    pub(in crate::pool) death_limit: Nanos,
}

/// How a task is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pool) struct Terms {
    pub(in crate::pool) priority: Priority,
    pub(in crate::pool) timeout: Option<Nanos>,
    pub(in crate::pool) retries: u32,
    /// The size of its arguments.
    pub(in crate::pool) bytes: u32,
    /// How many items it has, each with a time of its own; 0 if it is none of many.
    pub(in crate::pool) items: u32,
}

/// What a task comes to that no worker has answered.
#[derive(Clone, Debug)]
pub(in crate::pool) enum Verdict {
    Cancelled,
    TimedOut(Nanos),
    /// Its worker died, of what is known to whoever reported it.
    Died,
    ShutDown,
    Broken(PoolError),
}

/// Something for the driver to do, in this order.
#[derive(Debug)]
pub(in crate::pool) enum Action<T> {
    Start(WorkerKey),
    Send {
        worker: WorkerKey,
        seq: u64,
        task: TaskKey,
    },
    Cancel {
        worker: WorkerKey,
        seq: u64,
    },
    /// Ask a worker without a page to leave a task that it has not begun.
    Recall {
        worker: WorkerKey,
        seq: u64,
    },
    Kill {
        worker: WorkerKey,
        why: Kill,
    },
    /// This worker has been killed for its time and is not dead; its task is resolved next.
    GivenUp(WorkerKey),
    /// End its stream of requests, so that it ends by itself.
    Close(WorkerKey),
    Resolve {
        job: T,
        verdict: Verdict,
        /// The worker that it was sent to, and under which number.
        at: Option<(WorkerKey, u64)>,
        attempts: u32,
    },
    /// An attempt has failed, which is to be tried again.
    Retry {
        task: TaskKey,
        verdict: Verdict,
        at: (WorkerKey, u64),
    },
    /// All workers that [`Scheduler::warm_up`] asked for are ready, or never will be.
    WarmedUp(Result<(), PoolError>),
    /// Nothing is left to be done.
    Terminated,
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Kill {
    /// It is not wanted any more.
    Unwanted,
    /// It has not reacted.
    Unresponsive,
    /// Its task's time has run out.
    TimedOut,
}

/// What a worker has answered.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pool) struct Answer {
    /// The task has a value.
    pub(in crate::pool) is_value: bool,
    /// The worker should be replaced.
    pub(in crate::pool) is_worn: bool,
    /// The worker will end by itself.
    pub(in crate::pool) dying: bool,
    /// The task had been taken back, and was not run.
    pub(in crate::pool) skipped: bool,
    /// For how long it ran, as the worker says.
    pub(in crate::pool) ran: Nanos,
}

/// A worker has said what none should.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pool) struct Violation;

/// Numbers for statistics. All but the last group count up from the pool's start.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pool) struct Counts {
    pub(in crate::pool) submitted: u64,
    pub(in crate::pool) succeeded: u64,
    pub(in crate::pool) failed: u64,
    pub(in crate::pool) cancelled: u64,
    pub(in crate::pool) timed_out: u64,
    pub(in crate::pool) retried: u64,
    pub(in crate::pool) workers_started: u64,
    pub(in crate::pool) workers_died: u64,
    pub(in crate::pool) workers_recycled: u64,

    pub(in crate::pool) queued: usize,
    pub(in crate::pool) running: usize,
    pub(in crate::pool) starting: usize,
    pub(in crate::pool) idle: usize,
    pub(in crate::pool) workers: usize,
}

/// How many tasks and workers there are, as far as that is known without asking any worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct Loads {
    /// Accepted tasks that no worker has in hand.
    pub(in crate::pool) queued: usize,
    /// Accepted tasks that a worker has in hand.
    pub(in crate::pool) running: usize,
    pub(in crate::pool) starting: usize,
    pub(in crate::pool) idle: usize,
    pub(in crate::pool) busy: usize,
    pub(in crate::pool) retiring: usize,
}

/// On what account a worker that was ready is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Departure {
    /// It had been idle for long.
    Retired,
    /// It had done its share of tasks, or had used up its share of memory or time.
    Recycled,
    /// It ended with the pool.
    ShutDown,
    /// It was killed for its task's time.
    TimedOut,
    /// It was killed since its task was cancelled, and went on.
    Cancelled,
    /// It ended unasked, or was killed for what it did.
    Died,
}

impl Departure {
    /// Whether it counts as a death, rather than as the end of a life.
    pub(in crate::pool) fn is_death(self) -> bool {
        matches!(self, Departure::TimedOut | Departure::Cancelled | Departure::Died)
    }
}

/// What a worker does, as its pool sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum WorkerPhase {
    Starting,
    Idle,
    Busy,
    Retiring,
}

/// A worker as it is now.
#[derive(Clone, Copy, Debug)]
pub(in crate::pool) struct WorkerView {
    pub(in crate::pool) phase: WorkerPhase,
    pub(in crate::pool) tasks_done: u64,
    /// The number under which it was sent the first task that it has not answered.
    pub(in crate::pool) first: Option<u64>,
    /// That task, while it is open.
    pub(in crate::pool) first_task: Option<TaskKey>,
}
