//! Many values from one task.

use super::ProcessPool;
use super::cell::{Cell, Outcome};
use super::handle::Canceller;
use super::inflow::Inflow;
use super::order::{Order, Origin};
use super::progress::{self, ProgressWatch, Talker, talker};
use super::shared::Shared;
use super::submit::{Permit, bounded_name};
use crate::task::{CodecStage, Fault, Label, Priority, TaskError, TaskId, TaskRef, TimeoutReport, from_body};
use bytes::Bytes;
use futures::stream::{FusedStream, Stream};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};

/// How many items there may be that the consumer has not taken, unless it says otherwise.
const WINDOW: u64 = 64;

/// In how many parts the patience with a consumer is counted, so that time in which the program was
/// stopped counts little.
const PARTS: u32 = 8;

/// The values that one task yields; see [`ProcessPool::stream`].
///
/// It does nothing before it is first polled: then the task is submitted, in a bounded queue once there
/// is room. What the worker produces ahead of what was taken is bounded by [`window`](Self::window); when
/// that is full, the producer waits. **So a consumer that holds a stream and does not take from it keeps
/// a worker occupied.** Dropping the stream cancels the task at once, as dropping a
/// [`TaskHandle`](crate::TaskHandle) does: a producer that stops at its next item spares its worker.
///
/// A stream is one task: it counts as one in the pool's statistics, has one timeout for all of its time,
/// and is never run again. It keeps a handle of its pool.
///
/// # Errors
/// An item's own error (an `anyhow::Error` in an item's place, an item that will not encode or decode,
/// or is over [`Builder::max_message_size`](crate::Builder::max_message_size)) stands where the item
/// would be, and the stream goes on. When the task fails, panics, is cancelled, runs out of time or loses
/// its worker, what had arrived comes first, then the error as the last item. After the end, with an
/// error or without, there is `None` for ever.
///
/// # Shutdown
/// [`ProcessPool::shutdown`] waits for streams as for all tasks, so their consumers must go on taking.
/// Where one has taken nothing for 10 seconds although the worker waits for it, that is taken for the
/// consumer itself waiting for the shutdown, and the stream ends with [`TaskError::ShutDown`].
///
/// # Cancel safety
/// `next()` and the like are cancel safe: no item is lost when such a future is dropped.
#[must_use = "a stream does nothing unless it is polled"]
pub struct TaskStream<T> {
    stage: Stage,
    remote: Arc<Remote>,
    label: Label,
    /// What is said of the task, before there is one.
    talker: OnceLock<Talker>,
    pool: ProcessPool,
    item: PhantomData<fn() -> T>,
}

enum Stage {
    New(Box<Start>),
    /// Waits for room in the queue.
    Reserving(Box<Start>, ReusableBoxFuture<'static, Result<Permit, TaskError>>),
    Running(Arc<Cell>),
    /// The task is resolved; some items may not be taken.
    Ending(Arc<Cell>, Outcome),
    Ended,
}

/// What is to be submitted.
struct Start {
    task: TaskRef,
    body: Result<Bytes, Fault>,
    order: Order,
}

/// What others may hold of a stream, from before its task is submitted.
pub(super) struct Remote {
    shared: Arc<Shared>,
    pub(super) id: u64,
    cancelled: CancellationToken,
    cell: OnceLock<Arc<Cell>>,
}

impl Remote {
    pub(super) fn cancel(&self) {
        self.cancelled.cancel();
        // Either this sees the task, or whoever submits it sees the token.
        if let Some(cell) = self.cell.get() {
            self.shared.cancel(cell);
        }
    }
}

impl<T> TaskStream<T> {
    pub(super) fn new(pool: ProcessPool, task: TaskRef, body: Result<Bytes, Fault>) -> TaskStream<T> {
        let shared = pool.shared().clone();
        let id = shared.new_id();
        let timeout = shared.settings.task_timeout;
        let origin = Origin::here(&shared.settings, None);
        let order = Order { timeout, id: Some(id), window: Some(WINDOW), origin, ..Order::default() };
        let remote = Remote { shared, id, cancelled: CancellationToken::new(), cell: OnceLock::new() };
        TaskStream {
            stage: Stage::New(Box::new(Start { task, body, order })),
            remote: Arc::new(remote),
            label: task.label,
            talker: OnceLock::new(),
            pool,
            item: PhantomData,
        }
    }

