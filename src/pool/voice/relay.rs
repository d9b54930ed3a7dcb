//! What the tasks of a queue log: from the pool that runs them to the pool that they were submitted to,
//! whose program is told of it.

use super::{Audience, Ear, Forwarding, lock};
use crate::wire::{Body, Levels};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// How many messages may wait to be passed on, and how many bytes they may have.
const MOST: (usize, usize) = (8192, 2 << 20);

/// All of a task is told under this number.
const TASK: u64 = 1;

/// One end: what a task has said, and is to be passed on.
pub(in crate::pool) struct Relay {
    levels: Levels,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    lost: u64,
}

/// What is to be passed on together.
#[derive(Default)]
pub(in crate::pool) struct Passage {
    pub(in crate::pool) messages: Vec<Bytes>,
    /// How many messages are missing.
    pub(in crate::pool) lost: u64,
}

impl Relay {
    /// For a task whose caller wants to hear this much; `None` if nothing is passed on.
    pub(in crate::pool) fn new(levels: Levels, forwarding: &Forwarding) -> Option<Arc<Relay>> {
        if forwarding.is_off || levels == Levels::default() {
            return None;
        }
        let levels = Levels { tracing: levels.tracing.min(5), log: levels.log.min(5) };
        Some(Arc::new(Relay { levels, queue: Mutex::default(), arrived: Notify::new() }))
    }

    /// How much its worker has to say.
    pub(super) fn levels(&self) -> Levels {
        self.levels
    }

    /// Something has been said, after so much was refused.
    pub(super) fn push(&self, message: Option<Bytes>, refused: u64) {
        {
            let mut queue = lock(&self.queue);
            queue.lost = queue.lost.saturating_add(refused);
            if let Some(message) = message {
                if queue.messages.len() < MOST.0 && queue.bytes + message.len() <= MOST.1 {
                    queue.bytes += message.len();
                    queue.messages.push_back(message);
                } else {
                    queue.lost = queue.lost.saturating_add(1);
                }
            }
        }
        self.arrived.notify_one();
    }

    /// Waits until there may be something to pass on.
    pub(in crate::pool) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes what there is, up to so many bytes and one message.
    pub(in crate::pool) fn take(&self, most: usize) -> Passage {
        let mut queue = lock(&self.queue);
        let mut passage = Passage { lost: std::mem::take(&mut queue.lost), ..Passage::default() };
        let mut bytes = 0;
        while bytes < most
            && let Some(message) = queue.messages.pop_front()
        {
            bytes += message.len();
            queue.bytes -= message.len();
            passage.messages.push(message);
        }
        passage
    }
}

/// The other end: what one attempt at a task says, which runs elsewhere.
pub(in crate::pool) struct Hearing(Arc<Ear>);

impl Hearing {
    pub(in crate::pool) fn new(forwarding: &Forwarding) -> Hearing {
        let ear = Ear::new(forwarding);
        // It is asked of whoever runs the task.
        ear.levels();
        Hearing(ear)
    }

    /// Tells what was passed on.
    pub(in crate::pool) fn hear(&self, audience: &Audience, message: Bytes) {
        match self.0.hear(Some(TASK), Some(audience), Body::Own(message)) {
            Ok(said) => said.into_iter().for_each(super::Said::tell),
            Err(_) => self.miss(1),
        }
    }

    /// So many messages are missing.
    pub(in crate::pool) fn miss(&self, messages: u64) {
        self.0.miss(messages);
    }

    /// The attempt is over.
    pub(in crate::pool) fn end(&self, audience: &Audience) {
        self.0.task_end(TASK, Some(audience)).into_iter().for_each(super::Said::tell);
    }
}
