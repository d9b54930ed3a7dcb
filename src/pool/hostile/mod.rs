//! The whole of the parent's side against peers that say and write whatever they like.
//!
//! A peer is a thread at the other end of a worker's link: of its pipes and of its shared memory.
//! Hostile ones play random scripts, honest ones do the tasks. Whatever the former do, every handle
//! resolves, nothing panics, what the latter have answered arrives, and the pool ends when told to.

mod lies;
mod listeners;
mod lone;
mod peer;
mod script;
mod served;
mod streams;

use super::scheduler::Config;
use super::shared::{Settings, Shared, nanos};
use super::{ProcessPool, TaskHandle, clock};
use crate::process::{Killer, Launch, Limits, Output, Process, WorkerStdio};
use crate::sys::child::Ended;
use crate::sys::resident_bytes;
use crate::task::{PoolError, TaskError};
use crate::wire::Page;
use bytes::BytesMut;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use peer::{Over, Peer, Record};
use proptest::prelude::*;
use rustix::pipe::{PipeFlags, pipe_with};
use script::{Script, script};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// No case takes this long, unless something hangs: a worker that takes nothing is given 10 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// How much more memory the tests may take up, allocators' reserves and other tests included.
const ROOM: u64 = 512 << 20;

const RUNTIME: &str = "against-hostile";

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Starts peers: a hostile one for each script, with an honest one after each, then honest ones.
struct Stage {
    scripts: Mutex<VecDeque<Script>>,
    starts: AtomicUsize,
    record: Arc<Record>,
    /// Hostile peers that are not over.
    hostile: Arc<AtomicUsize>,
    /// Whether peers share a page with the pool.
    has_pages: bool,
}

impl Stage {
    fn start_peer(&self) -> io::Result<Process> {
        let (requests_out, requests_in) = pipe_with(PipeFlags::CLOEXEC)?;
        let (results_out, results_in) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&results_in, true)?;
        let (page, file) = Page::create()?;
        let (stdout, _) = Output::new(WorkerStdio::Null, None)?;
        let (stderr, theirs) = Output::new(WorkerStdio::Capture, None)?;
        let killed = Arc::new(AtomicBool::new(false));
        let peer = Peer {
            requests: Some(requests_out.into()),
            results: Some(Arc::new(results_in.into())),
            stderr: theirs,
            page: Arc::new(Page::open(file.as_fd())?),
            shares_page: self.has_pages,
            killed: killed.clone(),
            ends_at: None,
            heard: BytesMut::new(),
            last_seq: 0,
            tail: 0,
            room: Page::room_for_results(),
            placed: 0,
            ahead: VecDeque::new(),
        };
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let is_hostile = number.is_multiple_of(2);
        let script = is_hostile.then(|| self.scripts.lock().unwrap().pop_front()).flatten();
        Ok(Process {
            pid: number as u32,
            requests: pipe::Sender::from_owned_fd(requests_in)?,
            results: pipe::Receiver::from_owned_fd(results_out)?,
            page: self.has_pages.then_some(page),
            stdout,
            stderr,
            probe: None,
            far: None,
            earlier_rss: 0,
            killer: Killer::new(move || killed.store(true, Ordering::Release)),
            ended: self.run(peer, script),
        })
    }

    fn run(&self, mut peer: Peer, script: Option<Script>) -> BoxFuture<'static, Option<Ended>> {
        let (end, ended) = oneshot::channel();
        let (record, hostile) = (self.record.clone(), self.hostile.clone());
        hostile.fetch_add(usize::from(script.is_some()), Ordering::Relaxed);
        std::thread::spawn(move || {
            let _: Result<(), Over> = match &script {
                Some(script) => peer.be_hostile(script),
                None => peer.be_honest(&record),
            };
            // A killed process has a signal for its status, another one a code.
            let status = if peer.is_killed() { libc::SIGKILL } else { 0 };
            record.killed.fetch_add(usize::from(script.is_none() && status != 0), Ordering::Relaxed);
            peer.killed.store(true, Ordering::Release);
            drop(peer);
            hostile.fetch_sub(usize::from(script.is_some()), Ordering::Relaxed);
            let _ = end.send(Ended { status, max_rss: 0, cpu: 0 });
        });
        async { ended.await.ok() }.boxed()
    }
}

impl Launch for Stage {
    fn start(&self) -> BoxFuture<'_, Result<Process, PoolError>> {
        let start = || self.start_peer().map_err(|error| PoolError::Start { reason: error.to_string() });
        // Not before it is polled, as starts may be called off.
        async move { start() }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn abandon(&self) {}
}

