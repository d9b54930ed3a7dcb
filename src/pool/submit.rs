//! Ways to submit a task with more to say than `submit` has room for.

use super::ProcessPool;
use super::handle::TaskHandle;
use super::order::{Order, Origin};
use crate::task::{Arguments, Fault, Priority, TaskError, TaskRef, TraceContext};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// The longest name that is kept.
const MAX_NAME: usize = 4096;

pub(super) fn bounded_name(mut name: String) -> String {
    name.truncate(name.floor_char_boundary(MAX_NAME));
    name
}

/// A task that is not submitted yet; see [`ProcessPool::task`].
///
/// [`submit`](TaskBuilder::submit) it, or just `.await` it.
#[must_use = "a task does nothing until it is submitted or awaited"]
pub struct TaskBuilder<T> {
    pool: ProcessPool,
    task: TaskRef,
    body: Result<Bytes, Fault>,
    order: Order,
    result: PhantomData<fn() -> T>,
}

impl<T> TaskBuilder<T> {
    pub(super) fn new(pool: ProcessPool, task: TaskRef, body: Result<Bytes, Fault>) -> TaskBuilder<T> {
        let order = Order { timeout: pool.shared().settings.task_timeout, ..Order::default() };
        TaskBuilder { pool, task, body, order, result: PhantomData }
    }

    /// How long the task may run, counted from when it begins. Then its worker is killed, and it
    /// gives [`TaskError::TimedOut`]; with zero, without having begun.
    pub fn timeout(mut self, limit: Duration) -> TaskBuilder<T> {
        self.order.timeout = Some(limit);
        self
    }

    /// How many times the task may be run again when its worker died or its time ran out.
    ///
    /// Without this a task is run at most once. Only use it for tasks that may be repeated.
    pub fn retries(mut self, retries: u32) -> TaskBuilder<T> {
        self.order.retries = retries;
        self
    }

    /// Which of the waiting tasks it comes before.
    pub fn priority(mut self, priority: Priority) -> TaskBuilder<T> {
        self.order.priority = priority;
        self
    }

    /// A name for it, which it can ask for in the worker, and which errors tell; cut to 4 KiB.
    pub fn name(mut self, name: impl Into<String>) -> TaskBuilder<T> {
        self.order.name = Some(bounded_name(name.into()));
        self
    }

    /// Where it belongs in a distributed trace, rather than where
    /// [`Builder::trace_context`](crate::Builder::trace_context) or the task around says.
    pub fn trace_context(mut self, context: TraceContext) -> TaskBuilder<T> {
        self.order.origin.trace = Some(Box::new(context));
        self
    }

    /// Has it take a place in the queue that was reserved, if there is one.
    pub(super) fn with_place(mut self, place: Option<OwnedSemaphorePermit>) -> TaskBuilder<T> {
        self.order.permit = place;
        self
    }

    /// Whether there has been room in a queue that keeps no places.
    #[cfg(feature = "tower")]
    pub(super) fn reserved(mut self, is_reserved: bool) -> TaskBuilder<T> {
        self.order.is_reserved = is_reserved;
        self
    }

    /// Submits the task, as [`ProcessPool::submit`] does.
    pub fn submit(mut self) -> TaskHandle<T> {
        let given = self.order.origin.trace.take();
        self.order.origin = Origin::here(&self.pool.shared().settings, given);
        let cell = self.pool.shared().submit(self.task, self.body, self.order);
        TaskHandle::new(cell)
    }
}

impl<T: DeserializeOwned + 'static> IntoFuture for TaskBuilder<T> {
    type Output = Result<T, TaskError>;
    type IntoFuture = TaskHandle<T>;

    fn into_future(self) -> TaskHandle<T> {
        self.submit()
    }
}

impl<T> fmt::Debug for TaskBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder")
            .field("task", &format_args!("{}", self.task.label))
            .finish_non_exhaustive()
    }
}

/// A place in the queue of a pool; see [`ProcessPool::reserve`].
#[must_use = "a place in the queue is given up when its permit is dropped"]
pub struct Permit {
    pool: ProcessPool,
    place: Option<OwnedSemaphorePermit>,
}

impl Permit {
    pub(super) async fn reserve(pool: ProcessPool) -> Result<Permit, TaskError> {
        if pool.is_shut_down() {
            return Err(TaskError::ShutDown);
        }
        if let Some(engine) = &pool.shared().engine {
            engine.room().await?;
        }
        let place = match &pool.shared().room {
            None => None,
            Some(room) => Some(room.clone().acquire_owned().await.map_err(|_| TaskError::ShutDown)?),
        };
        Ok(Permit { pool, place })
    }

    pub(super) fn into_place(self) -> Option<OwnedSemaphorePermit> {
        self.place
    }

    /// Submits a task to the place, as [`ProcessPool::submit`] does; the queue is not full.
    #[track_caller]
    pub fn submit<F, A, M>(self, function: F, arguments: A) -> TaskHandle<A::Output>
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        let mut task = self.pool.task(function, arguments).with_place(self.place);
        task.order.is_reserved = true;
        task.submit()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
