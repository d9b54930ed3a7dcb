//! The contract between a pool and its workers: frames, messages, the control page.

mod frame;
mod identity;
mod message;
mod page;

pub(crate) use frame::{Frame, FrameCodec, FrameError, write_frame};
pub(crate) use identity::build_identity;
pub(crate) use message::{PROTOCOL, Reply, Request, Run, Setup};
pub(crate) use page::{Page, SLOTS};