fn pool_on(stage: Stage) -> ProcessPool {
    // Or nothing that a peer logs would go further.
    listeners::listen();
    let settings = Settings {
        max_workers: 2,
        queue_capacity: None,
        max_message: 64 << 20,
        task_timeout: None,
        limits: Limits::default(),
        look_out: Duration::ZERO,
        initializer: None,
        start_timeout: Duration::from_secs(10),
        timeout_reports: false,
        consumer_patience: Duration::from_millis(80),
        forwarding: Default::default(),
        trace_context: None,
    };
    let config = Config {
        max_workers: 2,
        min_workers: 0,
        idle_timeout: nanos(Duration::from_secs(60)),
        cancel_grace: nanos(Duration::from_millis(20)),
        max_tasks_per_worker: u64::MAX,
        recycles_at_once: false,
        death_limit: nanos(Duration::from_secs(1)),
    };
    let shared = Arc::new(Shared::new(
        settings,
        config,
        tokio::runtime::Handle::current(),
        Box::new(stage),
        Vec::new(),
    ));
    shared.runtime.spawn(clock::run(shared.clone()));
    shared.open();
    ProcessPool::of(shared)
}

/// What is asked of the pool.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Add(u64),
    Large(usize),
    Timed(u64),
    Retried(u64),
    Cancelled(u64),
    Dropped(u64),
    Map(u8),
    TimedMap(u8),
    /// So many items, with such a window, of which so many are taken.
    Stream(u16, u8, u16),
    Pause(u8),
}

#[derive(Clone, Copy, Debug)]
enum Finish {
    Drain,
    Timeout,
    Now,
    /// Before anything is awaited.
    Early,
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        8 => any::<u64>().prop_map(Ask::Add),
        2 => (30_000usize..200_000).prop_map(Ask::Large),
        2 => any::<u64>().prop_map(Ask::Timed),
        1 => any::<u64>().prop_map(Ask::Retried),
        1 => any::<u64>().prop_map(Ask::Cancelled),
        1 => any::<u64>().prop_map(Ask::Dropped),
        2 => (1u8..30).prop_map(Ask::Map),
        1 => (1u8..30).prop_map(Ask::TimedMap),
        4 => (0u16..300, 0u8..20, 0u16..400).prop_map(|(items, window, taken)| Ask::Stream(items, window, taken)),
        2 => (0u8..4).prop_map(Ask::Pause),
    ]
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![Just(Finish::Drain), Just(Finish::Timeout), Just(Finish::Now), Just(Finish::Early)]
}

fn add(n: u64) -> u64 {
    n.wrapping_add(1)
}

