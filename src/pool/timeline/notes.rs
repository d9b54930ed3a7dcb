//! What is passed to the thread that writes: what it needs to know, and nothing that a pool lives in.

use crate::pool::observe::{Cause, Ending, Levels};
use crate::pool::scheduler::Nanos;
use crate::task::{Label, WorkerExit};
use std::time::Duration;

/// Something that has happened.
pub(super) enum Note {
    Task(Run),
    Ready { pid: u32, wanted: Nanos, age: Duration, is_restart: bool, at: Nanos },
    StartFailed { reason: String, at: Nanos },
    Gone { exit: WorkerExit, has_died: bool, cause: Cause, at: Nanos },
    Levels(Levels),
}

/// An attempt at a task, or a task that there was none at.
pub(super) struct Run {
    pub(super) id: u64,
    pub(super) name: Option<Box<str>>,
    pub(super) label: Label,
    pub(super) number: u32,
    pub(super) ending: Ending,
    pub(super) is_retried: bool,
    pub(super) pid: Option<u32>,
    pub(super) submitted: Nanos,
    pub(super) began: Option<Nanos>,
    pub(super) ended: Nanos,
    pub(super) items: usize,
    pub(super) bytes_in: usize,
    pub(super) bytes_out: usize,
}
