//! Bringing a task into the queue.

use super::super::link::{DUPLICATES, Link};
use super::super::message::{Key, Place, REPLY_TO, TaskHead, VERSION, pack};
use super::super::names::LEVELS;
use super::{Core, Stage, error};
use crate::task::{PoolError, TaskError};
use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// The pauses between two tries: this at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// A task as it is to be published.
struct Parcel {
    key: Key,
    head: TaskHead,
    subject: String,
    body: Bytes,
    object: Option<String>,
    is_reserved: bool,
}

/// What came of a try to publish.
enum Try {
    /// It is in the queue, at this place.
    Stored(u64),
    Full,
    /// It may be in the queue or not.
    Unknown,
    Refused(String),
}

/// A submission on its way to the server.
struct Sending {
    parcel: Parcel,
    payload: Bytes,
    headers: HeaderMap,
    /// By which the server knows it again for as long as it is tried.
    id: String,
}

/// Publishes tasks in the order in which they are submitted, but for large ones, which take their time.
pub(super) async fn publish_all(
    core: Arc<Core>,
    link: Arc<Link>,
    mut tasks: mpsc::UnboundedReceiver<u64>,
    errands: TaskTracker,
) {
    while let Some(task) = tasks.recv().await {
        let Some(parcel) = core.parcel(&link, task) else { continue };
        let (core, link) = (core.clone(), link.clone());
        if parcel.body.len() > link.inline() {
            errands.spawn(async move {
                if let Some(sending) = store_body(&core, &link, parcel).await {
                    let first = sending.send(&link).await;
                    sending.see_through(&core, &link, first).await;
                }
            });
        } else {
            let payload = pack(&parcel.head, &[&parcel.body]);
            let sending = Sending::new(&link, parcel, payload);
            let first = sending.send(&link).await;
            errands.spawn(async move { sending.see_through(&core, &link, first).await });
        }
    }
}

/// The server's word on a publication, to be awaited, or why it will have none.
type Sent = Result<PublishAckFuture, PublishError>;

impl Sending {
    fn new(link: &Link, parcel: Parcel, payload: Bytes) -> Sending {
        let mut headers = HeaderMap::new();
        headers.insert(REPLY_TO, link.names.to(&link.me));
        Sending { id: parcel.key.message_id(&link.me), parcel, payload, headers }
    }

    async fn send(&self, link: &Link) -> Sent {
        let message = PublishMessage::build().payload(self.payload.clone()).headers(self.headers.clone());
        link.jetstream.send_publish(self.parcel.subject.clone(), message.message_id(&self.id)).await
    }

