//! What all measures share: the runtime, the amount of work, and the peers that are there.
//!
//! Everything asynchronous runs within `tokio::spawn` on a runtime of two threads, as in a service;
//! what blocks (`procspawn`, Python) runs on the main thread, which does nothing else meanwhile.

use super::contest::Contest;
use super::options::Options;
use super::python::{Kind, Python};
use super::report::Report;
use super::svg;
use anyhow::{Context, bail};
use procession::{Builder, ProcessPool};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::runtime::{self, Runtime};

pub(crate) const PROCESSION: &str = "procession";
pub(crate) const PROCSPAWN: &str = "procspawn";
pub(crate) const SPAWN_BLOCKING: &str = "tokio spawn_blocking";

/// A round that takes longer than this is taken to hang.
const HANGS: Duration = Duration::from_secs(120);

/// The benchmark as it was asked for.
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) report: Report,
    runtime: Runtime,
    /// The version of the interpreter, if there is one.
    python: Option<String>,
}

impl Bench {
    pub(crate) fn new(options: Options) -> anyhow::Result<Bench> {
        // Tasks are made to abort here; what is measured is not how fast the disk takes their cores.
        let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, no_core)?;
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Bench { options, report: Report, runtime, python: python_version() })
    }

    /// One or the other, as the options have it: `(quick, full)`.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// How often what is compared takes its turn.
    pub(crate) fn rounds(&self) -> usize {
        self.pick(3, 7)
    }

    /// The machine and the peers, for the head of the table.
    pub(crate) fn setting(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg");
        format!(
            "{} CPUs, Linux {}, load {}; procspawn 1.0.2, {}; {} rounds{}",
            cpus(),
            kernel.trim(),
            load.split(' ').next().unwrap_or("?"),
            self.python.as_deref().unwrap_or("no python3: its pools are left out"),
            self.rounds(),
            if self.options.quick { ", quick: not to quote from" } else { "" },
        )
    }

    /// Runs a future in a task of the runtime, to its end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        run_on(&self.runtime, work)
    }

    /// Settings of a pool on the runtime.
    pub(crate) fn builder(&self) -> Builder {
        ProcessPool::builder().runtime(self.runtime.handle().clone()).max_message_size(1 << 30)
    }

    /// A pool whose workers have started.
    pub(crate) fn pool(&self, workers: usize) -> anyhow::Result<ProcessPool> {
        let pool = self.builder().workers(workers).build()?;
        let warm = pool.clone();
        self.run(async move { Ok(warm.warm_up().await?) })?;
        Ok(pool)
    }

    /// Makes the runtime's reactor known to what is built within `body`.
    pub(crate) fn within<T>(&self, body: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        body()
    }

    /// Enters one of Python's pools, which is asked `question` each round; nothing if there is no
    /// Python. Its answers have the contest's units.
    pub(crate) fn enter_python(
        &self,
        contest: &mut Contest<'_>,
        kind: Kind,
        workers: usize,
        question: &str,
    ) -> anyhow::Result<()> {
        if self.python.is_some() {
            let mut python = Python::start(kind, workers)?;
            let question = question.to_string();
            contest.enter(kind.name(), move || python.ask(&question));
        }
        Ok(())
    }

    /// Whether there is a Python to ask.
    pub(crate) fn has_python(&self) -> bool {
        self.python.is_some()
    }

    /// Draws a plot into docs/, if plots are asked for.
    pub(crate) fn draw(&self, file: &str, plot: impl FnOnce() -> svg::Plot) -> anyhow::Result<()> {
        if !self.options.plots {
            return Ok(());
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
        std::fs::write(&path, plot().draw()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Ends without waiting for what may hang.
    pub(crate) fn close(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

/// Runs a future in a task of a runtime, to its end.
pub(crate) fn run_on<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    runtime.block_on(async {
        let mut task = tokio::spawn(work);
        match tokio::time::timeout(HANGS, &mut task).await {
            Ok(done) => done?,
            Err(_) => {
                task.abort();
                bail!("hangs: no end after {HANGS:?}")
            }
        }
    })
}

/// How many processors there are for this program.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn python_version() -> Option<String> {
    let told = Command::new("python3").arg("--version").output().ok()?;
    let version = String::from_utf8(told.stdout).ok()?;
    told.status.success().then(|| version.trim().to_string())
}
