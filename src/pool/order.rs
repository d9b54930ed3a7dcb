//! What is said of a task when it is submitted.

use super::progress::Talker;
use super::shared::Settings;
use super::voice::Audience;
use crate::task::{Priority, TraceContext};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How a task is to be run.
#[derive(Default)]
pub(super) struct Order {
    pub(super) timeout: Option<Duration>,
    pub(super) retries: u32,
    pub(super) priority: Priority,
    pub(super) name: Option<String>,
    /// How many items it has, if it is a chunk, whose items' results come one by one.
    pub(super) items: usize,
    /// It is a stream, with so many items that were not taken.
    pub(super) window: Option<u64>,
    /// Its number, if it has one already,
    pub(super) id: Option<u64>,
    /// and what it says of itself.
    pub(super) talker: Option<Talker>,
    /// A place in the bounded queue that was reserved.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Room was waited for: where the queue is full after all, it waits on.
    pub(super) is_reserved: bool,
    /// Who it is to whoever submitted it elsewhere, if this pool runs it for another one.
    pub(super) alias: Option<Alias>,
    pub(super) origin: Origin,
}

/// A task as another pool knows it.
#[derive(Clone, Copy)]
pub(super) struct Alias {
    pub(super) id: u64,
    /// How many attempts there were before.
    pub(super) attempts: u32,
}

/// What a task is submitted in.
#[derive(Clone, Default)]
pub(super) struct Origin {
    pub(super) audience: Audience,
    /// The place in a distributed trace.
    pub(super) trace: Option<Box<TraceContext>>,
}

impl Origin {
    /// Here and now, unless a place in a trace was given.
    pub(super) fn here(settings: &Settings, given: Option<Box<TraceContext>>) -> Origin {
        let trace = given.or_else(|| settings.trace_of_here().map(Box::new));
        Origin { audience: Audience::of_here(&settings.forwarding), trace }
    }
}

impl Settings {
    pub(super) fn trace_of_here(&self) -> Option<TraceContext> {
        let told = self.trace_context.and_then(|tell| tell());
        told.or_else(|| {
            // What a task submits to a pool of its own belongs to the same trace.
            let task = crate::worker::is_worker().then(crate::worker::current).flatten()?;
            task.trace_context().cloned()
        })
    }
}
