//! What `submit` gives back.

use super::cell::{Cell, Outcome};
use super::progress::ProgressWatch;
use super::stream::Remote;
use crate::task::{CodecStage, TaskError, TaskId, TimeoutReport, from_body};
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A submitted task: a future of its result.
///
/// It may be awaited on any executor and from any thread, not only on the pool's runtime.
///
/// **Dropping it cancels the task**: one that waits is never begun; one that runs is told, and its
/// worker is killed and replaced if it goes on for longer than
/// [`Builder::cancel_grace`](crate::Builder::cancel_grace). To let a task run on with nobody
/// waiting for it, [`detach`](TaskHandle::detach) its handle.
///
/// # Errors
/// Awaiting gives a [`TaskError`] when the task has no value. A value that will not decode as `T`
/// is a [`TaskError::Codec`].
///
/// # Panics
/// When it is polled again after it has completed.
///
/// # Cancel safety
/// Awaiting `&mut handle` is cancel safe: nothing is lost when that is dropped. Awaiting the handle
/// itself, in a `select!` or a `timeout`, cancels the task when that is dropped.
#[must_use = "dropping a handle cancels its task; await it, or `detach` it"]
pub struct TaskHandle<T> {
    cell: Arc<Cell>,
    is_detached: bool,
    result: PhantomData<fn() -> T>,
}

impl<T> TaskHandle<T> {
    pub(super) fn new(cell: Arc<Cell>) -> TaskHandle<T> {
        TaskHandle { cell, is_detached: false, result: PhantomData }
    }

    /// Lets the task run with nobody waiting for its result.
    pub fn detach(mut self) {
        self.is_detached = true;
    }

    /// Cancels the task, unless it has a result already.
    ///
    /// The handle then gives [`TaskError::Cancelled`] at once; what becomes of a running task is
    /// as when its handle is dropped.
    pub fn cancel(&self) {
        self.cell.shared.cancel(&self.cell);
    }

    /// Something by which others can cancel the task.
    pub fn canceller(&self) -> Canceller {
        Canceller(Target::Task(self.cell.clone()))
    }

    /// The task's number in its pool.
    pub fn id(&self) -> TaskId {
        self.cell.id()
    }

    /// How far the task has got.
    pub fn status(&self) -> TaskStatus {
        if self.cell.is_resolved() {
            return if self.cell.is_cancelled() { TaskStatus::Cancelled } else { TaskStatus::Finished };
        }
        match self.cell.shared.whereabouts(&self.cell) {
            Some((_, true)) => TaskStatus::Running,
            _ if self.cell.is_resolved() => self.status(),
            _ => TaskStatus::Queued,
        }
    }

    /// Whether awaiting the handle would not have to wait.
    pub fn is_finished(&self) -> bool {
        self.cell.is_resolved()
    }

    /// The process that runs the task; `None` before it has begun and after it has ended.
    pub fn worker_pid(&self) -> Option<u32> {
        let (pid, _) = self.cell.shared.whereabouts(&self.cell).filter(|(_, has_begun)| *has_begun)?;
        Some(pid)
    }

    /// Where the task was when its time ran out, once its handle has given
    /// [`TaskError::TimedOut`], if the pool was asked to find out:
    /// [`Builder::timeout_reports`](crate::Builder::timeout_reports).
    pub fn timeout_report(&self) -> Option<TimeoutReport> {
        self.cell.timeout_report().cloned()
    }

    /// Watches how far the task has got, as that itself tells with
    /// [`TaskContext::report`](crate::worker::TaskContext::report).
    pub fn progress(&self) -> ProgressWatch {
        self.cell.progress()
    }

    pub(super) fn poll_outcome(&self, context: &mut Context<'_>) -> Poll<Outcome> {
        self.cell.poll(context)
    }

    pub(super) fn cell(&self) -> &Cell {
        &self.cell
    }
}

impl<T: DeserializeOwned + 'static> Future for TaskHandle<T> {
    type Output = Result<T, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_outcome(context).map(|outcome| {
            let bytes = outcome.into_result()?;
            Ok(from_body(bytes, CodecStage::DecodeResult)?)
        })
    }
}

impl<T> Drop for TaskHandle<T> {
    fn drop(&mut self) {
        if !self.is_detached {
            self.cancel();
        }
    }
}

impl<T> fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.id().get())
            .field("task", &format_args!("{}", self.cell.label))
            .field("status", &self.status())
            .finish()
    }
}

/// Cancels a task, from anywhere. Cloning it is cheap.
#[derive(Clone)]
pub struct Canceller(Target);

#[derive(Clone)]
enum Target {
    Task(Arc<Cell>),
    Stream(Arc<Remote>),
}

impl Canceller {
    pub(super) fn of_stream(remote: Arc<Remote>) -> Canceller {
        Canceller(Target::Stream(remote))
    }

    /// Cancels the task, as [`TaskHandle::cancel`] does.
    pub fn cancel(&self) {
        match &self.0 {
            Target::Task(cell) => cell.shared.cancel(cell),
            Target::Stream(remote) => remote.cancel(),
        }
    }

    /// The task's number in its pool.
    pub fn id(&self) -> TaskId {
        match &self.0 {
            Target::Task(cell) => cell.id(),
            Target::Stream(remote) => TaskId(remote.id),
        }
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").field("id", &self.id().get()).finish()
    }
}

/// How far a task has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskStatus {
    /// It waits; no worker has begun it.
    Queued,
    /// A worker has begun it.
    Running,
    /// It has a result, or an error other than having been cancelled.
    Finished,
    /// It was cancelled before it had a result.
    Cancelled,
}
