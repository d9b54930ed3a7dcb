//! What a pool knows, under one lock: the scheduler, and the pool's end of each worker.

use super::cell::{Cell, Outcome};
use super::inflow::{Grant, Inflow};
use super::inquiry::Inquiry;
use super::links::{Copy, Link, Links};
use super::observe::{Attempt, Ending, Event, Levels};
use super::outlet::Outlet;
use super::scheduler::{
    Action, Answer, Config, Kill, Ledger, Nanos, Scheduler, TaskKey, Terms, Verdict, Violation, WorkerKey,
};
use super::times::Times;
use super::voice::Said;
use crate::task::{ExitCause, PoolError, Progress, TaskError, TimeoutReport, WorkerExit};
use crate::wire::{Body, Place, Reply, Request, Run};
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// So many tasks are written to a worker's pipe each on its own. With more, the worker has enough
/// to go on with until its next answers are read, and frames are gathered.
const EAGER_TASKS: u64 = 4;

/// So many grants may wait for a worker to read on. A pipe holds several thousand more, and an honest
/// worker sends nothing for which it has not read a grant.
const UNREAD_GRANTS: usize = 1024;

pub(super) struct State {
    pub(super) scheduler: Scheduler<Arc<Cell>>,
    pub(super) links: Links,
    pub(super) warming: Vec<oneshot::Sender<Warmth>>,
    pub(super) times: Times,
    /// Whether events are noted.
    pub(super) is_observed: bool,
    /// What watchers were told last, or are about to be.
    levels: Levels,
    /// When the clock will ring.
    pub(super) alarm_set: Nanos,
}

/// Whether the workers that were asked for are ready.
pub(super) type Warmth = Result<(), PoolError>;

/// The end of an attempt at a task.
struct AttemptEnd<'a> {
    outcome: &'a Outcome,
    number: u32,
    /// The worker that it was sent to, and under which number.
    at: Option<(WorkerKey, u64)>,
    /// For how long it ran, as the worker says.
    ran: Option<Nanos>,
    now: Nanos,
    is_retried: bool,
}

/// What is to be done once the lock is let go.
#[derive(Default)]
pub(super) struct Chores {
    pub(super) events: Vec<Event>,
    pub(super) levels: Option<Levels>,
    /// While watchers have not been shown these.
    pub(super) shown: Option<TaskTrackerToken>,
    /// What tasks have said of themselves, before they are resolved.
    pub(super) told: Vec<(Arc<Cell>, Progress)>,
    /// Who waits for items of streams that have come.
    pub(super) wake: Vec<Waker>,
    pub(super) said: Vec<Said>,
    pub(super) resolved: SmallVec<[(Arc<Cell>, Outcome); 4]>,
    pub(super) copy: SmallVec<[Copy; 1]>,
    pub(super) flush: SmallVec<[Arc<Outlet>; 4]>,
    pub(super) close: SmallVec<[Arc<Outlet>; 1]>,
    pub(super) start: SmallVec<[(WorkerKey, CancellationToken); 1]>,
    pub(super) inquire: Vec<Inquiry>,
    pub(super) warmed_up: Vec<(oneshot::Sender<Warmth>, Warmth)>,
    /// How the worker ended on whose account tasks are resolved.
    pub(super) died: Option<WorkerExit>,
    /// Where its task was, if it was killed for its time and that was found out.
    pub(super) stuck: Option<TimeoutReport>,
    pub(super) has_finished: bool,
    pub(super) rings_earlier: bool,
}

impl State {
    pub(super) fn new(config: Config, is_observed: bool) -> State {
        State {
            scheduler: Scheduler::new(config),
            links: Links::default(),
            warming: Vec::new(),
            times: Times::new(),
            is_observed,
            levels: Levels::default(),
            alarm_set: Nanos::MAX,
        }
    }

    pub(super) fn submit(&mut self, cell: &Arc<Cell>, terms: Terms, now: Nanos, chores: &mut Chores) {
        cell.set_submitted(now);
        match self.scheduler.submit(cell.clone(), cell.id, terms, now, &self.links) {
            Ok(key) => cell.place.store(key.place, Ordering::Relaxed),
            Err((cell, verdict)) => {
                let outcome = outcome_of(verdict, None);
                if self.is_observed {
                    let ending = Ending::of(&outcome);
                    chores.events.push(Event::Refused { task: cell.clone(), ending });
                }
                chores.resolved.push((cell, outcome));
            }
        }
    }

