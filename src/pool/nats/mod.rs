//! Agents that pull tasks from a queue, on NATS JetStream (feature `nats`).
//!
//! Any number of machines run an [`Agent`]: a local pool that takes tasks from a [`Queue`], only as many as
//! it has free workers, or of short ones a moment's work more. A pool that is built with [`Builder::nats`]
//! submits its tasks to that queue, and has the same methods and errors as any other. Agents come and go; slow
//! ones take less.
//!
//! The agent is the same program: a function is known by its place in it. So a task is seen by agents of
//! its own build alone; with none of them there it waits. `docs/distributed_nats.md` in the repository tells
//! how to deploy this, and what is promised when what fails.
//!
//! **Whoever may publish to a queue may run any function of the program**, and may crash its workers:
//! what is published says at which address they continue. Give that right to nobody but the program.
//!
//! ```no_run
//! use procession::nats::{Agent, Queue};
//! use procession::ProcessPool;
//!
//! fn square(n: u64) -> u64 { n * n }
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     let queue = Queue::at("nats://127.0.0.1:4222").name("squares");
//!     if std::env::args().nth(1).as_deref() == Some("agent") {
//!         let agent = Agent::start(queue, ProcessPool::builder().workers(8)).await?;
//!         tokio::signal::ctrl_c().await?;
//!         agent.shutdown().await; // finishes what it has, and takes no more
//!     } else {
//!         let pool = ProcessPool::builder().nats(queue).build()?;
//!         println!("{}", pool.submit(square, 7).await?);
//!         pool.shutdown().await;
//!     }
//!     Ok(())
//! }
//! ```

mod agent;
mod caller;
mod link;
mod message;
mod names;
mod objects;
mod queue;
mod report;

pub use agent::Agent;
pub use async_nats::ConnectOptions;
pub use queue::Queue;

#[cfg(any(test, feature = "internals"))]
pub(crate) use message::{read_as_agent, read_as_caller};

use super::Builder;
use super::shared::Shared;
use crate::task::PoolError;
use std::sync::Arc;

/// Queues.
impl Builder {
    /// Has the tasks of the pool run by the agents of a queue, rather than by workers of its own.
    ///
    /// The pool needs no server to be there when it is built: tasks wait until there is one. Settings of
    /// workers are the agents' own ([`Agent::start`]) and count for nothing here, but for
    /// [`workers`](Builder::workers), from which [`ProcessPool::map`](crate::ProcessPool::map) knows how
    /// much to have in flight before it has heard of any agent.
    ///
    /// What is different from a pool of this machine:
    ///
    /// * A task whose agent is gone is [`TaskError::NodeLost`](crate::TaskError::NodeLost), some
    ///   [`Queue::ack_wait`] later; [`retries`](crate::TaskBuilder::retries) are made after that, too.
    /// * [`queue_capacity`](Builder::queue_capacity) is a property of the queue: the most unfinished tasks,
    ///   waiting or running, of a build and a priority, whichever pool they are from. Each pool that says
    ///   one sets it for all. [`reserve`](crate::ProcessPool::reserve) waits for room but keeps no place;
    ///   a task that is submitted with its permit waits on where others were faster. So does one that is
    ///   called of a `PoolService` that is ready, which is so by the tasks of its own pool.
    /// * [`warm_up`](crate::ProcessPool::warm_up) waits until the queue is reached and there is an agent.
    /// * Reports of progress come up to 50 ms later, the last of them with the result.
    /// * What tasks log is told to this program, as ever, but is lost while there is no connection, and
    ///   counted then. Where nobody listens here, or `Builder::forward_events` is off, it is told to the agent's
    ///   program, as is what workers say that is no task's: in an initializer, after a task's end, or once the
    ///   task was cancelled.
    /// * Workers are the agents', and outlive the pool. Of them, this pool's statistics and metrics have how
    ///   many all known agents have, of any pool's tasks. Starts and ends are counted by the agents
    ///   ([`Agent::stats`], and their metrics): here [`workers_started`](crate::PoolStats::workers_started),
    ///   [`workers_died`](crate::PoolStats::workers_died) and
    ///   [`workers_recycled`](crate::PoolStats::workers_recycled) are 0.
    /// * A task that takes less than about a millisecond may never be seen as running.
    /// * [`shutdown_now`](crate::ProcessPool::shutdown_now) takes back what waits and has agents cancel what
    ///   runs, as far as the server can be reached; what runs then has its agent's
    ///   [`cancel_grace`](Builder::cancel_grace). So it is when a shutdown's time is over.
    pub fn nats(mut self, queue: Queue) -> Builder {
        self.queue = Some(queue);
        self
    }
}

/// Makes a pool whose tasks go to a queue.
pub(super) fn open(queue: Queue, mut shared: Shared) -> Result<Arc<Shared>, PoolError> {
    queue.check()?;
    let (engine, life) = caller::Caller::new(queue, &shared);
    let core = engine.clone();
    shared.engine = Some(Box::new(engine));
    // The queue has a bound of its own.
    shared.room = None;
    let shared = Arc::new(shared);
    core.belong_to(&shared);
    let alive = shared.clone();
    shared.runtime.spawn(async move {
        life.await;
        drop(alive);
    });
    Ok(shared)
}
