//! What may run a pool's tasks in place of workers of its own.
//!
//! A pool has its scheduler and its workers, or an engine. With an engine, `Shared` hands tasks over as
//! they are submitted, arguments encoded and function named, and asks it for everything that it would
//! have asked the scheduler. Tasks are resolved through their cells, as ever.

use super::cell::Cell;
use super::inflow::Grant;
use super::scheduler::Terms;
use super::state::Warmth;
use super::stats::{PoolStats, WorkerInfo};
use crate::task::TaskError;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The engine of a pool that has one.
#[cfg(feature = "nats")]
pub(super) type Remote = Box<dyn Engine>;

/// There is none: what asks for it is compiled to nothing.
#[cfg(not(feature = "nats"))]
pub(super) type Remote = NoEngine;

/// Whatever may be called from any thread, does not block, and is told the truth through cells.
pub(super) trait Engine: Send + Sync {
    /// Takes over a task, to resolve it some time; with room for it in the queue or, if none was
    /// reserved, at once where there is none.
    fn submit(&self, cell: &Arc<Cell>, terms: Terms, is_reserved: bool);

    /// Resolves a task as cancelled, unless it is resolved already.
    fn cancel(&self, cell: &Cell);

    /// Ends a stream as a shutdown ends all.
    fn shut_down_task(&self, cell: &Cell);

    /// Lets a stream send so much more.
    fn grant(&self, cell: &Cell, grant: Grant);

    /// The streams that are not resolved.
    fn streams(&self) -> Vec<Arc<Cell>>;

    /// The process that has begun a task, and that it has.
    fn whereabouts(&self, cell: &Cell) -> Option<(u32, bool)>;

    /// Whether there is room for another task, by what this pool has in the queue itself.
    #[cfg(feature = "tower")]
    fn has_room(&self) -> bool;

    /// Waits for room in the queue.
    fn room(&self) -> BoxFuture<'_, Result<(), TaskError>>;

    /// How many workers there are at the least, as far as is known.
    fn width(&self) -> usize;

    fn stats(&self) -> PoolStats;

    fn workers(&self) -> Vec<WorkerInfo>;

    /// Says when tasks can be run, or that they cannot.
    fn warm_up(&self, ready: oneshot::Sender<Warmth>);

    /// Accepts no more tasks, finishes those accepted until the given time, and ends.
    fn drain(&self, limit: Option<Duration>);

    /// Resolves everything as shut down, and ends.
    fn stop(&self);

    fn is_shut_down(&self) -> bool;
}

#[cfg(not(feature = "nats"))]
pub(super) enum NoEngine {}

#[cfg(not(feature = "nats"))]
impl std::ops::Deref for NoEngine {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        match *self {}
    }
}
