//! Plays a round from its beginning to its end.

use std::sync::{Arc, RwLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use procession::{PoolStats, ProcessPool};
use tokio::runtime::{Builder, Handle, Runtime};

use super::check;
use super::kinds::End;
use super::listener;
use super::plan::{Plan, SUBMITTERS};
use super::round::Round;
use super::settings::Settings;
use super::shortage::{Short, Shortage};
use super::strikes::strike_all;
use super::submit::submit_share;
use super::system::{Holdings, await_nothing_left, forbid_core_dumps};
use super::tally::Tally;
use super::watchdog::{SOON, watch};

/// What was wrong, with the command that plays the round again.
pub type Failure = String;

/// The runtime that handles are awaited on. It is none that a pool lives on, and outlives them all.
static OBSERVER: RwLock<Option<Runtime>> = RwLock::new(None);

fn observer() -> Handle {
    OBSERVER.read().unwrap().as_ref().expect("it was prepared").handle().clone()
}

/// Returns when its threads run: before, they go by the name of the thread that started them.
fn runtime(threads: usize, name: &str) -> Runtime {
    let (runs, running) = mpsc::channel();
    // Threads that are started later, for what blocks, find nobody who listens.
    let on_start = move || {
        let _ = runs.send(());
    };
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name(name).on_thread_start(on_start);
    let runtime = builder.enable_all().build().unwrap();
    running.iter().take(threads).for_each(drop);
    runtime
}

/// What rounds need, until it is dropped.
pub struct Prepared(());

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(observer) = OBSERVER.write().unwrap().take() {
            observer.shutdown_timeout(SOON);
        }
    }
}

/// Lets everything be there that stays for good, before anything is counted.
pub fn prepare() -> Prepared {
    forbid_core_dumps();
    *OBSERVER.write().unwrap() = Some(runtime(2, "observer"));
    watch(None);
    listener::listen();
    let runtime = runtime(1, "first");
    let pool = ProcessPool::builder().workers(1).runtime(runtime.handle().clone()).build().unwrap();
    observer().block_on(async {
        let _ = pool.submit(std::process::id, ()).await;
        pool.shutdown().await;
    });
    runtime.shutdown_timeout(SOON);
    Prepared(())
}

/// Plays one round and checks it.
pub fn play(plan: Plan) -> Result<Tally, Failure> {
    let before = Holdings::now();
    let round = Arc::new(Round::new(plan));
    watch(Some(round.clone()));
    listener::take_heard(); // which was not of this round
    let (stage, short) = Stage::set(&round);
    let ended = stage.play(&round, short);
    round.enter("looking for what is left");
    let left = await_nothing_left(&round.place, &before);
    watch(None);
    let heard = listener::take_heard();
    let violations = check::violations(&round, &ended, left, &heard);
    if violations.is_empty() {
        return Ok(check::tally(&round, &ended, &heard));
    }
    let list = violations.join("\n  ");
    Err(format!("violations:\n  {list}\n{}\nreplay: {}", round.dump(), round.plan.replay()))
}

/// How a round has ended.
pub struct Ended {
    /// Of each pool, as far as that can be asked.
    pub stats: Vec<PoolStats>,
    pub took: Duration,
    pub complaint: Option<String>,
}

/// Everything that runs while a round does.
struct Stage {
    runtime: Runtime,
    submitters: Vec<JoinHandle<()>>,
    striker: JoinHandle<()>,
}

impl Stage {
    fn set(round: &Arc<Round>) -> (Stage, Option<Short>) {
        let runtime = runtime(round.plan.runtime_threads, "pool");
        let submitter = |share| {
            let round = round.clone();
            named("submitter", move || submit_share(&round, share, &observer()))
        };
        let submitters = (0..SUBMITTERS).map(submitter).collect();
        let striking = round.clone();
        let striker = named("striker", move || strike_all(&striking));
        // All that the round itself needs is there; what lacks from now on, the pools lack.
        let short = round.plan.shortage.map(Shortage::begin);
        let (key, value) = round.mark();
        let build = |(at, settings): (usize, &Settings)| {
            let builder = settings.builder(round.plan.method, round.dir(), at).env(key, value);
            builder.runtime(runtime.handle().clone()).build().unwrap()
        };
        round.enter("submitting");
        round.open(round.plan.pools.iter().enumerate().map(build).collect());
        (Stage { runtime, submitters, striker }, short)
    }

