//! What tasks log that agents run, and the traces that they are part of.

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use log::{LevelFilter, Log, Metadata, Record};
use procession::nats::Agent;
use procession::{ProcessPool, TaskError, TraceContext, worker};
use tracing::{info, info_span};

use crate::common::{Meeting, attend, eventually, gone};
use crate::recorder::Recorder;
use crate::stage::play;

/// A logger that keeps what this program's tasks are heard to say.
#[derive(Default)]
struct Book(Mutex<Vec<(String, u64)>>);

static BOOK: LazyLock<Book> = LazyLock::new(Book::default);

impl Book {
    fn set() -> &'static Book {
        let _ = log::set_logger(&*BOOK);
        log::set_max_level(LevelFilter::Info);
        BOOK.0.lock().unwrap().clear();
        &BOOK
    }

    fn close(&self) {
        log::set_max_level(LevelFilter::Off);
    }

    fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(message, _)| message.clone()).collect()
    }
}

impl Log for Book {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "task" || metadata.target() == "procession"
    }

    fn log(&self, record: &Record<'_>) {
        let dropped = record.key_values().get("dropped".into()).and_then(|count| count.to_u64());
        self.0.lock().unwrap().push((record.args().to_string(), dropped.unwrap_or(0)));
    }

    fn flush(&self) {}
}

fn say(from: u32, to: u32) {
    (from..to).for_each(|n| log::info!(target: "task", "{n}"));
}

