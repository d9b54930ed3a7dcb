//! The agent's end of a stream: cuts items into packets, sends these, and keeps each until its caller has
//! it. What the caller's consumer takes makes room for as much in the worker: so all that is under way, in
//! the worker, here and with the caller, is what one stream may have under way on one machine.

use super::super::message::{Flow, GOES_ON, IS_FAULT, News, PIECE_HEAD, ToCaller, add_piece, pack};
use super::work::Job;
use super::{Id, Inner};
use crate::pool::cell::Cell;
use crate::pool::inflow::{Arrived, Grant, Inflow};
use async_nats::connection::State as Connection;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// The most bytes of items in a packet.
const PACKET: usize = 256 << 10;

/// A piece of an item that does not fit is not shorter than that, unless it is the last.
const SHORTEST: usize = 4 << 10;

/// How many bytes of packets may be on their way before one of them is confirmed: servers cut off whom they
/// have too much for.
const ON_THE_WAY: usize = 2 << 20;

/// How long to wait for a confirmation before everything is sent again, at first and at most.
const REPEATS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// How often it is looked whether that is due, or the caller is gone.
const LOOK: Duration = Duration::from_millis(250);

/// What a stream's caller has told of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    flow: Flow,
    /// How often it has said anything, and that something is missing.
    times: u64,
    complaints: u64,
    is_cancelled: bool,
}

impl Heard {
    /// In whatever order things are heard, none takes back what was said.
    pub(super) fn hear(&mut self, flow: Flow) {
        let known = self.flow;
        self.flow = Flow {
            packets: flow.packets.max(known.packets),
            items: flow.items.max(known.items),
            bytes: flow.bytes.max(known.bytes),
            is_missing: false,
        };
        self.times += 1;
        self.complaints += u64::from(flow.is_missing);
    }

    pub(super) fn cancel(&mut self) {
        self.is_cancelled = true;
    }
}

/// What has become of a stream's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    /// The caller has all of them, which were so many packets.
    All(u64),
    /// The caller does not want any more.
    Cancelled,
    /// The caller is gone.
    Forsaken,
}

/// One stream on its way from the local pool to its caller.
pub(super) struct Relay<'a> {
    job: &'a Job,
    cell: &'a Arc<Cell>,
    heard: watch::Receiver<Heard>,
    /// What was heard when it was last looked.
    known: Heard,
    heard_at: Instant,
    /// An item that is cut, from where it was cut last.
    rest: Option<Arrived>,
    /// Packets that are not confirmed, the oldest first.
    unconfirmed: VecDeque<Bytes>,
    on_the_way: usize,
    /// How many packets there were.
    packets: u64,
    /// What was sent of items, and what of it was taken.
    sent: Grant,
    taken: Grant,
    repeat_at: Instant,
    pause: Duration,
    connects: u64,
}

