//! Values to bytes and back: postcard, with errors that say which value of which type it was.

use super::error::CodecStage;
use super::fault::{CodecReport, Fault};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::io;

/// Appends a value's encoding to `out`.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> postcard::Result<()> {
    // `to_io` calls the writer for each piece; a `Vec` takes them with a plain copy.
    postcard::to_io(value, out).map(drop)
}

/// Appends a value's encoding to `out`, which may grow to at most `limit` bytes.
///
/// # Errors
/// [`Fault::TooLarge`] with the size that it would have had, or a codec fault of this stage.
pub(crate) fn encode_limited<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    limit: u64,
    stage: CodecStage,
) -> Result<(), Fault> {
    let start = out.len();
    let mut bounded = Bounded { out, limit, size: start as u64 };
    let done = postcard::to_io(value, &mut bounded).map(drop);
    let size = bounded.size;
    let failed = match done {
        Ok(()) if size > limit => Fault::TooLarge { size, limit },
        Ok(()) => return Ok(()),
        Err(error) => codec_fault::<T>(stage, &error),
    };
    out.truncate(start);
    Err(failed)
}

/// Appends a task's result to its output.
pub(crate) fn encode_result<T: Serialize>(value: &T, out: &mut Vec<u8>, limit: u64) -> Result<(), Fault> {
    encode_limited(value, out, limit, CodecStage::EncodeResult)
}

/// Reads a value that takes up all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], stage: CodecStage) -> Result<T, Fault> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Fault::Codec(CodecReport {
            stage,
            type_name: type_name::<T>().into(),
            cause: format!("{} bytes were left over", rest.len()),
        })),
        Err(error) => Err(codec_fault::<T>(stage, &error)),
    }
}

fn codec_fault<T: ?Sized>(stage: CodecStage, error: &postcard::Error) -> Fault {
    Fault::Codec(CodecReport { stage, type_name: type_name::<T>().into(), cause: error.to_string() })
}

/// A writer that keeps counting, but stops storing, past its limit.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    limit: u64,
    size: u64,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        if self.size <= self.limit {
            self.out.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_measured_but_not_kept() {
        let mut out = Vec::new();
        let fault = encode_limited(&[1u8; 100][..], &mut out, 10, CodecStage::EncodeResult);
        assert!(matches!(fault, Err(Fault::TooLarge { size: 101, limit: 10 })));
        assert!(out.is_empty());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut out = Vec::new();
        encode(&(1u8, 2u8), &mut out).unwrap();
        let fault = decode::<u8>(&out, CodecStage::DecodeArguments).unwrap_err();
        assert!(matches!(fault, Fault::Codec(report) if report.cause.contains("1 bytes")));
    }
}
