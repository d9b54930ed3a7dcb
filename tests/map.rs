//! [`ProcessPool::map`]: lazily in, in order or as they come out, each item with its own result.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Ledger, Meeting, Open, a_worker, attend, died, eventually, note, panicked, server};
use futures::{StreamExt, TryStreamExt, poll};
use procession::{Builder, TaskError};

both! {
    results_come_in_the_order_of_the_input,
    results_wait_for_the_ones_before_them,
    unordered_results_come_as_they_are_ready,
    every_shape_of_function,
    an_empty_iterator_ends_at_once,
    an_endless_iterator,
    chunks_change_no_result,
    cheap_items_by_the_thousand,
    the_iterator_is_not_touched_before_the_stream_is,
    the_iterator_is_pulled_no_further_than_the_window,
    a_slow_item_holds_the_window,
    the_default_window_keeps_every_worker_busy,
    a_bounded_queue_slows_a_map_and_fails_nothing,
    an_item_that_panics_fails_alone,
    an_item_that_crashes_its_worker_fails_alone,
    an_item_that_crashes_amid_a_chunk_fails_alone,
    an_item_that_takes_too_long_fails_alone,
    time_counts_for_each_item_of_a_chunk,
    dropping_the_stream_cancels_what_is_in_flight,
    dropping_the_stream_leaves_the_pool_alone,
    a_pool_that_is_shut_down_fails_every_item,
}

fn square(x: u64) -> u64 {
    x * x
}

fn squares(n: u64) -> Vec<u64> {
    (0..n).map(square).collect()
}

async fn results_come_in_the_order_of_the_input(builder: Builder) {
    let pool = builder.open().unwrap();
    let slow_at_first = |x: u64| {
        std::thread::sleep(Duration::from_millis(if x.is_multiple_of(5) { 10 } else { 0 }));
        square(x)
    };
    let results: Vec<u64> = pool.map(slow_at_first, 0..50).try_collect().await.unwrap();
    assert_eq!(results, squares(50));
    pool.shutdown().await;
}

/// Attends if it is the first, and otherwise notes that it ran.
fn first_waits(x: u64, meeting: String, ledger: String) -> u64 {
    if x == 0 {
        attend(&meeting, "first")
    } else {
        note(&ledger, x)
    }
    x
}

