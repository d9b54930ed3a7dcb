//! Which functions can be tasks, with which arguments and results.

use super::codec::{Sink, Source};
use super::error::CodecStage;
use super::fault::Fault;
use super::function::{Call, Host};
use super::yields::{StreamArguments, Yields, tuple_body};
use super::{codec, fault};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

/// Arguments with which a function `F` can be submitted as a task.
///
/// This is implemented for every pair that makes sense and for nothing else:
///
/// * a function of one argument and that argument: `submit(f, a)`;
/// * a function of 0 to 8 arguments and a tuple of them: `submit(f, (a, b))`, `submit(f, ())`.
///
/// Functions are `fn` items and closures that capture nothing, plain or `async`. The arguments
/// must be `Serialize + DeserializeOwned`, and the function must return something that
/// [`Returned`] knows. `M` is for the compiler to find; there is nothing else it can be.
#[diagnostic::on_unimplemented(
    message = "this function cannot be submitted as a task with arguments of type `{Self}`",
    label = "not the arguments of a task with this function",
    note = "a task's function takes one argument, or as many as the tuple of arguments (0 to 8) has elements, by value",
    note = "the arguments and the result must be `serde::Serialize + serde::de::DeserializeOwned`; a task may also return `anyhow::Result<R>`, or be async"
)]
pub trait Arguments<F, M>: Serialize + DeserializeOwned + 'static {
    /// What a handle of the task yields.
    type Output: DeserializeOwned + 'static;

    /// Appends the encoding of the arguments.
    #[doc(hidden)]
    fn encode(&self, sink: &mut Sink<'_>) -> Result<(), Fault>;

    /// The encoding of the arguments, whose memory it takes over where it can.
    #[doc(hidden)]
    fn into_body(self, limit: u64) -> Result<Bytes, Fault> {
        tuple_body(limit, |sink| self.encode(sink))
    }

    #[doc(hidden)]
    fn from_body(body: Bytes) -> Result<Self, Fault>;

    #[doc(hidden)]
    fn apply(self, function: F, call: &mut Call<'_>) -> Result<(), Fault>;
}

/// What a task's function may return.
///
/// * any `R: Serialize + DeserializeOwned`, a `Result<T, E>` of such types included: it comes
///   back whole;
/// * `anyhow::Result<R>`: an error becomes [`TaskError::Failed`](crate::TaskError::Failed);
/// * a future of one of these, as an `async fn` or an async closure returns: the worker runs it on
///   a current-thread tokio runtime.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the result of a task",
    label = "not serializable, and neither an `anyhow::Result` nor a future of a serializable type",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it, or return what the caller needs of it"
)]
pub trait Returned<M> {
    /// What a handle of the task yields.
    type Output: DeserializeOwned + 'static;

    #[doc(hidden)]
    fn deliver(self, call: &mut Call<'_>) -> Result<(), Fault>;
}

/// The result of a task that never returns: there is no value of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {}

impl<'de> Deserialize<'de> for Never {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("a function that never returns has returned"))
    }
}

/// Names of the ways in which the traits are implemented, to keep them apart for the compiler.
mod marker {
    use super::PhantomData;

    pub struct Plain;
    pub struct Anyhow;
    pub struct Diverging;
    pub struct Async<M>(PhantomData<M>);
    pub struct One<M>(PhantomData<M>);
    pub struct Tuple<M>(PhantomData<M>);
}

impl<R: Serialize + DeserializeOwned + 'static> Returned<marker::Plain> for R {
    type Output = R;

    fn deliver(self, call: &mut Call<'_>) -> Result<(), Fault> {
        codec::encode_result(self, call.output, call.limit)
    }
}

impl<R: Serialize + DeserializeOwned + 'static> Returned<marker::Anyhow> for Result<R, anyhow::Error> {
    type Output = R;

    fn deliver(self, call: &mut Call<'_>) -> Result<(), Fault> {
        match self {
            Ok(value) => value.deliver(call),
            Err(error) => Err(fault::from_anyhow(&error)),
        }
    }
}

impl<F, M> Returned<marker::Async<M>> for F
where
    F: Future,
    F::Output: Returned<M>,
{
    type Output = <F::Output as Returned<M>>::Output;

    fn deliver(self, call: &mut Call<'_>) -> Result<(), Fault> {
        let mut output = None;
        let host: &dyn Host = call.host;
        host.block_on(Box::pin(async { output = Some(self.await) }));
        match output {
            Some(output) => output.deliver(call),
            None => Err(Fault::Cancelled),
        }
    }
}

