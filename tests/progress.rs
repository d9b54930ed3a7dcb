//! What tasks say of how far they have got: seldom, never late, and gone with the task.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::pin::Pin;
use std::time::{Duration, Instant};

use common::{Ledger, Meeting, Open, a_worker, attend, attend_async, eventually, note};
use futures::{StreamExt, TryStreamExt};
use procession::worker::{Emit, emit};
use procession::{Builder, Progress, ProgressWatch, StartMethod, TaskError, worker};

both! {
    it_is_seen_while_the_task_runs,
    the_last_report_comes_before_the_result,
    a_hot_loop_sends_few_and_the_latest_wins,
    what_was_held_back_comes_while_the_task_is_silent,
    who_asks_late_sees_the_latest,
    a_silent_task_has_none,
    it_ends_with_the_task_however_that_ends,
    an_async_task_reports_too,
    watches_see_each_for_itself,
    threads_may_report_and_may_outlive_the_task,
    a_task_that_is_run_again_begins_anew,
    a_stream_reports_before_and_while_it_is_taken,
    a_stream_that_never_begins_has_an_end,
    reports_beside_a_flood_of_results,
    sync it_may_be_awaited_on_any_executor,
}

fn report(progress: Progress) {
    worker::current().unwrap().report(progress);
}

/// Reports once, and waits to be let go.
fn report_and_attend(done: u64, place: String) {
    report(Progress::new(done).with_total(10).with_message("attending"));
    attend(&place, "reported");
}

async fn it_is_seen_while_the_task_runs(builder: Builder) {
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(report_and_attend, (3, meeting.place()));
    let mut watch = task.progress();
    let progress = watch.changed().await.unwrap();
    assert_eq!((progress.done(), progress.total(), progress.message()), (3, Some(10), "attending"));
    assert_eq!(watch.latest(), Some(progress));
    assert!(!task.is_finished());
    drop(meeting.next().await);
    task.await.unwrap();
    assert_eq!(watch.changed().await, None);
    assert_eq!(watch.latest().unwrap().done(), 3);
    pool.shutdown().await;
}

fn count_to(n: u64) -> u64 {
    let task = worker::current().unwrap();
    (1..=n).for_each(|done| task.report(Progress::new(done)));
    n
}

async fn the_last_report_comes_before_the_result(builder: Builder) {
    let pool = builder.open().unwrap();
    for n in [1, 2, 1000] {
        for _ in 0..20 {
            let task = pool.submit(count_to, n);
            let mut watch = task.progress();
            assert_eq!(task.await.unwrap(), n);
            assert_eq!(watch.latest(), Some(Progress::new(n)));
            assert_eq!(watch.changed().await, Some(Progress::new(n)));
            assert_eq!(watch.changed().await, None);
        }
    }
    pool.shutdown().await;
}

async fn a_hot_loop_sends_few_and_the_latest_wins(builder: Builder) {
    fn busy(time: Duration) -> u64 {
        let (task, start) = (worker::current().unwrap(), Instant::now());
        let mut done = 0;
        while start.elapsed() < time {
            done += 1;
            task.report(Progress::new(done));
        }
        done
    }
    let pool = builder.open().unwrap();
    a_worker(&pool).await;
    let start = Instant::now();
    let task = pool.submit(busy, Duration::from_millis(200));
    let seen: Vec<_> = task.progress().map(|progress| progress.done()).collect().await;
    let most = start.elapsed().as_millis() / 20 + 2;
    assert!(seen.len() as u128 <= most, "{} reports, not {most}", seen.len());
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    assert_eq!(task.await.unwrap(), *seen.last().unwrap());
    pool.shutdown().await;
}

async fn what_was_held_back_comes_while_the_task_is_silent(builder: Builder) {
    fn twice(place: String) {
        report(Progress::new(1));
        report(Progress::new(2));
        attend(&place, "silent");
    }
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(twice, meeting.place());
    let mut watch = task.progress();
    while watch.changed().await.unwrap().done() < 2 {}
    drop(meeting.next().await);
    task.await.unwrap();
    pool.shutdown().await;
}

async fn who_asks_late_sees_the_latest(builder: Builder) {
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let mut task = pool.submit(report_and_attend, (4, meeting.place()));
    let guest = meeting.next().await;
    assert_eq!(task.progress().changed().await.unwrap().done(), 4);
    drop(guest);
    Pin::new(&mut task).await.unwrap();
    let mut watch = task.progress();
    assert_eq!(watch.latest().unwrap().done(), 4);
    assert_eq!(watch.changed().await.unwrap().done(), 4);
    assert_eq!(watch.changed().await, None);
    pool.shutdown().await;
}

