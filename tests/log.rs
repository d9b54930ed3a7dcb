//! Log records of tasks arrive at the program's logger.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::sync::{LazyLock, Mutex, MutexGuard};

use common::{Meeting, Open, attend, eventually, helper, helping, panicked};
use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record, debug, error, info, trace, warn};
use procession::{Builder, ProcessPool, StartMethod};

both! {
    a_record_arrives_as_it_was_made,
    records_arrive_in_order_and_before_the_result,
    threads_and_async_tasks_are_heard,
    what_was_said_before_a_panic_arrives,
    a_task_that_runs_for_long_is_heard_meanwhile,
    a_flood_is_counted_to_the_last_record,
    the_level_follows_the_program,
    the_logger_decides_about_each_record,
    a_worker_may_have_its_own_logger,
    it_can_be_switched_off,
    nothing_is_said_where_nobody_listens,
    a_logger_that_panics_takes_nothing_along,
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    level: Level,
    target: String,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    message: String,
    pairs: Vec<(String, String)>,
}

/// A logger that keeps what it is told.
#[derive(Default)]
struct Recorder(Mutex<Vec<Seen>>);

static RECORDER: LazyLock<Recorder> = LazyLock::new(Recorder::default);

impl Recorder {
    /// As the logger of this program, with nothing in it.
    fn set(level: LevelFilter) -> &'static Recorder {
        let _ = log::set_logger(&*RECORDER);
        log::set_max_level(level);
        RECORDER.records().clear();
        &RECORDER
    }

    fn records(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn messages(&self) -> Vec<String> {
        self.records().iter().map(|record| record.message.clone()).collect()
    }
}

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() != "unwanted"
    }

    fn log(&self, record: &Record<'_>) {
        assert_ne!(record.target(), "panics");
        let mut pairs = Pairs::default();
        record.key_values().visit(&mut pairs).unwrap();
        self.records().push(Seen {
            level: record.level(),
            target: record.target().into(),
            module: record.module_path().map(Into::into),
            file: record.file().map(Into::into),
            line: record.line(),
            message: record.args().to_string(),
            pairs: pairs.0,
        });
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl<'kvs> VisitSource<'kvs> for Pairs {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let kind = match () {
            _ if value.to_i64().is_some() => "integer",
            _ if value.to_f64().is_some() => "real",
            _ if value.to_bool().is_some() => "flag",
            _ => "text",
        };
        self.0.push((key.to_string(), format!("{kind} {value}")));
        Ok(())
    }
}

