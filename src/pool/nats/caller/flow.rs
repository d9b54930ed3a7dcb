//! The caller's end of streams: takes in packets in their order, each once, makes items of them again, and
//! tells agents what has arrived and what was taken.

use super::super::message::{Flow, GOES_ON, IS_FAULT, Key, ToAgent, pack, take_piece};
use super::super::queue::Link;
use super::{Core, Errand, error};
use crate::pool::cell::{Cell, Outcome};
use crate::pool::inflow::{Grant, Inflow, MAX_FAULT};
use crate::pool::scheduler::Violation;
use crate::task::{Encoded, Fault, TaskError};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

/// So often an agent is told how its stream gets on, even if nothing has changed.
const BEAT: Duration = Duration::from_secs(1);

/// What has come of a stream. It is the agent's word: all of it is checked.
pub(super) struct Reception {
    cell: Arc<Cell>,
    max_item: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many packets have come.
    packets: u64,
    /// An item that goes on with the next packet.
    partial: Option<Partial>,
    taken: Grant,
    /// Somebody has been asked to tell the agent.
    is_noted: bool,
    /// What is missing was asked for, or is to be.
    missing: Option<u64>,
    asks: bool,
    told: Option<Instant>,
}

#[derive(Default)]
struct Partial {
    is_fault: bool,
    size: u64,
    /// Unless it has more than an item may have.
    bytes: Vec<u8>,
}

impl Reception {
    pub(super) fn new(cell: &Arc<Cell>, max_item: u64) -> Reception {
        Reception { cell: cell.clone(), max_item, state: Mutex::default() }
    }

    /// Takes in a packet; whom to wake for it. One that has come before is left out, and so is one before
    /// which others are missing: these come again.
    fn take_in(&self, number: u64, mut packet: Bytes) -> Result<Vec<Waker>, Violation> {
        let inflow = self.cell.inflow().ok_or(Violation)?;
        let mut state = self.lock();
        match number.cmp(&state.packets) {
            Ordering::Equal => {}
            Ordering::Less => return Ok(Vec::new()),
            Ordering::Greater => {
                state.asks |= state.missing != Some(state.packets);
                state.missing = Some(state.packets);
                return Ok(Vec::new());
            }
        }
        let mut wakers = Vec::new();
        while !packet.is_empty() {
            let (kind, piece) = take_piece(&mut packet).ok_or(Violation)?;
            wakers.extend(state.add_piece(inflow, self.max_item, kind, piece)?);
        }
        state.packets += 1;
        Ok(wakers)
    }

    /// Whether this is all that was sent.
    fn is_whole(&self, packets: u64) -> bool {
        let state = self.lock();
        state.packets == packets && state.partial.is_none()
    }

    /// The consumer has taken so much; whether somebody is to tell the agent.
    fn grant(&self, grant: Grant) -> bool {
        let mut state = self.lock();
        state.taken.items = state.taken.items.saturating_add(grant.items);
        state.taken.bytes = state.taken.bytes.saturating_add(grant.bytes);
        !std::mem::replace(&mut state.is_noted, true)
    }

    /// Whether somebody is to tell the agent.
    fn note(&self) -> bool {
        !std::mem::replace(&mut self.lock().is_noted, true)
    }

    /// Whether the agent has to be told again. What was on its way with a connection that was lost is
    /// missing.
    fn is_due(&self, now: Instant, beat: Duration, is_reconnected: bool) -> bool {
        let mut state = self.lock();
        state.asks |= is_reconnected;
        let is_due = state.told.is_none_or(|told| now.duration_since(told) >= beat) || is_reconnected;
        is_due && !std::mem::replace(&mut state.is_noted, true)
    }

