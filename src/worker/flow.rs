//! A stream's way to the pool, with room for as many items as its consumer leaves.

use super::inbox::Inbox;
use super::replies::Replies;
use crate::task::{Closed, Encoded, Outflow};
use crate::wire::STREAM_BYTES;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

/// The way of one stream. Threads of the task may use it at the same time.
pub(super) struct Flow {
    seq: u64,
    limit: u64,
    inbox: &'static Inbox,
    replies: &'static Replies,
    /// Held while an item leaves: what the pool counts, it counts in the same order, and nothing
    /// leaves after the task's end.
    room: Mutex<Room>,
    granted: Condvar,
}

struct Room {
    items: u64,
    /// The last item may have had more than there was room for.
    bytes: i64,
    is_closed: bool,
    /// The watchdog was asked to listen for grants.
    listens: bool,
    wakers: Vec<Waker>,
}

impl Flow {
    pub(super) fn new(
        seq: u64,
        window: u64,
        limit: u64,
        inbox: &'static Inbox,
        replies: &'static Replies,
    ) -> Flow {
        let bytes = STREAM_BYTES as i64;
        let room = Room { items: window, bytes, is_closed: false, listens: false, wakers: Vec::new() };
        Flow { seq, limit, inbox, replies, room: Mutex::new(room), granted: Condvar::new() }
    }

    /// The consumer has taken so much.
    pub(super) fn grant(&self, items: u64, bytes: u64) {
        let mut room = self.lock();
        room.items = room.items.saturating_add(items);
        room.bytes = room.bytes.saturating_add_unsigned(bytes);
        self.wake(room);
    }

    /// Nothing leaves any more.
    pub(super) fn close(&self) {
        let mut room = self.lock();
        room.is_closed = true;
        self.wake(room);
    }

    /// The same where waiting is out of the question.
    pub(super) fn try_close(&self) {
        match self.room.try_lock() {
            Ok(mut room) => room.is_closed = true,
            Err(TryLockError::Poisoned(room)) => room.into_inner().is_closed = true,
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn wake(&self, mut room: MutexGuard<'_, Room>) {
        let wakers = std::mem::take(&mut room.wakers);
        drop(room);
        self.granted.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sends an item if there is room for it; whether there was.
    fn try_send(&self, room: &mut Room, item: &Encoded) -> Result<bool, Closed> {
        if room.is_closed {
            return Err(Closed);
        }
        if room.items == 0 || room.bytes <= 0 {
            // Or else grants would be heard of only when the task has run for a while.
            if !std::mem::replace(&mut room.listens, true) {
                self.inbox.listen(self.seq);
            }
            return Ok(false);
        }
        room.items -= 1;
        room.bytes = room.bytes.saturating_sub_unsigned(item.bytes.len() as u64);
        self.replies.send_item(self.seq, item.is_fault, &item.bytes);
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outflow for Flow {
    fn send(&self, item: &Encoded) -> Result<(), Closed> {
        let mut room = self.lock();
        while !self.try_send(&mut room, item)? {
            room = self.granted.wait(room).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn poll_send(&self, item: &Encoded, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut room = self.lock();
        match self.try_send(&mut room, item) {
            Ok(false) => {
                if !room.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    room.wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
            Ok(true) => Poll::Ready(Ok(())),
            Err(closed) => Poll::Ready(Err(closed)),
        }
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    fn limit(&self) -> u64 {
        self.limit
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("seq", &self.seq).finish_non_exhaustive()
    }
}
