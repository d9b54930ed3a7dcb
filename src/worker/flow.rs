//! A stream's way to the pool, with room for as many items as its consumer leaves.

use super::inbox::Inbox;
use super::replies::Replies;
use crate::task::{Closed, Encoded, Outflow};
use crate::wire::{ITEM_COST, STREAM_BYTES};
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
        room.bytes = room.bytes.saturating_sub_unsigned(item.bytes.len() as u64 + ITEM_COST);
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

/// Where there is no memory shared with the pool.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::reports::Reports;
    use super::*;
    use crate::task::Progress;
    use crate::wire::{FrameCodec, Reply};
    use bytes::BytesMut;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::fs::File;
    use std::io::Read;
    use std::sync::Arc;
    use tokio_util::codec::Decoder;

    struct Scene {
        results: File,
        heard: BytesMut,
        inbox: &'static Inbox,
        replies: &'static Replies,
        _requests: File,
    }

    impl Scene {
        fn new() -> Scene {
            let (results, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (requests_out, requests) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let replies: &Replies = Box::leak(Box::new(Replies::new(theirs, None)));
            let inbox = Box::leak(Box::new(Inbox::new(requests_out, replies, true)));
            let (results, _requests) = (results.into(), requests.into());
            Scene { results, heard: BytesMut::new(), inbox, replies, _requests }
        }

        fn next(&mut self) -> (Reply, Vec<u8>) {
            loop {
                if let Some(frame) = FrameCodec::new(1 << 20).decode(&mut self.heard).unwrap() {
                    return (frame.head, frame.body.to_vec());
                }
                let mut bytes = [0; 4096];
                let read = self.results.read(&mut bytes).unwrap();
                self.heard.extend_from_slice(&bytes[..read]);
            }
        }
    }

    fn item(number: u8) -> Encoded {
        Encoded { is_fault: false, bytes: vec![number; 40_000] }
    }

    #[test]
    fn items_go_through_the_pipe_as_far_as_there_is_room() {
        let mut scene = Scene::new();
        let flow = Arc::new(Flow::new(7, 2, 1 << 20, scene.inbox, scene.replies));
        let sender = flow.clone();
        let sent = std::thread::spawn(move || (0..100).map_while(|n| sender.send(&item(n)).ok()).count());
        for number in 0..10 {
            let (reply, body) = scene.next();
            assert!(matches!(reply, Reply::Item { seq: 7, is_fault: false, place: None }), "{reply:?}");
            assert_eq!(body, item(number).bytes);
            if number % 2 == 1 && number < 9 {
                flow.grant(2, 80_000);
            }
        }
        assert!(!flow.is_closed());
        flow.close();
        assert_eq!(sent.join().unwrap(), 10);
        assert!(flow.send(&item(0)).is_err());
    }

    #[test]
    fn a_report_never_waits_for_room_in_the_pipe() {
        let mut scene = Scene::new();
        let reports = Reports::new(7, scene.replies);
        let flow = Arc::new(Flow::new(7, 100, 1 << 20, scene.inbox, scene.replies));
        let sender = flow.clone();
        // More than fits, so that this thread is held up with the pipe full.
        let sent = std::thread::spawn(move || (0..3).try_for_each(|n| sender.send(&item(n))));
        let full = |scene: &Scene| rustix::io::ioctl_fionread(&scene.results).unwrap() >= 60_000;
        while !full(&scene) {
            std::thread::yield_now();
        }
        for done in 0..10 {
            reports.report(Progress::new(done));
        }
        for number in 0..3 {
            assert_eq!(scene.next().1, item(number).bytes);
        }
        sent.join().unwrap().unwrap();
        reports.finish();
        let (reply, _) = scene.next();
        assert!(matches!(reply, Reply::Progress { seq: 7, progress } if progress == Progress::new(9)));
    }
}