async fn a_record_arrives_as_it_was_made(builder: Builder) {
    fn task() -> u32 {
        warn!(target: "some::where", n = -3, real = 1.5, flag = true, word = "w"; "hello {}", "world");
        line!() - 1
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    let line = pool.submit(task, ()).await.unwrap();
    let pairs = [("n", "integer -3"), ("real", "real 1.5"), ("flag", "flag true"), ("word", "text w")];
    let expected = Seen {
        level: Level::Warn,
        target: "some::where".into(),
        module: Some(module_path!().into()),
        file: Some(file!().into()),
        line: Some(line),
        message: "hello world".into(),
        pairs: pairs.map(|(key, value)| (key.into(), value.into())).to_vec(),
    };
    assert_eq!(*recorder.records(), [expected]);
    pool.shutdown().await;
}

async fn records_arrive_in_order_and_before_the_result(builder: Builder) {
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.workers(1).open().unwrap();
    for round in 0..5u32 {
        pool.submit(|round: u32| (0..100).for_each(|n| info!("{}", 100 * round + n)), round).await.unwrap();
        assert_eq!(recorder.records().len(), 100 * (round as usize + 1));
    }
    assert_eq!(recorder.messages(), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn threads_and_async_tasks_are_heard(builder: Builder) {
    async fn task() {
        info!("async");
        std::thread::spawn(|| info!("thread")).join().unwrap();
        tokio::spawn(async { info!("spawned") }).await.unwrap();
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    pool.submit(task, ()).await.unwrap();
    assert_eq!(recorder.messages(), ["async", "thread", "spawned"]);
    pool.shutdown().await;
}

async fn what_was_said_before_a_panic_arrives(builder: Builder) {
    fn task() {
        error!("it is over");
        panic!("on purpose");
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    panicked(pool.submit(task, ()).await);
    assert_eq!(recorder.messages(), ["it is over"]);
    pool.shutdown().await;
}

async fn a_task_that_runs_for_long_is_heard_meanwhile(builder: Builder) {
    fn task(place: String) {
        (0..50).for_each(|n| info!("{n}"));
        attend(&place, "task");
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(task, meeting.place());
    let guest = meeting.next().await;
    eventually("the last record", || recorder.records().len() == 50).await;
    drop(guest);
    task.await.unwrap();
    pool.shutdown().await;
}

async fn a_flood_is_counted_to_the_last_record(builder: Builder) {
    const FLOOD: usize = 100_000;
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.workers(1).open().unwrap();
    pool.submit(|count: usize| (0..count).for_each(|n| info!("flood {n}")), FLOOD).await.unwrap();
    let records = recorder.records().clone();
    let arrived = records.iter().filter(|record| record.message.starts_with("flood")).count();
    let told = records.iter().filter(|record| record.target == "procession");
    let dropped = told.map(|record| {
        assert_eq!((record.level, record.pairs[0].0.as_str()), (Level::Warn, "dropped"));
        record.pairs[0].1.strip_prefix("integer ").unwrap().parse::<usize>().unwrap()
    });
    let dropped = dropped.sum::<usize>();
    assert_eq!(arrived + dropped, FLOOD);
    assert!(arrived > 0 && dropped > 0, "{arrived} arrived, {dropped} were dropped");
    pool.shutdown().await;
}

async fn the_level_follows_the_program(builder: Builder) {
    fn task(name: String) -> u8 {
        warn!("{name} warning");
        trace!("{name} trace");
        log::max_level() as u8
    }
    let recorder = Recorder::set(LevelFilter::Warn);
    let pool = builder.workers(1).open().unwrap();
    for (name, level) in [("first", 2), ("second", 5), ("third", 0), ("fourth", 2)] {
        log::set_max_level(LevelFilter::iter().nth(level).unwrap());
        assert_eq!(usize::from(pool.submit(task, name.to_string()).await.unwrap()), level);
    }
    assert_eq!(recorder.messages(), ["first warning", "second warning", "second trace", "fourth warning"]);
    pool.shutdown().await;
}

async fn the_logger_decides_about_each_record(builder: Builder) {
    fn task() {
        info!(target: "unwanted", "not this");
        info!("but this");
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    pool.submit(task, ()).await.unwrap();
    assert_eq!(recorder.messages(), ["but this"]);
    pool.shutdown().await;
}

async fn a_worker_may_have_its_own_logger(builder: Builder) {
    fn initializer() {
        log::set_logger(&*RECORDER).unwrap();
        log::set_max_level(LevelFilter::Debug);
    }
    fn task() -> Vec<String> {
        debug!("in the worker");
        trace!("not this");
        RECORDER.messages()
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.workers(1).initializer(initializer, ()).open().unwrap();
    assert_eq!(pool.submit(task, ()).await.unwrap(), ["in the worker"]);
    log::set_max_level(LevelFilter::Info);
    assert_eq!(pool.submit(task, ()).await.unwrap(), ["in the worker"; 2]);
    assert!(recorder.messages().is_empty());
    pool.shutdown().await;
}

async fn it_can_be_switched_off(builder: Builder) {
    fn task() -> bool {
        info!("unheard");
        log::set_logger(&*RECORDER).is_ok()
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.forward_events(false).open().unwrap();
    assert!(pool.submit(task, ()).await.unwrap());
    assert!(recorder.messages().is_empty());
    pool.shutdown().await;
}

/// In a program of its own, where no other test has ever listened.
async fn nothing_is_said_where_nobody_listens(method: StartMethod) {
    let output = helper("listens_late", &format!("{method:?}")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("is heard now"), "{output:?}");
}

#[test]
#[ignore = "a program for the test above"]
fn listens_late() {
    let Some(method) = helping() else { return };
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    let builder = ProcessPool::builder().start_method(method).workers(1);
    common::multi_thread().block_on(async {
        let pool = builder.open().unwrap();
        assert!(pool.submit(|| log::max_level() == LevelFilter::Off, ()).await.unwrap());
        // Once somebody does, the same worker says something.
        let recorder = Recorder::set(LevelFilter::Info);
        pool.submit(|| info!("now"), ()).await.unwrap();
        assert_eq!(recorder.messages(), ["now"]);
        pool.shutdown().await;
        println!("it is heard now");
    });
}

async fn a_logger_that_panics_takes_nothing_along(builder: Builder) {
    fn task() {
        info!(target: "panics", "does not arrive");
        info!("arrives");
    }
    let recorder = Recorder::set(LevelFilter::Trace);
    let pool = builder.open().unwrap();
    pool.submit(task, ()).await.unwrap();
    assert_eq!(recorder.messages(), ["arrives"]);
    pool.shutdown().await;
}
