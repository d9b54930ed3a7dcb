//! The caller's side: a pool whose tasks are run by agents.
//!
//! What is known of each task is under one lock. The engine's life (`life.rs`) is a task of the runtime
//! that listens to agents and the server and looks after time; each submission is a task of its own
//! (`publish.rs`). `engine.rs` has what the pool asks for, `listen.rs` what is made of messages, `flow.rs`
//! streams, `voices.rs` what tasks log, and `shown.rs` what is shown to those who watch the pool.

mod engine;
mod flow;
mod life;
mod listen;
mod overdue;
mod publish;
mod shown;
mod voices;

use super::message::Key;
use super::queue::Queue;
use crate::pool::cell::{Cell, Outcome};
use crate::pool::observe::{Ending, Levels};
use crate::pool::scheduler::{Counts, Loads, Nanos, Terms};
use crate::pool::shared::{Shared, nanos};
use crate::pool::state::Warmth;
use crate::pool::times::Times;
use crate::sys::monotonic_now;
use crate::task::{PoolError, Priority, TaskError};
use flow::Reception;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use voices::Voices;

/// The engine of a pool whose tasks go to a queue.
#[derive(Clone)]
pub(super) struct Caller(Arc<Core>);

pub(super) struct Core {
    queue: Queue,
    max_message: u64,
    capacity: Option<usize>,
    /// The pool, while it is there, and whether anybody watches it.
    shared: OnceLock<Weak<Shared>>,
    is_observed: bool,
    errands: mpsc::UnboundedSender<Errand>,
    state: Mutex<State>,
    /// The connection, while there is one, for those who wait for room.
    link: watch::Sender<Option<Arc<super::link::Link>>>,
    terminated: CancellationToken,
}

/// Something to be done on the runtime.
enum Errand {
    Publish(u64),
    /// Take a task out of the queue.
    Delete(u64),
    /// Tell the agent that has it, under its name, that a submission is not wanted any more.
    Cancel(String, Key),
    /// Tell the agent that has it how a stream gets on.
    Flow(u64),
    /// The server has given a submission up.
    Overdue(Key),
    /// Remove an object.
    Remove(String),
    /// Fetch an answer from the object store.
    Fetch(listen::Fetch),
    /// Look whether there is anything left to be done.
    Look,
}

struct State {
    stage: Stage,
    tasks: HashMap<u64, Task>,
    /// The tasks by their places in the stream.
    places: HashMap<u64, u64>,
    agents: HashMap<String, Known>,
    counts: Counts,
    /// How many tasks an agent has begun, and how many workers agents have.
    running: usize,
    fleet: Loads,
    /// What watchers were told last, or are about to be.
    levels: Levels,
    times: Times,
    warming: Vec<oneshot::Sender<Warmth>>,
    /// Why the queue cannot be used at the moment.
    broken: Option<PoolError>,
    stop_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    Open,
    Draining,
    Stopped,
}

/// A task that is not resolved.
struct Task {
    cell: Arc<Cell>,
    terms: Terms,
    is_reserved: bool,
    submitted: Instant,
    submitted_at: Nanos,
    /// Before when this submission was not on its way to the server.
    sent: Instant,
    key: Key,
    retries_left: u32,
    /// Its place in the stream, once the server has confirmed it.
    place: Option<u64>,
    /// Large arguments in the object store.
    object: Option<String>,
    /// With how many connections its answer is being fetched from the object store.
    fetched_with: Option<u64>,
    /// Since it has left the queue.
    taken: Option<Taken>,
    /// What has come of it, if it is a stream.
    reception: Option<Arc<Reception>>,
    /// What it has logged, if it has.
    voices: Option<Arc<Voices>>,
    /// Until its end is shown, if anybody watches.
    shown: Option<TaskTrackerToken>,
}

/// What is known of a task that has left the queue.
struct Taken {
    agent: Option<String>,
    pid: Option<u32>,
    /// When that was told.
    began: Option<Nanos>,
    /// The last sign of life.
    sign: Instant,
}

