//! Spans and events of tasks arrive at the program's subscriber.

#![cfg(target_os = "linux")]
#![allow(unreachable_pub, unsafe_code)]

#[macro_use]
mod common;

#[path = "tracing/ends.rs"]
mod ends;
#[path = "tracing/floods.rs"]
mod floods;
#[path = "tracing/levels.rs"]
mod levels;
#[path = "tracing/recorder.rs"]
mod recorder;

use std::fmt;

use common::{Meeting, Open, attend, current_thread, died, eventually, panicked};
use futures::StreamExt;
use procession::{Builder, ProcessPool, TaskError, worker};
use recorder::{Recorder, Seen, Told};
use tracing::{Instrument, Level, error, info, info_span, warn};

both! {
    an_event_arrives_as_it_was_made,
    spans_arrive_and_close_in_order,
    what_becomes_of_a_span_later_arrives,
    async_tasks_keep_to_their_spans,
    threads_of_a_task_are_heard,
    a_thread_that_outlives_its_task_is_heard,
    tasks_without_a_span_have_none,
    each_task_is_in_its_own_span,
    items_of_a_map_are_in_the_span_of_the_map,
    the_items_of_a_stream_are_in_its_span,
    an_initializer_is_heard,
    an_initializer_that_fails_is_heard,
    what_was_said_before_a_panic_or_a_death_arrives,
    a_task_that_runs_for_long_is_heard_meanwhile,
    a_cancelled_task_leaves_no_span_open,
    spans_that_a_task_leaves_open_are_closed,
    retries_stay_in_the_span,
    tasks_of_tasks_are_in_the_span,
    a_subscriber_that_panics_takes_nothing_along,
}

/// The one event with this message.
#[track_caller]
fn the_event(recorder: &Recorder, message: &str) -> Seen {
    let events = recorder.events();
    let mut those = events.iter().filter(|event| event.message() == message);
    let (Some(event), None) = (those.next(), those.next()) else {
        panic!("{message:?} is not there once: {:?}", recorder.story());
    };
    event.clone()
}

fn text(text: &str) -> Told {
    Told::Debug(text.into())
}

#[derive(Debug)]
struct Outer(Inner);
#[derive(Debug)]
struct Inner;

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outer error")
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the inner error")
    }
}

impl std::error::Error for Inner {}
impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

