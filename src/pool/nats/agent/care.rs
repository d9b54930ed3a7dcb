//! What an agent tells of itself, and what it clears up after others.

use super::super::message::{
    Advisory, News, Place, Presence, REPLY_TO, TaskHead, ToCaller, WorkerNote, pack, unpack,
};
use super::{Inner, make_consumers};
use crate::pool::stats::WorkerState;
use async_nats::Message;
use async_nats::client::RequestErrorKind;
use async_nats::datetime::{self, DateTime};
use async_nats::jetstream::consumer::Info;
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;

/// After so long without anything to do for them the consumers of another build are removed.
const OLD: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a caller may take to be there.
const CALLER_PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait before the server is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// How many workers are told of.
const MAX_WORKERS: usize = 1 << 12;

/// Tells callers that the agent is there, and how its workers are.
pub(super) async fn tell(inner: &Inner, is_leaving: bool) {
    let notes = inner.pool.workers().into_iter().take(MAX_WORKERS).map(|worker| WorkerNote {
        pid: worker.pid(),
        state: match worker.state() {
            WorkerState::Starting => 0,
            WorkerState::Idle => 1,
            WorkerState::Busy => 2,
            WorkerState::Retiring => 3,
        },
        tasks_done: worker.tasks_done(),
        age: u64::try_from(worker.started().elapsed().as_nanos()).unwrap_or(u64::MAX),
        rss: worker.rss(),
    });
    let link = &inner.link;
    let width = u32::try_from(inner.width).unwrap_or(u32::MAX);
    let presence = Presence { agent: link.me.clone(), is_leaving, width, workers: notes.collect() };
    // Without a connection nobody hears it.
    link.say(link.names.agents(), pack(&presence, &[])).await;
}

/// Makes the queue and its consumers again, should the server have lost them.
pub(super) async fn make_sure(inner: Arc<Inner>) {
    let made = async || {
        inner.link.renew(&inner.queue, None).await?;
        make_consumers(&inner.queue, &inner.link).await
    };
    let connects = inner.link.connects();
    while made().await.is_err() {
        if inner.link.connects() != connects || inner.closed.is_cancelled() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    inner.repeat_last_words().await;
    inner.found_again.notify_one();
}

/// The server has given up a task whose agent is gone. Its caller takes it out of the queue; if that is
/// gone as well, this does.
pub(super) async fn bury(inner: Arc<Inner>, message: Message) {
    let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else { return };
    let link = &inner.link;
    if !link.names.is_ours(&advisory.consumer) {
        return;
    }
    let Ok(message) = link.stream.get_raw_message(advisory.stream_seq).await else { return };
    let Some(reply_to) = message.headers.get(REPLY_TO).map(ToString::to_string) else { return };
    let Some((head, _)) = unpack::<TaskHead>(message.payload) else { return };
    let news = News::Overdue { place: advisory.stream_seq };
    let news = pack(&ToCaller { agent: link.me.clone(), key: head.key, what: news }, &[]);
    if !link.names.is_party(&reply_to) || is_told(&inner, reply_to, news).await {
        return;
    }
    if let Place::Object { name, .. } = &head.place {
        link.objects.remove(name).await;
    }
    link.delete(advisory.stream_seq).await;
}

/// Tells a caller something. It does not answer; but if nobody listens there, the server says so at once.
async fn is_told(inner: &Inner, subject: String, news: Bytes) -> bool {
    let request = inner.link.client.request(subject, news);
    match tokio::time::timeout(CALLER_PATIENCE, request).await {
        Ok(Err(error)) => error.kind() != RequestErrorKind::NoResponders,
        Ok(Ok(_)) | Err(_) => true,
    }
}

/// Removes the consumers of builds that have neither tasks nor agents, and have not had any for long.
pub(super) async fn remove_old_builds(inner: Arc<Inner>) {
    let link = &inner.link;
    let mut consumers = link.stream.consumers();
    while let Ok(Some(info)) = consumers.try_next().await {
        if !is_abandoned(&info, datetime::now()) || link.names.is_ours(&info.name) {
            continue;
        }
        let has_tasks = match link.stream.info_with_subjects(&info.config.filter_subject).await {
            Ok(mut subjects) => !matches!(subjects.try_next().await, Ok(None)),
            Err(_) => true,
        };
        if !has_tasks {
            let _ = link.stream.delete_consumer(&info.name).await;
        }
    }
}

/// Whether a consumer has neither tasks nor agents, and has not had any for long.
fn is_abandoned(info: &Info, now: DateTime) -> bool {
    let is_idle = info.num_waiting == 0 && info.num_pending == 0 && info.num_ack_pending == 0;
    let last = info.delivered.last_active.unwrap_or(info.created).max(info.created);
    is_idle && datetime::add_std_duration(last, OLD).is_ok_and(|time| time < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(created: &str, last_active: Option<&str>, waiting: u32) -> Info {
        let mut sequence = serde_json::json!({"consumer_seq": 1, "stream_seq": 1});
        if let Some(time) = last_active {
            sequence["last_active"] = time.into();
        }
        let info = serde_json::json!({
            "stream_name": "procession-images", "name": "abc-normal", "created": created,
            "config": {"deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant"},
            "delivered": sequence, "ack_floor": sequence,
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": waiting, "num_pending": 0,
        });
        serde_json::from_value(info).unwrap()
    }

    #[test]
    fn a_build_is_abandoned_when_nothing_was_done_for_it_in_a_week() {
        let now = datetime::parse_rfc3339("2026-05-20T12:00:00Z").unwrap();
        let (old, young) = ("2026-05-13T11:59:59Z", "2026-05-13T12:00:01Z");
        assert!(is_abandoned(&info(old, None, 0), now));
        assert!(is_abandoned(&info(old, Some(old), 0), now));
        assert!(!is_abandoned(&info(young, None, 0), now), "agents may be about to come");
        assert!(!is_abandoned(&info(old, Some(young), 0), now), "it had a task");
        assert!(!is_abandoned(&info(old, Some(old), 1), now), "an agent waits");
    }
}
