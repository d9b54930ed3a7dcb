//! The state of a pool, and how events reach the scheduler and its actions the world.
//!
//! Every event, on whatever thread it happens, takes the lock, tells the scheduler, notes what is
//! to be done, lets go of the lock, and does it. So a task that is submitted to an idle worker is
//! on its way before `submit` returns, with no hop through another thread or task; and nothing
//! that may run foreign code (a waker) or block runs under the lock.

use super::cell::{Cell, Extra, Outcome};
use super::engine::Remote;
use super::inflow::{Grant, Inflow};
use super::life;
use super::links::{Link, ReadyLink};
use super::observe::{Cause, Ending, Event, Observe};
use super::order::Order;
use super::scheduler::{Config, Counts, Ledger, Nanos, Terms, Verdict, Violation, WorkerKey};
use super::state::{Chores, State, Warmth};
use super::stats::{PoolStats, WorkerInfo};
use super::times::Distribution;
use super::voice::Forwarding;
use super::watchers::Watchers;
use crate::process::{Launch, Limits};
use crate::sys::monotonic_now;
use crate::task::{Fault, PoolError, TaskError, TaskRef, TimeoutReport, TraceContext, WorkerExit};
use crate::wire::Batch;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What does not change while the pool lives.
pub(super) struct Settings {
    pub(super) max_workers: usize,
    pub(super) queue_capacity: Option<usize>,
    pub(super) max_message: u64,
    pub(super) task_timeout: Option<Duration>,
    pub(super) limits: Limits,
    /// How long a worker looks out for its next task before it sleeps.
    pub(super) look_out: Duration,
    /// The shim of the initializer, and its arguments.
    pub(super) initializer: Option<(u64, Bytes)>,
    pub(super) start_timeout: Duration,
    /// Whether to find out where a task is when its time runs out.
    pub(super) timeout_reports: bool,
    /// For how long a stream's consumer may take nothing while the pool shuts down.
    pub(super) consumer_patience: Duration,
    /// Where to tasks' spans, events and log records go.
    pub(super) forwarding: Forwarding,
    /// Gives tasks their place in a distributed trace.
    pub(super) trace_context: Option<fn() -> Option<TraceContext>>,
}

