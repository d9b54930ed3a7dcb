//! How a stream ends: dropped, cancelled, failed, out of time, or with its pool.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::pin::Pin;
use std::time::Duration;

use common::{Ledger, Meeting, Open, a_worker, attend, died, eventually, note, panicked, shown};
use futures::{StreamExt, TryStreamExt, poll, stream};
use procession::worker::{Closed, Emit, emit};
use procession::{Builder, ProcessPool, StartMethod, TaskError, TaskStream};

both! {
    dropping_it_ends_a_producer_that_is_held,
    dropping_it_tells_a_producer_that_runs,
    dropping_it_kills_a_producer_that_does_not_listen,
    cancelled_from_elsewhere,
    a_crash_in_mid_stream,
    a_panic_in_mid_stream,
    an_error_in_mid_stream,
    time_runs_out_in_mid_stream,
    time_in_which_it_is_held_counts,
    a_shutdown_waits_for_it,
    a_shutdown_now_ends_it,
    a_pool_that_is_shut_down_has_no_streams,
    it_keeps_its_pool,
    sync without_its_runtime_it_ends,
}

fn count(n: u64) -> impl Iterator<Item = u64> {
    0..n
}

/// The values of a stream that has no errors.
async fn all<T: serde::de::DeserializeOwned + 'static>(items: TaskStream<T>) -> Vec<T> {
    items.try_collect().await.unwrap()
}

/// Notes each number as it is produced.
fn noted(ledger: String) -> impl Iterator<Item = u64> {
    (0..).inspect(move |n| note(&ledger, n))
}

fn noted_and_pushed(ledger: String) -> Emit<u64> {
    emit(move |out| {
        for n in 0.. {
            note(&ledger, n);
            if out.send(n) == Err(Closed) {
                note(&ledger, if out.is_closed() { "closed" } else { "open" });
                break;
            }
        }
        Ok(())
    })
}

async fn dropping_it_ends_a_producer_that_is_held(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(Duration::from_secs(60)).open().unwrap();
    let pid = a_worker(&pool).await;
    let held_iterator = Ledger::new();
    let mut items = pool.stream(noted, held_iterator.place()).window(2);
    items.next().await.unwrap().unwrap();
    eventually("it is held", || held_iterator.lines().len() >= 3).await;
    drop(items);
    let held_emitter = Ledger::new();
    let mut items = pool.stream(noted_and_pushed, held_emitter.place()).window(2);
    items.next().await.unwrap().unwrap();
    drop(items);
    let mut items = pool.stream(|| stream::repeat(1_u8), ()).window(2);
    items.next().await.unwrap().unwrap();
    drop(items);
    // With a grace of a minute, it is the same worker only if they stopped.
    assert_eq!(a_worker(&pool).await, pid);
    assert_eq!(held_emitter.lines().last().unwrap(), "closed");
    let stats = pool.stats();
    assert_eq!((stats.cancelled(), stats.workers_died()), (3, 0));
    pool.shutdown().await;
}

