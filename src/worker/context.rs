//! What a task can learn of itself.

use crate::task::TaskId;
use crate::wire::Run;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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
    began: Instant,
    cancelled: AtomicBool,
    /// Made when somebody first waits.
    token: OnceLock<CancellationToken>,
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
        self.0.began.checked_add(Duration::from_nanos(self.0.run.timeout?))
    }

    /// Makes the context of a task that begins now, and the current one.
    pub(super) fn enter(run: Run) -> TaskContext {
        let context = TaskContext(Arc::new(Inner {
            run,
            began: Instant::now(),
            cancelled: AtomicBool::new(false),
            token: OnceLock::new(),
        }));
        *lock() = Some(context.clone());
        context
    }

    /// Ends what [`enter`](Self::enter) began.
    pub(super) fn leave() {
        lock().take();
    }

    /// Cancels the current task, if it is the one that was sent under this number.
    pub(super) fn cancel_current(seq: u64) {
        let context = current().filter(|context| context.0.run.seq == seq);
        if let Some(context) = context {
            context.0.cancelled.store(true, Ordering::Release);
            context.token().cancel();
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
