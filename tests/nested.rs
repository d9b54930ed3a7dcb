//! A task may have a pool of its own, and a task of that pool too, to a depth of four.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use common::{Meeting, Open, attend, current_thread, gone};
use procession::{Builder, ProcessPool, worker};
use serde::{Deserialize, Serialize};

both! {
    a_sync_task_has_a_pool_of_its_own,
    an_async_task_has_a_pool_of_its_own,
    pools_nest_four_deep_and_no_deeper,
    a_nested_pool_ends_with_its_task,
    a_nested_pool_dies_with_its_worker,
}

fn own_pool() -> ProcessPool {
    ProcessPool::builder().workers(2).build().unwrap()
}

async fn a_sync_task_has_a_pool_of_its_own(builder: Builder) {
    fn outer(numbers: Vec<u64>) -> u64 {
        current_thread().block_on(async {
            let pool = own_pool();
            let handles = numbers.into_iter().map(|n| pool.submit(|n: u64| n * n, n));
            let sum = futures::future::try_join_all(handles).await.unwrap().into_iter().sum();
            pool.shutdown().await;
            sum
        })
    }
    let pool = builder.open().unwrap();
    assert_eq!(pool.submit(outer, (1..=10).collect::<Vec<_>>()).await.unwrap(), 385);
    assert_eq!(pool.submit(outer, vec![2]).await.unwrap(), 4);
    pool.shutdown().await;
}

async fn an_async_task_has_a_pool_of_its_own(builder: Builder) {
    async fn outer() -> (u32, u32) {
        let pool = own_pool();
        let inner = pool.submit(std::process::id, ()).await.unwrap();
        pool.shutdown().await;
        (std::process::id(), inner)
    }
    let pool = builder.open().unwrap();
    let (outer, inner) = pool.submit(outer, ()).await.unwrap();
    assert!(outer != inner && inner != std::process::id() && outer != std::process::id());
    pool.shutdown().await;
}

/// How far down it came, and why no further.
#[derive(Debug, Serialize, Deserialize)]
struct Depth {
    workers: u32,
    refusal: String,
}

/// Goes one pool deeper, until that is refused.
async fn descend(depth: u32) -> Depth {
    assert!(worker::is_worker() && depth < 10, "where will this end?");
    let refused = |refusal: String| Depth { workers: depth, refusal };
    let pool = match ProcessPool::builder().workers(1).build() {
        Ok(pool) => pool,
        Err(error) => return refused(error.to_string()),
    };
    let outcome = pool.submit(|depth: u32| current_thread().block_on(descend(depth)), depth + 1).await;
    pool.shutdown().await;
    outcome.unwrap_or_else(|error| refused(error.to_string()))
}

async fn pools_nest_four_deep_and_no_deeper(builder: Builder) {
    let pool = builder.open().unwrap();
    let depth = pool.submit(descend, 1).await.unwrap();
    assert_eq!(depth.workers, 4, "{depth:?}");
    let refusal = depth.refusal.to_lowercase();
    assert!(refusal.contains("deep") || refusal.contains("depth") || refusal.contains("nest"), "{refusal}");
    pool.shutdown().await;
}

async fn a_nested_pool_ends_with_its_task(builder: Builder) {
    fn forgetful() -> u32 {
        // Neither shut down nor awaited: its runtime goes, and the pool with it.
        current_thread().block_on(async { own_pool().submit(std::process::id, ()).await.unwrap() })
    }
    let pool = builder.open().unwrap();
    let inner = pool.submit(forgetful, ()).await.unwrap();
    gone(inner).await;
    pool.shutdown().await;
}

async fn a_nested_pool_dies_with_its_worker(builder: Builder) {
    fn outer(place: String) {
        current_thread().block_on(async {
            own_pool().submit(|place: String| attend(&place, "inner"), place).await.unwrap();
        });
    }
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(outer, meeting.place());
    let guest = meeting.next().await;
    let inner = guest.pid;
    let worker = task.worker_pid().unwrap();
    assert_ne!(worker, inner);
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(worker as libc::pid_t, libc::SIGKILL) }, 0);
    common::died(task.await);
    guest.gone().await;
    gone(inner).await;
    pool.shutdown().await;
}
