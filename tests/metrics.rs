//! The feature `metrics`: what a recorder of the facade is told.
#![cfg(all(target_os = "linux", feature = "auto-init"))]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Meeting, Open, attend, attend_async, beside_what_runs, eventually, server, shown};
use futures::StreamExt;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use metrics_util::MetricKind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use procession::{Builder, PoolStats, ProcessPool, TaskError, TaskStatus};

both! {
    each_outcome_is_counted_once,
    refused_tasks_are_counted_by_what_was_wrong,
    workers_are_counted_by_how_they_ended,
    recycled_and_idle_workers_are_no_deaths,
    retries_and_restarts_are_counted,
    chunks_of_a_map_are_tasks,
    results_of_streams_count_with_their_bytes,
    a_recorder_that_panics_and_calls_back_takes_nobody_along,
    gauges_tell_what_waits_and_runs,
    sync gauges_of_a_lost_runtime_are_zero,
}

/// What a recorder was told.
#[derive(Default)]
struct Seen {
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    times: BTreeMap<String, Vec<f64>>,
}

/// A recorder for one pool.
struct Watch {
    snapshotter: Snapshotter,
    seen: Seen,
}

impl Watch {
    /// Builds the pool with a recorder of its own.
    fn of(builder: Builder) -> (ProcessPool, Watch) {
        let recorder = DebuggingRecorder::new();
        let watch = Watch { snapshotter: recorder.snapshotter(), seen: Seen::default() };
        (metrics::with_local_recorder(&recorder, || builder.open()).unwrap(), watch)
    }

    fn look(&mut self) -> &Seen {
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let labels = key.key().labels().filter(|label| label.key() != "pool");
            let labels: String = labels.map(|label| format!(" {}", label.value())).collect();
            let name = format!("{}{labels}", key.key().name().strip_prefix("procession_").unwrap());
            match value {
                // Looking takes what there is, and gauges are only ever told by how much they change.
                DebugValue::Counter(count) => *self.seen.counters.entry(name).or_default() += count,
                DebugValue::Gauge(level) => *self.seen.gauges.entry(name).or_default() += level.into_inner(),
                DebugValue::Histogram(times) => {
                    let times = times.into_iter().map(|time| time.into_inner());
                    self.seen.times.entry(name).or_default().extend(times);
                }
            }
        }
        &self.seen
    }

    /// The counters of this name that are not zero, by label.
    fn counted(&mut self, name: &str) -> Vec<(String, u64)> {
        let of_name = |(key, count): (&String, &u64)| {
            let label = key.strip_prefix(name)?.strip_prefix(' ')?;
            (*count > 0).then(|| (label.to_string(), *count))
        };
        self.look().counters.iter().filter_map(of_name).collect()
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.look().counters[name]
    }

    fn gauge(&mut self, name: &str) -> f64 {
        self.look().gauges[name]
    }

    #[track_caller]
    fn expect(&mut self, name: &str, counts: &[(&str, u64)]) {
        let counts: Vec<_> = counts.iter().map(|(label, count)| (label.to_string(), *count)).collect();
        assert_eq!(self.counted(name), counts);
    }

    /// Shuts the pool down and checks that all agrees with its own statistics; `refused` tasks are none
    /// of those.
    async fn end(&mut self, pool: &ProcessPool, refused: u64) -> PoolStats {
        pool.shutdown().await;
        let stats = pool.stats();
        let by_outcome: BTreeMap<_, _> = self.counted("tasks_total").into_iter().collect();
        let of = |outcome: &str| by_outcome.get(outcome).copied().unwrap_or(0);
        assert_eq!(of("succeeded"), stats.succeeded());
        assert_eq!(of("timed_out"), stats.timed_out());
        assert_eq!(of("cancelled"), stats.cancelled());
        assert_eq!(by_outcome.values().sum::<u64>(), stats.submitted() + refused);
        assert_eq!(self.counter("task_retries_total"), stats.retried());
        assert_eq!(self.counter("worker_starts_total"), stats.workers_started());
        let exits = self.counted("worker_exits_total");
        assert_eq!(exits.iter().map(|(_, count)| count).sum::<u64>(), stats.workers_started());
        let deaths =
            exits.iter().filter(|(cause, _)| !["recycled", "retired", "shut_down"].contains(&&**cause));
        assert_eq!(deaths.map(|(_, count)| count).sum::<u64>(), stats.workers_died());
        let seen = self.look();
        assert_eq!(seen.gauges.len(), 6);
        assert!(seen.gauges.values().all(|level| *level == 0.0), "{:?}", seen.gauges);
        assert_eq!(seen.times["task_queue_seconds"].len() as u64, stats.queue_time().count());
        assert_eq!(seen.times["task_run_seconds"].len() as u64, stats.run_time().count());
        assert_eq!(seen.times["worker_start_seconds"].len() as u64, stats.workers_started());
        stats
    }
}

