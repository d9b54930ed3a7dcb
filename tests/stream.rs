//! [`ProcessPool::stream`]: many values from one task, no faster than they are taken.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::time::Duration;

use common::{Ledger, Meeting, Open, a_worker, attend, attend_async, beside_what_runs, eventually, note};
use futures::{StreamExt, TryStreamExt, poll, stream};
use procession::worker::{self, Closed, Emit, emit};
use procession::{Builder, Priority, ProcessPool, StartMethod, TaskError, TaskStream};

both! {
    every_shape_of_function,
    every_kind_of_item,
    items_come_in_order_and_none_is_missing,
    a_window_of_one,
    a_producer_is_held_by_the_window,
    a_pushing_producer_is_held_too,
    an_async_producer_is_held_and_its_runtime_is_not,
    emitters_may_be_used_by_several_threads,
    nothing_happens_before_the_first_poll,
    large_items,
    items_that_cannot_be_sent_fail_alone,
    many_at_once,
    tasks_go_by_a_stream_that_is_held,
    in_a_bounded_queue_it_waits_for_room,
    what_a_task_knows_of_itself,
    sync it_may_be_taken_from_on_any_executor,
}

fn count(n: u64) -> impl Iterator<Item = u64> {
    0..n
}

/// The values of a stream that has no errors.
async fn all<T: serde::de::DeserializeOwned + 'static>(items: TaskStream<T>) -> Vec<T> {
    items.try_collect().await.unwrap()
}

