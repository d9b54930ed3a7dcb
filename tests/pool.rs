//! The workers of a pool: when they start, how long they stay, and what is told about them.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{
    Given, Guest, Ledger, Meeting, Open, a_worker, attend, died, eventually, gone, is_elsewhere, note,
    parent_of, shown,
};
use procession::{Builder, PoolStats, ProcessPool, StartMethod, TaskError, WorkerInfo, WorkerState};

both! {
    a_new_pool_starts_no_worker,
    a_worker_is_used_again,
    a_second_worker_starts_only_when_none_is_idle,
    no_more_workers_start_than_allowed,
    idle_workers_retire_down_to_the_minimum,
    without_a_minimum_every_idle_worker_retires,
    a_worker_retires_after_its_number_of_tasks,
    a_recycled_worker_loses_no_queued_task,
    a_worker_that_grew_too_large_is_replaced,
    warm_up_starts_every_worker,
    an_initializer_runs_once_in_each_worker_before_its_first_task,
    statistics_count_every_outcome,
    statistics_are_one_consistent_snapshot,
    statistics_tell_how_long_tasks_waited_and_ran,
    workers_are_shown_at_work,
    workers_are_shown_with_what_they_did,
    a_pool_is_a_cheap_handle,
    the_start_method_decides_whose_children_workers_are,
}

/// Has `n` tasks run at the same time, each in a worker of its own.
async fn occupy(pool: &ProcessPool, meeting: &Meeting, n: usize) -> Vec<Guest> {
    for _ in 0..n {
        pool.submit(|place: String| attend(&place, "occupied"), meeting.place()).detach();
    }
    meeting.all(n).await
}

/// Has `n` workers started, and idle again.
async fn start(pool: &ProcessPool, n: usize) -> Vec<u32> {
    let meeting = Meeting::new();
    let guests = occupy(pool, &meeting, n).await;
    let pids = guests.iter().map(|guest| guest.pid).collect();
    drop(guests);
    eventually("the tasks finish", || pool.stats().running() == 0).await;
    pids
}

async fn a_new_pool_starts_no_worker(builder: Builder) {
    not_with_agents!("workers are the agents', and counted there");
    let pool = builder.open().unwrap();
    assert_eq!((pool.stats().workers(), pool.stats().workers_started()), (0, 0));
    assert!(pool.workers().is_empty());
    a_worker(&pool).await;
    assert_eq!((pool.stats().workers(), pool.stats().workers_started()), (1, 1));
    pool.shutdown().await;
}

async fn a_worker_is_used_again(builder: Builder) {
    let pool = builder.open().unwrap();
    let pid = a_worker(&pool).await;
    for _ in 0..50 {
        assert_eq!(a_worker(&pool).await, pid);
    }
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert_eq!(pool.stats().workers_started(), 1);
}

async fn a_second_worker_starts_only_when_none_is_idle(builder: Builder) {
    not_with_agents!("workers are the agents', and counted there");
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let first = occupy(&pool, &meeting, 1).await;
    assert_eq!(pool.stats().workers_started(), 1);
    let second = occupy(&pool, &meeting, 1).await;
    assert_eq!(pool.stats().workers_started(), 2);
    assert_ne!(first[0].pid, second[0].pid);
    drop((first, second));
    pool.shutdown().await;
}

async fn no_more_workers_start_than_allowed(builder: Builder) {
    let pool = builder.workers(2).open().unwrap();
    let meeting = Meeting::new();
    let pids: BTreeSet<u32> = {
        let first = occupy(&pool, &meeting, 2).await;
        for _ in 0..4 {
            pool.submit(|place: String| attend(&place, "queued"), meeting.place()).detach();
        }
        let counts = |stats: PoolStats| (stats.running(), stats.queued(), stats.workers());
        shown("two of six run", || counts(pool.stats()) == (2, 4, 2)).await;
        first.iter().map(|guest| guest.pid).collect()
    };
    for _ in 0..4 {
        assert!(pids.contains(&meeting.next().await.pid));
    }
    pool.shutdown().await;
}

async fn idle_workers_retire_down_to_the_minimum(builder: Builder) {
    let idle = Duration::from_millis(50);
    let pool = builder.workers(3).min_workers(1).idle_timeout(idle).open().unwrap();
    let pids = start(&pool, 3).await;
    eventually("two have retired", || pool.stats().workers() == 1).await;
    tokio::time::sleep(idle * 6).await; // time enough for the last one to go, if it did
    assert_eq!(pool.stats().workers(), 1);
    assert!(pids.contains(&a_worker(&pool).await));
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert_eq!((pool.stats().workers_started(), pool.stats().workers_died()), (3, 0));
}

async fn without_a_minimum_every_idle_worker_retires(builder: Builder) {
    let pool = builder.idle_timeout(Duration::from_millis(50)).open().unwrap();
    let pids = start(&pool, 2).await;
    for &pid in &pids {
        gone(pid).await;
    }
    eventually("none is left", || pool.workers().is_empty()).await;
    assert!(!pids.contains(&a_worker(&pool).await));
    pool.shutdown().await;
}

