//! The state of a pool, and how events reach the scheduler and its actions the world.
//!
//! Every event, on whatever thread it happens, takes the lock, tells the scheduler, notes what is
//! to be done, lets go of the lock, and does it. So a task that is submitted to an idle worker is
//! on its way before `submit` returns, with no hop through another thread or task; and nothing
//! that may run foreign code (a waker) or block runs under the lock.

use super::cell::{Cell, Extra, Outcome};
use super::life;
use super::outlet::Outlet;
use super::scheduler::{
    Action, Answer, Counts, Ledger, Nanos, Scheduler, TaskKey, Terms, Verdict, Violation, WorkerKey,
};
use crate::process::{Killer, Launch, Tail};
use crate::sys::monotonic_now;
use crate::task::{Fault, PoolError, TaskError, TaskRef, WorkerExit};
use crate::wire::{Frame, Page, Reply, Request, Run};
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// How many tasks in a worker's pipeline are worth a write of their own for each. With more, the
/// worker has enough to go on with until its next answers are read, and frames are gathered.
const EAGER_TASKS: u64 = 4;

/// What does not change while the pool lives.
pub(super) struct Settings {
    pub(super) max_workers: usize,
    pub(super) queue_capacity: Option<usize>,
    pub(super) max_message: u64,
    pub(super) task_timeout: Option<Duration>,
    pub(super) memory_limit: Option<u64>,
    pub(super) max_rss: Option<u64>,
    /// The shim of the initializer, and its arguments.
    pub(super) initializer: Option<(u64, Bytes)>,
    pub(super) start_timeout: Duration,
}

/// All that the handles, tasks and threads of a pool share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) runtime: Handle,
    pub(super) launcher: Box<dyn Launch>,
    state: Mutex<State>,
    next_id: AtomicU64,
    /// Room for tasks, if the queue is bounded.
    pub(super) room: Option<Arc<Semaphore>>,
    /// The next alarm has become earlier.
    pub(super) clock: Notify,
    /// Nothing is left to be done but to stop the launcher.
    pub(super) finished: CancellationToken,
    /// Nothing is left of the pool but its handles.
    pub(super) terminated: CancellationToken,
}

struct State {
    scheduler: Scheduler<Arc<Cell>>,
    links: Links,
    warming: Vec<oneshot::Sender<Result<(), PoolError>>>,
    /// When the clock will ring.
    alarm_set: Nanos,
}

/// The pool's end of each worker, by its place in the scheduler.
#[derive(Default)]
struct Links(Vec<Option<Link>>);

enum Link {
    Starting { called_off: CancellationToken },
    Ready(ReadyLink),
}

/// The pool's end of a worker that is ready.
pub(super) struct ReadyLink {
    pub(super) pid: u32,
    pub(super) started: Instant,
    pub(super) outlet: Arc<Outlet>,
    pub(super) page: Option<Page>,
    /// Without a page: the last task that is known to have begun, and when.
    pub(super) began: (u64, Nanos),
    pub(super) killer: Killer,
    pub(super) stdout: Tail,
    pub(super) stderr: Tail,
    pub(super) is_unresponsive: bool,
}

impl Links {
    fn ready(&self, worker: WorkerKey) -> Option<&ReadyLink> {
        match self.0.get(worker)? {
            Some(Link::Ready(link)) => Some(link),
            _ => None,
        }
    }

    fn ready_mut(&mut self, worker: WorkerKey) -> Option<&mut ReadyLink> {
        match self.0.get_mut(worker)? {
            Some(Link::Ready(link)) => Some(link),
            _ => None,
        }
    }

    fn set(&mut self, worker: WorkerKey, link: Option<Link>) {
        if self.0.len() <= worker {
            self.0.resize_with(worker + 1, || None);
        }
        self.0[worker] = link;
    }
}

impl Ledger for Links {
    fn offer(&self, worker: WorkerKey, seq: u64) {
        if let Some(page) = self.ready(worker).and_then(|link| link.page.as_ref()) {
            page.offer(seq);
        }
    }

    fn take_back(&self, worker: WorkerKey, seq: u64) -> bool {
        self.ready(worker).and_then(|link| link.page.as_ref()).is_some_and(|page| page.take_back(seq))
    }

    fn began_at(&self, worker: WorkerKey, seq: u64) -> Option<Nanos> {
        let link = self.ready(worker)?;
        match &link.page {
            Some(page) => page.began_at(seq),
            None => Some(link.began.1).filter(|_| link.began.0 == seq),
        }
    }
}

