//! Tests whose tasks are run by an agent of this process: `PROCESSION_TEST_LAUNCHER=nats://HOST:PORT`, where there
//! is a server with JetStream. Each pool that is opened has a queue and an agent of its own.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use async_nats::jetstream;
use futures::TryStreamExt;
use procession::nats::{Agent, Queue};
use procession::{Builder, PoolError, ProcessPool};
use tokio::task::JoinHandle;

const PREFIX: &str = "test";

struct Opened {
    name: String,
    agent: JoinHandle<Agent>,
}

static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

fn opened() -> Vec<Opened> {
    std::mem::take(&mut *OPENED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A pool, and an agent with these settings.
pub fn open(ours: Builder, agents: Builder, server: &str) -> Result<ProcessPool, PoolError> {
    let now = UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let name = format!("{}-{now}", std::process::id());
    let queue = Queue::at(server).prefix(PREFIX).name(&name).ack_wait(Duration::from_secs(10));
    let pool = ours.nats(queue.clone()).build()?;
    let agent = tokio::spawn(async { Agent::start(queue, agents).await.unwrap() });
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).push(Opened { name, agent });
    Ok(pool)
}

/// What another test has left behind, which has failed, is of no interest.
pub fn forget() {
    drop(opened());
}

/// Has the agents end, and checks that nothing is left in their queues.
pub async fn finish(server: &str) {
    let opened = opened();
    if opened.is_empty() {
        return;
    }
    let client = async_nats::connect(server).await.unwrap();
    let context = jetstream::new(client.clone());
    for Opened { name, agent } in opened {
        let agent = agent.await.unwrap();
        agent.shutdown().await;
        // Without a task there may never have been a store of objects.
        for stream in [format!("{PREFIX}-{name}"), format!("OBJ_{PREFIX}-{name}")] {
            if context.get_stream(&stream).await.is_ok() {
                expect_empty(&context, &stream).await;
                context.delete_stream(&stream).await.unwrap();
            }
        }
    }
    client.drain().await.unwrap();
}

/// What pools and agents do last, they need not wait for.
async fn expect_empty(context: &jetstream::Context, stream: &str) {
    let start = Instant::now();
    loop {
        let stream = context.get_stream(stream).await.unwrap();
        let mut left = stream.info_with_subjects(">").await.unwrap();
        let mut subjects = Vec::new();
        while let Some(subject) = left.try_next().await.unwrap() {
            subjects.push(subject);
        }
        if subjects.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "left in the queue: {subjects:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
