//! `Builder::timeline`: a trace of what ran where and when, good at all times.
#![cfg(all(target_os = "linux", feature = "auto-init"))]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Guest, Meeting, Open, attend, beside_what_runs, eventually, server, shown};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use procession::{Builder, PoolError, ProcessPool, StartMethod, TaskError, TaskStatus};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::Value;
use tempfile::TempDir;

both! {
    every_task_is_a_slice_on_the_track_of_its_worker,
    slices_of_a_worker_do_not_overlap,
    retries_and_deaths_are_shown,
    tasks_that_no_worker_began_are_told_beside,
    chunks_do_not_overlap,
    a_crash_leaves_a_file_that_can_be_loaded,
    a_pool_that_is_dropped_finishes_its_file,
}

/// A trace that was written to a file.
struct Trace(Vec<Value>);

impl Trace {
    fn parse(text: &[u8]) -> Trace {
        Trace(serde_json::from_slice(text).unwrap())
    }

    fn read(path: &Path) -> Trace {
        Trace::parse(&fs::read(path).unwrap())
    }

    /// Of a file that may not be complete.
    fn read_cut(path: &Path) -> Trace {
        let mut text = fs::read(path).unwrap();
        if !text.ends_with(b"]\n") {
            text.push(b']');
        }
        Trace::parse(&text)
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |event| event["ph"] == kind)
    }

    fn tasks(&self) -> Vec<&Value> {
        self.of_kind("X").filter(|event| event["cat"] == "task").collect()
    }

    fn named(&self, name: &str) -> Vec<&Value> {
        self.0.iter().filter(|event| event["name"] == name).collect()
    }

    /// The outcomes of the slices with this name, by attempt.
    fn attempts(&self, name: &str) -> Vec<(u64, &str)> {
        let mut attempts: Vec<_> = self.named(name).into_iter().map(attempt_of).collect();
        attempts.sort();
        attempts
    }

    /// The slices of each track, as their beginnings and ends in nanoseconds, in order.
    fn tracks(&self) -> BTreeMap<u64, Vec<(u64, u64)>> {
        let mut tracks: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in self.of_kind("X") {
            let (began, took) = (nanos(&slice["ts"]), nanos(&slice["dur"]));
            tracks.entry(slice["tid"].as_u64().unwrap()).or_default().push((began, began + took));
        }
        tracks.values_mut().for_each(|slices| slices.sort());
        tracks
    }

    fn expect_no_overlap(&self) {
        for (track, slices) in self.tracks() {
            for pair in slices.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{pair:?} overlap on track {track}");
            }
        }
    }

    /// How many events were left out.
    fn left_out(&self) -> u64 {
        let told = self.named("events left out");
        told.last().map_or(0, |event| event["args"]["dropped"].as_u64().unwrap())
    }
}

fn attempt_of(event: &Value) -> (u64, &str) {
    (event["args"]["attempt"].as_u64().unwrap(), event["args"]["outcome"].as_str().unwrap())
}

fn nanos(micros: &Value) -> u64 {
    (micros.as_f64().unwrap() * 1000.0).round() as u64
}

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("trace.json")
    }

    /// A pipe there, that one reads.
    fn pipe(&self) -> File {
        mkfifoat(CWD, self.path(), Mode::RUSR | Mode::WUSR).unwrap();
        // To read and to write, so that it is open at once.
        File::options().read(true).write(true).open(self.path()).unwrap()
    }
}

fn double(n: u64) -> u64 {
    2 * n
}