async fn an_event_arrives_as_it_was_made(builder: Builder) {
    fn task() -> (u32, u32) {
        let error = Outer(Inner);
        let error: &(dyn std::error::Error + 'static) = &error;
        warn!(
            target: "somewhere::else",
            signed = -1i64, unsigned = u64::MAX, wide = i128::MIN, wider = u128::MAX, real = 0.5, flag = true,
            words = "a \"b\"", shown = ?Some(1), displayed = %1.5, error,
            "hello {}", "world"
        );
        let line = line!() - 6;
        error!(name: "a name", "another");
        (line, line!() - 1)
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    let (line, other_line) = info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    let event = the_event(&recorder, "hello world");
    assert_eq!(event.path, ["request"]);
    assert!(event.is_explicit);
    let metadata = event.metadata;
    assert_eq!((*metadata.level(), metadata.target()), (Level::WARN, "somewhere::else"));
    assert_eq!((metadata.file(), metadata.line()), (Some(file!()), Some(line)));
    assert_eq!(metadata.module_path(), Some(module_path!()));
    assert!(metadata.name().starts_with("event ") && metadata.is_event(), "{metadata:?}");
    let mut fields = event.fields;
    fields.sort_by_key(|(name, _)| *name);
    let expected = [
        ("displayed", text("1.5")),
        ("error", Told::Error(vec!["the outer error".into(), "the inner error".into()])),
        ("flag", Told::Bool(true)),
        ("message", text("hello world")),
        ("real", Told::F64(0.5)),
        ("shown", text("Some(1)")),
        ("signed", Told::I64(-1)),
        ("unsigned", Told::U64(u64::MAX)),
        ("wide", Told::I128(i128::MIN)),
        ("wider", Told::U128(u128::MAX)),
        ("words", Told::Str("a \"b\"".into())),
    ];
    assert_eq!(fields, expected);
    let other = the_event(&recorder, "another");
    assert_eq!((other.metadata.name(), other.metadata.line()), ("a name", Some(other_line)));
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn spans_arrive_and_close_in_order(builder: Builder) {
    fn task() {
        info!("one");
        info_span!("outer", n = 1).in_scope(|| {
            info!("two");
            info_span!("inner").in_scope(|| info!("three"));
            info!(parent: None, "rootless");
            info!("four");
        });
        info!("five");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    let story = [
        "open request",
        "one",
        "open outer",
        "two",
        "open inner",
        "three",
        "close inner",
        "rootless",
        "four",
        "close outer",
        "five",
        "close request",
    ];
    assert_eq!(recorder.story(), story);
    let path = |message: &str| the_event(&recorder, message).path;
    assert_eq!(path("two"), ["request", "outer"]);
    assert_eq!(path("three"), ["request", "outer", "inner"]);
    assert_eq!(path("rootless"), [""; 0]);
    assert_eq!(path("five"), ["request"]);
    let outer = recorder.span("outer").seen;
    assert_eq!((outer.path, outer.fields), (vec!["request".to_string()], vec![("n", Told::I64(1))]));
    assert!(outer.metadata.is_span());
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn what_becomes_of_a_span_later_arrives(builder: Builder) {
    fn task() {
        let first = info_span!("first", late = tracing::field::Empty, more = tracing::field::Empty);
        let second = info_span!(parent: &first, "second");
        second.follows_from(&first);
        first.record("late", 7u64);
        first.record("more", "words");
        let again = second.clone();
        drop((first, second));
        info!(parent: &again, "in the second");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    pool.submit(task, ()).await.unwrap();
    assert_eq!(
        recorder.span("first").seen.fields,
        [("late", Told::U64(7)), ("more", Told::Str("words".into()))]
    );
    assert_eq!(recorder.span("second").follows, ["first"]);
    assert_eq!(the_event(&recorder, "in the second").path, ["first", "second"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn async_tasks_keep_to_their_spans(builder: Builder) {
    async fn part(name: &'static str) {
        info!(name, "before");
        tokio::task::yield_now().await;
        info!(name, "after");
    }
    async fn task() {
        let left = part("left").instrument(info_span!("left"));
        let right = part("right").instrument(info_span!("right"));
        futures::future::join(left, right).await;
        tokio::spawn(part("spawned").instrument(info_span!("spawned"))).await.unwrap();
        info!("done");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    async { pool.submit(task, ()).await.unwrap() }.instrument(info_span!("request")).await;
    for name in ["left", "right", "spawned"] {
        let is_its = |event: &&Seen| event.fields.contains(&("name", Told::Str(name.into())));
        let events = recorder.events();
        let those: Vec<_> = events.iter().filter(is_its).collect();
        assert_eq!(those.len(), 2);
        assert!(those.iter().all(|event| event.path == ["request", name]), "{those:?}");
    }
    let order = ["before", "before", "after", "after", "before", "after", "done"];
    assert_eq!(recorder.messages(), order);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn threads_of_a_task_are_heard(builder: Builder) {
    fn task() {
        let span = info_span!("work");
        let threads = (0..4u64).map(|n| {
            let span = span.clone();
            std::thread::spawn(move || {
                info!(n, "outside");
                span.in_scope(|| info!(n, "inside"));
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    for (message, path) in [("outside", vec!["request"]), ("inside", vec!["request", "work"])] {
        let events = recorder.events();
        let those: Vec<_> = events.iter().filter(|event| event.message() == message).collect();
        let mut numbers: Vec<_> = those.iter().map(|event| event.number("n")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert!(those.iter().all(|event| event.path == path), "{those:?}");
    }
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn a_thread_that_outlives_its_task_is_heard(builder: Builder) {
    not_with_agents!("what is no task's is told to the agent's program");
    fn task(place: String) {
        std::thread::spawn(move || {
            attend(&place, "thread");
            info_span!("later").in_scope(|| info!("late"));
        });
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    info_span!("request").in_scope(|| pool.submit(task, meeting.place())).await.unwrap();
    drop(meeting.next().await);
    eventually("an event", || recorder.messages() == ["late"]).await;
    assert_eq!(the_event(&recorder, "late").path, ["later"]);
    eventually("the end of the span", || recorder.span("later").is_closed()).await;
    pool.shutdown().await;
    recorder.expect_all_closed();
}

async fn tasks_without_a_span_have_none(builder: Builder) {
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    pool.submit(|| info!("alone"), ()).await.unwrap();
    let event = the_event(&recorder, "alone");
    assert!(event.is_explicit && event.path.is_empty());
    pool.shutdown().await;
}

async fn each_task_is_in_its_own_span(builder: Builder) {
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    let tasks = (0..50u64).map(|n| {
        let task = |n: u64| info!(n, "here");
        info_span!("request", n).in_scope(|| pool.submit(task, n))
    });
    futures::future::try_join_all(tasks.collect::<Vec<_>>()).await.unwrap();
    let story = recorder.story();
    assert_eq!(story.iter().filter(|told| *told == "here").count(), 50);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn items_of_a_map_are_in_the_span_of_the_map(builder: Builder) {
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    let task = |n: u64| info_span!("item", n).in_scope(|| info!(n, "here"));
    let map = info_span!("all").in_scope(|| pool.map(task, 0..40u64));
    assert_eq!(map.filter(|done| std::future::ready(done.is_ok())).count().await, 40);
    let events = recorder.events();
    assert!(events.iter().all(|event| event.path == ["all", "item"]), "{events:?}");
    let mut numbers: Vec<_> = events.iter().map(|event| event.number("n")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn the_items_of_a_stream_are_in_its_span(builder: Builder) {
    fn numbers(count: u64) -> impl Iterator<Item = u64> {
        (0..count).inspect(|n| info!(n, "item"))
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    let stream = info_span!("request").in_scope(|| pool.stream(numbers, 20));
    let items: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(items, (0..20).collect::<Vec<_>>());
    let events = recorder.events();
    assert!(events.len() == 20 && events.iter().all(|event| event.path == ["request"]), "{events:?}");
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn an_initializer_is_heard(builder: Builder) {
    not_with_agents!("what is no task's is told to the agent's program");
    fn initializer(text: String) {
        info_span!("setting up").in_scope(|| info!("{text}"));
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).initializer(initializer, "ready".to_string()).open().unwrap();
    info_span!("request").in_scope(|| pool.submit(|| info!("task"), ())).await.unwrap();
    assert_eq!(the_event(&recorder, "ready").path, ["setting up"]);
    assert_eq!(the_event(&recorder, "task").path, ["request"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn an_initializer_that_fails_is_heard(builder: Builder) {
    not_with_agents!("what is no task's is told to the agent's program");
    fn initializer() {
        error!("it does not work");
        panic!("no");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).initializer(initializer, ()).open().unwrap();
    assert_matches!(pool.submit(|| (), ()).await, Err(TaskError::PoolBroken(_)));
    assert!(recorder.messages().contains(&"it does not work".to_string()), "{:?}", recorder.story());
    pool.shutdown().await;
}

async fn what_was_said_before_a_panic_or_a_death_arrives(builder: Builder) {
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    fn say(count: u64) {
        (0..count).for_each(|n| info!(n, "before"));
    }
    let panics = || {
        let _span = info_span!("panicking").entered();
        say(3);
        panic!("on purpose")
    };
    panicked(info_span!("request").in_scope(|| pool.submit(panics, ())).await);
    assert_eq!(recorder.events().len(), 3);
    let aborts = || {
        let _span = info_span!("aborting").entered();
        say(300);
        std::process::abort()
    };
    died(info_span!("request").in_scope(|| pool.submit(aborts, ())).await);
    let events = recorder.events();
    let numbers: Vec<_> = events[3..].iter().map(|event| event.number("n")).collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    assert_eq!(events[302].path, ["request", "aborting"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn a_task_that_runs_for_long_is_heard_meanwhile(builder: Builder) {
    fn task(place: String) {
        info_span!("part").in_scope(|| (0..50u64).for_each(|n| info!(n, "under way")));
        attend(&place, "task");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(task, meeting.place());
    let guest = meeting.next().await;
    // The task says nothing more, so this is not what wakes the pool.
    eventually("the last event", || recorder.events().len() == 50).await;
    eventually("the end of the span", || recorder.span("part").is_closed()).await;
    assert!(!task.is_finished());
    drop(guest);
    task.await.unwrap();
    pool.shutdown().await;
}

async fn a_cancelled_task_leaves_no_span_open(builder: Builder) {
    fn task(place: String) {
        let _span = info_span!("waiting").entered();
        info!("begun");
        attend(&place, "task");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    let task = info_span!("request").in_scope(|| pool.submit(task, meeting.place()));
    let queued = info_span!("queued").in_scope(|| pool.submit(|| (), ()));
    let guest = meeting.next().await;
    eventually("an event", || !recorder.messages().is_empty()).await;
    drop(queued);
    assert!(recorder.span("queued").is_closed());
    drop(task);
    // The worker is killed.
    eventually("the end of the spans", || recorder.span("request").is_closed()).await;
    guest.gone().await;
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn spans_that_a_task_leaves_open_are_closed(builder: Builder) {
    fn task() {
        std::mem::forget(info_span!("forgotten").entered());
        info!("in it");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    assert_eq!(the_event(&recorder, "in it").path, ["request", "forgotten"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn retries_stay_in_the_span(builder: Builder) {
    fn task() -> u32 {
        let attempt = worker::current().unwrap().attempt();
        info!("attempt {attempt}");
        if attempt < 3 {
            std::process::abort();
        }
        attempt
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let task = info_span!("request").in_scope(|| pool.task(task, ()).retries(5).submit());
    assert_eq!(task.await.unwrap(), 3);
    assert_eq!(recorder.messages(), ["attempt 1", "attempt 2", "attempt 3"]);
    assert!(recorder.events().iter().all(|event| event.path == ["request"]));
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn tasks_of_tasks_are_in_the_span(builder: Builder) {
    fn outer() {
        info!("outer");
        current_thread().block_on(async {
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            pool.submit(|| info!("inner"), ()).await.unwrap();
            let inner = || info_span!("deep").in_scope(|| info!("in a span"));
            info_span!("between").in_scope(|| pool.submit(inner, ())).await.unwrap();
            pool.shutdown().await;
        });
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    info_span!("request").in_scope(|| pool.submit(outer, ())).await.unwrap();
    assert_eq!(the_event(&recorder, "outer").path, ["request"]);
    assert_eq!(the_event(&recorder, "inner").path, ["request"]);
    let deep = the_event(&recorder, "in a span");
    assert_eq!(deep.path, ["request", "between", "deep"]);
    assert_eq!((deep.metadata.file(), *deep.metadata.level()), (Some(file!()), Level::INFO));
    recorder.expect_all_closed();
    pool.shutdown().await;
}

async fn a_subscriber_that_panics_takes_nothing_along(builder: Builder) {
    let (recorder, guard) = Recorder::set();
    let pool = builder.workers(1).open().unwrap();
    let tasks: Vec<_> =
        (0..20u64).map(|n| pool.submit(|n: u64| info_span!("s").in_scope(|| info!(n)), n)).collect();
    recorder.panic_from_now_on();
    drop(guard);
    futures::future::try_join_all(tasks).await.unwrap();
    assert_eq!(pool.submit(|| 1, ()).await.unwrap(), 1);
    pool.shutdown().await;
}
