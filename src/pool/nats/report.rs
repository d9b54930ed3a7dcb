//! How a task ended, on its way from an agent to its caller. Nothing is lost in translation.

use crate::pool::cell::Outcome;
use crate::task::{ExitReport, Fault, PoolError, TaskError, TimeoutReport, WorkerExit};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The longest text that is taken over from an agent.
const MAX_TEXT: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ending {
    /// The value is behind the head.
    Value,
    Fault(Fault),
    Died(ExitReport),
    TimedOut {
        limit: Duration,
        stuck: Option<Stuck>,
    },
    NotInMainImage {
        task: String,
    },
    /// The agent ended before the task did.
    Lost,
    Broken(Breakage),
}

/// Where a task was when its time ran out.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stuck {
    state: Option<char>,
    kernel_function: Option<String>,
    kernel_stack: Option<String>,
    backtrace: Option<String>,
}

/// Why an agent cannot start workers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Breakage {
    InvalidSetting { reason: String },
    NoRuntime,
    RuntimeWithoutDrivers,
    TooDeep { limit: u32 },
    NotInitialized,
    Start { reason: String },
    NotReady { reason: String },
    BuildMismatch,
    NotConfined { reason: String },
    Queue { reason: String },
    Initializer(Box<Ending>),
    Preload { reason: String },
    Timeline { path: String, reason: String },
    ShutDown,
}

impl Ending {
    /// How a task ended on an agent, and where it was if its time had run out.
    pub(super) fn of(outcome: &Outcome, stuck: Option<&TimeoutReport>) -> Ending {
        match outcome {
            Outcome::Value(_) => Ending::Value,
            Outcome::Fault(fault) => Ending::Fault((**fault).clone()),
            Outcome::Error(error) => Ending::of_error(error, stuck),
        }
    }

    fn of_error(error: &TaskError, stuck: Option<&TimeoutReport>) -> Ending {
        match error {
            TaskError::WorkerDied(exit) => Ending::Died((*exit.0).clone()),
            TaskError::TimedOut { limit } => Ending::TimedOut { limit: *limit, stuck: stuck.map(Stuck::of) },
            TaskError::NotInMainImage { task } => Ending::NotInMainImage { task: task.clone() },
            TaskError::PoolBroken(cause) => Ending::Broken(Breakage::of(cause)),
            TaskError::QueueFull { .. } | TaskError::ShutDown | TaskError::NodeLost => Ending::Lost,
            TaskError::Panicked(_)
            | TaskError::Failed(_)
            | TaskError::Cancelled
            | TaskError::Codec(_)
            | TaskError::TooLarge { .. } => error.to_fault().map_or(Ending::Lost, Ending::Fault),
        }
    }

    /// The same, as its caller sees it: `value` is what was behind the head, and `task` tells what it was.
    pub(super) fn into_outcome(
        self,
        value: Bytes,
        task: impl FnOnce() -> String,
    ) -> (Outcome, Option<TimeoutReport>) {
        let (error, stuck) = match self {
            Ending::Value => return (Outcome::Value(value), None),
            Ending::Fault(fault) => return (Outcome::Fault(Box::new(fault.bounded())), None),
            Ending::Died(report) => {
                let exit = WorkerExit(Arc::new(bounded(report)));
                (TaskError::WorkerDied(exit.while_running(task())), None)
            }
            Ending::TimedOut { limit, stuck } => {
                (TaskError::TimedOut { limit }, stuck.map(Stuck::into_report))
            }
            other => (other.into_error(), None),
        };
        (Outcome::Error(Box::new(error)), stuck)
    }

    fn into_error(self) -> TaskError {
        match self {
            Ending::Value | Ending::Lost => TaskError::NodeLost,
            Ending::Fault(fault) => fault.bounded().into(),
            Ending::Died(report) => TaskError::WorkerDied(WorkerExit(Arc::new(bounded(report)))),
            Ending::TimedOut { limit, .. } => TaskError::TimedOut { limit },
            Ending::NotInMainImage { task } => TaskError::NotInMainImage { task: cut(task) },
            Ending::Broken(cause) => TaskError::PoolBroken(cause.into_error()),
        }
    }
}