async fn a_silent_task_has_none(builder: Builder) {
    let pool = builder.open().unwrap();
    let task = pool.submit(|| (), ());
    let mut watch = task.progress();
    task.await.unwrap();
    assert_eq!((watch.latest(), watch.changed().await), (None, None));
    let refused = pool.task(|| (), ()).timeout(Duration::ZERO).submit();
    assert_eq!(refused.progress().changed().await, None);
    pool.shutdown().await;
}

async fn it_ends_with_the_task_however_that_ends(builder: Builder) {
    fn end(how: String) {
        report(Progress::new(1));
        match how.as_str() {
            "panic" => panic!("as was asked for"),
            "death" => std::process::abort(),
            _ => std::thread::sleep(Duration::from_secs(3600)),
        }
    }
    async fn seen(mut watch: ProgressWatch) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(progress) = watch.changed().await {
            seen.push(progress.done());
        }
        seen
    }
    let pool = builder.cancel_grace(Duration::from_millis(10)).open().unwrap();
    for how in ["panic", "death", "timeout"] {
        let task = pool.task(end, how.to_string()).timeout(Duration::from_secs(1)).submit();
        let watch = task.progress();
        task.await.unwrap_err();
        assert_eq!(seen(watch).await, [1], "after a {how}");
    }
    for by_drop in [false, true] {
        let task = pool.submit(end, "sleep".to_string());
        let mut watch = task.progress();
        assert_eq!(watch.changed().await.unwrap().done(), 1);
        if by_drop {
            drop(task);
        } else {
            task.cancel();
        }
        assert_eq!(watch.changed().await, None);
    }
    let task = pool.submit(end, "sleep".to_string());
    let mut watch = task.progress();
    assert_eq!(watch.changed().await.unwrap().done(), 1);
    pool.shutdown_now().await;
    assert_eq!(watch.changed().await, None);
    drop(task);
}

async fn an_async_task_reports_too(builder: Builder) {
    async fn steps(place: String) {
        for done in 1..=3 {
            report(Progress::new(done));
            attend_async(&place, "step").await;
        }
    }
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(steps, meeting.place());
    let mut watch = task.progress();
    for done in 1..=3 {
        assert_eq!(watch.next().await.unwrap().done(), done);
        drop(meeting.next().await);
    }
    assert_eq!(watch.next().await, None);
    task.await.unwrap();
    pool.shutdown().await;
}

async fn watches_see_each_for_itself(builder: Builder) {
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(report_and_attend, (5, meeting.place()));
    let mut first = task.progress();
    let mut early = first.clone();
    assert_eq!(first.changed().await.unwrap().done(), 5);
    let mut late = first.clone();
    assert_eq!(early.next().await.unwrap().done(), 5);
    assert_eq!(task.progress().next().await.unwrap().done(), 5);
    // A stream that has been polled for the next one, and then is asked.
    assert!(futures::poll!(late.next()).is_pending());
    drop(meeting.next().await);
    task.await.unwrap();
    assert_eq!(late.changed().await, None);
    assert_eq!(early.next().await, None);
    assert!(format!("{late:?}").contains("attending"));
    pool.shutdown().await;
}

async fn threads_may_report_and_may_outlive_the_task(builder: Builder) {
    fn from_threads() {
        let task = worker::current().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let task = task.clone();
                scope.spawn(move || (0..1000).for_each(|n| task.report(Progress::new(thread * 1000 + n))));
            }
        });
        task.report(Progress::new(4000));
    }
    fn outlived(ledger: String) {
        let task = worker::current().unwrap();
        std::thread::spawn(move || {
            let start = Instant::now();
            // Through the ends of this task and of others.
            while start.elapsed() < Duration::from_millis(300) {
                task.report(Progress::new(1));
            }
            note(&ledger, "done");
        });
    }
    let pool = builder.workers(1).open().unwrap();
    let task = pool.submit(from_threads, ());
    let watch = task.progress();
    task.await.unwrap();
    assert_eq!(watch.latest().unwrap().done(), 4000);
    let ledger = Ledger::new();
    pool.submit(outlived, ledger.place()).await.unwrap();
    while ledger.lines().is_empty() {
        let task = pool.submit(|| (), ());
        let watch = task.progress();
        task.await.unwrap();
        assert_eq!(watch.latest(), None);
    }
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn a_task_that_is_run_again_begins_anew(builder: Builder) {
    fn fail_once(place: String) -> u32 {
        let attempt = worker::current().unwrap().attempt();
        report(Progress::new(u64::from(10 - attempt)));
        attend(&place, "reported");
        if attempt == 1 {
            std::process::abort();
        }
        attempt
    }
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.task(fail_once, meeting.place()).retries(1).submit();
    let mut watch = task.progress();
    for done in [9, 8] {
        assert_eq!(watch.changed().await.unwrap().done(), done);
        drop(meeting.next().await);
    }
    assert_eq!(watch.changed().await, None);
    assert_eq!(task.await.unwrap(), 2);
    pool.shutdown().await;
}

