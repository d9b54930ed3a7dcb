//! The pool's end of each worker.

use super::inquiry::Inquiry;
use super::outlet::Outlet;
use super::scheduler::{Kill, Ledger, Nanos, Violation, WorkerKey};
use super::state::Chores;
use super::voice::Ear;
use crate::process::{FarEnd, Killer, Tail};
use crate::sys::memory::words_for;
use crate::wire::{LARGE, Page, Room};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// The pool's end of each worker, by its place in the scheduler.
#[derive(Default)]
pub(super) struct Links(pub(super) Vec<Option<Link>>);

// Nearly all are ready, and looked at with every task.
#[allow(clippy::large_enum_variant)]
pub(super) enum Link {
    Starting { called_off: CancellationToken },
    Ready(ReadyLink),
}

/// The pool's end of a worker that is ready.
pub(super) struct ReadyLink {
    pub(super) pid: u32,
    pub(super) started: Instant,
    pub(super) outlet: Arc<Outlet>,
    pub(super) page: Option<Arc<Page>>,
    /// Without a page: what is known of the worker once it has ended.
    pub(super) far: Option<Arc<FarEnd>>,
    /// Room for large arguments in the page.
    pub(super) room: Room,
    /// Without a page: the last chunk that an item of has begun, and when that was.
    pub(super) began: (u64, Nanos),
    pub(super) killer: Killer,
    pub(super) stdout: Tail,
    pub(super) stderr: Tail,
    pub(super) is_unresponsive: bool,
    /// To find out where it is stuck before it is killed.
    pub(super) inquiry: Option<Inquiry>,
    /// The number of the last task that was written to the pipe, rather than gathered.
    pub(super) written: u64,
    /// Where the grants end that are not written to the pipe yet.
    pub(super) unread_grants: VecDeque<u64>,
    pub(super) unanswered: Unanswered,
    pub(super) ear: Arc<Ear>,
}

/// Where the tasks end, in the stream of requests, that a worker was sent and has not answered. A
/// worker that answers what it has not read would have requests pile up without end.
#[derive(Default)]
pub(super) struct Unanswered {
    ends: VecDeque<(u64, u64)>,
    /// How much it must have read for what it has answered.
    read: u64,
}

impl Unanswered {
    pub(super) fn sent(&mut self, seq: u64, end: u64) {
        self.ends.push_back((seq, end));
    }

    pub(super) fn answered(&mut self, seq: u64) {
        while let Some(&(first, end)) = self.ends.front()
            && first <= seq
        {
            self.ends.pop_front();
            self.read = end;
        }
    }

    /// Whether what it has answered was written to it.
    pub(super) fn is_possible(&self, outlet: &Outlet) -> bool {
        self.read <= outlet.written()
    }
}

/// Large arguments to be copied into memory that is shared with a worker, whose outlet is held
/// until that is done.
pub(super) struct Copy {
    pub(super) page: Arc<Page>,
    pub(super) at: u64,
    pub(super) body: Bytes,
    pub(super) outlet: Arc<Outlet>,
}

impl ReadyLink {
    pub(super) fn kill(&mut self, why: Kill, chores: &mut Chores) {
        self.is_unresponsive = why == Kill::Unresponsive;
        match &self.inquiry {
            Some(inquiry) if why == Kill::TimedOut => chores.inquire.push(inquiry.clone()),
            _ => self.killer.kill(),
        }
    }

    /// Finds room for large arguments in the memory that is shared with the worker.
    pub(super) fn find_room(&mut self, seq: u64, bytes: usize) -> Option<(Arc<Page>, u64)> {
        let page = self.page.as_ref().filter(|_| bytes >= LARGE)?;
        let at = self.room.take(seq, words_for(bytes))?;
        Some((page.clone(), at))
    }
}

impl Links {
    pub(super) fn ready(&self, worker: WorkerKey) -> Option<&ReadyLink> {
        match self.0.get(worker)? {
            Some(Link::Ready(link)) => Some(link),
            _ => None,
        }
    }

    pub(super) fn ready_mut(&mut self, worker: WorkerKey) -> Option<&mut ReadyLink> {
        match self.0.get_mut(worker)? {
            Some(Link::Ready(link)) => Some(link),
            _ => None,
        }
    }

    pub(super) fn has_page(&self, worker: WorkerKey) -> bool {
        self.ready(worker).is_some_and(|link| link.page.is_some())
    }

    /// # Errors
    /// [`Violation`] if the worker has answered what it cannot have read.
    pub(super) fn is_possible(&self, worker: WorkerKey) -> Result<(), Violation> {
        let is_possible = self.ready(worker).is_none_or(|link| link.unanswered.is_possible(&link.outlet));
        if is_possible { Ok(()) } else { Err(Violation) }
    }

    pub(super) fn set(&mut self, worker: WorkerKey, link: Option<Link>) {
        if self.0.len() <= worker {
            self.0.resize_with(worker + 1, || None);
        }
        self.0[worker] = link;
    }
}

impl Ledger for Links {
    fn offer(&self, worker: WorkerKey, seq: u64) {
        if let Some(page) = self.ready(worker).and_then(|link| link.page.as_ref()) {
            page.offer(seq);
        }
    }

    fn take_back(&self, worker: WorkerKey, seq: u64) -> bool {
        self.ready(worker).is_some_and(|link| match (&link.page, &link.far) {
            (Some(page), _) => page.take_back(seq),
            // As long as it lives it must be asked.
            (None, Some(far)) => far.never_began(seq),
            (None, None) => false,
        })
    }

    fn is_finished(&self, worker: WorkerKey, seq: u64) -> bool {
        self.ready(worker).and_then(|link| link.page.as_ref()).is_some_and(|page| page.is_finished(seq))
    }

    fn written(&self, worker: WorkerKey) -> u64 {
        self.ready(worker).map_or(0, |link| {
            link.outlet.total().wrapping_add(link.far.as_ref().map_or(0, |far| far.progress()))
        })
    }

    fn began_at(&self, worker: WorkerKey, seq: u64) -> Option<Nanos> {
        let link = self.ready(worker)?;
        match &link.page {
            Some(page) => page.began_at(seq),
            None if link.began.0 == seq => Some(link.began.1),
            None => link.far.as_ref()?.began_at(seq),
        }
    }
}