    /// Takes in one frame from a worker that is ready.
    pub(super) fn take_in(
        &mut self,
        worker: WorkerKey,
        reply: Reply,
        body: Body<'_>,
        now: Nanos,
        chores: &mut Chores,
    ) -> Result<(), Violation> {
        let (seq, answer, outcome) = match reply {
            Reply::Value { seq, is_worn, ran, .. } => {
                let answer = Answer { is_value: true, is_worn, ran, ..Answer::default() };
                (seq, answer, Some((Outcome::Value(body.into_bytes()), ran)))
            }
            Reply::Fault { seq, is_worn, dying, ran, fault } => {
                let answer = Answer { is_worn, dying, ran, ..Answer::default() };
                (seq, answer, Some((Outcome::Fault(Box::new(fault)), ran)))
            }
            Reply::Skipped { seq } => (seq, Answer { skipped: true, ..Answer::default() }, None),
            Reply::Part { seq } => return self.take_in_part(worker, seq, body.as_slice()),
            Reply::Item { seq, is_fault, .. } => {
                let Some(cell) = self.speaker(worker, seq)? else { return Ok(()) };
                // Nothing that has not begun has items; it might yet be given to another worker.
                self.links.began_at(worker, seq).ok_or(Violation)?;
                let inflow = cell.inflow().ok_or(Violation)?;
                chores.wake.extend(inflow.add(is_fault, body.into_bytes())?);
                return Ok(());
            }
            Reply::Progress { seq, progress } => {
                if progress.message().len() > Progress::MAX_MESSAGE {
                    return Err(Violation);
                }
                let Some(cell) = self.speaker(worker, seq)? else { return Ok(()) };
                // Of those that come together only the last is of use.
                match chores.told.last_mut().filter(|(last, _)| Arc::ptr_eq(last, cell)) {
                    Some((_, last)) => *last = progress,
                    None => chores.told.push((cell.clone(), progress)),
                }
                return Ok(());
            }
            Reply::Began { seq } => {
                let link = self.links.ready_mut(worker).filter(|link| link.page.is_none());
                link.ok_or(Violation)?.began = (seq, now);
                return Ok(());
            }
            Reply::Voice { task } => return self.hear(worker, task, body, chores),
            Reply::Hello { .. }
            | Reply::NotConfined { .. }
            | Reply::Ready
            | Reply::NotReady { .. }
            | Reply::Bell => return Err(Violation),
        };
        let job = self.scheduler.answered(worker, seq, answer, now)?;
        if let Some(link) = self.links.ready_mut(worker) {
            link.room.give_back(seq);
            link.unanswered.answered(seq);
            let audience = job.as_ref().map(|(cell, _)| &cell.audience);
            chores.said.extend(link.ear.task_end(seq, audience));
        }
        if let (Some((cell, number)), Some((outcome, ran))) = (job, outcome) {
            let (at, ran) = (Some((worker, seq)), Some(ran));
            let end = AttemptEnd { outcome: &outcome, number, at, ran, now, is_retried: false };
            self.note(&cell, end, chores);
            chores.resolved.push((cell, outcome));
        }
        Ok(())
    }

    /// Takes in what a task of a worker has logged.
    fn hear(
        &self,
        worker: WorkerKey,
        task: Option<u64>,
        body: Body<'_>,
        chores: &mut Chores,
    ) -> Result<(), Violation> {
        let link = self.links.ready(worker).ok_or(Violation)?;
        // A worker does one task at a time.
        let task = task.filter(|seq| self.scheduler.first_in_pipeline(worker) == *seq);
        let key = task.and_then(|seq| self.scheduler.task_at(worker, seq));
        let audience = key.and_then(|task| self.scheduler.job(task)).map(|cell| &cell.audience);
        chores.said.extend(link.ear.hear(task, audience, body)?);
        Ok(())
    }

    /// What the worker logs of a task from now on is not the task's any more.
    fn end_talk(&self, at: Option<(WorkerKey, u64)>, chores: &mut Chores) {
        let link = at.and_then(|(worker, seq)| Some((self.links.ready(worker)?, seq)));
        chores.said.extend(link.and_then(|(link, seq)| link.ear.task_over(seq)));
    }

    /// When a task that was sent to a worker began, if it has, and when it ended, by what the worker
    /// says as far as that can be.
    fn times_of(
        &self,
        cell: &Cell,
        at: Option<(WorkerKey, u64)>,
        ran: Option<Nanos>,
        now: Nanos,
    ) -> (Option<Nanos>, Nanos) {
        let earliest = cell.submitted().min(now);
        let has_page = at.is_some_and(|(worker, _)| self.links.has_page(worker));
        let began = match ran {
            // A worker without a page is not asked when a task began whose answer is there.
            Some(ran) if !has_page => Some(now.saturating_sub(ran / cell.items().max(1) as u64)),
            _ => at.and_then(|(worker, seq)| self.links.began_at(worker, seq)),
        };
        let (Some(began), Some(ran)) = (began.map(|began| began.clamp(earliest, now)), ran) else {
            return (began.map(|began| began.clamp(earliest, now)), now);
        };
        match cell.items() {
            0 => (Some(began), began.saturating_add(ran).min(now)),
            // Its last item began then, and has taken, for all that is known, as long as the others.
            items => {
                let ended = began.saturating_add(ran / items as u64).min(now);
                (Some(ended.saturating_sub(ran).max(earliest)), ended)
            }
        }
    }

