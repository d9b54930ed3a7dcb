//! What the scheduler does when time has passed, and when it wants to be told.

use super::slot::{Fate, Loss, Phase, STALL, UNRESPONSIVE};
use super::{Action, CLOSE_LIMIT, Departure, Kill, Ledger, Nanos, Scheduler, Verdict, WorkerKey};

impl<T> Scheduler<T> {
    /// The pool has been held up: what others may take counts from now.
    pub(super) fn be_patient_again(&mut self, now: Nanos) {
        self.held_up = now;
        let workers: Vec<_> = self.slots.iter().map(|(worker, _)| worker).collect();
        for worker in workers {
            let slot = &mut self.slots[worker];
            slot.kill_latest = slot.kill_latest.max(now.saturating_add(UNRESPONSIVE));
            if slot.give_up_at != Nanos::MAX {
                slot.give_up_at = slot.give_up_at.max(now.saturating_add(self.config.death_limit));
            }
            if slot.phase == Phase::Closing && slot.kill_at != Nanos::MAX {
                slot.kill_at = slot.kill_at.max(now.saturating_add(CLOSE_LIMIT));
            }
            self.rearm(worker);
        }
    }

    /// Sees to a worker whose alarm is due.
    pub(super) fn attend(&mut self, worker: WorkerKey, now: Nanos, ledger: &dyn Ledger) {
        let slot = &mut self.slots[worker];
        let is_ready = slot.phase == Phase::Ready || slot.phase == Phase::Retiring;
        if now >= slot.kill_at
            && now < slot.kill_latest
            && is_ready
            && ledger.is_finished(worker, slot.kill_unless)
        {
            // It has done what it was to be killed for, and may be at another task; the answer is
            // on the way, if not for ever.
            slot.kill_at = now.saturating_add(STALL);
            self.check_stall(worker, now, ledger);
        } else if now >= slot.kill_at {
            self.kill(worker, Kill::Unwanted);
            self.take_back_all(worker, Loss::Death, ledger);
        } else if slot.phase == Phase::Dying {
            self.give_up(worker, now);
        } else if slot.is_idle() {
            if self.phases.ready > self.config.min_workers {
                self.close(worker, Departure::Retired, now);
            } else {
                self.slots[worker].head_since = now;
            }
        } else if slot.phase == Phase::Ready || slot.phase == Phase::Retiring {
            self.check_timeout(worker, now, ledger);
            self.check_stall(worker, now, ledger);
        }
        self.rearm(worker);
    }

    /// Ends the worker's first task if its time is up.
    fn check_timeout(&mut self, worker: WorkerKey, now: Nanos, ledger: &dyn Ledger) {
        let slot = &mut self.slots[worker];
        let Some(head) = slot.sent.front().copied().filter(|head| head.fate == Fate::Open) else { return };
        let task = &self.tasks[head.task as usize];
        if task.timeout == Nanos::MAX {
            return;
        }
        let Some(began) = ledger.began_at(worker, head.seq) else {
            // The time that it may take has not begun.
            slot.timeout_at = now.saturating_add(task.timeout.clamp(1_000_000, STALL * 10));
            return;
        };
        // As the worker says, within what is possible: not after it was seen to have begun, but for
        // the items of a chunk, all of which together have no more time than each has.
        let seen = (*slot.seen_begun.get_or_insert(now)).max(self.held_up);
        let later_items = u64::from(task.items.saturating_sub(1));
        let latest = seen.saturating_add(task.timeout.saturating_mul(later_items));
        let due = began.min(latest).min(now).saturating_add(task.timeout);
        let limit =
            slot.head_since.saturating_add(task.timeout).max(self.held_up).saturating_add(UNRESPONSIVE);
        if now < due {
            slot.timeout_at = due;
            return;
        }
        // Its answer is on the way, if not for ever.
        if ledger.is_finished(worker, head.seq) && now < limit {
            slot.timeout_at = now.saturating_add(STALL);
            return;
        }
        // It is resolved when the worker is dead: what that had to say by then still counts.
        self.set_fate(worker, head.seq, Fate::TimedOut);
        self.slots[worker].give_up_at = now.saturating_add(self.config.death_limit);
        self.kill(worker, Kill::TimedOut);
        self.take_back_all(worker, Loss::Death, ledger);
    }

