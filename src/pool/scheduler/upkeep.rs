//! What the scheduler does between an event and its actions.

use super::queue::Entry;
use super::slot::{Fate, Loss, Phase, Slot, UNRESPONSIVE};
use super::{
    Action, CLOSE_LIMIT, Departure, Kill, Ledger, Nanos, Place, Scheduler, Stage, TaskKey, Verdict,
    Violation, WorkerKey,
};
use crate::task::PoolError;

/// How often a task is taken back from workers that do not begin it, and as often from those that
/// die first. Whether it has begun is what the worker says, and one that runs it and denies it must
/// not get it again and again, nor all others after it.
const MAX_LOSSES: u8 = 2;

/// Tasks.
impl<T> Scheduler<T> {
    /// Sends the first task that waits to this worker.
    pub(super) fn send_next(&mut self, worker: WorkerKey, now: Nanos, ledger: &dyn Ledger) {
        let tasks = &self.tasks;
        let wanted = |entry: Entry| tasks.get(entry.key as usize).is_some_and(|task| task.id == entry.id);
        let Some(entry) = self.queue.pop(wanted) else { return };
        let task = &mut self.tasks[entry.key as usize];
        let slot = &mut self.slots[worker];
        self.busy += usize::from(!slot.is_busy());
        let seq = slot.push(entry.key, task.bytes, now);
        task.attempts += 1;
        task.place = Place::Sent { worker: worker as u32, seq };
        self.in_flight += 1;
        ledger.offer(worker, seq);
        let task = super::TaskKey { place: entry.key, id: entry.id };
        self.actions.push(Action::Send { worker, seq, task });
        if slot.tasks_left == 0 {
            self.recycle(worker, now);
        }
        self.rearm(worker);
    }

    /// Puts a task that never began back at the head of the queue.
    fn put_back(&mut self, key: u32) {
        let task = &mut self.tasks[key as usize];
        task.attempts -= 1;
        task.place = Place::Queued;
        self.queue.push_front(task.priority, Entry { key, id: task.id });
    }

    /// A task that had begun has lost its worker.
    pub(super) fn retry_or_resolve(&mut self, key: u32, fate: Fate) {
        let task = &mut self.tasks[key as usize];
        let verdict = match fate {
            Fate::TimedOut => Verdict::TimedOut(task.timeout),
            _ => Verdict::Died,
        };
        if task.attempts <= task.retries && self.stage != Stage::Stopping {
            if let Some(at) = task.place.sent_to() {
                let task = TaskKey { place: key, id: task.id };
                self.actions.push(Action::Retry { task, verdict, at });
            }
            task.place = Place::Queued;
            self.queue.push_front(task.priority, Entry { key, id: task.id });
            self.counts.retried += 1;
        } else {
            self.resolve(key, verdict);
        }
    }

