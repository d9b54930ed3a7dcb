//! What a pool asks of its engine.

use super::super::message::Key;
use super::flow::Reception;
use super::{Caller, Errand, Stage, Task, error, publish};
use crate::pool::cell::Cell;
use crate::pool::engine::Engine;
use crate::pool::inflow::Grant;
use crate::pool::scheduler::{Counts, Terms};
use crate::pool::state::Warmth;
use crate::pool::stats::{PoolStats, WorkerInfo};
use crate::pool::times::Distribution;
use crate::sys::monotonic_now;
use crate::task::{PoolError, TaskError};
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

impl Engine for Caller {
    fn submit(&self, cell: &Arc<Cell>, terms: Terms, is_reserved: bool) {
        let refusal = {
            let mut state = self.0.lock();
            match (state.stage, &state.broken) {
                (Stage::Draining | Stage::Stopped, _) => Some(TaskError::ShutDown),
                (Stage::Open, Some(cause)) => Some(TaskError::PoolBroken(cause.clone())),
                (Stage::Open, None) => {
                    let (now, submitted_at) = (Instant::now(), monotonic_now());
                    cell.set_submitted(submitted_at);
                    state.counts.submitted += 1;
                    let task = Task {
                        cell: cell.clone(),
                        terms,
                        is_reserved,
                        submitted: now,
                        sent: now,
                        submitted_at,
                        key: Key { task: cell.id, attempt: 1, hop: 0 },
                        retries_left: terms.retries,
                        place: None,
                        object: None,
                        fetched_with: None,
                        taken: None,
                        reception: cell.inflow().map(|_| Arc::new(Reception::new(cell, self.0.max_message))),
                        voices: None,
                        shown: self.0.is_observed.then(|| cell.shared.watchers.token()),
                    };
                    state.tasks.insert(cell.id, task);
                    None
                }
            }
        };
        match refusal {
            Some(refusal) => {
                let outcome = error(refusal);
                self.0.show_refusal(cell, &outcome);
                cell.resolve(outcome);
            }
            None => {
                self.0.show_levels();
                self.0.send(Errand::Publish(cell.id));
            }
        }
    }

    fn cancel(&self, cell: &Cell) {
        self.0.give_up(cell.id, error(TaskError::Cancelled));
    }

    fn shut_down_task(&self, cell: &Cell) {
        self.0.shut_down_task(cell.id);
    }

    fn grant(&self, cell: &Cell, grant: Grant) {
        self.0.grant(cell.id, grant);
    }

    fn streams(&self) -> Vec<Arc<Cell>> {
        self.0.streams()
    }

    fn whereabouts(&self, cell: &Cell) -> Option<(u32, bool)> {
        let state = self.0.lock();
        let pid = state.tasks.get(&cell.id)?.taken.as_ref()?.pid?;
        Some((pid, true))
    }

    fn room(&self) -> BoxFuture<'_, Result<(), TaskError>> {
        publish::room(&self.0).boxed()
    }

    #[cfg(feature = "tower")]
    fn has_room(&self) -> bool {
        publish::has_room(&self.0)
    }

    fn width(&self) -> usize {
        self.0.lock().agents.values().map(|agent| agent.width).sum()
    }

    fn stats(&self) -> PoolStats {
        let state = self.0.lock();
        let running = state.running.min(state.tasks.len());
        let workers = || state.agents.values().flat_map(|agent| &agent.workers);
        let counts = Counts {
            queued: state.tasks.len() - running,
            running,
            starting: workers().filter(|worker| worker.state == 0).count(),
            idle: workers().filter(|worker| worker.state == 1).count(),
            workers: workers().count(),
            ..state.counts
        };
        let (queue, run) = (state.times.queue.clone(), state.times.run.clone());
        drop(state);
        PoolStats::new(counts, Distribution::new(queue), Distribution::new(run))
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        let state = self.0.lock();
        let known = state.agents.iter();
        known
            .flat_map(|(name, agent)| agent.workers.iter().map(|worker| state.view(name, agent, worker)))
            .collect()
    }

    fn warm_up(&self, ready: oneshot::Sender<Warmth>) {
        let mut state = self.0.lock();
        let warmth = match (&state.broken, state.stage) {
            (_, Stage::Draining | Stage::Stopped) => Err(PoolError::ShutDown),
            (Some(cause), _) => Err(cause.clone()),
            _ if !state.agents.is_empty() => Ok(()),
            _ => return state.warming.push(ready),
        };
        drop(state);
        // Whoever asked may have stopped waiting.
        let _ = ready.send(warmth);
    }

    fn drain(&self, limit: Option<Duration>) {
        {
            let mut state = self.0.lock();
            if state.stage == Stage::Open {
                state.stage = Stage::Draining;
            }
            let stop_at = limit.and_then(|limit| Instant::now().checked_add(limit));
            state.stop_at = match (state.stop_at, stop_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            state.warming.clear();
        }
        self.0.send(Errand::Look);
    }

    fn stop(&self) {
        self.0.stop();
    }

    fn is_shut_down(&self) -> bool {
        self.0.lock().stage != Stage::Open
    }
}
