//! Watching how far a task has got.

use crate::task::Progress;
use futures::stream::Stream;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::watch;
use tokio_util::sync::ReusableBoxFuture;

/// What a task has said of itself; made for the few that do, or that somebody watches.
#[derive(Default)]
pub(super) struct Talk {
    latest: Option<Progress>,
    reports: u64,
    is_over: bool,
}

/// The pool's end of a task's talk.
pub(super) type Talker = watch::Sender<Talk>;

pub(super) fn talker() -> Talker {
    watch::Sender::new(Talk::default())
}

/// The task has said how far it has got.
pub(super) fn tell(talker: &Talker, progress: Progress) {
    talker.send_if_modified(|talk| {
        // Another thread may have resolved it meanwhile.
        if !talk.is_over {
            talk.latest = Some(progress);
            talk.reports += 1;
        }
        !talk.is_over
    });
}

/// The last that the task has said.
#[cfg(feature = "nats")]
pub(super) fn latest(talker: &Talker) -> Option<Progress> {
    talker.borrow().latest.clone()
}

/// The task is over.
pub(super) fn end(talker: &Talker) {
    talker.send_modify(|talk| talk.is_over = true);
}

/// Sees how far a task has got, as that itself tells with
/// [`TaskContext::report`](crate::worker::TaskContext::report).
///
/// Made by [`TaskHandle::progress`](crate::TaskHandle::progress) and
/// [`TaskStream::progress`](crate::TaskStream::progress). It is also a stream of reports. Only the latest
/// is kept: who looks seldom misses those in between. When the task is resolved, the last report is there
/// to be seen, and then the stream ends. A task that is run again after its worker has died goes on
/// with reports of its new attempt. It may be used on any executor; each clone sees each report for
/// itself.
pub struct ProgressWatch {
    talk: watch::Receiver<Talk>,
    /// How many reports there were when it last saw one.
    seen: u64,
    /// What the stream waits for.
    next: Option<ReusableBoxFuture<'static, (ProgressWatch, Option<Progress>)>>,
}

impl ProgressWatch {
    pub(super) fn new(talker: &Talker) -> ProgressWatch {
        ProgressWatch { talk: talker.subscribe(), seen: 0, next: None }
    }

    /// The latest report; `None` before the first.
    pub fn latest(&self) -> Option<Progress> {
        self.talk.borrow().latest.clone()
    }

    /// Waits for a report that this watch has not seen yet; `None` when the task is over and there will
    /// be no more.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Option<Progress> {
        self.next = None;
        loop {
            {
                let talk = self.talk.borrow_and_update();
                if talk.reports != self.seen {
                    self.seen = talk.reports;
                    return talk.latest.clone();
                }
                if talk.is_over {
                    return None;
                }
            }
            // The other end goes with the last handle of the task.
            self.talk.changed().await.ok()?;
        }
    }
}

impl Clone for ProgressWatch {
    fn clone(&self) -> ProgressWatch {
        ProgressWatch { talk: self.talk.clone(), seen: self.seen, next: None }
    }
}

impl Stream for ProgressWatch {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        let this = &mut *self;
        let next = this.next.get_or_insert_with(|| {
            let mut watch = ProgressWatch { talk: this.talk.clone(), seen: this.seen, next: None };
            ReusableBoxFuture::new(async move {
                let progress = watch.changed().await;
                (watch, progress)
            })
        });
        let (watch, progress) = ready!(next.poll(context));
        *this = watch;
        Poll::Ready(progress)
    }
}

impl fmt::Debug for ProgressWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressWatch").field("latest", &self.latest()).finish_non_exhaustive()
    }
}
