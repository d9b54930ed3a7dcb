//! More than is wanted.

use std::fmt;
use std::time::Instant;

use procession::Builder;
use tracing::{Level, info, info_span};

use crate::common::{Open, eventually};
use crate::recorder::{Recorder, Told};
use crate::the_event;

both! {
    a_flood_is_counted_to_the_last_event,
    a_flood_from_many_threads_is_counted,
    a_flood_slows_the_task_no_more_than_writing_would,
    too_many_spans_are_counted_and_their_events_arrive,
    long_texts_are_cut,
}

/// What has arrived of a flood, and how much is said to have been dropped.
fn tally(recorder: &Recorder) -> (u64, u64) {
    let events = recorder.events();
    let arrived = events.iter().filter(|event| event.message() == "flood").count() as u64;
    let told = events.iter().filter(|event| event.metadata.target() == "procession");
    let dropped = told.map(|event| {
        assert_eq!(*event.metadata.level(), Level::WARN);
        event.number("dropped")
    });
    (arrived, dropped.sum())
}

const FLOOD: u64 = 100_000;

async fn a_flood_is_counted_to_the_last_event(builder: Builder) {
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let flood = |count: u64| (0..count).for_each(|n| info!(n, "flood"));
    info_span!("request").in_scope(|| pool.submit(flood, FLOOD)).await.unwrap();
    let (arrived, dropped) = tally(&recorder);
    assert_eq!(arrived + dropped, FLOOD);
    assert!(arrived > 0 && dropped > 0, "{arrived} arrived, {dropped} were dropped");
    let events = recorder.events();
    assert!(events.iter().all(|event| event.path == ["request"]));
    let floods = events.iter().filter(|event| event.message() == "flood");
    assert!(floods.map(|event| event.number("n")).is_sorted());
    // It is over then, and what comes later arrives again.
    pool.submit(|| info!("later"), ()).await.unwrap();
    eventually("an event after the flood", || {
        pool.submit(|| info!("later"), ()).detach();
        recorder.messages().contains(&"later".to_string())
    })
    .await;
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn a_flood_from_many_threads_is_counted(builder: Builder) {
    fn flood(count: u64) {
        let threads =
            (0..4).map(|_| std::thread::spawn(move || (0..count / 4).for_each(|n| info!(n, "flood"))));
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    pool.submit(flood, FLOOD).await.unwrap();
    let (arrived, dropped) = tally(&recorder);
    assert_eq!(arrived + dropped, FLOOD);
    pool.shutdown().await;
}

async fn a_flood_slows_the_task_no_more_than_writing_would(builder: Builder) {
    use std::io::Write;
    /// Says the same to the pool, and to a file that takes anything.
    fn both_ways(count: u64) -> (u64, u64) {
        let start = Instant::now();
        (0..count).for_each(|n| info!(n, "flood"));
        let said = start.elapsed();
        let mut nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let start = Instant::now();
        (0..count).for_each(|n| writeln!(nowhere, "INFO tracing: flood n={n}").unwrap());
        (said.as_nanos() as u64, start.elapsed().as_nanos() as u64)
    }
    let (_recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let (said, written) = pool.submit(both_ways, FLOOD).await.unwrap();
    assert!(said < 20 * written, "{said} ns rather than {written}");
    pool.shutdown().await;
}

async fn too_many_spans_are_counted_and_their_events_arrive(builder: Builder) {
    fn task() {
        let spans: Vec<_> = (0..600u64).map(|n| info_span!("one of many", n)).collect();
        for span in &spans {
            // Room for the next ones.
            std::thread::yield_now();
            span.in_scope(|| ());
        }
        spans.last().unwrap().in_scope(|| info!("in the last"));
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    let spans =
        recorder.spans().iter().filter(|span| span.seen.metadata.name() == "one of many").count() as u64;
    let events = recorder.events();
    let told = events.iter().filter(|event| event.metadata.target() == "procession");
    assert_eq!(spans + told.map(|event| event.number("dropped_spans")).sum::<u64>(), 600);
    assert!(spans <= 512, "{spans} spans");
    // The span is not known, so the event is in what is around that.
    assert_eq!(the_event(&recorder, "in the last").path, ["request"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn long_texts_are_cut(builder: Builder) {
    struct Endless;
    impl fmt::Debug for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                f.write_str("for ever ")?;
            }
        }
    }
    fn task() {
        info!(long = "ä".repeat(1 << 20), "first");
        info!(endless = ?Endless, "second");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    pool.submit(task, ()).await.unwrap();
    let events = recorder.events();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| {
        event.fields.iter().any(|(name, told)| match (*name, told) {
            ("long", Told::Str(text)) => text.starts_with("ä") && (1 << 10..1 << 14).contains(&text.len()),
            ("endless", Told::Debug(text)) => text.starts_with("for ever") && text.len() < 1 << 14,
            _ => false,
        })
    }));
    pool.shutdown().await;
}