async fn dropping_it_tells_a_producer_that_runs(builder: Builder) {
    fn attending(meeting: String) -> impl Iterator<Item = u64> {
        (0..).inspect(move |n| {
            if *n == 5 {
                attend(&meeting, "amid the fifth");
            }
        })
    }
    let pool = builder.workers(1).cancel_grace(Duration::from_secs(60)).open().unwrap();
    let meeting = Meeting::new();
    let mut items = pool.stream(attending, meeting.place());
    for n in 0..5 {
        assert_eq!(items.next().await.unwrap().unwrap(), n);
    }
    let guest = meeting.next().await;
    shown("its worker", || items.worker_pid() == Some(guest.pid)).await;
    drop(items);
    let next = pool.submit(std::process::id, ());
    let pid = guest.pid;
    drop(guest);
    assert_eq!(next.await.unwrap(), pid);
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn dropping_it_kills_a_producer_that_does_not_listen(builder: Builder) {
    fn attending(meeting: String) -> impl Iterator<Item = u64> {
        std::iter::from_fn(move || {
            attend(&meeting, "for ever");
            None
        })
    }
    let pool = builder.cancel_grace(Duration::from_millis(10)).open().unwrap();
    let meeting = Meeting::new();
    let mut items = pool.stream(attending, meeting.place());
    assert!(poll!(items.next()).is_pending());
    let guest = meeting.next().await;
    drop(items);
    guest.gone().await;
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn cancelled_from_elsewhere(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    // While it runs: what has arrived comes first.
    let ledger = Ledger::new();
    let mut items = pool.stream(noted, ledger.place()).window(10);
    let canceller = items.canceller();
    assert_eq!(canceller.id(), items.id());
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    canceller.cancel();
    let mut rest: Vec<_> = items.by_ref().collect().await;
    assert_matches!(rest.pop(), Some(Err(TaskError::Cancelled)));
    for (n, item) in (1..).zip(rest) {
        assert_eq!(item.unwrap(), n);
    }
    assert!(items.next().await.is_none());
    // Before it is submitted.
    let mut items = pool.stream(count, 3);
    items.canceller().cancel();
    assert_matches!(items.next().await, Some(Err(TaskError::Cancelled)));
    assert!(items.next().await.is_none());
    pool.shutdown().await;
}

/// The items that came, and the error after them.
async fn until_error(mut items: TaskStream<u64>) -> (Vec<u64>, TaskError) {
    let mut all: Vec<_> = items.by_ref().collect().await;
    assert!(items.next().await.is_none() && items.next().await.is_none());
    let error = all.pop().unwrap().unwrap_err();
    (all.into_iter().map(Result::unwrap).collect(), error)
}

async fn a_crash_in_mid_stream(builder: Builder) {
    let crash = |n: u64| {
        (0..).inspect(move |at| {
            if *at == n {
                std::process::abort()
            }
        })
    };
    let pool = builder.open().unwrap();
    for n in [0, 1, 40, 1000] {
        let (items, error) = until_error(pool.stream(crash, n)).await;
        assert_eq!(items, (0..n).collect::<Vec<_>>());
        assert_eq!(died::<()>(Err(error)).signal(), Some(libc::SIGABRT));
    }
    assert_eq!(all(pool.stream(count, 3)).await, [0, 1, 2]);
    pool.shutdown().await;
}

async fn a_panic_in_mid_stream(builder: Builder) {
    let fall = |n: u64| (0..).inspect(move |at| assert!(*at < n, "no further than {n}"));
    let async_fall = |n: u64| stream::iter((0..).inspect(move |at| assert!(*at < n, "no further than {n}")));
    let pool = builder.workers(1).open().unwrap();
    for n in [0, 40, 1000] {
        for items in [pool.stream(fall, n), pool.stream(async_fall, n)] {
            let (items, error) = until_error(items).await;
            assert_eq!(items, (0..n).collect::<Vec<_>>());
            assert_eq!(panicked::<()>(Err(error)).message(), format!("no further than {n}"));
        }
    }
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn an_error_in_mid_stream(builder: Builder) {
    fn fail(n: u64) -> Emit<u64> {
        emit(move |out| {
            (0..n).try_for_each(|at| out.send(at))?;
            anyhow::bail!("no further than {n}")
        })
    }
    let pool = builder.open().unwrap();
    let (items, error) = until_error(pool.stream(fail, 100)).await;
    assert_eq!(items, (0..100).collect::<Vec<_>>());
    assert_matches!(error, TaskError::Failed(error) if error.to_string() == "no further than 100");
    pool.shutdown().await;
}

async fn time_runs_out_in_mid_stream(builder: Builder) {
    let hang = |n: u64| {
        (0..).inspect(move |at| {
            if *at == n {
                std::thread::sleep(Duration::from_secs(3600));
            }
        })
    };
    let pool = builder.open().unwrap();
    let limit = Duration::from_millis(200);
    let (items, error) = until_error(pool.stream(hang, 10).timeout(limit)).await;
    assert_eq!(items, (0..10).collect::<Vec<_>>());
    assert_matches!(error, TaskError::TimedOut { limit: told } if told == limit);
    pool.shutdown().await;
}

async fn time_in_which_it_is_held_counts(builder: Builder) {
    let limit = Duration::from_millis(200);
    let pool = builder.task_timeout(limit).open().unwrap();
    let mut items = pool.stream(count, 1_000_000).window(10);
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    eventually("its time is up", || pool.stats().timed_out() == 1).await;
    let (rest, error) = until_error(items).await;
    assert_eq!(rest, (1..=rest.len() as u64).collect::<Vec<_>>());
    assert!(rest.len() <= 10);
    assert_matches!(error, TaskError::TimedOut { limit: told } if told == limit);
    pool.shutdown().await;
}

async fn a_shutdown_waits_for_it(builder: Builder) {
    let pool = builder.open().unwrap();
    let mut items = pool.stream(count, 5000);
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    let (items, ()) = tokio::join!(all(items), pool.shutdown());
    assert_eq!(items, (1..5000).collect::<Vec<_>>());
}

/// Under the fork server alone: it has to do with the pool, and takes as long as its patience.
#[test]
fn a_shutdown_does_not_wait_for_a_consumer_that_waits_for_it() {
    use common::Given;
    common::run(async {
        let pool = Builder::given(StartMethod::ForkServer).open().unwrap();
        let mut held = pool.stream(count, 5000).window(10);
        let done = pool.stream(count, 10).window(10);
        assert_eq!(held.next().await.unwrap().unwrap(), 0);
        let mut done = done.peekable();
        assert!(Pin::new(&mut done).peek().await.is_some());
        pool.shutdown().await;
        let (rest, error) = until_error(held).await;
        assert_eq!(rest, (1..=rest.len() as u64).collect::<Vec<_>>());
        assert_matches!(error, TaskError::ShutDown);
        // One that needs no more room has nothing to wait for.
        assert_eq!(done.try_collect::<Vec<_>>().await.unwrap(), (0..10).collect::<Vec<_>>());
    });
}

async fn a_shutdown_now_ends_it(builder: Builder) {
    let pool = builder.open().unwrap();
    let mut items = pool.stream(count, 5000).window(10);
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    let mut other = pool.stream(count, 5000).window(10);
    assert_eq!(other.next().await.unwrap().unwrap(), 0);
    pool.shutdown_timeout(Duration::from_millis(1)).await;
    for items in [items, other] {
        let (rest, error) = until_error(items).await;
        assert_eq!(rest, (1..=rest.len() as u64).collect::<Vec<_>>());
        assert_matches!(error, TaskError::ShutDown);
    }
}

async fn a_pool_that_is_shut_down_has_no_streams(builder: Builder) {
    let pool = builder.open().unwrap();
    let mut items = pool.stream(count, 3);
    pool.shutdown().await;
    assert_matches!(items.next().await, Some(Err(TaskError::ShutDown)));
    assert!(items.next().await.is_none());
}

async fn it_keeps_its_pool(builder: Builder) {
    let pool = builder.open().unwrap();
    let first = pool.stream(count, 1000);
    let mut second = pool.stream(count, 1000);
    assert_eq!(second.next().await.unwrap().unwrap(), 0);
    drop(pool);
    assert_eq!(all(first).await.len(), 1000);
    assert_eq!(all(second).await.len(), 999);
}

fn without_its_runtime_it_ends(method: StartMethod) {
    let runtime = common::multi_thread();
    let pool = runtime.block_on(async { ProcessPool::builder().start_method(method).build().unwrap() });
    let mut items = pool.stream(count, 2000).window(5);
    let late = pool.stream(count, 3);
    assert_eq!(futures::executor::block_on(items.next()).unwrap().unwrap(), 0);
    drop(runtime);
    let (rest, error) = futures::executor::block_on(until_error(items));
    assert_eq!(rest, (1..=rest.len() as u64).collect::<Vec<_>>());
    assert_matches!(error, TaskError::ShutDown);
    let (none, error) = futures::executor::block_on(until_error(late));
    assert!(none.is_empty());
    assert_matches!(error, TaskError::ShutDown);
}