/// All that the handles, tasks and threads of a pool share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) runtime: Handle,
    pub(super) launcher: Box<dyn Launch>,
    pub(super) watchers: Watchers,
    /// What runs the tasks in place of workers of this pool.
    pub(super) engine: Option<Remote>,
    state: Mutex<State>,
    next_id: AtomicU64,
    /// Room for tasks, if the queue is bounded.
    pub(super) room: Option<Arc<Semaphore>>,
    /// The next alarm has become earlier.
    pub(super) clock: Notify,
    /// The tasks that pass on what workers write.
    pub(super) outputs: TaskTracker,
    /// Nothing is left to be done but to stop the launcher.
    pub(super) finished: CancellationToken,
    /// Nothing is left of the pool but its handles.
    pub(super) terminated: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        scheduler: Config,
        runtime: Handle,
        launcher: Box<dyn Launch>,
        observers: Vec<Box<dyn Observe>>,
    ) -> Shared {
        let room = settings.queue_capacity.map(|capacity| {
            let room = capacity.saturating_add(settings.max_workers).min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(room))
        });
        let watchers = Watchers::new(observers);
        Shared {
            settings,
            runtime,
            launcher,
            state: Mutex::new(State::new(scheduler, !watchers.is_empty())),
            watchers,
            engine: None,
            next_id: AtomicU64::new(1),
            room,
            clock: Notify::new(),
            outputs: TaskTracker::new(),
            finished: CancellationToken::new(),
            terminated: CancellationToken::new(),
        }
    }

    /// A number for a task.
    pub(super) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Submits a task; whatever goes wrong shows in its outcome.
    pub(super) fn submit(
        self: &Arc<Self>,
        task: TaskRef,
        body: Result<Bytes, Fault>,
        mut order: Order,
    ) -> Arc<Cell> {
        let id = order.id.unwrap_or_else(|| self.new_id());
        let talker = order.talker.take();
        let (shim, body, extra, refusal) = match self.prepare(&task, body, &mut order) {
            Ok((shim, body, extra)) => (shim, body, extra, None),
            Err(error) => {
                let named = |name| Box::new(Extra::new(Some(name), None, None, None, 0, None));
                (0, Bytes::new(), order.name.take().map(named), Some(error))
            }
        };
        let terms = Terms {
            priority: order.priority,
            timeout: order.timeout.map(nanos),
            retries: order.retries,
            bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
            items: u32::try_from(order.items).unwrap_or(u32::MAX),
        };
        let cell =
            Arc::new(Cell::new(self.clone(), id, task.label, shim, body, order.origin.audience, extra));
        talker.into_iter().for_each(|talker| cell.set_talker(talker));
        match refusal {
            Some(error) => {
                let ending = Ending::of(&error);
                self.watchers.show(&[Event::Refused { task: cell.clone(), ending }]);
                cell.resolve(error);
            }
            None => match &self.engine {
                Some(engine) => engine.submit(&cell, terms, order.is_reserved),
                None => self.with(|state, chores, now| state.submit(&cell, terms, now, chores)),
            },
        }
        cell
    }

    #[allow(clippy::type_complexity)]
    fn prepare(
        &self,
        task: &TaskRef,
        body: Result<Bytes, Fault>,
        order: &mut Order,
    ) -> Result<(u64, Bytes, Option<Box<Extra>>), Outcome> {
        let error = |error| Outcome::Error(Box::new(error));
        let body = body.map_err(|fault| Outcome::Fault(Box::new(fault)))?;
        let shim =
            task.offset().ok_or_else(|| error(TaskError::NotInMainImage { task: task.label.to_string() }))?;
        if let Some(limit) = order.timeout.filter(Duration::is_zero) {
            return Err(error(TaskError::TimedOut { limit }));
        }
        let permit = match (&self.room, order.permit.take()) {
            (_, Some(permit)) => Some(permit),
            (None, None) => None,
            (Some(room), None) => match room.clone().try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(tokio::sync::TryAcquireError::Closed) => return Err(error(TaskError::ShutDown)),
                Err(tokio::sync::TryAcquireError::NoPermits) => {
                    let capacity = self.settings.queue_capacity.unwrap_or_default();
                    return Err(error(TaskError::QueueFull { capacity }));
                }
            },
        };
        let timeout = order.timeout.map(nanos);
        let inflow = order.window.map(|window| Inflow::new(window, self.settings.max_message));
        let (name, trace) = (order.name.take(), order.origin.trace.take());
        let has_extra = name.is_some()
            || timeout.is_some()
            || permit.is_some()
            || trace.is_some()
            || order.items > 0
            || inflow.is_some()
            || order.alias.is_some();
        let extra = has_extra.then(|| {
            Box::new(Extra::new(name, timeout, trace, permit, order.items, inflow).with_alias(order.alias))
        });
        Ok((shim, body, extra))
    }

    pub(super) fn cancel(self: &Arc<Self>, cell: &Cell) {
        if let Some(engine) = &self.engine {
            return engine.cancel(cell);
        }
        if !cell.is_resolved() {
            self.with(|state, _, now| {
                state.scheduler.cancel(cell.key(), Verdict::Cancelled, now, &state.links)
            });
        }
    }

    /// Ends one task as a shutdown ends all, but with time for its worker to notice.
    pub(super) fn shut_down_task(self: &Arc<Self>, cell: &Cell) {
        if let Some(engine) = &self.engine {
            return engine.shut_down_task(cell);
        }
        self.with(|state, _, now| state.scheduler.cancel(cell.key(), Verdict::ShutDown, now, &state.links));
    }

    /// Lets a stream's worker send so much more.
    pub(super) fn grant(self: &Arc<Self>, cell: &Cell, grant: Grant) {
        if let Some(engine) = &self.engine {
            return engine.grant(cell, grant);
        }
        self.with(|state, chores, _| state.grant(cell.key(), grant, chores));
    }

    /// The streams that are not resolved.
    pub(super) fn streams(&self) -> Vec<Arc<Cell>> {
        if let Some(engine) = &self.engine {
            return engine.streams();
        }
        let state = self.lock();
        state.scheduler.jobs().filter(|cell| cell.inflow().is_some()).cloned().collect()
    }

    /// What the task's worker has of it: its pid, and whether it has begun it.
    pub(super) fn whereabouts(&self, cell: &Cell) -> Option<(u32, bool)> {
        if let Some(engine) = &self.engine {
            return engine.whereabouts(cell);
        }
        let state = self.lock();
        let (worker, seq) = state.scheduler.whereabouts(cell.key())?;
        let link = state.links.ready(worker)?;
        Some((link.pid, state.links.began_at(worker, seq).is_some()))
    }

    pub(super) fn open(self: &Arc<Self>) {
        self.with(|state, _, now| state.scheduler.open(now, &state.links));
    }

    pub(super) fn warm_up(self: &Arc<Self>) -> oneshot::Receiver<Warmth> {
        let (sender, receiver) = oneshot::channel();
        if let Some(engine) = &self.engine {
            engine.warm_up(sender);
            return receiver;
        }
        self.with(|state, _, now| {
            state.warming.push(sender);
            state.scheduler.warm_up(now, &state.links);
        });
        receiver
    }

    /// Accepts no more tasks, finishes those accepted until the given time, and ends the pool.
    pub(super) fn drain(self: &Arc<Self>, limit: Option<Duration>) {
        self.close_room();
        if let Some(engine) = &self.engine {
            return engine.drain(limit);
        }
        self.with(|state, _, now| {
            let stop_at = limit.map_or(Nanos::MAX, |limit| now.saturating_add(nanos(limit)));
            state.scheduler.drain(stop_at, now, &state.links);
        });
    }

    pub(super) fn stop(self: &Arc<Self>) {
        self.close_room();
        if let Some(engine) = &self.engine {
            return engine.stop();
        }
        self.with(|state, _, now| state.scheduler.stop(now, &state.links));
    }

    fn close_room(&self) {
        if let Some(room) = &self.room {
            room.close();
        }
    }

    pub(super) fn is_shut_down(&self) -> bool {
        match &self.engine {
            Some(engine) => engine.is_shut_down(),
            None => self.lock().scheduler.is_shut_down(),
        }
    }

    pub(super) fn stats(&self) -> PoolStats {
        if let Some(engine) = &self.engine {
            return engine.stats();
        }
        let (mut counts, queue, run) = {
            let state = self.lock();
            let times = &state.times;
            (state.scheduler.counts(&state.links), times.queue.clone(), times.run.clone())
        };
        if self.terminated.is_cancelled() {
            // Without its runtime the pool has not seen their end.
            counts = Counts { workers: 0, idle: 0, starting: 0, ..counts };
        }
        PoolStats::new(counts, Distribution::new(queue), Distribution::new(run))
    }

    /// Looks at each worker that there is.
    pub(super) fn workers(&self) -> Vec<WorkerInfo> {
        if self.terminated.is_cancelled() {
            return Vec::new();
        }
        if let Some(engine) = &self.engine {
            return engine.workers();
        }
        let state = self.lock();
        let keys = 0..state.links.0.len();
        keys.filter_map(|worker| {
            let view = state.scheduler.worker(worker)?;
            let has_begun = view.first.is_some_and(|seq| state.links.began_at(worker, seq).is_some());
            Some(WorkerInfo::new(&view, has_begun, state.links.ready(worker)))
        })
        .collect()
    }

    /// Sees to what time has made due; when to be called again, as nanoseconds from now.
    pub(super) fn tick(self: &Arc<Self>) -> Option<Duration> {
        self.with(|state, _, now| {
            state.alarm_set = Nanos::MAX;
            state.scheduler.tick(now, &state.links);
            state.alarm_set = state.scheduler.next_alarm();
            let wait = state.alarm_set.saturating_sub(now);
            (state.alarm_set != Nanos::MAX).then(|| Duration::from_nanos(wait))
        })
    }

    /// The runtime has been dropped: nothing will be done any more.
    pub(super) fn runtime_lost(self: &Arc<Self>) {
        self.close_room();
        self.with(|state, chores, now| {
            state.scheduler.stop(now, &state.links);
            for link in state.links.0.iter().flatten() {
                if let Link::Ready(link) = link {
                    link.killer.kill();
                }
            }
            // Dropped, and so answered.
            state.warming.clear();
            chores.start.clear();
        });
        self.launcher.abandon();
        self.watchers.abandon();
        self.finished.cancel();
        self.terminated.cancel();
    }
}

