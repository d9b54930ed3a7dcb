//! Frames: a length, a head that says what it is, and a body of raw bytes.
//!
//! ```text
//! u32 little-endian: length of what follows | head, postcard | body, the rest
//! ```

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use tokio_util::codec::Decoder;

/// How much a head may add to the body's limit: room for messages, backtraces and the like.
const HEAD_ROOM: u64 = 6 << 20;

/// Bodies up to this size are copied out of the read buffer, so that one small result that is
/// kept does not keep the whole buffer.
const COPY_LIMIT: usize = 512;

/// How much room is made ahead of the bytes of a long frame: what a length field claims is
/// allocated only as its bytes arrive.
const MAX_STEP: usize = 1 << 20;

/// A buffer that was larger than this for a frame goes with that.
const KEPT: usize = 1 << 20;

/// So much of what came behind such a frame is copied for that.
const COPIED_REST: usize = 64 * 1024;

/// One message: a head of type `H`, and raw bytes.
#[derive(Debug)]
pub(crate) struct Frame<H> {
    pub(crate) head: H,
    pub(crate) body: Bytes,
}

/// Bytes that are not a frame.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// The length is over the limit.
    TooLong(u64),
    /// The head is none of this protocol.
    BadHead(postcard::Error),
    /// The shared memory holds what makes no sense.
    Garbled,
    /// Reading failed.
    Io(std::io::Error),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong(length) => write!(f, "sent a frame of {length} bytes, over the limit"),
            FrameError::BadHead(error) => write!(f, "sent a frame with a malformed head: {error}"),
            FrameError::Garbled => f.write_str("wrote what makes no sense to the shared memory"),
            FrameError::Io(error) => write!(f, "could not be read from: {error}"),
        }
    }
}

impl From<std::io::Error> for FrameError {
    fn from(error: std::io::Error) -> FrameError {
        FrameError::Io(error)
    }
}

/// Takes frames with heads of type `H` out of a byte stream.
#[derive(Debug)]
pub(crate) struct FrameCodec<H> {
    limit: u64,
    head: PhantomData<fn() -> H>,
}

impl<H> FrameCodec<H> {
    /// Bodies may be as long as `max_body`.
    pub(crate) fn new(max_body: u64) -> FrameCodec<H> {
        FrameCodec { limit: max_body.saturating_add(HEAD_ROOM), head: PhantomData }
    }
}

impl<H: DeserializeOwned> Decoder for FrameCodec<H> {
    type Item = Frame<H>;
    type Error = FrameError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame<H>>, FrameError> {
        let Some(length) = source.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        if u64::from(length) > self.limit {
            return Err(FrameError::TooLong(length.into()));
        }
        let end = 4 + length as usize;
        let Some(content) = source.get(4..end) else {
            source.reserve((end - source.len()).min(MAX_STEP));
            return Ok(None);
        };
        // No head is longer: what it is made into is many times as large as it is.
        let front = &content[..content.len().min(HEAD_ROOM as usize)];
        let (head, left) = postcard::take_from_bytes(front).map_err(FrameError::BadHead)?;
        let body = &content[front.len() - left.len()..];
        let body_length = body.len();
        let body = if body_length <= COPY_LIMIT {
            let body = Bytes::copy_from_slice(body);
            source.advance(end);
            body
        } else {
            let is_large = source.capacity() > KEPT;
            let mut frame = source.split_to(end).freeze();
            if is_large && source.len() <= COPIED_REST {
                // It would be used again, and so be there for as long as the stream.
                *source = BytesMut::from(&source[..]);
            }
            frame.split_off(end - body_length)
        };
        Ok(Some(Frame { head, body }))
    }
}

/// Appends a frame to `out`, all but its body: `body_length` bytes must follow.
///
/// The lengths are bounded by the maximum message size, which is far below 4 GiB.
pub(crate) fn write_frame<H: Serialize>(head: &H, body_length: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    // Heads consist of numbers, strings and vectors, which postcard always encodes, and a
    // vector always has room.
    let _ = postcard::to_io(head, &mut *out);
    let length = (out.len() - start - 4 + body_length) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame_of(head: &(u32, String), body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(head, body.len(), &mut out);
        out.extend_from_slice(body);
        out
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_the_stream_is_cut(
            frames in prop::collection::vec((any::<u32>(), ".{0,20}", prop::collection::vec(any::<u8>(), 0..2000)), 0..8),
            cut in 1usize..3000,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(n, s, body)| frame_of(&(*n, s.clone()), body)).collect();
            let mut codec = FrameCodec::<(u32, String)>::new(4096);
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = codec.decode(&mut buffer).unwrap() {
                    seen.push((frame.head.0, frame.head.1, frame.body.to_vec()));
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut codec = FrameCodec::<crate::wire::Reply>::new(64);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = codec.decode(&mut buffer) {}
        }
    }

    #[test]
    fn a_claimed_length_is_not_allocated_ahead() {
        let mut codec = FrameCodec::<u8>::new(1 << 30);
        let mut buffer = BytesMut::from(&(1u32 << 30).to_le_bytes()[..]);
        assert!(codec.decode(&mut buffer).unwrap().is_none());
        assert!(buffer.capacity() < 2 * MAX_STEP);
    }

    #[test]
    fn a_buffer_that_was_large_is_not_kept() {
        let mut codec = FrameCodec::<(u32, String)>::new(1 << 30);
        for behind in [0, 10_000] {
            let body = vec![7; 4 << 20];
            let small = frame_of(&(2, String::new()), &vec![8; behind]);
            let mut buffer = BytesMut::from(&[frame_of(&(1, String::new()), &body), small].concat()[..]);
            assert_eq!(codec.decode(&mut buffer).unwrap().unwrap().body, body);
            buffer.reserve(1);
            assert!(buffer.capacity() <= KEPT, "{}", buffer.capacity());
            let next = codec.decode(&mut buffer).unwrap().unwrap();
            assert_eq!((next.head.0, next.body.len()), (2, behind));
        }
    }

    #[test]
    fn a_head_longer_than_any_is_an_error() {
        for (length, is_taken) in [(HEAD_ROOM as usize - 8, true), (HEAD_ROOM as usize + 8, false)] {
            let mut buffer = BytesMut::from(&frame_of(&(1, "a".repeat(length)), &[2; 1000])[..]);
            let mut codec = FrameCodec::<(u32, String)>::new(1 << 20);
            let frame = codec.decode(&mut buffer);
            assert_eq!(frame.as_ref().is_ok_and(|frame| frame.as_ref().is_some()), is_taken);
            assert!(frame.is_err() || frame.unwrap().unwrap().body == [2; 1000][..]);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_an_error() {
        let mut codec = FrameCodec::<u8>::new(10);
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(codec.decode(&mut buffer), Err(FrameError::TooLong(_))));
    }
}
