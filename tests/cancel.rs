//! Cancelling, dropping and detaching; what a handle tells about its task; and when time begins.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::time::{Duration, Instant};

use common::{Guest, Ledger, Meeting, Open, a_worker, attend, attend_async, eventually, note};
use procession::{Builder, Canceller, ProcessPool, TaskError, TaskHandle, TaskStatus, worker};

both! {
    a_cancelled_task_that_is_queued_never_starts,
    a_dropped_task_that_is_queued_never_starts,
    many_cancelled_tasks_do_not_hinder_the_others,
    a_cancelled_task_that_runs_is_told,
    a_dropped_task_that_runs_is_told,
    a_task_may_wait_to_be_cancelled,
    a_cancelled_task_resolves_at_once,
    a_cancelled_task_that_goes_on_is_killed_after_the_grace,
    a_dropped_task_that_goes_on_is_killed_after_the_grace,
    the_grace_is_a_quarter_of_a_second_by_default,
    without_grace_a_cancelled_task_is_killed_at_once,
    a_cancelled_async_task_is_dropped_and_its_worker_lives_on,
    a_detached_task_runs_on,
    a_canceller_cancels_from_anywhere,
    cancelling_comes_too_late_for_a_finished_task,
    the_status_follows_the_task,
    a_task_behind_another_is_queued_not_running,
    a_task_shows_its_worker_while_it_runs,
    time_counts_from_the_beginning_of_the_task,
    a_timed_out_task_does_not_take_the_next_one_with_it,
}

const AGES: Duration = Duration::from_secs(3600);

/// One worker, with so much grace that a test which depends on a kill never ends.
fn patient(builder: Builder) -> ProcessPool {
    builder.workers(1).cancel_grace(AGES).open().unwrap()
}

/// Occupies the one worker of `pool`.
async fn occupy(pool: &ProcessPool) -> (TaskHandle<()>, Guest) {
    let meeting = Meeting::new();
    let handle = pool.submit(|place: String| attend(&place, "occupied"), meeting.place());
    let guest = meeting.next().await;
    (handle, guest)
}

fn note_it(place: String, what: String) {
    note(&place, what);
}

async fn a_cancelled_task_that_is_queued_never_starts(builder: Builder) {
    let pool = patient(builder);
    let ledger = Ledger::new();
    let (first, guest) = occupy(&pool).await;
    let queued = pool.submit(note_it, (ledger.place(), "queued".to_owned()));
    queued.cancel();
    assert_matches!(queued.status(), TaskStatus::Cancelled);
    assert_matches!(queued.await, Err(TaskError::Cancelled));
    drop(guest);
    first.await.unwrap();
    pool.submit(note_it, (ledger.place(), "next".to_owned())).await.unwrap();
    assert_eq!(ledger.lines(), ["next"]);
    assert_eq!(pool.stats().cancelled(), 1);
    pool.shutdown().await;
}

async fn a_dropped_task_that_is_queued_never_starts(builder: Builder) {
    let pool = patient(builder);
    let ledger = Ledger::new();
    let (first, guest) = occupy(&pool).await;
    drop(pool.submit(note_it, (ledger.place(), "queued".to_owned())));
    drop(guest);
    first.await.unwrap();
    pool.submit(note_it, (ledger.place(), "next".to_owned())).await.unwrap();
    assert_eq!(ledger.lines(), ["next"]);
    pool.shutdown().await;
}

async fn many_cancelled_tasks_do_not_hinder_the_others(builder: Builder) {
    not_with_agents!("cancelling may come too late for a task that is on its way");
    let pool = patient(builder);
    let ledger = Ledger::new();
    let (first, guest) = occupy(&pool).await;
    let submit = |n: u32| pool.submit(note_it, (ledger.place(), n.to_string()));
    let handles: Vec<_> = (1000..1300).map(submit).collect();
    let mut kept = Vec::new();
    for (n, handle) in (1000..).zip(handles) {
        if n % 3 == 0 { kept.push((n, handle)) } else { drop(handle) }
    }
    drop(guest);
    first.await.unwrap();
    let mut numbers = Vec::new();
    for (n, handle) in kept {
        handle.await.unwrap();
        numbers.push(n.to_string());
    }
    pool.shutdown().await;
    assert_eq!(ledger.lines(), numbers);
}