    /// How many items there may be that were sent and not taken; 64 by default. Zero counts as one.
    ///
    /// The worker is ahead by at most one more, for which it waits. There are also never more than
    /// 4 MiB and one item. Like the other settings, this does nothing once the stream was polled.
    pub fn window(self, items: usize) -> TaskStream<T> {
        self.with(|order| order.window = Some(items.max(1) as u64))
    }

    /// How long the task may run, from when it begins to when its last item was sent, with the time in
    /// which it waits for its consumer; [`Builder::task_timeout`](crate::Builder::task_timeout) by
    /// default. Then its worker is killed, and the stream ends with [`TaskError::TimedOut`].
    pub fn timeout(self, limit: Duration) -> TaskStream<T> {
        self.with(|order| order.timeout = Some(limit))
    }

    /// Which of the waiting tasks it comes before.
    pub fn priority(self, priority: Priority) -> TaskStream<T> {
        self.with(|order| order.priority = priority)
    }

    /// A name for the task, as by [`TaskBuilder::name`](crate::TaskBuilder::name).
    pub fn name(self, name: impl Into<String>) -> TaskStream<T> {
        self.with(|order| order.name = Some(bounded_name(name.into())))
    }

    fn with(mut self, set: impl FnOnce(&mut Order)) -> TaskStream<T> {
        if let Stage::New(start) = &mut self.stage {
            set(&mut start.order);
        }
        self
    }

    /// The task's number in its pool.
    pub fn id(&self) -> TaskId {
        TaskId(self.remote.id)
    }

    /// Something by which others can cancel the task, also before it is submitted. What had arrived
    /// comes first, and then the stream ends with [`TaskError::Cancelled`].
    pub fn canceller(&self) -> Canceller {
        Canceller::of_stream(self.remote.clone())
    }

    /// Watches how far the task has got, as that itself tells.
    pub fn progress(&self) -> ProgressWatch {
        if let Some(cell) = self.remote.cell.get() {
            return cell.progress();
        }
        let watch = ProgressWatch::new(self.talker.get_or_init(talker));
        if matches!(self.stage, Stage::Ended) {
            self.end_talk();
        }
        watch
    }

    /// The process that runs the task; `None` before it has begun and after it has ended.
    pub fn worker_pid(&self) -> Option<u32> {
        let cell = self.remote.cell.get()?;
        let (pid, _) = cell.shared.whereabouts(cell).filter(|(_, has_begun)| *has_begun)?;
        Some(pid)
    }

    /// Where the task was when its time ran out, as
    /// [`TaskHandle::timeout_report`](crate::TaskHandle::timeout_report) tells it.
    pub fn timeout_report(&self) -> Option<TimeoutReport> {
        self.remote.cell.get()?.timeout_report().cloned()
    }