fn length(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// Looks until something holds for which there is no event.
async fn eventually(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What one case has come to.
#[derive(Default)]
struct Tally {
    /// Tasks that may have cost a worker its life: timed out, or cancelled.
    ended_workers: usize,
}

struct Case {
    pool: ProcessPool,
    record: Arc<Record>,
    hostile: Arc<AtomicUsize>,
    tally: Tally,
}

impl Case {
    /// Everything resolves, and what an honest peer has answered resolves as that.
    async fn play(mut self, asks: Vec<Ask>, finish: Finish) {
        let mut numbers = Vec::new();
        let mut large = Vec::new();
        let mut maps = Vec::new();
        let mut streams = Vec::new();
        for ask in asks {
            let timed = Duration::from_millis(150);
            match ask {
                Ask::Add(n) => numbers.push((n, self.pool.submit(add, n))),
                Ask::Timed(n) => numbers.push((n, self.pool.task(add, n).timeout(timed).submit())),
                Ask::Retried(n) => numbers.push((n, self.pool.task(add, n).retries(1).submit())),
                Ask::Large(size) => large.push((size, self.pool.submit(length, vec![7; size]))),
                Ask::Cancelled(n) => {
                    let handle = self.pool.submit(add, n);
                    handle.cancel();
                    numbers.push((n, handle));
                }
                Ask::Dropped(n) => {
                    self.tally.ended_workers += 1;
                    drop(self.pool.submit(add, n));
                }
                Ask::Map(items) => maps.push((items, self.pool.map(add, 0..u64::from(items)))),
                Ask::TimedMap(items) => {
                    maps.push((items, self.pool.map(add, 0..u64::from(items)).timeout(timed)));
                }
                Ask::Stream(items, window, taken) => {
                    let all = self.pool.stream(streams::numbers, items).window(window.into());
                    let mut all = all.timeout(3 * timed);
                    // It is submitted with the others, among them.
                    let first = all.next().now_or_never().flatten();
                    streams.push((items, taken, first, all));
                }
                Ask::Pause(time) => tokio::time::sleep(Duration::from_millis(time.into())).await,
            }
        }
        if matches!(finish, Finish::Early) {
            self.pool.shutdown_now().await;
        }
        for (n, handle) in numbers {
            self.check(handle, |value| value == n.wrapping_add(1)).await;
        }
        for (size, handle) in large {
            self.check(handle, |value| value.len() == size && value.iter().all(|byte| *byte == 7)).await;
        }
        for (items, taken, first, all) in streams {
            self.tally.ended_workers += streams::check(items, taken, first, all).await;
        }
        for (items, map) in maps {
            let results: Vec<_> = map.collect().await;
            assert_eq!(results.len(), usize::from(items));
            self.tally.ended_workers += results.iter().filter(|result| result.is_err()).count();
        }
        self.end(finish).await;
    }

    async fn check<T>(&mut self, handle: TaskHandle<T>, is_right: impl Fn(T) -> bool)
    where
        T: serde::de::DeserializeOwned + std::fmt::Debug + Clone + 'static,
    {
        let id = handle.id().get();
        let outcome = handle.await;
        self.tally.ended_workers +=
            usize::from(matches!(outcome, Err(TaskError::Cancelled | TaskError::TimedOut { .. })));
        let by_choice =
            matches!(outcome, Err(TaskError::Cancelled | TaskError::TimedOut { .. } | TaskError::ShutDown));
        if self.record.answered.lock().unwrap().contains(&id) && !by_choice {
            let shown = format!("{outcome:?}");
            assert!(
                outcome.is_ok_and(is_right),
                "an honest worker's answer to task {id} became {shown:.200}"
            );
        }
    }

    async fn end(self, finish: Finish) {
        match finish {
            Finish::Early => {}
            Finish::Now => self.pool.shutdown_now().await,
            Finish::Timeout => self.pool.shutdown_timeout(Duration::from_millis(20)).await,
            Finish::Drain => {
                self.goes_on().await;
                let killed = self.record.killed.load(Ordering::Relaxed);
                assert!(killed <= self.tally.ended_workers, "{killed} honest workers were killed");
                self.pool.shutdown().await;
            }
        }
        assert_eq!(self.hostile.load(Ordering::Relaxed), 0, "a worker outlives its pool");
        let stats = self.pool.stats();
        assert_eq!((stats.workers(), stats.queued(), stats.running()), (0, 0, 0));
    }

    /// With the hostile peers gone, all is as it should be.
    async fn goes_on(&self) {
        let start = Instant::now();
        while self.hostile.load(Ordering::Relaxed) > 0 {
            // Those whose turn has not come need something to be done.
            let _ = self.pool.submit(add, 1).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let tasks = || futures::future::join_all((0..20).map(|n| self.pool.submit(add, n)));
        let mut outcomes = tasks().await;
        // A pool that could not start workers three times in a row pauses; scripts may be left.
        while outcomes.iter().any(Result::is_err) {
            assert!(start.elapsed() < PATIENCE / 2, "never mends: {outcomes:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            outcomes = tasks().await;
        }
    }
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_ours = std::thread::current().name().is_some_and(|name| name == RUNTIME);
            PANICS.fetch_add(usize::from(is_ours), Ordering::Relaxed);
            previous(info);
        }));
    });
}

fn play(scripts: Vec<Script>, asks: Vec<Ask>, finish: Finish, has_pages: bool) {
    count_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(RUNTIME)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (record, hostile) = (Arc::default(), Arc::default());
        let stage = Stage {
            scripts: Mutex::new(scripts.into()),
            starts: AtomicUsize::new(0),
            record: Arc::clone(&record),
            hostile: Arc::clone(&hostile),
            has_pages,
        };
        let case = Case { pool: pool_on(stage), record, hostile, tally: Tally::default() };
        let played = tokio::time::timeout(PATIENCE, case.play(asks, finish)).await;
        assert!(played.is_ok(), "hangs");
    });
    runtime.shutdown_timeout(PATIENCE);
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "something panicked on the runtime");
}

/// How many cases are tried: more with `PROPTEST_CASES` set.
fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(48),
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn whatever_a_worker_does_its_pool_goes_on_and_ends(
        scripts in prop::collection::vec(script(), 1..5),
        asks in prop::collection::vec(ask(), 1..40),
        finish in finish(),
        has_pages in prop_oneof![3 => Just(true), 1 => Just(false)],
    ) {
        let before = resident_bytes(std::process::id());
        play(scripts, asks, finish, has_pages);
        let after = resident_bytes(std::process::id());
        prop_assert!(after < before + ROOM, "memory has grown from {before} to {after}");
    }
}
