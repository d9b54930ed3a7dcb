//! The way of one task through an agent.

use super::super::message::{AnswerHead, News, Place, REPLY_TO, TaskHead, ToCaller, VERSION, pack, unpack};
use super::super::report::Ending;
use super::flow::{Relay, Relayed};
use super::{Id, Inner, LastWord, voices};
use crate::pool::cell::{Cell, Outcome};
use crate::pool::order::{Alias, Order, Origin};
use crate::pool::voice::{self, Audience};
use crate::sys::monotonic_now;
use crate::task::{Fault, TaskError, TaskRef};
use async_nats::connection::State as Connection;
use async_nats::{Message, Subject};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// After this time, and twice as long each time up to the second, it is looked whether a task has begun.
const GLANCES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

/// How long to wait for the confirmation of an answer before it is repeated, at first and at most.
const REPEATS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// So short an answer, in bytes, is always kept in memory.
const SHORT: u32 = 1 << 10;

/// How much time there is between two reports of how far a task has got.
const REPORTS: Duration = Duration::from_millis(50);

/// How long an agent that ends waits for confirmations.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

pub(super) const DONE: &str = "+ACK";
const IN_PROGRESS: &str = "+WPI";

/// A task in hand.
pub(super) struct Job {
    pub(super) inner: Arc<Inner>,
    pub(super) head: TaskHead,
    pub(super) id: Id,
    /// Where its caller listens.
    reply_to: String,
    /// Where the server is told what became of it.
    ack: Subject,
    /// The process that has begun it; 0 for none.
    pid: AtomicU32,
}

/// Runs a task that the server has sent, and has its caller told. Tells when the worker is free, if there
/// is one for it; without, the task is handed back.
pub(super) async fn run(inner: Arc<Inner>, message: Message, freed: Option<Freed>) {
    let worker = Worker(freed, Instant::now());
    let Some(ack) = message.reply.clone() else { return };
    let last_word = LastWord { ack: ack.clone(), made: inner.link.made() };
    let Some((job, body)) = Job::new(inner.clone(), message, ack) else {
        // No task, too old, or in hand already.
        return inner.finish(last_word).await;
    };
    let job = Arc::new(job);
    let is_confirmed = job.with_signs_of_life(job.clone().live(worker, body)).await;
    inner.finish(last_word).await;
    if !is_confirmed {
        job.clear_up().await;
    }
    let mut state = inner.lock();
    state.unconfirmed.remove(&job.id);
    state.forget(job.id.clone());
}

/// What has become of a task in the local pool.
struct Done {
    outcome: Outcome,
    /// The task, if it got there.
    cell: Option<Arc<Cell>>,
    relayed: Relayed,
    /// How many messages there were of what it has logged.
    voices: u64,
}

impl Done {
    fn without_cell(outcome: Outcome) -> Done {
        Done { outcome, cell: None, relayed: Relayed::All(0), voices: 0 }
    }
}

/// Where it is told that a worker is free, and for how long it was not.
pub(super) type Freed = mpsc::UnboundedSender<Duration>;

/// A worker that is taken up since then, until this is dropped.
struct Worker(Option<Freed>, Instant);

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(freed) = &self.0 {
            let _ = freed.send(self.1.elapsed());
        }
    }
}

impl Inner {
    pub(super) async fn say(&self, ack: Subject, word: &'static str) {
        // Without a connection the server counts the task as lost, and says so.
        self.link.say(ack, word).await;
    }
}

impl Job {
    /// With what came behind the head. That is not to be there until the answer is confirmed.
    fn new(inner: Arc<Inner>, message: Message, ack: Subject) -> Option<(Job, Bytes)> {
        let reply_to = message.headers.as_ref()?.get(REPLY_TO)?.to_string();
        if !inner.link.names.is_party(&reply_to) {
            return None;
        }
        let caller = reply_to.rsplit('.').next()?.into();
        let published = async_nats::jetstream::Message {
            message: Message { payload: Bytes::new(), headers: None, ..message.clone() },
            context: inner.link.jetstream.clone(),
        };
        let published = published.info().ok()?.published.unix_timestamp_nanos();
        let (head, body) = unpack::<TaskHead>(message.payload)?;
        if head.version != VERSION || head.build != inner.link.names.identity {
            return None;
        }
        let id = Id { caller, key: head.key };
        if !inner.lock().take_in_hand(&id) {
            return None;
        }
        let job = Job { inner, head, id, reply_to, ack, pid: AtomicU32::new(0) };
        if age(published) > u128::from(job.head.max_wait) {
            {
                let mut state = job.inner.lock();
                state.waiting.remove(&job.id);
                state.forget(job.id.clone());
            }
            tokio::spawn(async move { job.clear_up().await });
            return None;
        }
        Some((job, body))
    }

