//! Everything that can go wrong, as values.

use super::exit::WorkerExit;
use super::fault::{CodecReport, FailureReport, Fault, PanicReport, PlaceReport};
use super::shown::Shown;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a task has no value.
///
/// A task that returns a `Result<T, E>` of its own with a serializable `E` does not end up here:
/// its `Err` is a value, `Ok(Err(e))`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TaskError {
    /// The task panicked; its worker lives on.
    Panicked(Panic),
    /// The task returned an `anyhow::Error`.
    Failed(RemoteError),
    /// The worker's process ended while this task ran in it.
    WorkerDied(WorkerExit),
    /// The task's time, counted from when it began, ran out. Its worker was killed.
    TimedOut {
        /// The time that it had.
        limit: Duration,
    },
    /// The task was cancelled before it had a result.
    Cancelled,
    /// The arguments or the result could not be encoded or decoded.
    Codec(CodecError),
    /// The arguments or the result are over
    /// [`Builder::max_message_size`](crate::Builder::max_message_size).
    TooLarge {
        /// Their encoded size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The queue of the pool is bounded and had no room.
    QueueFull {
        /// The bound, as given to [`Builder::queue_capacity`](crate::Builder::queue_capacity).
        capacity: usize,
    },
    /// The pool was shut down before the task was submitted or finished, or the tokio runtime that
    /// the pool lived on is gone.
    ShutDown,
    /// The function is not part of the main program but of a library loaded into it: workers,
    /// which run the main program, would not find it. Call it from a function of the program.
    NotInMainImage {
        /// The function's type and where it was submitted.
        task: String,
    },
    /// The machine that ran the task is gone. Only pools with workers on other machines see this.
    NodeLost,
    /// Workers cannot be started.
    PoolBroken(PoolError),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskError::Panicked(panic) => panic.fmt(f),
            TaskError::Failed(error) => error.fmt(f),
            TaskError::WorkerDied(exit) => exit.fmt(f),
            TaskError::TimedOut { limit } => write!(f, "the task timed out after {limit:?}"),
            TaskError::Cancelled => f.write_str("the task was cancelled"),
            TaskError::Codec(error) => error.fmt(f),
            TaskError::TooLarge { size, limit } => write!(
                f,
                "a message of {size} bytes is over the limit of {limit} bytes (see `Builder::max_message_size`)"
            ),
            TaskError::QueueFull { capacity } => {
                write!(f, "the queue is full: {capacity} tasks wait already (see `ProcessPool::reserve`)")
            }
            TaskError::ShutDown => f.write_str("the pool was shut down"),
            TaskError::NotInMainImage { task } => write!(
                f,
                "the function {task} is not part of the main program, so workers cannot run it; \
                 call it from a function of the program"
            ),
            TaskError::NodeLost => f.write_str("the machine that ran the task is gone"),
            TaskError::PoolBroken(error) => write!(f, "the pool cannot start workers: {error}"),
        }
    }
}

/// Its text tells the whole story, so there is no separate source.
impl std::error::Error for TaskError {}

impl From<Fault> for TaskError {
    fn from(fault: Fault) -> TaskError {
        match fault {
            Fault::Panicked(report) => {
                let place = PanicLocation::new(&report.place);
                TaskError::Panicked(Panic(Arc::new((report, place))))
            }
            Fault::Failed(report) => TaskError::Failed(RemoteError(Arc::new(report))),
            Fault::Codec(report) => TaskError::Codec(CodecError(Arc::new(report))),
            Fault::TooLarge { size, limit } => TaskError::TooLarge { size, limit },
            Fault::Cancelled => TaskError::Cancelled,
        }
    }
}

#[cfg(feature = "nats")]
impl TaskError {
    /// What a worker had reported, if this came of that.
    pub(crate) fn to_fault(&self) -> Option<Fault> {
        match self {
            TaskError::Panicked(panic) => Some(Fault::Panicked(panic.0.0.clone())),
            TaskError::Failed(error) => Some(Fault::Failed((*error.0).clone())),
            TaskError::Codec(error) => Some(Fault::Codec((*error.0).clone())),
            TaskError::TooLarge { size, limit } => Some(Fault::TooLarge { size: *size, limit: *limit }),
            TaskError::Cancelled => Some(Fault::Cancelled),
            _ => None,
        }
    }
}

