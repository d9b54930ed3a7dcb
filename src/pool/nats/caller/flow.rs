//! The caller's end of streams: takes in packets in their order, each once, makes items of them again, and
//! tells agents what has arrived and what was taken.

use super::super::link::Link;
use super::super::message::{Flow, GOES_ON, IS_FAULT, Key, ToAgent, pack, take_piece};
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
    fn take_in(&self, number: u64, packet: Bytes) -> Result<Vec<Waker>, Violation> {
        let inflow = self.cell.inflow().ok_or(Violation)?;
        self.lock().take_in(inflow, self.max_item, number, packet)
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
    fn take_in(
        &mut self,
        inflow: &Inflow,
        max_item: u64,
        number: u64,
        mut packet: Bytes,
    ) -> Result<Vec<Waker>, Violation> {
        match number.cmp(&self.packets) {
            Ordering::Equal => {}
            Ordering::Less => return Ok(Vec::new()),
            Ordering::Greater => {
                // Once is enough, however much comes after it.
                self.asks |= self.missing != Some(self.packets);
                self.missing = Some(self.packets);
                return Ok(Vec::new());
            }
        }
        let mut wakers = Vec::new();
        while !packet.is_empty() {
            let (kind, piece) = take_piece(&mut packet).ok_or(Violation)?;
            wakers.extend(self.add_piece(inflow, max_item, kind, piece)?);
        }
        self.packets += 1;
        Ok(wakers)
    }

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
            return self.send(Errand::Cancel(agent, key));
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
                self.give_up(key.task, Outcome::Fault(Box::new(Fault::malformed_stream())));
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
        self.give_up(task, error(TaskError::ShutDown));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::message::add_piece;
    use super::*;
    use proptest::prelude::*;
    use std::task::Context;

    fn packet(pieces: &[(u8, &[u8])]) -> Bytes {
        let mut packet = Vec::new();
        pieces.iter().for_each(|(kind, bytes)| add_piece(&mut packet, *kind, bytes));
        packet.into()
    }

    fn items(inflow: &Inflow) -> Vec<Result<Bytes, TaskError>> {
        let take = || inflow.take(&mut Context::from_waker(Waker::noop()));
        std::iter::from_fn(take).map(|(item, _)| item.into_result()).collect()
    }

    #[test]
    fn packets_count_once_and_in_their_order() {
        let (inflow, mut state) = (Inflow::new(10, 100), State::default());
        let take_in = |state: &mut State, number, packet| state.take_in(&inflow, 100, number, packet).is_ok();
        assert!(take_in(&mut state, 0, packet(&[(0, b"a"), (0, b""), (GOES_ON, b"b")])));
        assert!(take_in(&mut state, 0, packet(&[(0, b"again")])));
        assert!(take_in(&mut state, 2, packet(&[(0, b"too early")])));
        assert!(std::mem::take(&mut state.asks));
        assert!(take_in(&mut state, 3, packet(&[(0, b"too early as well")])));
        assert!(!state.asks, "it has asked already");
        assert!(take_in(&mut state, 1, packet(&[(GOES_ON, b"c"), (0, b"d"), (0, b"e")])));
        assert!(take_in(&mut state, 3, packet(&[(0, b"another is missing")])));
        assert!(state.asks);
        let items: Vec<_> = items(&inflow).into_iter().map(Result::unwrap).collect();
        assert_eq!(items, [&b"a"[..], b"", b"bcd", b"e"]);
    }

    #[test]
    fn what_is_too_large_is_counted_and_not_kept() {
        let (inflow, mut state) = (Inflow::new(10, 5), State::default());
        for number in 0..1000 {
            let piece = packet(&[(GOES_ON, &[7; 1000])]);
            assert!(state.take_in(&inflow, 5, number, piece).is_ok());
            assert_eq!(state.partial.as_ref().unwrap().bytes.capacity(), 0);
        }
        assert!(state.take_in(&inflow, 5, 1000, packet(&[(0, b""), (0, b"fits")])).is_ok());
        let items = items(&inflow);
        assert!(matches!(items[0], Err(TaskError::TooLarge { size: 1_000_000, limit: 5 })));
        assert_eq!(items[1].as_ref().unwrap(), &b"fits"[..]);
    }

    #[test]
    fn what_no_agent_sends_is_a_violation() {
        let pieces: [&[(u8, &[u8])]; 5] = [
            &[(4, b"no such kind")],
            &[(GOES_ON, b"")],
            &[(GOES_ON, b"an item"), (IS_FAULT, b"and a fault")],
            &[(0, b""), (0, b""), (0, b"one more than there is room for")],
            &[(0, b""), (0, b""), (GOES_ON, b"the same in pieces")],
        ];
        for pieces in pieces {
            let (inflow, mut state) = (Inflow::new(2, 100), State::default());
            assert!(state.take_in(&inflow, 100, 0, packet(pieces)).is_err(), "{pieces:?}");
        }
        let (inflow, mut state) = (Inflow::new(9, 100), State::default());
        let fault = packet(&[(IS_FAULT | GOES_ON, &vec![0; 1 << 20])]);
        let most = (0..100).take_while(|number| state.take_in(&inflow, 100, *number, fault.clone()).is_ok());
        assert_eq!(most.count() as u64, MAX_FAULT >> 20);
    }

    proptest! {
        #[test]
        fn no_bytes_do_any_harm(packets in prop::collection::vec(prop::collection::vec(0u8..8, 0..40), 0..20)) {
            let (inflow, mut state) = (Inflow::new(5, 4), State::default());
            for (number, packet) in packets.into_iter().enumerate() {
                if state.take_in(&inflow, 4, number as u64, packet.into()).is_err() {
                    break;
                }
            }
            prop_assert!(items(&inflow).len() <= 5);
        }
    }
}