    /// Does some work while it tells the server and the caller, every now and then, that it goes on.
    async fn with_signs_of_life<T>(&self, work: impl Future<Output = T>) -> T {
        let beat = self.inner.queue.beat();
        let mut beats = tokio::time::interval_at((Instant::now() + beat).into(), beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = beats.tick() => {
                    self.inner.say(self.ack.clone(), IN_PROGRESS).await;
                    self.tell_alive().await;
                }
            }
        }
    }

    pub(super) async fn tell_alive(&self) {
        let pid = Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0);
        self.tell(News::Alive { pid }, &[]).await;
    }

    pub(super) async fn tell(&self, what: News, body: &[u8]) {
        let agent = self.inner.link.me.clone();
        self.publish(pack(&ToCaller { agent, key: self.head.key, what }, &[body])).await;
    }

    /// Sends the caller a message.
    pub(super) async fn publish(&self, message: Bytes) {
        // What is lost is told again.
        self.inner.link.say(self.reply_to.clone(), message).await;
    }

    /// Runs the task and has the answer confirmed; whether it was.
    async fn live(self: Arc<Self>, worker: Worker, body: Bytes) -> bool {
        if worker.0.is_none() {
            drop(body);
            return self.until_confirmed(|| News::HandedBack, Bytes::new()).await;
        }
        let started = monotonic_now();
        let Done { outcome, cell, relayed, voices } = self.outcome(worker, body).await;
        let packets = match relayed {
            Relayed::All(packets) => packets,
            Relayed::Cancelled => return true,
            Relayed::Forsaken => return false,
        };
        if matches!(&outcome, Outcome::Error(error) if matches!(**error, TaskError::Cancelled)) {
            // Its caller knows, or nobody would have cancelled it.
            return true;
        }
        let ran = monotonic_now() - started;
        let answer = answer(&outcome, cell.as_deref(), packets, voices);
        drop((outcome, cell));
        let bytes = u32::try_from(answer.len()).unwrap_or(u32::MAX);
        let fits = answer.len() <= self.inner.link.inline();
        if fits && let Some(_room) = room_for(&self.inner.answers, bytes) {
            return self.until_confirmed(move || News::Done { ran, place: Place::Here }, answer).await;
        }
        let (name, size) = (self.object(), answer.len() as u64);
        let place = match self.inner.link.objects.put(&name, &answer).await {
            Ok(()) => Place::Object { name, size },
            Err(_) => {
                self.inner.link.objects.remove(&name).await;
                let lost = answer_of(Ending::Lost, packets, voices);
                return self.until_confirmed(move || News::Done { ran, place: Place::Here }, lost).await;
            }
        };
        drop(answer);
        self.until_confirmed(move || News::Done { ran, place: place.clone() }, Bytes::new()).await
    }

    /// What becomes of the task in the local pool. The worker is free when it is done.
    async fn outcome(&self, worker: Worker, body: Bytes) -> Done {
        let failed = |error| Done::without_cell(Outcome::Error(Box::new(error)));
        let limit = self.inner.pool.shared().settings.max_message;
        let body = match &self.head.place {
            Place::Here => body,
            Place::Object { size, .. } if *size > limit => {
                return failed(TaskError::TooLarge { size: *size, limit });
            }
            Place::Object { name, .. } => match self.inner.link.objects.get(name, limit).await {
                Ok(body) => body,
                Err(_) => return failed(TaskError::NodeLost),
            },
        };
        // A chunk is bounded item by item.
        let size = body.len() as u64;
        if size > limit && self.head.items == 0 {
            return Done::without_cell(Outcome::Fault(Box::new(Fault::TooLarge { size, limit })));
        }
        let Some(task) = TaskRef::at(self.head.shim) else {
            return failed(TaskError::NotInMainImage { task: "a task from the queue".into() });
        };
        let relay = voice::Relay::new(self.head.levels, &self.inner.pool.shared().settings.forwarding);
        let order = Order {
            timeout: self.head.timeout.map(Duration::from_nanos),
            name: self.head.name.clone(),
            items: self.head.items as usize,
            window: self.head.window.map(|window| window.max(1)),
            origin: Origin { audience: Audience::elsewhere(relay.clone()), trace: self.head.trace.clone() },
            alias: Some(Alias { id: self.head.key.task, attempts: self.head.key.attempt.saturating_sub(1) }),
            ..Order::default()
        };
        // It may have been cancelled while its arguments were fetched.
        if !self.inner.lock().is_wanted(&self.id) {
            return failed(TaskError::Cancelled);
        }
        let cell = self.inner.pool.shared().submit(task, Ok(body), order);
        let is_wanted = {
            let mut state = self.inner.lock();
            state.running.insert(self.id.clone(), cell.clone());
            let is_wanted = state.is_wanted(&self.id);
            state.waiting.remove(&self.id);
            is_wanted
        };
        if !is_wanted {
            self.inner.pool.shared().cancel(&cell);
        }
        let over = CancellationToken::new();
        let run = async {
            let outcome = self.watch(&cell).await;
            drop(worker);
            over.cancel();
            self.inner.lock().running.remove(&self.id);
            outcome
        };
        let items = async {
            match self.head.window {
                None => Relayed::All(0),
                Some(_) => Relay::new(self, &cell).run(&over).await,
            }
        };
        let voices = async {
            match &relay {
                None => 0,
                Some(relay) => voices::pass_on(self, relay, &over).await,
            }
        };
        let (outcome, relayed, voices) = tokio::join!(run, items, voices);
        Done { outcome, cell: Some(cell), relayed, voices }
    }

    /// Waits until the task is done, and tells the caller when it has begun, if that takes a moment.
    async fn watch(&self, cell: &Arc<Cell>) -> Outcome {
        let mut done = std::pin::pin!(std::future::poll_fn(|context| cell.poll(context)));
        let mut reports = std::pin::pin!(self.pass_on_reports(cell));
        let mut pause = GLANCES.0;
        loop {
            tokio::select! {
                biased;
                outcome = &mut done => return outcome,
                // What is over in a moment says the last of it with its answer.
                () = &mut reports, if self.pid.load(Ordering::Relaxed) > 0 => {}
                () = tokio::time::sleep(pause), if self.pid.load(Ordering::Relaxed) == 0 => {
                    pause = (pause * 2).min(GLANCES.1);
                    if let Some((pid, true)) = self.inner.pool.shared().whereabouts(cell) {
                        self.pid.store(pid, Ordering::Relaxed);
                        self.tell_alive().await;
                    }
                }
            }
        }
    }

    /// Passes on what the task says of how far it has got, for ever: the latest, now and then.
    async fn pass_on_reports(&self, cell: &Cell) {
        let mut watch = cell.progress();
        while let Some(progress) = watch.changed().await {
            // It is not to wait for a connection: by then there is a later one.
            if self.inner.link.client.connection_state() == Connection::Connected {
                self.tell(News::Progress { progress }, &[]).await;
            }
            tokio::time::sleep(REPORTS).await;
        }
        std::future::pending().await
    }

    /// Tells the caller something until it confirms that, or for as long as patience lasts.
    async fn until_confirmed(&self, what: impl Fn() -> News, body: Bytes) -> bool {
        let inner = &self.inner;
        let (confirm, mut confirmed) = oneshot::channel();
        inner.lock().unconfirmed.insert(self.id.clone(), confirm);
        let start = Instant::now();
        let mut pause = REPEATS.0;
        while start.elapsed() < self.patience() {
            self.tell(what(), &body).await;
            let wait = pause.min(self.patience().saturating_sub(start.elapsed()));
            if let Ok(confirmed) = tokio::time::timeout(wait, &mut confirmed).await {
                return confirmed.is_ok();
            }
            pause = (pause * 2).min(REPEATS.1);
        }
        false
    }

    pub(super) fn patience(&self) -> Duration {
        let patience = self.inner.queue.reply_patience;
        if self.inner.stopping.is_cancelled() { patience.min(LAST_PATIENCE) } else { patience }
    }

    /// The name of the object with the answer.
    fn object(&self) -> String {
        let key = self.head.key;
        format!("{}.{}.{}.{}.out", self.id.caller, key.task, key.attempt, key.hop)
    }

    /// Removes what a caller that is gone has left behind.
    async fn clear_up(&self) {
        if let Place::Object { name, .. } = &self.head.place {
            self.inner.link.objects.remove(name).await;
        }
        self.inner.link.objects.remove(&self.object()).await;
    }
}