#[test]
fn events_and_spans_are_in_the_span_of_the_caller() {
    play(async |stage| {
        let agent = stage.agent_process(1).await;
        let (recorder, _guard) = Recorder::set();
        let pool = stage.pool();
        let talks = |n: u64| {
            info!(n, "one");
            info_span!("inner", n).in_scope(|| info!("two"));
            std::mem::forget(info_span!("left open").entered());
            n
        };
        for n in 0..3 {
            assert_eq!(info_span!("request").in_scope(|| pool.submit(talks, n)).await.unwrap(), n);
            recorder.expect_all_closed(); // before the handle resolved
        }
        let of_tasks: Vec<_> =
            recorder.events().into_iter().filter(|event| ["one", "two"].contains(&event.message())).collect();
        assert_eq!(of_tasks.len(), 6);
        for (n, pair) in of_tasks.chunks(2).enumerate() {
            assert_eq!((pair[0].message(), &pair[0].path[..]), ("one", &["request".to_owned()][..]));
            assert_eq!(pair[0].number("n"), n as u64);
            assert_eq!((pair[1].message(), pair[1].path.join(" ")), ("two", "request inner".to_owned()));
        }
        // Items of a map and of a stream are, too.
        let map = info_span!("map").in_scope(|| pool.map(|n: u32| info!("item {n}"), 0..4));
        map.collect::<Vec<_>>().await;
        let said = |n: u32| (0..n).inspect(|n| info!("yields {n}"));
        let items = info_span!("stream").in_scope(|| pool.stream(said, 3));
        assert_eq!(items.try_collect::<Vec<_>>().await.unwrap(), [0, 1, 2]);
        let events = recorder.events();
        let of = |begin: &str, span: &str| {
            let those = events.iter().filter(|event| event.message().starts_with(begin));
            those.filter(|event| event.path == [span]).count()
        };
        assert_eq!((of("item", "map"), of("yields", "stream")), (4, 3));
        recorder.expect_all_closed();
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

#[test]
fn a_cancelled_task_and_a_lost_one_leave_no_span_open() {
    play(async |stage| {
        let stage = stage.impatient();
        let agent = stage.agent_process(1).await;
        let (recorder, _guard) = Recorder::set();
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let within = |place: String| info_span!("within").in_scope(|| attend(&place, "task"));
        let open = |recorder: &Recorder| recorder.spans().iter().filter(|span| !span.is_closed()).count();
        let task = info_span!("request").in_scope(|| pool.submit(within, meeting.place()));
        let guest = meeting.next().await;
        eventually("it is told while it runs", || open(&recorder) == 2).await;
        task.cancel();
        assert_matches!(task.await, Err(TaskError::Cancelled));
        recorder.expect_all_closed();
        gone(guest.pid).await;
        let task = info_span!("request").in_scope(|| pool.submit(within, meeting.place()));
        let _guest = meeting.next().await;
        eventually("it is told while it runs", || open(&recorder) == 2).await;
        agent.kill().await;
        assert_matches!(task.await, Err(TaskError::NodeLost));
        recorder.expect_all_closed();
        pool.shutdown().await;
        stage
    });
}

#[test]
fn records_come_in_order_and_before_the_result() {
    play(async |stage| {
        let (agent, book) = (stage.agent_process(2).await, Book::set());
        let pool = stage.pool();
        for round in 0..5 {
            pool.submit(say, (100 * round, 100 * round + 100)).await.unwrap();
            assert_eq!(book.messages().len() as u32, 100 * round + 100);
        }
        assert!(book.messages().into_iter().eq((0..500).map(|n| n.to_string())));
        // While it runs, as well; and of one that dies.
        let meeting = Meeting::new();
        let dies = |place: String| -> () {
            say(500, 501);
            attend(&place, "task");
            std::process::abort();
        };
        let task = pool.submit(dies, meeting.place());
        let guest = meeting.next().await;
        eventually("it is heard", || book.messages().len() == 501).await;
        drop(guest);
        crate::common::died(task.await);
        book.close();
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

#[test]
fn a_flood_is_counted_to_the_last_record() {
    play(async |stage| {
        let (agent, book) = (stage.agent_process(1).await, Book::set());
        let pool = stage.pool();
        let n = 100_000;
        pool.submit(say, (0, n)).await.unwrap();
        let records = book.0.lock().unwrap().clone();
        let (arrived, told): (Vec<_>, Vec<_>) = records.into_iter().partition(|(_, dropped)| *dropped == 0);
        let dropped: u64 = told.iter().map(|(_, dropped)| dropped).sum();
        assert_eq!(arrived.len() as u64 + dropped, u64::from(n));
        assert!(!arrived.is_empty() && dropped > 0);
        assert!(arrived.iter().map(|(message, _)| message.parse::<u32>().unwrap()).is_sorted());
        book.close();
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

#[test]
fn where_the_caller_does_not_listen_the_agent_hears_its_tasks() {
    play(async |stage| {
        let book = Book::set();
        let agent = stage.agent(1).await;
        let pool = stage.builder().forward_events(false).build().unwrap();
        pool.submit(say, (0, 10)).await.unwrap();
        assert!(book.messages().into_iter().eq((0..10).map(|n| n.to_string())));
        pool.shutdown().await;
        agent.shutdown().await;
        // Nor where it passes nothing on.
        let silent = ProcessPool::builder().workers(1).forward_events(false);
        let agent = Agent::start(stage.queue(), silent).await.unwrap();
        let pool = stage.pool();
        pool.submit(say, (10, 20)).await.unwrap();
        assert_eq!(book.messages().len(), 10);
        book.close();
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn what_is_lost_with_a_connection_is_counted() {
    play(async |mut stage| {
        let (agent, book, meeting) = (stage.agent(1).await, Book::set(), Meeting::new());
        let pool = stage.pool();
        let talks = |place: String| {
            say(0, 10);
            attend(&place, "before");
            say(10, 20);
            std::thread::sleep(Duration::from_millis(100)); // for it to be lost
            attend(&place, "after");
            say(20, 30);
        };
        let task = pool.submit(talks, meeting.place());
        let guest = meeting.next().await;
        eventually("it is heard", || book.messages().len() == 10).await;
        stage.server.kill().await;
        drop(guest);
        let guest = meeting.next().await;
        stage.server.run().await;
        drop(guest);
        task.await.unwrap();
        let records = book.0.lock().unwrap().clone();
        let dropped: u64 = records.iter().map(|(_, dropped)| dropped).sum();
        let arrived = records.iter().filter(|(_, dropped)| *dropped == 0).count() as u64;
        assert_eq!(arrived + dropped, 30, "{records:?}");
        book.close();
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

fn trace() -> Option<TraceContext> {
    worker::current()?.trace_context().cloned()
}

#[test]
fn a_task_knows_the_trace_that_it_is_part_of() {
    play(async |stage| {
        let given =
            || TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1").ok();
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        assert_eq!(pool.submit(trace, ()).await.unwrap(), None);
        assert_eq!(pool.task(trace, ()).trace_context(given().unwrap()).await.unwrap(), given());
        pool.shutdown().await;
        let pool = stage.builder().trace_context(given).build().unwrap();
        assert_eq!(pool.submit(trace, ()).await.unwrap(), given());
        let items: Vec<_> = pool.map(|_: u8| trace(), 0..3).map(Result::unwrap).collect().await;
        assert!(items.iter().all(|seen| *seen == given()));
        let items: Vec<_> = pool.stream(|| std::iter::once(trace()), ()).try_collect().await.unwrap();
        assert_eq!(items, [given()]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
