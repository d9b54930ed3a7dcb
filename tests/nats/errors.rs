//! Every error, as a pool of this machine gives it.

use std::time::Duration;

use procession::nats::{Agent, Queue};
use procession::{CodecStage, ExitCause, PoolError, ProcessPool, TaskError};
use serde::{Deserialize, Serialize};

use crate::common::{self, Ledger, Meeting, attend, died, note, panicked};
use crate::stage::play;

#[test]
fn a_panic() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let panic = panicked(pool.submit(|| panic!("no way"), ()).await);
        assert_eq!(panic.message(), "no way");
        assert!(panic.location().file().ends_with("errors.rs"));
        // The worker lives on.
        let pid = pool.submit(std::process::id, ()).await.unwrap();
        panicked(pool.submit(|| panic!("again"), ()).await);
        assert_eq!(pool.submit(std::process::id, ()).await.unwrap(), pid);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn deaths() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let exit = died(pool.submit(|| std::process::exit(3), ()).await);
        assert_eq!((exit.cause(), exit.code()), (ExitCause::Exited, Some(3)));
        assert!(exit.pid() > 0);
        let last_words = || {
            eprintln!("the last words");
            std::process::abort()
        };
        let exit = died(pool.task(last_words, ()).name("loud").submit().await);
        assert_eq!((exit.cause(), exit.signal()), (ExitCause::Signalled, Some(libc::SIGABRT)));
        assert!(exit.stderr_tail().contains("the last words"));
        assert!(exit.task().unwrap().contains("loud") && exit.task().unwrap().contains("errors.rs"));
        assert!(exit.max_rss() > 0);
        fn deep(n: u64) -> u64 {
            if n == 0 { 0 } else { std::hint::black_box(deep(n - 1) + n) }
        }
        let exit = died(pool.submit(deep, u64::MAX).await);
        assert_eq!(exit.cause(), ExitCause::StackOverflow);
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_timeout_and_where_it_was() {
    play(async |stage| {
        let builder = ProcessPool::builder().workers(1).timeout_reports(true);
        let agent = Agent::start(stage.queue(), builder).await.unwrap();
        let pool = stage.pool();
        let sleep = || std::thread::sleep(Duration::from_secs(600));
        let mut handle = pool.task(sleep, ()).timeout(Duration::from_millis(100)).submit();
        assert_matches!((&mut handle).await, Err(TaskError::TimedOut { limit }) if limit == Duration::from_millis(100));
        assert!(handle.timeout_report().unwrap().state().is_some());
        assert_matches!(pool.task(sleep, ()).timeout(Duration::ZERO).await, Err(TaskError::TimedOut { .. }));
        assert_eq!(pool.stats().timed_out(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn what_is_too_large_here_and_there() {
    play(async |stage| {
        let agent = stage.agent(1).await;
        let pool = stage.builder().max_message_size(1000).build().unwrap();
        let fill = |bytes: usize| vec![0_u8; bytes];
        let error = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![0; 1001]).await.unwrap_err();
        assert_matches!(error, TaskError::TooLarge { size: 1001, limit: 1000 });
        assert_eq!(pool.submit(fill, 1000).await.unwrap().len(), 1000);
        assert_matches!(pool.submit(fill, 1001).await, Err(TaskError::TooLarge { size: 1001, limit: 1000 }));
        pool.shutdown().await;
        agent.shutdown().await;
        let builder = ProcessPool::builder().workers(1).max_message_size(500);
        let agent = Agent::start(stage.queue(), builder).await.unwrap();
        let pool = stage.pool();
        assert_matches!(pool.submit(fill, 501).await, Err(TaskError::TooLarge { size: 501, limit: 500 }));
        let error = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![0; 501]).await.unwrap_err();
        assert_matches!(error, TaskError::TooLarge { size: 501, limit: 500 });
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// Says something else than it reads.
#[derive(Serialize, Deserialize)]
struct Odd(#[serde(deserialize_with = "odd")] u8);

fn odd<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let number = u8::deserialize(deserializer)?;
    if number % 2 == 1 { Ok(number) } else { Err(serde::de::Error::custom(format!("{number} is even"))) }
}

#[test]
fn what_does_not_decode() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let here = procession::ProcessPool::builder().workers(1).build().unwrap();
        for (outcome, expected, stage) in [
            (
                pool.submit(|odd: Odd| odd.0, Odd(2)).await.map(drop),
                here.submit(|odd: Odd| odd.0, Odd(2)).await.map(drop),
                CodecStage::DecodeArguments,
            ),
            (
                pool.submit(Odd, 2).await.map(drop),
                here.submit(Odd, 2).await.map(drop),
                CodecStage::DecodeResult,
            ),
        ] {
            assert_matches!(&outcome, Err(TaskError::Codec(error)) if error.stage() == stage);
            assert_eq!(format!("{outcome:?}"), format!("{expected:?}"));
        }
        here.shutdown().await;
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_bounded_queue() {
    play(async |stage| {
        let pool = stage.builder().queue_capacity(2).build().unwrap();
        let waiting = [pool.submit(|n: u8| n, 1), pool.submit(|n: u8| n, 2)];
        stage.stored(2).await;
        assert_matches!(pool.submit(|n: u8| n, 3).await, Err(TaskError::QueueFull { capacity: 2 }));
        assert_eq!(pool.stats().submitted(), 2);
        // Another pool knows the bound, and one that waits for room gets it.
        let other = stage.pool();
        assert_matches!(other.submit(|n: u8| n, 4).await, Err(TaskError::QueueFull { capacity: 2 }));
        let mut room = Box::pin(pool.reserve());
        assert!(futures::poll!(&mut room).is_pending());
        let agent = stage.agent(1).await;
        assert_eq!(room.await.unwrap().submit(|n: u8| n, 5).await.unwrap(), 5);
        for (n, handle) in waiting.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap() as usize, n + 1);
        }
        pool.shutdown().await;
        assert_matches!(pool.reserve().await.map(drop), Err(TaskError::ShutDown));
        other.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_map_fits_into_a_bounded_queue() {
    play(async |stage| {
        use futures::StreamExt;
        let (agent, pool) = (stage.agent(2).await, stage.builder().queue_capacity(3).build().unwrap());
        let results: Vec<u64> =
            pool.map(|n: u64| n + 1, 0..60).chunk_size(1).window(20).map(Result::unwrap).collect().await;
        assert!(results.into_iter().eq(1..=60));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_cannot_start_workers() {
    play(async |stage| {
        let initializer = || -> anyhow::Result<()> { anyhow::bail!("no model") };
        let builder = ProcessPool::builder().workers(1).initializer(initializer, ());
        let agent = Agent::start(stage.queue(), builder).await.unwrap();
        let pool = stage.pool();
        match pool.submit(|n: u8| n, 1).await {
            Err(TaskError::PoolBroken(PoolError::Initializer(error))) => {
                assert_matches!(*error, TaskError::Failed(error) if error.to_string() == "no model");
            }
            other => panic!("{other:?}"),
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn retries_are_as_many_as_allowed() {
    play(async |stage| {
        let (agent, pool, ledger) = (stage.agent(2).await, stage.pool(), Ledger::new());
        let crash = |place: String, good: u32| {
            let attempt = procession::worker::current().unwrap().attempt();
            note(&place, attempt);
            if attempt < good {
                std::process::abort();
            }
            attempt
        };
        died(pool.task(crash, (ledger.place(), 9)).await);
        assert_eq!(ledger.lines(), ["1"]);
        let ledger = Ledger::new();
        assert_eq!(pool.task(crash, (ledger.place(), 3)).retries(5).await.unwrap(), 3);
        assert_eq!(ledger.lines(), ["1", "2", "3"]);
        let ledger = Ledger::new();
        died(pool.task(crash, (ledger.place(), 9)).retries(1).await);
        assert_eq!(ledger.lines(), ["1", "2"]);
        // A panic is not for another try.
        let panics = |place: String| {
            note(&place, "ran");
            panic!("no");
        };
        let ledger = Ledger::new();
        panicked(pool.task(panics, ledger.place()).retries(3).await);
        assert_eq!(ledger.lines(), ["ran"]);
        assert_eq!(pool.stats().retried(), 3);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn settings_that_make_no_sense() {
    common::run(async {
        for queue in [
            Queue::at("nats://127.0.0.1").name("a.b"),
            Queue::at("nats://127.0.0.1").name(""),
            Queue::at("nats://127.0.0.1").prefix("a-b"),
            Queue::at("nats://127.0.0.1").ack_wait(Duration::from_millis(1)),
            Queue::at("nats://127.0.0.1").max_wait(Duration::ZERO),
            Queue::at("nats://127.0.0.1").reply_patience(Duration::ZERO),
            Queue::at("nats://127.0.0.1").replicas(0),
            Queue::at("what is this"),
        ] {
            let error = ProcessPool::builder().nats(queue.clone()).build().map(drop).unwrap_err();
            assert_matches!(error, PoolError::InvalidSetting { .. });
            let error = Agent::start(queue, ProcessPool::builder()).await.map(drop).unwrap_err();
            assert_matches!(error, PoolError::InvalidSetting { .. });
        }
    });
}

#[test]
fn a_task_that_meets_nobody_gives_up_in_time() {
    play(async |stage| {
        let queue = stage.queue().max_wait(Duration::from_millis(300));
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let handle = pool.submit(|n: u8| n, 1);
        common::eventually("it waits", || pool.stats().queued() == 1).await;
        assert_matches!(handle.await, Err(TaskError::TimedOut { limit }) if limit == Duration::from_millis(300));
        pool.shutdown().await;
        stage
    });
}

#[test]
fn a_running_task_is_not_given_up_for_having_waited() {
    play(async |stage| {
        let queue = stage.queue().max_wait(Duration::from_millis(300));
        let meeting = Meeting::new();
        let agent = Agent::start(queue.clone(), ProcessPool::builder().workers(1)).await.unwrap();
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let handle = pool.submit(|place: String| attend(&place, "it"), meeting.place());
        let guest = meeting.next().await;
        common::eventually("it is known to run", || pool.stats().running() == 1).await;
        let start = std::time::Instant::now();
        common::eventually("the time is over", || start.elapsed() > Duration::from_millis(700)).await;
        drop(guest);
        handle.await.unwrap();
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
