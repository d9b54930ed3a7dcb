//! Which task runs where, and when: a state machine without I/O and without a clock.
//!
//! Events go in as method calls, with the time as an argument; what is to be done comes out as
//! [`Action`]s. The one thing that it asks of the world is the [`Ledger`]: whether a task that
//! was sent has begun, which only the worker and the memory that it shares with the pool know.
//!
//! What it promises, and `tests.rs` holds it to, over random sequences of events:
//! * each accepted task is resolved exactly once;
//! * no task begins twice unless it was to be retried;
//! * no worker is idle beside a waiting task;
//! * with everything resolved and a shutdown asked for, it terminates.

mod alarms;
#[cfg(feature = "internals")]
mod cycle;
mod health;
mod look;
mod queue;
mod slot;
mod terms;
#[cfg(test)]
mod tests;
mod upkeep;

use crate::task::{PoolError, Priority};
#[cfg(feature = "internals")]
pub(crate) use cycle::cycle;
use health::Health;
use queue::{Entry, Queue};
use slab::Slab;
use slot::{Fate, Loss, Phase, Slot};
pub(super) use terms::{
    Action, Answer, Config, Counts, Departure, Kill, Ledger, Loads, Nanos, TaskKey, Terms, Verdict,
    Violation, WorkerKey, WorkerPhase, WorkerView,
};

/// How long a worker that was told to end may take.
const CLOSE_LIMIT: Nanos = 2_000_000_000;

/// How long a worker that says that it is dying may take.
const DYING_LIMIT: Nanos = 10_000_000_000;

/// An alarm that is this late tells that the pool was held up itself.
const HELD_UP: Nanos = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// Finishing what was accepted.
    Draining,
    /// Ending at once.
    Stopping,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queued,
    Sent { worker: u32, seq: u64 },
}

impl Place {
    fn sent_to(self) -> Option<(WorkerKey, u64)> {
        match self {
            Place::Queued => None,
            Place::Sent { worker, seq } => Some((worker as usize, seq)),
        }
    }
}

#[derive(Debug, Default)]
struct Phases {
    starting: usize,
    ready: usize,
    retiring: usize,
}

#[derive(Debug)]
struct Task<T> {
    job: T,
    id: u64,
    place: Place,
    timeout: Nanos,
    attempts: u32,
    retries: u32,
    bytes: u32,
    items: u32,
    /// How often it was taken back from a worker that had nothing before it, and did not begin it;
    moves: u8,
    /// and how often it lost such a worker.
    losses: u8,
    priority: Priority,
}

/// The state machine. `T` is whatever the driver knows a task by.
pub(super) struct Scheduler<T> {
    config: Config,
    stage: Stage,
    tasks: Slab<Task<T>>,
    queue: Queue,
    slots: Slab<Slot>,
    /// How many of them are in each phase.
    phases: Phases,
    /// Idle workers; the one that was busy last is taken first, so that the others may retire.
    idle: Vec<WorkerKey>,
    /// Tasks that were sent and are not answered, over all workers.
    in_flight: usize,
    /// Workers that were sent a task and have not answered, and are not about to die.
    busy: usize,
    /// Tasks that were sent, and run although nobody waits for them any more.
    abandoned: usize,
    /// Workers that have died, or are to, and whose places no other has taken.
    missing: usize,
    health: Health,
    /// How many workers were ever started.
    starts: u64,
    is_warming: bool,
    stop_at: Nanos,
    /// The earliest alarm, unless it has become later since.
    next_alarm: Nanos,
    /// When it last came to light that the pool had been held up: the program was stopped, or did
    /// something else on the thread of a runtime that has one. Its workers may have been stopped
    /// too, and what they have said meanwhile is still unread, so none is to blame for that time.
    held_up: Nanos,
    counts: Counts,
    pub(super) actions: Vec<Action<T>>,
}

impl<T> Scheduler<T> {
    pub(super) fn new(config: Config) -> Scheduler<T> {
        Scheduler {
            config,
            stage: Stage::Running,
            tasks: Slab::new(),
            queue: Queue::default(),
            slots: Slab::new(),
            phases: Phases::default(),
            idle: Vec::new(),
            in_flight: 0,
            busy: 0,
            abandoned: 0,
            missing: 0,
            health: Health::default(),
            starts: 0,
            is_warming: false,
            stop_at: Nanos::MAX,
            next_alarm: Nanos::MAX,
            held_up: 0,
            counts: Counts::default(),
            actions: Vec::new(),
        }
    }

    /// Starts what is to be there from the start.
    pub(super) fn open(&mut self, now: Nanos, ledger: &dyn Ledger) {
        self.settle(now, ledger);
    }