    /// Gets the task submitted.
    fn poll_start(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TaskError>> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::New(start) => {
                    if self.remote.cancelled.is_cancelled() {
                        return Poll::Ready(Err(TaskError::Cancelled));
                    }
                    let shared = self.pool.shared();
                    if shared.room.is_none() && shared.engine.is_none() {
                        self.submit(start);
                        return Poll::Ready(Ok(()));
                    }
                    let permit = ReusableBoxFuture::new(reserve(self.pool.clone(), self.remote.clone()));
                    self.stage = Stage::Reserving(start, permit);
                }
                Stage::Reserving(mut start, mut permit) => {
                    let Poll::Ready(permit) = permit.poll(context) else {
                        self.stage = Stage::Reserving(start, permit);
                        return Poll::Pending;
                    };
                    start.order.permit = permit?.into_place();
                    start.order.is_reserved = true;
                    self.submit(start);
                    return Poll::Ready(Ok(()));
                }
                stage => {
                    self.stage = stage;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn submit(&mut self, start: Box<Start>) {
        let Start { task, body, mut order } = *start;
        order.talker = self.talker.take();
        let cell = self.pool.shared().submit(task, body, order);
        // Only submitted once.
        let _ = self.remote.cell.set(cell.clone());
        if self.remote.cancelled.is_cancelled() {
            self.pool.shared().cancel(&cell);
        }
        self.stage = Stage::Running(cell);
    }

    /// The next item, or what ends the stream.
    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, TaskError>>> {
        if let Err(error) = ready!(self.poll_start(context)) {
            self.end_talk();
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match &self.stage {
                Stage::Running(cell) => {
                    if let Some(item) = take(cell, context) {
                        return Poll::Ready(Some(item));
                    }
                    // What arrived before it was resolved is still to be looked for.
                    let outcome = ready!(cell.poll(context));
                    self.stage = Stage::Ending(cell.clone(), outcome);
                }
                Stage::Ending(cell, outcome) => {
                    if let Some(item) = take(cell, context) {
                        return Poll::Ready(Some(item));
                    }
                    let end = outcome.clone().into_result().err();
                    self.stage = Stage::Ended;
                    return Poll::Ready(end.map(Err));
                }
                Stage::New(_) | Stage::Reserving(..) | Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    /// There never was a task.
    fn end_talk(&self) {
        self.talker.get().into_iter().for_each(progress::end);
    }
}

/// Takes an item that has arrived, and lets more come.
fn take(cell: &Arc<Cell>, context: &mut Context<'_>) -> Option<Result<Bytes, TaskError>> {
    let (item, grant) = cell.inflow()?.take(context)?;
    if let Some(grant) = grant {
        cell.shared.grant(cell, grant);
    }
    Some(item.into_result())
}

async fn reserve(pool: ProcessPool, remote: Arc<Remote>) -> Result<Permit, TaskError> {
    tokio::select! {
        biased;
        () = remote.cancelled.cancelled() => Err(TaskError::Cancelled),
        permit = pool.reserve() => permit,
    }
}

impl<T: DeserializeOwned + 'static> Stream for TaskStream<T> {
    type Item = Result<T, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.poll_item(context));
        Poll::Ready(item.map(|item| Ok(from_body(item?, CodecStage::DecodeResult)?)))
    }
}

impl<T: DeserializeOwned + 'static> FusedStream for TaskStream<T> {
    fn is_terminated(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }
}

impl<T> Drop for TaskStream<T> {
    fn drop(&mut self) {
        match &self.stage {
            Stage::New(_) | Stage::Reserving(..) => self.end_talk(),
            Stage::Running(cell) | Stage::Ending(cell, _) => {
                cell.shared.cancel(cell);
                // Others may still hold the task.
                cell.inflow().into_iter().for_each(Inflow::clear);
            }
            Stage::Ended => {}
        }
    }
}

impl<T> fmt::Debug for TaskStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStream")
            .field("id", &self.remote.id)
            .field("task", &format_args!("{}", self.label))
            .finish_non_exhaustive()
    }
}

/// While a pool shuts down: ends streams whose consumers take nothing although their workers wait for
/// that. They might wait for the shutdown themselves.
pub(super) async fn end_neglected(shared: Arc<Shared>) {
    let part = shared.settings.consumer_patience / PARTS;
    // How many items of each had been taken, and for how many parts.
    let mut held_up = HashMap::<u64, (u64, u32)>::new();
    while shared.terminated.run_until_cancelled(tokio::time::sleep(part)).await.is_some() {
        let mut still = HashMap::new();
        for cell in shared.streams() {
            let Some(takes) = cell.inflow().and_then(Inflow::held_up_at) else { continue };
            let parts = match held_up.get(&cell.id) {
                Some((before, parts)) if *before == takes => parts + 1,
                _ => 0,
            };
            if parts >= PARTS {
                shared.shut_down_task(&cell);
            }
            still.insert(cell.id, (takes, parts));
        }
        held_up = still;
    }
}