async fn every_task_is_a_slice_on_the_track_of_its_worker(builder: Builder) {
    not_with_agents!("a task of less than a millisecond is a moment on the pool's own track");
    let place = Place::new();
    let pool = builder.name("doublers").open_with(|ours| ours.timeline(place.path())).unwrap();
    let names = ["plain", "qu\"o\\te", "line\nfeed \u{1}\u{7f}", "Größe 🦀 \u{2028}", "</script>"];
    let mut pids = BTreeSet::new();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(pool.task(double, n as u64).name(*name).await.unwrap(), 2 * n as u64);
        pids.insert(u64::from(common::a_worker(&pool).await));
    }
    pool.shutdown().await;
    let trace = Trace::read(&place.path());
    for name in names {
        let found = trace.named(name);
        assert_eq!(found.len(), 1, "{name:?}");
        let args = &found[0]["args"];
        assert_eq!(attempt_of(found[0]), (1, "succeeded"));
        assert_eq!((&args["bytes_in"], &args["bytes_out"]), (&Value::from(1), &Value::from(1)));
        assert!(args["function"].as_str().unwrap().ends_with("timeline::double"), "{args}");
        assert!(args["submitted_at"].as_str().unwrap().starts_with("tests/timeline.rs:"), "{args}");
        assert!(args["waited_us"].as_f64().unwrap() > 0.0);
    }
    // A task without a name goes by its function.
    assert_eq!(trace.tasks().len(), 2 * names.len());
    assert_eq!(trace.tasks().iter().filter(|task| task["name"] == "std::process::id").count(), names.len());
    let ids: BTreeSet<_> = trace.tasks().iter().map(|task| task["args"]["id"].as_u64()).collect();
    assert_eq!(ids.len(), 2 * names.len());
    // On tracks that are known and have a name, as has the pool.
    let tracks: BTreeSet<_> = trace.tasks().iter().map(|task| task["tid"].as_u64().unwrap()).collect();
    assert_eq!(tracks, pids);
    let track_names: Vec<_> =
        trace.named("thread_name").into_iter().map(|event| &event["args"]["name"]).collect();
    for pid in pids {
        assert!(track_names.contains(&&Value::from(format!("worker {pid}"))));
    }
    assert_eq!(trace.named("process_name")[0]["args"]["name"], "procession: doublers");
    let program = u64::from(std::process::id());
    assert!(trace.0.iter().all(|event| event["pid"] == program));
    // Each worker has started, and ended with the pool; the counters fall to zero.
    assert_eq!(trace.named("start").len(), trace.named("worker ended: shut_down").len());
    let last = |name| trace.named(name).last().unwrap()["args"].clone();
    assert_eq!(last("tasks"), serde_json::json!({ "queued": 0, "running": 0 }));
    assert_eq!(last("workers"), serde_json::json!({ "busy": 0, "idle": 0, "starting": 0, "retiring": 0 }));
    assert_eq!(trace.left_out(), 0);
}

async fn slices_of_a_worker_do_not_overlap(builder: Builder) {
    not_with_agents!("a task of less than a millisecond is a moment on the pool's own track");
    const TASKS: u64 = 5_000;
    let place = Place::new();
    let pool = builder.open_with(|ours| ours.timeline(place.path())).unwrap();
    let tasks: FuturesUnordered<_> = (0..TASKS).map(|n| pool.submit(double, n)).collect();
    assert_eq!(tasks.filter(|outcome| std::future::ready(outcome.is_ok())).count().await as u64, TASKS);
    pool.shutdown().await;
    let trace = Trace::read(&place.path());
    assert_eq!(trace.tasks().len() as u64, TASKS);
    assert!(trace.tasks().into_iter().all(|task| attempt_of(task) == (1, "succeeded")));
    trace.expect_no_overlap();
    assert!(trace.named("tasks").iter().any(|event| event["args"]["queued"].as_u64() > Some(0)));
}