/// What the life of a worker tells.
impl Shared {
    pub(super) fn worker_ready(self: &Arc<Self>, worker: WorkerKey, link: ReadyLink) {
        self.with(|state, chores, now| {
            let (pid, started, has_page) = (link.pid, link.started, link.page.is_some());
            state.links.set(worker, Some(Link::Ready(link)));
            let wanted = state.scheduler.start_of(worker).unwrap_or(now);
            let is_restart = state.scheduler.worker_ready(worker, has_page, now, &state.links);
            if state.is_observed {
                chores.events.push(Event::WorkerReady { pid, started, wanted, is_restart, at: now });
            }
        });
    }

    pub(super) fn start_failed(self: &Arc<Self>, worker: WorkerKey, cause: PoolError) {
        self.with(|state, chores, now| {
            if state.is_observed {
                chores.events.push(Event::StartFailed { cause: cause.clone(), at: now });
            }
            state.links.set(worker, None);
            state.scheduler.start_failed(worker, cause, now, &state.links);
        });
    }

    /// Takes in what a worker has said.
    pub(super) fn answered(self: &Arc<Self>, worker: WorkerKey, batch: &mut Batch) -> Result<(), Violation> {
        self.with(|state, chores, now| {
            let taken_in =
                batch.drain().try_for_each(|(reply, body)| state.take_in(worker, reply, body, now, chores));
            state.scheduler.answers_end(worker, now, &state.links);
            // What was gathered while the worker had enough to go on with.
            let last = state.scheduler.last_in_pipeline(worker);
            if let Some(link) = state.links.ready_mut(worker)
                && link.written < last
            {
                link.written = last;
                chores.flush.push(link.outlet.clone());
            }
            taken_in.and(state.links.is_possible(worker))
        })
    }

