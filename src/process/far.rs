//! What is known of a worker on another machine when it has ended.

#![cfg_attr(not(feature = "remote"), allow(dead_code))]

use crate::sys::monotonic_now;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{Notify, oneshot};

/// The pool's hold on a process on another machine.
pub(crate) struct Far {
    pub(crate) end: Arc<FarEnd>,
    /// While this is there, connections stay open whose end has not been read.
    pub(crate) _hold: oneshot::Sender<()>,
}

/// What is known of the process beside how it ended.
#[derive(Debug, Default)]
pub(crate) struct FarEnd {
    told: OnceLock<Told>,
    progress: AtomicU64,
    /// The last task that is known to have begun, and when.
    begun: Mutex<(u64, u64)>,
    /// It was asked what it has begun, and has not answered.
    is_asked: AtomicBool,
    ask: Notify,
}

/// What was told of its end, before that is known to the pool.
#[derive(Debug)]
pub(crate) enum Told {
    /// By who looked after it there.
    Goodbye {
        /// The number of the last task that it had begun.
        begun: u64,
        last_words: u64,
        why: Option<String>,
        /// The kernel has killed processes there for want of memory since it started.
        starved: bool,
        /// Its own connection had ended at the pool's end, or on the way.
        cut_off: bool,
    },
    /// Its machine is not to be heard of any more, and why that is believed.
    Lost(String),
}

impl FarEnd {
    pub(crate) fn tell(&self, told: Told) {
        // The first word counts.
        let _ = self.told.set(told);
    }

    /// Something has come of it.
    pub(crate) fn note_progress(&self, bytes: u64) {
        self.progress.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// The task with this number began so many nanoseconds ago.
    pub(crate) fn note_begun(&self, seq: u64, ran: u64) {
        *self.lock() = (seq, monotonic_now().saturating_sub(ran));
        self.is_asked.store(false, Ordering::Release);
    }

    /// When the task with this number began, if that is known. If not, it will be found out.
    pub(crate) fn began_at(&self, seq: u64) -> Option<u64> {
        let (begun, at) = *self.lock();
        if begun == seq {
            return Some(at);
        }
        if self.told.get().is_none() && !self.is_asked.swap(true, Ordering::AcqRel) {
            self.ask.notify_one();
        }
        None
    }

    /// Waits until somebody wants to know what it has begun.
    pub(crate) async fn asked(&self) {
        self.ask.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the task with this number had not begun, and never will: known only when the worker is
    /// dead, and not if its machine is lost.
    pub(crate) fn never_began(&self, seq: u64) -> bool {
        matches!(self.told.get(), Some(Told::Goodbye { begun, .. }) if seq > *begun)
    }

    pub(crate) fn last_words(&self) -> u64 {
        match self.told.get() {
            Some(Told::Goodbye { last_words, .. }) => *last_words,
            _ => 0,
        }
    }

    /// Why its machine is believed to be lost, if it is.
    pub(crate) fn loss(&self) -> Option<&str> {
        match self.told.get() {
            Some(Told::Lost(why)) => Some(why),
            _ => None,
        }
    }

    /// Whether it may have been killed for want of memory.
    pub(crate) fn starved(&self) -> bool {
        matches!(self.told.get(), Some(Told::Goodbye { starved: true, .. }))
    }

    /// Whether it could not hear the pool any more. The pool knows whether that was its own doing.
    pub(crate) fn was_cut_off(&self) -> bool {
        matches!(self.told.get(), Some(Told::Goodbye { cut_off: true, .. }))
    }

    /// Why it was ended there unasked, if it was.
    pub(crate) fn why(&self) -> Option<&str> {
        match self.told.get() {
            Some(Told::Goodbye { why, .. }) => why.as_deref(),
            _ => None,
        }
    }
}
