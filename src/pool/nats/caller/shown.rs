//! What those see who watch a pool whose tasks are run by agents.

use super::{Core, Known, State, Task};
use crate::pool::cell::{Cell, Outcome};
use crate::pool::observe::{Attempt, Ending, Event, Levels};
use crate::pool::scheduler::{Loads, Nanos};
use crate::sys::monotonic_now;
use std::sync::Arc;

impl Core {
    /// What is to be shown of the end of an attempt at a task, if anybody watches.
    pub(super) fn end_of(
        task: &Task,
        outcome: &Outcome,
        ran: Option<Nanos>,
        is_retried: bool,
    ) -> Option<Event> {
        task.shown.as_ref()?;
        let now = monotonic_now();
        let cell = &task.cell;
        let known = task.taken.as_ref();
        let began = ran.map(|ran| now.saturating_sub(ran)).or(known.and_then(|taken| taken.began));
        let began = began.map(|began| began.clamp(cell.submitted().min(now), now));
        let ending = Ending::of(outcome);
        Some(if ending == Ending::QueueFull {
            Event::Refused { task: cell.clone(), ending }
        } else {
            Event::Attempt(Attempt {
                task: cell.clone(),
                number: if known.is_some() || began.is_some() {
                    task.key.attempt
                } else {
                    task.key.attempt.saturating_sub(1)
                },
                ending,
                is_retried,
                pid: known.and_then(|taken| taken.pid).filter(|_| began.is_some()),
                began,
                ended: now,
                bytes_in: cell.body().len(),
                bytes_out: cell.bytes_out(outcome),
            })
        })
    }

    /// A task was not accepted.
    pub(super) fn show_refusal(&self, cell: &Arc<Cell>, outcome: &Outcome) {
        if self.is_observed {
            cell.shared.watchers.show(&[Event::Refused { task: cell.clone(), ending: Ending::of(outcome) }]);
        }
    }

    /// Shows how many tasks and workers there are, if that has changed.
    pub(super) fn show_levels(&self) {
        if !self.is_observed {
            return;
        }
        let levels = self.lock().changed_levels();
        if let (Some(levels), Some(shared)) = (levels, self.shared.get().and_then(|shared| shared.upgrade()))
        {
            shared.watchers.measure(&levels);
        }
    }
}

impl State {
    fn changed_levels(&mut self) -> Option<Levels> {
        let running = self.running.min(self.tasks.len());
        let loads = Loads { queued: self.tasks.len() - running, running, ..self.fleet };
        if loads == self.levels.loads {
            return None;
        }
        self.levels = Levels { number: self.levels.number + 1, at: monotonic_now(), loads };
        Some(self.levels)
    }

    /// Counts the workers of all agents.
    pub(super) fn count_workers(&mut self) {
        let mut fleet = Loads::default();
        for worker in self.agents.values().flat_map(|Known { workers, .. }| workers) {
            match worker.state {
                0 => fleet.starting += 1,
                1 => fleet.idle += 1,
                2 => fleet.busy += 1,
                _ => fleet.retiring += 1,
            }
        }
        self.fleet = fleet;
    }

    /// Takes a task from its agent.
    pub(super) fn untake(running: &mut usize, task: &mut Task) {
        if task.taken.take().is_some_and(|taken| taken.pid.is_some()) {
            *running = running.saturating_sub(1);
        }
    }
}