/// How long ago this was, in nanoseconds; 0 if it is to come.
fn age(unix_nanos: i128) -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
    u128::try_from(now.saturating_sub(unix_nanos)).unwrap_or(0)
}

fn answer(outcome: &Outcome, cell: Option<&Cell>, packets: u64, voices: u64) -> Bytes {
    let ending = Ending::of(outcome, cell.and_then(Cell::timeout_report));
    let parts = cell.map(Cell::take_parts).unwrap_or_default();
    let value = match outcome {
        Outcome::Value(value) => value.clone(),
        Outcome::Fault(_) | Outcome::Error(_) => Bytes::new(),
    };
    let progress = cell.and_then(Cell::latest_progress);
    let head = AnswerHead { ending, part_bytes: parts.bytes.len() as u64, packets, voices, progress };
    pack(&head, &[&parts.bytes, &value])
}

/// Room for an answer of so many bytes, if it is to be kept here. A short one takes less than its task does
/// in any case.
fn room_for(answers: &Semaphore, bytes: u32) -> Option<SemaphorePermit<'_>> {
    answers.try_acquire_many(if bytes <= SHORT { 0 } else { bytes }).ok()
}

fn answer_of(ending: Ending, packets: u64, voices: u64) -> Bytes {
    pack(&AnswerHead { ending, part_bytes: 0, packets, voices, progress: None }, &[])
}
