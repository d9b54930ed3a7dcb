//! What was broken once, each named after that.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use common::{Open, a_worker, alone, current_thread, died, multi_thread, parent_of, run};
use futures::StreamExt;
use procession::{Builder, ProcessPool, TaskError};
use std::time::Duration;

both! {
    sync a_frame_is_not_read_before_its_large_arguments_are_there,
    a_reply_too_large_for_the_ring_does_not_keep_its_listener_from_the_pipe,
    replies_of_every_size_come_back_whole_and_in_order,
    however_much_a_worker_had_said_before_it_died_is_heard,
    large_arguments_that_take_their_time_through_the_pipe_are_not_taken_back,
    sync a_task_that_was_done_in_time_is_not_timed_out_by_a_runtime_that_was_held_up,
    sync items_that_were_done_are_not_run_again_by_a_runtime_that_was_held_up,
    sync a_runtime_dropped_before_it_ran_resolves_the_handles,
    tasks_behind_a_cancelled_one_run_elsewhere,
}

fn a_frame_is_not_read_before_its_large_arguments_are_there(builder: Builder) {
    let runtime = multi_thread();
    let pool = builder.workers(1).runtime(runtime.handle().clone()).open().unwrap();
    std::thread::scope(|scope| {
        for seed in 0..6u8 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..1500u32 {
                    let x = seed.wrapping_add(round as u8);
                    let sent = vec![x; if x % 3 == 0 { 33_000 } else { 10 }];
                    let came = futures::executor::block_on(pool.submit(|v: Vec<u8>| v, (sent.clone(),)));
                    assert!(came.unwrap() == sent, "other bytes came back");
                }
            });
        }
    });
    runtime.block_on(pool.shutdown());
}

async fn a_reply_too_large_for_the_ring_does_not_keep_its_listener_from_the_pipe(builder: Builder) {
    let pool = builder.open().unwrap();
    let mut results = pool.map(|n: u64| vec![n as u8; 40_000], 0..1000u64).chunk_size(20);
    let mut count = 0u64;
    while let Some(result) = results.next().await {
        assert!(result.unwrap() == vec![count as u8; 40_000]);
        count += 1;
    }
    assert_eq!(count, 1000);
    pool.shutdown().await;
}

async fn replies_of_every_size_come_back_whole_and_in_order(builder: Builder) {
    let pool = builder.open().unwrap();
    let sizes = [0, 1, 31 << 10, 33 << 10, 100, 3 << 20, 17, 40 << 20, 0, 64 << 10, 12 << 20, 5];
    for round in 0..3u8 {
        let handles: Vec<_> = (0..60u8)
            .map(|n| {
                let size = sizes[usize::from(n.wrapping_mul(7).wrapping_add(round)) % sizes.len()];
                (n, size, pool.submit(|n: u8, size: usize| vec![n; size], (n, size)))
            })
            .collect();
        for (n, size, handle) in handles {
            let result = handle.await.unwrap();
            assert!(result.len() == size && result.iter().all(|byte| *byte == n));
        }
    }
    pool.shutdown().await;
}

async fn however_much_a_worker_had_said_before_it_died_is_heard(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let item = |n: u32| if n == 4999 { std::process::abort() } else { n };
    for _ in 0..10 {
        let mut results = pool.map(item, 4999 - 2500..5002u32).chunk_size(5000).window(5000);
        for n in 4999 - 2500..5002u32 {
            match results.next().await.unwrap() {
                Err(TaskError::WorkerDied(_)) => assert_eq!(n, 4999),
                other => assert_eq!(other.unwrap(), n),
            }
        }
    }
    pool.shutdown().await;
}