fn double(n: u64) -> u64 {
    2 * n
}

async fn each_outcome_is_counted_once(builder: Builder) {
    let (pool, mut watch) = Watch::of(builder.workers(1).cancel_grace(Duration::ZERO));
    // All that there may be is there from the first.
    assert_eq!(watch.look().counters.keys().filter(|key| key.starts_with("tasks_total ")).count(), 13);
    let meeting = Meeting::new();
    for n in 0..3 {
        pool.submit(double, n).await.unwrap();
    }
    assert_matches!(pool.submit(|| panic!("oh"), ()).await, Err(TaskError::Panicked(_)));
    let fails = || -> anyhow::Result<()> { anyhow::bail!("no") };
    assert_matches!(pool.submit(fails, ()).await, Err(TaskError::Failed(_)));
    let large = pool.submit(|| vec![0_u8; (257 << 20) + 1], ()).await;
    assert_matches!(large.map(drop), Err(TaskError::TooLarge { .. }));
    common::died(pool.submit(|| std::process::abort(), ()).await);
    let stays = pool.task(std::thread::park, ()).timeout(Duration::from_millis(20));
    assert_matches!(stays.await, Err(TaskError::TimedOut { .. }));
    // One that runs, and one that waits behind it.
    let runs = pool.submit(|at: String| attend(&at, "a"), meeting.place());
    let guest = meeting.next().await;
    shown("it runs", || matches!(runs.status(), TaskStatus::Running)).await;
    drop(pool.submit(double, 1));
    drop(runs);
    guest.gone().await;
    watch.end(&pool, 0).await;
    watch.expect(
        "tasks_total",
        &[
            ("cancelled", 2),
            ("failed", 1),
            ("panicked", 1),
            ("succeeded", 3),
            ("timed_out", 1),
            ("too_large", 1),
            ("worker_died", 1),
        ],
    );
    // One byte for each of three numbers, and a string; the results are one byte each.
    assert_eq!(watch.counter("task_argument_bytes_total"), 3 + meeting.place().len() as u64);
    assert_eq!(watch.counter("task_result_bytes_total"), 3);
    let times = &watch.look().times;
    assert!(times["task_run_seconds"].iter().any(|time| (0.02..60.0).contains(time)));
    assert!(times["task_queue_seconds"].iter().all(|time| (0.0..60.0).contains(time)));
}

async fn refused_tasks_are_counted_by_what_was_wrong(builder: Builder) {
    let (pool, mut watch) =
        Watch::of(builder.workers(1).queue_capacity(beside_what_runs(1)).max_message_size(1000));
    let meeting = Meeting::new();
    let runs = pool.submit(|at: String| attend(&at, "a"), meeting.place());
    let guest = meeting.next().await;
    let waits = pool.submit(double, 1);
    for _ in 0..2 {
        assert_matches!(pool.submit(double, 1).await, Err(TaskError::QueueFull { .. }));
    }
    let large = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![0; 1001]);
    assert_matches!(large.await, Err(TaskError::TooLarge { .. }));
    drop(guest);
    runs.await.unwrap();
    waits.await.unwrap();
    pool.shutdown().await;
    assert_matches!(pool.submit(double, 1).await, Err(TaskError::ShutDown));
    watch.end(&pool, 4).await;
    watch.expect("tasks_total", &[("queue_full", 2), ("shut_down", 1), ("succeeded", 2), ("too_large", 1)]);
}