impl<'a> Relay<'a> {
    pub(super) fn new(job: &'a Job, cell: &'a Arc<Cell>) -> Relay<'a> {
        let (sender, heard) = watch::channel(Heard::default());
        job.inner.lock().flows.insert(job.id.clone(), sender);
        let now = Instant::now();
        Relay {
            job,
            cell,
            heard,
            known: Heard::default(),
            heard_at: now,
            rest: None,
            unconfirmed: VecDeque::new(),
            on_the_way: 0,
            packets: 0,
            sent: Grant::default(),
            taken: Grant::default(),
            repeat_at: now,
            pause: REPEATS.0,
            connects: job.inner.link.connects(),
        }
    }

    /// Relays items until the task is over, and its caller has all of them.
    pub(super) async fn run(mut self, over: &CancellationToken) -> Relayed {
        let Some(inflow) = self.cell.inflow() else { return Relayed::Forsaken };
        // So that the caller knows whom to tell what.
        self.job.tell_alive().await;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Items come before the end, so those that are not there now will not come.
            let is_over = over.is_cancelled();
            self.send(inflow).await;
            if self.known.is_cancelled {
                return Relayed::Cancelled;
            }
            if is_over && self.unconfirmed.is_empty() && self.rest.is_none() && inflow.is_empty() {
                return Relayed::All(self.packets);
            }
            tokio::select! {
                biased;
                Ok(()) = self.heard.changed() => self.hear(inflow).await,
                item = next(inflow), if self.has_room() && self.rest.is_none() => self.rest = Some(item),
                () = over.cancelled(), if !is_over => {}
                _ = looks.tick() => {
                    if self.look().await {
                        self.job.inner.pool.shared().cancel(self.cell);
                        return Relayed::Forsaken;
                    }
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.on_the_way < ON_THE_WAY
    }

    /// Sends what there is, as far as there is room.
    async fn send(&mut self, inflow: &Inflow) {
        while self.has_room() {
            let packet = self.fill(inflow);
            if packet.is_empty() {
                return;
            }
            let what = News::Packet { number: self.packets };
            let (agent, key) = (self.job.inner.link.me.clone(), self.job.head.key);
            let message = pack(&ToCaller { agent, key, what }, &[&packet]);
            if self.unconfirmed.is_empty() {
                self.put_off_repeat();
            }
            self.packets += 1;
            self.on_the_way += message.len();
            self.unconfirmed.push_back(message.clone());
            self.job.publish(message).await;
        }
    }

    /// Puts a packet together of the items that there are.
    fn fill(&mut self, inflow: &Inflow) -> Vec<u8> {
        let most = PACKET.min(self.job.inner.link.inline());
        let mut packet = Vec::new();
        loop {
            let Some(mut item) = self.rest.take().or_else(|| take(inflow)) else { return packet };
            let kind = if item.is_fault { IS_FAULT } else { 0 };
            let room = most.saturating_sub(packet.len() + PIECE_HEAD);
            if item.body.len() <= room {
                self.sent.items += 1;
                self.sent.bytes = self.sent.bytes.saturating_add(item.cost());
                add_piece(&mut packet, kind, &item.body);
            } else {
                if packet.is_empty() || room >= SHORTEST {
                    add_piece(&mut packet, kind | GOES_ON, &item.body.split_to(room));
                }
                self.rest = Some(item);
                return packet;
            }
        }
    }

    /// Takes in what the caller has told. It cannot have taken what was not sent.
    async fn hear(&mut self, inflow: &Inflow) {
        let heard = *self.heard.borrow_and_update();
        let was = std::mem::replace(&mut self.known, heard);
        if heard.times > was.times {
            self.heard_at = Instant::now();
        }
        self.confirm(heard.flow.packets);
        self.grant(inflow, heard.flow);
        if heard.complaints > was.complaints {
            self.repeat().await;
        }
    }

    fn confirm(&mut self, packets: u64) {
        let mut first = self.packets - self.unconfirmed.len() as u64;
        while first < packets
            && let Some(message) = self.unconfirmed.pop_front()
        {
            first += 1;
            self.on_the_way -= message.len();
            self.pause = REPEATS.0;
            self.put_off_repeat();
        }
    }

    /// Makes room for as much as was taken.
    fn grant(&mut self, inflow: &Inflow, flow: Flow) {
        let (items, bytes) = (flow.items.min(self.sent.items), flow.bytes.min(self.sent.bytes));
        let grant = Grant { items: items - self.taken.items, bytes: bytes - self.taken.bytes };
        if grant != Grant::default() {
            self.taken = Grant { items, bytes };
            inflow.admit(grant);
            self.cell.shared.grant(self.cell, grant);
        }
    }

    fn put_off_repeat(&mut self) {
        self.repeat_at = Instant::now() + self.pause;
    }

    /// Looks after time. Gives back whether the caller is gone.
    async fn look(&mut self) -> bool {
        let Inner { link, .. } = &*self.job.inner;
        let (connects, now) = (link.connects(), Instant::now());
        let is_anew = connects != self.connects;
        if is_anew || link.client.connection_state() != Connection::Connected {
            // Nothing was heard by nobody's fault but the connection's.
            self.heard_at = now;
        }
        let is_due = now >= self.repeat_at && link.client.connection_state() == Connection::Connected;
        if is_anew {
            self.connects = connects;
            self.pause = REPEATS.0;
        }
        if is_anew || is_due {
            self.repeat().await;
            self.pause = (self.pause * 2).min(REPEATS.1);
        }
        self.heard_at.elapsed() > self.job.patience()
    }

    /// Sends again what is not confirmed.
    async fn repeat(&mut self) {
        self.put_off_repeat();
        for message in &self.unconfirmed {
            self.job.publish(message.clone()).await;
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        self.job.inner.lock().flows.remove(&self.job.id);
    }
}

/// Takes an item that is there.
fn take(inflow: &Inflow) -> Option<Arrived> {
    inflow.pass_on(&mut Context::from_waker(Waker::noop()))
}

/// Waits for an item.
async fn next(inflow: &Inflow) -> Arrived {
    poll_fn(|context| inflow.pass_on(context).map_or(Poll::Pending, Poll::Ready)).await
}

impl super::State {
    /// A stream's caller says how it gets on.
    pub(super) fn hear_of(&self, id: &Id, flow: Flow) {
        if let Some(stream) = self.flows.get(id) {
            stream.send_modify(|heard| heard.hear(flow));
        }
    }
}
