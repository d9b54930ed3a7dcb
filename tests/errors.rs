//! Ways for a task to come to nothing while its worker lives on; `codec.rs` has those
//! that concern its messages, and `deaths.rs` those in which its worker dies.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::error::Error;

use anyhow::{Context, anyhow};
use common::{Meeting, Open, a_worker, attend, panicked};
use procession::{Builder, CodecError, PoolError, ProcessPool, StartMethod, TaskError, WorkerExit};

both! {
    a_panic_tells_its_message_and_place,
    a_panic_with_any_payload_is_a_panic,
    a_panic_in_an_async_task_is_a_panic,
    a_panic_that_the_task_catches_is_no_error,
    a_panic_has_a_backtrace_only_if_asked_for,
    a_worker_lives_on_after_a_panic,
    an_anyhow_error_keeps_its_chain,
    an_anyhow_error_has_a_backtrace_if_asked_for,
    an_async_anyhow_error_is_the_same,
    a_full_queue_refuses,
    a_pool_that_is_shut_down_refuses,
    a_failing_initializer_breaks_the_pool,
    a_panicking_initializer_breaks_the_pool,
    an_exiting_initializer_breaks_the_pool,
    workers_that_cannot_start_break_the_pool,
    sync a_lost_runtime_resolves_its_handles,
}

#[test]
fn errors_are_plain_data() {
    fn is_plain<T: std::fmt::Debug + Clone + Send + Sync + 'static>() {}
    fn is_error<T: Error>() {}
    is_plain::<TaskError>();
    is_plain::<PoolError>();
    is_plain::<CodecError>();
    is_plain::<WorkerExit>();
    is_plain::<procession::Panic>();
    is_plain::<procession::RemoteError>();
    is_plain::<procession::PoolStats>();
    is_plain::<procession::WorkerInfo>();
    is_plain::<procession::worker::TaskContext>();
    fn is_shared<T: std::fmt::Debug + Send + Sync + Unpin + 'static>() {}
    is_shared::<procession::TaskHandle<u8>>();
    is_shared::<procession::TaskStream<u8>>();
    is_shared::<procession::ProgressWatch>();
    is_shared::<procession::Canceller>();
    is_error::<TaskError>();
    is_error::<PoolError>();
}

const LINE_OF_BOOM: u32 = line!() + 2;
fn boom(x: u8) -> u8 {
    panic!("boom {x}")
}

async fn a_panic_tells_its_message_and_place(builder: Builder) {
    let pool = builder.open().unwrap();
    let error = pool.submit(boom, 7).await.unwrap_err();
    assert!(error.to_string().contains("boom 7"), "{error}");
    let panic = panicked::<()>(Err(error));
    assert_eq!(panic.message(), "boom 7");
    assert_eq!((panic.location().file(), panic.location().line()), (file!(), LINE_OF_BOOM));
    let place = format!("{}:{}:{}", file!(), LINE_OF_BOOM, panic.location().column());
    assert_eq!(panic.location().to_string(), place);
    assert!(panic.thread().is_none_or(|name| !name.is_empty()));
    assert_eq!(panicked(pool.submit(|| panic!("static"), ()).await).message(), "static");
    pool.shutdown().await;
}

