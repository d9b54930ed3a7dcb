//! What is out of the ordinary: settings without bounds, consumers that are removed, objects that are gone,
//! messages that come twice or from the wrong one, agents of several builds.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures::StreamExt;
use procession::ProcessPool;
use procession::nats::Agent;

use crate::common::{self, Ledger, Meeting, attend, gone, note};
use crate::server::close;
use crate::stage::{Stage, play};

#[test]
fn times_without_end() {
    play(async |stage| {
        let queue = stage.queue().ack_wait(Duration::MAX).max_wait(Duration::MAX);
        let queue = queue.reply_patience(Duration::MAX);
        let agent = Agent::start(queue.clone(), ProcessPool::builder().workers(1)).await.unwrap();
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        assert_eq!(pool.task(|n: u8| n, 1).timeout(Duration::MAX).await.unwrap(), 1);
        let items: Vec<_> = pool.stream(|n: u8| 0..n, 3).map(Result::unwrap).collect().await;
        assert_eq!(items, [0, 1, 2]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// With the connection still there nothing tells an agent of it but the answers to its requests.
#[test]
fn consumers_that_are_removed_are_made_again() {
    play(async |stage| {
        let agent = stage.agent(1).await;
        let pool = stage.pool();
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        let client = async_nats::connect(stage.server.url()).await.unwrap();
        let queue = jetstream::new(client.clone()).get_stream("procession-stage").await.unwrap();
        let names: Vec<_> = queue.consumer_names().map(Result::unwrap).collect().await;
        assert_eq!(names.len(), 3);
        for name in names {
            queue.delete_consumer(&name).await.unwrap();
        }
        let mut asked = client.subscribe("$JS.API.CONSUMER.MSG.NEXT.procession-stage.*").await.unwrap();
        let start = Instant::now();
        while stage.consumers().await < 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "its consumers are not made again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // It has not asked again and again meanwhile.
        let mut requests = 0;
        while futures::FutureExt::now_or_never(asked.next()).is_some() {
            requests += 1;
        }
        assert!(requests < 50, "{requests} requests");
        drop(asked);
        close(client).await;
        let pool = stage.pool();
        assert_eq!(pool.submit(|n: u8| n, 2).await.unwrap(), 2);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

fn note_and_wait(ledger: String, place: String, bytes: Vec<u8>) -> usize {
    note(&ledger, procession::worker::current().unwrap().attempt());
    attend(&place, "task");
    bytes.len()
}

/// As an agent does that hears nothing of the caller for long, and takes it for gone.
async fn remove_objects(stage: &Stage) {
    let client = async_nats::connect(stage.server.url()).await.unwrap();
    let objects = jetstream::new(client.clone()).get_stream("OBJ_procession-stage").await.unwrap();
    objects.purge().await.unwrap();
    close(client).await;
}

#[test]
fn large_arguments_that_were_removed_are_there_for_the_next_attempt() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent_process(1).await;
        let arguments = (ledger.place(), meeting.place(), vec![7; 1 << 20]);
        let task = pool.task(note_and_wait, arguments).retries(1).submit();
        let guest = meeting.next().await;
        remove_objects(&stage).await;
        agent.kill().await;
        gone(guest.pid).await;
        let agent = stage.agent(1).await;
        drop(meeting.next().await);
        assert_eq!(task.await.unwrap(), 1 << 20);
        assert_eq!(ledger.lines(), ["1", "2"]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_large_answer_that_is_repeated_is_fetched_once() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        let client = async_nats::connect(stage.server.url()).await.unwrap();
        let mut told = client.subscribe("procession.stage.to.*").await.unwrap();
        let mut requests = client.subscribe("$JS.API.CONSUMER.>").await.unwrap();
        client.flush().await.unwrap();
        let handle = pool.submit(|size: usize| vec![8_u8; size], 64 << 20);
        // The name of an object is said in answers alone.
        let is_answer = |bytes: &[u8]| bytes.windows(4).any(|part| part == b".out");
        let answer = loop {
            let message = told.next().await.unwrap();
            if is_answer(&message.payload) {
                break message;
            }
        };
        for _ in 0..10 {
            client.publish(answer.subject.clone(), answer.payload.clone()).await.unwrap();
        }
        assert_eq!(handle.await.unwrap().len(), 64 << 20);
        pool.shutdown().await;
        let mut count = 0;
        client.flush().await.unwrap();
        while let Some(Some(request)) = futures::FutureExt::now_or_never(requests.next()) {
            // Pieces are read with a consumer.
            count += usize::from(request.subject.contains(".CREATE.OBJ_procession-stage"));
        }
        assert_eq!(count, 1);
        close(client).await;
        agent.shutdown().await;
        stage
    });
}

/// A server that has lost its notes gives a task out again; the second agent has no worker for it.
#[test]
fn what_one_agent_has_begun_no_other_hands_back() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let (meeting, ledger) = (Meeting::new(), Ledger::new());
        pool.warm_up().await.unwrap();
        let client = async_nats::connect(stage.server.url()).await.unwrap();
        let mut told = client.subscribe("procession.stage.to.*").await.unwrap();
        client.flush().await.unwrap();
        let task = pool.submit(note_and_wait, (ledger.place(), meeting.place(), Vec::new()));
        let guest = meeting.next().await;
        let alive = told.next().await.unwrap();
        // A length, the agent's name with its own, the task's number, attempt and hop, and what it says.
        let name = 5..5 + usize::from(alive.payload[4]);
        let mut forged = alive.payload[..name.end + 4].to_vec();
        forged[name].fill(b'x');
        forged[0] = forged.len() as u8 - 4;
        *forged.last_mut().unwrap() = 1;
        let said = pool.submit(|n: u8| n, 1);
        client.publish(alive.subject.clone(), forged.into()).await.unwrap();
        // It is confirmed, so that whoever said it does not say it again.
        let confirmed = async { while !told.next().await.unwrap().subject.ends_with("xx") {} };
        confirmed.await;
        assert_eq!(said.await.unwrap(), 1);
        assert_eq!(pool.submit(|n: u8| n, 2).await.unwrap(), 2);
        drop(guest);
        assert_eq!(task.await.unwrap(), 0);
        assert_eq!(ledger.lines(), ["1"]);
        close(client).await;
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// The server tells one agent of a build that a task is overdue, whatever other builds there are.
#[test]
fn agents_of_other_builds_do_not_keep_one_from_clearing_up() {
    play(async |stage| {
        let stage = stage.impatient();
        let (dir, meeting) = (tempfile::tempdir().unwrap(), Meeting::new());
        let program = crate::agents::other_build(dir.path());
        let strangers: Vec<_> = (0..4)
            .map(|_| stage.start_agent(common::helper_at(&program, "stage::agent_program", &stage.word(1))))
            .collect();
        let start = Instant::now();
        while stage.consumers().await < 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "the other agents do not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let victim = stage.agent_process(1).await;
        let caller = stage.start_agent(crate::losses::caller(&stage, &meeting));
        let guest = meeting.next().await;
        caller.kill().await;
        victim.kill().await;
        gone(guest.pid).await;
        let agent = stage.agent(1).await;
        stage.server.expect_empty().await;
        agent.shutdown().await;
        for stranger in strangers {
            stranger.end().await;
        }
        stage
    });
}
