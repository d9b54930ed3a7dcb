//! How tasks wait, in which order they begin, when they run again, and what they know about
//! themselves.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::pin::pin;
use std::time::{Duration, Instant};

use common::{Ledger, Meeting, Open, a_worker, attend, died, note, server};
use futures::poll;
use procession::{Builder, Priority, ProcessPool, TaskError, worker};

both! {
    tasks_of_equal_priority_begin_in_order,
    tasks_of_higher_priority_begin_first,
    a_free_worker_takes_the_task_behind_a_long_one,
    the_queue_has_room_for_its_capacity_beside_the_workers,
    a_reservation_waits_for_room,
    a_reservation_keeps_its_room_until_it_is_used_or_dropped,
    a_reservation_ends_with_the_pool,
    an_unbounded_queue_always_has_room,
    queued_tasks_need_no_descriptors,
    a_task_runs_again_after_a_death,
    a_task_runs_no_more_often_than_told,
    a_task_runs_again_after_its_time_is_out,
    an_error_of_the_task_itself_is_no_reason_to_run_again,
    a_task_without_retries_runs_once,
    a_task_builder_is_a_future,
    a_task_knows_its_id_and_name,
    a_task_knows_its_attempt,
    a_task_knows_its_deadline,
}

/// A pool of one worker, which is at a task until the guest is let go.
async fn occupied(builder: Builder) -> (ProcessPool, common::Guest) {
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    pool.submit(|place: String| attend(&place, "occupied"), meeting.place()).detach();
    let guest = meeting.next().await;
    (pool, guest)
}

fn note_it(place: String, what: String) {
    note(&place, what);
}

