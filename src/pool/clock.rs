//! The task that lives as long as the pool: it rings the scheduler's alarms and ends the rest.

use super::shared::Shared;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait at the end until what workers have written has been passed on.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait at the end until those who watch the pool are done.
pub(super) const WATCH_LIMIT: Duration = Duration::from_secs(2);

/// Runs until the pool has finished, then stops what is left beside the workers.
pub(super) fn run(shared: Arc<Shared>) -> impl Future<Output = ()> + Send {
    // Not within the future: it may be dropped before it is ever polled.
    let guard = Guard(shared);
    async move { ring(&guard.0).await }
}

async fn ring(shared: &Arc<Shared>) {
    while !shared.finished.is_cancelled() {
        let wait = shared.tick().unwrap_or(Duration::MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.clock.notified() => {}
            () = shared.finished.cancelled() => {}
        }
    }
    shared.launcher.stop().await;
    shared.outputs.close();
    // Past the limit the program's standard error is stuck, and what is left is lost.
    let _ = tokio::time::timeout(OUTPUT_LIMIT, shared.outputs.wait()).await;
    // Past the limit what they write to is stuck.
    let _ = tokio::time::timeout(WATCH_LIMIT, shared.watchers.end()).await;
    shared.terminated.cancel();
}

/// Notices that the runtime is dropped, with the pool's tasks in it.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.0.terminated.is_cancelled() {
            self.0.runtime_lost();
        }
    }
}
