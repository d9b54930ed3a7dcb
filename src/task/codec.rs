//! Values to bytes and back: postcard, with errors that say which value of which type it was.
//!
//! serde hands a `Vec<u8>` to a format byte by byte, which takes ten times as long as copying it.
//! So one that is an element of the tuple of arguments goes through as a whole, in the same
//! encoding. A body that is nothing but one `Vec<u8>`, `String` or `Bytes` is its bytes as they
//! are: its memory is handed on rather than copied.

use super::bounded::{Bounded, Bounds};
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
        done.map_err(|error| codec_fault::<T>(stage, &error, || why_not_encoded(value)))
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

/// The bytes of a value that is nothing else.
fn plain_bytes<T: 'static>(value: &T) -> Option<&[u8]> {
    let value = value as &dyn Any;
    let vec = value.downcast_ref::<Vec<u8>>().map(Vec::as_slice);
    let string = || value.downcast_ref::<String>().map(String::as_bytes);
    let bytes = || value.downcast_ref::<Bytes>().map(|bytes| &bytes[..]);
    vec.or_else(string).or_else(bytes)
}

/// Takes what is in an option, if that is of another type than it seems.
fn take_as<T: 'static, U: 'static>(value: &mut Option<T>) -> Option<U> {
    (value as &mut dyn Any).downcast_mut::<Option<U>>().and_then(Option::take)
}

/// Puts a value into an option, if it is of that type after all.
fn put_as<T: 'static, U: 'static>(
    value: &mut Option<T>,
    make: impl FnOnce() -> Result<U, Fault>,
) -> Result<(), Fault> {
    if let Some(value) = (value as &mut dyn Any).downcast_mut::<Option<U>>() {
        *value = Some(make()?);
    }
    Ok(())
}

/// Appends the encoding of a body's only value.
pub(crate) fn push_body<T: Serialize + 'static>(
    value: &T,
    sink: &mut Sink<'_>,
    stage: CodecStage,
) -> Result<(), Fault> {
    match plain_bytes(value) {
        Some(bytes) => {
            let mut sink = sink;
            sink.try_extend(bytes).map_err(|error| codec_fault::<T>(stage, &error, || None))
        }
        None => sink.push(value, stage),
    }
}

/// The encoding of a body's only value.
///
/// # Errors
/// [`Fault::TooLarge`] with the size that it has, or a codec fault of this stage.
pub(crate) fn to_body<T: Serialize + 'static>(
    value: T,
    limit: u64,
    stage: CodecStage,
) -> Result<Bytes, Fault> {
    if let Some(size) = plain_bytes(&value).map(|bytes| bytes.len() as u64) {
        if size > limit {
            return Err(Fault::TooLarge { size, limit });
        }
        let mut value = Some(value);
        let body = take_as(&mut value)
            .or_else(|| take_as(&mut value).map(|vec: Vec<u8>| vec.into()))
            .or_else(|| take_as(&mut value).map(|string: String| string.into()));
        return Ok(body.unwrap_or_default());
    }
    let mut body = Vec::new();
    let mut sink = Sink::new(&mut body, limit);
    sink.push(&value, stage)?;
    sink.finish()?;
    Ok(body.into())
}

/// The value of a body that has no other.
pub(crate) fn from_body<T: DeserializeOwned + 'static>(body: Bytes, stage: CodecStage) -> Result<T, Fault> {
    let mut whole = None::<T>;
    put_as(&mut whole, || Ok(body.clone()))?;
    if let Some(value) = whole {
        return Ok(value);
    }
    // With no other handle to it, the memory of the body becomes that of the value.
    let mut body = Some(body);
    put_as(&mut whole, || Ok(Vec::from(body.take().unwrap_or_default())))?;
    put_as(&mut whole, || {
        String::from_utf8(body.take().unwrap_or_default().into()).map_err(|error| {
            let (type_name, cause) = ("String".into(), error.to_string());
            Fault::Codec(CodecReport { stage, type_name, cause })
        })
    })?;
    match (whole, body) {
        (None, Some(body)) => decode(&body, stage),
        (Some(value), _) => Ok(value),
        (None, None) => Err(codec_fault::<T>(stage, &postcard::Error::SerdeDeCustom, || None)),
    }
}

/// Appends a task's result to its output; on failure that is as it was.
pub(crate) fn encode_result<T: Serialize + 'static>(
    value: T,
    out: &mut Vec<u8>,
    limit: u64,
) -> Result<(), Fault> {
    let start = out.len();
    if start == 0 && plain_bytes(&value).is_some() {
        *out = to_body(value, limit, CodecStage::EncodeResult)?.into();
        return Ok(());
    }
    let mut sink = Sink::new(out, limit);
    let pushed = push_body(&value, &mut sink, CodecStage::EncodeResult);
    let done = pushed.and_then(|()| sink.finish());
    if done.is_err() {
        out.truncate(start);
    }
    done
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
            Some(whole) => postcard::take_from_bytes::<&[u8]>(self.0)
                .map(|(bytes, rest)| {
                    *whole = Some(bytes.to_vec());
                    rest
                })
                .map_err(|error| (error, None)),
            None => take_value(self.0, stage).map(|(value, rest)| {
                whole = Some(value);
                rest
            }),
        };
        self.0 = taken.map_err(|(error, bound)| {
            let why = || bound.map(String::from).or_else(|| why_not_decoded::<T>(self.0));
            codec_fault::<T>(stage, &error, why)
        })?;
        whole.ok_or_else(|| codec_fault::<T>(stage, &postcard::Error::SerdeDeCustom, || None))
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

