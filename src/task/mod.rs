//! The vocabulary that both sides of a pool share: tasks and their shapes, how a function is
//! named across processes, and everything that can become of a task.

mod bounded;
mod codec;
mod emit;
mod error;
mod exit;
mod fault;
mod function;
mod progress;
mod shape;
mod shown;
mod stuck;
mod trace_context;
mod yields;

#[cfg(any(test, feature = "internals"))]
pub(crate) use codec::to_body;
pub(crate) use codec::{Sink, decode, from_body};
pub use emit::{Closed, Emit, Emitter, emit};
pub(crate) use emit::{Encoded, Outflow};
pub use error::{CodecError, CodecStage, Panic, PanicLocation, PoolError, RemoteError, TaskError};
pub use exit::{ExitCause, WorkerExit};
pub(crate) use exit::{ExitReport, SignalName};
pub(crate) use fault::Fault;
pub(crate) use fault::cut as cut_message;
pub(crate) use fault::{PanicReport, PlaceReport};
pub(crate) use fault::{has_room_for_names, panic_message};
pub(crate) use function::Call;
pub(crate) use function::{Host, Label, TaskRef, resolve};
pub use progress::Progress;
pub use shape::{Arguments, Never, Returned};
pub(crate) use shown::Shown;
pub use stuck::TimeoutReport;
pub(crate) use stuck::cut;
pub use trace_context::{TraceContext, TraceContextError};
pub use yields::{StreamArguments, Yielded, Yields};

use std::fmt;

/// The number of a task, unique within its pool and counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub(crate) u64);

impl TaskId {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of the waiting tasks a worker takes first.
///
/// Tasks of one priority run in the order in which they were submitted. A lower priority waits
/// for as long as there are tasks of a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After everything else.
    Low,
    /// What a task has that says nothing.
    #[default]
    Normal,
    /// Before everything else.
    High,
}