    pub(super) fn resolve(&mut self, key: u32, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Cancelled => &mut self.counts.cancelled,
            Verdict::TimedOut(_) => &mut self.counts.timed_out,
            Verdict::Died | Verdict::ShutDown | Verdict::Broken(_) => &mut self.counts.failed,
        };
        *counter += 1;
        let task = self.tasks.remove(key as usize);
        let at = task.place.sent_to();
        self.actions.push(Action::Resolve { job: task.job, verdict, at, attempts: task.attempts });
    }

    pub(super) fn resolve_queued(&mut self, key: u32, verdict: Verdict) {
        self.resolve(key, verdict);
        let tasks = &self.tasks;
        self.queue.forget_one(|entry| tasks.get(entry.key as usize).is_some_and(|task| task.id == entry.id));
    }

    pub(super) fn fail_queue(&mut self, cause: &PoolError) {
        let queued: Vec<_> = self.tasks.iter().filter(|(_, task)| task.place == Place::Queued).collect();
        let queued: Vec<_> = queued.into_iter().map(|(key, _)| key as u32).collect();
        for key in queued {
            self.resolve_queued(key, Verdict::Broken(cause.clone()));
        }
    }

    /// Takes back what was sent to a worker and has not begun.
    pub(super) fn take_back_all(&mut self, worker: WorkerKey, loss: Loss, ledger: &dyn Ledger) {
        self.take_back_behind(worker, 0, ledger);
        let slot = &mut self.slots[worker];
        let Some(head) = slot.sent.front_mut().filter(|head| head.fate == Fate::Open) else { return };
        let task = &mut self.tasks[head.task as usize];
        let mut not_counted = 0;
        let losses = match loss {
            Loss::Stall => &mut task.moves,
            Loss::Death => &mut task.losses,
            Loss::Foretold => &mut not_counted,
        };
        if *losses < MAX_LOSSES && ledger.take_back(worker, head.seq) {
            *losses += 1;
            head.fate = Fate::TakenBack;
            let task = head.task;
            self.put_back(task);
        }
    }

    /// The same, but only what was sent after the given number, and never the first task.
    pub(super) fn take_back_behind(&mut self, worker: WorkerKey, seq: u64, ledger: &dyn Ledger) {
        // From the back, so that each goes to the head of the queue and the order stays.
        for at in (1..self.slots[worker].sent.len()).rev() {
            let slot = &mut self.slots[worker];
            let is_asked = !slot.has_page && slot.phase != Phase::Dying;
            let sent = &mut slot.sent[at];
            if sent.seq <= seq {
                return;
            }
            if sent.fate != Fate::Open {
                continue;
            }
            if ledger.take_back(worker, sent.seq) {
                sent.fate = Fate::TakenBack;
                let task = sent.task;
                self.put_back(task);
            } else if is_asked && !std::mem::replace(&mut sent.is_recalled, true) {
                let seq = sent.seq;
                self.actions.push(Action::Recall { worker, seq });
            }
        }
    }

    /// A worker without a page has left a task that it was asked for, and will not begin it.
    ///
    /// # Errors
    /// [`Violation`] if it was not asked for it.
    pub(super) fn skipped(&mut self, worker: WorkerKey, seq: u64, now: Nanos) -> Result<(), Violation> {
        let slot = &mut self.slots[worker];
        let was_busy = slot.is_busy();
        let sent = slot.get_mut(seq).filter(|sent| sent.is_recalled && sent.fate != Fate::Skipped);
        let sent = sent.ok_or(Violation)?;
        let (fate, task) = (std::mem::replace(&mut sent.fate, Fate::Skipped), sent.task);
        let is_first = slot.sent.front().is_some_and(|head| head.fate == Fate::Skipped);
        if is_first {
            slot.drop_skipped();
            slot.new_head(now);
        }
        if slot.phase != Phase::Dying && slot.kill_unless == seq {
            slot.kill_at = Nanos::MAX;
        }
        slot.tasks_left = slot.tasks_left.saturating_add(1);
        self.in_flight -= 1;
        self.busy -= usize::from(was_busy && !slot.is_busy());
        self.abandoned -= usize::from(fate == Fate::Abandoned);
        // One whose time ran out is resolved when the worker is dead; it was killed for it.
        match fate {
            Fate::Open => self.put_back(task),
            Fate::TimedOut => self.retry_or_resolve(task, fate),
            _ => {}
        }
        Ok(())
    }

    /// Ends a cancelled task that has begun, if it does not end by itself, and lets nobody wait for that.
    pub(super) fn end_cancelled(&mut self, worker: WorkerKey, seq: u64, now: Nanos, ledger: &dyn Ledger) {
        self.kill_at(worker, now.saturating_add(self.config.cancel_grace), seq);
        self.take_back_behind(worker, seq, ledger);
    }

    pub(super) fn set_fate(&mut self, worker: WorkerKey, seq: u64, fate: Fate) {
        if let Some(sent) = self.slots[worker].get_mut(seq) {
            let old = std::mem::replace(&mut sent.fate, fate);
            self.abandoned += usize::from(fate == Fate::Abandoned);
            self.abandoned -= usize::from(old == Fate::Abandoned);
        }
    }
}

