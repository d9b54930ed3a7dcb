//! A function of the pool as a `tower::Service`.

use super::ProcessPool;
use super::handle::TaskHandle;
use super::submit::{Permit, TaskBuilder};
use crate::task::{Arguments, Fault, Priority, TaskError, TaskRef};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{PollSemaphore, ReusableBoxFuture};
use tower_service::Service;

impl ProcessPool {
    /// A function as a [`tower::Service`], whose requests are its arguments. With the feature `tower`.
    ///
    /// See [`PoolService`].
    ///
    /// [`tower::Service`]: https://docs.rs/tower/latest/tower/trait.Service.html
    #[track_caller]
    pub fn service<F, A, M>(&self, function: F) -> PoolService<A, A::Output>
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        // Only its type is needed, and it has no more than that.
        let _ = function;
        PoolService {
            pool: self.clone(),
            task: TaskRef::single::<F, A, M>(),
            encode: A::into_body,
            terms: Terms::default(),
            room: self.shared().room.clone().map(PollSemaphore::new),
            place: None,
            reserving: None,
            is_reserved: false,
            result: PhantomData,
        }
    }
}

/// A function of a pool as a [`tower::Service`]: made by [`ProcessPool::service`], with the feature `tower`.
///
/// A request is what [`submit`](ProcessPool::submit) takes as arguments: a value, or a tuple of them. The
/// response's future is the task's [`TaskHandle`], so dropping it cancels the task: a `timeout` layer
/// around the service frees the worker.
///
/// **Readiness is room in the queue.** With [`Builder::queue_capacity`](crate::Builder::queue_capacity),
/// [`poll_ready`](PoolService::poll_ready) takes a place in it, in turn with all others who wait for one,
/// and is pending until there is one; [`call`](PoolService::call) uses that place. Without a bound the
/// service is always ready. When the pool is shut down `poll_ready` fails, as [`TaskError::ShutDown`].
///
/// A `call` without a place never panics: it submits the task as `submit` does, and when the queue is
/// full the response's future gives [`TaskError::QueueFull`].
///
/// **Drop what you do not call.** A service that is ready holds its place, and one that is pending its
/// turn, until it is called or dropped. A clone starts with neither; so do not keep for long a clone that
/// was ready and never called, or that a `load_shed` layer has turned away.
///
/// The service holds the pool: this is not dropped before its services are.
///
/// [`tower::Service`]: https://docs.rs/tower/latest/tower/trait.Service.html
///
/// ```
/// use procession::ProcessPool;
/// use tower::{Service, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::builder().queue_capacity(100).build()?;
/// let mut add = pool.service(|a: u64, b: u64| a + b);
/// assert_eq!(add.ready().await?.call((1, 2)).await?, 3);
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[must_use = "a service does nothing until it is called"]
pub struct PoolService<A, T> {
    pool: ProcessPool,
    task: TaskRef,
    encode: fn(A, u64) -> Result<Bytes, Fault>,
    terms: Terms,
    /// Room in the queue, if it is bounded, and the turn among those who wait for it.
    room: Option<PollSemaphore>,
    place: Option<OwnedSemaphorePermit>,
    /// Where the queue is not this pool's: waits for room in it.
    reserving: Option<ReusableBoxFuture<'static, Result<Permit, TaskError>>>,
    /// There was room in it.
    is_reserved: bool,
    result: PhantomData<fn() -> T>,
}

/// How each task of a service is to be run, where that is not as the pool has it.
#[derive(Clone, Default)]
struct Terms {
    timeout: Option<Duration>,
    retries: u32,
    priority: Priority,
    name: Option<String>,
}

/// How each of its tasks is to be run.
impl<A, T> PoolService<A, T> {
    /// How long each task may run, as [`TaskBuilder::timeout`]: counted from when it begins, and without
    /// the time in the queue. A `timeout` layer counts that too.
    pub fn timeout(mut self, limit: Duration) -> PoolService<A, T> {
        self.terms.timeout = Some(limit);
        self
    }

    /// How many times each task may be run again, as [`TaskBuilder::retries`]. Unlike a `retry` layer,
    /// this needs no copy of the request, and a task keeps its place in the queue.
    pub fn retries(mut self, retries: u32) -> PoolService<A, T> {
        self.terms.retries = retries;
        self
    }

    /// Which of the waiting tasks they come before, as [`TaskBuilder::priority`].
    pub fn priority(mut self, priority: Priority) -> PoolService<A, T> {
        self.terms.priority = priority;
        self
    }

    /// A name for each task, as [`TaskBuilder::name`].
    pub fn name(mut self, name: impl Into<String>) -> PoolService<A, T> {
        self.terms.name = Some(name.into());
        self
    }

    fn request(&self, arguments: A) -> TaskBuilder<T> {
        let body = (self.encode)(arguments, self.pool.shared().settings.max_message);
        let mut task = TaskBuilder::new(self.pool.clone(), self.task, body)
            .retries(self.terms.retries)
            .priority(self.terms.priority);
        if let Some(limit) = self.terms.timeout {
            task = task.timeout(limit);
        }
        match &self.terms.name {
            Some(name) => task.name(name),
            None => task,
        }
    }
}

impl<A, T: DeserializeOwned + 'static> Service<A> for PoolService<A, T> {
    type Response = T;
    type Error = TaskError;
    type Future = TaskHandle<T>;

    /// Takes a place in a bounded queue, and is pending while there is none.
    ///
    /// # Errors
    /// [`TaskError::ShutDown`] when the pool is shut down, before or meanwhile.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TaskError>> {
        if self.pool.is_shut_down() {
            (self.place, self.reserving) = (None, None);
            return Poll::Ready(Err(TaskError::ShutDown));
        }
        if let (Some(room), None) = (&mut self.room, &self.place) {
            match ready!(room.poll_acquire(context)) {
                Some(place) => self.place = Some(place),
                None => return Poll::Ready(Err(TaskError::ShutDown)),
            }
        }
        match &self.pool.shared().engine {
            Some(engine) if !self.is_reserved => {
                // Whoever sheds load asks once, and does not wait for a server's word.
                if engine.has_room() {
                    self.reserving = None;
                } else {
                    let reserve = || ReusableBoxFuture::new(Permit::reserve(self.pool.clone()));
                    let reserved = ready!(self.reserving.get_or_insert_with(reserve).poll(context));
                    self.reserving = None;
                    drop(reserved?);
                }
                self.is_reserved = true;
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Submits a task, to the place that [`poll_ready`](PoolService::poll_ready) has taken.
    ///
    /// Whatever goes wrong is what the future gives; without a place, also a full queue.
    fn call(&mut self, arguments: A) -> TaskHandle<T> {
        let place = self.place.take();
        let is_reserved = std::mem::take(&mut self.is_reserved);
        self.request(arguments).with_place(place).reserved(is_reserved).submit()
    }
}

/// A clone is not ready: it has neither a place in the queue nor a turn among those who wait.
impl<A, T> Clone for PoolService<A, T> {
    fn clone(&self) -> PoolService<A, T> {
        PoolService {
            pool: self.pool.clone(),
            task: self.task,
            encode: self.encode,
            terms: self.terms.clone(),
            room: self.room.clone(),
            place: None,
            reserving: None,
            is_reserved: false,
            result: PhantomData,
        }
    }
}

impl<A, T> fmt::Debug for PoolService<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolService")
            .field("task", &format_args!("{}", self.task.label))
            .field("has_place", &(self.place.is_some() || self.is_reserved))
            .finish_non_exhaustive()
    }
}
