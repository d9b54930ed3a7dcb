//! Those who watch a pool, and what they have yet to be shown.

use super::observe::{Event, Levels, Observe};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub(super) struct Watchers {
    observers: Vec<Box<dyn Observe>>,
    /// The events that they have yet to be shown.
    to_show: TaskTracker,
}

impl Watchers {
    pub(super) fn new(observers: Vec<Box<dyn Observe>>) -> Watchers {
        Watchers { observers, to_show: TaskTracker::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.observers.is_empty()
    }

    /// Shows them what has happened.
    pub(super) fn show(&self, events: &[Event]) {
        for event in events {
            self.tell(|observer| observer.see(event));
        }
    }

    pub(super) fn measure(&self, levels: &Levels) {
        self.tell(|observer| observer.measure(levels));
    }

    /// What runs there is foreign in the end (a recorder), and may do anything but take the pool along.
    fn tell(&self, tell: impl Fn(&dyn Observe)) {
        for observer in &self.observers {
            // What a panic may leave broken is the recorder's own.
            let _ = catch_unwind(AssertUnwindSafe(|| tell(&**observer)));
        }
    }

    /// While this is there, they are waited for that have yet to be shown something.
    pub(super) fn token(&self) -> TaskTrackerToken {
        self.to_show.token()
    }

    /// Tells them that the pool has ended, and waits until they are done.
    pub(super) async fn end(&self) {
        self.to_show.close();
        self.to_show.wait().await;
        futures::future::join_all(self.observers.iter().map(|observer| observer.end())).await;
    }

    /// The same, with nobody there to wait for them.
    pub(super) fn abandon(&self) {
        self.observers.iter().for_each(|observer| drop(observer.end()));
    }
}
