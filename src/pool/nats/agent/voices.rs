//! What tasks log, on its way from the local pool to their callers.

use super::super::message::{News, add_part};
use super::work::Job;
use crate::pool::voice::{Passage, Relay};
use async_nats::connection::State as Connection;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How many bytes of it a message has, and the pause before the next: it is not to hold up anything else.
const AT_ONCE: usize = 128 << 10;
const PAUSE: Duration = Duration::from_millis(5);

/// Passes on what a task says until it is over. What the connection does not take is lost, but counted.
/// Gives back how many messages there were.
pub(super) async fn pass_on(job: &Job, relay: &Relay, over: &CancellationToken) -> u64 {
    let most = AT_ONCE.min(job.inner.link.inline() / 2);
    let mut count = 0_u64;
    loop {
        // What it has said is there before its end.
        let is_over = over.is_cancelled();
        let Passage { messages, lost } = relay.take(most);
        count = count.saturating_add(lost);
        if messages.is_empty() {
            if is_over {
                return count;
            }
            tokio::select! {
                () = relay.arrived() => {}
                () = over.cancelled() => {}
            }
            continue;
        }
        let before = count;
        count += messages.len() as u64;
        if job.inner.link.client.connection_state() == Connection::Connected {
            let mut body = Vec::with_capacity(most);
            messages.iter().for_each(|message| add_part(&mut body, message));
            job.tell(News::Voice { before }, &body).await;
        }
        if !is_over {
            // More may come meanwhile.
            let _ = tokio::time::timeout(PAUSE, over.cancelled()).await;
        }
    }
}
