//! What a task can learn of itself.

use super::flow::Flow;
use super::replies::Replies;
use super::reports::Reports;
use crate::sys::monotonic_now;
use crate::task::{Progress, TaskId, TraceContext};
use crate::wire::Run;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A worker runs one task at a time, whose context all its threads see.
static CURRENT: Mutex<Option<TaskContext>> = Mutex::new(None);

/// The task that this worker runs at the moment.
///
/// `None` outside a worker, and in an initializer or preload function.
pub fn current() -> Option<TaskContext> {
    lock().clone()
}

fn lock() -> MutexGuard<'static, Option<TaskContext>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task as seen from within. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct TaskContext(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    run: Run,
    /// By the clock of the kernel, which is read once for a task.
    began: u64,
    deadline: OnceLock<Option<Instant>>,
    cancelled: AtomicBool,
    /// Made when somebody first waits.
    token: OnceLock<CancellationToken>,
    reports: Reports,
    /// Where its items go, if it is a stream.
    flow: Option<Arc<Flow>>,
}

impl TaskContext {
    /// The task's number in its pool, as [`TaskHandle::id`](crate::TaskHandle::id) tells it.
    pub fn id(&self) -> TaskId {
        TaskId(self.0.run.id)
    }

    /// Which attempt this is, counted from 1. Only a task with
    /// [`retries`](crate::TaskBuilder::retries) sees more.
    pub fn attempt(&self) -> u32 {
        self.0.run.attempt
    }

    /// The name that was given with [`TaskBuilder::name`](crate::TaskBuilder::name).
    pub fn name(&self) -> Option<&str> {
        self.0.run.name.as_deref()
    }

    /// Where it belongs in a distributed trace, if that was said with
    /// [`TaskBuilder::trace_context`](crate::TaskBuilder::trace_context) or
    /// [`Builder::trace_context`](crate::Builder::trace_context).
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.0.run.trace.as_deref()
    }

    /// Whether the task's caller does not want its result any more.
    ///
    /// A task that looks at this now and then, and returns, spares its worker: one that runs on
    /// for longer than [`Builder::cancel_grace`](crate::Builder::cancel_grace) is killed with it.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Waits until the task is cancelled.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn cancelled(&self) {
        self.token().cancelled().await;
    }

    /// When the task's time will be up, if it has a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = self.0.run.timeout?;
        *self.0.deadline.get_or_init(|| {
            let elapsed = Duration::from_nanos(monotonic_now().saturating_sub(self.0.began));
            Instant::now().checked_sub(elapsed)?.checked_add(Duration::from_nanos(timeout))
        })
    }

    /// Tells how far the task has got, for who watches it:
    /// [`TaskHandle::progress`](crate::TaskHandle::progress).
    ///
    /// It may be called as often as one likes, from any thread of the task, and never waits: a report
    /// leaves the worker every 20 ms at most, and a later one takes the place of what has not left. The
    /// last one arrives, ahead of the task's result. After the task's end it does nothing.
    ///
    /// ```
    /// use procession::{ProcessPool, Progress, worker};
    ///
    /// fn sum(numbers: Vec<u64>) -> u64 {
    ///     let task = worker::current().expect("tasks run in a worker");
    ///     let mut sum = 0;
    ///     for (done, number) in (1..).zip(&numbers) {
    ///         sum += number;
    ///         task.report(Progress::new(done).with_total(numbers.len() as u64));
    ///     }
    ///     sum
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::new()?;
    /// let task = pool.submit(sum, vec![1, 2, 3]);
    /// let progress = task.progress();
    /// assert_eq!(task.await?, 6);
    /// assert_eq!(progress.latest(), Some(Progress::new(3).with_total(3)));
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn report(&self, progress: Progress) {
        self.0.reports.report(progress);
    }

    /// Makes the context of a task that begins now, and the current one.
    pub(super) fn enter(run: Run, began: u64, replies: &'static Replies, flow: Option<Arc<Flow>>) {
        let reports = Reports::new(run.seq, replies);
        let context = TaskContext(Arc::new(Inner {
            run,
            began,
            deadline: OnceLock::new(),
            cancelled: AtomicBool::new(false),
            token: OnceLock::new(),
            reports,
            flow,
        }));
        *lock() = Some(context);
    }

    /// Ends what [`enter`](Self::enter) began: what the task's threads say from now on is not sent.
    pub(super) fn leave() {
        let Some(context) = lock().take() else { return };
        if let Some(flow) = &context.0.flow {
            flow.close();
        }
        context.0.reports.finish();
    }

    /// The same on the way to the end of the process, as far as it can be done without waiting.
    pub(super) fn abort() {
        let current = match CURRENT.try_lock() {
            Ok(current) => current,
            Err(TryLockError::Poisoned(current)) => current.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Some(TaskContext(inner)) = &*current {
            inner.reports.try_close();
            inner.flow.iter().for_each(|flow| flow.try_close());
        }
    }

    /// Where the items go of the stream that runs, if one does.
    pub(super) fn current_flow() -> Option<Arc<Flow>> {
        current()?.0.flow.clone()
    }

    /// Sends the current task's report, if one has waited for long enough.
    pub(super) fn send_due_report() {
        if let Some(context) = current() {
            context.0.reports.send_due();
        }
    }

    /// Gives the current task, if it is the stream that was sent under this number, more room.
    pub(super) fn grant_current(seq: u64, items: u64, bytes: u64) {
        let context = current().filter(|context| context.0.run.seq == seq);
        if let Some(flow) = context.as_ref().and_then(|context| context.0.flow.as_ref()) {
            flow.grant(items, bytes);
        }
    }

    /// Cancels the current task, if it is the one that was sent under this number.
    pub(super) fn cancel_current(seq: u64) {
        let context = current().filter(|context| context.0.run.seq == seq);
        if let Some(context) = context {
            context.0.cancelled.store(true, Ordering::Release);
            context.token().cancel();
            context.0.flow.iter().for_each(|flow| flow.close());
        }
    }

    pub(super) fn token(&self) -> &CancellationToken {
        self.0.token.get_or_init(|| {
            let token = CancellationToken::new();
            if self.is_cancelled() {
                token.cancel();
            }
            token
        })
    }
}