async fn chunks_do_not_overlap(builder: Builder) {
    not_with_agents!("a task of less than a millisecond is a moment on the pool's own track");
    const ITEMS: u64 = 20_000;
    let place = Place::new();
    let pool = builder.open_with(|ours| ours.timeline(place.path())).unwrap();
    assert_eq!(pool.map(double, 0..ITEMS).chunk_size(50).count().await as u64, ITEMS);
    pool.shutdown().await;
    let trace = Trace::read(&place.path());
    let items = trace.tasks().iter().map(|task| task["args"]["items"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(items, ITEMS);
    assert!(trace.tasks().len() as u64 >= ITEMS / 50);
    trace.expect_no_overlap();
}

fn die_once(mark: String) {
    if fs::write(Path::new(&mark), "").is_ok() && procession::worker::current().unwrap().attempt() == 1 {
        std::process::abort();
    }
}

async fn retries_and_deaths_are_shown(builder: Builder) {
    let place = Place::new();
    let pool = builder
        .workers(1)
        .cancel_grace(Duration::ZERO)
        .open_with(|ours| ours.timeline(place.path()))
        .unwrap();
    let mark = place.0.path().join("mark").to_str().unwrap().to_string();
    pool.task(die_once, mark).name("dies once").retries(1).await.unwrap();
    let meeting = Meeting::new();
    let stays = pool.task(|at: String| attend(&at, "a"), meeting.place()).name("stays");
    let stays = stays.timeout(Duration::from_millis(20)).submit();
    assert_matches!(stays.await, Err(TaskError::TimedOut { .. }));
    let leaves = pool.task(|| std::process::exit(7), ()).name("leaves").await;
    assert_eq!(common::died(leaves).code(), Some(7));
    assert_matches!(pool.task(|| panic!("oh"), ()).name("panics").await, Err(TaskError::Panicked(_)));
    // The guest of the task that timed out has come first.
    let cancelled = pool.task(|at: String| attend(&at, "b"), meeting.place()).name("is cancelled").submit();
    let mut guest: Guest = meeting.next().await;
    while guest.who != "b" {
        guest = meeting.next().await;
    }
    shown("it runs", || matches!(cancelled.status(), TaskStatus::Running)).await;
    cancelled.cancel();
    assert_matches!(cancelled.await, Err(TaskError::Cancelled));
    guest.gone().await;
    common::a_worker(&pool).await;
    pool.shutdown().await;

    let trace = Trace::read(&place.path());
    assert_eq!(trace.attempts("dies once"), [(1, "worker_died"), (2, "succeeded")]);
    let retried: Vec<_> = trace.named("dies once").iter().map(|run| run["args"]["retried"].clone()).collect();
    assert_eq!(retried, [true, false]);
    for (name, outcome) in [
        ("stays", "timed_out"),
        ("leaves", "worker_died"),
        ("panics", "panicked"),
        ("is cancelled", "cancelled"),
    ] {
        assert_eq!(trace.attempts(name), [(1, outcome)], "{name}");
        // Of one that was over in a moment an agent does not tell which worker had it.
        assert!(trace.named(name)[0]["ph"] == "X" || server().is_some(), "{name}");
    }
    trace.expect_no_overlap();
    not_with_agents!("what becomes of a worker is told to its agent's program");
    for (name, task) in [
        ("worker died: signalled", "dies once"),
        ("worker died: timed_out", "stays"),
        ("worker died: exited", "leaves"),
        ("worker died: cancelled", "is cancelled"),
    ] {
        let deaths = trace.named(name);
        assert_eq!(deaths.len(), 1, "{name}");
        // On the track of that task, when that was over.
        let run = trace.named(task)[0];
        assert_eq!(deaths[0]["tid"], run["tid"]);
        assert!(nanos(&deaths[0]["ts"]) >= nanos(&run["ts"]) + nanos(&run["dur"]));
    }
    let told = &trace.named("worker died: exited")[0]["args"]["exit"];
    assert!(told.as_str().unwrap().contains("exited with code 7"), "{told}");
    let restarts = trace
        .named("start")
        .iter()
        .map(|start| start["args"]["restart"].as_bool().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(restarts, [false, true, true, true, true]);
}

async fn tasks_that_no_worker_began_are_told_beside(builder: Builder) {
    let place = Place::new();
    let pool = builder
        .workers(1)
        .queue_capacity(beside_what_runs(1))
        .open_with(|ours| ours.timeline(place.path()))
        .unwrap();
    let meeting = Meeting::new();
    let first = pool.submit(|at: String| attend(&at, "a"), meeting.place());
    let guest = meeting.next().await;
    let waits = pool.task(double, 1).name("is cancelled").submit();
    let refused = pool.task(double, 1).name("finds no room").await;
    assert_matches!(refused, Err(TaskError::QueueFull { .. }));
    drop(waits);
    drop(guest);
    first.await.unwrap();
    pool.shutdown().await;
    let trace = Trace::read(&place.path());
    for (name, outcome) in [("is cancelled", "cancelled"), ("finds no room", "queue_full")] {
        assert_eq!(trace.attempts(name), [(0, outcome)]);
        let event = trace.named(name)[0];
        assert_eq!((&event["ph"], &event["tid"]), (&Value::from("i"), &Value::from(std::process::id())));
    }
}

async fn a_crash_leaves_a_file_that_can_be_loaded(builder: Builder) {
    not_with_agents!("a task of less than a millisecond is a moment on the pool's own track");
    let place = Place::new();
    let pool = builder.open_with(|ours| ours.timeline(place.path())).unwrap();
    // It is good before anything has happened, and while things do.
    assert_eq!(Trace::read_cut(&place.path()).named("process_name").len(), 1);
    for round in 1..=3 {
        pool.submit(double, round).await.unwrap();
        eventually("the task is in the file", || {
            Trace::read_cut(&place.path()).tasks().len() as u64 == round
        })
        .await;
    }
    assert!(!fs::read(place.path()).unwrap().ends_with(b"]\n"), "it is complete before the end");
    pool.shutdown().await;
    assert_eq!(Trace::read(&place.path()).tasks().len(), 3);
}

async fn a_pool_that_is_dropped_finishes_its_file(builder: Builder) {
    not_with_agents!("a task of less than a millisecond is a moment on the pool's own track");
    let place = Place::new();
    let pool = builder.open_with(|ours| ours.timeline(place.path())).unwrap();
    pool.submit(double, 1).detach();
    drop(pool);
    eventually("the file is complete", || fs::read(place.path()).unwrap().ends_with(b"]\n")).await;
    let trace = Trace::read(&place.path());
    assert_eq!(trace.tasks().len(), 1);
    assert_eq!(trace.named("worker ended: shut_down").len(), 1);
    eventually("the thread is gone", || writers() == 0).await;
}

/// How many threads write a timeline.
fn writers() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name == "timeline\n").count()
}

fn pool_with(path: &Path) -> Result<ProcessPool, PoolError> {
    ProcessPool::builder().workers(1).timeline(path).build()
}

#[test]
fn what_cannot_be_written_is_an_error_of_build() {
    common::run(async {
        let place = Place::new();
        let directory = place.0.path();
        for path in [directory, &directory.join("none/trace"), Path::new("/dev/full"), Path::new("")] {
            let error = pool_with(path).unwrap_err();
            assert_matches!(&error, PoolError::Timeline { path: told, .. } if told == path);
            let text = error.to_string();
            assert!(
                text.contains(&path.display().to_string()) && text.contains("Builder::timeline"),
                "{text}"
            );
        }
        // A pipe that nobody reads is no wait.
        drop(place.pipe());
        assert_matches!(pool_with(&place.path()), Err(PoolError::Timeline { .. }));
        assert_eq!(writers(), 0);
    });
}

#[test]
fn a_file_belongs_to_one_pool_at_a_time() {
    common::run(async {
        let place = Place::new();
        let first = pool_with(&place.path()).unwrap();
        first.submit(double, 1).await.unwrap();
        let error = pool_with(&place.path()).unwrap_err();
        assert!(error.to_string().contains("another pool writes to it"), "{error}");
        // Nor can one in a worker, which is another process.
        let other = ProcessPool::new().unwrap();
        let build = async |path: String| pool_with(Path::new(&path)).map(drop).map_err(|e| e.to_string());
        let path = place.path().to_str().unwrap().to_string();
        let refused = other.submit(build, path).await.unwrap().unwrap_err();
        assert!(refused.contains("another pool writes to it"), "{refused}");
        other.shutdown().await;
        first.shutdown().await;
        assert_eq!(Trace::read(&place.path()).tasks().len(), 1);
        // The next one replaces it.
        let next = pool_with(&place.path()).unwrap();
        next.shutdown().await;
        assert_eq!(Trace::read(&place.path()).tasks().len(), 0);
    });
}

#[test]
fn a_lost_runtime_ends_the_file() {
    common::alone(|| {
        let place = Place::new();
        let runtime = common::multi_thread();
        let (pool, running, guest) = runtime.block_on(async {
            let pool = pool_with(&place.path()).unwrap();
            let meeting = Meeting::new();
            let running = pool.task(|at: String| attend(&at, "a"), meeting.place()).name("runs").submit();
            (pool, running, meeting.next().await)
        });
        runtime.shutdown_timeout(common::PATIENCE);
        common::current_thread().block_on(async {
            assert_matches!(running.await, Err(TaskError::ShutDown));
            eventually("the thread is gone", || writers() == 0).await;
        });
        assert_eq!(Trace::read(&place.path()).attempts("runs"), [(1, "shut_down")]);
        drop((pool, guest));
    });
}

/// More than can wait to be written, to a pipe that nobody reads for now: what has no room is
/// counted, the pool goes on, and a shutdown does not wait for ever.
#[test]
fn what_the_writer_cannot_keep_up_with_is_counted() {
    const TASKS: u64 = 100_000;
    common::run(async {
        let place = Place::new();
        let mut reader = place.pipe();
        let pool = pool_with(&place.path()).unwrap();
        let mut tasks = FuturesUnordered::new();
        for n in 0..TASKS {
            tasks.push(pool.submit(double, n));
            if tasks.len() == 4096 {
                tasks.next().await.unwrap().unwrap();
            }
        }
        while let Some(outcome) = tasks.next().await {
            outcome.unwrap();
        }
        let start = Instant::now();
        pool.shutdown().await;
        assert!(start.elapsed() >= Duration::from_secs(2), "it has not waited for the writer");
        assert_eq!(writers(), 1);
        // When the pipe flows, the rest comes, up to the end.
        let text = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            while !text.ends_with(b"]\n") {
                let mut piece = [0; 65536];
                let read = reader.read(&mut piece).unwrap();
                text.extend_from_slice(&piece[..read]);
            }
            text
        });
        let trace = Trace::parse(&text.await.unwrap());
        assert!(trace.left_out() > 0);
        assert_eq!(trace.tasks().len() as u64 + trace.left_out(), TASKS);
        // What became of the worker is there all the same.
        assert_eq!(trace.named("start").len(), 1);
        assert_eq!(trace.named("worker ended: shut_down").len(), 1);
        trace.expect_no_overlap();
        eventually("the thread is gone", || writers() == 0).await;
    });
}

#[test]
fn a_start_that_fails_is_told() {
    common::run(async {
        let place = Place::new();
        let never = || -> anyhow::Result<()> { anyhow::bail!("no \"model\" here") };
        let builder = ProcessPool::builder().workers(1).start_method(StartMethod::ForkServer);
        let pool = builder.initializer(never, ()).open_with(|ours| ours.timeline(place.path())).unwrap();
        assert_matches!(pool.task(double, 1).name("waits").await, Err(TaskError::PoolBroken(_)));
        pool.shutdown().await;
        let trace = Trace::read(&place.path());
        not_with_agents!("what becomes of a worker is told to its agent's program");
        assert_eq!(trace.attempts("waits"), [(0, "pool_broken")]);
        let failures = trace.named("start failed");
        assert_eq!(failures.len(), 3);
        assert!(failures[0]["args"]["reason"].as_str().unwrap().contains("no \"model\" here"));
    });
}
