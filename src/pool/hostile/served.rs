//! What a task's shim needs of a worker, where that is a peer.

use crate::task::{Closed, Encoded, Fault, Host, Outflow};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// Runs a task with the parts of a chunk, or the items of a stream, kept to be said by the peer.
pub(super) struct Served {
    pub(super) parts: Mutex<Vec<Vec<u8>>>,
    pub(super) items: Option<Arc<Items>>,
}

impl Host for Served {
    fn block_on<'a>(&self, _: Pin<Box<dyn Future<Output = ()> + 'a>>) {}

    fn run_item(&self, item: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
        item()
    }

    fn send_part(&self, part: &[u8]) {
        self.parts.lock().unwrap().push(part.to_vec());
    }

    fn outflow(&self) -> Option<Arc<dyn Outflow>> {
        self.items.clone().map(|items| items as Arc<dyn Outflow>)
    }
}

/// The items of a stream.
#[derive(Default)]
pub(super) struct Items(Mutex<Vec<Encoded>>);

impl Items {
    pub(super) fn take(&self) -> Vec<Encoded> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Outflow for Items {
    fn send(&self, item: &Encoded) -> Result<(), Closed> {
        self.0.lock().unwrap().push(Encoded { is_fault: item.is_fault, bytes: item.bytes.clone() });
        Ok(())
    }

    fn poll_send(&self, _: &Encoded, _: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        Poll::Ready(Err(Closed))
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn limit(&self) -> u64 {
        u64::MAX
    }
}