async fn large_arguments_that_take_their_time_through_the_pipe_are_not_taken_back(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    for size in [40usize << 20, 100 << 20] {
        let len = pool.submit(|v: Vec<u8>| v.len(), vec![7u8; size]).await.unwrap();
        assert_eq!(len, size);
    }
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

fn a_task_that_was_done_in_time_is_not_timed_out_by_a_runtime_that_was_held_up(builder: Builder) {
    current_thread().block_on(async {
        let pool = builder.workers(1).open().unwrap();
        let pid = a_worker(&pool).await;
        for _ in 0..5 {
            let task = pool.task(std::process::id, ()).timeout(Duration::from_millis(50)).submit();
            // Holding up the runtime is the point.
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(task.await.unwrap(), pid);
        }
        pool.shutdown().await;
    });
}

fn items_that_were_done_are_not_run_again_by_a_runtime_that_was_held_up(builder: Builder) {
    let ledger = common::Ledger::new();
    let place = ledger.place();
    current_thread().block_on(async {
        let pool = builder.workers(1).open().unwrap();
        a_worker(&pool).await;
        let item = |(place, n): (String, u32)| {
            common::note(&place, n);
            std::thread::sleep(Duration::from_millis(20));
            n
        };
        let items = (0..10u32).map(|n| (place.clone(), n));
        let mut results = pool.map(item, items).chunk_size(10).timeout(Duration::from_millis(40));
        // The first poll sends the chunk; then the runtime is held up while items are done.
        let first = futures::future::poll_immediate(results.next()).await;
        assert!(first.is_none());
        std::thread::sleep(Duration::from_millis(150));
        let _: Vec<_> = results.collect().await;
        pool.shutdown().await;
    });
    let mut runs = ledger.lines();
    let all = runs.len();
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), all, "an item ran twice");
}

fn a_runtime_dropped_before_it_ran_resolves_the_handles(builder: Builder) {
    let runtime = current_thread();
    let pool = builder.runtime(runtime.handle().clone()).open().unwrap();
    let handle = pool.submit(|n: u32| n, 1);
    drop(runtime);
    assert_matches!(futures::executor::block_on(handle), Err(TaskError::ShutDown));
    futures::executor::block_on(pool.shutdown());
}

async fn tasks_behind_a_cancelled_one_run_elsewhere(builder: Builder) {
    let pool = builder.cancel_grace(Duration::from_secs(3600)).open().unwrap();
    pool.warm_up().await.unwrap();
    for n in 0..2000u32 {
        pool.submit(|n: u32| n, n).await.unwrap();
    }
    let meeting = common::Meeting::new();
    let long = pool.submit(|place: String| common::attend(&place, "long"), meeting.place());
    let guest = meeting.next().await;
    drop(long);
    let tasks: Vec<_> = (0..16u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    futures::future::try_join_all(tasks).await.unwrap();
    drop(guest);
    pool.shutdown_now().await;
}

fn stopped_fork_server(pid: u32) {
    let server = parent_of(pid).unwrap();
    assert_ne!(server, std::process::id());
    // SAFETY: kill has no memory effects; the fork server is ours and lives.
    #[allow(unsafe_code)]
    let stopped = unsafe { libc::kill(server as i32, libc::SIGSTOP) };
    assert_eq!(stopped, 0);
}

#[test]
fn a_death_under_a_stopped_fork_server_is_told_and_the_pool_goes_on() {
    run(async {
        let pool = ProcessPool::builder().workers(1).open().unwrap();
        stopped_fork_server(a_worker(&pool).await);
        died(pool.submit(|| -> u64 { std::process::abort() }, ()).await);
        assert_eq!(pool.submit(|n: u64| n, 7).await.unwrap(), 7);
        pool.shutdown().await;
    });
}

#[test]
fn shutting_down_under_a_stopped_fork_server_ends() {
    run(async {
        let pool = ProcessPool::builder().workers(1).open().unwrap();
        stopped_fork_server(a_worker(&pool).await);
        pool.shutdown_now().await;
    });
}

#[test]
fn the_death_of_a_fork_server_with_many_idle_workers_does_not_break_the_pool() {
    not_with_agents!("workers are the agents', and counted there");
    run(async {
        let pool = ProcessPool::builder().workers(6).open().unwrap();
        pool.warm_up().await.unwrap();
        let server = parent_of(a_worker(&pool).await).unwrap();
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let killed = unsafe { libc::kill(server as i32, libc::SIGKILL) };
        assert_eq!(killed, 0);
        common::eventually("all are gone", || pool.stats().workers_died() >= 6).await;
        assert_eq!(pool.submit(|n: u64| n, 7).await.unwrap(), 7);
        pool.shutdown().await;
    });
}

#[test]
fn a_dropped_runtime_that_never_ran_leaves_nothing() {
    not_with_agents!("it brings a runtime of its own");
    alone(|| {
        let runtime = current_thread();
        let pool = ProcessPool::builder().min_workers(1).runtime(runtime.handle().clone()).open().unwrap();
        drop(runtime);
        drop(pool);
    });
}