/// Attends, and once let go looks whether it was cancelled until it was.
fn until_told(meeting: String, ledger: String) {
    attend(&meeting, "until told");
    while !worker::current().unwrap().is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    note(&ledger, "told");
}

async fn a_cancelled_task_that_runs_is_told(builder: Builder) {
    let pool = patient(builder);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let handle = pool.submit(until_told, (meeting.place(), ledger.place()));
    let guest = meeting.next().await;
    let pid = guest.pid;
    drop(guest);
    handle.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    assert_eq!(a_worker(&pool).await, pid, "it ended in time, so its worker lives on");
    assert_eq!(ledger.lines(), ["told"]);
    pool.shutdown().await;
}

async fn a_dropped_task_that_runs_is_told(builder: Builder) {
    let pool = patient(builder);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let handle = pool.submit(until_told, (meeting.place(), ledger.place()));
    let guest = meeting.next().await;
    let pid = guest.pid;
    drop(handle);
    drop(guest);
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(ledger.lines(), ["told"]);
    pool.shutdown().await;
}

async fn a_task_may_wait_to_be_cancelled(builder: Builder) {
    fn wait(meeting: String, ledger: String) {
        attend(&meeting, "waits");
        let task = worker::current().unwrap();
        futures::executor::block_on(task.cancelled());
        note(&ledger, task.is_cancelled());
    }
    let pool = patient(builder);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let handle = pool.submit(wait, (meeting.place(), ledger.place()));
    let guest = meeting.next().await;
    let pid = guest.pid;
    drop(guest);
    handle.cancel();
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(ledger.lines(), ["true"]);
    pool.shutdown().await;
}

async fn a_cancelled_task_resolves_at_once(builder: Builder) {
    not_with_agents!("what runs ends when its agent's `cancel_grace` is over");
    let pool = patient(builder);
    let (handle, guest) = occupy(&pool).await;
    handle.cancel();
    assert_matches!(handle.status(), TaskStatus::Cancelled);
    assert_matches!(handle.await, Err(TaskError::Cancelled)); // while the task goes on
    pool.shutdown_now().await;
    guest.gone().await;
}

const GRACE: Duration = Duration::from_millis(100);