    /// A worker that was killed for its time is not dead after so long: the kernel is stuck in it.
    fn give_up(&mut self, worker: WorkerKey, now: Nanos) {
        if now < self.slots[worker].give_up_at {
            return;
        }
        self.slots[worker].give_up_at = Nanos::MAX;
        self.actions.push(Action::GivenUp(worker));
        for at in 0..self.slots[worker].sent.len() {
            let sent = self.slots[worker].sent[at];
            if sent.fate == Fate::TimedOut {
                // Not to be tried again: it may still run.
                let timeout = self.tasks[sent.task as usize].timeout;
                self.resolve(sent.task, Verdict::TimedOut(timeout));
                self.set_fate(worker, sent.seq, Fate::Abandoned);
            }
        }
    }

    /// Takes back what waits behind a task that turns out to be long, and gives up on a worker
    /// that does not begin what it was sent.
    fn check_stall(&mut self, worker: WorkerKey, now: Nanos, ledger: &dyn Ledger) {
        let slot = &mut self.slots[worker];
        if now < slot.stall_at || slot.phase == Phase::Dying {
            return;
        }
        let Some(head) = slot.sent.front().copied() else { return };
        // Time only counts from when it has been sent all there is.
        let written = ledger.written(worker);
        if written != slot.written {
            slot.written = written;
            slot.silent_since = now;
        }
        let waited = now.saturating_sub(slot.head_since);
        slot.take_at_least(waited);
        if ledger.began_at(worker, head.seq).is_some() {
            slot.stall_at = Nanos::MAX;
            return self.take_back_behind(worker, head.seq, ledger);
        }
        let silent = now.saturating_sub(slot.silent_since.max(slot.head_since).max(self.held_up));
        slot.stall_at = now.saturating_add(waited.clamp(STALL, UNRESPONSIVE / 10));
        if silent >= UNRESPONSIVE {
            self.kill(worker, Kill::Unresponsive);
        }
        // It may just not have got a processor yet; but whoever has one may as well begin. Without a
        // page it is not said at once that a task has begun, so the first one stays where it is.
        if silent >= 4 * STALL && (self.slots[worker].has_page || silent >= UNRESPONSIVE) {
            let loss = if silent >= UNRESPONSIVE { Loss::Death } else { Loss::Stall };
            self.take_back_all(worker, loss, ledger);
        } else {
            self.take_back_behind(worker, head.seq, ledger);
        }
    }

    /// Sets a worker's alarm by what it does.
    pub(super) fn rearm(&mut self, worker: WorkerKey) {
        let Some(slot) = self.slots.get_mut(worker) else { return };
        let alarm = match slot.phase {
            Phase::Starting => Nanos::MAX,
            Phase::Ready | Phase::Retiring => match slot.sent.front() {
                None => slot.head_since.saturating_add(self.config.idle_timeout),
                Some(head) => {
                    let timeout_at = match head.fate {
                        Fate::Open => slot
                            .timeout_at
                            .max(slot.head_since.saturating_add(self.tasks[head.task as usize].timeout)),
                        _ => Nanos::MAX,
                    };
                    timeout_at.min(slot.stall_at)
                }
            },
            Phase::Closing => Nanos::MAX,
            Phase::Dying => slot.give_up_at,
        };
        let alarm = alarm.min(slot.kill_at);
        slot.alarm = alarm;
        self.wake_by(alarm);
    }

    pub(super) fn wake_by(&mut self, at: Nanos) {
        self.next_alarm = self.next_alarm.min(at);
    }
}