async fn a_worker_retires_after_its_number_of_tasks(builder: Builder) {
    let pool = builder.workers(1).max_tasks_per_worker(5).open().unwrap();
    let mut pids = Vec::new();
    for _ in 0..30 {
        pids.push(a_worker(&pool).await);
    }
    let distinct: BTreeSet<u32> = pids.iter().copied().collect();
    let tasks_of = |pid: u32| pids.iter().filter(|&&other| other == pid).count();
    assert!(distinct.iter().all(|&pid| tasks_of(pid) <= 5), "{pids:?}");
    // At least so many, and fewer than one a task: each is used again.
    assert!((6..=20).contains(&distinct.len()), "{pids:?}");
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
    not_with_agents!("workers are the agents', and counted there");
    assert!(pool.stats().workers_recycled() >= 5);
}

async fn a_recycled_worker_loses_no_queued_task(builder: Builder) {
    let pool = builder.max_tasks_per_worker(3).open().unwrap();
    let ledger = Ledger::new();
    let submit = |n: u32| pool.submit(|place: String, n: u32| note(&place, n), (ledger.place(), n));
    let handles: Vec<_> = (100..160).map(submit).collect();
    futures::future::try_join_all(handles).await.unwrap();
    assert_eq!(ledger.sorted(), (100..160).map(|n| n.to_string()).collect::<Vec<_>>());
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert!(pool.stats().workers_started() >= 20);
}

async fn a_worker_that_grew_too_large_is_replaced(builder: Builder) {
    fn grow() -> u32 {
        black_box(vec![1u8; 600 << 20].leak());
        std::process::id()
    }
    let pool = builder.workers(1).max_worker_rss(300 << 20).open().unwrap();
    let pid = a_worker(&pool).await;
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(pool.submit(grow, ()).await.unwrap(), pid);
    let next = a_worker(&pool).await;
    assert_ne!(next, pid);
    assert_eq!(a_worker(&pool).await, next);
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert_eq!((pool.stats().workers_recycled(), pool.stats().workers_died()), (1, 0));
}

async fn warm_up_starts_every_worker(builder: Builder) {
    not_with_agents!("it waits until there is an agent");
    let pool = builder.workers(3).open().unwrap();
    pool.warm_up().await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.workers(), stats.idle_workers(), stats.starting_workers()), (3, 3, 0));
    let warm: BTreeSet<u32> = pool.workers().iter().map(|worker| worker.pid()).collect();
    let used: BTreeSet<u32> = start(&pool, 3).await.into_iter().collect();
    assert_eq!(used, warm);
    pool.warm_up().await.unwrap();
    assert_eq!(pool.stats().workers_started(), 3);
    pool.shutdown().await;
}

async fn an_initializer_runs_once_in_each_worker_before_its_first_task(builder: Builder) {
    static READY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    fn initialize(place: String, word: String) -> anyhow::Result<()> {
        note(&place, std::process::id());
        READY.set(word).map_err(|_| anyhow::anyhow!("a second time"))
    }
    let ledger = Ledger::new();
    let pool = builder.initializer(initialize, (ledger.place(), "ready".to_owned())).open().unwrap();
    let mut pids = start(&pool, 2).await;
    for _ in 0..10 {
        assert_eq!(pool.submit(|| READY.get().cloned(), ()).await.unwrap().unwrap(), "ready");
    }
    let exit = died(pool.submit(|| -> u8 { std::process::exit(1) }, ()).await);
    assert!(pids.contains(&exit.pid()));
    pids.extend(start(&pool, 2).await);
    let pids: BTreeSet<String> = pids.iter().map(u32::to_string).collect();
    assert_eq!(ledger.sorted(), pids.into_iter().collect::<Vec<_>>());
    assert_eq!(READY.get(), None, "it ran elsewhere");
    pool.shutdown().await;
}

async fn statistics_count_every_outcome(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    for _ in 0..3 {
        a_worker(&pool).await;
    }
    pool.submit(|| panic!("one"), ()).await.unwrap_err();
    pool.submit(|| anyhow::Result::<u8>::Err(anyhow::anyhow!("two")), ()).await.unwrap_err();
    died(pool.submit(|| -> u8 { std::process::exit(0) }, ()).await);
    let slow = pool.task(|| std::thread::sleep(Duration::from_secs(3600)), ());
    assert_matches!(slow.timeout(Duration::from_millis(20)).await, Err(TaskError::TimedOut { .. }));
    let meeting = Meeting::new();
    let guests = occupy(&pool, &meeting, 1).await;
    drop(pool.submit(|| (), ()));
    eventually("the drop counts", || pool.stats().cancelled() == 1).await;
    let counts = |now: PoolStats| (now.running(), now.queued(), now.idle_workers());
    shown("one runs", || counts(pool.stats()) == (1, 0, 0)).await;
    drop(guests);
    pool.shutdown().await;
    let end = pool.stats();
    assert_eq!((end.submitted(), end.succeeded(), end.failed()), (9, 4, 3));
    assert_eq!((end.cancelled(), end.timed_out(), end.retried()), (1, 1, 0));
    assert_eq!((end.running(), end.queued(), end.workers()), (0, 0, 0));
    not_with_agents!("workers are the agents', and counted there");
    assert!(end.workers_started() >= 3 && end.workers_died() >= 1);
}

