//! What could keep somebody waiting for ever, or cost a task for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{ConnectOptions, Event};
use procession::nats::Agent;
use procession::{ProcessPool, TaskError};

use crate::common::{self, Meeting, attend, eventually, gone};
use crate::server::close;
use crate::stage::{Stage, play};

fn wait_at(place: String) -> u32 {
    attend(&place, "task");
    procession::worker::current().unwrap().attempt()
}

#[test]
fn an_older_attempt_is_cancelled_alone() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let agent = stage.agent_process(2).await;
        let task = pool.task(wait_at, meeting.place()).retries(1).submit();
        let first = meeting.next().await;
        // Nothing is heard of it until it counts as lost.
        agent.pause();
        eventually("it is tried again", || pool.stats().retried() == 1).await;
        agent.resume();
        // It has both attempts now, and tells of the older, which nobody wants.
        let second = meeting.next().await;
        gone(first.pid).await;
        drop(second);
        assert_eq!(task.await.unwrap(), 2);
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

/// Says what the server says of a task that was delivered as often as it may be.
async fn advise(stage: &Stage, place: u64) {
    let client = async_nats::connect(stage.server.url()).await.unwrap();
    let stream = jetstream::new(client.clone()).get_stream("procession-stage").await.unwrap();
    let names: Vec<_> = futures::TryStreamExt::try_collect(stream.consumer_names()).await.unwrap();
    let consumer = names.into_iter().find(|name: &String| name.ends_with("-normal")).unwrap();
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.procession-stage.{consumer}");
    let advisory = format!(r#"{{"consumer":"{consumer}","stream_seq":{place}}}"#);
    client.publish(subject, advisory.into()).await.unwrap();
    close(client).await;
}

/// The place in the stream of the first task that is there.
async fn first_place(stage: &Stage) -> u64 {
    let client = async_nats::connect(stage.server.url()).await.unwrap();
    let mut stream = jetstream::new(client.clone()).get_stream("procession-stage").await.unwrap();
    let place = stream.info().await.unwrap().state.first_sequence;
    close(client).await;
    place
}

#[test]
fn a_task_that_could_not_be_delivered_is_not_lost() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        pool.warm_up().await.unwrap();
        agent.shutdown().await;
        let handle = pool.submit(|n: u8| n, 1);
        stage.stored(1).await;
        // Nobody has had it for `ack_wait`, so this can only mean that whoever was to have it is gone.
        advise(&stage, 1).await;
        while first_place(&stage).await == 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let agent = stage.agent(1).await;
        assert_eq!(handle.await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_task_that_an_agent_has_told_of_is_lost_if_the_server_says_so() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let handle = pool.submit(wait_at, meeting.place());
        let guest = meeting.next().await;
        eventually("it is seen", || pool.stats().running() == 1).await;
        advise(&stage, 1).await;
        assert_matches!(handle.await, Err(TaskError::NodeLost));
        drop(guest);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_client_that_is_to_give_up_is_kept_trying() {
    play(async |mut stage| {
        let (agent, failures) = (stage.agent(1).await, Arc::new(AtomicUsize::new(0)));
        let count = failures.clone();
        let options = ConnectOptions::new().max_reconnects(1).event_callback(move |event| {
            count.fetch_add(usize::from(matches!(event, Event::ClientError(_))), Ordering::Relaxed);
            async {}
        });
        let pool = ProcessPool::builder().nats(stage.queue().options(options)).build().unwrap();
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        stage.server.stop().await;
        let handle = pool.submit(|n: u8| n, 2);
        eventually("it has tried in vain", || failures.load(Ordering::Relaxed) > 2).await;
        stage.server.run().await;
        assert_eq!(handle.await.unwrap(), 2);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_ends_though_its_server_is_gone() {
    play(async |mut stage| {
        // Without a connection the client has room for this much.
        let options = ConnectOptions::new().client_capacity(1);
        let queue = stage.queue().options(options);
        let before = common::descriptors().len();
        let agent = Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap();
        stage.server.kill().await;
        agent.shutdown().await;
        drop(agent);
        // Its client would try for as long as there is no server.
        stage.server.run().await;
        eventually("its connection is closed", || common::descriptors().len() <= before).await;
        stage
    });
}

#[test]
fn an_agent_has_ended_when_its_runtime_has() {
    play(async |stage| {
        let runtime = common::multi_thread();
        let queue = stage.queue();
        let start = async move { Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap() };
        let agent = runtime.spawn(start).await.unwrap();
        runtime.shutdown_background();
        agent.shutdown().await;
        stage
    });
}
