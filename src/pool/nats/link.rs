//! A connection to a queue's server, and the streams and consumers there.

use super::names::Names;
use super::objects::Objects;
use super::queue::Queue;
use crate::task::{PoolError, Priority};
use async_nats::connection::State as Connection;
use async_nats::datetime::DateTime;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{
    Config, DeleteMessageErrorKind, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType,
    Stream,
};
use async_nats::jetstream::{Context, ErrorCode, object_store};
use async_nats::subject::ToSubject;
use async_nats::{Client, ConnectErrorKind};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Within this time the server recognises a message that it has stored already.
pub(super) const DUPLICATES: Duration = Duration::from_secs(120);

/// What is longer goes through the object store.
pub(super) const INLINE: usize = 512 << 10;

/// Room in a message for what is there beside the payload.
const HEADROOM: usize = 16 << 10;

/// How many requests for tasks the server keeps for one consumer: each agent has a few.
const MAX_WAITING: i64 = 1 << 16;

/// How long the last that was sent may take to be with the server.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// After how long it is asked again whether a connection is closed.
const LAST_FLUSH: Duration = Duration::from_millis(20);

/// What the server says while it cannot do something, and may be able to later.
const UNAVAILABLE: usize = 503;

/// And what it says so for, although it is for good.
const NOT_ENABLED: [ErrorCode; 2] =
    [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];

/// How often the server is asked to delete a message, if it does not answer.
const DELETIONS: u32 = 5;

/// How long the server may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// A connection, and what is on the other side.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    pub(super) stream: Stream<()>,
    pub(super) objects: Objects,
    pub(super) names: Names,
    /// The name of whoever has the connection, which nobody else has.
    pub(super) me: String,
    /// The most tasks that the server keeps for a build and a priority.
    pub(super) capacity: Option<usize>,
    /// When the queue was made, as far as is known: places in another one mean other tasks.
    made: Mutex<DateTime>,
    /// With how many connections that was found out.
    known_with: AtomicU64,
}

/// Why there is no connection.
pub(super) enum NoLink {
    /// It may be there in a moment.
    Unreachable(String),
    /// It is there, but has not done what it was asked to, which may pass.
    Busy(String),
    /// That is not going to change by itself.
    Refused(String),
}

impl NoLink {
    /// What comes of an error of JetStream's. A server that does not answer, or is about to agree with others
    /// on who leads, may do what it is asked in a moment.
    pub(super) fn of(what: &str, error: &(dyn std::error::Error + 'static)) -> NoLink {
        let reason = format!("{what}: {error}");
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        let cause = causes.find_map(|error| error.downcast_ref::<async_nats::jetstream::Error>());
        let passes = match cause {
            Some(cause) => cause.code() == UNAVAILABLE && !NOT_ENABLED.contains(&cause.error_code()),
            None => reason.contains("timed out"),
        };
        if passes { NoLink::Busy(reason) } else { NoLink::Refused(reason) }
    }

    pub(super) fn into_error(self) -> PoolError {
        let (NoLink::Unreachable(reason) | NoLink::Busy(reason) | NoLink::Refused(reason)) = self;
        PoolError::Queue { reason }
    }
}

impl Link {
    /// Connects, and makes the queue if it is not there.
    pub(super) async fn open(queue: &Queue, capacity: Option<usize>) -> Result<Link, NoLink> {
        let addresses = queue.addresses().map_err(|error| NoLink::Refused(error.to_string()))?;
        let options = queue.options.clone();
        // A client that gives up would leave tasks and agents waiting for one that is not there any more.
        let options = options.max_reconnects(None).request_timeout(Some(ANSWER_PATIENCE));
        let client = options.connect(addresses).await.map_err(|error| match error.kind() {
            ConnectErrorKind::Io if says_nonsense(&error) => NoLink::Refused(error.to_string()),
            ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::Io => {
                NoLink::Unreachable(error.to_string())
            }
            _ => NoLink::Refused(error.to_string()),
        })?;
        let jetstream = async_nats::jetstream::new(client.clone());
        let names = queue.names();
        let known_with = client.statistics().connects.load(Ordering::Relaxed);
        let Found { stream, capacity, made } = stream(&jetstream, queue, &names, capacity).await?;
        let objects = bucket(&jetstream, queue, &names).await?;
        let inbox = client.new_inbox();
        let me = inbox.rsplit('.').next().unwrap_or_default().to_owned();
        let (made, known_with) = (Mutex::new(made), known_with.into());
        Ok(Link { client, jetstream, stream, objects, names, me, capacity, made, known_with })
    }

