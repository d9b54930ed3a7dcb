//! A worker that does thousands of tasks of all kinds that leave it alive, and what it holds after them.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, join_all, poll_immediate};
use procession::{ProcessPool, StartMethod, TaskError, WorkerStdio};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::board::{Board, PLACE};
use super::deeds;
use super::producers::{self, Script, Size, Then};
use super::submit::MIB;

/// One turn in so many has the largest values.
const LARGE_EVERY: u64 = 16;

/// Nobody who is cancelled takes this long to heed it.
const GRACE: Duration = Duration::from_secs(60);

/// A pool with one worker, which is to live for as long as the pool.
pub struct Veteran {
    pool: ProcessPool,
    runtime: Runtime,
    pid: u32,
    turns: u64,
    /// Tasks note there that they began, as those of rounds do.
    _board: (Board, TempDir),
}

/// What the worker holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Burden {
    /// How much it has done.
    pub tasks: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub resident: u64,
}

impl Veteran {
    pub fn start(method: StartMethod) -> Veteran {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("board");
        let board = Board::create(&place);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("veteran").enable_all().build().unwrap();
        let pool = ProcessPool::builder()
            .workers(1)
            .min_workers(1)
            .start_method(method)
            .cancel_grace(GRACE)
            .stdout(WorkerStdio::Capture)
            .stderr(WorkerStdio::Capture)
            .env(PLACE, &place)
            .runtime(runtime.handle().clone())
            .build()
            .unwrap();
        let pid = runtime.block_on(pool.submit(std::process::id, ())).unwrap();
        Veteran { pool, runtime, pid, turns: 0, _board: (board, dir) }
    }

    /// Has it do some of everything.
    pub fn take_turn(&mut self) -> Result<(), String> {
        let is_large = self.turns.is_multiple_of(LARGE_EVERY);
        self.turns += 1;
        self.runtime.block_on(async {
            let (done, ()) = join(tasks(&self.pool, is_large), streams(&self.pool, is_large)).await;
            done.map_err(|error| format!("a task of the worker that is to live on: {error}"))?;
            match self.pool.submit(std::process::id, ()).await {
                Ok(pid) if pid == self.pid => Ok(()),
                Ok(pid) => Err(format!("worker {} was replaced by {pid}: {:?}", self.pid, self.pool.stats())),
                Err(error) => Err(format!("the worker that was to live on is gone: {error}")),
            }
        })
    }

    pub fn burden(&self) -> Burden {
        let count = |what: &str| {
            let entries = fs::read_dir(format!("/proc/{}/{what}", self.pid)).into_iter().flatten();
            entries.count() as u64
        };
        let workers = self.pool.workers();
        Burden {
            tasks: workers.iter().map(|worker| worker.tasks_done()).sum(),
            descriptors: count("fd"),
            threads: count("task"),
            resident: workers.iter().map(|worker| worker.rss()).sum(),
        }
    }

    pub fn retire(self) {
        self.runtime.block_on(self.pool.shutdown());
        self.runtime.shutdown_timeout(GRACE);
    }
}

async fn tasks(pool: &ProcessPool, is_large: bool) -> Result<(), TaskError> {
    let cancelled = async || {
        let task = pool.submit(deeds::heeds, (0,));
        while task.worker_pid().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task.cancel();
        let _: Result<u32, TaskError> = task.await;
    };
    let panics = join_all((0..5).map(|_| pool.submit(deeds::panics, (0,))));
    let fails = join_all((0..5).map(|_| pool.submit(deeds::fails, (0,))));
    let triples = join_all((0..20).map(|n| pool.submit(deeds::triple, (0, n))));
    let naps = join_all((0..3).map(|_| pool.submit(deeds::slumber, (0, 1))));
    let size = if is_large { 40 * MIB } else { MIB };
    let echo = pool.submit(deeds::echo, (0, vec![7; size]));
    let reports = pool.submit(deeds::reports, (0, 1, false));
    let logs = pool.submit(deeds::logs, (0, 200));
    let flood = pool.submit(deeds::floods, (0, MIB / 4));
    let descriptors = pool.submit(deeds::takes_descriptors, (0,));
    let map = pool.map(deeds::item, (0..50).map(|_| (0, false))).count();
    let single = async { futures::try_join!(echo, reports, logs, flood, descriptors) };
    let (_, _, single, ..) = futures::join!(panics, fails, single, triples, naps, map, cancelled());
    single.map(drop)
}

async fn streams(pool: &ProcessPool, is_large: bool) {
    let script = Script { id: 0, items: 12, size: Size::Mixed, pause: 0, reports: true, then: Then::End };
    let endless = Script { items: u64::MAX, size: Size::Small, ..script };
    let large = Script { items: u64::from(is_large) * 2, size: Size::BeyondArena, ..script };
    let whole = [
        pool.stream(producers::items, script),
        pool.stream(producers::flow, script),
        pool.stream(producers::push, Script { then: Then::Fail, ..script }),
        pool.stream(producers::items, Script { then: Then::Panic, ..script }),
        pool.stream(producers::items, large),
    ];
    let whole = join_all(whole.map(StreamExt::count));
    let threads = pool.stream(producers::push_from_threads, (0, 3, 20)).count();
    let units = pool.stream(producers::units, (0, 500)).count();
    let left = async || {
        let (mut dropped, mut cancelled) =
            (pool.stream(producers::flow, endless), pool.stream(producers::push, endless).window(2));
        for _ in 0..10 {
            dropped.next().await;
            poll_immediate(cancelled.next()).await;
        }
        drop(dropped);
        cancelled.canceller().cancel();
        cancelled.count().await;
    };
    futures::join!(whole, threads, units, left());
}