async fn every_shape_of_function(builder: Builder) {
    let pool = builder.open().unwrap();
    let expected: Vec<u64> = (0..100).collect();

    assert_eq!(all(pool.stream(count, 100)).await, expected);
    assert_eq!(all(pool.stream(|| 0..100_u64, ())).await, expected);
    assert_eq!(all(pool.stream(|n: u64| 0..n, 100)).await, expected);
    assert_eq!(all(pool.stream(|from: u64, to: u64| from..to, (0, 100))).await, expected);
    let eight = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| [a, b, c, d, e, f, g, h].into_iter();
    assert_eq!(all(pool.stream(eight, (1, 2, 3, 4, 5, 6, 7, 8))).await, [1, 2, 3, 4, 5, 6, 7, 8]);
    fn boxed(words: Vec<String>) -> Box<dyn Iterator<Item = String>> {
        Box::new(words.into_iter().rev())
    }
    assert_eq!(all(pool.stream(boxed, vec!["a".into(), "b".into()])).await, ["b", "a"]);

    fn checked(n: u64) -> anyhow::Result<impl Iterator<Item = u64>> {
        anyhow::ensure!(n < 1000, "{n} is too many");
        Ok(0..n)
    }
    assert_eq!(all(pool.stream(checked, 100)).await, expected);
    let mut refused = pool.stream(checked, 1000);
    assert_eq!(refused.next().await.unwrap().unwrap_err().to_string(), "1000 is too many");
    assert!(refused.next().await.is_none());

    async fn later(n: u64) -> impl Iterator<Item = u64> {
        tokio::task::yield_now().await;
        0..n
    }
    async fn checked_later(n: u64) -> anyhow::Result<impl Iterator<Item = u64>> {
        checked(later(n).await.count() as u64)
    }
    assert_eq!(all(pool.stream(later, 100)).await, expected);
    assert_eq!(all(pool.stream(checked_later, 100)).await, expected);
    assert_eq!(all(pool.stream(async |n: u64| 0..n, 100)).await, expected);

    fn ticks(n: u64) -> impl stream::Stream<Item = u64> {
        stream::unfold(0, move |at| async move {
            tokio::task::yield_now().await;
            (at < n).then_some((at, at + 1))
        })
    }
    async fn ticks_later(n: u64) -> anyhow::Result<impl stream::Stream<Item = u64>> {
        Ok(ticks(n))
    }
    assert_eq!(all(pool.stream(ticks, 100)).await, expected);
    assert_eq!(all(pool.stream(ticks_later, 100)).await, expected);

    fn pushed(n: u64) -> Emit<u64> {
        emit(move |out| {
            for at in 0..n {
                out.send(at)?;
            }
            Ok(())
        })
    }
    assert_eq!(all(pool.stream(pushed, 100)).await, expected);
    assert_eq!(all(pool.stream(|n: u64| anyhow::Ok(pushed(n)), 100)).await, expected);
    assert_eq!(all(pool.stream(async |n: u64| pushed(n), 100)).await, expected);
    let closure = |n: u64| emit(move |out| (0..n).try_for_each(|at| out.send(at)).map_err(Into::into));
    assert_eq!(all(pool.stream(closure, 100)).await, expected);
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn every_kind_of_item(builder: Builder) {
    fn half(n: u64) -> anyhow::Result<u64> {
        anyhow::ensure!(n.is_multiple_of(2), "{n} is odd");
        Ok(n / 2)
    }
    let pool = builder.open().unwrap();
    let shown = |items: Vec<Result<u64, TaskError>>| {
        let texts =
            items.into_iter().map(|item| item.map_or_else(|error| error.to_string(), |n| n.to_string()));
        texts.collect::<Vec<_>>()
    };
    let expected = ["0", "1 is odd", "1", "3 is odd", "2"];
    assert_eq!(shown(pool.stream(|n: u64| (0..n).map(half), 5).collect().await), expected);
    let async_items = |n: u64| stream::iter((0..n).map(half));
    assert_eq!(shown(pool.stream(async_items, 5).collect().await), expected);
    let pushed = |n: u64| emit(move |out| Ok((0..n).try_for_each(|at| out.send(half(at)))?));
    assert_eq!(shown(pool.stream(pushed, 5).collect().await), expected);

    // A `Result` of its own is the item.
    let own = |n: u64| (0..n).map(|at| half(at).map_err(|error| error.to_string()));
    let own: Vec<Result<u64, String>> = all(pool.stream(own, 2)).await;
    assert_eq!(own, [Ok(0), Err("1 is odd".to_string())]);
    let several = |text: String| {
        text.chars().map(|c| (c, Some(c.to_string()), [1_u8, 2])).collect::<Vec<_>>().into_iter()
    };
    assert_eq!(all(pool.stream(several, "ä".to_string())).await, [('ä', Some("ä".to_string()), [1, 2])]);
    assert_eq!(all(pool.stream(|| std::iter::repeat_n((), 70), ())).await.len(), 70);
    assert!(all(pool.stream(std::iter::empty::<String>, ())).await.is_empty());
    pool.shutdown().await;
}

async fn items_come_in_order_and_none_is_missing(builder: Builder) {
    let pool = builder.open().unwrap();
    for window in [2, 64, 10_000] {
        let mut items = pool.stream(count, 50_000).window(window);
        let mut next = 0;
        while let Some(item) = items.try_next().await.unwrap() {
            assert_eq!(item, next, "with a window of {window}");
            next += 1;
        }
        assert_eq!(next, 50_000);
    }
    let stats = pool.stats();
    assert_eq!((stats.submitted(), stats.succeeded()), (3, 3));
    pool.shutdown().await;
}

async fn a_window_of_one(builder: Builder) {
    let pool = builder.open().unwrap();
    for window in [0, 1] {
        assert_eq!(all(pool.stream(count, 300).window(window)).await, (0..300).collect::<Vec<_>>());
    }
    pool.shutdown().await;
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

/// Takes some items, and sees that no more are produced ahead than the window allows.
async fn is_held(mut items: TaskStream<u64>, ledger: &Ledger, window: usize) {
    // This starts it, and the first item may be here that soon.
    let mut taken = usize::from(poll!(items.next()).is_ready());
    for _ in 0..5 {
        // Half of a window is granted at a time, and there is one that waits to be sent.
        let granted = taken / window.div_ceil(2) * window.div_ceil(2);
        let ahead = granted + window + 1;
        eventually("all is produced that may be", || ledger.lines().len() == ahead).await;
        for _ in 0..3 {
            assert_eq!(items.next().await.unwrap().unwrap(), taken as u64);
            taken += 1;
            assert!(ledger.lines().len() <= taken + window + 1);
        }
    }
}

async fn a_producer_is_held_by_the_window(builder: Builder) {
    let pool = builder.open().unwrap();
    for window in [1, 4, 7] {
        let ledger = Ledger::new();
        is_held(pool.stream(noted, ledger.place()).window(window), &ledger, window).await;
    }
    pool.shutdown().await;
}

async fn a_pushing_producer_is_held_too(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    is_held(pool.stream(noted_and_pushed, ledger.place()).window(6), &ledger, 6).await;
    eventually("it finds out", || ledger.lines().last().is_some_and(|line| line == "closed")).await;
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn an_async_producer_is_held_and_its_runtime_is_not(builder: Builder) {
    fn beside(ledger: String, meeting: String) -> impl stream::Stream<Item = u64> {
        tokio::spawn(async move { attend_async(&meeting, "beside").await });
        stream::iter((0..).inspect(move |n| note(&ledger, n)))
    }
    let pool = builder.open().unwrap();
    let (ledger, meeting) = (Ledger::new(), Meeting::new());
    let items = pool.stream(async |a: String, b: String| beside(a, b), (ledger.place(), meeting.place()));
    is_held(items.window(4), &ledger, 4).await;
    // It had to run for this while the stream was held, or will never.
    assert_eq!(meeting.next().await.who, "beside");
    pool.shutdown().await;
}

async fn emitters_may_be_used_by_several_threads(builder: Builder) {
    fn from_threads(threads: u64, each: u64) -> Emit<u64> {
        emit(move |out| {
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let out = out.clone();
                    scope.spawn(move || (0..each).try_for_each(|n| out.send(thread * each + n)));
                }
            });
            Ok(())
        })
    }
    fn outlives_its_task(ledger: String) -> Emit<u64> {
        emit(move |out| {
            let out = out.clone();
            std::thread::spawn(move || {
                while out.send(1).is_ok() {}
                note(&ledger, "closed");
            });
            Ok(())
        })
    }
    let pool = builder.workers(1).open().unwrap();
    let mut items = all(pool.stream(from_threads, (4, 1000)).window(10)).await;
    items.sort();
    assert_eq!(items, (0..4000).collect::<Vec<_>>());

    let ledger = Ledger::new();
    let items = all(pool.stream(outlives_its_task, ledger.place()).window(1000)).await;
    assert!(items.iter().all(|item| *item == 1));
    // What its thread sends is of no task any more, and not sent: the worker goes on.
    eventually("the thread finds out", || ledger.lines() == ["closed"]).await;
    assert_eq!(all(pool.stream(count, 3)).await, [0, 1, 2]);
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn nothing_happens_before_the_first_poll(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let items = pool.stream(noted, ledger.place());
    assert_eq!(pool.stats().submitted(), 0);
    assert_eq!(items.worker_pid(), None);
    drop(items);
    a_worker(&pool).await;
    pool.shutdown().await;
    assert_eq!(pool.stats().submitted(), 1);
    assert!(ledger.lines().is_empty());
}

async fn large_items(builder: Builder) {
    // Below and above what fits into the ring, the arena, and what may be under way.
    fn blocks(sizes: Vec<usize>) -> impl Iterator<Item = Vec<u8>> {
        sizes.into_iter().map(|size| vec![size as u8; size])
    }
    let pool = builder.open().unwrap();
    let sizes: Vec<usize> = [1, 16 << 10, 32 << 10, (32 << 10) + 1, 300 << 10, 5 << 20, 1 << 20, 40 << 20, 7]
        .into_iter()
        .cycle()
        .take(27)
        .collect();
    for window in [1, 64] {
        let mut items = pool.stream(blocks, sizes.clone()).window(window);
        for size in &sizes {
            let item = items.next().await.unwrap().unwrap();
            assert!(item.len() == *size && item.iter().all(|byte| *byte == *size as u8), "{size}");
        }
        assert!(items.next().await.is_none());
    }
    // Values that are not bytes as they are.
    let nested = |n: u32| (0..n).map(|at| vec![(at, "text".to_string()); 20_000]);
    let items: Vec<Vec<(u32, String)>> = all(pool.stream(nested, 5)).await;
    assert!((0..5).zip(items).all(|(n, item)| item == vec![(n, "text".to_string()); 20_000]));
    pool.shutdown().await;
}

async fn items_that_cannot_be_sent_fail_alone(builder: Builder) {
    #[derive(Debug, serde::Deserialize)]
    struct Odd(u64);
    impl serde::Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0.is_multiple_of(2) {
                return Err(serde::ser::Error::custom("it is even"));
            }
            serializer.serialize_newtype_struct("Odd", &self.0)
        }
    }
    let pool = builder.max_message_size(1000).open().unwrap();
    let mut items = pool.stream(|n: u64| (0..n).map(Odd), 3);
    assert_matches!(items.next().await, Some(Err(TaskError::Codec(error))) if error.cause().contains("even"));
    assert_eq!(items.next().await.unwrap().unwrap().0, 1);
    assert_matches!(items.next().await, Some(Err(TaskError::Codec(_))));
    assert!(items.next().await.is_none());

    let sizes = |sizes: Vec<usize>| sizes.into_iter().map(|size| "a".repeat(size));
    let mut items = pool.stream(sizes, vec![1000, 1001, 10]);
    assert_eq!(items.next().await.unwrap().unwrap().len(), 1000);
    assert_matches!(items.next().await, Some(Err(TaskError::TooLarge { size: 1001, limit: 1000 })));
    assert_eq!(items.next().await.unwrap().unwrap().len(), 10);
    assert!(items.next().await.is_none());
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn many_at_once(builder: Builder) {
    let pool = builder.open().unwrap();
    let streams = (0..20).map(|n| all(pool.stream(count, 500 * n).window(8)));
    for (n, items) in (0..).zip(futures::future::join_all(streams).await) {
        assert_eq!(items, (0..500 * n).collect::<Vec<_>>());
    }
    // Merged, as `select_all` polls them.
    let mut merged = stream::select_all((0..10).map(|_| pool.stream(count, 100)));
    let mut sum = 0;
    while let Some(item) = merged.next().await {
        sum += item.unwrap();
    }
    assert_eq!(sum, 10 * 99 * 100 / 2);
    pool.shutdown().await;
    assert_eq!(pool.stats().succeeded(), 30);
}

