//! Using up memory, threads and descriptors, within a sandbox.

use std::hint::black_box;
use std::time::Duration;

use procession::{Builder, ExitCause, Sandbox, TaskError};

use super::caged;
use super::common::{a_worker, died};

both! {
    memory_is_bounded,
    memory_in_files_of_memory_is_bounded,
    threads_are_bounded_by_memory,
    descriptors_are_bounded,
    a_worker_that_has_grown_is_replaced,
    a_spinner_is_stopped,
}

const MIB: u64 = 1 << 20;

async fn memory_is_bounded(builder: Builder) {
    fn hoard() -> usize {
        let mut hoard = Vec::new();
        loop {
            hoard.push(black_box(vec![1u8; 1 << 20]));
        }
    }
    let Some(pool) = caged(builder.worker_memory_limit(128 * MIB), Sandbox::new()) else { return };
    let exit = died(pool.submit(hoard, ()).await);
    assert_matches!(exit.cause(), ExitCause::OutOfMemory);
    a_worker(&pool).await;
    pool.shutdown().await;
}

/// How much of so many MiB can be had in files that are in memory, and in shared mappings.
fn hoard_elsewhere(mib: usize) -> (usize, usize) {
    let mut files = 0;
    let mut mapped = 0;
    // SAFETY: the name is a C string, and new mappings touch no memory in use. What is made goes with
    // the process.
    unsafe {
        let file = libc::memfd_create(c"hoard".as_ptr(), 0);
        let block = vec![1u8; 1 << 20];
        while files < mib && libc::write(file, block.as_ptr().cast(), block.len()) == 1 << 20 {
            files += 1;
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let map = || libc::mmap(std::ptr::null_mut(), 1 << 20, access, kind, -1, 0);
        while mapped < mib {
            let place = map();
            if place == libc::MAP_FAILED {
                break;
            }
            place.cast::<u8>().write_bytes(1, 1 << 20);
            mapped += 1;
        }
        libc::close(file);
    }
    (files, mapped)
}

async fn memory_in_files_of_memory_is_bounded(builder: Builder) {
    let free = builder.clone().build().unwrap();
    assert_eq!(free.submit(hoard_elsewhere, 8).await.unwrap(), (8, 8));
    free.shutdown().await;
    let Some(pool) = caged(builder.worker_memory_limit(64 * MIB), Sandbox::new()) else { return };
    let (files, mapped) = pool.submit(hoard_elsewhere, 512).await.unwrap();
    assert_eq!(files, 0);
    assert!(mapped <= 64 + 256, "{mapped} MiB were shared");
    pool.shutdown().await;
}

async fn threads_are_bounded_by_memory(builder: Builder) {
    fn bomb() -> usize {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let mut threads = Vec::new();
        for _ in 0..5000 {
            let wait = wait.clone();
            let sleep = move || wait.lock().unwrap().recv().is_ok();
            match std::thread::Builder::new().stack_size(1 << 20).spawn(sleep) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        let count = threads.len();
        drop(done);
        threads.into_iter().for_each(|thread| assert!(!thread.join().unwrap()));
        count
    }
    let Some(pool) = caged(builder.worker_memory_limit(64 * MIB), Sandbox::new()) else { return };
    let outcome = pool.submit(bomb, ()).await;
    // The allocator may be the first to find no memory, which ends the process.
    match outcome {
        Ok(count) => assert!((1..64).contains(&count), "{count} threads"),
        Err(TaskError::WorkerDied(exit)) => assert_eq!(exit.signal(), Some(libc::SIGABRT), "{exit:?}"),
        Err(error) => panic!("{error}"),
    }
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn descriptors_are_bounded(builder: Builder) {
    fn pipes() -> usize {
        let mut pipes = Vec::new();
        while let Ok(pipe) = std::io::pipe() {
            pipes.push(pipe);
        }
        2 * pipes.len()
    }
    let Some(pool) = caged(builder.worker_open_files_limit(32), Sandbox::new()) else { return };
    let count = pool.submit(pipes, ()).await.unwrap();
    assert!((16..32).contains(&count), "{count} descriptors");
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn a_worker_that_has_grown_is_replaced(builder: Builder) {
    fn leak(mib: usize) -> u32 {
        std::mem::forget(black_box(vec![1u8; mib << 20]));
        std::process::id()
    }
    let builder = builder.workers(1).max_worker_rss(96 * MIB);
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    let first = pool.submit(leak, 1).await.unwrap();
    assert_eq!(pool.submit(leak, 1).await.unwrap(), first);
    assert_eq!(pool.submit(leak, 128).await.unwrap(), first);
    assert_ne!(pool.submit(leak, 1).await.unwrap(), first);
    let stats = pool.stats();
    assert_eq!((stats.workers_recycled(), stats.workers_died()), (1, 0));
    pool.shutdown().await;
}

async fn a_spinner_is_stopped(builder: Builder) {
    fn spin() {
        loop {
            std::hint::spin_loop();
        }
    }
    let limit = Duration::from_millis(50);
    let Some(pool) = caged(builder.workers(1).task_timeout(limit), Sandbox::new()) else { return };
    assert_matches!(pool.submit(spin, ()).await, Err(TaskError::TimedOut { .. }));
    let cancelled = pool.task(spin, ()).timeout(Duration::from_secs(100)).submit();
    super::common::eventually("it runs", || pool.stats().running() == 1).await;
    cancelled.cancel();
    assert_matches!(cancelled.await, Err(TaskError::Cancelled));
    pool.task(std::process::id, ()).timeout(Duration::from_secs(100)).await.unwrap();
    pool.shutdown().await;
}
