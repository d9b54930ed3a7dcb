//! An agent: a local pool that takes tasks from a queue.
//!
//! `serve.rs` is its life, `pulls.rs` decides what to ask the server for, `work.rs` has the way of one task,
//! `flow.rs` that of a stream's items and `voices.rs` that of what tasks log; and `care.rs` has what an agent
//! tells of itself and what it clears up after others.

mod care;
mod flow;
mod pulls;
mod serve;
mod voices;
mod work;

use super::link::{Link, NoLink, consumer_config};
use super::message::Key;
use super::names::LEVELS;
use super::queue::Queue;
use crate::pool::ProcessPool;
use crate::pool::builder::Builder;
use crate::pool::cell::Cell;
use crate::pool::stats::{PoolStats, WorkerInfo};
use crate::task::PoolError;
use async_nats::Subject;
use async_nats::datetime::DateTime;
use flow::Heard;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use work::DONE;

/// How long the first connection may take, tries included.
const FIRST_CONNECTION: Duration = Duration::from_secs(30);

/// The pause between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// How many tasks that are done are kept in mind, in case the server has lost its notes and hands one of
/// them out again.
const REMEMBERED: usize = 4096;

/// How many callers that have ended are kept in mind, in case that tasks of theirs are still on the way.
const REMEMBERED_CALLERS: usize = 64;

/// How many bytes of answers are kept until they are confirmed. Those of a caller that is gone never are, while
/// workers go on.
const ANSWERS: usize = 64 << 20;

/// How many last words are kept, and for how long.
const LAST_WORDS: (usize, Duration) = (1 << 16, Duration::from_secs(30));

/// A machine's part of a service: a local pool that takes tasks from a [`Queue`].
///
/// It takes only as many as it has free workers, and of the highest priority first. While tasks take well
/// under a millisecond it takes a few more ahead, a millisecond's work for each worker, and hands them back
/// if they cannot begin within some ten. A task runs at most
/// once here, whatever happens; its caller decides about retries. While it runs the agent says so to the
/// server every third of [`Queue::ack_wait`]. What a task prints, and what it may do, are this pool's
/// matter.
///
/// Dropping an agent drains it in the background, as [`shutdown`](Agent::shutdown) does. When its runtime
/// is dropped its workers are killed, and callers learn that some time later.
pub struct Agent {
    inner: Arc<Inner>,
}

/// What all parts of an agent share.
struct Inner {
    queue: Queue,
    link: Link,
    pool: ProcessPool,
    /// The most workers, and so tasks.
    width: usize,
    state: Mutex<State>,
    /// The tasks that it has, until their answers are confirmed.
    work: TaskTracker,
    /// Room for answers that are kept until they are confirmed, in bytes.
    answers: Semaphore,
    /// What the server was told last, in case that the connection was lost with it.
    told: Mutex<VecDeque<Told>>,
    /// It is to take no more.
    stopping: CancellationToken,
    /// There is a connection again, and the queue is there.
    found_again: Notify,
    /// Nothing is left of it.
    closed: CancellationToken,
}

/// The last word on a task to the server.
struct Told {
    word: LastWord,
    at: Instant,
    /// How often there had been a connection by then; `None` if it was not told at all.
    connects: Option<u64>,
}

/// Where the server is told that a task is done with, and of which queue that was.
#[derive(Clone)]
struct LastWord {
    ack: Subject,
    made: DateTime,
}

#[derive(Default)]
struct State {
    /// What is not yet in the pool, and whether it was cancelled.
    waiting: HashMap<Id, bool>,
    /// What runs, by caller and number.
    running: HashMap<Id, Arc<Cell>>,
    /// Who waits for a confirmation.
    unconfirmed: HashMap<Id, oneshot::Sender<()>>,
    /// Who sends the items of streams, to be told what their callers say.
    flows: HashMap<Id, watch::Sender<Heard>>,
    /// What is in hand or was, so that it is not run again.
    seen: HashSet<Id>,
    done: VecDeque<Id>,
    /// Callers that have ended.
    left: VecDeque<Arc<str>>,
}

/// A submission, whoever it is from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Id {
    caller: Arc<str>,
    key: Key,
}

impl Agent {
    /// Connects to a queue, makes it if it is not there, and begins to take tasks, to be run in a pool with
    /// these settings.
    ///
    /// It must be called on a tokio runtime, on which the agent then lives.
    ///
    /// # Errors
    /// As [`Builder::build`], and [`PoolError::Queue`] when the queue cannot be reached within half a
    /// minute or must not be used.
    ///
    /// # Cancel safety
    /// Dropping the future gives the agent up before it has taken anything.
    pub async fn start(queue: Queue, mut pool: Builder) -> Result<Agent, PoolError> {
        queue.check()?;
        let width = pool.most_workers();
        pool.queue = None;
        let pool = pool.build()?;
        let link = connect(&queue).await?;
        let inner = Arc::new(Inner {
            queue,
            link,
            pool,
            width,
            state: Mutex::default(),
            work: TaskTracker::new(),
            answers: Semaphore::new(ANSWERS),
            told: Mutex::default(),
            stopping: CancellationToken::new(),
            found_again: Notify::new(),
            closed: CancellationToken::new(),
        });
        let ears = serve::subscribe(&inner).await.map_err(|reason| PoolError::Queue { reason })?;
        let closed = inner.closed.clone().drop_guard();
        tokio::spawn(serve::live(inner.clone(), ears, closed));
        Ok(Agent { inner })
    }