    /// Notes that an attempt at a task is over.
    fn note(&mut self, cell: &Arc<Cell>, end: AttemptEnd<'_>, chores: &mut Chores) {
        let (began, ended) = self.times_of(cell, end.at, end.ran, end.now);
        if let Some(began) = began.filter(|_| !end.is_retried) {
            self.times.add(began.saturating_sub(cell.submitted()), ended.saturating_sub(began));
        }
        if self.is_observed {
            let pid = end.at.and_then(|(worker, _)| self.links.ready(worker)).map(|link| link.pid);
            chores.events.push(Event::Attempt(Attempt {
                task: cell.clone(),
                number: end.number,
                ending: Ending::of(end.outcome),
                is_retried: end.is_retried,
                pid: pid.filter(|_| began.is_some()),
                began,
                ended,
                bytes_in: cell.body().len(),
                bytes_out: cell.bytes_out(end.outcome),
            }));
        }
    }

    /// How many tasks and workers there are, if that has changed.
    pub(super) fn changed_levels(&mut self, now: Nanos) -> Option<Levels> {
        let loads = self.scheduler.loads();
        if loads == self.levels.loads {
            return None;
        }
        self.levels = Levels { number: self.levels.number + 1, at: now, loads };
        Some(self.levels)
    }

    /// The task that a worker says something of before its end; none if that is resolved already, and
    /// what is said of it is of no use to anybody.
    fn speaker(&self, worker: WorkerKey, seq: u64) -> Result<Option<&Arc<Cell>>, Violation> {
        // A worker does one task at a time; and so what it says of none cannot go on for ever.
        if self.scheduler.first_in_pipeline(worker) != seq || seq == u64::MAX {
            return Err(Violation);
        }
        Ok(self.scheduler.task_at(worker, seq).and_then(|task| self.scheduler.job(task)))
    }

    fn take_in_part(&mut self, worker: WorkerKey, seq: u64, body: &[u8]) -> Result<(), Violation> {
        let cell = self.speaker(worker, seq)?;
        if cell.is_none_or(|cell| cell.add_part(body)) { Ok(()) } else { Err(Violation) }
    }

    /// Lets a stream's worker send so much more.
    pub(super) fn grant(&mut self, task: TaskKey, grant: Grant, chores: &mut Chores) {
        let Some((worker, seq)) = self.scheduler.whereabouts(task) else { return };
        if let Some(link) = self.links.ready_mut(worker) {
            let written = link.outlet.total();
            while link.unread_grants.front().is_some_and(|end| *end <= written) {
                link.unread_grants.pop_front();
            }
            if link.unread_grants.len() >= UNREAD_GRANTS {
                // It sends on what it cannot know that it may.
                return link.kill(Kill::Unresponsive, chores);
            }
            let Grant { items, bytes } = grant;
            let queued = link.outlet.push(&Request::Grant { seq, items, bytes }, Bytes::new());
            link.unread_grants.push_back(queued.end);
            chores.flush.push(link.outlet.clone());
        }
    }

    /// Does what can be done under the lock, and notes the rest.
    pub(super) fn carry_out(&mut self, now: Nanos, chores: &mut Chores) {
        let mut actions = std::mem::take(&mut self.scheduler.actions);
        for action in actions.drain(..) {
            self.act(action, now, chores);
        }
        // Its memory is kept.
        self.scheduler.actions = actions;
        if self.scheduler.next_alarm() < self.alarm_set {
            self.alarm_set = self.scheduler.next_alarm();
            chores.rings_earlier = true;
        }
    }

