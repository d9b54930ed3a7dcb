//! Streams whose tasks are run by agents: items in order, each once, and no faster than they are taken.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use procession::nats::Agent;
use procession::worker::{Emit, emit};
use procession::{ExitCause, ProcessPool, TaskError, TaskStream};

use crate::common::{self, Ledger, Meeting, attend, eventually, gone, note};
use crate::stage::{Stage, play, told};

fn count(n: u64) -> impl Iterator<Item = u64> {
    0..n
}

/// Writes down what it yields, before that.
fn noted(place: String, n: u64) -> impl Iterator<Item = u64> {
    (0..n).inspect(move |item| note(&place, item))
}

async fn all<T: serde::de::DeserializeOwned + 'static>(items: TaskStream<T>) -> Vec<T> {
    items.try_collect().await.unwrap()
}

#[test]
fn every_shape() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let expected: Vec<u64> = (0..100).collect();
        assert_eq!(all(pool.stream(count, 100)).await, expected);
        assert_eq!(all(pool.stream(count, 0)).await, Vec::<u64>::new());
        assert_eq!(all(pool.stream(|from: u64, to: u64| from..to, (0, 100))).await, expected);
        assert_eq!(all(pool.stream(async |n: u64| futures::stream::iter(0..n), 100)).await, expected);
        let pushed = |n: u64| -> Emit<u64> { emit(move |out| (0..n).try_for_each(|n| Ok(out.send(n)?))) };
        assert_eq!(all(pool.stream(pushed, 100)).await, expected);
        assert_eq!(all(pool.stream(|| vec![(); 1000].into_iter(), ())).await.len(), 1000);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn errors_stand_where_they_belong() {
    play(async |stage| {
        let agent =
            Agent::start(stage.queue(), ProcessPool::builder().workers(1).max_message_size(4 << 20)).await;
        let agent = agent.unwrap();
        let pool = stage.builder().max_message_size(1 << 20).build().unwrap();
        let mixed = |n: u32| (0..n).map(|n| if n % 3 == 1 { Err(anyhow::anyhow!("no {n}")) } else { Ok(n) });
        let items: Vec<_> = pool.stream(mixed, 5).collect().await;
        let told: Vec<_> = items.iter().map(|item| item.as_ref().map_err(ToString::to_string)).collect();
        assert_eq!(told, [Ok(&0), Err("no 1".into()), Ok(&2), Ok(&3), Err("no 4".into())]);

        // Too large for the caller, and for the agent.
        let sizes = |sizes: Vec<usize>| sizes.into_iter().map(|size| vec![7_u8; size]);
        let items: Vec<_> = pool.stream(sizes, vec![3, 2 << 20, 5 << 20, 3]).collect().await;
        assert_eq!(items[0].as_ref().unwrap().len(), 3);
        assert_matches!(&items[1], Err(TaskError::TooLarge { limit, .. }) if *limit == 1 << 20);
        assert_matches!(&items[2], Err(TaskError::TooLarge { limit, .. }) if *limit == 4 << 20);
        assert_eq!((items[3].as_ref().unwrap().len(), items.len()), (3, 4));

        let fails = |n: u32| -> Emit<u32> {
            emit(move |out| {
                out.send(n)?;
                anyhow::bail!("after one")
            })
        };
        let items: Vec<_> = pool.stream(fails, 1).collect().await;
        assert_matches!(&items[..], [Ok(1), Err(TaskError::Failed(_))]);
        let dies = || {
            (0..10_u32).inspect(|n| {
                if *n == 7 {
                    std::process::abort()
                }
            })
        };
        let items: Vec<_> = pool.stream(dies, ()).collect().await;
        assert!(items[..7].iter().map(|item| *item.as_ref().unwrap()).eq(0..7));
        assert_matches!(&items[7..], [Err(TaskError::WorkerDied(exit))] if exit.cause() == ExitCause::Signalled);
        let late = pool.stream(|| (0..).inspect(|_: &u32| std::thread::sleep(Duration::from_millis(10))), ());
        let items: Vec<_> = late.timeout(Duration::from_millis(200)).collect().await;
        assert_matches!(items.last(), Some(Err(TaskError::TimedOut { .. })));
        assert!(items.len() > 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn many_small_items_come_in_order() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        for (n, window) in [(100_000, 1000), (20_000, 64), (200, 1)] {
            let mut items = pool.stream(count, n).window(window);
            for expected in 0..n {
                assert_eq!(items.next().await.unwrap().unwrap(), expected);
            }
            assert!(items.next().await.is_none());
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn large_items() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let large =
            |sizes: Vec<usize>| sizes.into_iter().enumerate().map(|(n, size)| (n, vec![n as u8; size]));
        let sizes: Vec<usize> =
            [2 << 20, 0, 3, (512 << 10) + 1, 2 << 20, 256 << 10, (256 << 10) - 5, 20 << 20, 1, 2 << 20]
                .into();
        let items: Vec<(usize, Vec<u8>)> = all(pool.stream(large, sizes.clone())).await;
        for (n, size) in sizes.into_iter().enumerate() {
            assert!(items[n] == (n, vec![n as u8; size]), "item {n} is not as it was");
        }
        assert_eq!(items.len(), 10);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_producer_waits_for_its_consumer() {
    play(async |stage| {
        let (agent, pool, ledger) = (stage.agent(1).await, stage.pool(), Ledger::new());
        let mut items = pool.stream(noted, (ledger.place(), u64::MAX)).window(10);
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        // It makes one more than there is room for, and waits with that.
        eventually("the window is full", || ledger.lines().len() == 11).await;
        for expected in 1..=4 {
            assert_eq!(items.next().await.unwrap().unwrap(), expected);
        }
        eventually("there is room again", || ledger.lines().len() == 16).await;
        eventually("its worker is known", || items.worker_pid().is_some()).await;
        let pid = items.worker_pid().unwrap();
        drop(items);
        // Where it waits it is told, and so it need not be killed.
        assert_eq!(pool.submit(std::process::id, ()).await.unwrap(), pid);
        assert_eq!(ledger.lines().len(), 16);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// Most of the memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn an_endless_stream_takes_up_no_more_memory_than_its_window() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let endless = || std::iter::repeat_with(|| vec![1_u8; 1 << 20]);
        let mut items = pool.stream(endless, ()).window(usize::MAX);
        assert_eq!(items.next().await.unwrap().unwrap().len(), 1 << 20);
        let before = resident();
        for _ in 0..200 {
            assert_eq!(items.next().await.unwrap().unwrap().len(), 1 << 20);
        }
        // Both ends are in this process.
        let more = resident().saturating_sub(before);
        assert!(more < 64 << 20, "{more} bytes");
        drop(items);
        // Others are not held up meanwhile.
        let mut held = pool.stream(endless, ());
        assert!(held.next().await.unwrap().is_ok());
        assert_eq!(pool.submit(|n: u8| n, 3).await.unwrap(), 3);
        drop(held);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_polite_producer_that_is_dropped_spares_its_worker() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let pid = pool.submit(std::process::id, ()).await.unwrap();
        for _ in 0..10 {
            let mut items = pool.stream(|| std::iter::repeat(1_u8), ());
            assert_eq!(items.next().await.unwrap().unwrap(), 1);
        }
        assert_eq!(pool.submit(std::process::id, ()).await.unwrap(), pid);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_stream_that_is_cancelled_ends() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let waits = |place: String| {
            (0..3_u8).inspect(move |n| {
                if *n == 2 {
                    attend(&place, "third")
                }
            })
        };
        let mut items = pool.stream(waits, meeting.place());
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        let guest = meeting.next().await;
        items.canceller().cancel();
        let rest: Vec<_> = items.collect().await;
        assert_matches!(rest.last(), Some(Err(TaskError::Cancelled)));
        gone(guest.pid).await;
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_is_killed_in_mid_stream() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let agent = stage.agent_process(1).await;
        let items = |place: String| {
            (0..8_u64).map(move |n| {
                if n == 5 {
                    attend(&place, "sixth");
                }
                vec![n as u8; 600 << 10]
            })
        };
        let mut items = pool.stream(items, meeting.place()).window(100);
        assert_eq!(items.next().await.unwrap().unwrap()[0], 0);
        let guest = meeting.next().await;
        for n in 1..5 {
            assert_eq!(items.next().await.unwrap().unwrap()[0], n);
        }
        agent.kill().await;
        gone(guest.pid).await;
        assert_matches!(items.next().await, Some(Err(TaskError::NodeLost)));
        assert!(items.next().await.is_none());
        pool.shutdown().await;
        stage
    });
}

#[test]
fn what_had_come_of_a_lost_stream_is_still_to_be_taken() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let agent = stage.agent_process(1).await;
        let items = |place: String| {
            (0..20_u64).inspect(move |n| {
                if *n == 9 {
                    attend(&place, "tenth")
                }
            })
        };
        let mut items = pool.stream(items, meeting.place());
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        let guest = meeting.next().await;
        eventually("it runs", || items.worker_pid() == Some(guest.pid)).await;
        agent.kill().await;
        eventually("it is noticed", || pool.stats().failed() == 1).await;
        let rest: Vec<_> = items.collect().await;
        let (last, came) = rest.split_last().unwrap();
        assert_matches!(last, Err(TaskError::NodeLost));
        assert!(came.iter().map(|item| *item.as_ref().unwrap()).eq(1..=came.len() as u64));
        pool.shutdown().await;
        stage
    });
}

#[test]
fn a_server_that_is_killed_again_and_again_in_mid_stream() {
    play(async |mut stage| {
        let (agent, pool, ledger) = (stage.agent(2).await, stage.pool(), Ledger::new());
        let n = 6000;
        let items = |place: String, n: u64| {
            note(&place, "begun");
            (0..n).map(|n| (n, vec![n as u8; if n % 500 == 0 { 700_000 } else { 100 }]))
        };
        let mut items = pool.stream(items, (ledger.place(), n));
        for expected in 0..n {
            if expected % 2000 == 1000 {
                stage.server.kill().await;
                stage.server.run().await;
            }
            let (number, bytes) = items.next().await.unwrap().unwrap();
            assert_eq!(number, expected);
            assert!(bytes.iter().all(|byte| *byte == expected as u8));
        }
        assert!(items.next().await.is_none());
        assert_eq!(ledger.lines(), ["begun"]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn streams_of_several_callers_and_agents_do_not_mix() {
    play(async |stage| {
        let agents = [stage.agent(2).await, stage.agent(2).await];
        let pools = [stage.pool(), stage.pool()];
        let numbers = |from: u64, n: u64| from..from + n;
        let mut readers = Vec::new();
        for (which, pool) in pools.iter().enumerate() {
            for stream in 0..4 {
                let from = (which * 4 + stream) as u64 * 1_000_000;
                let items = pool.stream(numbers, (from, 3000)).window(1 + stream * 20);
                readers.push(tokio::spawn(async move {
                    let all: Vec<u64> = items.try_collect().await.unwrap();
                    assert!(all.into_iter().eq(from..from + 3000));
                }));
            }
        }
        for reader in readers {
            reader.await.unwrap();
        }
        for pool in pools {
            pool.shutdown().await;
        }
        for agent in agents {
            agent.shutdown().await;
        }
        stage
    });
}

/// Not a test: takes one item of a stream, says so, and is killed.
#[test]
#[ignore = "started by other tests"]
fn consumer_program() {
    let Some(word) = common::helping() else { return };
    let (word, place) = word.split_once('|').unwrap();
    let (queue, _) = told(word);
    common::multi_thread().block_on(async {
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let endless = || std::iter::repeat_with(|| (std::process::id(), vec![0_u8; 700_000]));
        let mut items = pool.stream(endless, ());
        let (pid, _) = items.next().await.unwrap().unwrap();
        attend(place, &pid.to_string());
        items.next().await;
    });
}

#[test]
fn a_stream_whose_caller_dies_is_given_up() {
    play(async |stage| {
        let meeting = Meeting::new();
        let queue = stage.queue().reply_patience(Duration::from_secs(2));
        let agent = Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap();
        let word = format!("{}|{}", stage.word(1), meeting.place());
        let caller = stage.start_agent(common::helper("streams::consumer_program", &word));
        let guest = meeting.next().await;
        caller.kill().await;
        drop(guest);
        eventually("it is cancelled", || agent.stats().cancelled() == 1).await;
        stage.server.expect_empty().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_shutdown_waits_for_a_stream_that_is_taken_from() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let mut items = pool.stream(count, 2000).window(10);
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        let ending = pool.clone();
        let ending = tokio::spawn(async move { ending.shutdown().await });
        eventually("it ends", || pool.is_shut_down()).await;
        assert!(items.map(Result::unwrap).collect::<Vec<_>>().await.into_iter().eq(1..2000));
        ending.await.unwrap();
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_shutdown_does_not_wait_for_itself() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let mut items = pool.stream(|| 0_u64.., ());
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        pool.shutdown().await; // by the only one who could take more
        let rest: Vec<_> = items.collect().await;
        assert_matches!(rest.last(), Some(Err(TaskError::ShutDown)));
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_shutdown_now_ends_streams() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let mut items = pool.stream(|| 0_u64.., ());
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        pool.shutdown_now().await;
        let rest: Vec<_> = items.collect().await;
        assert_matches!(rest.last(), Some(Err(TaskError::ShutDown)));
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_ends_finishes_its_stream() {
    play(async |stage: Stage| {
        let (agent, pool) = (stage.agent_process(1).await, stage.pool());
        let mut items = pool.stream(count, 5000).window(10);
        assert_eq!(items.next().await.unwrap().unwrap(), 0);
        agent.ask_to_end();
        assert!(items.map(Result::unwrap).collect::<Vec<_>>().await.into_iter().eq(1..5000));
        agent.ended().await;
        pool.shutdown().await;
        stage
    });
}

#[test]
fn in_a_bounded_queue_a_stream_waits_for_room() {
    play(async |stage| {
        let pool = stage.builder().queue_capacity(1).build().unwrap();
        drop(pool.reserve().await.unwrap());
        let first = pool.submit(|n: u8| n, 1);
        stage.stored(1).await;
        let items = tokio::spawn(all(pool.stream(count, 10)));
        let agent = stage.agent(1).await;
        assert_eq!(first.await.unwrap(), 1);
        assert!(items.await.unwrap().into_iter().eq(0..10));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
