//! The pool's end of a stream: items that have arrived and were not taken, and how many more may come.

use super::scheduler::Violation;
use crate::task::{CodecStage, Fault, TaskError, decode};
use crate::wire::{ITEM_COST, STREAM_BYTES};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// The longest fault that may stand in an item's place: what the head of a frame may have.
pub(super) const MAX_FAULT: u64 = 6 << 20;

/// Items up to this size are copied out of the buffer that they came in.
const COPIED: usize = 64 * 1024;

/// An item as it has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) is_fault: bool,
    pub(super) body: Bytes,
    /// For how many bytes it counts.
    size: u64,
}

impl Arrived {
    /// For how much it counts until it is taken.
    #[cfg(feature = "nats")]
    pub(super) fn cost(&self) -> u64 {
        self.size.saturating_add(ITEM_COST)
    }

    /// The item's encoding, or what stands in its place.
    pub(super) fn into_result(self) -> Result<Bytes, TaskError> {
        if !self.is_fault {
            return Ok(self.body);
        }
        Err(decode::<Fault>(&self.body, CodecStage::DecodeResult).unwrap_or_else(|fault| fault).into())
    }
}

/// So much more may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) items: u64,
    pub(super) bytes: u64,
}

/// One stream's items between its worker and its consumer.
pub(super) struct Inflow {
    pub(super) window: u64,
    max_item: u64,
    state: Mutex<State>,
}

struct State {
    items: VecDeque<Arrived>,
    /// How much more the worker may send; the last item may have had more bytes than there were left.
    items_left: u64,
    bytes_left: i64,
    /// What was taken since the last grant.
    taken: Grant,
    /// How many items were ever taken.
    takes: u64,
    /// How many bytes have ever arrived.
    total: u64,
    waker: Option<Waker>,
}

impl State {
    fn new(window: u64) -> State {
        State {
            items: VecDeque::new(),
            items_left: window,
            bytes_left: STREAM_BYTES as i64,
            taken: Grant::default(),
            takes: 0,
            total: 0,
            waker: None,
        }
    }

    fn may_come(&self) -> bool {
        self.items_left > 0 && self.bytes_left > 0
    }
}

impl Inflow {
    pub(super) fn new(window: u64, max_item: u64) -> Inflow {
        Inflow { window, max_item, state: Mutex::new(State::new(window)) }
    }

