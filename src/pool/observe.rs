//! What there is to be seen of tasks and workers as they come and go, for whoever watches a pool.
//!
//! Events are noted under the lock of the pool's state, only if somebody watches, and passed on
//! outside of it, before the tasks that they are about are resolved. What one thread notes is passed on
//! in the order in which it happened; what two note at the same time, in either.

use super::cell::{Cell, Outcome};
use super::scheduler::{Departure, Loads, Nanos};
use crate::task::{ExitCause, Fault, PoolError, TaskError, WorkerExit};
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use std::time::Instant;

/// Somebody who watches a pool.
///
/// Called on whatever thread something happens, so it must not block.
pub(super) trait Observe: Send + Sync {
    fn see(&self, event: &Event);

    /// How many tasks and workers there are has changed.
    ///
    /// Different threads may call this at the same time, and not in order.
    fn measure(&self, _levels: &Levels) {}

    /// Nothing will happen any more, but that tasks are refused. May be called more than once; the
    /// future, which need not be polled, is ready when nothing is left to be done.
    fn end(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

/// How many tasks and workers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Levels {
    /// Those with a higher number are later.
    pub(super) number: u64,
    pub(super) at: Nanos,
    pub(super) loads: Loads,
}

#[cfg(feature = "metrics")]
impl Levels {
    /// Goes on to later ones, and tells what there was before; `None` if these are later already.
    pub(super) fn advance(&mut self, levels: &Levels) -> Option<Loads> {
        (levels.number > self.number).then(|| std::mem::replace(self, *levels).loads)
    }
}

/// Something that has happened.
pub(super) enum Event {
    /// A task was submitted and not accepted.
    Refused { task: Arc<Cell>, ending: Ending },
    /// An attempt at a task is over, or the task was resolved before there was one.
    Attempt(Attempt),
    /// A worker is ready for tasks.
    WorkerReady {
        pid: u32,
        /// When it was a process.
        started: Instant,
        /// When its start began.
        wanted: Nanos,
        /// It takes the place of one that has died.
        is_restart: bool,
        at: Nanos,
    },
    /// A worker could not be started.
    StartFailed { cause: PoolError, at: Nanos },
    /// A worker that was ready has ended.
    WorkerGone {
        exit: WorkerExit,
        /// It did so unasked, or had to be killed.
        has_died: bool,
        cause: Cause,
        at: Nanos,
    },
}

/// What has become of one attempt at a task.
pub(super) struct Attempt {
    pub(super) task: Arc<Cell>,
    /// Which attempt it was, from 1; 0 if there was none.
    pub(super) number: u32,
    pub(super) ending: Ending,
    /// Whether there is to be another one.
    pub(super) is_retried: bool,
    /// The worker that had begun it.
    pub(super) pid: Option<u32>,
    /// When the worker says that it began.
    pub(super) began: Option<Nanos>,
    pub(super) ended: Nanos,
    pub(super) bytes_in: usize,
    pub(super) bytes_out: usize,
}

/// Why a worker that was ready has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// What the pool did with it.
    Pool(Departure),
    /// How its process ended, unasked.
    Exit(ExitCause),
}

impl Cause {
    pub(super) fn of(departure: Departure, exit: &WorkerExit) -> Cause {
        match departure {
            Departure::Died => Cause::Exit(exit.cause()),
            asked => Cause::Pool(asked),
        }
    }

    /// As labels and traces tell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::Pool(Departure::Retired) => "retired",
            Cause::Pool(Departure::Recycled) => "recycled",
            Cause::Pool(Departure::ShutDown) => "shut_down",
            Cause::Pool(Departure::TimedOut) => "timed_out",
            Cause::Pool(Departure::Cancelled) => "cancelled",
            Cause::Exit(ExitCause::Exited) => "exited",
            Cause::Exit(ExitCause::Signalled) => "signalled",
            Cause::Exit(ExitCause::OutOfMemory) => "out_of_memory",
            Cause::Exit(ExitCause::CpuTime) => "cpu_time",
            Cause::Exit(ExitCause::StackOverflow) => "stack_overflow",
            Cause::Exit(ExitCause::ProtocolViolation) => "protocol_violation",
            Cause::Exit(ExitCause::Unresponsive) => "unresponsive",
            Cause::Exit(ExitCause::NodeLost) => "node_lost",
            Cause::Pool(Departure::Died) | Cause::Exit(ExitCause::Unknown) => "unknown",
        }
    }
}

/// How an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    Succeeded,
    Panicked,
    Failed,
    WorkerDied,
    TimedOut,
    Cancelled,
    Codec,
    TooLarge,
    QueueFull,
    ShutDown,
    NotInMainImage,
    NodeLost,
    PoolBroken,
}

impl Ending {
    pub(super) fn of(outcome: &Outcome) -> Ending {
        match outcome {
            Outcome::Value(_) => Ending::Succeeded,
            Outcome::Fault(fault) => match **fault {
                Fault::Panicked(_) => Ending::Panicked,
                Fault::Failed(_) => Ending::Failed,
                Fault::Codec(_) => Ending::Codec,
                Fault::TooLarge { .. } => Ending::TooLarge,
                Fault::Cancelled => Ending::Cancelled,
            },
            Outcome::Error(error) => match **error {
                TaskError::Panicked(_) => Ending::Panicked,
                TaskError::Failed(_) => Ending::Failed,
                TaskError::WorkerDied(_) => Ending::WorkerDied,
                TaskError::TimedOut { .. } => Ending::TimedOut,
                TaskError::Cancelled => Ending::Cancelled,
                TaskError::Codec(_) => Ending::Codec,
                TaskError::TooLarge { .. } => Ending::TooLarge,
                TaskError::QueueFull { .. } => Ending::QueueFull,
                TaskError::ShutDown => Ending::ShutDown,
                TaskError::NotInMainImage { .. } => Ending::NotInMainImage,
                TaskError::NodeLost => Ending::NodeLost,
                TaskError::PoolBroken(_) => Ending::PoolBroken,
            },
        }
    }

    /// As labels and traces tell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Ending::Succeeded => "succeeded",
            Ending::Panicked => "panicked",
            Ending::Failed => "failed",
            Ending::WorkerDied => "worker_died",
            Ending::TimedOut => "timed_out",
            Ending::Cancelled => "cancelled",
            Ending::Codec => "codec",
            Ending::TooLarge => "too_large",
            Ending::QueueFull => "queue_full",
            Ending::ShutDown => "shut_down",
            Ending::NotInMainImage => "not_in_main_image",
            Ending::NodeLost => "node_lost",
            Ending::PoolBroken => "pool_broken",
        }
    }
}