async fn a_stream_reports_before_and_while_it_is_taken(builder: Builder) {
    fn told(n: u64) -> Emit<u64> {
        emit(move |out| {
            for at in 0..n {
                report(Progress::new(at).with_total(n));
                out.send(at)?;
            }
            report(Progress::new(n).with_total(n));
            Ok(())
        })
    }
    let pool = builder.open().unwrap();
    let mut items = pool.stream(told, 10).window(2);
    let (mut early, mut as_stream) = (items.progress(), items.progress());
    assert_eq!(early.latest(), None);
    let mut taken = vec![items.next().await.unwrap().unwrap()];
    // While it is held, with nothing done by anybody.
    while early.changed().await.unwrap().done() < 2 {}
    while as_stream.next().await.unwrap().done() < 2 {}
    let late = items.progress();
    taken.extend(items.by_ref().try_collect::<Vec<_>>().await.unwrap());
    assert_eq!(taken, (0..10).collect::<Vec<_>>());
    assert_eq!(late.latest(), Some(Progress::new(10).with_total(10)));
    assert_eq!(items.progress().latest(), late.latest());
    assert_eq!(early.changed().await, late.latest());
    assert_eq!(early.changed().await, None);
    pool.shutdown().await;
}

async fn a_stream_that_never_begins_has_an_end(builder: Builder) {
    let pool = builder.open().unwrap();
    let dropped = pool.stream(|| 0..3_u8, ());
    let mut watch = dropped.progress();
    drop(dropped);
    assert_eq!(watch.changed().await, None);
    let mut cancelled = pool.stream(|| 0..3_u8, ());
    let mut watch = cancelled.progress();
    cancelled.canceller().cancel();
    assert_matches!(cancelled.next().await, Some(Err(TaskError::Cancelled)));
    assert_eq!(watch.changed().await, None);
    assert_eq!(cancelled.progress().changed().await, None);
    pool.shutdown().await;
}

async fn reports_beside_a_flood_of_results(builder: Builder) {
    fn chatty(n: u64) -> (u64, Vec<u8>) {
        report(Progress::new(n).with_message("x".repeat(2000)));
        (n, vec![7; if n.is_multiple_of(7) { 50_000 } else { 100 }])
    }
    let pool = builder.open().unwrap();
    let tasks: Vec<_> = (0..500).map(|n| pool.submit(chatty, n)).collect();
    let watches: Vec<_> = tasks.iter().map(|task| task.progress()).collect();
    for (n, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap().0, n);
    }
    for (n, watch) in (0..).zip(watches) {
        let latest = watch.latest().unwrap();
        assert_eq!((latest.done(), latest.message().len()), (n, 1024));
    }
    // The items of a map are many tasks to themselves, whose reports nobody sees.
    assert_eq!(pool.map(chatty, 0..500).try_collect::<Vec<_>>().await.unwrap().len(), 500);
    eventually("all is quiet", || pool.stats().running() == 0).await;
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

fn it_may_be_awaited_on_any_executor(method: StartMethod) {
    let runtime = common::multi_thread();
    let pool =
        runtime.block_on(async { procession::ProcessPool::builder().start_method(method).build().unwrap() });
    let task = pool.submit(count_to, 100);
    let mut watch = task.progress();
    assert_eq!(futures::executor::block_on(task).unwrap(), 100);
    assert_eq!(futures::executor::block_on(watch.next()), Some(Progress::new(100)));
    assert_eq!(futures::executor::block_on(watch.next()), None);
    let hung = pool.submit(|| std::thread::sleep(Duration::from_secs(3600)), ());
    let mut watch = hung.progress();
    drop(runtime);
    assert_eq!(futures::executor::block_on(watch.changed()), None);
}
