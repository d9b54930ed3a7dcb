//! Producing a stream's items by pushing them, for code that calls back.

use super::codec;
use super::fault::Fault;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Nobody wants a stream's items any more: its consumer has dropped it, or it was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody listens to the stream any more")
    }
}

impl std::error::Error for Closed {}

/// One item of a stream, encoded.
pub(crate) struct Encoded {
    /// It is a fault that stands in an item's place.
    pub(crate) is_fault: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Encoded {
    /// Encodes an item; one that will not be encoded, or is too large, gives way to its fault.
    pub(crate) fn of(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>) -> Result<Encoded, Fault> {
        let mut bytes = Vec::new();
        let Err(fault) = encode(&mut bytes) else { return Ok(Encoded { is_fault: false, bytes }) };
        bytes.clear();
        codec::encode_result(fault.bounded(), &mut bytes, u64::MAX)?;
        Ok(Encoded { is_fault: true, bytes })
    }
}

/// The way of a stream's items to the pool, with room for as many as its consumer leaves.
pub(crate) trait Outflow: Send + Sync {
    /// Sends an item, once there is room for it.
    fn send(&self, item: &Encoded) -> Result<(), Closed>;

    /// The same for async code.
    fn poll_send(&self, item: &Encoded, context: &mut Context<'_>) -> Poll<Result<(), Closed>>;

    /// Whether nobody wants any more.
    fn is_closed(&self) -> bool;

    /// The most bytes that an item may have.
    fn limit(&self) -> u64;
}

/// A stream's items that are pushed: what a task's function returns that calls
/// [`emit`](crate::worker::emit).
#[must_use = "it does nothing unless a task's function returns it"]
pub struct Emit<T> {
    pub(super) produce: Produce<T>,
}

type Produce<T> = Box<dyn FnOnce(&Emitter<T>) -> anyhow::Result<()>>;

impl<T> fmt::Debug for Emit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emit").finish_non_exhaustive()
    }
}

/// A stream whose items are pushed, for code that calls back rather than being asked for the next.
///
/// `produce` runs in the worker, and sends the items through the [`Emitter`] that it is given. The
/// stream ends when it returns; with an error, that is the last thing that the stream yields.
///
/// ```
/// use futures::TryStreamExt;
/// use procession::ProcessPool;
/// use procession::worker::{Emit, emit};
///
/// fn lines(text: String) -> Emit<(usize, String)> {
///     emit(move |out| {
///         for (number, line) in text.lines().enumerate() {
///             out.send((number + 1, line.to_string()))?;
///         }
///         Ok(())
///     })
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::new()?;
/// let lines: Vec<_> = pool.stream(lines, "a\nb".to_string()).try_collect().await?;
/// assert_eq!(lines, [(1, "a".to_string()), (2, "b".to_string())]);
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub fn emit<T, F>(produce: F) -> Emit<T>
where
    F: FnOnce(&Emitter<T>) -> anyhow::Result<()> + 'static,
{
    Emit { produce: Box::new(produce) }
}

/// How an item of one type becomes bytes, of so many at most.
pub(super) type Encode<T> = fn(T, &mut Vec<u8>, u64) -> Result<(), Fault>;

/// Where the items of a stream go that are pushed; see [`emit`](crate::worker::emit).
///
/// It may be cloned, and used from several threads; their items come in some order.
pub struct Emitter<T> {
    pub(super) way: Arc<dyn Outflow>,
    pub(super) encode: Encode<T>,
}

impl<T> Emitter<T> {
    /// Sends an item, and waits while the consumer is behind by as many as the stream's
    /// [`window`](crate::TaskStream::window). It blocks its thread, so an async function should return a
    /// [`futures::Stream`] rather than call this.
    ///
    /// An item that cannot be encoded, or is larger than
    /// [`Builder::max_message_size`](crate::Builder::max_message_size), does not fail here: the
    /// consumer gets the error in its place.
    ///
    /// # Errors
    /// [`Closed`] when nobody wants any more: then the task should return soon.
    pub fn send(&self, item: T) -> Result<(), Closed> {
        let limit = self.way.limit();
        let item = Encoded::of(|out| (self.encode)(item, out, limit));
        // A fault consists of what is always encoded.
        self.way.send(&item.map_err(|_| Closed)?)
    }

    /// Whether nobody wants any more, so that the next [`send`](Emitter::send) would fail.
    pub fn is_closed(&self) -> bool {
        self.way.is_closed()
    }
}

impl<T> Clone for Emitter<T> {
    fn clone(&self) -> Emitter<T> {
        Emitter { way: self.way.clone(), encode: self.encode }
    }
}

impl<T> fmt::Debug for Emitter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}