/// What is to be done once the lock is let go.
#[derive(Default)]
struct Chores {
    resolved: SmallVec<[(Arc<Cell>, Outcome); 4]>,
    flush: SmallVec<[Arc<Outlet>; 4]>,
    close: SmallVec<[Arc<Outlet>; 1]>,
    start: SmallVec<[(WorkerKey, CancellationToken); 1]>,
    warmed_up: Vec<(oneshot::Sender<Result<(), PoolError>>, Result<(), PoolError>)>,
    /// How the worker ended on whose account tasks are resolved.
    died: Option<WorkerExit>,
    has_finished: bool,
    rings_earlier: bool,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        scheduler: super::scheduler::Config,
        runtime: Handle,
        launcher: Box<dyn Launch>,
    ) -> Shared {
        let room = settings.queue_capacity.map(|capacity| {
            let room = capacity.saturating_add(settings.max_workers).min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(room))
        });
        Shared {
            settings,
            runtime,
            launcher,
            state: Mutex::new(State {
                scheduler: Scheduler::new(scheduler),
                links: Links::default(),
                warming: Vec::new(),
                alarm_set: Nanos::MAX,
            }),
            next_id: AtomicU64::new(1),
            room,
            clock: Notify::new(),
            finished: CancellationToken::new(),
            terminated: CancellationToken::new(),
        }
    }

    /// Submits a task; whatever goes wrong shows in its outcome.
    pub(super) fn submit(
        self: &Arc<Self>,
        task: TaskRef,
        body: Result<Bytes, Fault>,
        mut order: Order,
    ) -> Arc<Cell> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (shim, body, extra, refusal) = match self.prepare(&task, body, &mut order) {
            Ok((shim, body, extra)) => (shim, body, extra, None),
            Err(error) => (0, Bytes::new(), None, Some(error)),
        };
        let terms = Terms {
            priority: order.priority,
            timeout: order.timeout.map(nanos),
            retries: order.retries,
            bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        let cell = Arc::new(Cell::new(self.clone(), id, task.label, shim, body, extra));
        match refusal {
            Some(error) => cell.resolve(error),
            None => self.with(|state, chores, now| state.submit(&cell, terms, now, chores)),
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
        let has_extra = order.name.is_some() || timeout.is_some() || permit.is_some() || order.items > 0;
        let extra = has_extra.then(|| Box::new(Extra::new(order.name.take(), timeout, permit, order.items)));
        Ok((shim, body, extra))
    }

    pub(super) fn cancel(self: &Arc<Self>, cell: &Cell) {
        if !cell.is_resolved() {
            self.with(|state, _, now| state.scheduler.cancel(cell.key(), now, &state.links));
        }
    }

    /// What the task's worker has of it: its pid, and whether it has begun it.
    pub(super) fn whereabouts(&self, cell: &Cell) -> Option<(u32, bool)> {
        let state = self.lock();
        let (worker, seq) = state.scheduler.whereabouts(cell.key())?;
        let link = state.links.ready(worker)?;
        Some((link.pid, state.links.began_at(worker, seq).is_some()))
    }

    pub(super) fn open(self: &Arc<Self>) {
        self.with(|state, _, now| state.scheduler.open(now, &state.links));
    }

    pub(super) fn warm_up(self: &Arc<Self>) -> oneshot::Receiver<Result<(), PoolError>> {
        let (sender, receiver) = oneshot::channel();
        self.with(|state, _, now| {
            state.warming.push(sender);
            state.scheduler.warm_up(now, &state.links);
        });
        receiver
    }

    /// Accepts no more tasks, finishes those accepted until the given time, and ends the pool.
    pub(super) fn drain(self: &Arc<Self>, limit: Option<Duration>) {
        self.close_room();
        self.with(|state, _, now| {
            let stop_at = limit.map_or(Nanos::MAX, |limit| now.saturating_add(nanos(limit)));
            state.scheduler.drain(stop_at, now, &state.links);
        });
    }

    pub(super) fn stop(self: &Arc<Self>) {
        self.close_room();
        self.with(|state, _, now| state.scheduler.stop(now, &state.links));
    }

    fn close_room(&self) {
        if let Some(room) = &self.room {
            room.close();
        }
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.lock().scheduler.is_shut_down()
    }

    pub(super) fn counts(&self) -> Counts {
        let state = self.lock();
        state.scheduler.counts(&state.links)
    }

    /// Looks at each worker that there is.
    pub(super) fn workers(&self) -> Vec<super::stats::WorkerInfo> {
        let state = self.lock();
        let keys = 0..state.links.0.len();
        keys.filter_map(|worker| {
            let (phase, tasks_done, first) = state.scheduler.worker(worker)?;
            let link = state.links.ready(worker);
            let current =
                first.and_then(|(seq, task)| task.filter(|_| state.links.began_at(worker, seq).is_some()));
            Some(super::stats::WorkerInfo::new(phase, tasks_done, current.map(|task| task.id), link))
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
        self.finished.cancel();
        self.terminated.cancel();
    }
}

/// What the life of a worker tells.
impl Shared {
    pub(super) fn worker_ready(self: &Arc<Self>, worker: WorkerKey, link: ReadyLink) {
        self.with(|state, _, now| {
            let has_page = link.page.is_some();
            state.links.set(worker, Some(Link::Ready(link)));
            state.scheduler.worker_ready(worker, has_page, now, &state.links);
        });
    }

    pub(super) fn start_failed(self: &Arc<Self>, worker: WorkerKey, cause: PoolError) {
        self.with(|state, _, now| {
            state.links.set(worker, None);
            state.scheduler.start_failed(worker, cause, now, &state.links);
        });
    }

    /// Takes in what a worker has sent; the frames are used up.
    pub(super) fn answered(
        self: &Arc<Self>,
        worker: WorkerKey,
        frames: &mut Vec<Frame<Reply>>,
    ) -> Result<(), Violation> {
        self.with(|state, chores, now| {
            let taken_in = frames.drain(..).try_for_each(|frame| state.take_in(worker, frame, now, chores));
            state.scheduler.answers_end(worker, now, &state.links);
            // What was gathered while the worker had enough to go on with.
            chores.flush.extend(state.links.ready(worker).map(|link| link.outlet.clone()));
            taken_in
        })
    }

    /// A worker that was ready has ended.
    pub(super) fn worker_gone(self: &Arc<Self>, worker: WorkerKey, exit: &WorkerExit) {
        self.with(|state, chores, now| {
            chores.died = Some(exit.clone());
            state.scheduler.worker_gone(worker, now, &state.links);
            state.links.set(worker, None);
        });
    }

    pub(super) fn is_unresponsive(&self, worker: WorkerKey) -> bool {
        self.lock().links.ready(worker).is_some_and(|link| link.is_unresponsive)
    }

    pub(super) fn last_words(&self, worker: WorkerKey) -> u64 {
        let state = self.lock();
        let page = state.links.ready(worker).and_then(|link| link.page.as_ref());
        page.map_or(0, |page| page.last_words().load(Ordering::Acquire))
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
            state.carry_out(&mut chores);
            result
        };
        self.run(chores);
        result
    }

    fn run(self: &Arc<Self>, chores: Chores) {
        for outlet in chores.flush {
            outlet.flush();
        }
        for outlet in chores.close {
            outlet.close();
        }
        for (worker, called_off) in chores.start {
            self.runtime.spawn(life::live(self.clone(), worker, called_off));
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

impl State {
    fn submit(&mut self, cell: &Arc<Cell>, terms: Terms, now: Nanos, chores: &mut Chores) {
        match self.scheduler.submit(cell.clone(), cell.id, terms, now, &self.links) {
            Ok(key) => cell.place.store(key.place, Ordering::Relaxed),
            Err((cell, verdict)) => chores.resolved.push((cell, outcome_of(verdict, None))),
        }
    }

    /// Takes in one frame from a worker that is ready.
    fn take_in(
        &mut self,
        worker: WorkerKey,
        Frame { head, body }: Frame<Reply>,
        now: Nanos,
        chores: &mut Chores,
    ) -> Result<(), Violation> {
        let (seq, answer, outcome) = match head {
            Reply::Value { seq, over_rss_mark: over_rss } => {
                let answer = Answer { is_value: true, over_rss, ..Answer::default() };
                (seq, answer, Some(Outcome::Value(body)))
            }
            Reply::Fault { seq, over_rss_mark: over_rss, dying, fault } => {
                let answer = Answer { over_rss, dying, ..Answer::default() };
                (seq, answer, Some(Outcome::Fault(Box::new(fault))))
            }
            Reply::Skipped { seq } => (seq, Answer { skipped: true, ..Answer::default() }, None),
            Reply::Part { seq } => return self.take_in_part(worker, seq, body),
            Reply::Began { seq } => {
                let link = self.links.ready_mut(worker).ok_or(Violation)?;
                link.began = (seq, now);
                return Ok(());
            }
            Reply::Hello { .. } | Reply::Ready | Reply::NotReady { .. } => return Err(Violation),
        };
        let job = self.scheduler.answered(worker, seq, answer, now)?;
        if let (Some(cell), Some(outcome)) = (job, outcome) {
            chores.resolved.push((cell, outcome));
        }
        Ok(())
    }

    fn take_in_part(&mut self, worker: WorkerKey, seq: u64, body: Bytes) -> Result<(), Violation> {
        // Parts of a task that is resolved already are of no use to anybody.
        let cell = self.scheduler.task_at(worker, seq).and_then(|task| self.scheduler.job(task));
        if cell.is_none_or(|cell| cell.add_part(body)) { Ok(()) } else { Err(Violation) }
    }

    /// Does what can be done under the lock, and notes the rest.
    fn carry_out(&mut self, chores: &mut Chores) {
        let mut actions = std::mem::take(&mut self.scheduler.actions);
        for action in actions.drain(..) {
            self.act(action, chores);
        }
        // Its memory is kept.
        self.scheduler.actions = actions;
        if self.scheduler.next_alarm() < self.alarm_set {
            self.alarm_set = self.scheduler.next_alarm();
            chores.rings_earlier = true;
        }
    }

    fn act(&mut self, action: Action<Arc<Cell>>, chores: &mut Chores) {
        match action {
            Action::Send { worker, seq, task } => self.send(worker, seq, task, chores),
            Action::Resolve(cell, verdict) => {
                let outcome = outcome_of(verdict, chores.died.as_ref());
                chores.resolved.push((cell, outcome));
            }
            Action::Start(worker) => {
                let called_off = CancellationToken::new();
                self.links.set(worker, Some(Link::Starting { called_off: called_off.clone() }));
                chores.start.push((worker, called_off));
            }
            Action::Cancel { worker, seq } => {
                if let Some(link) = self.links.ready(worker) {
                    link.outlet.push(&Request::Cancel { seq }, Bytes::new());
                    chores.flush.push(link.outlet.clone());
                }
            }
            Action::Close(worker) => {
                chores.close.extend(self.links.ready(worker).map(|link| link.outlet.clone()))
            }
            Action::Kill { worker, unresponsive } => match self.links.0.get_mut(worker) {
                Some(Some(Link::Ready(link))) => {
                    link.is_unresponsive = unresponsive;
                    link.killer.kill();
                }
                Some(Some(Link::Starting { called_off })) => called_off.cancel(),
                _ => {}
            },
            Action::WarmedUp(result) => {
                let waiting = self.warming.drain(..);
                chores.warmed_up.extend(waiting.map(|sender| (sender, result.clone())));
            }
            Action::Terminated => chores.has_finished = true,
        }
    }

    fn send(&self, worker: WorkerKey, seq: u64, task: TaskKey, chores: &mut Chores) {
        let (Some(cell), Some(link)) = (self.scheduler.job(task), self.links.ready(worker)) else { return };
        let extra = cell.extra.as_ref();
        let run = Run {
            seq,
            id: cell.id,
            shim: cell.shim,
            attempt: self.scheduler.attempt(task),
            timeout: extra.and_then(|extra| extra.timeout),
            name: extra.and_then(|extra| extra.name.clone()),
        };
        let is_much = link.outlet.push(&Request::Run(run), cell.body());
        let in_pipeline = self.scheduler.in_pipeline(worker);
        if is_much || in_pipeline <= EAGER_TASKS {
            let is_noted = chores.flush.last().is_some_and(|outlet| Arc::ptr_eq(outlet, &link.outlet));
            if !is_noted {
                chores.flush.push(link.outlet.clone());
            }
        }
    }
}

/// How a task is to be run.
#[derive(Default)]
pub(super) struct Order {
    pub(super) timeout: Option<Duration>,
    pub(super) retries: u32,
    pub(super) priority: crate::task::Priority,
    pub(super) name: Option<String>,
    /// How many items it has, if it is a chunk, whose items' results come one by one.
    pub(super) items: usize,
    /// A place in the bounded queue that was reserved.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

fn outcome_of(verdict: Verdict, died: Option<&WorkerExit>) -> Outcome {
    let error = match (verdict, died) {
        (Verdict::Cancelled, _) => TaskError::Cancelled,
        (Verdict::TimedOut(limit), _) => TaskError::TimedOut { limit: Duration::from_nanos(limit) },
        (Verdict::Died, Some(exit)) => TaskError::WorkerDied(exit.clone()),
        (Verdict::Broken(cause), _) => TaskError::PoolBroken(cause),
        (Verdict::ShutDown, _) | (Verdict::Died, None) => TaskError::ShutDown,
    };
    Outcome::Error(Box::new(error))
}

/// A duration as the scheduler counts it.
pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
