//! What those see who watch a pool whose tasks are run by agents: metrics and the timeline.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use procession::{ProcessPool, TaskError, TaskStatus, worker};

use crate::common::{Meeting, attend, died, eventually};
use crate::stage::{Stage, play};

/// What a recorder was told.
#[derive(Default)]
struct Watch {
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    times: BTreeMap<String, Vec<f64>>,
    snapshotter: Option<Snapshotter>,
}

impl Watch {
    fn of(stage: &Stage) -> (ProcessPool, Watch) {
        let recorder = DebuggingRecorder::new();
        let watch = Watch { snapshotter: Some(recorder.snapshotter()), ..Watch::default() };
        (metrics::with_local_recorder(&recorder, || stage.pool()), watch)
    }

    fn look(&mut self) -> &Watch {
        let snapshot = self.snapshotter.as_ref().map(|snapshotter| snapshotter.snapshot().into_vec());
        for (key, _, _, value) in snapshot.into_iter().flatten() {
            let labels = key.key().labels().filter(|label| label.key() != "pool");
            let labels: String = labels.map(|label| format!(" {}", label.value())).collect();
            let name = format!("{}{labels}", key.key().name().strip_prefix("procession_").unwrap());
            match value {
                DebugValue::Counter(count) => *self.counters.entry(name).or_default() += count,
                DebugValue::Gauge(level) => *self.gauges.entry(name).or_default() += level.into_inner(),
                DebugValue::Histogram(times) => {
                    let times = times.into_iter().map(|time| time.into_inner());
                    self.times.entry(name).or_default().extend(times);
                }
            }
        }
        self
    }

    /// How many tasks have ended, by how they did.
    fn outcomes(&mut self) -> Vec<(String, u64)> {
        let counters = self.look().counters.iter();
        let tasks = counters.filter_map(|(name, count)| Some((name.strip_prefix("tasks_total ")?, *count)));
        tasks.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
    }

    fn gauge(&mut self, name: &str) -> f64 {
        self.look().gauges[name]
    }
}

fn counted(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn each_task_is_counted_once() {
    play(async |stage| {
        let agent = stage.agent(1).await;
        let (pool, mut watch) = Watch::of(&stage);
        for n in 0..5_u32 {
            pool.submit(|n: u32| std::thread::sleep(Duration::from_millis(n.into())), n).await.unwrap();
        }
        crate::common::panicked(pool.submit(|| panic!("on purpose"), ()).await);
        let fatal = || {
            if worker::current().unwrap().attempt() < 3 {
                std::process::abort()
            }
        };
        pool.task(fatal, ()).retries(2).await.unwrap();
        died(pool.submit(|| -> () { std::process::abort() }, ()).await);
        let slow = || std::thread::sleep(Duration::from_secs(60));
        let late = pool.task(slow, ()).timeout(Duration::from_millis(50)).await;
        assert_matches!(late, Err(TaskError::TimedOut { .. }));
        let meeting = Meeting::new();
        let task = pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let guest = meeting.next().await;
        eventually("it runs", || task.status() == TaskStatus::Running).await;
        drop(task);
        drop(guest);
        let items: Vec<u8> = pool.stream(|| vec![7_u8; 1000].into_iter(), ()).try_collect().await.unwrap();
        assert_eq!(items.len(), 1000);
        pool.shutdown().await;
        assert_matches!(pool.submit(|| (), ()).await, Err(TaskError::ShutDown));
        let expected = [
            ("cancelled", 1),
            ("panicked", 1),
            ("shut_down", 1),
            ("succeeded", 7),
            ("timed_out", 1),
            ("worker_died", 1),
        ];
        assert_eq!(watch.outcomes(), counted(&expected));
        let seen = watch.look();
        assert_eq!(seen.counters["task_retries_total"], 2);
        assert!((1000..1100).contains(&seen.counters["task_result_bytes_total"]));
        assert_eq!((seen.times["task_queue_seconds"].len(), seen.times["task_run_seconds"].len()), (11, 11));
        assert!(seen.times["task_run_seconds"].iter().any(|time| (0.05..30.0).contains(time)));
        assert!(seen.gauges.values().all(|level| *level == 0.0), "{:?}", seen.gauges);
        agent.shutdown().await;
        stage
    });
}

#[test]
fn gauges_tell_what_waits_and_runs() {
    play(async |stage| {
        let (agent, meeting) = (stage.agent(1).await, Meeting::new());
        let (pool, mut watch) = Watch::of(&stage);
        let task = |place: String| attend(&place, "task");
        let tasks: Vec<_> = (0..3).map(|_| pool.submit(task, meeting.place())).collect();
        let guest = meeting.next().await;
        let mut is = |queued: f64, running: f64| {
            (watch.gauge("tasks_queued"), watch.gauge("tasks_running")) == (queued, running)
        };
        eventually("one runs", || is(2.0, 1.0)).await;
        drop(guest);
        let guest = meeting.next().await;
        eventually("another one runs", || is(1.0, 1.0)).await;
        drop(guest);
        drop(meeting.next().await);
        for task in tasks {
            task.await.unwrap();
        }
        assert!(is(0.0, 0.0));
        eventually("its worker is seen", || watch.gauge("workers idle") == 1.0).await;
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_timeline_has_every_attempt() {
    play(async |stage| {
        let agent = stage.agent(1).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let pool = stage.builder().timeline(&path).build().unwrap();
        let pid = || {
            std::thread::sleep(Duration::from_millis(50));
            std::process::id()
        };
        let worker = pool.task(pid, ()).name("named").await.unwrap();
        let fatal = || {
            std::thread::sleep(Duration::from_millis(50));
            if worker::current().unwrap().attempt() == 1 {
                std::process::abort();
            }
        };
        pool.task(fatal, ()).name("fatal").retries(1).await.unwrap();
        for _ in 0..50 {
            pool.submit(|| (), ()).await.unwrap();
        }
        pool.shutdown().await;
        let trace: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let named = |name: &str| trace.iter().filter(|event| event["name"] == name).collect::<Vec<_>>();
        let slice = named("named")[0];
        assert_eq!((&slice["ph"], &slice["tid"]), (&"X".into(), &worker.into()));
        assert!((40_000.0..10_000_000.0).contains(&slice["dur"].as_f64().unwrap()), "{slice}");
        let attempts: Vec<_> = named("fatal")
            .iter()
            .map(|event| (event["args"]["attempt"].as_u64(), event["args"]["outcome"].as_str()))
            .collect();
        assert_eq!(attempts, [(Some(1), Some("worker_died")), (Some(2), Some("succeeded"))]);
        let tasks = trace.iter().filter(|event| event["args"]["outcome"].is_string()).count();
        assert_eq!(tasks, 53);
        agent.shutdown().await;
        stage
    });
}
