//! The contract between a pool and its workers: frames, messages, the control page.

mod arena;
mod frame;
mod identity;
mod incoming;
mod message;
mod page;
mod ring;
mod slot;
#[cfg(any(test, feature = "internals", feature = "log", feature = "tracing"))]
#[cfg_attr(not(all(feature = "log", feature = "tracing")), allow(dead_code))]
pub(crate) mod voice;
mod word;

pub(crate) use arena::{Place, Room};
pub(crate) use frame::{Frame, FrameCodec, FrameError, write_frame};
pub(crate) use identity::build_identity;
pub(crate) use incoming::{Batch, Body, Incoming};
pub(crate) use message::{ITEM_COST, Levels, PROTOCOL, Reply, Request, Run, STREAM_BYTES, Setup};
pub(crate) use page::{LARGE, Page, SLOTS};
#[cfg(any(test, feature = "internals"))]
pub(crate) use ring::{Garbled, Record};
pub(crate) use word::Word;