impl Taken {
    /// By nobody that is known, with the last sign of life at this time, or now.
    fn new(sign: Option<Instant>) -> Taken {
        Taken { agent: None, pid: None, began: None, sign: sign.unwrap_or_else(Instant::now) }
    }
}

/// An agent that is there.
struct Known {
    sign: Instant,
    width: usize,
    workers: Vec<super::message::WorkerNote>,
    /// When that was told.
    told: Instant,
}

impl Caller {
    /// An engine, and its life, to be run on the pool's runtime.
    pub(super) fn new(queue: Queue, shared: &Shared) -> (Caller, impl Future<Output = ()> + Send + 'static) {
        let (errands, todo) = mpsc::unbounded_channel();
        let core = Arc::new(Core {
            queue,
            max_message: shared.settings.max_message,
            capacity: shared.settings.queue_capacity,
            shared: OnceLock::new(),
            is_observed: !shared.watchers.is_empty(),
            errands,
            state: Mutex::new(State {
                stage: Stage::Open,
                tasks: HashMap::new(),
                places: HashMap::new(),
                agents: HashMap::new(),
                counts: Counts::default(),
                running: 0,
                fleet: Loads::default(),
                levels: Levels::default(),
                times: Times::new(),
                warming: Vec::new(),
                broken: None,
                stop_at: None,
            }),
            link: watch::Sender::new(None),
            terminated: shared.terminated.clone(),
        });
        (Caller(core.clone()), life::run(core, todo))
    }

    /// The pool that it is the engine of.
    pub(super) fn belong_to(&self, shared: &Arc<Shared>) {
        // Only told once.
        let _ = self.0.shared.set(Arc::downgrade(shared));
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, errand: Errand) {
        // Without a life everything is resolved already.
        let _ = self.errands.send(errand);
    }

    /// Resolves a task, if it is this submission of it that is open.
    fn finish(&self, key: Key, outcome: Outcome, ran: Option<Nanos>) {
        let task = {
            let mut state = self.lock();
            if state.tasks.get(&key.task).is_none_or(|task| task.key != key) {
                return;
            }
            state.end(key.task, &outcome, ran)
        };
        if let Some(task) = task {
            self.settle(task, outcome, ran);
        }
    }

    /// Resolves a task that has ended, and clears up after it.
    fn settle(&self, mut task: Task, outcome: Outcome, ran: Option<Nanos>) {
        if let Some(end) = Core::end_of(&task, &outcome, ran, false) {
            task.cell.shared.watchers.show(&[end]);
        }
        self.show_levels();
        if let Some(object) = task.object {
            self.send(Errand::Remove(object));
        }
        // Spans that it has left open close before anybody can see that it is over.
        drop(task.voices.take());
        task.cell.resolve(outcome);
        self.send(Errand::Look);
    }

    /// Gives up a task, which may still be in the queue or with an agent, and sees that it is not run for
    /// nothing.
    fn give_up(&self, task: u64, outcome: Outcome) {
        let task = self.lock().end(task, &outcome, None);
        if let Some(task) = task {
            self.take_back(task, outcome);
        }
    }

    /// The same for one that has ended.
    fn take_back(&self, task: Task, outcome: Outcome) {
        if let Some(place) = task.place {
            self.send(Errand::Delete(place));
        }
        if let Some(agent) = task.taken.as_ref().and_then(|taken| taken.agent.clone()) {
            self.send(Errand::Cancel(agent, task.key));
        }
        self.settle(task, outcome, None);
    }

