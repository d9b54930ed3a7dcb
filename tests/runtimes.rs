//! A pool serves whatever runtime it is built on, and whoever awaits its handles.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::time::Duration;

use common::{Meeting, Open, a_worker, attend, current_thread, gone, multi_thread};
use futures::executor;
use procession::{Builder, ProcessPool, TaskError};

both! {
    sync a_multi_thread_runtime,
    sync a_current_thread_runtime,
    sync a_runtime_that_is_entered_now_and_then,
    sync a_runtime_handed_to_the_builder,
    sync a_pool_of_one_runtime_used_on_another,
    sync a_handle_awaited_on_another_executor,
    sync tasks_submitted_from_a_plain_thread,
    sync tasks_submitted_from_many_threads_at_once,
    sync a_pool_dropped_on_a_plain_thread,
    sync a_handle_dropped_on_a_plain_thread,
    sync two_pools_on_one_runtime,
    sync no_runtime_is_an_error,
    sync a_runtime_without_drivers_is_an_error,
}

/// Asks the pool something, and checks the answer.
async fn ask(pool: &ProcessPool, x: u64) {
    let (a, b) =
        tokio::try_join!(pool.submit(|x: u64| x + 1, x), pool.submit(async |x: u64, y: u64| x * y, (x, 2)),)
            .unwrap();
    assert_eq!((a, b), (x + 1, x * 2));
}

fn a_multi_thread_runtime(builder: Builder) {
    multi_thread().block_on(async {
        let pool = builder.open().unwrap();
        ask(&pool, 1).await;
        pool.shutdown().await;
    });
}

fn a_current_thread_runtime(builder: Builder) {
    current_thread().block_on(async {
        let pool = builder.open().unwrap();
        ask(&pool, 1).await;
        pool.shutdown().await;
    });
}

fn a_runtime_that_is_entered_now_and_then(builder: Builder) {
    let runtime = current_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    let handles: Vec<_> = (0..10u64).map(|x| pool.submit(|x: u64| x, x)).collect();
    for (x, handle) in (0..).zip(handles) {
        assert_eq!(runtime.block_on(handle).unwrap(), x);
        runtime.block_on(ask(&pool, x));
    }
    runtime.block_on(pool.shutdown());
}

fn a_runtime_handed_to_the_builder(builder: Builder) {
    let runtime = multi_thread();
    let pool = builder.runtime(runtime.handle().clone()).open().unwrap();
    executor::block_on(ask(&pool, 3));
    executor::block_on(pool.shutdown());
}

fn a_pool_of_one_runtime_used_on_another(builder: Builder) {
    let (home, abroad) = (multi_thread(), current_thread());
    let pool = builder.runtime(home.handle().clone()).open().unwrap();
    abroad.block_on(async {
        ask(&pool, 4).await;
        let stuck = pool.task(|| std::thread::sleep(Duration::from_secs(3600)), ());
        assert_matches!(stuck.timeout(Duration::from_millis(20)).await, Err(TaskError::TimedOut { .. }));
        pool.shutdown().await;
    });
}

fn a_handle_awaited_on_another_executor(builder: Builder) {
    let runtime = multi_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    let handle = pool.submit(|x: u8| x + 1, 1);
    assert_eq!(std::thread::spawn(|| executor::block_on(handle)).join().unwrap().unwrap(), 2);
    runtime.block_on(pool.shutdown());
}

fn tasks_submitted_from_a_plain_thread(builder: Builder) {
    let runtime = multi_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    let submitter = pool.clone();
    let handle = std::thread::spawn(move || submitter.submit(|x: u8| x + 1, 1)).join().unwrap();
    assert_eq!(runtime.block_on(handle).unwrap(), 2);
    let task = pool.task(|x: u8| x + 1, 2);
    assert_eq!(executor::block_on(task.into_future()).unwrap(), 3);
    executor::block_on(pool.warm_up()).unwrap();
    executor::block_on(pool.reserve()).map(drop).unwrap();
    executor::block_on(pool.shutdown());
}

fn tasks_submitted_from_many_threads_at_once(builder: Builder) {
    let runtime = multi_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let pool = pool.clone();
            scope.spawn(move || {
                let numbers = thread * 1000..thread * 1000 + 100;
                let handles = numbers.clone().map(|x| pool.submit(|x: u64| x * 3, x));
                let results = executor::block_on(futures::future::try_join_all(handles)).unwrap();
                assert_eq!(results, numbers.map(|x| x * 3).collect::<Vec<_>>());
            });
        }
    });
    assert_eq!(pool.stats().succeeded(), 800);
    runtime.block_on(pool.shutdown());
}

fn a_pool_dropped_on_a_plain_thread(builder: Builder) {
    let runtime = multi_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    let pid = runtime.block_on(a_worker(&pool));
    std::thread::spawn(|| drop(pool)).join().unwrap();
    runtime.block_on(gone(pid));
}

fn a_handle_dropped_on_a_plain_thread(builder: Builder) {
    let runtime = multi_thread();
    runtime.block_on(async {
        let pool = builder.cancel_grace(Duration::ZERO).open().unwrap();
        let meeting = Meeting::new();
        let handle = pool.submit(|place: String| attend(&place, "one"), meeting.place());
        let guest = meeting.next().await;
        std::thread::spawn(|| drop(handle)).join().unwrap();
        guest.gone().await;
        pool.shutdown().await;
    });
}

fn two_pools_on_one_runtime(method: procession::StartMethod) {
    use common::Given;
    multi_thread().block_on(async {
        let [one, two] = [(); 2].map(|()| Builder::given(method).workers(1).open().unwrap());
        let (a, b) = tokio::join!(a_worker(&one), a_worker(&two));
        assert_ne!(a, b);
        one.shutdown().await;
        assert_eq!(a_worker(&two).await, b);
        two.shutdown().await;
    });
}

fn no_runtime_is_an_error(builder: Builder) {
    let error = builder.open().map(drop).unwrap_err();
    assert!(error.to_string().contains("runtime"), "{error}");
    assert!(ProcessPool::new().is_err());
}

fn a_runtime_without_drivers_is_an_error(builder: Builder) {
    let bare = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let error = bare.block_on(async { builder.open().map(drop).unwrap_err() });
    assert!(!error.to_string().is_empty());
}

/// As a user writes it.
#[test]
fn the_first_example_of_the_documentation() {
    fn count_letters(word: String) -> usize {
        word.len()
    }
    common::run(async {
        let pool = ProcessPool::new().unwrap();
        let (a, b) = tokio::try_join!(
            pool.submit(count_letters, "hello".to_string()),
            pool.submit(|x: u64, y: u64| x * y, (6, 7)),
        )
        .unwrap();
        assert_eq!((a, b), (5, 42));
        pool.shutdown().await;
    });
}