/// Workers.
impl<T> Scheduler<T> {
    pub(super) fn set_phase(&mut self, worker: WorkerKey, phase: Phase) {
        let slot = &mut self.slots[worker];
        let was_busy = slot.is_busy();
        let old = std::mem::replace(&mut slot.phase, phase);
        self.busy -= usize::from(was_busy && !slot.is_busy());
        self.missing += usize::from(old == Phase::Ready && phase == Phase::Dying);
        let was_listed = std::mem::take(&mut slot.is_listed);
        for (phase, step) in [(old, -1), (phase, 1)] {
            let count = match phase {
                Phase::Starting => &mut self.phases.starting,
                Phase::Ready => &mut self.phases.ready,
                Phase::Retiring => &mut self.phases.retiring,
                Phase::Closing | Phase::Dying => continue,
            };
            *count = count.wrapping_add_signed(step);
        }
        if was_listed {
            self.idle.retain(|idle| *idle != worker);
        }
    }

    /// How many have said that they are about to die, and were not killed.
    pub(super) fn dying(&self) -> usize {
        let is_dying = |slot: &Slot| slot.phase == Phase::Dying && !slot.is_killed;
        self.slots.iter().filter(|(_, slot)| is_dying(slot)).count()
    }

    pub(super) fn remove(&mut self, worker: WorkerKey) -> Slot {
        // Out of the counts, and out of the list of the idle.
        self.set_phase(worker, Phase::Dying);
        self.slots.remove(worker)
    }

    /// Takes an idle worker off the list; none while as many as may be are busy, which happens when
    /// one is ready to replace another that is not done.
    pub(super) fn take_idle(&mut self) -> Option<WorkerKey> {
        if self.busy >= self.config.max_workers {
            return None;
        }
        let worker = self.idle.pop()?;
        self.slots[worker].is_listed = false;
        Some(worker)
    }

    /// The worker that may be sent more, and has least to do.
    pub(super) fn roomiest(&self) -> Option<WorkerKey> {
        let roomy = self.slots.iter().filter(|(_, slot)| slot.has_room());
        roomy.min_by_key(|(_, slot)| slot.sent.len()).map(|(worker, _)| worker)
    }

    /// Lists a worker as idle if it has nothing to do, or ends it if it should be no more.
    pub(super) fn rest_or_retire(&mut self, worker: WorkerKey, now: Nanos) {
        let slot = &mut self.slots[worker];
        if slot.is_idle() && !slot.is_listed {
            slot.is_listed = true;
            slot.head_since = now;
            self.idle.push(worker);
        } else if slot.phase == Phase::Retiring && slot.sent.is_empty() {
            self.close(worker, Departure::Recycled, now);
        }
        self.rearm(worker);
    }

    pub(super) fn close(&mut self, worker: WorkerKey, departure: Departure, now: Nanos) {
        self.set_phase(worker, Phase::Closing);
        self.slots[worker].departure = departure;
        self.actions.push(Action::Close(worker));
        self.kill_at(worker, now.saturating_add(CLOSE_LIMIT), u64::MAX);
    }

    pub(super) fn kill(&mut self, worker: WorkerKey, why: Kill) {
        self.slots[worker].departure = match (why, self.slots[worker].phase) {
            _ if self.stage == Stage::Stopping => Departure::ShutDown,
            // It dies by itself, or has been killed already.
            (_, Phase::Dying) => self.slots[worker].departure,
            (Kill::TimedOut, _) => Departure::TimedOut,
            // It was told to end, and did not.
            (Kill::Unresponsive, _) | (Kill::Unwanted, Phase::Closing) => Departure::Died,
            (Kill::Unwanted, _) => Departure::Cancelled,
        };
        // One that is starting stays so until its start has failed.
        if !matches!(self.slots[worker].phase, Phase::Starting | Phase::Dying) {
            self.set_phase(worker, Phase::Dying);
        }
        // One that was to say where it is first has no time for that when all is to end at once.
        let was_killed = std::mem::replace(&mut self.slots[worker].is_killed, true);
        if !was_killed || self.stage == Stage::Stopping {
            self.actions.push(Action::Kill { worker, why });
        }
        self.slots[worker].kill_at = Nanos::MAX;
        self.rearm(worker);
    }

    pub(super) fn kill_at(&mut self, worker: WorkerKey, at: Nanos, unless: u64) {
        self.slots[worker].kill_at = at;
        self.slots[worker].kill_latest = at.saturating_add(UNRESPONSIVE);
        self.slots[worker].kill_unless = unless;
        self.rearm(worker);
    }

