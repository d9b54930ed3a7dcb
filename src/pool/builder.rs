//! Settings of a pool.

mod build;
mod limits;
mod voice;
mod watch;

use super::voice::Forwarding;
#[cfg(feature = "remote")]
use crate::process::Launcher;
use crate::process::{Limits, Start, WorkerStdio};
use crate::task::{Arguments, PoolError, TaskError, TaskRef, TraceContext};
use bytes::Bytes;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Handle;

/// The most bytes of a message: its length travels in 32 bits, with some room for its head.
const MAX_MESSAGE: u64 = u32::MAX as u64 - (64 << 20);

/// How workers are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// Workers are forked by a small process of the program that is started once, with the first
    /// worker. It is quick (well under a millisecond), whatever the size of your program, and what
    /// [`Builder::preload`] has made is shared among the workers.
    #[default]
    ForkServer,
    /// Each worker is executed anew: slower (some milliseconds), with nothing shared.
    Spawn,
}

/// The settings of a [`ProcessPool`](crate::ProcessPool).
///
/// ```
/// use procession::ProcessPool;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::builder()
///     .workers(4)
///     .task_timeout(Duration::from_secs(30))
///     .worker_memory_limit(1 << 30)
///     .queue_capacity(1_000)
///     .build()?;
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder {
    workers: usize,
    min_workers: usize,
    idle_timeout: Duration,
    start_method: StartMethod,
    start_timeout: Duration,
    initializer: Option<Function>,
    preload: Option<Function>,
    max_tasks_per_worker: u64,
    limits: Limits,
    queue_capacity: Option<usize>,
    task_timeout: Option<Duration>,
    timeout_reports: bool,
    cancel_grace: Duration,
    look_out: Option<Duration>,
    max_message_size: u64,
    start: Start,
    #[cfg(feature = "remote")]
    launcher: Launcher,
    runtime: Option<Handle>,
    name: String,
    timeline: Option<PathBuf>,
    forwarding: Forwarding,
    trace_context: Option<fn() -> Option<TraceContext>>,
    #[cfg(feature = "nats")]
    pub(super) queue: Option<super::nats::Queue>,
}

/// A function to be called in another process, or why it cannot be.
type Function = Result<(u64, Bytes), PoolError>;

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            min_workers: 0,
            idle_timeout: Duration::from_secs(60),
            start_method: StartMethod::default(),
            start_timeout: Duration::from_secs(300),
            initializer: None,
            preload: None,
            max_tasks_per_worker: u64::MAX,
            limits: Limits::default(),
            queue_capacity: None,
            task_timeout: None,
            timeout_reports: false,
            cancel_grace: Duration::from_millis(250),
            look_out: None,
            max_message_size: 256 << 20,
            start: Start::default(),
            #[cfg(feature = "remote")]
            launcher: Launcher::local(),
            runtime: None,
            name: "default".into(),
            timeline: None,
            forwarding: Forwarding::default(),
            trace_context: None,
            #[cfg(feature = "nats")]
            queue: None,
        }
    }
}