    /// A worker that was ready has ended.
    pub(super) fn worker_gone(
        self: &Arc<Self>,
        worker: WorkerKey,
        exit: &WorkerExit,
        stuck: Option<TimeoutReport>,
    ) {
        self.with(|state, chores, now| {
            chores.stuck = stuck;
            chores.died = Some(exit.clone());
            let departure = state.scheduler.worker_gone(worker, exit, now, &state.links);
            chores.said.extend(state.links.ready(worker).and_then(|link| link.ear.end()));
            // While the page is there that says when its tasks began.
            state.carry_out(now, chores);
            if state.is_observed {
                let (has_died, cause) = (departure.is_death(), Cause::of(departure, exit));
                chores.events.push(Event::WorkerGone { exit: exit.clone(), has_died, cause, at: now });
            }
            state.links.set(worker, None);
        });
    }

    pub(super) fn is_unresponsive(&self, worker: WorkerKey) -> bool {
        self.lock().links.ready(worker).is_some_and(|link| link.is_unresponsive)
    }
}

impl Shared {
    /// Runs an event under the lock, and then does what comes of it.
    fn with<R>(self: &Arc<Self>, event: impl FnOnce(&mut State, &mut Chores, Nanos) -> R) -> R {
        let now = monotonic_now();
        let mut chores = Chores::default();
        let result = {
            let mut state = self.lock();
            let result = event(&mut state, &mut chores, now);
            state.carry_out(now, &mut chores);
            if state.is_observed {
                chores.levels = state.changed_levels(now);
                chores.shown = Some(self.watchers.token());
            }
            result
        };
        self.run(chores);
        result
    }

    fn run(self: &Arc<Self>, mut chores: Chores) {
        self.watchers.show(&chores.events);
        if let Some(levels) = &chores.levels {
            self.watchers.measure(levels);
        }
        drop(chores.shown.take());
        for said in chores.said {
            said.tell();
        }
        for copy in chores.copy {
            copy.page.write_request(copy.at, &copy.body);
            copy.outlet.release();
        }
        for outlet in chores.flush {
            outlet.flush();
        }
        for outlet in chores.close {
            outlet.close();
        }
        for (worker, called_off) in chores.start {
            self.runtime.spawn(life::live(self.clone(), worker, called_off));
        }
        for inquiry in chores.inquire {
            self.runtime.spawn(inquiry.run());
        }
        for (cell, progress) in chores.told {
            cell.tell(progress);
        }
        for waker in chores.wake {
            waker.wake();
        }
        for (cell, outcome) in chores.resolved {
            cell.resolve(outcome);
        }
        for (sender, result) in chores.warmed_up {
            // Whoever asked may have stopped waiting.
            let _ = sender.send(result);
        }
        if chores.rings_earlier {
            self.clock.notify_one();
        }
        if chores.has_finished {
            self.finished.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration as the scheduler counts it.
pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
