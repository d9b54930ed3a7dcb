//! Where a task and its handle meet.

use super::inflow::Inflow;
use super::order::Alias;
use super::progress::{self, ProgressWatch, Talker, talker};
use super::scheduler::Nanos;
use super::shared::Shared;
use super::voice::Audience;
use crate::task::{Fault, Label, Progress, TaskError, TaskId, TimeoutReport, TraceContext};
use bytes::Bytes;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::OwnedSemaphorePermit;

/// How a task ended, the value still encoded: the handle decodes it, in the task that awaits it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Value(Bytes),
    Fault(Box<Fault>),
    Error(Box<TaskError>),
}

impl Outcome {
    /// The size of a value.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Outcome::Value(bytes) => bytes.len(),
            Outcome::Fault(_) | Outcome::Error(_) => 0,
        }
    }

    pub(super) fn into_result(self) -> Result<Bytes, TaskError> {
        match self {
            Outcome::Value(bytes) => Ok(bytes),
            Outcome::Fault(fault) => Err((*fault).into()),
            Outcome::Error(error) => Err(*error),
        }
    }
}

/// A submitted task: what is to be run, and what came of it.
pub(super) struct Cell {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    /// The task's place in the scheduler; written and read under the lock of the pool's state.
    pub(super) place: AtomicU32,
    /// When it was accepted; written and read as its place is.
    submitted: AtomicU64,
    pub(super) label: Label,
    /// The offset of the shim.
    pub(super) shim: u64,
    /// Who is to hear what it logs.
    pub(super) audience: Audience,
    /// What few tasks have.
    pub(super) extra: Option<Box<Extra>>,
    slot: Mutex<Slot>,
    /// What it says of itself, once it does or somebody watches.
    talker: OnceLock<Talker>,
}

pub(super) struct Extra {
    pub(super) name: Option<String>,
    pub(super) timeout: Option<u64>,
    pub(super) trace: Option<Box<TraceContext>>,
    /// The place in a bounded queue, given up when the task is resolved.
    pub(super) permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// Where it was when its time ran out.
    timeout_report: OnceLock<TimeoutReport>,
    /// How many items a chunk has; 0 for a single task.
    items: usize,
    /// Who it is elsewhere.
    alias: Option<Alias>,
    /// The results of a chunk's items so far.
    parts: Mutex<Parts>,
    /// The items of a stream.
    inflow: Option<Inflow>,
}

/// The results of a chunk's items: each its length (u32, little-endian) and its bytes.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) count: usize,
    pub(super) bytes: Vec<u8>,
}

impl Parts {
    /// The size of the results alone: each stands behind its length and the byte that says what it is.
    fn size(&self) -> usize {
        self.bytes.len().saturating_sub(self.count * 5)
    }
}

impl Extra {
    pub(super) fn new(
        name: Option<String>,
        timeout: Option<u64>,
        trace: Option<Box<TraceContext>>,
        permit: Option<OwnedSemaphorePermit>,
        items: usize,
        inflow: Option<Inflow>,
    ) -> Extra {
        Extra {
            items,
            alias: None,
            name,
            timeout,
            trace,
            permit: Mutex::new(permit),
            timeout_report: OnceLock::new(),
            parts: Mutex::default(),
            inflow,
        }
    }

    pub(super) fn with_alias(mut self, alias: Option<Alias>) -> Extra {
        self.alias = alias;
        self
    }
}

enum Slot {
    Waiting { body: Bytes, waker: Option<Waker> },
    Done(Outcome),
    Taken,
}