async fn a_panic_with_any_payload_is_a_panic(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let panic = panicked(pool.submit(|| std::panic::panic_any(17u8), ()).await);
    assert_eq!(panic.location().file(), file!());
    let quiet = || std::panic::resume_unwind(Box::new("without the hook"));
    panicked(pool.submit(quiet, ()).await);
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_panic_in_an_async_task_is_a_panic(builder: Builder) {
    async fn later(x: u8) -> u8 {
        tokio::task::yield_now().await;
        boom(x)
    }
    let pool = builder.open().unwrap();
    let panic = panicked(pool.submit(later, 8).await);
    assert_eq!((panic.message(), panic.location().line()), ("boom 8", LINE_OF_BOOM));
    pool.shutdown().await;
}

async fn a_panic_that_the_task_catches_is_no_error(builder: Builder) {
    fn catches() -> (bool, bool) {
        let here = std::panic::catch_unwind(|| boom(1)).is_err();
        let in_a_thread = std::thread::spawn(|| boom(2)).join().is_err();
        (here, in_a_thread)
    }
    let pool = builder.workers(1).open().unwrap();
    assert_eq!(pool.submit(catches, ()).await.unwrap(), (true, true));
    let panic = panicked(pool.submit(boom, 3).await);
    assert_eq!(panic.message(), "boom 3", "and is not mistaken for the next one");
    pool.shutdown().await;
}

async fn a_panic_has_a_backtrace_only_if_asked_for(method: StartMethod) {
    let with = <Builder as common::Given>::given(method).env("RUST_BACKTRACE", "1").open().unwrap();
    let panic = panicked(with.submit(boom, 1).await);
    assert!(panic.backtrace().unwrap().contains("errors::boom"), "{:?}", panic.backtrace());
    with.shutdown().await;

    let without = <Builder as common::Given>::given(method)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE")
        .open()
        .unwrap();
    assert_eq!(panicked(without.submit(boom, 1).await).backtrace(), None);
    without.shutdown().await;
}

async fn a_worker_lives_on_after_a_panic(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    for x in 0..20 {
        assert_eq!(panicked(pool.submit(boom, x).await).message(), format!("boom {x}"));
    }
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

fn fails() -> anyhow::Result<u8> {
    Err(anyhow!("no such disk")).context("cannot read").context("cannot start")
}

async fn an_anyhow_error_keeps_its_chain(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let Err(TaskError::Failed(error)) = pool.submit(fails, ()).await else { panic!() };
    assert_eq!(error.to_string(), "cannot start");
    assert_eq!(error.chain().collect::<Vec<_>>(), ["cannot start", "cannot read", "no such disk"]);
    assert!(TaskError::Failed(error).to_string().contains("cannot start"));
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn an_anyhow_error_has_a_backtrace_if_asked_for(method: StartMethod) {
    let with = <Builder as common::Given>::given(method).env("RUST_BACKTRACE", "1").open().unwrap();
    let Err(TaskError::Failed(error)) = with.submit(fails, ()).await else { panic!() };
    assert!(error.backtrace().unwrap().contains("errors::fails"), "{:?}", error.backtrace());
    with.shutdown().await;

    let without = <Builder as common::Given>::given(method)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE")
        .open()
        .unwrap();
    let Err(TaskError::Failed(error)) = without.submit(fails, ()).await else { panic!() };
    assert_eq!(error.backtrace(), None);
    without.shutdown().await;
}

async fn an_async_anyhow_error_is_the_same(builder: Builder) {
    let pool = builder.open().unwrap();
    let Err(TaskError::Failed(error)) = pool.submit(async || fails(), ()).await else { panic!() };
    assert_eq!(error.chain().count(), 3);
    pool.shutdown().await;
}

async fn a_full_queue_refuses(builder: Builder) {
    not_with_agents!("a queue's capacity counts what runs, too, and keeps no places");
    let pool = builder.workers(1).queue_capacity(2).open().unwrap();
    let meeting = Meeting::new();
    let submit = || pool.submit(|place: String| attend(&place, "one"), meeting.place());
    let accepted = [submit(), submit(), submit()];
    assert_matches!(submit().await, Err(TaskError::QueueFull { capacity: 2 }));
    for handle in accepted {
        drop(meeting.next().await);
        handle.await.unwrap();
    }
    a_worker(&pool).await; // there is room again
    pool.shutdown().await;
}

async fn a_pool_that_is_shut_down_refuses(builder: Builder) {
    let pool = builder.open().unwrap();
    a_worker(&pool).await;
    pool.shutdown().await;
    assert_matches!(pool.submit(|| 1u8, ()).await, Err(TaskError::ShutDown));
}

/// The first task of a pool that cannot start workers, and one more, both fail and say why.
async fn expect_broken(pool: ProcessPool, why: &str) {
    for _ in 0..2 {
        let error = pool.submit(|| 1u8, ()).await.unwrap_err();
        assert_matches!(&error, TaskError::PoolBroken(_));
        let chain = format!("{:#}", anyhow::Error::new(error));
        assert!(chain.contains(why), "{chain}");
    }
    pool.shutdown().await;
}

async fn a_failing_initializer_breaks_the_pool(builder: Builder) {
    fn licence(name: String) -> anyhow::Result<()> {
        anyhow::bail!("no licence for {name}")
    }
    let pool = builder.initializer(licence, "them".to_owned()).open().unwrap();
    expect_broken(pool, "no licence for them").await;
}

async fn a_panicking_initializer_breaks_the_pool(builder: Builder) {
    let pool = builder.initializer(|| panic!("cannot begin"), ()).open().unwrap();
    expect_broken(pool, "cannot begin").await;
}

async fn an_exiting_initializer_breaks_the_pool(builder: Builder) {
    let pool = builder.initializer(|| std::process::exit(37), ()).open().unwrap();
    expect_broken(pool, "37").await;
}

async fn workers_that_cannot_start_break_the_pool(builder: Builder) {
    let Ok(pool) = builder.current_dir("/nonexistent/directory").open() else {
        return; // told at once is as good
    };
    expect_broken(pool, "No such file or directory").await;
}

fn a_lost_runtime_resolves_its_handles(builder: Builder) {
    let lost = common::multi_thread();
    let (handles, _guest) = lost.block_on(async {
        let pool = builder.workers(1).open().unwrap();
        let meeting = Meeting::new();
        let running = pool.submit(|place: String| attend(&place, "one"), meeting.place());
        let queued = pool.submit(|| (), ());
        ([running, queued], meeting.next().await)
    });
    drop(lost);
    for handle in handles {
        assert_matches!(futures::executor::block_on(handle), Err(TaskError::ShutDown));
    }
}
