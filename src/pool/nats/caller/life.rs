//! The life of a caller: connects, listens, looks after time, and clears up in the end.

use super::super::link::{Link, NoLink};
use super::super::message::{ToAgent, pack};
use super::{Core, Errand, Stage, overdue, publish};
use crate::pool::clock::WATCH_LIMIT;
use crate::task::{PoolError, TaskError};
use async_nats::connection::State as Connection;
use async_nats::{Message, Subscriber};
use futures::StreamExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

/// The pauses between two tries to connect: this at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// After so many refusals in a row the queue counts as broken, until it works again.
const REFUSALS: u32 = 3;

/// So it does when the server is there, but has not made it for so long.
const BUSY: Duration = Duration::from_secs(30);

/// How long what is left in the queue may take to be cleared up when the pool ends.
const LAST_ERRANDS: Duration = Duration::from_secs(5);

/// How long confirmations may take to be on their way.
const CONFIRMING: Duration = Duration::from_secs(1);

/// How many messages are looked at before confirmations are sent.
const AT_ONCE: usize = 64;

/// Runs until nothing is left to be done.
pub(super) fn run(core: Arc<Core>, todo: UnboundedReceiver<Errand>) -> impl Future<Output = ()> + Send {
    // Not within the future: it may be dropped before it is ever polled.
    let guard = Guard(core);
    async move {
        live(&guard.0, todo).await;
        guard.0.forget_agents();
        if let Some(shared) = guard.0.shared.get().and_then(Weak::upgrade) {
            let _ = tokio::time::timeout(WATCH_LIMIT, shared.watchers.end()).await;
        }
        guard.0.terminated.cancel();
    }
}

/// Notices that the runtime is dropped, with the engine's life in it.
struct Guard(Arc<Core>);

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.0.terminated.is_cancelled() {
            self.0.stop();
            self.0.forget_agents();
            if let Some(shared) = self.0.shared.get().and_then(Weak::upgrade) {
                shared.watchers.abandon();
            }
            self.0.terminated.cancel();
        }
    }
}

async fn live(core: &Arc<Core>, mut todo: UnboundedReceiver<Errand>) {
    let Some((link, ears)) = connect(core).await else { return };
    core.link.send_replace(Some(link.clone()));
    let errands = TaskTracker::new();
    let (tasks, published) = mpsc::unbounded_channel();
    errands.spawn(publish::publish_all(core.clone(), link.clone(), published, errands.clone()));
    let office = Office { core: core.clone(), link: link.clone(), tasks, errands: errands.clone() };
    office.listen(ears, &mut todo).await;
    core.link.send_replace(None);
    // What was noted last.
    while let Ok(errand) = todo.try_recv() {
        office.run(errand);
    }
    drop(office);
    errands.close();
    let _ = tokio::time::timeout(LAST_ERRANDS, errands.wait()).await;
    // Tasks that were cancelled just when an agent took them.
    let left = pack(&ToAgent::Left { caller: link.me.clone() }, &[]);
    let _ = tokio::time::timeout(LAST_ERRANDS, link.client.publish(link.names.roll_call(), left)).await;
    link.close().await;
}

/// What a caller listens to.
struct Ears {
    own: Subscriber,
    advisories: Subscriber,
    agents: Subscriber,
}

