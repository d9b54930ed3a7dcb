//! Settings of a pool.

mod limits;
mod voice;
mod watch;

use super::inquiry::INQUIRY_LIMIT;
use super::scheduler::Config;
use super::shared::{Settings, Shared, nanos};
use super::voice::Forwarding;
use super::{ProcessPool, clock};
use crate::process::{ForkServer, Launch, Limits, Preload, Spawn, Start, WorkerStdio};
#[cfg(feature = "remote")]
use crate::process::{Launcher, Remote};
use crate::task::{Arguments, PoolError, TaskError, TaskRef, TraceContext};
use bytes::Bytes;
use std::ffi::OsStr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// How deep pools may be nested.
const MAX_DEPTH: u32 = 4;

/// The most bytes of a message: its length travels in 32 bits, with some room for its head.
const MAX_MESSAGE: u64 = u32::MAX as u64 - (64 << 20);

/// How long a worker that was killed may take to be dead, before its task is given up.
const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// For how long the consumer of a stream may take nothing of what its worker waits to send, while the
/// pool shuts down.
const CONSUMER_PATIENCE: Duration = Duration::from_secs(10);

/// The most open files in a sandbox. Descriptors that are on their way through sockets count against all
/// processes of a user, so one that had very many could keep the pool from starting workers.
const SANDBOX_FILES: u64 = 256;

/// How long a worker looks out for its next task by default, where it does.
const LOOK_OUT: Duration = Duration::from_micros(50);

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

/// The settings of a [`ProcessPool`].
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
    /// that gives [`TaskError::QueueFull`]; [`ProcessPool::reserve`] waits for room. Without it the
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