    /// Takes no more tasks, finishes those that it has, hands back what comes nevertheless, and ends. It
    /// may be called any number of times.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn shutdown(&self) {
        self.inner.stopping.cancel();
        self.inner.closed.cancelled().await;
    }

    /// The same, but after the given time what still runs is killed; its callers get
    /// [`TaskError::NodeLost`](crate::TaskError::NodeLost).
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown, but nothing is killed then.
    pub async fn shutdown_timeout(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.shutdown()).await.is_err() {
            self.inner.pool.shutdown_now().await;
            self.inner.closed.cancelled().await;
        }
    }

    /// Counters and gauges of the local pool.
    pub fn stats(&self) -> PoolStats {
        self.inner.pool.stats()
    }

    /// The workers of the local pool.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        self.inner.pool.workers()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.inner.stopping.cancel();
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("queue", &self.inner.queue).field("pool", &self.inner.pool).finish()
    }
}

/// Connects, and makes what tasks of this build are taken from.
async fn connect(queue: &Queue) -> Result<Link, PoolError> {
    let mut reason = "nothing answers".to_owned();
    let tries = async {
        loop {
            let opened = async {
                let link = Link::open(queue, None).await?;
                make_consumers(queue, &link).await?;
                Ok(link)
            };
            match opened.await {
                Ok(link) => return Ok(link),
                Err(NoLink::Unreachable(why) | NoLink::Busy(why)) => reason = why,
                Err(refusal) => return Err(refusal.into_error()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(FIRST_CONNECTION, tries).await {
        Ok(link) => link,
        Err(_) => {
            let within = FIRST_CONNECTION.as_secs();
            Err(PoolError::Queue { reason: format!("it could not be used within {within} s: {reason}") })
        }
    }
}

async fn make_consumers(queue: &Queue, link: &Link) -> Result<(), NoLink> {
    for level in LEVELS {
        let made = link.stream.create_consumer(consumer_config(queue, &link.names, level)).await;
        made.map_err(|error| NoLink::of("its consumers cannot be made", &error))?;
    }
    Ok(())
}

impl Inner {
    /// Tells the server that a task is done with.
    async fn finish(&self, word: LastWord) {
        // While it is not known which queue there is, it has to wait.
        let connects = self.link.is_known().then(|| self.link.connects());
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.push_back(Told { word: word.clone(), at: Instant::now(), connects });
            while told.len() > LAST_WORDS.0
                || told.front().is_some_and(|told| told.at.elapsed() > LAST_WORDS.1)
            {
                told.pop_front();
            }
        }
        if connects.is_some() && word.made == self.link.made() {
            self.link.say(word.ack, DONE).await;
        }
    }

    /// Tells it again what may have been lost with an earlier connection. Not if the queue is another one
    /// since: that would remove another task, which has the same place.
    async fn repeat_last_words(&self) {
        if !self.link.is_known() {
            return;
        }
        let (connects, made) = (Some(self.link.connects()), self.link.made());
        let again: Vec<_> = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let earlier = told.iter_mut().filter(|told| told.connects != connects);
            earlier
                .map(|told| {
                    told.connects = connects;
                    told.word.clone()
                })
                .filter(|word| word.made == made)
                .collect()
        };
        for word in again {
            if !self.link.say(word.ack, DONE).await {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a submission in hand, if its caller is there and it was not here before.
    fn take_in_hand(&mut self, id: &Id) -> bool {
        let is_new = !self.left.contains(&id.caller) && self.seen.insert(id.clone());
        if is_new {
            self.waiting.insert(id.clone(), false);
        }
        is_new
    }

    /// Notes that a task of a caller is cancelled, or that all are, of those that are not yet in the pool.
    fn call_off(&mut self, caller: &str, key: Option<Key>) {
        for (id, is_cancelled) in &mut self.waiting {
            *is_cancelled |= *id.caller == *caller && key.is_none_or(|key| id.key == key);
        }
    }

    /// Whether a submission in hand may begin: nobody has cancelled it, and its caller is there.
    fn is_wanted(&self, id: &Id) -> bool {
        self.waiting.get(id) == Some(&false) && !self.left.contains(&id.caller)
    }

    /// Notes that a caller has ended, and forgets the oldest.
    fn remember_left(&mut self, caller: Arc<str>) {
        self.left.push_back(caller);
        if self.left.len() > REMEMBERED_CALLERS {
            self.left.pop_front();
        }
    }

    /// Notes that a submission is done, and forgets the oldest.
    fn forget(&mut self, id: Id) {
        self.waiting.remove(&id);
        self.done.push_back(id);
        if self.done.len() > REMEMBERED
            && let Some(oldest) = self.done.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cancelled_before_it_is_in_the_pool_is_not_wanted() {
        let id = |task| Id { caller: "caller".into(), key: Key { task, attempt: 1, hop: 0 } };
        let mut state = State::default();
        assert!([1, 2].iter().all(|task| state.take_in_hand(&id(*task))));
        assert!(!state.take_in_hand(&id(1)), "it is here already");
        state.call_off("caller", Some(id(1).key));
        state.call_off("caller", Some(id(3).key));
        assert!(!state.is_wanted(&id(1)) && state.is_wanted(&id(2)));
        assert!(state.take_in_hand(&id(3)) && state.is_wanted(&id(3)), "only what is in hand");
        state.forget(id(1));
        state.remember_left("caller".into());
        assert!(!state.is_wanted(&id(2)) && !state.take_in_hand(&id(4)));
        assert_eq!(state.waiting.len(), 2);
    }
}
