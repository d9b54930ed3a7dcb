//! What a pool and a worker say to each other.

use super::arena::Place;
use crate::task::{Fault, Progress, TraceContext};
use serde::{Deserialize, Serialize};

/// The version of this protocol. Both sides are of one build, so it only ever differs when the
/// build check failed too; it is there to say so plainly.
pub(crate) const PROTOCOL: u32 = 1;

/// What a stream may have under way of bytes that its consumer has not taken: an item leaves while
/// there are fewer than these.
pub(crate) const STREAM_BYTES: u64 = 4 << 20;

/// What an item of a stream counts for beside its bytes: about what holding one takes.
pub(crate) const ITEM_COST: u64 = 64;

/// The head of a frame to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first frame. Its body is the initializer's arguments.
    Setup(Setup),
    /// Run a task. The body is its arguments.
    Run(Run),
    /// Tell the task that was sent under this number, if it runs now, that it is cancelled.
    Cancel { seq: u64 },
    /// The consumer of a stream has taken so many items, of so many bytes in all: as much more may
    /// come.
    Grant { seq: u64, items: u64, bytes: u64 },
    /// From now on, so much is to be said of what tasks log.
    Listen(Levels),
    /// Leave the task that was sent under this number, unless it has begun. Only sent where there is no
    /// control page to take it back in.
    Recall { seq: u64 },
}

/// What a worker needs to know before its first task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) protocol: u32,
    pub(crate) build: Vec<u8>,
    /// The most bytes that a result may have.
    pub(crate) max_message: u64,
    /// How long to look out for the next task before sleeping, in nanoseconds.
    pub(crate) look_out: u64,
    /// Answer, when asked, where a task is.
    pub(crate) tells_whereabouts: bool,
    /// The offset of the initializer's shim.
    pub(crate) initializer: Option<u64>,
    /// How much is to be said of what tasks log.
    pub(crate) levels: Levels,
}

/// How much is said at all: 0 is nothing, then from 1, errors, to 5, everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Levels {
    /// Of spans and events.
    pub(crate) tracing: u8,
    /// Of log records.
    pub(crate) log: u8,
}

/// One task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The number under which it was sent to this worker.
    pub(crate) seq: u64,
    /// Its number in the pool.
    pub(crate) id: u64,
    /// The offset of its shim.
    pub(crate) shim: u64,
    /// Which attempt this is, from 1.
    pub(crate) attempt: u32,
    /// How long it may run, in nanoseconds.
    pub(crate) timeout: Option<u64>,
    pub(crate) name: Option<String>,
    /// Where the arguments are, if not in the body.
    pub(crate) place: Option<Place>,
    /// It is a stream, of which so many items may come before the first grant.
    pub(crate) window: Option<u64>,
    /// The trace that it is part of.
    pub(crate) trace: Option<Box<TraceContext>>,
}

impl Reply {
    /// Whether there may be a body behind it.
    pub(crate) fn may_have_body(&self) -> bool {
        matches!(self, Reply::Part { .. } | Reply::Value { .. } | Reply::Item { .. } | Reply::Voice { .. })
    }
}

/// The head of a frame from a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The first frame.
    Hello { protocol: u32, build: Vec<u8> },
    /// In its place: the limits or the sandbox could not be put in place.
    NotConfined { reason: String },
    /// The initializer is done; tasks may come.
    Ready,
    /// There will be no `Ready`.
    NotReady { fault: Fault },
    /// Another item of this chunk has begun, whose time is limited. Only sent where there is no control
    /// page to read it from.
    Began { seq: u64 },
    /// One item's result; the body is a byte that says which kind, and its encoding.
    Part { seq: u64 },
    /// The task is done; the body is its value, unless there is a place where that is.
    /// It ran for so many nanoseconds.
    Value { seq: u64, is_worn: bool, ran: u64, place: Option<Place> },
    /// The task is done and has no value. With `dying`, the worker will not run another.
    Fault { seq: u64, is_worn: bool, dying: bool, ran: u64, fault: Fault },
    /// There is something in the ring. It has no task of its own.
    Bell,
    /// The task had been taken back before the worker came to it.
    Skipped { seq: u64 },
    /// The next item of a stream: its encoding, or that of the fault that stands in its place, is the
    /// body, unless there is a place where that is.
    Item { seq: u64, is_fault: bool, place: Option<Place> },
    /// How far the task has got.
    Progress { seq: u64, progress: Progress },
    /// Something that was logged, while this task ran or between tasks; the body is what.
    Voice { task: Option<u64> },
}
