//! The life of an agent: asks for tasks, starts them, listens to callers, and drains in the end.

use super::super::link::Link;
use super::super::message::{Key, ToAgent, unpack};
use super::super::names::level_of;
use super::flow::Heard;
use super::pulls::{Pulls, Turn};
use super::{Id, Inner, care, work};
use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::DropGuard;

/// How long what the server still sends may take to come when an agent ends.
const LAST_CALL: Duration = Duration::from_secs(5);

/// How long a request may take to be on its way.
const ASKING: Duration = Duration::from_secs(1);

/// When so long nothing has come, nothing is on the way, as a rule.
const QUIET: Duration = Duration::from_millis(30);

/// So long nothing is asked for when the server has refused to answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The header by which the server says how many tasks it did not have.
const MISSING: &str = "Nats-Pending-Messages";

/// What an agent listens to.
pub(super) struct Ears {
    /// What the server sends in answer to requests.
    tasks: Subscriber,
    inbox: String,
    own: Subscriber,
    roll_call: Subscriber,
    advisories: Subscriber,
}

pub(super) async fn subscribe(inner: &Inner) -> Result<Ears, String> {
    let Link { client, names, me, .. } = &inner.link;
    let inbox = client.new_inbox();
    let subscribe =
        async |subject: String| client.subscribe(subject).await.map_err(|error| error.to_string());
    Ok(Ears {
        tasks: subscribe(format!("{inbox}.*")).await?,
        inbox,
        own: subscribe(names.to(me)).await?,
        roll_call: subscribe(names.roll_call()).await?,
        advisories: client
            // One of each build: others do not know what to make of it.
            .queue_subscribe(names.advisories(), names.build.clone())
            .await
            .map_err(|error| error.to_string())?,
    })
}

