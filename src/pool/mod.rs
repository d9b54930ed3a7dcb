//! The parent's side: the pool, its handles, and what drives them.

mod builder;
mod cell;
mod clock;
mod death;
mod engine;
mod handle;
#[cfg(all(test, not(miri)))]
mod hostile;
mod inflow;
mod inquiry;
mod life;
mod links;
mod look_out;
mod map;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "nats")]
pub mod nats;
mod observe;
mod order;
mod outlet;
mod pace;
mod progress;
mod scheduler;
#[cfg(feature = "tower")]
mod service;
mod shared;
mod state;
mod stats;
mod stream;
mod submit;
mod timeline;
mod times;
mod verdict;
#[cfg(any(feature = "log", feature = "tracing"))]
mod voice;
#[cfg(not(any(feature = "log", feature = "tracing")))]
#[path = "no_voice.rs"]
mod voice;
mod watchers;

pub use builder::{Builder, StartMethod};
pub use handle::{Canceller, TaskHandle, TaskStatus};
#[cfg(any(test, feature = "internals"))]
pub(crate) use inflow::StreamItems;
pub use map::Map;
#[cfg(any(test, feature = "internals"))]
pub(crate) use map::results_of_parts;
pub use progress::ProgressWatch;
#[cfg(feature = "internals")]
pub(crate) use scheduler::cycle as scheduler_cycle;
#[cfg(feature = "tower")]
pub use service::PoolService;
pub use stats::{PoolStats, WorkerInfo, WorkerState};
pub use stream::TaskStream;
pub use submit::{Permit, TaskBuilder};
pub use times::Distribution;

use crate::task::{Arguments, PoolError, StreamArguments, TaskError, TaskRef};
use shared::Shared;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A pool of worker processes that run functions of this program.
///
/// It is a handle: cloning it is cheap, and all clones are the same pool. When the last one is
/// dropped, the pool finishes the tasks that it has accepted and ends its workers, as
/// [`shutdown`](ProcessPool::shutdown) does but with nobody waiting. It lives on a tokio runtime;
/// when that is dropped, the workers are killed and every unfinished task resolves as
/// [`TaskError::ShutDown`].
///
/// # When to prefer something else
/// For code that you trust not to crash, hang or leak, threads are simpler and share memory:
/// [`tokio::task::spawn_blocking`] for single calls, `rayon` for data-parallel work. To run other
/// programs, `tokio::process` is made for it.
#[derive(Clone)]
pub struct ProcessPool(Arc<Last>);

/// What all handles of a pool share; dropped with the last one.
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.drain(None);
    }
}

/// Making a pool.
impl ProcessPool {
    /// A pool with the default settings: one worker for each processor, started on demand.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<ProcessPool, PoolError> {
        Builder::default().build()
    }

    /// Settings, to build a pool with.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn of(shared: Arc<Shared>) -> ProcessPool {
        ProcessPool(Arc::new(Last(shared)))
    }

    /// Starts as many workers as there may be, and waits until they are ready.
    ///
    /// They end again after [`Builder::idle_timeout`] with nothing to do.
    ///
    /// # Errors
    /// The first cause, when workers cannot be started; [`PoolError::ShutDown`] when the pool is
    /// shut down before they are ready.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the workers to start.
    pub async fn warm_up(&self) -> Result<(), PoolError> {
        self.shared().warm_up().await.unwrap_or(Err(PoolError::ShutDown))
    }
}