async fn results_wait_for_the_ones_before_them(builder: Builder) {
    let pool = builder.open().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let items: Vec<_> = (0..4).map(|x| (x, meeting.place(), ledger.place())).collect();
    let mut results = pin!(pool.map(first_waits, items).window(4).chunk_size(1));
    while ledger.lines().len() < 3 {
        assert!(poll!(results.next()).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(poll!(results.next()).is_pending());
    drop(meeting.next().await);
    let results: Vec<u64> = results.try_collect().await.unwrap();
    assert_eq!(results, [0, 1, 2, 3]);
    pool.shutdown().await;
}

async fn unordered_results_come_as_they_are_ready(builder: Builder) {
    let pool = builder.open().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let items: Vec<_> = (0..4).map(|x| (x, meeting.place(), ledger.place())).collect();
    let mut results = pin!(pool.map(first_waits, items).window(4).chunk_size(1).unordered());
    let mut early = Vec::new();
    for _ in 0..3 {
        early.push(results.next().await.unwrap().unwrap());
    }
    early.sort();
    assert_eq!(early, [1, 2, 3]);
    drop(meeting.next().await);
    assert_eq!(results.next().await.unwrap().unwrap(), 0);
    assert!(results.next().await.is_none());
    pool.shutdown().await;
}

async fn every_shape_of_function(builder: Builder) {
    async fn later(x: u64) -> anyhow::Result<u64> {
        anyhow::ensure!(x != 1, "not {x}");
        Ok(x)
    }
    let pool = builder.open().unwrap();
    let products: Vec<u64> = pool.map(|x: u64, y: u64| x * y, [(2, 3), (4, 5)]).try_collect().await.unwrap();
    assert_eq!(products, [6, 20]);
    let doubled: Vec<u64> = pool.map(|x| x * 2, vec![1u64, 2]).try_collect().await.unwrap();
    assert_eq!(doubled, [2, 4]);
    let lengths: Vec<usize> = pool.map(|s: String| s.len(), ["a".to_owned()]).try_collect().await.unwrap();
    assert_eq!(lengths, [1]);
    let outcomes: Vec<_> = pool.map(later, 0..3).collect().await;
    assert_matches!(&outcomes[..], [Ok(0), Err(TaskError::Failed(_)), Ok(2)]);
    pool.shutdown().await;
}

async fn an_empty_iterator_ends_at_once(builder: Builder) {
    let pool = builder.open().unwrap();
    assert_eq!(pool.map(square, std::iter::empty::<u64>()).count().await, 0);
    assert_eq!(pool.stats().workers_started(), 0);
    pool.shutdown().await;
}

async fn an_endless_iterator(builder: Builder) {
    let pool = builder.open().unwrap();
    let results: Vec<u64> = pool.map(square, 0..).take(30).try_collect().await.unwrap();
    assert_eq!(results, squares(30));
    pool.shutdown().await;
}

async fn chunks_change_no_result(builder: Builder) {
    let pool = builder.open().unwrap();
    for size in [1, 3, 8, 50, 100] {
        let results: Vec<u64> = pool.map(square, 0..50).chunk_size(size).try_collect().await.unwrap();
        assert_eq!(results, squares(50), "chunks of {size}");
        let unordered = pool.map(square, 0..50).chunk_size(size).unordered();
        let mut results: Vec<u64> = unordered.try_collect().await.unwrap();
        results.sort();
        assert_eq!(results, squares(50), "chunks of {size}, unordered");
    }
    pool.shutdown().await;
}

async fn cheap_items_by_the_thousand(builder: Builder) {
    let pool = builder.open().unwrap();
    let results: Vec<u64> = pool.map(square, 0..20_000).try_collect().await.unwrap();
    assert!(results == squares(20_000));
    pool.shutdown().await;
}

/// An iterator that counts how far it was pulled.
fn counted(n: u64) -> (Arc<AtomicUsize>, impl Iterator<Item = u64> + Send + 'static) {
    let pulled = Arc::new(AtomicUsize::new(0));
    let count = pulled.clone();
    let items = (0..n).inspect(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (pulled, items)
}

async fn the_iterator_is_not_touched_before_the_stream_is(builder: Builder) {
    let pool = builder.open().unwrap();
    let (pulled, items) = counted(10);
    let results = pool.map(square, items);
    a_worker(&pool).await;
    assert_eq!(pulled.load(Ordering::SeqCst), 0);
    assert_eq!(results.count().await, 10);
    assert_eq!(pulled.load(Ordering::SeqCst), 10);
    pool.shutdown().await;
}

async fn the_iterator_is_pulled_no_further_than_the_window(builder: Builder) {
    let pool = builder.open().unwrap();
    for window in [1, 4, 7] {
        let (pulled, items) = counted(40);
        let mut results = pin!(pool.map(square, items).window(window));
        for seen in 0..40 {
            assert_eq!(results.next().await.unwrap().unwrap(), square(seen));
            let ahead = pulled.load(Ordering::SeqCst) - (seen as usize + 1);
            assert!(ahead <= window, "{ahead} items ahead with a window of {window}");
        }
        assert!(results.next().await.is_none());
    }
    pool.shutdown().await;
}

async fn a_slow_item_holds_the_window(builder: Builder) {
    let pool = builder.open().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let (pulled, items) = counted(20);
    let places = (meeting.place(), ledger.place());
    let items = items.map(move |x| (x, places.0.clone(), places.1.clone()));
    let mut results = pin!(pool.map(first_waits, items).window(5).chunk_size(1));
    for _ in 0..50 {
        assert!(poll!(results.next()).is_pending());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(pulled.load(Ordering::SeqCst), 5);
    drop(meeting.next().await);
    assert_eq!(results.count().await, 20);
    pool.shutdown().await;
}

async fn the_default_window_keeps_every_worker_busy(builder: Builder) {
    let pool = builder.workers(3).open().unwrap();
    let meeting = Meeting::new();
    let place = meeting.place();
    let items = (0..).map(move |_| place.clone());
    let mut results = pin!(pool.map(|place: String| attend(&place, "one"), items));
    let arrive = meeting.all(3);
    let guests = tokio::select! {
        guests = arrive => guests,
        result = results.next() => panic!("{result:?} while all attend"),
    };
    assert_ne!(guests[0].pid, guests[1].pid);
    drop(guests);
    assert!(results.next().await.unwrap().is_ok());
    pool.shutdown_now().await;
}

async fn a_bounded_queue_slows_a_map_and_fails_nothing(builder: Builder) {
    let pool = builder.workers(1).queue_capacity(1).open().unwrap();
    let results: Vec<u64> = pool.map(square, 0..50).window(10).try_collect().await.unwrap();
    assert_eq!(results, squares(50));
    pool.shutdown().await;
}

async fn an_item_that_panics_fails_alone(builder: Builder) {
    fn no_seven(x: u64) -> u64 {
        assert!(x != 7, "seven");
        x
    }
    let pool = builder.open().unwrap();
    for size in [1, 8] {
        let outcomes: Vec<_> = pool.map(no_seven, 0..20).chunk_size(size).collect().await;
        for (x, outcome) in (0..).zip(outcomes) {
            if x == 7 {
                assert_eq!(panicked(outcome).message(), "seven");
            } else {
                assert_eq!(outcome.unwrap(), x);
            }
        }
    }
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

fn die_at_seven(x: u64, ledger: String) -> u64 {
    note(&ledger, 100 + x);
    if x == 7 {
        std::process::abort();
    }
    x
}

/// Maps 20 items of which the eighth dies, each of which is to run exactly once.
async fn crash_at_seven(builder: Builder, chunk_size: Option<usize>) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let items: Vec<_> = (0..20).map(|x| (x, ledger.place())).collect();
    let results = pool.map(die_at_seven, items);
    let outcomes: Vec<_> = match chunk_size {
        Some(size) => results.chunk_size(size).collect().await,
        None => results.collect().await,
    };
    for (x, outcome) in (0..).zip(outcomes) {
        if x == 7 {
            assert_eq!(died(outcome).signal(), Some(libc::SIGABRT));
        } else {
            assert_eq!(outcome.unwrap(), x);
        }
    }
    assert_eq!(ledger.sorted(), (100..120).map(|x| x.to_string()).collect::<Vec<_>>());
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), u64::from(server().is_none()), "of its own");
}

async fn an_item_that_crashes_its_worker_fails_alone(builder: Builder) {
    crash_at_seven(builder, None).await;
}

async fn an_item_that_crashes_amid_a_chunk_fails_alone(builder: Builder) {
    crash_at_seven(builder.workers(1), Some(8)).await;
}

async fn an_item_that_takes_too_long_fails_alone(builder: Builder) {
    fn sleep_at_seven(x: u64) -> u64 {
        if x == 7 {
            std::thread::sleep(Duration::from_secs(3600));
        }
        x
    }
    let pool = builder.open().unwrap();
    let limit = Duration::from_millis(500);
    for size in [1, 8] {
        let results = pool.map(sleep_at_seven, 0..20).chunk_size(size).timeout(limit);
        for (x, outcome) in (0..).zip(results.collect::<Vec<_>>().await) {
            if x == 7 {
                assert_matches!(outcome, Err(TaskError::TimedOut { limit: told }) if told == limit);
            } else {
                assert_eq!(outcome.unwrap(), x, "chunks of {size}");
            }
        }
    }
    pool.shutdown().await;
}

async fn time_counts_for_each_item_of_a_chunk(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let slow = |x: u64| {
        std::thread::sleep(Duration::from_millis(200));
        x
    };
    let results = pool.map(slow, 0..8).chunk_size(8).timeout(Duration::from_secs(1));
    let results: Vec<u64> = results.try_collect().await.unwrap(); // 1.6 s in all
    assert_eq!(results, (0..8).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn dropping_the_stream_cancels_what_is_in_flight(builder: Builder) {
    let pool = builder.cancel_grace(Duration::from_millis(10)).open().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let items: Vec<_> = (0..20).map(|_| (meeting.place(), ledger.place())).collect();
    let task = |meeting: String, ledger: String| {
        note(&ledger, "begun");
        attend(&meeting, "in flight");
        note(&ledger, "went on");
    };
    let mut results = Box::pin(pool.map(task, items).window(10).chunk_size(1));
    let guests = tokio::select! {
        guests = meeting.all(2) => guests,
        result = results.next() => panic!("{result:?} while all attend"),
    };
    drop(results);
    for guest in guests {
        guest.gone().await;
    }
    a_worker(&pool).await;
    pool.shutdown().await;
    assert_eq!(ledger.lines(), ["begun", "begun"]);
}

async fn dropping_the_stream_leaves_the_pool_alone(builder: Builder) {
    let pool = builder.open().unwrap();
    for _ in 0..20 {
        let mut results = pin!(pool.map(square, 0..));
        results.next().await.unwrap().unwrap();
    }
    eventually("nothing is left to do", || {
        let stats = pool.stats();
        stats.running() + stats.queued() == 0
    })
    .await;
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn a_pool_that_is_shut_down_fails_every_item(builder: Builder) {
    let pool = builder.open().unwrap();
    pool.shutdown().await;
    let outcomes: Vec<_> = pool.map(square, 0..3).collect().await;
    assert_matches!(
        &outcomes[..],
        [Err(TaskError::ShutDown), Err(TaskError::ShutDown), Err(TaskError::ShutDown)]
    );
}
