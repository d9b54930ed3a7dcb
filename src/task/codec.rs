//! Values to bytes and back: postcard, with errors that say which value of which type it was.
//!
//! serde hands a `Vec<u8>` to a format byte by byte, which takes ten times as long as copying it.
//! So a value that is one, or an element of the tuple of arguments, goes through as a whole; the
//! encoding is the same.

use super::error::CodecStage;
use super::fault::{CodecReport, Fault};
use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use std::any::{Any, type_name};

/// Where encoded values go: a buffer that grows to at most a limit.
#[doc(hidden)]
#[allow(unreachable_pub)] // It stands in the signature of a hidden method of a public trait.
pub struct Sink<'a> {
    out: &'a mut Vec<u8>,
    limit: u64,
    /// How long it all would be; past the limit nothing more is stored.
    size: u64,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, limit: u64) -> Sink<'a> {
        Sink { size: out.len() as u64, out, limit }
    }

    /// Appends a value's encoding.
    pub(crate) fn push<T: Serialize + 'static>(&mut self, value: &T, stage: CodecStage) -> Result<(), Fault> {
        let done = match as_bytes(value) {
            Some(bytes) => postcard::serialize_with_flavor(&Whole(bytes), &mut *self),
            None => postcard::serialize_with_flavor(value, &mut *self),
        };
        done.map_err(|error| codec_fault::<T>(stage, &error))
    }

    /// Finishes what was pushed.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] with the size that it would have had.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let Sink { size, limit, .. } = self;
        if size > limit { Err(Fault::TooLarge { size, limit }) } else { Ok(()) }
    }
}

impl Flavor for &mut Sink<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.size += 1;
        if self.size <= self.limit {
            self.out.push(byte);
        }
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.size += bytes.len() as u64;
        if self.size <= self.limit {
            self.out.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Bytes that serde is given as a whole.
struct Whole<'a>(&'a [u8]);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

fn as_bytes<T: 'static>(value: &T) -> Option<&[u8]> {
    (value as &dyn Any).downcast_ref::<Vec<u8>>().map(Vec::as_slice)
}

/// Appends a value's encoding to `out`, which may grow to at most `limit` bytes; on failure `out`
/// is as it was.
///
/// # Errors
/// [`Fault::TooLarge`] with the size that it would have had, or a codec fault of this stage.
pub(crate) fn encode_limited<T: Serialize + 'static>(
    value: &T,
    out: &mut Vec<u8>,
    limit: u64,
    stage: CodecStage,
) -> Result<(), Fault> {
    let start = out.len();
    let mut sink = Sink::new(out, limit);
    let pushed = sink.push(value, stage);
    let done = pushed.and_then(|()| sink.finish());
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Appends a task's result to its output.
pub(crate) fn encode_result<T: Serialize + 'static>(
    value: &T,
    out: &mut Vec<u8>,
    limit: u64,
) -> Result<(), Fault> {
    encode_limited(value, out, limit, CodecStage::EncodeResult)
}

/// Encoded values, to be taken one after another.
#[doc(hidden)]
#[allow(unreachable_pub)] // As above.
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Source<'a> {
        Source(bytes)
    }

    /// Takes the next value.
    pub(crate) fn take<T: DeserializeOwned + 'static>(&mut self, stage: CodecStage) -> Result<T, Fault> {
        let mut whole = None::<T>;
        let taken = match (&mut whole as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>() {
            Some(whole) => postcard::take_from_bytes::<&[u8]>(self.0).map(|(bytes, rest)| {
                *whole = Some(bytes.to_vec());
                rest
            }),
            None => postcard::take_from_bytes(self.0).map(|(value, rest)| {
                whole = Some(value);
                rest
            }),
        };
        self.0 = taken.map_err(|error| codec_fault::<T>(stage, &error))?;
        whole.ok_or_else(|| codec_fault::<T>(stage, &postcard::Error::SerdeDeCustom))
    }

    /// Makes sure that nothing is left.
    pub(crate) fn finish<T: ?Sized>(self, stage: CodecStage) -> Result<(), Fault> {
        if self.0.is_empty() {
            return Ok(());
        }
        let cause = format!("{} bytes were left over", self.0.len());
        Err(Fault::Codec(CodecReport { stage, type_name: type_name::<T>().into(), cause }))
    }
}

/// Reads a value that takes up all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned + 'static>(bytes: &[u8], stage: CodecStage) -> Result<T, Fault> {
    let mut source = Source::new(bytes);
    let value = source.take(stage)?;
    source.finish::<T>(stage)?;
    Ok(value)
}

/// The same; a result that is `Bytes` shares the memory that it came in.
pub(crate) fn decode_shared<T: DeserializeOwned + 'static>(
    body: &Bytes,
    stage: CodecStage,
) -> Result<T, Fault> {
    let mut whole = None::<T>;
    if let Some(whole) = (&mut whole as &mut dyn Any).downcast_mut::<Option<Bytes>>()
        && let Ok((bytes, [])) = postcard::take_from_bytes::<&[u8]>(body)
    {
        *whole = Some(body.slice_ref(bytes));
    }
    whole.map_or_else(|| decode(body, stage), Ok)
}

fn codec_fault<T: ?Sized>(stage: CodecStage, error: &postcard::Error) -> Fault {
    Fault::Codec(CodecReport { stage, type_name: type_name::<T>().into(), cause: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_over_the_limit_is_measured_but_not_kept() {
        let mut out = Vec::new();
        let fault = encode_limited(&"a".repeat(100), &mut out, 10, CodecStage::EncodeResult);
        assert!(matches!(fault, Err(Fault::TooLarge { size: 101, limit: 10 })));
        assert!(out.is_empty());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut out = Vec::new();
        encode_limited(&(1u8, 2u8), &mut out, 10, CodecStage::EncodeResult).unwrap();
        let fault = decode::<u8>(&out, CodecStage::DecodeArguments).unwrap_err();
        assert!(matches!(fault, Fault::Codec(report) if report.cause.contains("1 bytes")));
    }

    proptest! {
        #[test]
        fn bytes_as_a_whole_are_encoded_as_postcard_would(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            encode_limited(&bytes, &mut out, u64::MAX, CodecStage::EncodeResult).unwrap();
            prop_assert_eq!(&out, &postcard::to_stdvec(&bytes).unwrap());
            prop_assert_eq!(&decode::<Vec<u8>>(&out, CodecStage::DecodeResult).unwrap(), &bytes);
        }
    }
}