impl Cell {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: u64,
        label: Label,
        shim: u64,
        body: Bytes,
        audience: Audience,
        extra: Option<Box<Extra>>,
    ) -> Cell {
        Cell {
            shared,
            id,
            place: AtomicU32::new(u32::MAX),
            submitted: AtomicU64::new(0),
            label,
            shim,
            audience,
            extra,
            slot: Mutex::new(Slot::Waiting { body, waker: None }),
            talker: OnceLock::new(),
        }
    }

    /// Has it talk through what was made for it, to be set before it is submitted.
    pub(super) fn set_talker(&self, talker: Talker) {
        // Only submitted once.
        let _ = self.talker.set(talker);
    }

    /// Watches what it says of itself.
    pub(super) fn progress(&self) -> ProgressWatch {
        let watch = ProgressWatch::new(self.talker.get_or_init(talker));
        // Had it been resolved before there was anything to be told of that, nobody would be.
        if self.is_resolved() {
            self.end_talk();
        }
        watch
    }

    /// It has said how far it has got.
    pub(super) fn tell(&self, progress: Progress) {
        progress::tell(self.talker.get_or_init(talker), progress);
    }

    /// The last that it has said of how far it has got.
    #[cfg(feature = "nats")]
    pub(super) fn latest_progress(&self) -> Option<Progress> {
        progress::latest(self.talker.get()?)
    }

    fn end_talk(&self) {
        self.talker.get().into_iter().for_each(progress::end);
    }

    /// Its items, if it is a stream.
    pub(super) fn inflow(&self) -> Option<&Inflow> {
        self.extra.as_ref()?.inflow.as_ref()
    }

    pub(super) fn id(&self) -> TaskId {
        TaskId(self.id)
    }

    /// What people see of the task.
    pub(super) fn description(&self) -> String {
        match self.name() {
            Some(name) => format!("\"{name}\", {}", self.label),
            None => self.label.to_string(),
        }
    }

    /// Where it was when its time ran out, to be set before it is resolved.
    pub(super) fn set_timeout_report(&self, report: TimeoutReport) {
        if let Some(extra) = &self.extra {
            // Only resolved once.
            let _ = extra.timeout_report.set(report);
        }
    }

    pub(super) fn timeout_report(&self) -> Option<&TimeoutReport> {
        self.extra.as_ref()?.timeout_report.get()
    }

    /// How many items a chunk has; 0 for a single task.
    pub(super) fn items(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.items)
    }

    /// The name that its caller gave it.
    pub(super) fn name(&self) -> Option<&str> {
        self.extra.as_ref()?.name.as_deref()
    }

    /// Its number and how many attempts were made before, as the task itself is told.
    pub(super) fn shown(&self) -> (u64, u32) {
        let alias = self.extra.as_ref().and_then(|extra| extra.alias);
        alias.map_or((self.id, 0), |alias| (alias.id, alias.attempts))
    }

    /// The encoded arguments, until the task is resolved.
    pub(super) fn body(&self) -> Bytes {
        match &*self.slot() {
            Slot::Waiting { body, .. } => body.clone(),
            Slot::Done(_) | Slot::Taken => Bytes::new(),
        }
    }

    /// Resolves the task and wakes whoever awaits it; the first outcome stays.
    pub(super) fn resolve(&self, outcome: Outcome) {
        // Before anybody can see that it is over.
        self.audience.leave();
        let old = {
            let mut slot = self.slot();
            match &*slot {
                Slot::Waiting { .. } => std::mem::replace(&mut *slot, Slot::Done(outcome)),
                Slot::Done(_) | Slot::Taken => return,
            }
        };
        if let Some(extra) = &self.extra {
            lock(&extra.permit).take();
        }
        self.end_talk();
        if let Slot::Waiting { waker: Some(waker), .. } = old {
            waker.wake();
        }
    }

    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut slot = self.slot();
        match &mut *slot {
            Slot::Waiting { waker, .. } => {
                let is_known = waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
                let old = if is_known { None } else { waker.replace(context.waker().clone()) };
                // Dropping a waker runs foreign code.
                drop(slot);
                drop(old);
                Poll::Pending
            }
            Slot::Done(_) => match std::mem::replace(&mut *slot, Slot::Taken) {
                Slot::Done(outcome) => Poll::Ready(outcome),
                Slot::Waiting { .. } | Slot::Taken => Poll::Pending,
            },
            Slot::Taken => panic!("a `TaskHandle` was polled after it had completed"),
        }
    }

    pub(super) fn is_resolved(&self) -> bool {
        !matches!(&*self.slot(), Slot::Waiting { .. })
    }

    /// Whether it was resolved as cancelled, while its handle has not taken that.
    pub(super) fn is_cancelled(&self) -> bool {
        match &*self.slot() {
            Slot::Done(Outcome::Error(error)) => matches!(**error, TaskError::Cancelled),
            _ => false,
        }
    }

    /// Keeps the result of a chunk's next item; false if it has no more items.
    pub(super) fn add_part(&self, part: &[u8]) -> bool {
        let Some(extra) = &self.extra else { return false };
        let mut parts = lock(&extra.parts);
        if parts.count == extra.items {
            return false;
        }
        parts.count += 1;
        // The maximum message size is below 4 GiB.
        parts.bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        parts.bytes.extend_from_slice(part);
        true
    }

    /// The size of what it has given, with this outcome.
    pub(super) fn bytes_out(&self, outcome: &Outcome) -> usize {
        match self.extra.as_deref() {
            Some(extra) if extra.items > 0 => lock(&extra.parts).size(),
            Some(Extra { inflow: Some(inflow), .. }) => inflow.total() as usize,
            _ => outcome.bytes(),
        }
    }

    /// It is about to be sent to a worker: what another one has said that denies to have begun it does not
    /// count.
    pub(super) fn forget_parts(&self) {
        if let Some(extra) = self.extra.as_ref().filter(|extra| extra.items > 0) {
            let parts = std::mem::take(&mut *lock(&extra.parts));
            drop(parts);
        }
    }

    pub(super) fn take_parts(&self) -> Parts {
        self.extra.as_ref().map_or_else(Parts::default, |extra| std::mem::take(&mut lock(&extra.parts)))
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        lock(&self.slot)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place and the time, to be used under the lock of the pool's state.
impl Cell {
    pub(super) fn set_submitted(&self, at: Nanos) {
        self.submitted.store(at, Ordering::Relaxed);
    }

    pub(super) fn submitted(&self) -> Nanos {
        self.submitted.load(Ordering::Relaxed)
    }

    pub(super) fn key(&self) -> super::scheduler::TaskKey {
        super::scheduler::TaskKey { place: self.place.load(Ordering::Relaxed), id: self.id }
    }
}
