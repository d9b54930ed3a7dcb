//! Building a pool: settings are checked, and turned into what the pool is made of.

use super::{Builder, MAX_MESSAGE, StartMethod, limits, watch};
use crate::pool::inquiry::INQUIRY_LIMIT;
use crate::pool::scheduler::Config;
use crate::pool::shared::{Settings, Shared, nanos};
use crate::pool::{ProcessPool, clock};
#[cfg(feature = "remote")]
use crate::process::Remote;
use crate::process::{ForkServer, Launch, Preload, Spawn};
use crate::task::PoolError;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// How deep pools may be nested.
const MAX_DEPTH: u32 = 4;

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
        // Last, since it may begin to listen for workers.
        let launcher: Box<dyn Launch> = match self.start_method {
            #[cfg(feature = "remote")]
            _ if !is_local => Box::new(Remote::new(start, self.launcher, self.start_timeout, &runtime)?),
            StartMethod::ForkServer => Box::new(ForkServer::new(start)),
            StartMethod::Spawn => Box::new(Spawn::new(start)),
        };
        let shared = Shared::new(settings, config, runtime, launcher, observers);
        #[cfg(feature = "nats")]
        if let Some(queue) = self.queue {
            return Ok(ProcessPool::of(crate::pool::nats::open(queue, shared)?));
        }
        let shared = Arc::new(shared);
        shared.runtime.spawn(clock::run(shared.clone()));
        shared.open();
        Ok(ProcessPool::of(shared))
    }

    #[cfg(feature = "nats")]
    pub(in crate::pool) fn most_workers(&self) -> usize {
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