    fn play(self, round: &Arc<Round>, short: Option<Short>) -> Ended {
        let all = round.plan.jobs.len() as u64;
        let turn = match round.plan.end {
            End::Shutdown => all,
            // The handles outlive the pool's own.
            End::DropPool => 0,
            _ => round.plan.end_after,
        };
        let is_drop = round.plan.end == End::DropPool;
        round.wait_until(|state| state.done >= turn && (!is_drop || state.submitting == 0));
        let still_broken = short.and_then(|short| {
            round.enter("working again");
            observer().block_on(works_again(round, &short))
        });
        round.begin_end();
        round.enter("ending");
        let start = Instant::now();
        let pools = round.state().pools.clone();
        let (rest, complaint) = self.end(round, pools);
        let took = start.elapsed();
        round.enter("waiting for the last handles");
        round.wait_until(|state| state.done == all && state.submitting == 0);
        let pools = std::mem::take(&mut round.state().pools);
        let stats = pools.iter().map(ProcessPool::stats).collect();
        drop(pools);
        rest.leave();
        Ended { stats, took, complaint: complaint.or(still_broken) }
    }

    fn end(self, round: &Arc<Round>, pools: Vec<ProcessPool>) -> (Rest, Option<String>) {
        let Stage { runtime, submitters, striker } = self;
        let limit = Duration::from_millis(round.plan.seed % 7 * 40);
        let each = async |pool: &ProcessPool| match round.plan.end {
            End::Shutdown | End::ShutdownInTheMiddle => pool.shutdown().await,
            End::ShutdownNow => pool.shutdown_now().await,
            End::ShutdownTimeout => pool.shutdown_timeout(limit).await,
            // Returns at once, as there is nothing left.
            End::DropRuntime | End::DropPool => pool.shutdown().await,
        };
        let mut complaint = None;
        let mut kept = None;
        match round.plan.end {
            End::DropPool => {
                round.state().pools.clear();
                drop(pools);
                complaint = await_end_of_processes(round);
                kept = Some(runtime);
            }
            End::DropRuntime => {
                drop(runtime);
                observer().block_on(futures::future::join_all(pools.iter().map(each)));
            }
            _ => {
                observer().block_on(futures::future::join_all(pools.iter().map(each)));
                kept = Some(runtime);
            }
        }
        (Rest { runtime: kept, submitters, striker }, complaint)
    }
}

/// What is there after a pool.
struct Rest {
    runtime: Option<Runtime>,
    submitters: Vec<JoinHandle<()>>,
    striker: JoinHandle<()>,
}

impl Rest {
    fn leave(self) {
        for thread in self.submitters.into_iter().chain([self.striker]) {
            thread.join().unwrap();
        }
        if let Some(runtime) = self.runtime {
            runtime.shutdown_timeout(SOON);
        }
    }
}

/// Nothing says when a pool has ended that nobody has a handle to, but that its processes are gone.
fn await_end_of_processes(round: &Round) -> Option<String> {
    let start = Instant::now();
    while !round.processes().is_empty() {
        if start.elapsed() > SOON {
            return Some(format!("the pool goes on after its last handle: {:?}", round.processes()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

/// With nothing lacking any more, a pool is to have values again. Returns what is wrong.
async fn works_again(round: &Round, short: &Short) -> Option<String> {
    short.end(round);
    for at in 0..round.plan.pools.len() {
        let pool = round.pool(at).unwrap();
        let start = Instant::now();
        while let Err(error) = pool.submit(std::process::id, ()).await {
            if start.elapsed() > SOON {
                return Some(format!("pool {at} still gives {error}"));
            }
            // A fork server may just have begun, and have the shortage from this process.
            short.end(round);
            // A broken pool fails at once for as long as it waits before it tries again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    None
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.into()).spawn(run).unwrap()
}