    fn act(&mut self, action: Action<Arc<Cell>>, now: Nanos, chores: &mut Chores) {
        match action {
            Action::Send { worker, seq, task } => self.send(worker, seq, task, chores),
            Action::Resolve { job: cell, verdict, at, attempts } => {
                self.end_talk(at, chores);
                let died = chores.died.as_ref().map(|exit| (exit, &*cell));
                if let (Verdict::TimedOut(_), Some(report)) = (&verdict, &chores.stuck) {
                    cell.set_timeout_report(report.clone());
                }
                let outcome = outcome_of(verdict, died);
                let number = attempts;
                let end = AttemptEnd { outcome: &outcome, number, at, ran: None, now, is_retried: false };
                self.note(&cell, end, chores);
                chores.resolved.push((cell, outcome));
            }
            Action::Retry { task, verdict, at } => {
                self.end_talk(Some(at), chores);
                let Some(cell) = self.scheduler.job(task).filter(|_| self.is_observed).cloned() else {
                    return;
                };
                let outcome = outcome_of(verdict, chores.died.as_ref().map(|exit| (exit, &*cell)));
                let number = self.scheduler.attempt(task);
                let at = Some(at);
                let end = AttemptEnd { outcome: &outcome, number, at, ran: None, now, is_retried: true };
                self.note(&cell, end, chores);
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
            Action::Recall { worker, seq } => {
                if let Some(link) = self.links.ready(worker) {
                    link.outlet.push(&Request::Recall { seq }, Bytes::new());
                    chores.flush.push(link.outlet.clone());
                }
            }
            Action::Close(worker) => {
                chores.close.extend(self.links.ready(worker).map(|link| link.outlet.clone()))
            }
            Action::Kill { worker, why } => match self.links.0.get_mut(worker) {
                Some(Some(Link::Ready(link))) => link.kill(why, chores),
                Some(Some(Link::Starting { called_off })) => called_off.cancel(),
                _ => {}
            },
            Action::GivenUp(worker) => {
                let inquiry = self.links.ready(worker).and_then(|link| link.inquiry.as_ref());
                chores.stuck = inquiry.and_then(Inquiry::seen);
            }
            Action::WarmedUp(result) => {
                let waiting = self.warming.drain(..);
                chores.warmed_up.extend(waiting.map(|sender| (sender, result.clone())));
            }
            Action::Terminated => chores.has_finished = true,
        }
    }

    fn send(&mut self, worker: WorkerKey, seq: u64, task: TaskKey, chores: &mut Chores) {
        let (Some(cell), Some(link)) = (self.scheduler.job(task), self.links.ready_mut(worker)) else {
            return;
        };
        let extra = cell.extra.as_ref();
        let (id, earlier) = cell.shown();
        let mut run = Run {
            seq,
            id,
            shim: cell.shim,
            attempt: self.scheduler.attempt(task).saturating_add(earlier),
            timeout: extra.and_then(|extra| extra.timeout),
            name: extra.and_then(|extra| extra.name.clone()),
            place: None,
            trace: extra.and_then(|extra| extra.trace.clone()),
            window: cell.inflow().map(|inflow| inflow.window),
        };
        cell.inflow().into_iter().for_each(Inflow::begin);
        cell.forget_parts();
        if let Some(levels) = link.ear.news(&cell.audience) {
            link.outlet.push(&Request::Listen(levels), Bytes::new());
        }
        let body = cell.body();
        let queued = match link.find_room(seq, body.len()) {
            Some((page, at)) => {
                run.place = Some(Place { at, bytes: body.len() as u64 });
                let queued = link.outlet.push_held(&Request::Run(run));
                chores.copy.push(Copy { page, at, body, outlet: link.outlet.clone() });
                queued
            }
            None => link.outlet.push(&Request::Run(run), body),
        };
        link.unanswered.sent(seq, queued.end);
        // As long as the worker has some to go on with whose answers are still to come, others may
        // be gathered: with those answers they are written.
        let at_work = (link.written + 1).saturating_sub(self.scheduler.first_in_pipeline(worker));
        if queued.is_much || at_work < EAGER_TASKS {
            link.written = seq;
            let is_noted = chores.flush.last().is_some_and(|outlet| Arc::ptr_eq(outlet, &link.outlet));
            if !is_noted {
                chores.flush.push(link.outlet.clone());
            }
        }
    }
}

fn outcome_of(verdict: Verdict, died: Option<(&WorkerExit, &Cell)>) -> Outcome {
    let error = match (verdict, died) {
        (Verdict::Cancelled, _) => TaskError::Cancelled,
        (Verdict::TimedOut(limit), _) => TaskError::TimedOut { limit: Duration::from_nanos(limit) },
        (Verdict::Died, Some((exit, _))) if exit.cause() == ExitCause::NodeLost => TaskError::NodeLost,
        (Verdict::Died, Some((exit, cell))) => TaskError::WorkerDied(exit.while_running(cell.description())),
        (Verdict::Broken(cause), _) => TaskError::PoolBroken(cause),
        (Verdict::ShutDown, _) | (Verdict::Died, None) => TaskError::ShutDown,
    };
    Outcome::Error(Box::new(error))
}
