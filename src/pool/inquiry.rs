//! Finding out where a worker is stuck before it is killed.

use crate::process::{Killer, Probe};
use crate::sys::question::HANDLER;
use crate::task::{TimeoutReport, cut};
use crate::wire::Page;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a worker may take to say where it is.
pub(super) const INQUIRY_LIMIT: Duration = Duration::from_secs(2);

/// An inquiry into one worker.
#[derive(Clone)]
pub(super) struct Inquiry {
    probe: Probe,
    killer: Killer,
    /// What was seen from outside, once the inquiry has begun.
    seen: Arc<OnceLock<TimeoutReport>>,
    /// The worker is dead.
    over: CancellationToken,
}

impl Inquiry {
    pub(super) fn new(probe: Probe, killer: Killer) -> Inquiry {
        Inquiry { probe, killer, seen: Arc::default(), over: CancellationToken::new() }
    }

    /// Looks at the worker and asks it; it is dead soon after this has returned, if not before.
    pub(super) async fn run(self) {
        let killed_in_any_case = KillOnDrop(self.killer);
        let seen = self.seen.get_or_init(|| self.probe.look());
        // A stopped process would not answer.
        if !matches!(seen.state(), Some('T' | 't')) {
            self.probe.ask();
            let _ = tokio::time::timeout(INQUIRY_LIMIT, self.over.cancelled()).await;
        }
        drop(killed_in_any_case);
    }

    /// What has been seen of the worker so far, which is not dead.
    pub(super) fn seen(&self) -> Option<TimeoutReport> {
        self.seen.get().cloned()
    }

    /// Ends it, the worker being dead: what has come of it, or `None` if it had not begun.
    pub(super) fn close(&self, page: Option<&Page>) -> Option<TimeoutReport> {
        self.over.cancel();
        let seen = self.seen.get()?.clone();
        let told = page.and_then(Page::read_whereabouts);
        Some(TimeoutReport { backtrace: told.map(|told| cut(&told, HANDLER)), ..seen })
    }
}

/// The runtime may be dropped while the worker has time to answer.
struct KillOnDrop(Killer);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}