/// Lives the life of an agent, and tells when that is over, for whatever reason.
pub(super) async fn live(inner: Arc<Inner>, mut ears: Ears, _closed: DropGuard) {
    tokio::spawn(care::remove_old_builds(inner.clone()));
    let (freed, mut idle) = mpsc::unbounded_channel();
    let mut server = Server {
        pulls: Pulls::new(inner.width, Instant::now()),
        inner: inner.clone(),
        freed,
        inbox: ears.inbox.clone(),
        came: 0,
        refused_until: None,
    };
    let mut beats = tokio::time::interval(inner.queue.beat().min(Duration::from_secs(5)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connects = inner.link.connects();
    while !inner.stopping.is_cancelled() {
        let may_ask = server.may_ask();
        if may_ask {
            server.ask().await;
        }
        let wake_at = server.pulls.wake_at(may_ask).into_iter().chain(server.refused_until).min();
        let wake_at = wake_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = inner.stopping.cancelled() => {}
            Some(message) = ears.tasks.next() => server.take(message),
            Some(took) = idle.recv() => server.freed(took),
            Some(message) = ears.own.next() => inner.hear(message),
            Some(message) = ears.roll_call.next() => {
                if message.payload.is_empty() {
                    care::tell(&inner, false).await;
                }
                inner.hear(message);
            }
            () = inner.found_again.notified() => server.pulls.lost(),
            Some(message) = ears.advisories.next() => {
                tokio::spawn(care::bury(inner.clone(), message));
            }
            _ = beats.tick() => {
                if connects != inner.link.connects() {
                    connects = inner.link.connects();
                    tokio::spawn(care::make_sure(inner.clone()));
                }
                care::tell(&inner, false).await;
            }
            () = tokio::time::sleep_until(wake_at.into()) => server.look_after_time(),
        }
    }
    care::tell(&inner, true).await;
    end(server, ears).await;
}

/// What an agent does with the server.
struct Server {
    inner: Arc<Inner>,
    pulls: Pulls<Message>,
    /// Told when a worker is free.
    freed: work::Freed,
    inbox: String,
    /// How many messages have come in answer to requests.
    came: u64,
    /// Until when nothing is asked for, since the server has refused to answer.
    refused_until: Option<Instant>,
}

impl Server {
    /// Whether there is somebody to answer, as far as is known.
    fn may_ask(&mut self) -> bool {
        self.refused_until = self.refused_until.filter(|until| Instant::now() < *until);
        self.refused_until.is_none() && self.inner.link.is_known()
    }

    /// The server does not answer requests, perhaps since the queue or its consumers are gone.
    fn refused(&mut self, now: Instant) {
        if self.refused_until.is_none() {
            self.refused_until = Some(now + PAUSE);
            let inner = self.inner.clone();
            tokio::spawn(async move {
                // A server that is about to remove a queue does not take another one by that name well.
                tokio::time::sleep(PAUSE / 2).await;
                care::make_sure(inner).await;
            });
        }
    }

    /// Asks for as many tasks as there are workers for.
    async fn ask(&mut self) {
        let Link { client, names, .. } = &self.inner.link;
        while let Some(request) = self.pulls.next(Instant::now()) {
            let subject =
                format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", names.stream, names.consumer(request.level));
            let reply = format!("{}.{}", self.inbox, request.token);
            // Without a connection it will be asked again.
            let asked = client.publish_with_reply(subject, reply, request.payload().into());
            let _ = tokio::time::timeout(ASKING, asked).await;
        }
    }

    fn begin(&self, message: Message) {
        self.inner.work.spawn(work::run(self.inner.clone(), message, Some(self.freed.clone())));
    }

    /// Hands a task back that has not begun.
    fn give_back(&self, message: Message) {
        self.inner.work.spawn(work::run(self.inner.clone(), message, None));
    }

    /// A worker is free that a task has had for so long.
    fn freed(&mut self, took: Duration) {
        if let Some(message) = self.pulls.freed(took, Instant::now()) {
            self.begin(message);
        }
    }

    fn look_after_time(&mut self) {
        let now = Instant::now();
        self.pulls.expire(now);
        while let Some(message) = self.pulls.kept_too_long(now) {
            self.give_back(message);
        }
    }

    /// Takes in an answer of the server.
    fn take(&mut self, message: Message) {
        self.came += 1;
        // A task keeps the subject that it was published to; a status comes to the one that was asked from.
        let last = message.subject.rsplit('.').next().unwrap_or_default();
        let now = Instant::now();
        match message.status {
            None if message.reply.is_some() => {
                let (level, waiting) = (level_of(last), waiting(&message));
                match self.pulls.came(level, message, waiting, now) {
                    Turn::Now(message) => self.begin(message),
                    Turn::Later => {}
                    Turn::Never(message) => self.give_back(message),
                }
            }
            // It is still there.
            Some(StatusCode::IDLE_HEARTBEAT) | None => {}
            Some(status) => {
                let missing = message.headers.as_ref().and_then(|headers| headers.get(MISSING));
                let missing = missing.and_then(|missing| missing.as_str().parse().ok());
                self.pulls.ended(last.parse().unwrap_or(0), missing, now);
                if !matches!(status, StatusCode::NOT_FOUND | StatusCode::TIMEOUT) {
                    self.refused(now);
                }
            }
        }
    }
}

impl Server {
    /// Waits until everything is answered that was asked for, or nothing comes any more. What the server
    /// still sends would otherwise meet nobody, should it come at the moment in which this stops to listen,
    /// and its caller would have to notice.
    async fn run_dry(&mut self, tasks: &mut Subscriber) {
        while self.pulls.is_waiting()
            && let Ok(Some(message)) = tokio::time::timeout(QUIET, tasks.next()).await
        {
            self.hand_back(message);
        }
    }

    /// Takes in an answer of the server when no more tasks are taken.
    fn hand_back(&mut self, message: Message) {
        self.came += 1;
        let last = message.subject.rsplit('.').next().unwrap_or_default();
        let now = Instant::now();
        if message.status.is_some() {
            self.pulls.ended(last.parse().unwrap_or(0), None, now);
        } else if message.reply.is_some() {
            self.pulls.answered(level_of(last), now);
            self.give_back(message);
        }
    }
}

/// How many tasks the server had left for agents when it sent this one.
fn waiting(message: &Message) -> usize {
    let note = message.reply.as_deref().and_then(|reply| reply.rsplit('.').next());
    note.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Takes no more, hands back what comes nevertheless, and waits for what runs.
async fn end(mut server: Server, mut ears: Ears) {
    let inner = server.inner.clone();
    while let Some(message) = server.pulls.take_kept() {
        server.give_back(message);
    }
    let last = async {
        server.run_dry(&mut ears.tasks).await;
        // The server stops after so many messages, which is more than it can have on the way: those that are
        // missing come from here. So none is lost between it and an agent that does not listen any more.
        let blanks = server.pulls.may_come() as u64;
        let _ = ears.tasks.unsubscribe_after(server.came + blanks).await;
        for _ in 0..blanks {
            let _ = inner.link.client.publish(format!("{}.0", ears.inbox), "".into()).await;
        }
        while let Some(message) = ears.tasks.next().await {
            server.hand_back(message);
        }
    };
    let _ = tokio::time::timeout(LAST_CALL, last).await;
    inner.work.close();
    let mut work = std::pin::pin!(inner.work.wait());
    loop {
        tokio::select! {
            () = &mut work => break,
            Some(message) = ears.own.next() => inner.hear(message),
            Some(message) = ears.roll_call.next() => inner.hear(message),
        }
    }
    inner.pool.shutdown().await;
    while inner.link.echo().await {
        let connects = inner.link.connects();
        if !inner.link.is_known() && inner.link.renew(&inner.queue, None).await.is_err() {
            break;
        }
        inner.repeat_last_words().await;
        if connects == inner.link.connects() {
            break;
        }
    }
    inner.link.close().await;
}

impl Inner {
    /// A caller says something.
    fn hear(&self, message: Message) {
        match unpack::<ToAgent>(message.payload) {
            Some((ToAgent::Confirm { caller, key }, _)) => {
                let waiting = self.lock().unconfirmed.remove(&Id { caller: caller.into(), key });
                if let Some(waiting) = waiting {
                    let _ = waiting.send(());
                }
            }
            Some((ToAgent::Cancel { caller, key }, _)) => self.cancel(&caller, Some(key)),
            Some((ToAgent::Flow { caller, key, flow }, _)) => {
                self.lock().hear_of(&Id { caller: caller.into(), key }, flow);
            }
            Some((ToAgent::Left { caller }, _)) => {
                self.lock().remember_left(caller.as_str().into());
                self.cancel(&caller, None);
            }
            None => {}
        }
    }

    /// Cancels a task of a caller, or all. Not one that was submitted again meanwhile, and may be here, too.
    fn cancel(&self, caller: &str, key: Option<Key>) {
        let (cells, confirmed) = {
            let mut state = self.lock();
            let is_meant = |id: &Id| *id.caller == *caller && key.is_none_or(|key| id.key == key);
            let cells: Vec<_> =
                state.running.iter().filter(|(id, _)| is_meant(id)).map(|(_, cell)| cell.clone()).collect();
            state.call_off(caller, key);
            for (_, stream) in state.flows.iter().filter(|(id, _)| is_meant(id)) {
                stream.send_modify(Heard::cancel);
            }
            let waiting: Vec<_> = state.unconfirmed.keys().filter(|id| is_meant(id)).cloned().collect();
            let confirmed: Vec<_> =
                waiting.into_iter().filter_map(|id| state.unconfirmed.remove(&id)).collect();
            (cells, confirmed)
        };
        for cell in cells {
            self.pool.shared().cancel(&cell);
        }
        for waiting in confirmed {
            // A caller that has ended confirms nothing: what it has left is cleared up.
            if key.is_some() {
                let _ = waiting.send(());
            }
        }
    }
}