/// Workers.
impl Builder {
    /// The most workers, at least 1. By default as many as there are processors for this program.
    ///
    /// They are started on demand: another one only when a task waits and none is idle. While one
    /// is being replaced there may be one more.
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = workers;
        self
    }

    /// How many workers are started at once and kept alive; 0 by default.
    pub fn min_workers(mut self, workers: usize) -> Builder {
        self.min_workers = workers;
        self
    }

    /// After how much time with nothing to do a worker ends, if there are more than
    /// [`min_workers`](Builder::min_workers); a minute by default.
    pub fn idle_timeout(mut self, timeout: Duration) -> Builder {
        self.idle_timeout = timeout;
        self
    }

    /// How workers are started.
    pub fn start_method(mut self, method: StartMethod) -> Builder {
        self.start_method = method;
        self
    }

    /// Where workers are placed, and how they are started there; by default on this machine.
    ///
    /// With any but [`Launcher::local`] the start method is of no account, a worker that waits for its
    /// place counts as starting ([`start_timeout`](Builder::start_timeout)), and
    /// [`timeout_reports`](Builder::timeout_reports) are not to be had. What
    /// [`preload`](Builder::preload) says runs once for each worker. The environment, the directory and the
    /// paths of a [`sandbox`](Builder::sandbox) are those of the worker's machine; whether it can
    /// have its limits shows when it starts.
    #[cfg(feature = "remote")]
    pub fn launcher(mut self, launcher: Launcher) -> Builder {
        self.launcher = launcher;
        self
    }

    /// How long a started worker may take until it is ready, its initializer included; five
    /// minutes by default. One that takes longer is killed and counts as a failed start.
    pub fn start_timeout(mut self, timeout: Duration) -> Builder {
        self.start_timeout = timeout;
        self
    }

    /// A function to be run in each worker before its first task, for instance to load a model
    /// into a static. It has the shape of a task; its value is dropped.
    ///
    /// If it fails three times in a row (panics, returns an `anyhow::Error`, or ends the worker),
    /// the tasks that wait fail as [`TaskError::PoolBroken`].
    #[track_caller]
    pub fn initializer<F, A, M>(mut self, function: F, arguments: A) -> Builder
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        let _ = function;
        self.initializer = Some(encode_function::<F, A, M>(TaskRef::single::<F, A, M>(), arguments));
        self
    }

    /// A function to be run once in the fork server, so that all workers share the memory that it
    /// fills, copy-on-write, and start with it at once. It has the shape of a task that is not
    /// async; its value is dropped.
    ///
    /// This is the place for what is expensive and only read, such as a model: kept in a static, it is
    /// in memory once, for all workers, and workers have it as soon as they start. What a worker
    /// writes to it becomes that worker's own, page by page; so does what changes by being looked at, such
    /// as counts of references. `examples/shared_model.rs` measures it against an
    /// [`initializer`](Builder::initializer), which makes it in each worker.
    ///
    /// ```
    /// use procession::ProcessPool;
    /// use std::sync::OnceLock;
    ///
    /// static MODEL: OnceLock<Vec<u64>> = OnceLock::new();
    ///
    /// fn load(weights: u64) {
    ///     MODEL.get_or_init(|| (0..weights).collect());
    /// }
    ///
    /// fn score(input: usize) -> u64 {
    ///     MODEL.get().expect("it is loaded before any task")[input]
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::builder().preload(load, 1 << 20).build()?;
    /// assert_eq!(pool.submit(score, 7).await?, 7);
    /// assert!(MODEL.get().is_none()); // it is in the workers, not here
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`StartMethod::Spawn`] has no fork server: [`build`](Builder::build) refuses the two together.
    ///
    /// It must not leave a thread behind, since a process with several threads cannot be forked
    /// safely. If it does, or fails, tasks fail as [`TaskError::PoolBroken`].
    #[track_caller]
    pub fn preload<F, A, M>(mut self, function: F, arguments: A) -> Builder
    where
        F: Copy + Send + Sync + 'static,
        A: Arguments<F, M>,
    {
        let _ = function;
        self.preload = Some(encode_function::<F, A, M>(TaskRef::single::<F, A, M>(), arguments));
        self
    }

    /// Replaces a worker after so many tasks, at least 1: for code that leaks. The replacement is
    /// started before the old worker ends. The first workers of a pool are replaced a little
    /// earlier, so that they are not all replaced at the same moment.
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Builder {
        self.max_tasks_per_worker = tasks;
        self
    }

    /// Replaces a worker after a task that leaves it with more resident memory than this.
    pub fn max_worker_rss(mut self, bytes: u64) -> Builder {
        self.limits.rss_mark = Some(bytes);
        self
    }
}

/// Tasks.
impl Builder {
    /// Bounds the queue: there may be at most this many tasks more than workers. A `submit` beyond
    /// that gives [`TaskError::QueueFull`]; [`ProcessPool::reserve`](crate::ProcessPool::reserve) waits for room. Without it the
    /// queue is bounded by memory alone.
    pub fn queue_capacity(mut self, tasks: usize) -> Builder {
        self.queue_capacity = Some(tasks);
        self
    }