/// What went wrong, and the bound that was met, if one was.
type Refused = (postcard::Error, Option<&'static str>);

/// Decodes a value from the front of `bytes`: what comes from a worker within bounds.
fn take_value<T: DeserializeOwned>(bytes: &[u8], stage: CodecStage) -> Result<(T, &[u8]), Refused> {
    if stage != CodecStage::DecodeResult {
        return postcard::take_from_bytes(bytes).map_err(|error| (error, None));
    }
    let mut deserializer = postcard::Deserializer::from_bytes(bytes);
    let bounds = Bounds::of(bytes);
    let value = T::deserialize(Bounded::new(&mut deserializer, &bounds));
    let value = value.map_err(|error| (error, bounds.met()))?;
    Ok((value, deserializer.finalize().map_err(|error| (error, None))?))
}

fn codec_fault<T: ?Sized>(
    stage: CodecStage,
    error: &postcard::Error,
    why: impl FnOnce() -> Option<String>,
) -> Fault {
    let is_of_the_type = matches!(error, postcard::Error::SerdeSerCustom | postcard::Error::SerdeDeCustom);
    let cause = if is_of_the_type { why() } else { None };
    let cause = cause.unwrap_or_else(|| error.to_string());
    Fault::Codec(CodecReport { stage, type_name: type_name::<T>().into(), cause })
}

/// What a type says for a reason when it will not be encoded. postcard drops that, so it is done
/// once more in a way that keeps it.
fn why_not_encoded<T: Serialize>(value: &T) -> Option<String> {
    let mut dropped = Vec::new();
    let mut sink = Sink::new(&mut dropped, 0);
    let mut serializer = postcard::Serializer { output: &mut sink };
    let mut serializer = <dyn erased_serde::Serializer>::erase(&mut serializer);
    let done = erased_serde::Serialize::erased_serialize(value, &mut serializer);
    done.err().map(|error| error.to_string())
}

/// The same for a type that will not be decoded.
fn why_not_decoded<T: DeserializeOwned>(bytes: &[u8]) -> Option<String> {
    let mut deserializer = postcard::Deserializer::from_bytes(bytes);
    let mut deserializer = <dyn erased_serde::Deserializer<'_>>::erase(&mut deserializer);
    let deserializer: &mut dyn erased_serde::Deserializer<'_> = &mut deserializer;
    let bounds = Bounds::of(bytes);
    T::deserialize(Bounded::new(deserializer, &bounds)).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::bounded::{MAX_DEPTH, MAX_EMPTY};
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf(u8),
        Node { name: String, inner: Option<Box<Tree>> },
        Many(Vec<Tree>),
    }

    fn roundtrip(value: &Tree) -> Result<Tree, Fault> {
        decode(&postcard::to_stdvec(value).unwrap(), CodecStage::DecodeResult)
    }

    fn cause(fault: Fault) -> String {
        let Fault::Codec(report) = fault else { panic!("{fault:?}") };
        report.cause
    }

    /// Makes room for all that is announced, as some collections do.
    #[derive(Debug, PartialEq)]
    struct Eager(Vec<u8>);

    impl<'de> Deserialize<'de> for Eager {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Eager, D::Error> {
            struct Elements;
            impl<'de> serde::de::Visitor<'de> for Elements {
                type Value = Eager;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("elements")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut elements: A) -> Result<Eager, A::Error> {
                    const SIZE: usize = 1024;
                    let room = elements.size_hint().unwrap_or(0) * SIZE;
                    assert!(room <= 64 << 20, "{room} bytes for what may be nothing");
                    let mut all = Vec::new();
                    while let Some(element) = elements.next_element()? {
                        all.push(element);
                    }
                    Ok(Eager(all))
                }
            }
            deserializer.deserialize_seq(Elements)
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes very long")]
    fn no_more_elements_are_announced_than_there_should_be_room_for() {
        let bytes = postcard::to_stdvec(&vec![7_u8; 1 << 20]).unwrap();
        let read: Eager = decode(&bytes, CodecStage::DecodeResult).unwrap();
        assert_eq!(read, Eager(vec![7; 1 << 20]));
    }

    #[test]
    fn values_may_be_nested_but_not_without_end() {
        // A level is an enum and an option.
        let deep = |levels: u32| {
            (0..levels / 2).fold(Tree::Leaf(7), |tree, at| Tree::Node {
                name: at.to_string(),
                inner: Some(Box::new(tree)),
            })
        };
        let tree = Tree::Many(vec![deep(MAX_DEPTH - 4), Tree::Leaf(1)]);
        assert_eq!(roundtrip(&tree).unwrap(), tree);
        assert!(cause(roundtrip(&deep(MAX_DEPTH + 2)).unwrap_err()).contains("levels deep"));
        // What a worker can send that has a stack without end: all nodes, each in the one before.
        #[derive(Debug, Deserialize)]
        struct List(#[allow(dead_code)] Option<Box<List>>);
        let error = decode::<List>(&[1; 1 << 20], CodecStage::DecodeResult).unwrap_err();
        assert!(cause(error).contains("levels deep"));
    }

    /// Looking for the reason takes more stack than decoding.
    #[test]
    fn a_reason_that_lies_deep_is_found() {
        #[derive(Debug, Deserialize)]
        #[serde(try_from = "u8")]
        struct Odd;
        impl TryFrom<u8> for Odd {
            type Error = String;
            fn try_from(number: u8) -> Result<Odd, String> {
                if number % 2 == 1 { Ok(Odd) } else { Err(format!("{number} is even")) }
            }
        }
        #[derive(Debug, Deserialize)]
        #[allow(dead_code)]
        struct Fat {
            room: [u64; 16],
            inner: Option<Box<Fat>>,
            odd: Odd,
        }
        // A level is a struct and an option, and the innermost has an array.
        let levels = (MAX_DEPTH as usize - 4) / 2;
        let mut bytes = Vec::new();
        for _ in 0..levels {
            bytes.extend([[0; 16].as_slice(), &[1]].concat());
        }
        bytes.extend([[0; 16].as_slice(), &[0, 2]].concat());
        let error = decode::<Fat>(&bytes, CodecStage::DecodeResult).unwrap_err();
        let Fault::Codec(report) = error else { panic!("{error:?}") };
        assert!(!report.cause.is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes very long")]
    fn compact_values_are_within_the_bounds() {
        fn roundtrip<T: Serialize + DeserializeOwned + PartialEq + 'static>(value: &T) -> bool {
            let bytes = postcard::to_stdvec(value).unwrap();
            decode::<T>(&bytes, CodecStage::DecodeResult).is_ok_and(|decoded| decoded == *value)
        }
        let count = MAX_EMPTY as usize + 1000;
        assert!(roundtrip(&vec![[1_u8, 2, 3, 4]; count]));
        assert!(roundtrip(&vec![(true, None::<u8>); count]));
        assert!(roundtrip(&vec![vec![1_u8]; count]));
        assert!(roundtrip(
            &(0..count as u32 / 8).map(|key| (key, ())).collect::<std::collections::HashMap<_, _>>()
        ));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes very long")]
    fn elements_without_bytes_are_bounded() {
        let count = |length: u64| {
            let bytes = postcard::to_stdvec(&length).unwrap();
            decode::<Vec<()>>(&bytes, CodecStage::DecodeResult).map(|units| units.len())
        };
        assert_eq!(count(1 << 16).unwrap(), 1 << 16);
        assert!(cause(count(u64::MAX).unwrap_err()).contains("elements than bytes"));
        // Each of many may have as many as all.
        let bytes = postcard::to_stdvec(&vec![1_u64 << 19; 1000]).unwrap();
        decode::<Vec<Vec<()>>>(&bytes, CodecStage::DecodeResult).unwrap_err();
    }
    use proptest::prelude::*;

    const STAGE: CodecStage = CodecStage::EncodeResult;

    #[test]
    fn what_is_over_the_limit_is_measured_but_not_kept() {
        let mut out = Vec::new();
        for fault in [
            encode_result("a".repeat(101), &mut out, 10),
            encode_result(("a".repeat(100), ()), &mut out, 10),
            to_body(vec![0u8; 101], 10, STAGE).map(drop),
        ] {
            assert!(matches!(fault, Err(Fault::TooLarge { size: 101, limit: 10 })), "{fault:?}");
        }
        assert!(out.is_empty());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let body = to_body((1u8, 2u8), 10, STAGE).unwrap();
        let fault = from_body::<u8>(body, CodecStage::DecodeArguments).unwrap_err();
        assert!(matches!(fault, Fault::Codec(report) if report.cause.contains("1 bytes")));
    }

    #[test]
    fn the_memory_of_plain_bytes_is_handed_on() {
        let vec = vec![1u8; 1000];
        let at = vec.as_ptr();
        let body = to_body(vec, 1000, STAGE).unwrap();
        let vec: Vec<u8> = from_body(body, STAGE).unwrap();
        assert_eq!(vec.as_ptr(), at);
    }

    #[test]
    fn a_string_that_is_none_is_an_error() {
        assert!(from_body::<String>(Bytes::from_static(b"\xff"), STAGE).is_err());
        assert_eq!(from_body::<String>(Bytes::from_static(b"text"), STAGE).unwrap(), "text");
    }

    proptest! {
        #[test]
        fn bytes_in_a_tuple_are_encoded_as_postcard_would(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            Sink::new(&mut out, u64::MAX).push(&bytes, STAGE).unwrap();
            prop_assert_eq!(&out, &postcard::to_stdvec(&bytes).unwrap());
            prop_assert_eq!(&decode::<Vec<u8>>(&out, STAGE).unwrap(), &bytes);
        }
    }
}