async fn workers_are_counted_by_how_they_ended(builder: Builder) {
    not_with_agents!("workers are the agents', and counted there");
    let (pool, mut watch) =
        Watch::of(builder.workers(1).worker_memory_limit(512 << 20).cancel_grace(Duration::ZERO));
    let crash = || std::process::abort();
    common::died(pool.submit(crash, ()).await);
    common::died(pool.submit(|| std::process::exit(0), ()).await);
    common::died(pool.submit(|| vec![1_u8; 1 << 30].len(), ()).await);
    let stays = pool.task(std::thread::park, ()).timeout(Duration::from_millis(20));
    assert_matches!(stays.await, Err(TaskError::TimedOut { .. }));
    let meeting = Meeting::new();
    let runs = pool.submit(|at: String| attend(&at, "a"), meeting.place());
    let guest = meeting.next().await;
    drop(runs);
    guest.gone().await;
    // One that dies with nothing to do.
    let idle = common::a_worker(&pool).await;
    let pid = rustix::process::Pid::from_raw(idle as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    common::gone(idle).await;
    eventually("its death is known", || pool.stats().workers_died() == 6).await;
    common::a_worker(&pool).await;
    watch.end(&pool, 0).await;
    watch.expect(
        "worker_exits_total",
        &[
            ("cancelled", 1),
            ("exited", 1),
            ("out_of_memory", 1),
            ("shut_down", 1),
            ("signalled", 2),
            ("timed_out", 1),
        ],
    );
    assert_eq!(watch.counter("worker_restarts_total"), 6);
}

async fn recycled_and_idle_workers_are_no_deaths(builder: Builder) {
    not_with_agents!("workers are the agents', and counted there");
    let (pool, mut watch) =
        Watch::of(builder.workers(1).max_tasks_per_worker(2).idle_timeout(Duration::from_millis(50)));
    for n in 0..4 {
        pool.submit(double, n).await.unwrap();
    }
    eventually("all workers are gone", || pool.stats().workers() == 0).await;
    let stats = watch.end(&pool, 0).await;
    let retired = stats.workers_started() - stats.workers_recycled();
    assert!(stats.workers_recycled() >= 1 && retired >= 1, "{stats:?}");
    watch.expect("worker_exits_total", &[("recycled", stats.workers_recycled()), ("retired", retired)]);
    assert_eq!(watch.counter("worker_restarts_total"), 0);
}

fn die_until(attempt: u32) {
    if procession::worker::current().unwrap().attempt() < attempt {
        std::process::abort();
    }
}

async fn retries_and_restarts_are_counted(builder: Builder) {
    let (pool, mut watch) = Watch::of(builder.workers(1));
    pool.task(die_until, 3).retries(5).await.unwrap();
    common::died(pool.task(die_until, 9).retries(1).await);
    common::a_worker(&pool).await;
    watch.end(&pool, 0).await;
    watch.expect("tasks_total", &[("succeeded", 2), ("worker_died", 1)]);
    assert_eq!(watch.counter("task_retries_total"), 3);
    not_with_agents!("workers are the agents', and counted there");
    watch.expect("worker_exits_total", &[("shut_down", 1), ("signalled", 4)]);
    assert_eq!(watch.counter("worker_restarts_total"), 4);
    assert_eq!(watch.counter("worker_start_failures_total"), 0);
}

async fn chunks_of_a_map_are_tasks(builder: Builder) {
    let (pool, mut watch) = Watch::of(builder);
    assert_eq!(pool.map(double, 0..1000_u64).count().await, 1000);
    let stats = watch.end(&pool, 0).await;
    watch.expect("tasks_total", &[("succeeded", stats.submitted())]);
    assert!(stats.submitted() <= 1000);
    assert!(watch.counter("task_argument_bytes_total") >= 1000);
    assert!(watch.counter("task_result_bytes_total") >= 1000);
}

async fn results_of_streams_count_with_their_bytes(builder: Builder) {
    let (pool, mut watch) = Watch::of(builder);
    let items = pool.stream(|n: usize| (0..n).map(|_| vec![7_u8; 1000]), 10);
    assert_eq!(items.count().await, 10);
    let _ = watch.end(&pool, 0).await;
    assert!((10_000..11_000).contains(&watch.counter("task_result_bytes_total")));
}

/// What a recorder may do at its worst.
struct Unruly {
    pool: Mutex<Option<ProcessPool>>,
    calls: AtomicUsize,
}

impl CounterFn for Unruly {
    fn increment(&self, _: u64) {
        panic!("a counter that panics");
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Unruly {
    fn increment(&self, _: f64) {
        let pool = self.pool.lock().unwrap().clone();
        if self.calls.fetch_add(1, Ordering::Relaxed) == 10
            && let Some(pool) = pool
        {
            pool.submit(double, 1).detach();
        }
    }

    fn decrement(&self, _: f64) {}

    fn set(&self, _: f64) {}
}

struct UnrulyRecorder(Arc<Unruly>);

impl Recorder for UnrulyRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == "procession_tasks_total" && key.labels().any(|label| label.value() == "succeeded") {
            Counter::from_arc(self.0.clone())
        } else {
            Counter::noop()
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.0.clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn a_recorder_that_panics_and_calls_back_takes_nobody_along(builder: Builder) {
    let unruly = Arc::new(Unruly { pool: Mutex::default(), calls: AtomicUsize::new(0) });
    let recorder = UnrulyRecorder(unruly.clone());
    let pool = metrics::with_local_recorder(&recorder, || builder.open()).unwrap();
    *unruly.pool.lock().unwrap() = Some(pool.clone());
    for n in 0..20 {
        assert_eq!(pool.submit(double, n).await.unwrap(), 2 * n);
    }
    pool.shutdown().await;
    assert_eq!(pool.stats().succeeded(), 21);
    // It holds the pool, which holds it.
    unruly.pool.lock().unwrap().take();
}

async fn gauges_tell_what_waits_and_runs(builder: Builder) {
    let (pool, mut watch) = Watch::of(builder.cancel_grace(Duration::from_secs(60)));
    assert_eq!(watch.gauge("tasks_queued"), 0.0);
    let meeting = Meeting::new();
    let run = |at: String| async move { attend_async(&at, "a").await };
    let blocks = |at: String| attend(&at, "b");
    let first = pool.submit(run, meeting.place());
    let cancelled = pool.submit(blocks, meeting.place());
    let mut guests = meeting.all(2).await;
    let waiting: Vec<_> = (0..3).map(|n| pool.submit(double, n)).collect();
    let mut levels = |names: &[&str]| names.iter().map(|name| watch.gauge(name)).collect::<Vec<_>>();
    let tasks = ["tasks_queued", "tasks_running"];
    shown("two of five run", || levels(&tasks) == [3.0, 2.0]).await;
    let workers = ["workers busy", "workers idle", "workers starting"];
    shown("both are busy", || levels(&workers) == [2.0, 0.0, 0.0]).await;
    // It goes on running, but is no task of anybody's any more.
    cancelled.cancel();
    assert_matches!(cancelled.await, Err(TaskError::Cancelled));
    assert_eq!(levels(&tasks), [3.0, 1.0]);
    assert_eq!(levels(&["workers busy"]), [2.0]);
    guests.clear();
    first.await.unwrap();
    futures::future::try_join_all(waiting).await.unwrap();
    assert_eq!(levels(&tasks), [0.0, 0.0]);
    eventually("both are idle", || levels(&["workers idle", "workers busy"]) == [2.0, 0.0]).await;
    watch.end(&pool, 0).await;
}

fn gauges_of_a_lost_runtime_are_zero(builder: Builder) {
    let runtime = common::multi_thread();
    let (pool, mut watch, running, guest) = runtime.block_on(async {
        let (pool, watch) = Watch::of(builder);
        let meeting = Meeting::new();
        let running = pool.submit(|at: String| attend(&at, "a"), meeting.place());
        let guest = meeting.next().await;
        (pool, watch, running, guest)
    });
    assert_eq!(watch.gauge("workers busy"), 1.0);
    runtime.shutdown_timeout(common::PATIENCE);
    assert!(watch.look().gauges.values().all(|level| *level == 0.0));
    watch.expect("tasks_total", &[("shut_down", 1)]);
    drop((pool, running, guest));
}

/// Two pools with names of their own, and two that share one, whose gauges add up.
#[test]
fn pools_are_told_apart_by_name() {
    common::run(async {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let build = |name: Option<&str>| {
            let builder = ProcessPool::builder().workers(1);
            let builder = match name {
                Some(name) => builder.name(name),
                None => builder,
            };
            metrics::with_local_recorder(&recorder, || builder.open()).unwrap()
        };
        let pools = [build(Some("thumbnails")), build(Some("thumbnails")), build(None)];
        for pool in &pools {
            pool.submit(double, 1).await.unwrap();
        }
        eventually("all are idle", || pools.iter().all(|pool| pool.stats().idle_workers() == 1)).await;
        let mut told = BTreeMap::new();
        for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
            let (kind, key) = key.into_parts();
            assert!(description.is_some_and(|text| text.ends_with('.')), "{key} is not described");
            let name = key.name();
            let unit_of_name = match name.trim_end_matches("_total") {
                name if name.ends_with("_seconds") => Unit::Seconds,
                name if name.ends_with("_bytes") => Unit::Bytes,
                _ => Unit::Count,
            };
            assert_eq!(unit, Some(unit_of_name), "{name}");
            assert_eq!(kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
            let label = |wanted| key.labels().find(|label| label.key() == wanted).map(|label| label.value());
            let count = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(level) => level.into_inner(),
                DebugValue::Histogram(times) => times.len() as f64,
            };
            let states = [label("outcome"), label("state")].into_iter().flatten();
            let is_told =
                states.clone().next().is_none() || states.clone().any(|s| s == "succeeded" || s == "idle");
            if is_told && label("cause").is_none() {
                told.insert((name.to_string(), label("pool").unwrap().to_string()), count);
            }
        }
        // Agents count those.
        let starts = if server().is_some() { 0.0 } else { 1.0 };
        let counts = [
            ("tasks_total", 1.0),
            ("workers", 1.0),
            ("task_run_seconds", 1.0),
            ("worker_starts_total", starts),
        ];
        for (name, each) in counts {
            let of = |pool: &str| told[&(format!("procession_{name}"), pool.to_string())];
            assert_eq!((of("thumbnails"), of("default")), (2.0 * each, each), "{name}");
        }
        for pool in pools {
            pool.shutdown().await;
        }
        let unnamed = ProcessPool::builder().name("").build().unwrap_err();
        assert_eq!(unnamed.to_string(), "`name` must not be empty");
    });
}
