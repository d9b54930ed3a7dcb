//! The settings of a round's pools.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use fastrand::Rng;
use procession::{Builder, PoolError, ProcessPool, Sandbox, StartMethod, WorkerStdio};

use super::kinds::{Kind, Setting};

#[derive(Clone, Debug)]
pub struct Settings {
    pub workers: usize,
    pub min_workers: usize,
    pub idle_timeout: Duration,
    pub max_tasks_per_worker: Option<u64>,
    pub max_worker_rss: Option<u64>,
    pub memory_limit: Option<u64>,
    pub open_files_limit: Option<u64>,
    pub queue_capacity: Option<usize>,
    pub cancel_grace: Duration,
    pub look_out: Option<Duration>,
    pub captures: bool,
    pub timeout_reports: bool,
    pub timeline: bool,
    pub sandbox: bool,
    /// How long a worker's initializer takes, in milliseconds.
    pub dawdle: u64,
}

impl Settings {
    pub fn new(rng: &mut Rng) -> Settings {
        let workers = rng.usize(1..=4);
        let millis = Duration::from_millis;
        Settings {
            workers,
            min_workers: rng.usize(0..=workers),
            idle_timeout: *rng.choice(&[millis(5), millis(100), millis(60_000)]).unwrap(),
            max_tasks_per_worker: rng.bool().then(|| rng.u64(1..40)),
            max_worker_rss: (rng.u32(..3) == 0).then_some(32 << 20),
            memory_limit: rng.bool().then_some(512 << 20),
            open_files_limit: (rng.u32(..3) == 0).then_some(24),
            queue_capacity: (rng.u32(..3) == 0).then(|| rng.usize(1..80)),
            cancel_grace: millis(*rng.choice(&[0, 10, 100]).unwrap()),
            look_out: *rng.choice(&[None, Some(Duration::ZERO), Some(Duration::from_micros(50))]).unwrap(),
            captures: rng.u32(..3) > 0,
            timeout_reports: rng.bool(),
            timeline: rng.u32(..3) == 0,
            sandbox: rng.u32(..4) == 0,
            dawdle: *rng.choice(&[0, 0, 5, 40]).unwrap(),
        }
    }

    /// The same with as many workers as are to lack something, and what can be built all the same.
    pub fn for_shortage(&self) -> Settings {
        Settings { workers: 4, timeline: false, sandbox: false, ..self.clone() }
    }

    /// Whether tasks of this kind come to the end in such a pool that they are for.
    pub fn suits(&self, kind: Kind) -> bool {
        kind != Kind::OutOfMemory || self.memory_limit.is_some()
    }

    /// What there is about it that other pools do not have.
    pub fn special(&self) -> Vec<Setting> {
        let all = [
            (Setting::MaxTasks, self.max_tasks_per_worker.is_some()),
            (Setting::MaxRss, self.max_worker_rss.is_some()),
            (Setting::MemoryLimit, self.memory_limit.is_some()),
            (Setting::OpenFilesLimit, self.open_files_limit.is_some()),
            (Setting::BoundedQueue, self.queue_capacity.is_some()),
            (Setting::TimeoutReports, self.timeout_reports),
            (Setting::Timeline, self.timeline),
            (Setting::Sandbox, self.sandbox && can_sandbox()),
        ];
        all.into_iter().filter(|(_, is_set)| *is_set).map(|(setting, _)| setting).collect()
    }

    /// The pool's timeline, if it has one. Like the board it is in the directory of the round.
    pub fn timeline(&self, dir: &Path, pool: usize) -> Option<PathBuf> {
        self.timeline.then(|| dir.join(format!("timeline {pool}")))
    }

    pub fn builder(&self, method: StartMethod, dir: &Path, pool: usize) -> Builder {
        let stdio = if self.captures { WorkerStdio::Capture } else { WorkerStdio::Null };
        let mut builder = ProcessPool::builder()
            .start_method(method)
            .workers(self.workers)
            .min_workers(self.min_workers)
            .idle_timeout(self.idle_timeout)
            .cancel_grace(self.cancel_grace)
            .timeout_reports(self.timeout_reports)
            .stdout(stdio)
            .stderr(stdio);
        builder = with(builder, self.max_tasks_per_worker, Builder::max_tasks_per_worker);
        builder = with(builder, self.max_worker_rss, Builder::max_worker_rss);
        builder = with(builder, self.memory_limit, Builder::worker_memory_limit);
        builder = with(builder, self.open_files_limit, Builder::worker_open_files_limit);
        builder = with(builder, self.queue_capacity, Builder::queue_capacity);
        builder = with(builder, self.look_out, Builder::look_out);
        builder = with(builder, self.timeline(dir, pool), Builder::timeline);
        if self.sandbox && can_sandbox() {
            // What the tasks of rounds need: the board, and a look at themselves.
            builder = builder.sandbox(Sandbox::new().read("/proc").write(dir));
        }
        if self.dawdle > 0 {
            builder = builder.initializer(super::deeds::dawdle, self.dawdle);
        }
        builder
    }
}

fn with<T>(builder: Builder, value: Option<T>, set: impl FnOnce(Builder, T) -> Builder) -> Builder {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}

/// Whether the kernel has sandboxes.
pub fn can_sandbox() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let builder = ProcessPool::builder().runtime(runtime.handle().clone()).sandbox(Sandbox::new());
        match builder.build() {
            Ok(_) => true,
            Err(PoolError::NotConfined { reason }) => {
                eprintln!("rounds are without sandboxes: {reason}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    })
}
