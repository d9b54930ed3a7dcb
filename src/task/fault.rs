//! What a worker reports of a task that has no value to give: plain data that crosses processes.

use super::error::CodecStage;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::backtrace::BacktraceStatus;
use std::fmt;

/// The longest text that a worker sends of a message or of a backtrace.
const MAX_TEXT: usize = 64 * 1024;

/// Why a task ended without a value although its worker lives.
#[doc(hidden)]
#[allow(unreachable_pub)] // It stands in the signature of a hidden method of a public trait.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Fault {
    Panicked(PanicReport),
    Failed(FailureReport),
    Codec(CodecReport),
    TooLarge { size: u64, limit: u64 },
    Cancelled,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[doc(hidden)]
#[allow(unreachable_pub)]
pub struct PanicReport {
    pub(crate) message: String,
    pub(crate) place: PlaceReport,
    pub(crate) backtrace: Option<String>,
    pub(crate) thread: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[doc(hidden)]
#[allow(unreachable_pub)]
pub struct PlaceReport {
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[doc(hidden)]
#[allow(unreachable_pub)]
pub struct FailureReport {
    /// The error and its causes, outermost first.
    #[serde(deserialize_with = "chain")]
    pub(crate) chain: Vec<String>,
    pub(crate) backtrace: Option<String>,
}

/// Reads no more causes than a worker sends: empty ones take up much more memory than their encoding.
fn chain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} messages", Fault::MAX_CHAIN)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Vec<String>, A::Error> {
            let mut chain = Vec::new();
            while let Some(text) = texts.next_element()? {
                if chain.len() == Fault::MAX_CHAIN {
                    return Err(A::Error::invalid_length(chain.len() + 1, &self));
                }
                chain.push(text);
            }
            Ok(chain)
        }
    }

    deserializer.deserialize_seq(Few)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[doc(hidden)]
#[allow(unreachable_pub)]
pub struct CodecReport {
    pub(crate) stage: CodecStage,
    pub(crate) type_name: String,
    pub(crate) cause: String,
}

impl Fault {
    /// How many causes of an error are told.
    pub(crate) const MAX_CHAIN: usize = 64;

    pub(crate) fn malformed_chunk() -> Fault {
        Fault::Codec(CodecReport {
            stage: CodecStage::DecodeArguments,
            type_name: "a chunk of items".into(),
            cause: "the lengths of its items do not add up".into(),
        })
    }

    /// What came of a stream through a queue is none of its items.
    #[cfg(feature = "nats")]
    pub(crate) fn malformed_stream() -> Fault {
        Fault::Codec(CodecReport {
            stage: CodecStage::DecodeResult,
            type_name: "an item of a stream".into(),
            cause: "more came than was asked for, or no item at all".into(),
        })
    }

    /// Cuts texts down to what may be sent.
    pub(crate) fn bounded(mut self) -> Fault {
        match &mut self {
            Fault::Panicked(report) => {
                cut(&mut report.message);
                cut(&mut report.place.file);
                report.backtrace.iter_mut().chain(&mut report.thread).for_each(cut);
            }
            Fault::Failed(report) => {
                report.chain.truncate(Fault::MAX_CHAIN);
                report.chain.iter_mut().for_each(cut);
                report.backtrace.iter_mut().for_each(cut);
            }
            Fault::Codec(report) => {
                cut(&mut report.type_name);
                cut(&mut report.cause);
            }
            Fault::TooLarge { .. } | Fault::Cancelled => {}
        }
        self
    }
}

/// Shortens a text to [`MAX_TEXT`] bytes, and says so at its end.
pub(crate) fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str(" [cut short]");
    }
}

/// What is kept of an `anyhow` error on its way to the caller.
pub(crate) fn from_anyhow(error: &anyhow::Error) -> Fault {
    let backtrace = error.backtrace();
    let is_told = backtrace.status() == BacktraceStatus::Captured && has_room_for_names();
    Fault::Failed(FailureReport {
        chain: error.chain().map(ToString::to_string).collect(),
        backtrace: is_told.then(|| backtrace.to_string()),
    })
}

/// Whether there is memory enough to find the names for a backtrace, which took 40 MiB where it was
/// measured. Where it runs out halfway, the standard library waits for itself for ever.
pub(crate) fn has_room_for_names() -> bool {
    const ENOUGH: usize = 64 << 20;
    let mut room = Vec::<u8>::new();
    let has_room = room.try_reserve_exact(ENOUGH).is_ok();
    // Or the compiler would do without the memory, and take it for had.
    std::hint::black_box(&room);
    has_room
}

/// The text that a panic was raised with.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is no text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_causes_are_read_than_are_sent() {
        let failed = |causes| {
            let fault = Fault::Failed(FailureReport { chain: vec![String::new(); causes], backtrace: None });
            let most = postcard::to_stdvec(&fault.clone().bounded()).unwrap();
            assert!(postcard::from_bytes::<Fault>(&most).is_ok());
            postcard::from_bytes::<Fault>(&postcard::to_stdvec(&fault).unwrap())
        };
        assert!(failed(Fault::MAX_CHAIN).is_ok());
        assert!(failed(Fault::MAX_CHAIN + 1).is_err());
    }
}