    /// Waits until the server confirms that it has the task, and tries again if it does not.
    async fn see_through(self, core: &Core, link: &Link, first: Sent) {
        let key = self.parcel.key;
        let (mut sent, mut pause, mut unknown_since) = (first, PAUSES.0, None);
        loop {
            match outcome_of(sent).await {
                Try::Stored(place) => return core.stored(link, key, place).await,
                Try::Full if !self.parcel.is_reserved => {
                    let capacity = link.capacity.unwrap_or_default();
                    return core.finish(key, error(TaskError::QueueFull { capacity }), None);
                }
                Try::Full => {}
                Try::Refused(reason) => {
                    let cause = TaskError::PoolBroken(PoolError::Queue { reason });
                    return core.finish(key, error(cause), None);
                }
                Try::Unknown => {
                    // Beyond that the server might take it for another one.
                    let since = *unknown_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > DUPLICATES / 2 {
                        return core.lost(key);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            // One that may be there is to be found, even if nobody wants it any more, and taken out.
            if unknown_since.is_none() && !core.is_open(key) {
                return;
            }
            sent = self.send(link).await;
        }
    }
}

/// Puts a large body into the object store; nothing if the task is not to be published any more.
async fn store_body(core: &Core, link: &Link, mut parcel: Parcel) -> Option<Sending> {
    let size = parcel.body.len() as u64;
    let name = match parcel.object.take() {
        Some(name) => name,
        None => {
            let name = format!("{}.{}.{}.in", link.me, parcel.key.task, parcel.key.attempt);
            let mut pause = PAUSES.0;
            while let Err(reason) = link.objects.put(&name, &parcel.body).await {
                if pause >= PAUSES.1 {
                    link.objects.remove(&name).await;
                    let reason = format!("large arguments cannot be stored: {reason}");
                    core.finish(parcel.key, error(TaskError::PoolBroken(PoolError::Queue { reason })), None);
                    return None;
                }
                tokio::time::sleep(pause).await;
                pause *= 4;
            }
            if !core.keep_object(parcel.key, &name) {
                link.objects.remove(&name).await;
                return None;
            }
            name
        }
    };
    parcel.head.place = Place::Object { name, size };
    let payload = pack(&parcel.head, &[]);
    Some(Sending::new(link, parcel, payload))
}

async fn outcome_of(sent: Sent) -> Try {
    let done = match sent {
        Ok(confirmed) => confirmed.await,
        Err(error) => Err(error),
    };
    let error = match done {
        Ok(confirmed) => return Try::Stored(confirmed.sequence),
        Err(error) => error,
    };
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<jetstream::Error>());
    match cause {
        Some(cause) if cause.to_string().contains("maximum messages") => Try::Full,
        // The server's own trouble, such as an election, passes.
        Some(cause) if cause.code() < 500 => Try::Refused(cause.to_string()),
        _ => Try::Unknown,
    }
}

impl Core {
    fn parcel(&self, link: &Link, id: u64) -> Option<Parcel> {
        let state = self.lock();
        let task = state.tasks.get(&id)?;
        Some(Parcel {
            key: task.key,
            subject: link.names.task(task.terms.priority),
            body: task.cell.body(),
            object: task.object.clone(),
            // One that was accepted, and comes back, waits for room like one with a permit.
            is_reserved: task.is_reserved || task.key.hop > 0 || task.key.attempt > 1,
            head: TaskHead {
                version: VERSION,
                build: link.names.identity.clone(),
                key: task.key,
                shim: task.cell.shim,
                timeout: task.terms.timeout,
                max_wait: self.max_wait(),
                name: task.cell.extra.as_ref().and_then(|extra| extra.name.clone()),
                items: task.terms.items,
                window: task.cell.inflow().map(|inflow| inflow.window),
                trace: task.cell.extra.as_ref().and_then(|extra| extra.trace.clone()),
                levels: task.cell.shared.settings.forwarding.levels(),
                place: Place::Here,
            },
        })
    }

    fn is_open(&self, key: Key) -> bool {
        self.lock().tasks.get(&key.task).is_some_and(|task| task.key == key)
    }

    /// Notes where a task's arguments are; false if it is resolved already.
    fn keep_object(&self, key: Key, name: &str) -> bool {
        let mut state = self.lock();
        match state.tasks.get_mut(&key.task) {
            Some(task) => {
                task.object = Some(name.to_owned());
                true
            }
            None => false,
        }
    }

    /// A submission is in the queue. If nobody wants it any more it is taken out again.
    async fn stored(&self, link: &Link, key: Key, place: u64) {
        {
            let mut state = self.lock();
            let state = &mut *state;
            if let Some(task) = state.tasks.get_mut(&key.task).filter(|task| task.key == key) {
                task.place = Some(place);
                state.places.insert(place, key.task);
                return;
            }
        }
        link.delete(place).await;
    }
}

/// Waits until the queue has room for another task of normal priority.
pub(super) async fn room(core: &Arc<Core>) -> Result<(), TaskError> {
    let mut links = core.link.subscribe();
    let mut pause = PAUSES.0;
    loop {
        if core.lock().stage != Stage::Open {
            return Err(TaskError::ShutDown);
        }
        let link = links.borrow_and_update().clone();
        let has_room = match &link {
            // Without a connection there is a bound only if this pool has said one.
            None => core.capacity.is_none_or(|capacity| core.lock().tasks.len() < capacity),
            Some(link) => match link.capacity {
                None => true,
                Some(capacity) => core.lock().tasks.len() < capacity && length(link).await < capacity as u64,
            },
        };
        if has_room {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.terminated.cancelled() => {}
        }
        pause = (pause * 2).min(PAUSES.1 / 5);
    }
}

/// Whether there is, as far as this pool's own tasks go.
#[cfg(feature = "tower")]
pub(super) fn has_room(core: &Core) -> bool {
    let capacity = core.link.borrow().as_ref().map_or(core.capacity, |link| link.capacity);
    capacity.is_none_or(|capacity| core.lock().tasks.len() < capacity)
}

/// How many unfinished tasks of this build and normal priority there are.
async fn length(link: &Link) -> u64 {
    let level = LEVELS[1];
    let mut info = match link.stream.info_with_subjects(link.names.task(level)).await {
        Ok(info) => info,
        Err(_) => return 0,
    };
    use futures::TryStreamExt;
    let mut length = 0;
    while let Ok(Some((_, count))) = info.try_next().await {
        length += count as u64;
    }
    length
}

/// How far the agents of this build have got with a level: the last place that was handed to one.
pub(super) async fn delivered(link: &Link, level: crate::task::Priority) -> Option<u64> {
    let name = link.names.consumer(level);
    let info = link.stream.consumer_info(name).await.ok()?;
    Some(info.delivered.stream_sequence)
}