    /// What the agent is to be told now.
    fn flow(&self) -> Flow {
        let mut state = self.lock();
        state.is_noted = false;
        state.told = Some(Instant::now());
        let Grant { items, bytes } = state.taken;
        Flow { packets: state.packets, items, bytes, is_missing: std::mem::take(&mut state.asks) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add_piece(
        &mut self,
        inflow: &Inflow,
        max_item: u64,
        kind: u8,
        piece: Bytes,
    ) -> Result<Option<Waker>, Violation> {
        let (is_fault, goes_on) = (kind & IS_FAULT != 0, kind & GOES_ON != 0);
        let mut partial = match self.partial.take() {
            Some(partial) if partial.is_fault == is_fault => partial,
            None if inflow.may_come() => Partial { is_fault, ..Partial::default() },
            _ => return Err(Violation),
        };
        let is_first = partial.size == 0;
        partial.size = partial.size.saturating_add(piece.len() as u64);
        let (size, limit) = (partial.size, if is_fault { MAX_FAULT } else { max_item });
        // One that goes on for ever is none, either.
        if kind > IS_FAULT + GOES_ON || goes_on && piece.is_empty() || is_fault && size > limit {
            return Err(Violation);
        }
        if size > limit {
            partial.bytes = Vec::new();
        } else if goes_on || !is_first {
            partial.bytes.extend_from_slice(&piece);
        }
        if goes_on {
            self.partial = Some(partial);
            return Ok(None);
        }
        if size > limit {
            // The agent's limit is another one.
            let fault = Encoded::of(|_| Err(Fault::TooLarge { size, limit })).map_err(|_| Violation)?;
            return inflow.add_as(true, fault.bytes.into(), size);
        }
        inflow.add(is_fault, if is_first { piece } else { partial.bytes.into() })
    }
}

impl Core {
    /// A packet of a stream has come.
    pub(super) fn take_in_packet(&self, agent: String, key: Key, number: u64, packet: Bytes) {
        if !self.alive(&agent, key, None) {
            return self.send(Errand::Cancel(agent, key.task));
        }
        let taken_in = match self.reception(key.task) {
            Some(reception) => {
                reception.take_in(number, packet).inspect(|_| self.note_flow(key.task, &reception))
            }
            None => Err(Violation),
        };
        match taken_in {
            Ok(wakers) => wakers.into_iter().for_each(Waker::wake),
            Err(Violation) => {
                let task = self.lock().remove(key.task);
                if let Some(task) = task {
                    self.give_up(task, Outcome::Fault(Box::new(Fault::malformed_stream())));
                }
            }
        }
    }

    /// Whether all of a task's items have come, if it is a stream.
    pub(super) fn is_whole(&self, key: Key, packets: u64) -> bool {
        self.reception(key.task).is_none_or(|reception| reception.is_whole(packets))
    }

    fn reception(&self, task: u64) -> Option<Arc<Reception>> {
        self.lock().tasks.get(&task)?.reception.clone()
    }

    fn note_flow(&self, task: u64, reception: &Reception) {
        if reception.note() {
            self.send(Errand::Flow(task));
        }
    }

    /// A stream's consumer has taken something.
    pub(super) fn grant(&self, task: u64, grant: Grant) {
        if self.reception(task).is_some_and(|reception| reception.grant(grant)) {
            self.send(Errand::Flow(task));
        }
    }

    /// Sees to it that agents hear of their streams.
    pub(super) fn look_at_streams(&self, is_reconnected: bool) {
        let (now, beat) = (Instant::now(), BEAT.min(self.queue.reply_patience / 4));
        let due: Vec<_> = {
            let state = self.lock();
            let receptions =
                state.tasks.iter().filter_map(|(id, task)| Some((*id, task.reception.as_ref()?)));
            receptions
                .filter(|(_, stream)| stream.is_due(now, beat, is_reconnected))
                .map(|(id, _)| id)
                .collect()
        };
        due.into_iter().for_each(|task| self.send(Errand::Flow(task)));
    }

    /// What to tell the agent of a stream, and where, once there is one.
    pub(super) fn flow(&self, link: &Link, task: u64) -> Option<(String, Bytes)> {
        let (agent, key, reception) = {
            let state = self.lock();
            let task = state.tasks.get(&task)?;
            let agent = task.taken.as_ref().and_then(|taken| taken.agent.clone());
            (agent, task.key, task.reception.clone()?)
        };
        let flow = reception.flow();
        let subject = link.names.to(&agent?);
        let message = ToAgent::Flow { caller: link.me.clone(), key, flow };
        link.names.is_party(&subject).then(|| (subject, pack(&message, &[])))
    }

    /// The streams that are not resolved.
    pub(super) fn streams(&self) -> Vec<Arc<Cell>> {
        let state = self.lock();
        state.tasks.values().filter(|task| task.reception.is_some()).map(|task| task.cell.clone()).collect()
    }

    /// Ends a task as a shutdown ends all.
    pub(super) fn shut_down_task(&self, task: u64) {
        let task = self.lock().remove(task);
        if let Some(task) = task {
            self.give_up(task, error(TaskError::ShutDown));
        }
    }
}
