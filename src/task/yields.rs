//! Which functions can be streams, and with items of which types.

use super::codec::{self, Sink};
use super::emit::{Emit, Emitter, Encoded, Outflow};
use super::fault::{self, Fault};
use super::function::{Call, Host};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;

/// Arguments with which a function `F` can be run as a stream.
///
/// They are as those of a task (see [`Arguments`](crate::Arguments)): one, or a tuple of 0 to 8. The
/// function must return something that [`Yields`] knows. `M` is for the compiler to find.
#[diagnostic::on_unimplemented(
    message = "this function cannot be run as a stream with arguments of type `{Self}`",
    label = "not the arguments of a stream with this function",
    note = "the function takes one argument, or as many as the tuple of arguments (0 to 8) has elements, by value",
    note = "it must return an iterator (of a `Vec`: `.into_iter()`), a `futures::Stream`, what `worker::emit` makes, or an `anyhow::Result` or a future of one of these",
    note = "the arguments and the items must be `serde::Serialize + serde::de::DeserializeOwned`; an item may also be an `anyhow::Result` of such a type"
)]
pub trait StreamArguments<F, M>: Serialize + DeserializeOwned + 'static {
    /// What the stream yields.
    type Item: DeserializeOwned + 'static;

    #[doc(hidden)]
    fn encode_for_stream(self, limit: u64) -> Result<Bytes, Fault>;

    #[doc(hidden)]
    fn decode_for_stream(body: Bytes) -> Result<Self, Fault>;

    #[doc(hidden)]
    fn produce(self, function: F, call: &mut Call<'_>) -> Result<(), Fault>;
}

/// What a stream's function may return.
///
/// * an [`Iterator`]: evaluated in the worker, item by item;
/// * a [`futures::Stream`]: run on a current-thread tokio runtime in the worker;
/// * what [`worker::emit`](crate::worker::emit) makes, for code that calls back;
/// * an `anyhow::Result` of one of these: an error ends the stream as
///   [`TaskError::Failed`](crate::TaskError::Failed);
/// * a future of one of these, as an `async fn` returns.
#[diagnostic::on_unimplemented(
    message = "`{Self}` yields no items for a stream",
    label = "no iterator or `futures::Stream` of serializable items, nor what `worker::emit` makes, nor an `anyhow::Result` or a future of one of these",
    note = "its items must be `serde::Serialize + serde::de::DeserializeOwned`, or an `anyhow::Result` of such a type",
    note = "of a collection, return `.into_iter()`; for one value, use `submit`"
)]
pub trait Yields<M> {
    /// What the stream yields.
    type Item: DeserializeOwned + 'static;

    #[doc(hidden)]
    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault>;
}

/// What an item of a stream may be: any `T: Serialize + DeserializeOwned`, or an `anyhow::Result<T>`,
/// whose error becomes that item's [`TaskError::Failed`](crate::TaskError::Failed) while the stream
/// goes on.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an item of a stream",
    label = "not serializable, and not an `anyhow::Result` of a serializable type",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it"
)]
pub trait Yielded<M> {
    /// What the consumer gets.
    type Item: DeserializeOwned + 'static;

    #[doc(hidden)]
    fn encode_item(self, out: &mut Vec<u8>, limit: u64) -> Result<(), Fault>;
}

/// Names of the ways in which the traits are implemented, to keep them apart for the compiler.
mod marker {
    use super::PhantomData;

    pub struct Plain;
    pub struct Anyhow<M>(PhantomData<M>);
    pub struct Iter<M>(PhantomData<M>);
    pub struct Streamed<M>(PhantomData<M>);
    pub struct Pushed<M>(PhantomData<M>);
    pub struct Async<M>(PhantomData<M>);
}

impl<T: Serialize + DeserializeOwned + 'static> Yielded<marker::Plain> for T {
    type Item = T;

    fn encode_item(self, out: &mut Vec<u8>, limit: u64) -> Result<(), Fault> {
        codec::encode_result(self, out, limit)
    }
}

impl<T: Serialize + DeserializeOwned + 'static> Yielded<marker::Anyhow<()>> for Result<T, anyhow::Error> {
    type Item = T;

    fn encode_item(self, out: &mut Vec<u8>, limit: u64) -> Result<(), Fault> {
        let item = self.map_err(|error| fault::from_anyhow(&error))?;
        codec::encode_result(item, out, limit)
    }
}

impl<I, M> Yields<marker::Iter<M>> for I
where
    I: Iterator,
    I::Item: Yielded<M>,
{
    type Item = <I::Item as Yielded<M>>::Item;

    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault> {
        let (way, limit) = (way_of(call)?, call.limit);
        for item in self {
            let item = Encoded::of(|out| item.encode_item(out, limit))?;
            way.send(&item).map_err(|_| Fault::Cancelled)?;
        }
        Ok(())
    }
}

impl<S, M> Yields<marker::Streamed<M>> for S
where
    S: Stream,
    S::Item: Yielded<M>,
{
    type Item = <S::Item as Yielded<M>>::Item;

    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault> {
        let (way, limit) = (way_of(call)?, call.limit);
        let mut done = Err(Fault::Cancelled);
        call.host.block_on(Box::pin(async { done = send_all(self, &*way, limit).await }));
        done
    }
}

async fn send_all<S, M>(items: S, way: &dyn Outflow, limit: u64) -> Result<(), Fault>
where
    S: Stream,
    S::Item: Yielded<M>,
{
    let mut items = pin!(items);
    while let Some(item) = items.next().await {
        let item = Encoded::of(|out| item.encode_item(out, limit))?;
        poll_fn(|context| way.poll_send(&item, context)).await.map_err(|_| Fault::Cancelled)?;
        // What else runs on the worker's runtime has its turn, however fast the items come.
        tokio::task::consume_budget().await;
    }
    Ok(())
}

impl<T: Yielded<M>, M> Yields<marker::Pushed<M>> for Emit<T> {
    type Item = T::Item;

    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault> {
        let out = Emitter { way: way_of(call)?, encode: T::encode_item };
        (self.produce)(&out).map_err(|error| fault::from_anyhow(&error))
    }
}

impl<Y: Yields<M>, M> Yields<marker::Anyhow<M>> for Result<Y, anyhow::Error> {
    type Item = Y::Item;

    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault> {
        match self {
            Ok(items) => items.deliver_all(call),
            Err(error) => Err(fault::from_anyhow(&error)),
        }
    }
}

impl<F, M> Yields<marker::Async<M>> for F
where
    F: Future,
    F::Output: Yields<M>,
{
    type Item = <F::Output as Yields<M>>::Item;

    fn deliver_all(self, call: &mut Call<'_>) -> Result<(), Fault> {
        let mut items = None;
        let host: &dyn Host = call.host;
        host.block_on(Box::pin(async { items = Some(self.await) }));
        items.ok_or(Fault::Cancelled)?.deliver_all(call)
    }
}

fn way_of(call: &Call<'_>) -> Result<Arc<dyn Outflow>, Fault> {
    call.host.outflow().ok_or(Fault::Cancelled)
}

/// The encoding of arguments that are elements of a tuple.
pub(super) fn tuple_body(
    limit: u64,
    encode: impl FnOnce(&mut Sink<'_>) -> Result<(), Fault>,
) -> Result<Bytes, Fault> {
    let mut body = Vec::new();
    let mut sink = Sink::new(&mut body, limit);
    encode(&mut sink)?;
    sink.finish()?;
    Ok(body.into())
}