    /// Accepts a task.
    ///
    /// # Errors
    /// Gives the task back with what has become of it.
    pub(super) fn submit(
        &mut self,
        job: T,
        id: u64,
        terms: Terms,
        now: Nanos,
        ledger: &dyn Ledger,
    ) -> Result<TaskKey, (T, Verdict)> {
        if self.stage != Stage::Running {
            return Err((job, Verdict::ShutDown));
        }
        if let Some(cause) = self.health.broken(now)
            && self.phases.ready == 0
        {
            return Err((job, Verdict::Broken(cause.clone())));
        }
        self.counts.submitted += 1;
        let place = self.tasks.insert(Task {
            job,
            id,
            place: Place::Queued,
            timeout: terms.timeout.unwrap_or(Nanos::MAX),
            attempts: 0,
            retries: terms.retries,
            bytes: terms.bytes,
            items: terms.items,
            moves: 0,
            losses: 0,
            priority: terms.priority,
        }) as u32;
        // While others wait there is no worker with room, or they would have it.
        let others_wait = !self.queue.is_empty();
        self.queue.push_back(terms.priority, Entry { key: place, id });
        if others_wait {
            self.start_missing(now);
        } else {
            self.settle(now, ledger);
        }
        Ok(TaskKey { place, id })
    }

    /// The task, if it is not resolved yet.
    pub(super) fn job(&self, task: TaskKey) -> Option<&T> {
        self.task(task).map(|task| &task.job)
    }