    /// How long a payload may be that does not go through the object store.
    pub(super) fn inline(&self) -> usize {
        INLINE.min(self.client.max_payload().saturating_sub(HEADROOM))
    }

    /// Makes the queue again, should the server have lost it.
    pub(super) async fn renew(&self, queue: &Queue, capacity: Option<usize>) -> Result<(), NoLink> {
        let connects = self.connects();
        let found = stream(&self.jetstream, queue, &self.names, capacity).await?;
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = found.made;
        self.known_with.store(connects, Ordering::Release);
        bucket(&self.jetstream, queue, &self.names).await.map(drop)
    }

    /// Whether the message with this id is not at this place of the stream any more.
    pub(super) async fn is_gone(&self, place: u64, id: &str) -> bool {
        match self.stream.get_raw_message(place).await {
            Ok(message) => message.headers.get(NATS_MESSAGE_ID).is_none_or(|found| found.as_str() != id),
            Err(error) => matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound),
        }
    }

    /// Whether there is a connection, and this is the queue that was found there.
    pub(super) fn is_known(&self) -> bool {
        self.known_with.load(Ordering::Acquire) == self.connects()
            && self.client.connection_state() == Connection::Connected
    }

    /// When the queue was made that was last found.
    pub(super) fn made(&self) -> DateTime {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often there has been a connection.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Sends a message; false if there is no room for it. There is room for many while there is no
    /// connection, but that may be for long.
    pub(super) async fn say(&self, subject: impl ToSubject, message: impl Into<Bytes>) -> bool {
        let said = self.client.publish(subject, message.into());
        matches!(tokio::time::timeout(LAST_WORDS, said).await, Ok(Ok(())))
    }

    /// Waits until the server has everything that was sent; false if that cannot be known soon.
    pub(super) async fn echo(&self) -> bool {
        let echo = async {
            let inbox = self.client.new_inbox();
            let mut own = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client.publish(inbox, "".into()).await.ok()?;
            own.next().await
        };
        matches!(tokio::time::timeout(LAST_WORDS, echo).await, Ok(Some(_)))
    }

    /// Closes the connection when the server has everything that was sent.
    pub(super) async fn close(&self) {
        self.echo().await;
        let closed = async {
            let _ = self.client.drain().await;
            // Until there is nobody any more who would do it. A request to flush that is made just as the
            // client's task ends is never answered, but a later one fails.
            while !matches!(tokio::time::timeout(LAST_FLUSH, self.client.flush()).await, Ok(Err(_))) {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, closed).await;
    }

    /// Removes a task from the queue. It may be gone already.
    pub(super) async fn delete(&self, sequence: u64) {
        for _ in 0..DELETIONS {
            match self.stream.delete_message(sequence).await {
                Err(error) if error.kind() == DeleteMessageErrorKind::TimedOut => {}
                _ => return,
            }
        }
    }
}

/// Whether what was wrong with a connection is what came through it, such as a certificate that is not
/// believed.
fn says_nonsense(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let cause = causes.find_map(|error| error.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

/// The stream of tasks as it was found or made.
struct Found {
    stream: Stream<()>,
    /// How many tasks it keeps for a subject.
    capacity: Option<usize>,
    /// When it was made.
    made: DateTime,
}

/// Finds the stream of tasks, or makes it.
async fn stream(
    jetstream: &Context,
    queue: &Queue,
    names: &Names,
    capacity: Option<usize>,
) -> Result<Found, NoLink> {
    let limit = |capacity: usize| i64::try_from(capacity).unwrap_or(i64::MAX);
    let there = jetstream.get_stream(&names.stream).await;
    let about = match there {
        Ok(stream) => stream.cached_info().clone(),
        Err(_) => {
            let config = stream_config(queue, names, capacity.map_or(-1, limit));
            let made = jetstream.create_stream(config).await;
            // Somebody else may just have made it, with another capacity.
            let stream = jetstream.get_stream(&names.stream).await.map_err(|error| {
                let what = "its stream can be neither found nor made";
                made.err().map_or_else(|| NoLink::of(what, &error), |error| NoLink::of(what, &error))
            })?;
            stream.cached_info().clone()
        }
    };
    let mut config = about.config;
    if config.retention != RetentionPolicy::WorkQueue || config.discard != DiscardPolicy::New {
        return Err(NoLink::Refused(format!("the stream `{}` is not one of this crate's", names.stream)));
    }
    if let Some(capacity) = capacity
        && config.max_messages_per_subject != limit(capacity)
    {
        config.max_messages_per_subject = limit(capacity);
        config.discard_new_per_subject = true;
        let done = jetstream.update_stream(config.clone()).await;
        done.map_err(|error| NoLink::of("its capacity cannot be set", &error))?;
    }
    let stream = jetstream.get_stream_no_info(&names.stream).await;
    let stream = stream.map_err(|error| NoLink::of("its stream cannot be used", &error))?;
    Ok(Found {
        stream,
        capacity: usize::try_from(config.max_messages_per_subject).ok().filter(|most| *most > 0),
        made: about.created,
    })
}

fn stream_config(queue: &Queue, names: &Names, most: i64) -> Config {
    Config {
        name: names.stream.clone(),
        description: Some("tasks of procession".into()),
        subjects: vec![names.all_tasks()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        discard_new_per_subject: most > 0,
        max_messages: -1,
        max_messages_per_subject: most,
        max_bytes: -1,
        max_consumers: -1,
        // For tasks whose callers and agents are all gone.
        max_age: queue.max_wait + Duration::from_secs(3600),
        duplicate_window: DUPLICATES,
        storage: storage(queue),
        num_replicas: queue.replicas,
        ..Config::default()
    }
}

fn storage(queue: &Queue) -> StorageType {
    if queue.in_memory { StorageType::Memory } else { StorageType::File }
}

async fn bucket(jetstream: &Context, queue: &Queue, names: &Names) -> Result<Objects, NoLink> {
    let store = match jetstream.get_object_store(&names.stream).await {
        Ok(store) => store,
        Err(_) => {
            let made = jetstream.create_object_store(object_store::Config {
                bucket: names.stream.clone(),
                description: Some("large arguments and results of procession".into()),
                max_age: queue.max_wait + Duration::from_secs(3600),
                max_bytes: -1,
                storage: storage(queue),
                num_replicas: queue.replicas,
                ..object_store::Config::default()
            });
            match made.await {
                Ok(store) => store,
                // Somebody else may just have made it.
                Err(error) => jetstream
                    .get_object_store(&names.stream)
                    .await
                    .map_err(|_| NoLink::of("its object store can be neither found nor made", &error))?,
            }
        }
    };
    let stream = jetstream.get_stream_no_info(format!("OBJ_{}", names.stream)).await;
    let stream = stream.map_err(|error| NoLink::of("its object store cannot be used", &error))?;
    Ok(Objects::new(store, stream, &names.stream))
}

/// What agents of this build take tasks of a level from.
pub(super) fn consumer_config(queue: &Queue, names: &Names, level: Priority) -> pull::Config {
    pull::Config {
        durable_name: Some(names.consumer(level)),
        filter_subject: names.task(level),
        ack_policy: AckPolicy::Explicit,
        ack_wait: queue.ack_wait,
        // Whoever wants another attempt publishes the task anew: a delivery is never repeated.
        max_deliver: 1,
        max_ack_pending: -1,
        max_waiting: MAX_WAITING,
        ..pull::Config::default()
    }
}