async fn tasks_go_by_a_stream_that_is_held(builder: Builder) {
    let pool = builder.open().unwrap();
    // So that a worker is known to be quick, and is sent several tasks at a time.
    for _ in 0..3 {
        futures::future::join_all((0..200).map(|n: u64| pool.submit(|n: u64| n, n))).await;
    }
    for _ in 0..20 {
        let mut items = pool.stream(count, 1000);
        let first = poll!(items.next());
        let tasks = futures::future::join_all((0..50).map(|n: u64| pool.submit(|n: u64| n, n))).await;
        assert!(tasks.into_iter().all(|task| task.is_ok()));
        // It may have come that soon.
        assert_eq!(all(items).await.len(), 1000 - usize::from(first.is_ready()));
    }
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn in_a_bounded_queue_it_waits_for_room(builder: Builder) {
    let pool = builder.workers(1).queue_capacity(beside_what_runs(1)).open().unwrap();
    let meeting = Meeting::new();
    let place = meeting.place();
    let running = pool.submit(|place: String| attend(&place, "running"), place.clone());
    let guest = meeting.next().await;
    let waiting = pool.submit(|| (), ());
    assert_matches!(pool.submit(|| (), ()).await, Err(TaskError::QueueFull { .. }));
    let mut items = pool.stream(count, 3).priority(Priority::High);
    assert!(poll!(items.next()).is_pending());
    // It can be cancelled there, too.
    let mut cancelled = pool.stream(count, 3);
    assert!(poll!(cancelled.next()).is_pending());
    cancelled.canceller().cancel();
    assert_matches!(cancelled.next().await, Some(Err(TaskError::Cancelled)));
    assert!(cancelled.next().await.is_none());
    drop(guest);
    assert_eq!(all(items).await, [0, 1, 2]);
    running.await.unwrap();
    waiting.await.unwrap();
    pool.shutdown().await;
    assert_eq!(pool.stats().submitted(), 3);
}

async fn what_a_task_knows_of_itself(builder: Builder) {
    fn tell() -> impl Iterator<Item = (u64, Option<String>, bool, u32)> {
        let task = worker::current().unwrap();
        let name = task.name().map(str::to_owned);
        [(task.id().get(), name, task.deadline().is_some(), std::process::id())].into_iter()
    }
    let pool = builder.open().unwrap();
    let items = pool.stream(tell, ()).name("teller").timeout(Duration::from_secs(60));
    let (id, debug) = (items.id().get(), format!("{items:?}"));
    assert!(debug.contains("TaskStream") && debug.contains(&id.to_string()), "{debug}");
    let told = all(items).await.pop().unwrap();
    assert_eq!((told.0, told.1.as_deref(), told.2), (id, Some("teller"), true));
    assert_ne!(told.3, std::process::id());
    pool.shutdown().await;
}

fn it_may_be_taken_from_on_any_executor(method: StartMethod) {
    let runtime = common::multi_thread();
    let pool = runtime.block_on(async { ProcessPool::builder().start_method(method).build().unwrap() });
    let mut items = pool.stream(count, 2000);
    let first = futures::executor::block_on(items.next());
    assert_eq!(first.unwrap().unwrap(), 0);
    let rest = std::thread::spawn(|| futures::executor::block_on(all(items))).join().unwrap();
    assert_eq!(rest.len(), 1999);
    runtime.block_on(pool.shutdown());
}

#[test]
fn a_stream_can_be_sent_and_is_not_pinned() {
    fn check<T: Send + Unpin + 'static>(_: Option<T>) {}
    check(None::<TaskStream<std::rc::Rc<u8>>>);
    fn fused(items: TaskStream<u8>) -> impl futures::stream::FusedStream {
        items
    }
    let _ = fused;
}