/// What a function type returns, to name the type `!` on a stable compiler.
pub trait ReturnType {
    #[doc(hidden)]
    type Output;
}
impl<R> ReturnType for fn() -> R {
    type Output = R;
}
type Bang = <fn() -> ! as ReturnType>::Output;

impl Returned<marker::Diverging> for Bang {
    type Output = Never;

    fn deliver(self, _: &mut Call<'_>) -> Result<(), Fault> {
        self
    }
}

impl<F, A, R, M> Arguments<F, marker::One<M>> for A
where
    F: Fn(A) -> R,
    A: Serialize + DeserializeOwned + 'static,
    R: Returned<M>,
{
    type Output = R::Output;

    fn encode(&self, sink: &mut Sink<'_>) -> Result<(), Fault> {
        codec::push_body(self, sink, CodecStage::EncodeArguments)
    }

    fn into_body(self, limit: u64) -> Result<Bytes, Fault> {
        codec::to_body(self, limit, CodecStage::EncodeArguments)
    }

    fn from_body(body: Bytes) -> Result<Self, Fault> {
        codec::from_body(body, CodecStage::DecodeArguments)
    }

    fn apply(self, function: F, call: &mut Call<'_>) -> Result<(), Fault> {
        function(self).deliver(call)
    }
}

impl<F, A, R, M> StreamArguments<F, marker::One<M>> for A
where
    F: Fn(A) -> R,
    A: Serialize + DeserializeOwned + 'static,
    R: Yields<M>,
{
    type Item = R::Item;

    fn encode_for_stream(self, limit: u64) -> Result<Bytes, Fault> {
        codec::to_body(self, limit, CodecStage::EncodeArguments)
    }

    fn decode_for_stream(body: Bytes) -> Result<Self, Fault> {
        codec::from_body(body, CodecStage::DecodeArguments)
    }

    fn produce(self, function: F, call: &mut Call<'_>) -> Result<(), Fault> {
        function(self).deliver_all(call)
    }
}

/// A tuple, element by element, which is how postcard encodes it.
trait Elements: Sized {
    fn push_to(&self, sink: &mut Sink<'_>) -> Result<(), Fault>;
    fn take_from(body: &Bytes) -> Result<Self, Fault>;
}

macro_rules! tuples {
    ($($argument:ident)*) => {
        impl<$($argument: Serialize + DeserializeOwned + 'static,)*> Elements for ($($argument,)*) {
            #[allow(non_snake_case, unused_variables)]
            fn push_to(&self, sink: &mut Sink<'_>) -> Result<(), Fault> {
                let ($($argument,)*) = self;
                $(sink.push($argument, CodecStage::EncodeArguments)?;)*
                Ok(())
            }

            #[allow(non_snake_case, unused_mut)]
            fn take_from(body: &Bytes) -> Result<Self, Fault> {
                let mut source = Source::new(body);
                $(let $argument = source.take(CodecStage::DecodeArguments)?;)*
                source.finish::<Self>(CodecStage::DecodeArguments)?;
                Ok(($($argument,)*))
            }
        }

        impl<F, $($argument,)* R, M> Arguments<F, marker::Tuple<M>> for ($($argument,)*)
        where
            F: Fn($($argument),*) -> R,
            $($argument: Serialize + DeserializeOwned + 'static,)*
            R: Returned<M>,
        {
            type Output = R::Output;

            fn encode(&self, sink: &mut Sink<'_>) -> Result<(), Fault> {
                self.push_to(sink)
            }

            fn from_body(body: Bytes) -> Result<Self, Fault> {
                Self::take_from(&body)
            }

            #[allow(non_snake_case)]
            fn apply(self, function: F, call: &mut Call<'_>) -> Result<(), Fault> {
                let ($($argument,)*) = self;
                function($($argument),*).deliver(call)
            }
        }

        impl<F, $($argument,)* R, M> StreamArguments<F, marker::Tuple<M>> for ($($argument,)*)
        where
            F: Fn($($argument),*) -> R,
            $($argument: Serialize + DeserializeOwned + 'static,)*
            R: Yields<M>,
        {
            type Item = R::Item;

            fn encode_for_stream(self, limit: u64) -> Result<Bytes, Fault> {
                tuple_body(limit, |sink| self.push_to(sink))
            }

            fn decode_for_stream(body: Bytes) -> Result<Self, Fault> {
                Self::take_from(&body)
            }

            #[allow(non_snake_case)]
            fn produce(self, function: F, call: &mut Call<'_>) -> Result<(), Fault> {
                let ($($argument,)*) = self;
                function($($argument),*).deliver_all(call)
            }
        }
    };
}
tuples!();
tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E G);
tuples!(A B C D E G H);
tuples!(A B C D E G H I);