    /// Sends a worker no more tasks, and starts its replacement before it ends.
    pub(super) fn recycle(&mut self, worker: WorkerKey, now: Nanos) {
        self.set_phase(worker, Phase::Retiring);
        self.counts.workers_recycled += 1;
        if self.stage == Stage::Running && self.free_places() > 0 {
            self.start(now);
        }
    }

    /// The same, unless too many are being replaced already, and it may as well wait for its turn.
    pub(super) fn recycle_in_turn(&mut self, worker: WorkerKey, now: Nanos) {
        if self.config.recycles_at_once || self.phases.retiring < (self.config.max_workers / 4).max(1) {
            self.recycle(worker, now);
        }
    }

    /// Starts the workers that are wanted: for tasks that wait, and to keep the minimum.
    pub(super) fn start_missing(&mut self, now: Nanos) {
        if matches!(self.stage, Stage::Stopping | Stage::Terminated) {
            return;
        }
        let wanted = self.wanted_starts();
        if wanted == 0 {
            return;
        }
        if now < self.health.next_start() {
            self.wake_by(self.health.next_start());
            return;
        }
        for _ in 0..wanted {
            self.start(now);
        }
    }

    /// How many workers may be started: up to the most there may be, or one more while others are
    /// on their way out.
    fn free_places(&self) -> usize {
        let live = self.phases.starting + self.phases.ready;
        let all = live + self.phases.retiring;
        let max = self.config.max_workers;
        max.saturating_sub(live).min((max + 1).saturating_sub(all))
    }

    fn wanted_starts(&self) -> usize {
        let free = self.free_places();
        if free == 0 || self.is_warming {
            return free;
        }
        // What was sent behind another task waits too, until that turns out to be short.
        let waiting = self.queue.len() + self.in_flight.saturating_sub(self.busy);
        let for_tasks = if self.idle.is_empty() { waiting.saturating_sub(self.phases.starting) } else { 0 };
        let for_minimum = match self.stage {
            Stage::Running => {
                self.config.min_workers.saturating_sub(self.phases.starting + self.phases.ready)
            }
            _ => 0,
        };
        for_tasks.max(for_minimum).min(free)
    }

    fn start(&mut self, now: Nanos) {
        let limit = self.config.max_tasks_per_worker;
        // Workers of the first generation are recycled one after another, not all at once.
        let generation = self.starts / self.config.max_workers as u64;
        let stagger = match generation {
            0 => limit / (2 * self.config.max_workers as u64) * self.starts,
            _ => 0,
        };
        self.starts += 1;
        let tasks_left = if limit == u64::MAX { limit } else { (limit - stagger).max(1) };
        let worker = self.slots.insert(Slot::new(tasks_left, now));
        self.phases.starting += 1;
        self.actions.push(Action::Start(worker));
    }

    /// When starts that were put off are due.
    pub(super) fn start_alarm(&self, now: Nanos) -> Nanos {
        let at = self.health.next_start();
        if at > now && self.wanted_starts() > 0 { at } else { Nanos::MAX }
    }

    pub(super) fn finish_warming(&mut self, now: Nanos) {
        if !self.is_warming {
            return;
        }
        let result = if self.stage != Stage::Running {
            Err(PoolError::ShutDown)
        } else if let Some(cause) = self.health.broken(now) {
            Err(cause.clone())
        } else if self.phases.ready >= self.config.max_workers {
            Ok(())
        } else {
            return;
        };
        self.is_warming = false;
        self.actions.push(Action::WarmedUp(result));
    }

    /// With nothing left to be done: ends the workers, and then the pool.
    pub(super) fn end_all(&mut self, now: Nanos) {
        let workers: Vec<_> = self.slots.iter().map(|(worker, slot)| (worker, slot.phase)).collect();
        for (worker, phase) in workers {
            match phase {
                Phase::Starting => self.kill(worker, Kill::Unwanted),
                Phase::Ready if self.slots[worker].sent.is_empty() => {
                    self.close(worker, Departure::ShutDown, now)
                }
                _ => {}
            }
        }
        if self.slots.is_empty() && self.stage != Stage::Terminated {
            self.stage = Stage::Terminated;
            self.actions.push(Action::Terminated);
        }
    }
}