async fn a_cancelled_task_that_goes_on_is_killed_after_the_grace(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(GRACE).open().unwrap();
    let (handle, guest) = occupy(&pool).await;
    let pid = guest.pid;
    let start = Instant::now();
    handle.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    guest.gone().await;
    assert!(start.elapsed() >= GRACE);
    assert_ne!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_dropped_task_that_goes_on_is_killed_after_the_grace(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(GRACE).open().unwrap();
    let (handle, guest) = occupy(&pool).await;
    let pid = guest.pid;
    let start = Instant::now();
    drop(handle);
    guest.gone().await;
    assert!(start.elapsed() >= GRACE);
    assert_ne!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn the_grace_is_a_quarter_of_a_second_by_default(builder: Builder) {
    let pool = builder.open().unwrap();
    let (handle, guest) = occupy(&pool).await;
    let start = Instant::now();
    handle.cancel();
    guest.gone().await;
    assert!(start.elapsed() >= Duration::from_millis(250));
    pool.shutdown().await;
}

async fn without_grace_a_cancelled_task_is_killed_at_once(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(Duration::ZERO).open().unwrap();
    let (handle, guest) = occupy(&pool).await;
    let pid = guest.pid;
    handle.cancel();
    guest.gone().await;
    assert_ne!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_cancelled_async_task_is_dropped_and_its_worker_lives_on(builder: Builder) {
    struct NoteDrop(String);
    impl Drop for NoteDrop {
        fn drop(&mut self) {
            note(&self.0, "dropped");
        }
    }
    async fn wait(meeting: String, ledger: String) {
        let _note = NoteDrop(ledger.clone());
        attend_async(&meeting, "async").await;
        note(&ledger, "went on");
    }
    let pool = patient(builder);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let handle = pool.submit(wait, (meeting.place(), ledger.place()));
    let guest = meeting.next().await;
    let pid = guest.pid;
    handle.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    guest.gone().await; // its future was dropped, and the stream with it
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(ledger.lines(), ["dropped"]);
    pool.shutdown().await;
}

async fn a_detached_task_runs_on(builder: Builder) {
    let pool = builder.open().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let task = |meeting: String, ledger: String| {
        attend(&meeting, "detached");
        note(&ledger, "done");
    };
    pool.submit(task, (meeting.place(), ledger.place())).detach();
    drop(meeting.next().await);
    pool.shutdown().await;
    assert_eq!(ledger.lines(), ["done"]);
}

async fn a_canceller_cancels_from_anywhere(builder: Builder) {
    let pool = builder.cancel_grace(Duration::ZERO).open().unwrap();
    let (handle, guest) = occupy(&pool).await;
    let canceller: Canceller = handle.canceller();
    let again = canceller.clone();
    std::thread::spawn(move || canceller.cancel()).join().unwrap();
    again.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    again.cancel();
    guest.gone().await;
    assert_eq!(pool.stats().cancelled(), 1);
    pool.shutdown().await;
}

async fn cancelling_comes_too_late_for_a_finished_task(builder: Builder) {
    let pool = builder.open().unwrap();
    let handle = pool.submit(|| 5u8, ());
    let canceller = handle.canceller();
    eventually("it finishes", || handle.is_finished()).await;
    handle.cancel();
    canceller.cancel();
    assert_matches!(handle.status(), TaskStatus::Finished);
    assert_eq!(handle.await.unwrap(), 5);
    assert_eq!(pool.stats().cancelled(), 0);
    pool.shutdown().await;
}

async fn the_status_follows_the_task(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let (first, guest) = occupy(&pool).await;
    let meeting = Meeting::new();
    let second = pool.submit(|place: String| attend(&place, "second"), meeting.place());
    assert_matches!(second.status(), TaskStatus::Queued);
    assert!(!first.is_finished() && !second.is_finished());
    drop(guest);
    let guest = meeting.next().await;
    eventually("it is shown as running", || matches!(second.status(), TaskStatus::Running)).await;
    assert!(!second.is_finished());
    drop(guest);
    eventually("it is finished", || second.is_finished()).await;
    assert_matches!(second.status(), TaskStatus::Finished);
    let failed = pool.submit(|| panic!("failed"), ());
    eventually("it is finished", || failed.is_finished()).await;
    assert_matches!(failed.status(), TaskStatus::Finished);
    first.await.unwrap();
    pool.shutdown().await;
}

async fn a_task_behind_another_is_queued_not_running(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    for _ in 0..200 {
        a_worker(&pool).await; // short ones, after which the pool may well gather tasks
    }
    let (first, guest) = occupy(&pool).await;
    let behind: Vec<_> = (0..20u8).map(|n| pool.submit(|n: u8| n, n)).collect();
    for _ in 0..20 {
        assert!(behind.iter().all(|handle| matches!(handle.status(), TaskStatus::Queued)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((pool.stats().running(), pool.stats().queued()), (1, 20));
    drop(guest);
    first.await.unwrap();
    futures::future::try_join_all(behind).await.unwrap();
    pool.shutdown().await;
}

async fn a_task_shows_its_worker_while_it_runs(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let (first, guest) = occupy(&pool).await;
    let second = pool.submit(|| (), ());
    assert_eq!(second.worker_pid(), None);
    eventually("the worker is shown", || first.worker_pid() == Some(guest.pid)).await;
    drop(guest);
    first.await.unwrap();
    second.await.unwrap();
    pool.shutdown().await;
}

async fn time_counts_from_the_beginning_of_the_task(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let (first, guest) = occupy(&pool).await;
    let limit = Duration::from_secs(1);
    let queued = pool.task(|| 5u8, ()).timeout(limit).submit();
    tokio::time::sleep(limit * 2).await;
    drop(guest);
    first.await.unwrap();
    assert_eq!(queued.await.unwrap(), 5);
    pool.shutdown().await;
}

async fn a_timed_out_task_does_not_take_the_next_one_with_it(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let ledger = Ledger::new();
    let limit = Duration::from_millis(50);
    let stuck = pool.task(|| std::thread::sleep(AGES), ()).timeout(limit).submit();
    let next = pool.submit(note_it, (ledger.place(), "next".to_owned()));
    assert_matches!(stuck.await, Err(TaskError::TimedOut { .. }));
    next.await.unwrap();
    assert_eq!(ledger.lines(), ["next"]);
    pool.shutdown().await;
}
