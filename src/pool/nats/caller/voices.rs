//! What tasks log that agents run: told to the program of their caller.

use super::super::message::{Key, take_part};
use super::{Core, Errand};
use crate::pool::cell::Cell;
use crate::pool::voice::Hearing;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one attempt at a task has said.
pub(super) struct Voices {
    hearing: Hearing,
    cell: Arc<Cell>,
    /// How many messages there were, with those that were lost.
    messages: AtomicU64,
}

impl Voices {
    fn new(cell: &Arc<Cell>) -> Arc<Voices> {
        let hearing = Hearing::new(&cell.shared.settings.forwarding);
        Arc::new(Voices { hearing, cell: cell.clone(), messages: AtomicU64::new(0) })
    }

    /// Takes in messages, with so many before them.
    fn take_in(&self, before: u64, mut messages: Bytes) {
        let known = self.messages.load(Ordering::Relaxed);
        if before < known {
            return; // said again by nobody who means well
        }
        self.hearing.miss(before - known);
        let mut count = before;
        while let Some(message) = take_part(&mut messages) {
            count = count.saturating_add(1);
            self.hearing.hear(&self.cell.audience, message);
        }
        self.messages.store(count, Ordering::Relaxed);
    }

    /// The attempt is over, and had so many messages in all.
    fn end(&self, messages: u64) {
        self.hearing.miss(messages.saturating_sub(self.messages.load(Ordering::Relaxed)));
        self.hearing.end(&self.cell.audience);
    }
}

impl Core {
    /// A task has logged something.
    pub(super) fn hear_voices(&self, agent: String, key: Key, before: u64, messages: Bytes) {
        if !self.alive(&agent, key, None) {
            return self.send(Errand::Cancel(agent, key));
        }
        // Listeners are foreign code, so not under the lock.
        let voices = {
            let mut state = self.lock();
            let Some(task) = state.tasks.get_mut(&key.task) else { return };
            let cell = &task.cell;
            task.voices.get_or_insert_with(|| Voices::new(cell)).clone()
        };
        voices.take_in(before, messages);
    }

    /// A task has said the last, which made so many messages in all.
    pub(super) fn end_voices(&self, key: Key, messages: u64) {
        let voices = {
            let mut state = self.lock();
            let Some(task) = state.tasks.get_mut(&key.task).filter(|task| task.key == key) else { return };
            let cell = &task.cell;
            let voices = task.voices.take();
            voices.or_else(|| (messages > 0).then(|| Voices::new(cell)))
        };
        voices.into_iter().for_each(|voices| voices.end(messages));
    }
}