impl Builder {
    /// Builds the pool. Unless [`min_workers`](Builder::min_workers) says otherwise, no process is
    /// started before there is a task for it.
    ///
    /// # Errors
    /// A [`PoolError`] when a setting makes no sense, when there is no tokio runtime or it lacks
    /// its drivers, when the kernel cannot enforce the sandbox or a path of it is missing, when the
    /// [`timeline`](Builder::timeline) cannot be written, when this is a worker four pools deep, or when it
    /// is a process that was started as a worker but has not called [`init`](crate::init).
    pub fn build(self) -> Result<ProcessPool, PoolError> {
        if crate::worker::was_told_to_enter() {
            return Err(PoolError::NotInitialized);
        }
        let depth = crate::worker::depth();
        if depth >= MAX_DEPTH {
            return Err(PoolError::TooDeep { limit: MAX_DEPTH });
        }
        self.check()?;
        let mut limits = self.limits;
        #[cfg(feature = "remote")]
        let is_local = self.launcher.is_local();
        #[cfg(not(feature = "remote"))]
        let is_local = true;
        if let Some(sandbox) = &mut limits.sandbox {
            // On another machine it is for that to say.
            if is_local {
                let not_confined = |reason| PoolError::NotConfined { reason };
                crate::sys::sandbox::check().map_err(not_confined)?;
                *sandbox = sandbox.resolved(self.start.current_dir.as_deref()).map_err(not_confined)?;
            }
            limits.open_files.get_or_insert(SANDBOX_FILES);
            limits.core_dumps.get_or_insert(false);
        }
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => Handle::try_current().map_err(|_| PoolError::NoRuntime)?,
        };
        check_drivers(&runtime)?;
        let mut start = self.start;
        start.depth = depth + 1;
        start.limits = limits.clone();
        // Clones of a builder are to have nothing in common.
        start.under_way = TaskTracker::default();
        start.preload = self.preload.transpose()?.map(|(shim, arguments)| Preload { shim, arguments });
        let launcher: Box<dyn Launch> = match self.start_method {
            #[cfg(feature = "remote")]
            _ if !is_local => Box::new(Remote::new(start, self.launcher, self.start_timeout, &runtime)?),
            StartMethod::ForkServer => Box::new(ForkServer::new(start)),
            StartMethod::Spawn => Box::new(Spawn::new(start)),
        };
        let settings = Settings {
            max_workers: self.workers,
            queue_capacity: self.queue_capacity,
            max_message: self.max_message_size,
            task_timeout: self.task_timeout,
            limits: limits.clone(),
            look_out: self.look_out.unwrap_or_else(|| default_look_out(self.workers)),
            initializer: self.initializer.transpose()?,
            start_timeout: self.start_timeout,
            timeout_reports: self.timeout_reports,
            consumer_patience: CONSUMER_PATIENCE,
            forwarding: self.forwarding.here(),
            trace_context: self.trace_context,
        };
        let config = Config {
            max_workers: self.workers,
            min_workers: self.min_workers,
            idle_timeout: nanos(self.idle_timeout),
            cancel_grace: nanos(self.cancel_grace),
            recycles_at_once: limits.cpu.is_some(),
            max_tasks_per_worker: self.max_tasks_per_worker,
            death_limit: nanos(
                DEATH_LIMIT + if self.timeout_reports { INQUIRY_LIMIT } else { Duration::ZERO },
            ),
        };
        let observers = watch::observers(&self.name, self.timeline.as_deref())?;
        let shared = Shared::new(settings, config, runtime, launcher, observers);
        #[cfg(feature = "nats")]
        if let Some(queue) = self.queue {
            return Ok(ProcessPool::of(super::nats::open(queue, shared)?));
        }
        let shared = Arc::new(shared);
        shared.runtime.spawn(clock::run(shared.clone()));
        shared.open();
        Ok(ProcessPool::of(shared))
    }

    #[cfg(feature = "nats")]
    pub(super) fn most_workers(&self) -> usize {
        self.workers
    }

    fn check(&self) -> Result<(), PoolError> {
        #[cfg(feature = "remote")]
        {
            self.launcher.check()?;
            if self.timeout_reports && !self.launcher.is_local() {
                let reason = "`timeout_reports` are for workers on this machine".into();
                return Err(PoolError::InvalidSetting { reason });
            }
        }
        let zero = Duration::ZERO;
        let complaints = [
            (self.workers == 0, "`workers` must be at least 1"),
            (self.min_workers > self.workers, "`min_workers` must not be more than `workers`"),
            (self.idle_timeout == zero, "`idle_timeout` must not be zero"),
            (self.start_timeout == zero, "`start_timeout` must not be zero"),
            (self.task_timeout == Some(zero), "`task_timeout` must not be zero"),
            (self.max_tasks_per_worker == 0, "`max_tasks_per_worker` must be at least 1"),
            (self.name.is_empty(), "`name` must not be empty"),
            (self.max_message_size == 0, "`max_message_size` must be at least 1 byte"),
            (self.max_message_size > MAX_MESSAGE, "`max_message_size` must be at most 4 GiB less 64 MiB"),
            (
                self.preload.is_some() && self.start_method != StartMethod::ForkServer,
                "`preload` needs `StartMethod::ForkServer`: with others there is nothing to preload into",
            ),
        ];
        match complaints.iter().chain(&limits::complaints(&self.limits)).find(|(is_wrong, _)| *is_wrong) {
            None => Ok(()),
            Some((_, reason)) => Err(PoolError::InvalidSetting { reason: (*reason).into() }),
        }
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

fn default_look_out(workers: usize) -> Duration {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if processors > workers { LOOK_OUT } else { Duration::ZERO }
}

/// Makes sure that the runtime has the drivers that the pool's tasks need.
///
/// tokio has no way to ask but to try, which panics if they are missing.
fn check_drivers(runtime: &Handle) -> Result<(), PoolError> {
    let _entered = runtime.enter();
    let attempt = std::panic::catch_unwind(AssertUnwindSafe(|| {
        drop(tokio::time::sleep(Duration::ZERO));
        rustix::pipe::pipe().map(|(read, _write)| drop(tokio::net::unix::pipe::Receiver::from_owned_fd(read)))
    }));
    match attempt {
        Ok(_) => Ok(()),
        Err(_) => Err(PoolError::RuntimeWithoutDrivers),
    }
}