async fn statistics_tell_how_long_tasks_waited_and_ran(builder: Builder) {
    const LONG: Duration = Duration::from_millis(60);
    let pool = builder.workers(1).open().unwrap();
    assert_eq!((pool.stats().run_time().count(), pool.stats().run_time().p99()), (0, Duration::ZERO));
    a_worker(&pool).await;
    let long = pool.submit(std::thread::sleep, LONG);
    // Behind a task that long, nothing runs before that is done.
    let waiting: Vec<_> = (0..9).map(|_| pool.submit(|| (), ())).collect();
    let in_queue = pool.submit(|| (), ());
    in_queue.cancel();
    drop(in_queue);
    long.await.unwrap();
    for task in waiting {
        task.await.unwrap();
    }
    died(pool.submit(std::process::abort, ()).await.map(|_| ())).pid();
    let stats = pool.stats();
    let (queue, run) = (stats.queue_time(), stats.run_time());
    assert_eq!((queue.count(), run.count()), (12, 12), "all but the one that never began");
    assert!(run.max() >= LONG && run.p50() < LONG && run.mean() >= LONG / 12, "{run:?}");
    assert!(queue.quantile(0.5) >= LONG / 2, "most waited for the long one: {queue:?}");
    assert!(
        queue.p50() <= queue.p90() && queue.p90() <= queue.p99() && queue.p99() <= queue.max() * 102 / 100
    );
    pool.shutdown().await;
}

async fn statistics_are_one_consistent_snapshot(builder: Builder) {
    let pool = builder.open().unwrap();
    let busy = pool.clone();
    let work = tokio::spawn(async move {
        let handles: Vec<_> = (0..2000u32).map(|n| busy.submit(|n: u32| n, n)).collect();
        futures::future::try_join_all(handles).await.unwrap();
    });
    while !work.is_finished() {
        let stats = pool.stats();
        let ended = stats.succeeded() + stats.failed() + stats.cancelled() + stats.timed_out();
        let under_way = (stats.queued() + stats.running()) as u64;
        assert_eq!(stats.submitted(), ended + under_way, "{stats:?}");
        assert!(stats.running() <= 2 && stats.workers() <= 2, "{stats:?}");
        tokio::task::yield_now().await;
    }
    work.await.unwrap();
    assert_eq!(pool.stats().succeeded(), 2000);
    pool.shutdown().await;
}

async fn workers_are_shown_at_work(builder: Builder) {
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let before = Instant::now();
    let task = pool.submit(|place: String| attend(&place, "one"), meeting.place());
    let guest = meeting.next().await;
    eventually("it is shown as busy", || {
        let workers = pool.workers();
        workers.len() == 1 && matches!(workers[0].state(), WorkerState::Busy)
    })
    .await;
    shown("what it is busy with", || pool.workers()[0].current_task() == Some(task.id())).await;
    let worker = &pool.workers()[0];
    assert_eq!(worker.pid(), guest.pid);
    assert_eq!(worker.tasks_done(), 0);
    assert!(worker.started() >= before && worker.started() <= Instant::now());
    assert!(worker.rss() > 0 || is_elsewhere(), "of others nobody knows");
    drop(guest);
    task.await.unwrap();
    pool.shutdown().await;
    assert!(pool.workers().is_empty());
}

async fn workers_are_shown_with_what_they_did(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    for _ in 0..5 {
        a_worker(&pool).await;
    }
    eventually("five tasks done, and idle", || {
        let workers = pool.workers();
        let is_idle = |worker: &WorkerInfo| matches!(worker.state(), WorkerState::Idle);
        workers.first().is_some_and(|worker| worker.tasks_done() == 5 && is_idle(worker))
    })
    .await;
    assert_eq!(pool.workers()[0].current_task(), None);
    pool.shutdown().await;
}

async fn a_pool_is_a_cheap_handle(builder: Builder) {
    fn is_handle<T: Clone + Send + Sync + 'static>(_: &T) {}
    let pool = builder.workers(1).open().unwrap();
    is_handle(&pool);
    let other = pool.clone();
    assert_eq!(a_worker(&pool).await, a_worker(&other).await);
    drop(pool);
    a_worker(&other).await;
    other.shutdown().await;
}

async fn the_start_method_decides_whose_children_workers_are(method: StartMethod) {
    here_only!("each worker is the child of a steward of its own");
    let pool = Builder::given(method).open().unwrap();
    let parents = start(&pool, 2).await.into_iter().map(parent_of);
    let parents: BTreeSet<u32> = parents.map(Option::unwrap).collect();
    let ourselves = std::process::id();
    match method {
        StartMethod::Spawn => assert_eq!(parents, BTreeSet::from([ourselves])),
        _ => {
            let server = *parents.first().unwrap();
            assert_eq!((parents.len(), parent_of(server)), (1, Some(ourselves)));
        }
    }
    pool.shutdown().await;
}
