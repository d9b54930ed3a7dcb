//! What the server has given up.

use super::super::link::Link;
use super::{Core, Key};
use crate::task::Priority;
use std::time::Duration;

/// The server notes times to the second.
const PRECISION: Duration = Duration::from_secs(1);

/// The server has given a submission up. If its agent has had time to be overdue, it is lost. Before that
/// the server has not been able to deliver it: the agent for which it was meant has ended at that moment.
/// Then it has not begun, and is submitted anew.
pub(super) async fn overdue(core: &Core, link: &Link, key: Key) {
    let Some((level, elapsed)) = core.unheard_of(key) else { return core.lost(key) };
    // What the server goes by was said by the first agent.
    let is_undelivered = elapsed < core.queue.ack_wait
        && match link.stream.consumer_info(link.names.consumer(level)).await {
            Ok(info) => elapsed + PRECISION < info.config.ack_wait,
            Err(_) => false,
        };
    if let Some(place) = core.place_of(key).filter(|_| is_undelivered) {
        // It counts for the queue's capacity.
        link.delete(place).await;
        if core.unheard_of(key).is_some() {
            return core.handed_back(key);
        }
    }
    core.lost(key);
}

impl Core {
    /// The priority of a submission, and how long ago it was sent at the most, if no agent has said that it
    /// has it.
    fn unheard_of(&self, key: Key) -> Option<(Priority, Duration)> {
        let state = self.lock();
        let task = state.tasks.get(&key.task).filter(|task| task.key == key)?;
        let is_heard_of = task.taken.as_ref().is_some_and(|taken| taken.agent.is_some());
        (!is_heard_of).then(|| (task.terms.priority, task.sent.elapsed()))
    }

    fn place_of(&self, key: Key) -> Option<u64> {
        self.lock().tasks.get(&key.task).filter(|task| task.key == key)?.place
    }
}