/// Connects, however long it takes; `None` if there is nothing to connect for any more.
async fn connect(core: &Arc<Core>) -> Option<(Arc<Link>, Ears)> {
    let (mut pause, mut refusals, mut busy_since) = (PAUSES.0, 0, None);
    loop {
        let opened = async {
            let link = Link::open(&core.queue, core.capacity).await?;
            let ears = subscribe(&link).await.map_err(NoLink::Unreachable)?;
            Ok((Arc::new(link), ears))
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = idle_end(core) => return None,
        };
        match opened {
            Ok(link) => {
                core.lock().broken = None;
                return Some(link);
            }
            Err(refusal) => {
                let is_hopeless = match &refusal {
                    NoLink::Unreachable(_) => {
                        busy_since = None;
                        false
                    }
                    NoLink::Busy(_) => busy_since.get_or_insert_with(Instant::now).elapsed() > BUSY,
                    NoLink::Refused(_) => {
                        refusals += 1;
                        refusals >= REFUSALS
                    }
                };
                if is_hopeless {
                    core.broken(&refusal.into_error());
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = idle_end(core) => return None,
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Waits until the pool is told to end and has nothing left to do, while there is no connection.
async fn idle_end(core: &Core) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        core.look_around();
        if core.is_over() {
            return;
        }
    }
}

async fn subscribe(link: &Link) -> Result<Ears, String> {
    let names = &link.names;
    let subscribe =
        async |subject: String| link.client.subscribe(subject).await.map_err(|error| error.to_string());
    let ears = Ears {
        own: subscribe(names.to(&link.me)).await?,
        advisories: subscribe(names.advisories()).await?,
        agents: subscribe(names.agents()).await?,
    };
    // Agents that are there already.
    link.client.publish(names.roll_call(), "".into()).await.map_err(|error| error.to_string())?;
    Ok(ears)
}

/// What it takes to run errands.
struct Office {
    core: Arc<Core>,
    link: Arc<Link>,
    /// Where tasks are published.
    tasks: mpsc::UnboundedSender<u64>,
    errands: TaskTracker,
}

impl Office {
    async fn listen(&self, mut ears: Ears, todo: &mut UnboundedReceiver<Errand>) {
        let Office { core, link, errands, .. } = self;
        let beat = core.queue.beat().min(Duration::from_millis(250)).min(core.queue.reply_patience / 4);
        let mut ticks = tokio::time::interval(beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut audit_at = Instant::now() + core.queue.ack_wait;
        let mut connects = 0;
        while !core.is_over() {
            tokio::select! {
                Some(errand) = todo.recv() => self.run(errand),
                Some(message) = ears.own.next() => hear(core, link, message, &mut ears.own).await,
                Some(message) = ears.advisories.next() => core.advised(link, &message),
                Some(message) = ears.agents.next() => core.present(message),
                _ = ticks.tick() => {
                    let count = link.connects();
                    // Without a connection what is said would only pile up.
                    if link.client.connection_state() == Connection::Connected {
                        core.look_at_streams(count > connects.max(1));
                    }
                    if count != connects || link.client.connection_state() != Connection::Connected {
                        if count > connects.max(1) {
                            errands.spawn(find_again(core.clone(), link.clone()));
                        }
                        connects = count;
                        core.be_patient_again();
                    }
                    core.look_around();
                    if Instant::now() >= audit_at {
                        audit_at = Instant::now() + core.queue.ack_wait;
                        errands.spawn(audit(core.clone(), link.clone()));
                    }
                }
            }
        }
    }
}

/// Takes in a message, and those that have come with it; then confirms them.
async fn hear(core: &Arc<Core>, link: &Arc<Link>, message: Message, more: &mut Subscriber) {
    let mut confirmations = Vec::new();
    confirmations.extend(core.heard(link, message));
    while confirmations.len() < AT_ONCE
        && let Some(Some(message)) = futures::FutureExt::now_or_never(more.next())
    {
        confirmations.extend(core.heard(link, message));
    }
    let confirm = async {
        for confirmation in confirmations {
            confirmation.await;
        }
    };
    // Without a connection there may be no room for them. Then the agents repeat their answers.
    let _ = tokio::time::timeout(CONFIRMING, confirm).await;
}

impl Office {
    fn run(&self, errand: Errand) {
        let (link, errands) = (self.link.clone(), &self.errands);
        match errand {
            Errand::Publish(task) => {
                // It lives as long as this does.
                let _ = self.tasks.send(task);
            }
            Errand::Delete(place) => {
                errands.spawn(async move { link.delete(place).await });
            }
            Errand::Fetch(fetch) => {
                let core = self.core.clone();
                errands.spawn(async move { core.fetch(&link, fetch).await });
            }
            Errand::Remove(object) => {
                errands.spawn(async move { link.objects.remove(&object).await });
            }
            Errand::Overdue(key) => {
                let core = self.core.clone();
                errands.spawn(async move { overdue::overdue(&core, &link, key).await });
            }
            Errand::Cancel(agent, key) => {
                let subject = link.names.to(&agent);
                if link.names.is_party(&subject) {
                    let message = pack(&ToAgent::Cancel { caller: link.me.clone(), key }, &[]);
                    errands.spawn(async move {
                        let _ = link.client.publish(subject, message).await;
                    });
                }
            }
            Errand::Flow(task) => {
                if let Some((subject, message)) = self.core.flow(&link, task) {
                    errands.spawn(async move {
                        let _ = link.client.publish(subject, message).await;
                    });
                }
            }
            Errand::Look => {}
        }
    }
}

/// Asks the server which tasks have been handed out, in case that nobody tells of them any more.
async fn audit(core: Arc<Core>, link: Arc<Link>) {
    let levels: Vec<_> = core.lock().levels().collect();
    for level in levels {
        if let Some(last) = publish::delivered(&link, level).await {
            core.handed_out(level, last);
        }
    }
}

/// There is a connection again: sees that the queue is still there, and which tasks are in it.
async fn find_again(core: Arc<Core>, link: Arc<Link>) {
    while link.renew(&core.queue, core.capacity).await.is_err() {
        tokio::time::sleep(PAUSES.1).await;
        if core.is_over() {
            return;
        }
    }
    for (key, place) in core.placed() {
        if link.is_gone(place, &key.message_id(&link.me)).await {
            core.gone(key);
        }
    }
}

impl Core {
    /// Whether nothing is left to be done; stops the pool first, if that is due.
    fn is_over(&self) -> bool {
        let is_due = {
            let state = self.lock();
            if state.stage == Stage::Open {
                return false;
            }
            if state.tasks.is_empty() {
                return true;
            }
            state.stage == Stage::Stopped || state.stop_at.is_some_and(|at| Instant::now() >= at)
        };
        if is_due {
            self.stop();
        }
        is_due
    }

    /// What they do is no matter of a pool that has ended.
    fn forget_agents(&self) {
        {
            let mut state = self.lock();
            state.agents.clear();
            state.count_workers();
        }
        self.show_levels();
    }

    /// The queue cannot be used: what waits for it fails, and what comes, until it can be.
    fn broken(&self, cause: &PoolError) {
        let warming: Vec<_> = {
            let mut state = self.lock();
            state.broken = Some(cause.clone());
            state.warming.drain(..).collect()
        };
        for ready in warming {
            // Whoever asked may have stopped waiting.
            let _ = ready.send(Err(cause.clone()));
        }
        self.fail_all(&TaskError::PoolBroken(cause.clone()));
    }
}