    /// An attempt has failed in a way after which there may be another. Gives the outcome back if there
    /// may not.
    fn retry(&self, key: Key, outcome: Outcome, ran: Option<Nanos>) -> Option<Outcome> {
        let is_node_lost =
            matches!(&outcome, Outcome::Error(error) if matches!(**error, TaskError::NodeLost));
        let may_be_repeated = match &outcome {
            Outcome::Error(error) => {
                matches!(**error, TaskError::WorkerDied(_) | TaskError::TimedOut { .. } | TaskError::NodeLost)
            }
            _ => false,
        };
        let mut guard = self.lock();
        let state = &mut *guard;
        let is_open = state.stage != Stage::Stopped;
        let task = state.tasks.get_mut(&key.task).filter(|task| task.key == key)?;
        if !may_be_repeated || task.retries_left == 0 || !is_open {
            return Some(outcome);
        }
        let end = Core::end_of(task, &outcome, ran, true).map(|end| (task.cell.clone(), end));
        task.retries_left -= 1;
        task.sent = Instant::now();
        task.key.attempt += 1;
        task.key.hop = 0;
        task.fetched_with = None;
        State::untake(&mut state.running, task);
        let voices = task.voices.take();
        // An agent that has heard nothing for long takes the caller for gone, and removes what it has left.
        let object = task.object.take_if(|_| is_node_lost);
        if let Some(place) = task.place.take() {
            state.places.remove(&place);
        }
        state.counts.retried += 1;
        drop(guard);
        // Its spans close with it.
        drop(voices);
        if let Some((cell, end)) = end {
            cell.shared.watchers.show(&[end]);
            self.show_levels();
        }
        if let Some(object) = object {
            self.send(Errand::Remove(object));
        }
        self.send(Errand::Publish(key.task));
        None
    }

    /// The agent that had a task is gone, or nobody knows what became of it.
    fn lost(&self, key: Key) {
        let place =
            self.lock().tasks.get(&key.task).filter(|task| task.key == key).and_then(|task| task.place);
        if let Some(place) = place {
            self.send(Errand::Delete(place));
        }
        if let Some(outcome) = self.retry(key, error(TaskError::NodeLost), None) {
            self.finish(key, outcome, None);
        }
    }

    /// Resolves every task with an error.
    fn fail_all(&self, cause: &TaskError) {
        let outcome = error(cause.clone());
        let tasks: Vec<_> = {
            let mut state = self.lock();
            let ids: Vec<_> = state.tasks.keys().copied().collect();
            ids.into_iter().filter_map(|id| state.end(id, &outcome, None)).collect()
        };
        for task in tasks {
            self.take_back(task, error(cause.clone()));
        }
        self.send(Errand::Look);
    }
}

impl State {
    /// Removes a task, and counts how it ended: both at once, for those who look at the counts.
    fn end(&mut self, id: u64, outcome: &Outcome, ran: Option<Nanos>) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        let began = task.taken.as_ref().and_then(|taken| taken.began);
        let ran = ran.or(began.map(|began| monotonic_now().saturating_sub(began)));
        self.count(outcome, ran.map(|ran| (task.submitted_at, ran)));
        self.running -= usize::from(State::is_running(&task)).min(self.running);
        if let Some(place) = task.place {
            self.places.remove(&place);
        }
        Some(task)
    }

    fn count(&mut self, outcome: &Outcome, times: Option<(Nanos, Nanos)>) {
        let counts = &mut self.counts;
        match Ending::of(outcome) {
            Ending::Succeeded => counts.succeeded += 1,
            Ending::Cancelled => counts.cancelled += 1,
            Ending::TimedOut => counts.timed_out += 1,
            // It was not accepted after all.
            Ending::QueueFull => counts.submitted = counts.submitted.saturating_sub(1),
            _ => counts.failed += 1,
        }
        if let Some((submitted, ran)) = times {
            let taken = monotonic_now().saturating_sub(submitted);
            self.times.add(taken.saturating_sub(ran), ran.min(taken));
        }
    }

    fn is_running(task: &Task) -> bool {
        task.taken.as_ref().is_some_and(|taken| taken.pid.is_some())
    }
}

fn error(error: TaskError) -> Outcome {
    Outcome::Error(Box::new(error))
}

impl Core {
    fn stop(&self) {
        {
            let mut state = self.lock();
            state.stage = Stage::Stopped;
            state.warming.clear();
        }
        self.fail_all(&TaskError::ShutDown);
    }

    /// How long a task may wait, as it is told to agents.
    fn max_wait(&self) -> u64 {
        nanos(self.queue.max_wait)
    }
}

/// The priorities that open tasks have.
impl State {
    fn levels(&self) -> impl Iterator<Item = Priority> {
        super::names::LEVELS
            .into_iter()
            .filter(|level| self.tasks.values().any(|task| task.terms.priority == *level))
    }
}