    /// How long each task may run that says nothing else, counted from when it begins.
    pub fn task_timeout(mut self, timeout: Duration) -> Builder {
        self.task_timeout = Some(timeout);
        self
    }

    /// Whether to find out where a task is when its time runs out, for
    /// [`TaskHandle::timeout_report`](crate::TaskHandle::timeout_report).
    ///
    /// The worker is then asked for a backtrace before it is killed, which takes some milliseconds,
    /// or a second in a large program with debug information; after two seconds it is killed
    /// without an answer. For that a handler of the signal `SIGRTMAX-1` is installed in workers.
    ///
    /// ```
    /// use procession::{ProcessPool, TaskError};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::builder().timeout_reports(true).build()?;
    /// let sleep = || std::thread::sleep(Duration::from_secs(60));
    /// let mut handle = pool.task(sleep, ()).timeout(Duration::from_millis(50)).submit();
    /// assert!(matches!((&mut handle).await, Err(TaskError::TimedOut { .. })));
    /// println!("{}", handle.timeout_report().unwrap());
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout_reports(mut self, wanted: bool) -> Builder {
        self.timeout_reports = wanted;
        self
    }

    /// How long a running task may go on when it was cancelled before its worker is killed;
    /// 250 ms by default. With zero it is killed at once.
    pub fn cancel_grace(mut self, grace: Duration) -> Builder {
        self.cancel_grace = grace;
        self
    }

    /// For how long a worker that has finished a task looks out for the next one before it sleeps.
    ///
    /// Waking a worker that sleeps costs some microseconds, and up to a hundred where its processor
    /// has gone to sleep too; looking out costs a processor's time. A worker only does so while
    /// tasks come that fast. By default it is 50 us if there are more processors than
    /// [`workers`](Builder::workers), and zero, which is never, otherwise.
    pub fn look_out(mut self, time: Duration) -> Builder {
        self.look_out = Some(time);
        self
    }

    /// The most bytes that arguments or a result may have, encoded; 256 MiB by default, 4 GiB less
    /// 64 MiB at most. What is larger gives [`TaskError::TooLarge`].
    pub fn max_message_size(mut self, bytes: u64) -> Builder {
        self.max_message_size = bytes;
        self
    }
}

/// The environment of workers.
impl Builder {
    /// Sets an environment variable in workers.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Builder {
        self.start.env.push((key.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Removes an environment variable from workers.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Builder {
        self.start.env.push((key.as_ref().into(), None));
        self
    }

    /// Gives workers no environment variables but those set after this.
    pub fn env_clear(mut self) -> Builder {
        self.start.clear_env = true;
        self.start.env.clear();
        self
    }

    /// The directory that workers start in; that of the program by default.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Builder {
        self.start.current_dir = Some(directory.into());
        self
    }

    /// Where the standard output of workers goes; to the program's own by default.
    pub fn stdout(mut self, stdio: WorkerStdio) -> Builder {
        self.start.stdout = stdio;
        self
    }

    /// Where the standard error of workers goes; to the program's own by default.
    pub fn stderr(mut self, stdio: WorkerStdio) -> Builder {
        self.start.stderr = stdio;
        self
    }

    /// The tokio runtime that the pool lives on, with its I/O and time drivers enabled; by default
    /// the one within which [`build`](Builder::build) is called.
    pub fn runtime(mut self, runtime: Handle) -> Builder {
        self.runtime = Some(runtime);
        self
    }
}

fn encode_function<F, A, M>(task: TaskRef, arguments: A) -> Function
where
    A: Arguments<F, M>,
{
    let shim = task.offset().ok_or_else(|| PoolError::InvalidSetting {
        reason: TaskError::NotInMainImage { task: task.label.to_string() }.to_string(),
    })?;
    let arguments = arguments
        .into_body(MAX_MESSAGE)
        .map_err(|fault| PoolError::InvalidSetting { reason: TaskError::from(fault).to_string() })?;
    Ok((shim, arguments))
}