/// Submitting tasks.
impl ProcessPool {
    /// Submits a task: `function`, to be called with `arguments` in a worker.
    ///
    /// The task is queued at once, whether or not the handle is awaited. This never blocks, and can
    /// be called from any thread, also outside the runtime. See [`Arguments`] for the shapes that
    /// functions may have.
    ///
    /// # Errors
    /// Whatever goes wrong is what the handle gives when it is awaited: also a full queue
    /// ([`TaskError::QueueFull`]), arguments that will not encode ([`TaskError::Codec`],
    /// [`TaskError::TooLarge`]), and a pool that is shut down ([`TaskError::ShutDown`]).
    #[track_caller]
    pub fn submit<F, A, M>(&self, function: F, arguments: A) -> TaskHandle<A::Output>
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        self.task(function, arguments).submit()
    }

    /// The same, with a chance to say how the task is to be run before it is submitted.
    ///
    /// ```
    /// use procession::{Priority, ProcessPool};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::new()?;
    /// let sum = pool
    ///     .task(|a: u32, b: u32| a + b, (1, 2))
    ///     .timeout(Duration::from_secs(10))
    ///     .retries(2)
    ///     .priority(Priority::High)
    ///     .name("sum")
    ///     .await?;
    /// assert_eq!(sum, 3);
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn task<F, A, M>(&self, function: F, arguments: A) -> TaskBuilder<A::Output>
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        // Only its type is needed, and it has no more than that.
        let _ = function;
        let body = arguments.into_body(self.shared().settings.max_message);
        TaskBuilder::new(self.clone(), TaskRef::single::<F, A, M>(), body)
    }

    /// Calls `function` with each item of an iterator, and yields the results as a stream.
    ///
    /// The iterator is pulled as results are taken; nothing happens before the stream is polled.
    /// See [`Map`].
    #[track_caller]
    pub fn map<F, I, M>(
        &self,
        function: F,
        items: I,
    ) -> Map<I::IntoIter, <I::Item as Arguments<F, M>>::Output>
    where
        F: Copy + Send + Sync + 'static,
        I: IntoIterator,
        I::Item: Arguments<F, M>,
    {
        let _ = function;
        Map::new::<F, M>(self.clone(), TaskRef::chunk::<F, I::Item, M>(), items.into_iter())
    }

    /// Calls `function` once in a worker, and yields the values that it produces, one by one.
    ///
    /// The function returns an iterator, which is evaluated in the worker, a [`futures::Stream`], or what
    /// [`worker::emit`](crate::worker::emit) makes for code that calls back; see
    /// [`Yields`](crate::Yields). The worker is held back when the consumer is behind. Nothing happens
    /// before the stream is polled. See [`TaskStream`].
    ///
    /// ```
    /// use futures::TryStreamExt;
    /// use procession::ProcessPool;
    ///
    /// fn primes(below: u32) -> impl Iterator<Item = u32> {
    ///     (2..below).filter(|n| (2..*n).all(|divisor| n % divisor != 0))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::new()?;
    /// let mut primes = pool.stream(primes, 1_000_000);
    /// let mut sum = 0;
    /// while let Some(prime) = primes.try_next().await? {
    ///     sum += prime;
    ///     if sum > 100 {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(sum, 129);
    /// drop(primes); // the worker stops, and is ready for other tasks
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream<F, A, M>(&self, function: F, arguments: A) -> TaskStream<A::Item>
    where
        F: Copy + Send + Sync + 'static,
        A: StreamArguments<F, M>,
    {
        let _ = function;
        let body = arguments.encode_for_stream(self.shared().settings.max_message);
        TaskStream::new(self.clone(), TaskRef::stream::<F, A, M>(), body)
    }

    /// Waits for room in a bounded queue.
    ///
    /// With [`Builder::queue_capacity`], at most so many tasks may wait. The permit holds a place
    /// among them until a task is submitted with it or it is dropped. Without a bound there is
    /// always room.
    ///
    /// # Errors
    /// [`TaskError::ShutDown`] when the pool is shut down, before or meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the line of those who wait.
    pub async fn reserve(&self) -> Result<Permit, TaskError> {
        Permit::reserve(self.clone()).await
    }
}

/// Looking at a pool.
impl ProcessPool {
    /// Counters and gauges, all of one moment.
    pub fn stats(&self) -> PoolStats {
        self.shared().stats()
    }

    /// The workers that there are.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.shared().workers()
    }

    /// Whether the pool accepts no more tasks: from the moment that it is told to shut down.
    pub fn is_shut_down(&self) -> bool {
        self.shared().is_shut_down()
    }
}

/// Ending a pool. All of these may be called any number of times, and at the same time, on any
/// executor; each returns when nothing is left of the pool: no worker, no fork server.
impl ProcessPool {
    /// Refuses new tasks, finishes every accepted one, and ends all workers.
    ///
    /// It waits for as long as the tasks take; of a [`TaskStream`], for as long as its consumer goes on
    /// taking.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn shutdown(&self) {
        self.shared().drain(None);
        self.shared().runtime.spawn(stream::end_neglected(self.shared().clone()));
        self.shared().terminated.cancelled().await;
    }

    /// The same, but after the given time what is left is ended as by
    /// [`shutdown_now`](ProcessPool::shutdown_now).
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown, nor does it put off the time.
    pub async fn shutdown_timeout(&self, limit: Duration) {
        self.shared().drain(Some(limit));
        self.shared().terminated.cancelled().await;
    }

    /// Refuses new tasks, resolves every unfinished one as [`TaskError::ShutDown`], and kills all
    /// workers.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn shutdown_now(&self) {
        self.shared().stop();
        self.shared().terminated.cancelled().await;
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("ProcessPool")
            .field("workers", &stats.workers())
            .field("queued", &stats.queued())
            .field("running", &stats.running())
            .field("is_shut_down", &self.is_shut_down())
            .finish()
    }
}