impl Breakage {
    fn of(error: &PoolError) -> Breakage {
        match error.clone() {
            PoolError::InvalidSetting { reason } => Breakage::InvalidSetting { reason },
            PoolError::NoRuntime => Breakage::NoRuntime,
            PoolError::RuntimeWithoutDrivers => Breakage::RuntimeWithoutDrivers,
            PoolError::TooDeep { limit } => Breakage::TooDeep { limit },
            PoolError::NotInitialized => Breakage::NotInitialized,
            PoolError::Start { reason } => Breakage::Start { reason },
            PoolError::NotReady { reason } => Breakage::NotReady { reason },
            PoolError::BuildMismatch => Breakage::BuildMismatch,
            PoolError::NotConfined { reason } => Breakage::NotConfined { reason },
            PoolError::Queue { reason } => Breakage::Queue { reason },
            PoolError::Initializer(error) => Breakage::Initializer(Box::new(Ending::of_error(&error, None))),
            PoolError::Preload { reason } => Breakage::Preload { reason },
            PoolError::Timeline { path, reason } => {
                Breakage::Timeline { path: path.to_string_lossy().into_owned(), reason }
            }
            PoolError::ShutDown => Breakage::ShutDown,
        }
    }

    fn into_error(self) -> PoolError {
        match self {
            Breakage::InvalidSetting { reason } => PoolError::InvalidSetting { reason: cut(reason) },
            Breakage::NoRuntime => PoolError::NoRuntime,
            Breakage::RuntimeWithoutDrivers => PoolError::RuntimeWithoutDrivers,
            Breakage::TooDeep { limit } => PoolError::TooDeep { limit },
            Breakage::NotInitialized => PoolError::NotInitialized,
            Breakage::Start { reason } => PoolError::Start { reason: cut(reason) },
            Breakage::NotReady { reason } => PoolError::NotReady { reason: cut(reason) },
            Breakage::BuildMismatch => PoolError::BuildMismatch,
            Breakage::NotConfined { reason } => PoolError::NotConfined { reason: cut(reason) },
            Breakage::Queue { reason } => PoolError::Queue { reason: cut(reason) },
            Breakage::Initializer(ending) => PoolError::Initializer(Box::new(ending.into_error())),
            Breakage::Preload { reason } => PoolError::Preload { reason: cut(reason) },
            Breakage::Timeline { path, reason } => {
                PoolError::Timeline { path: cut(path).into(), reason: cut(reason) }
            }
            Breakage::ShutDown => PoolError::ShutDown,
        }
    }
}

impl Stuck {
    fn of(report: &TimeoutReport) -> Stuck {
        let TimeoutReport { state, kernel_function, kernel_stack, backtrace } = report.clone();
        Stuck { state, kernel_function, kernel_stack, backtrace }
    }

    fn into_report(self) -> TimeoutReport {
        TimeoutReport {
            state: self.state,
            kernel_function: self.kernel_function.map(cut),
            kernel_stack: self.kernel_stack.map(cut),
            backtrace: self.backtrace.map(cut),
        }
    }
}

fn bounded(report: ExitReport) -> ExitReport {
    ExitReport {
        detail: report.detail.map(cut),
        task: report.task.map(cut),
        stderr_tail: cut(report.stderr_tail),
        stdout_tail: cut(report.stdout_tail),
        ..report
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ExitCause, PanicReport, PlaceReport};

    fn through(error: TaskError) -> TaskError {
        let ending = Ending::of(&Outcome::Error(Box::new(error)), None);
        let bytes = postcard::to_stdvec(&ending).unwrap();
        let ending = postcard::from_bytes::<Ending>(&bytes).unwrap();
        ending.into_outcome(Bytes::new(), || "it".into()).0.into_result().unwrap_err()
    }

    #[test]
    fn errors_come_through_as_they_are() {
        let panic = Fault::Panicked(PanicReport {
            message: "no".into(),
            place: PlaceReport { file: "a.rs".into(), line: 1, column: 2 },
            backtrace: Some("here".into()),
            thread: Some("task".into()),
        });
        let exit = WorkerExit(Arc::new(ExitReport {
            pid: 7,
            code: None,
            signal: Some(9),
            core_dumped: true,
            cause: ExitCause::OutOfMemory,
            detail: Some("detail".into()),
            task: Some("it".into()),
            stderr_tail: "words".into(),
            stdout_tail: "more".into(),
            max_rss: 8,
            cpu_time: Duration::from_nanos(9),
        }));
        let cause = PoolError::Initializer(Box::new(panic.clone().into()));
        for error in [
            TaskError::from(panic),
            TaskError::WorkerDied(exit),
            TaskError::TimedOut { limit: Duration::from_nanos(3) },
            TaskError::TooLarge { size: 2, limit: 1 },
            TaskError::NotInMainImage { task: "it".into() },
            TaskError::NodeLost,
            TaskError::PoolBroken(cause),
            TaskError::PoolBroken(PoolError::Start { reason: "none".into() }),
        ] {
            assert_eq!(format!("{:?}", through(error.clone())), format!("{error:?}"));
            assert_eq!(through(error.clone()).to_string(), error.to_string());
        }
    }
}