/// A panic in a task.
#[derive(Clone)]
pub struct Panic(Arc<(PanicReport, PanicLocation)>);

impl Panic {
    /// What the task panicked with; a text in place of it when that was no string.
    pub fn message(&self) -> &str {
        &self.0.0.message
    }

    /// Where it panicked; shows as `file:line:column`.
    pub fn location(&self) -> &PanicLocation {
        &self.0.1
    }

    /// The backtrace, if the worker's environment asks for one (`RUST_BACKTRACE=1`).
    pub fn backtrace(&self) -> Option<&str> {
        self.0.0.backtrace.as_deref()
    }

    /// The name of the thread that panicked, if it has one.
    pub fn thread(&self) -> Option<&str> {
        self.0.0.thread.as_deref()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task panicked at {}: {}", Shown(self.location()), Shown(self.message()))
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panic")
            .field("message", &self.message())
            .field("location", &self.location().as_ref())
            .field("thread", &self.thread())
            .finish_non_exhaustive()
    }
}

/// A place in source code; shows as `file:line:column`, and can be used as that text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicLocation {
    text: String,
    place: PlaceReport,
}

impl PanicLocation {
    fn new(place: &PlaceReport) -> PanicLocation {
        PanicLocation {
            text: format!("{}:{}:{}", place.file, place.line, place.column),
            place: place.clone(),
        }
    }

    /// The source file, as the compiler was given it.
    pub fn file(&self) -> &str {
        &self.place.file
    }

    /// The line, counted from 1.
    pub fn line(&self) -> u32 {
        self.place.line
    }

    /// The column, counted from 1.
    pub fn column(&self) -> u32 {
        self.place.column
    }
}

impl fmt::Display for PanicLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl AsRef<str> for PanicLocation {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl std::ops::Deref for PanicLocation {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// An `anyhow::Error` that a task returned; shows as its outermost message, and with `{:#}` as
/// the whole chain.
#[derive(Clone)]
pub struct RemoteError(Arc<FailureReport>);

impl RemoteError {
    /// The messages of the error and its causes, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.0.chain.iter().map(String::as_str)
    }

    /// The backtrace, if the worker's environment asks for one (`RUST_BACKTRACE=1`).
    pub fn backtrace(&self) -> Option<&str> {
        self.0.backtrace.as_deref()
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if f.alternate() { usize::MAX } else { 1 };
        for (at, message) in self.chain().take(shown).enumerate() {
            f.write_str(if at == 0 { "" } else { ": " })?;
            Shown(message).fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteError").field("chain", &self.0.chain).finish_non_exhaustive()
    }
}

/// Which of the four ways through the codec failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CodecStage {
    /// The arguments would not encode, in the caller's process.
    EncodeArguments,
    /// The arguments would not decode, in the worker.
    DecodeArguments,
    /// The result would not encode, in the worker.
    EncodeResult,
    /// The result would not decode, in the caller's process.
    DecodeResult,
}

impl fmt::Display for CodecStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CodecStage::EncodeArguments => "encode the arguments",
            CodecStage::DecodeArguments => "decode the arguments",
            CodecStage::EncodeResult => "encode the result",
            CodecStage::DecodeResult => "decode the result",
        })
    }
}

/// Arguments or a result that would not encode or decode.
///
/// Values travel as [postcard](https://docs.rs/postcard), which does not describe itself: serde's
/// `flatten`, `untagged`, `tag` and `skip_serializing_if` do not work with it. Send such a value
/// as a string of JSON, or through a struct without these attributes.
///
/// Nor do results that are nested more than 256 levels deep, where each option, sequence, map, struct and
/// enum counts: decoding them takes stack, and it is not for a worker to say how much of it. The same
/// goes for results with more elements that take up no bytes (`Vec<()>`) than a million.
#[derive(Clone)]
pub struct CodecError(Arc<CodecReport>);

impl CodecError {
    /// What was being done.
    pub fn stage(&self) -> CodecStage {
        self.0.stage
    }

    /// The name of the type that it was done to.
    pub fn type_name(&self) -> &str {
        &self.0.type_name
    }