    /// The tasks that are not resolved yet.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &T> {
        self.tasks.iter().map(|(_, task)| &task.job)
    }

    /// Which attempt at the task is the current one, from 1.
    pub(super) fn attempt(&self, task: TaskKey) -> u32 {
        self.task(task).map_or(0, |task| task.attempts)
    }

    /// The number of the first task that a worker was sent and has not answered.
    pub(super) fn first_in_pipeline(&self, worker: WorkerKey) -> u64 {
        self.slots.get(worker).and_then(|slot| slot.sent.front()).map_or(u64::MAX, |sent| sent.seq)
    }

    /// The number of the last task that a worker was sent.
    pub(super) fn last_in_pipeline(&self, worker: WorkerKey) -> u64 {
        self.slots.get(worker).map_or(0, |slot| slot.next_seq - 1)
    }

    /// The worker that the task was sent to, and under which number.
    pub(super) fn whereabouts(&self, task: TaskKey) -> Option<(WorkerKey, u64)> {
        self.task(task)?.place.sent_to()
    }

    /// The task that a worker was sent under this number, while it is open.
    pub(super) fn task_at(&self, worker: WorkerKey, seq: u64) -> Option<TaskKey> {
        let slot = self.slots.get(worker)?;
        let first = slot.sent.front()?.seq;
        let sent = slot.sent.get(usize::try_from(seq.checked_sub(first)?).ok()?)?;
        let is_open = matches!(sent.fate, Fate::Open | Fate::TimedOut);
        let place = is_open.then_some(sent.task)?;
        Some(TaskKey { place, id: self.tasks.get(place as usize)?.id })
    }

    /// Cancels a task and resolves it with this verdict, unless it is resolved already.
    pub(super) fn cancel(&mut self, task: TaskKey, verdict: Verdict, now: Nanos, ledger: &dyn Ledger) {
        let Some(place) = self.task(task).map(|task| task.place) else { return };
        match place {
            Place::Queued => self.resolve_queued(task.place, verdict),
            Place::Sent { worker, seq } => {
                let worker = worker as usize;
                let taken_back = ledger.take_back(worker, seq);
                let fate = if taken_back { Fate::TakenBack } else { Fate::Abandoned };
                self.resolve(task.place, verdict);
                self.set_fate(worker, seq, fate);
                if !taken_back {
                    self.actions.push(Action::Cancel { worker, seq });
                    let slot = &mut self.slots[worker];
                    let is_first = slot.sent.front().is_some_and(|head| head.seq == seq);
                    if let Some(sent) = slot.get_mut(seq) {
                        sent.is_recalled = true;
                    }
                    // Without a page it is not known whether it has begun. If it is not the first, its
                    // worker may be at another task, and must not be killed before it comes to this one.
                    if slot.has_page || is_first {
                        self.end_cancelled(worker, seq, now, ledger);
                    }
                }
            }
        }
        self.settle(now, ledger);
    }

    /// A worker is ready for tasks. Tells whether it takes the place of one that has died.
    pub(super) fn worker_ready(
        &mut self,
        worker: WorkerKey,
        has_page: bool,
        now: Nanos,
        ledger: &dyn Ledger,
    ) -> bool {
        if self.slots[worker].phase != Phase::Starting {
            return false;
        }
        self.set_phase(worker, Phase::Ready);
        self.slots[worker].has_page = has_page;
        self.counts.workers_started += 1;
        let is_restart = self.missing > 0;
        self.missing -= usize::from(is_restart);
        self.rest_or_retire(worker, now);
        self.settle(now, ledger);
        is_restart
    }

    /// A worker could not be started.
    pub(super) fn start_failed(
        &mut self,
        worker: WorkerKey,
        cause: PoolError,
        now: Nanos,
        ledger: &dyn Ledger,
    ) {
        let slot = self.remove(worker);
        if self.stage != Stage::Stopping {
            self.health.failed(cause, slot.started, now);
        }
        if self.phases.ready == 0
            && let Some(cause) = self.health.broken(now).cloned()
        {
            self.fail_queue(&cause);
        }
        self.settle(now, ledger);
    }

    /// A worker has answered its first task; to be followed by
    /// [`answers_end`](Self::answers_end). Gives back the task that it was, if that is open, and which
    /// attempt.
    ///
    /// # Errors
    /// [`Violation`] if that is not what it had to answer.
    pub(super) fn answered(
        &mut self,
        worker: WorkerKey,
        seq: u64,
        answer: Answer,
        now: Nanos,
    ) -> Result<Option<(T, u32)>, Violation> {
        // Who lives on all the same is not to have company without end.
        let dying_limit =
            if answer.dying && self.dying() >= self.config.max_workers { 0 } else { DYING_LIMIT };
        let slot = self.slots.get_mut(worker).ok_or(Violation)?;
        if answer.skipped && !slot.has_page {
            return self.skipped(worker, seq, now).map(|()| None);
        }
        let head = slot.sent.front().ok_or(Violation)?;
        if head.seq != seq || answer.skipped != (head.fate == Fate::TakenBack) {
            return Err(Violation);
        }
        let was_busy = slot.is_busy();
        let sent = slot.pop(now).ok_or(Violation)?;
        self.in_flight -= 1;
        self.busy -= usize::from(was_busy && !slot.is_busy());
        self.abandoned -= usize::from(sent.fate == Fate::Abandoned);
        if answer.skipped {
            slot.tasks_left = slot.tasks_left.saturating_add(1);
            return Ok(None);
        }
        slot.answers += 1;
        slot.ran = slot.ran.saturating_add(answer.ran);
        slot.tasks_done += 1;
        slot.is_worn |= answer.is_worn;
        if answer.dying && slot.phase != Phase::Dying {
            slot.kill_at = now.saturating_add(dying_limit);
            self.set_phase(worker, Phase::Dying);
        }
        self.health.worked();
        let is_open = matches!(sent.fate, Fate::Open | Fate::TimedOut);
        Ok(is_open.then(|| {
            self.counts.succeeded += u64::from(answer.is_value);
            self.counts.failed += u64::from(!answer.is_value);
            let task = self.tasks.remove(sent.task as usize);
            (task.job, task.attempts)
        }))
    }

    /// These were all the answers that a worker had sent.
    pub(super) fn answers_end(&mut self, worker: WorkerKey, now: Nanos, ledger: &dyn Ledger) {
        let Some(slot) = self.slots.get_mut(worker) else { return };
        slot.measure(now);
        if let Some(head) = slot.sent.front().filter(|head| head.fate == Fate::Abandoned).copied()
            && !slot.has_page
            && slot.phase != Phase::Dying
            && slot.kill_at == Nanos::MAX
        {
            // It was cancelled when it was not known whether it had begun; now it is at it.
            self.end_cancelled(worker, head.seq, now, ledger);
        }
        let slot = &mut self.slots[worker];
        match slot.phase {
            Phase::Dying => self.take_back_all(worker, Loss::Foretold, ledger),
            Phase::Ready if slot.is_worn => self.recycle_in_turn(worker, now),
            _ => {}
        }
        self.rest_or_retire(worker, now);
        self.settle(now, ledger);
    }

    /// A worker that was ready has ended.
    ///
    /// Its tasks that had begun are resolved as [`Verdict::Died`] unless they are to be retried;
    /// the others go back into the queue. Tells on what account it is gone.
    pub(super) fn worker_gone(
        &mut self,
        worker: WorkerKey,
        exit: impl std::fmt::Display,
        now: Nanos,
        ledger: &dyn Ledger,
    ) -> Departure {
        self.take_back_all(worker, Loss::Death, ledger);
        let phase = self.slots[worker].phase;
        let slot = self.remove(worker);
        self.in_flight -= slot.sent.iter().filter(|sent| sent.fate != Fate::Skipped).count();
        let mut had_begun = false;
        for sent in &slot.sent {
            match sent.fate {
                Fate::TakenBack | Fate::Skipped => {}
                Fate::Abandoned => {
                    had_begun = true;
                    self.abandoned -= 1;
                }
                Fate::Open | Fate::TimedOut => {
                    had_begun = true;
                    self.retry_or_resolve(sent.task, sent.fate);
                }
            }
        }
        let departure = match phase {
            Phase::Closing | Phase::Dying => slot.departure,
            Phase::Starting | Phase::Ready | Phase::Retiring => Departure::Died,
        };
        self.counts.workers_died += u64::from(departure.is_death());
        if !had_begun && !matches!(phase, Phase::Closing | Phase::Dying) {
            // Nobody is to blame but the worker itself: do not start them over and over.
            let reason = format!("with nothing to do, {exit}");
            self.health.failed(PoolError::NotReady { reason }, slot.started, now);
        }
        self.settle(now, ledger);
        departure
    }

    /// Starts as many workers as there may be.
    pub(super) fn warm_up(&mut self, now: Nanos, ledger: &dyn Ledger) {
        self.is_warming = true;
        self.settle(now, ledger);
    }

    /// Accepts no more tasks, and terminates when those accepted are resolved; at the given time
    /// as with [`stop`](Self::stop).
    pub(super) fn drain(&mut self, stop_at: Nanos, now: Nanos, ledger: &dyn Ledger) {
        if self.stage == Stage::Running {
            self.stage = Stage::Draining;
        }
        self.stop_at = self.stop_at.min(stop_at);
        self.wake_by(self.stop_at);
        self.settle(now, ledger);
    }

    /// Resolves everything, kills everybody, and terminates.
    pub(super) fn stop(&mut self, now: Nanos, ledger: &dyn Ledger) {
        if matches!(self.stage, Stage::Running | Stage::Draining) {
            self.stage = Stage::Stopping;
            let open: Vec<_> = self.tasks.iter().map(|(key, task)| (key as u32, task.place)).collect();
            for (key, place) in open {
                match place {
                    Place::Queued => self.resolve_queued(key, Verdict::ShutDown),
                    Place::Sent { worker, seq } => {
                        self.resolve(key, Verdict::ShutDown);
                        self.set_fate(worker as usize, seq, Fate::Abandoned);
                    }
                }
            }
            let workers: Vec<_> = self.slots.iter().map(|(worker, _)| worker).collect();
            for worker in workers {
                self.kill(worker, Kill::Unwanted);
            }
        }
        self.settle(now, ledger);
    }

    /// When [`tick`](Self::tick) wants to be called next.
    pub(super) fn next_alarm(&self) -> Nanos {
        self.next_alarm
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Nanos, ledger: &dyn Ledger) {
        if now.saturating_sub(self.next_alarm) > HELD_UP {
            self.be_patient_again(now);
        }
        if now >= self.stop_at {
            self.stop_at = Nanos::MAX;
            self.stop(now, ledger);
        }
        let due: Vec<_> =
            self.slots.iter().filter(|(_, slot)| slot.alarm <= now).map(|(worker, _)| worker).collect();
        for worker in due {
            self.attend(worker, now, ledger);
        }
        self.settle(now, ledger);
        let alarms = self.slots.iter().map(|(_, slot)| slot.alarm);
        self.next_alarm = alarms.chain([self.stop_at, self.start_alarm(now)]).min().unwrap_or(Nanos::MAX);
    }

    fn task(&self, task: TaskKey) -> Option<&Task<T>> {
        self.tasks.get(task.place as usize).filter(|found| found.id == task.id)
    }

    /// Hands out what waits, starts workers as needed, and terminates when all is done.
    ///
    /// Every event ends with this. It takes no time in proportion to the workers unless there is
    /// something to be done for it.
    fn settle(&mut self, now: Nanos, ledger: &dyn Ledger) {
        self.dispatch(now, ledger);
        self.start_missing(now);
        self.finish_warming(now);
        if self.stage != Stage::Running && self.tasks.is_empty() {
            self.end_all(now);
        }
    }

    fn dispatch(&mut self, now: Nanos, ledger: &dyn Ledger) {
        while !self.queue.is_empty() {
            let Some(worker) = self.take_idle().or_else(|| self.roomiest()) else { return };
            loop {
                self.send_next(worker, now, ledger);
                if self.queue.is_empty() || !self.idle.is_empty() || !self.slots[worker].has_room() {
                    break;
                }
            }
        }
    }
}