    /// The task is about to be sent to a worker. Had another one sent items before that was to have
    /// begun it, it would be one that lies.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        if state.items_left != self.window {
            let waker = state.waker.take();
            *state = State { takes: state.takes, waker, ..State::new(self.window) };
        }
    }

    /// Takes in an item; whom to wake for it.
    ///
    /// # Errors
    /// [`Violation`] if there was no room for it.
    pub(super) fn add(&self, is_fault: bool, body: Bytes) -> Result<Option<Waker>, Violation> {
        let size = body.len() as u64;
        self.add_as(is_fault, body, size)
    }

    /// The same, where whoever has sent it counts another size.
    pub(super) fn add_as(&self, is_fault: bool, body: Bytes, size: u64) -> Result<Option<Waker>, Violation> {
        let length = body.len() as u64;
        // A short one is not to keep the buffer that it came in.
        let body = if body.len() <= COPIED { Bytes::copy_from_slice(&body) } else { body };
        let mut state = self.lock();
        if !state.may_come() || length > if is_fault { MAX_FAULT } else { self.max_item } {
            return Err(Violation);
        }
        state.items_left -= 1;
        state.bytes_left = state.bytes_left.saturating_sub_unsigned(size.saturating_add(ITEM_COST));
        state.total += length;
        state.items.push_back(Arrived { is_fault, body, size });
        Ok(state.waker.take())
    }

    /// Takes the next item, and tells what to grant for it and others; without one, whoever polls is
    /// woken when there is.
    pub(super) fn take(&self, context: &mut Context<'_>) -> Option<(Arrived, Option<Grant>)> {
        let (item, mut state) = self.next(context)?;
        state.takes += 1;
        state.taken.items += 1;
        state.taken.bytes += item.size.saturating_add(ITEM_COST);
        // Half of what there is room for at a time: the other half keeps the worker busy meanwhile.
        let is_due = state.taken.items >= self.window.div_ceil(2) || state.taken.bytes >= STREAM_BYTES / 2;
        let grant = is_due.then(|| std::mem::take(&mut state.taken));
        if let Some(grant) = grant {
            state.items_left += grant.items;
            state.bytes_left = state.bytes_left.saturating_add_unsigned(grant.bytes);
        }
        Some((item, grant))
    }

    /// Takes the next item, or has whoever polls woken when there is one.
    fn next(&self, context: &mut Context<'_>) -> Option<(Arrived, MutexGuard<'_, State>)> {
        let mut state = self.lock();
        let Some(item) = state.items.pop_front() else {
            let is_known = state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
            let old = if is_known { None } else { state.waker.replace(context.waker().clone()) };
            // Dropping a waker runs foreign code.
            drop(state);
            drop(old);
            return None;
        };
        Some((item, state))
    }

    /// Nobody will take any more.
    pub(super) fn clear(&self) {
        let items = std::mem::take(&mut self.lock().items);
        drop(items);
    }

    /// Takes the next item for another consumer, which has not taken it yet: that says what to
    /// [`admit`](Inflow::admit) in turn.
    #[cfg(feature = "nats")]
    pub(super) fn pass_on(&self, context: &mut Context<'_>) -> Option<Arrived> {
        let (item, mut state) = self.next(context)?;
        state.takes += 1;
        Some(item)
    }

    /// So much more may come.
    #[cfg(feature = "nats")]
    pub(super) fn admit(&self, grant: Grant) {
        let mut state = self.lock();
        state.items_left = state.items_left.saturating_add(grant.items);
        state.bytes_left = state.bytes_left.saturating_add_unsigned(grant.bytes);
    }

    /// Whether another item may come.
    #[cfg(feature = "nats")]
    pub(super) fn may_come(&self) -> bool {
        self.lock().may_come()
    }

    #[cfg(feature = "nats")]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// How many bytes of items have arrived.
    pub(super) fn total(&self) -> u64 {
        self.lock().total
    }

    /// How many items were ever taken, if the worker waits for more to be taken.
    pub(super) fn held_up_at(&self) -> Option<u64> {
        let state = self.lock();
        (!state.may_come() && !state.items.is_empty()).then_some(state.takes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream without a task, for those who look at what it makes of its items.
#[cfg(any(test, feature = "internals"))]
pub(crate) struct StreamItems(Inflow);

#[cfg(any(test, feature = "internals"))]
impl StreamItems {
    pub(crate) fn new(window: u64, max_item: u64) -> StreamItems {
        StreamItems(Inflow::new(window, max_item))
    }

    /// Takes in an item; false if none should have come.
    pub(crate) fn add(&self, is_fault: bool, body: &[u8]) -> bool {
        self.0.add(is_fault, Bytes::copy_from_slice(body)).is_ok()
    }

    /// Takes an item out; what it is, and how many more may come for it.
    pub(crate) fn take(&self) -> Option<(Result<Bytes, TaskError>, u64)> {
        let (item, grant) = self.0.take(&mut Context::from_waker(Waker::noop()))?;
        Some((item.into_result(), grant.unwrap_or_default().items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::Waker;

    fn take(inflow: &Inflow) -> Option<(Arrived, Option<Grant>)> {
        inflow.take(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn there_is_room_for_the_window_and_no_more() {
        let inflow = Inflow::new(3, 10);
        for _ in 0..3 {
            assert!(inflow.add(false, Bytes::from_static(b"item")).is_ok());
        }
        assert_eq!(inflow.held_up_at(), Some(0));
        assert!(inflow.add(false, Bytes::new()).is_err());
        assert_eq!(take(&inflow).unwrap().1, None);
        assert_eq!(take(&inflow).unwrap().1, Some(Grant { items: 2, bytes: 8 + 2 * ITEM_COST }));
        assert_eq!(inflow.held_up_at(), None);
        assert!(inflow.add(false, Bytes::from_static(b"more than ten")).is_err());
        assert!(inflow.add(true, Bytes::from_static(b"more than ten")).is_ok());
    }

    #[test]
    fn bytes_are_bounded_however_wide_the_window() {
        let inflow = Inflow::new(1000, STREAM_BYTES);
        let half = Bytes::from(vec![0; STREAM_BYTES as usize / 2 + 1]);
        assert!(inflow.add(false, half.clone()).is_ok());
        assert!(inflow.add(false, half.clone()).is_ok());
        assert!(inflow.add(false, half.clone()).is_err());
        let grant = take(&inflow).unwrap().1;
        assert_eq!(grant, Some(Grant { items: 1, bytes: half.len() as u64 + ITEM_COST }));
        assert!(inflow.add(false, half).is_ok());
    }

    #[test]
    fn items_without_bytes_are_bounded_too() {
        let inflow = Inflow::new(u64::MAX, 10);
        let most = STREAM_BYTES / ITEM_COST;
        assert!((0..most).all(|_| inflow.add(false, Bytes::new()).is_ok()));
        assert!(inflow.add(false, Bytes::new()).is_err());
        assert_eq!(inflow.total(), 0);
    }

    #[test]
    fn a_fresh_start_forgets_what_a_liar_has_sent() {
        let inflow = Inflow::new(2, 10);
        assert!(inflow.add(false, Bytes::new()).is_ok());
        inflow.begin();
        assert!(take(&inflow).is_none());
        assert!(inflow.add(false, Bytes::new()).is_ok());
        assert!(inflow.add(false, Bytes::new()).is_ok());
        assert!(inflow.add(false, Bytes::new()).is_err());
    }

    proptest! {
        /// A worker that waits for room gets some once enough is taken, whatever the sizes.
        #[test]
        fn no_stream_is_stuck(window in 1u64..20, sizes in prop::collection::vec(0usize..3 << 20, 1..60)) {
            let inflow = Inflow::new(window, u64::MAX);
            let (mut items, mut bytes) = (window, STREAM_BYTES as i64);
            let mut taken = 0;
            for size in &sizes {
                while items == 0 || bytes <= 0 {
                    let (_, grant) = take(&inflow).expect("what is waited for has arrived");
                    taken += 1;
                    let grant = grant.unwrap_or_default();
                    items += grant.items;
                    bytes += grant.bytes as i64;
                }
                items -= 1;
                bytes -= (*size as u64 + ITEM_COST) as i64;
                prop_assert!(inflow.add(false, Bytes::from(vec![0; *size])).is_ok());
            }
            while take(&inflow).is_some() {
                taken += 1;
            }
            prop_assert_eq!(taken, sizes.len());
        }
    }
}
