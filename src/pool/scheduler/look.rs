//! Looking at what there is.

use super::slot::{Fate, Phase, Sent};
use super::{Counts, Ledger, Loads, Nanos, Phases, Scheduler, Stage, WorkerKey, WorkerPhase, WorkerView};

impl<T> Scheduler<T> {
    pub(in crate::pool) fn is_shut_down(&self) -> bool {
        self.stage != Stage::Running
    }

    /// Counts and gauges as they are now.
    pub(in crate::pool) fn counts(&self, ledger: &dyn Ledger) -> Counts {
        let mut running = 0;
        for (worker, slot) in &self.slots {
            let is_open = |sent: &&Sent| matches!(sent.fate, Fate::Open | Fate::TimedOut);
            let mut open = slot.sent.iter().filter(is_open);
            // Of several that have begun all but the last are done, their answers on the way.
            running += usize::from(open.any(|sent| ledger.began_at(worker, sent.seq).is_some()));
        }
        Counts {
            queued: self.tasks.len() - running,
            running,
            starting: self.phases.starting,
            idle: self.idle.len(),
            workers: self.slots.len(),
            ..self.counts
        }
    }

    /// How many tasks and workers there are, at no cost in proportion to the workers.
    pub(in crate::pool) fn loads(&self) -> Loads {
        let running = self.busy.saturating_sub(self.abandoned).min(self.tasks.len());
        let Phases { starting, ready, .. } = self.phases;
        Loads {
            queued: self.tasks.len() - running,
            running,
            starting,
            idle: self.idle.len(),
            busy: ready.saturating_sub(self.idle.len()),
            retiring: self.slots.len().saturating_sub(starting + ready),
        }
    }

    /// When the start of a worker began.
    pub(in crate::pool) fn start_of(&self, worker: WorkerKey) -> Option<Nanos> {
        self.slots.get(worker).map(|slot| slot.started)
    }

    /// Looks at a worker.
    pub(in crate::pool) fn worker(&self, worker: WorkerKey) -> Option<WorkerView> {
        let slot = self.slots.get(worker)?;
        let phase = match slot.phase {
            Phase::Starting => WorkerPhase::Starting,
            Phase::Ready if slot.sent.is_empty() => WorkerPhase::Idle,
            Phase::Ready => WorkerPhase::Busy,
            Phase::Retiring | Phase::Closing | Phase::Dying => WorkerPhase::Retiring,
        };
        let first = slot.sent.front().map(|sent| sent.seq);
        let first_task = first.and_then(|seq| self.task_at(worker, seq));
        Some(WorkerView { phase, tasks_done: slot.tasks_done, first, first_task })
    }
}