    /// What the codec says.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (type_name, cause) = (Shown(self.type_name()), Shown(self.cause()));
        write!(f, "failed to {} (`{type_name}`): {cause}", self.stage())
    }
}

impl fmt::Debug for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for CodecError {}
impl std::error::Error for RemoteError {}
impl std::error::Error for Panic {}
impl std::error::Error for WorkerExit {}

/// Why a pool cannot be built, or cannot start workers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting of the builder makes no sense.
    InvalidSetting {
        /// What is wrong with which setting.
        reason: String,
    },
    /// There is no tokio runtime for the pool to live on.
    NoRuntime,
    /// The tokio runtime lacks its I/O or time driver.
    RuntimeWithoutDrivers,
    /// The process is a worker, and already as deep in nested pools as is allowed.
    TooDeep {
        /// The depth that is allowed.
        limit: u32,
    },
    /// The process was started to be a worker but has come to build a pool of its own without
    /// having called [`init`](crate::init) (needed without the feature `auto-init`).
    NotInitialized,
    /// A process could not be started.
    Start {
        /// What failed.
        reason: String,
    },
    /// A worker or the fork server ended, or said nothing for too long, before it was ready.
    NotReady {
        /// What is known of it.
        reason: String,
    },
    /// A worker or the fork server runs another build of the program.
    BuildMismatch,
    /// A worker cannot be given the limits or the sandbox that the pool's builder asks for.
    NotConfined {
        /// What failed.
        reason: String,
    },
    /// The queue through which the pool reaches its agents cannot be used.
    #[cfg(feature = "nats")]
    Queue {
        /// What failed.
        reason: String,
    },
    /// The initializer failed in a worker.
    Initializer(Box<TaskError>),
    /// The preload function failed in the fork server, or left a thread behind.
    Preload {
        /// What went wrong.
        reason: String,
    },
    /// The file of [`Builder::timeline`](crate::Builder::timeline) cannot be written.
    Timeline {
        /// Where it was to be.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// The pool was shut down meanwhile.
    ShutDown,
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::InvalidSetting { reason } => f.write_str(reason),
            PoolError::NoRuntime => f.write_str(
                "there is no tokio runtime here: build the pool within one, or pass one with `Builder::runtime`",
            ),
            PoolError::RuntimeWithoutDrivers => f.write_str(
                "the tokio runtime lacks its I/O or time driver: build it with `enable_all()`",
            ),
            PoolError::TooDeep { limit } => {
                write!(f, "pools may be nested to a depth of {limit}, and this worker is that deep already")
            }
            PoolError::NotInitialized => f.write_str(
                "this process was started as a worker but is running `main`: call `procession::init()` \
                 at the start of `main`, or enable the feature `auto-init`",
            ),
            PoolError::Start { reason } => write!(f, "failed to start a process: {reason}"),
            PoolError::NotReady { reason } => write!(f, "a process was not ready for work: {}", Shown(reason)),
            PoolError::BuildMismatch => f.write_str(
                "a worker runs another build of the program than the pool: \
                 restart the program after replacing its executable",
            ),
            PoolError::NotConfined { reason } => {
                write!(f, "a worker could not be given its limits or its sandbox: {}", Shown(reason))
            }
            #[cfg(feature = "nats")]
            PoolError::Queue { reason } => write!(f, "the queue cannot be used: {reason}"),
            PoolError::Initializer(error) => match &**error {
                TaskError::Panicked(panic) => {
                    let (place, message) = (Shown(panic.location()), Shown(panic.message()));
                    write!(f, "the initializer failed: it panicked at {place}: {message}")
                }
                // The first cause may be what there is to be done something about.
                error => write!(f, "the initializer failed: {error:#}"),
            },
            PoolError::Preload { reason } => write!(f, "the preload function failed: {}", Shown(reason)),
            PoolError::Timeline { path, reason } => write!(
                f,
                "the timeline cannot be written to {}: {reason}; give `Builder::timeline` a file that may be \
                 written, and that no other pool writes to",
                path.display()
            ),
            PoolError::ShutDown => f.write_str("the pool was shut down"),
        }
    }
}

/// Its text tells the whole story, so there is no separate source.
impl std::error::Error for PoolError {}
