//! Telling the pool how far a task has got, seldom enough that it costs next to nothing.

use super::replies::Replies;
use crate::sys::monotonic_now;
use crate::task::Progress;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// How much time there is between two reports that leave, in nanoseconds.
const PAUSE: u64 = 20_000_000;

/// The reports of one task. What is not due waits for the next report, for the watchdog to look, or
/// for the end of the task; a later one takes its place.
pub(super) struct Reports {
    seq: u64,
    replies: &'static Replies,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Option<Progress>,
    /// When the next may leave.
    due: u64,
    is_over: bool,
}

impl Reports {
    pub(super) fn new(seq: u64, replies: &'static Replies) -> Reports {
        Reports { seq, replies, state: Mutex::default() }
    }

    /// Keeps a report, and sends it if it is due and need not wait for anything.
    pub(super) fn report(&self, progress: Progress) {
        let mut state = self.lock();
        if !state.is_over {
            state.waiting = Some(progress);
            self.send_if_due(&mut state);
        }
    }

    /// Sends what has waited for long enough.
    pub(super) fn send_due(&self) {
        self.send_if_due(&mut self.lock());
    }

    fn send_if_due(&self, state: &mut State) {
        let Some(progress) = &state.waiting else { return };
        let now = monotonic_now();
        if now >= state.due && self.replies.try_report(self.seq, progress) {
            state.waiting = None;
            state.due = now + PAUSE;
        }
    }

    /// Sends what still waits. There is nothing to be said after that: the task's end follows.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        state.is_over = true;
        if let Some(progress) = state.waiting.take() {
            self.replies.send_last_report(self.seq, progress);
        }
    }

    /// There is nothing more to be said, and waiting is out of the question.
    pub(super) fn try_close(&self) {
        match self.state.try_lock() {
            Ok(mut state) => state.is_over = true,
            Err(TryLockError::Poisoned(state)) => state.into_inner().is_over = true,
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").field("seq", &self.seq).finish_non_exhaustive()
    }
}