async fn tasks_of_equal_priority_begin_in_order(builder: Builder) {
    let (pool, guest) = occupied(builder).await;
    let ledger = Ledger::new();
    for n in 0..100 {
        pool.submit(note_it, (ledger.place(), n.to_string())).detach();
    }
    drop(guest);
    pool.shutdown().await;
    assert_eq!(ledger.lines(), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

async fn tasks_of_higher_priority_begin_first(builder: Builder) {
    not_with_agents!("an agent looks for urgent tasks every 50 ms, and these come all at once");
    let (pool, guest) = occupied(builder).await;
    let ledger = Ledger::new();
    for round in [1, 2] {
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            let arguments = (ledger.place(), format!("{priority:?} {round}"));
            pool.task(note_it, arguments).priority(priority).submit().detach();
        }
    }
    pool.submit(note_it, (ledger.place(), "Normal by default".to_owned())).detach();
    drop(guest);
    pool.shutdown().await;
    let order = ["High 1", "High 2", "Normal 1", "Normal 2", "Normal by default", "Low 1", "Low 2"];
    assert_eq!(ledger.lines(), order);
}

async fn a_free_worker_takes_the_task_behind_a_long_one(builder: Builder) {
    let pool = builder.workers(2).open().unwrap();
    pool.warm_up().await.unwrap();
    let meeting = Meeting::new();
    let short: Vec<_> = (0..100u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    let long = pool.submit(|place: String| attend(&place, "long"), meeting.place());
    let behind: Vec<_> = (0..100u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    futures::future::try_join_all(short).await.unwrap();
    let guest = meeting.next().await;
    futures::future::try_join_all(behind).await.unwrap();
    assert!(!long.is_finished());
    drop(guest);
    long.await.unwrap();
    pool.shutdown().await;
    let stats = pool.stats();
    let workers = if server().is_some() { (0, 0) } else { (2, 0) };
    assert_eq!((stats.workers_started(), stats.workers_died()), workers, "none was given up on");
}

async fn the_queue_has_room_for_its_capacity_beside_the_workers(builder: Builder) {
    not_with_agents!("a queue's capacity counts what runs, too, and keeps no places");
    let pool = builder.workers(2).queue_capacity(3).open().unwrap();
    let meeting = Meeting::new();
    let submit = || pool.submit(|place: String| attend(&place, "one"), meeting.place());
    let accepted: Vec<_> = (0..5).map(|_| submit()).collect();
    assert_matches!(submit().await, Err(TaskError::QueueFull { capacity: 3 }));
    drop(meeting.all(2).await);
    drop(meeting.all(2).await);
    drop(meeting.next().await);
    futures::future::try_join_all(accepted).await.unwrap();
    assert_eq!(pool.stats().succeeded(), 5);
    pool.shutdown().await;
}

async fn a_reservation_waits_for_room(builder: Builder) {
    not_with_agents!("a queue's capacity counts what runs, too, and keeps no places");
    let (pool, guest) = occupied(builder.queue_capacity(1)).await;
    let queued = pool.submit(|| (), ());
    let mut reservation = pin!(pool.reserve());
    for _ in 0..20 {
        assert!(poll!(reservation.as_mut()).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(guest);
    let permit = reservation.await.unwrap();
    assert_eq!(permit.submit(|x: u8| x + 1, 1).await.unwrap(), 2);
    queued.await.unwrap();
    pool.shutdown().await;
}

async fn a_reservation_keeps_its_room_until_it_is_used_or_dropped(builder: Builder) {
    not_with_agents!("a queue's capacity counts what runs, too, and keeps no places");
    let (pool, guest) = occupied(builder.queue_capacity(2)).await;
    let used = pool.reserve().await.unwrap();
    let dropped = pool.reserve().await.unwrap();
    let full = pool.submit(|| (), ()).await;
    assert_matches!(full, Err(TaskError::QueueFull { capacity: 2 }));
    drop(dropped);
    let by_submit = pool.submit(|| 1u8, ());
    let by_permit = used.submit(|| 2u8, ());
    assert_matches!(pool.submit(|| (), ()).await, Err(TaskError::QueueFull { .. }));
    drop(guest);
    assert_eq!((by_submit.await.unwrap(), by_permit.await.unwrap()), (1, 2));
    pool.shutdown().await;
}

async fn a_reservation_ends_with_the_pool(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(1)).await;
    let queued = pool.submit(|| (), ());
    let mut reservation = pin!(pool.reserve());
    assert!(poll!(reservation.as_mut()).is_pending());
    let (outcome, ()) = futures::join!(reservation, pool.shutdown_now());
    assert_matches!(outcome.map(drop), Err(TaskError::ShutDown));
    assert_matches!(pool.reserve().await.map(drop), Err(TaskError::ShutDown));
    assert_matches!(queued.await, Err(TaskError::ShutDown));
    guest.gone().await;
}

async fn an_unbounded_queue_always_has_room(builder: Builder) {
    let (pool, guest) = occupied(builder).await;
    let mut handles = Vec::new();
    for n in 0..1000u32 {
        handles.push(pool.reserve().await.unwrap().submit(|n: u32| n, n));
    }
    drop(guest);
    let results = futures::future::try_join_all(handles).await.unwrap();
    assert_eq!(results, (0..1000).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn queued_tasks_need_no_descriptors(builder: Builder) {
    let (pool, guest) = occupied(builder).await;
    let before = common::descriptors();
    let handles: Vec<_> = (0..20_000u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    assert_eq!(common::descriptors(), before);
    drop(guest);
    let results = futures::future::try_join_all(handles).await.unwrap();
    assert_eq!(results, (0..20_000).collect::<Vec<_>>());
    pool.shutdown().await;
}

fn attempt() -> u32 {
    worker::current().unwrap().attempt()
}

/// Dies in each attempt before the given one.
fn succeed_at(place: String, good: u32) -> u32 {
    note(&place, attempt());
    if attempt() < good {
        std::process::abort();
    }
    attempt()
}

async fn a_task_runs_again_after_a_death(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let task = pool.task(succeed_at, (ledger.place(), 3)).retries(2);
    assert_eq!(task.await.unwrap(), 3);
    assert_eq!(ledger.lines(), ["1", "2", "3"]);
    let stats = pool.stats();
    assert_eq!((stats.submitted(), stats.succeeded(), stats.failed(), stats.retried()), (1, 1, 0, 2));
    pool.shutdown().await;
}

async fn a_task_runs_no_more_often_than_told(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let exit = died(pool.task(succeed_at, (ledger.place(), 9)).retries(2).await);
    assert_eq!(exit.signal(), Some(libc::SIGABRT));
    assert_eq!(ledger.lines(), ["1", "2", "3"]);
    pool.shutdown().await;
}

async fn a_task_runs_again_after_its_time_is_out(builder: Builder) {
    fn hang_once() -> u32 {
        if attempt() == 1 {
            std::thread::sleep(Duration::from_secs(3600));
        }
        attempt()
    }
    let pool = builder.open().unwrap();
    let task = pool.task(hang_once, ()).timeout(Duration::from_secs(1)).retries(1);
    assert_eq!(task.await.unwrap(), 2);
    assert_eq!((pool.stats().retried(), pool.stats().timed_out()), (1, 0));
    pool.shutdown().await;
}

async fn an_error_of_the_task_itself_is_no_reason_to_run_again(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let panics = |place: String| -> u8 {
        note(&place, "panic");
        panic!("once")
    };
    let fails = |place: String| -> anyhow::Result<u8> {
        note(&place, "error");
        anyhow::bail!("once")
    };
    common::panicked(pool.task(panics, ledger.place()).retries(5).await);
    assert_matches!(pool.task(fails, ledger.place()).retries(5).await, Err(TaskError::Failed(_)));
    assert_eq!(ledger.lines(), ["panic", "error"]);
    pool.shutdown().await;
}

async fn a_task_without_retries_runs_once(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    died(pool.submit(succeed_at, (ledger.place(), 2)).await);
    died(pool.task(succeed_at, (ledger.place(), 2)).await);
    a_worker(&pool).await;
    assert_eq!(ledger.lines(), ["1", "1"]);
    pool.shutdown().await;
}

async fn a_task_builder_is_a_future(builder: Builder) {
    let pool = builder.open().unwrap();
    assert_eq!(pool.task(|x: u8| x + 1, 1).await.unwrap(), 2);
    assert_eq!(pool.task(|x: u8| x + 1, 1).submit().await.unwrap(), 2);
    assert_eq!(pool.stats().submitted(), 2);
    drop(pool.task(|x: u8| x + 1, 1));
    assert_eq!(pool.stats().submitted(), 2, "not before it is submitted");
    pool.shutdown().await;
}

async fn a_task_knows_its_id_and_name(builder: Builder) {
    fn id_and_name() -> (String, String) {
        let task = worker::current().unwrap();
        (format!("{:?}", task.id()), format!("{:?}", task.name()))
    }
    async fn in_async() -> (String, String) {
        tokio::task::yield_now().await;
        id_and_name()
    }
    let pool = builder.open().unwrap();
    let named = pool.task(id_and_name, ()).name("thumbnail").submit();
    let and_async = pool.task(in_async, ()).name("reduction").submit();
    let ids = [named.id(), and_async.id()].map(|id| format!("{id:?}"));
    assert_ne!(ids[0], ids[1]);
    let (id, name) = named.await.unwrap();
    assert!(id == ids[0] && name.contains("thumbnail"), "{id} {name}");
    let (id, name) = and_async.await.unwrap();
    assert!(id == ids[1] && name.contains("reduction"), "{id} {name}");
    assert!(worker::current().is_none());
    pool.shutdown().await;
}

async fn a_task_knows_its_attempt(builder: Builder) {
    let pool = builder.open().unwrap();
    assert_eq!(pool.submit(attempt, ()).await.unwrap(), 1);
    assert_eq!(pool.task(attempt, ()).retries(3).await.unwrap(), 1);
    pool.shutdown().await;
}

async fn a_task_knows_its_deadline(builder: Builder) {
    fn time_left() -> Option<Duration> {
        let deadline = worker::current().unwrap().deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
    let pool = builder.open().unwrap();
    assert_eq!(pool.submit(time_left, ()).await.unwrap(), None);
    let limit = Duration::from_secs(1000);
    let left = pool.task(time_left, ()).timeout(limit).await.unwrap().unwrap();
    assert!(left <= limit && left > limit / 2, "{left:?}");
    pool.shutdown().await;
}
