//! What stands in for [`voice`] without the features `log` and `tracing`.

use super::replies::Replies;
use crate::wire::Levels;

pub(super) fn set_up(_: &'static Replies, _: Levels) {}

pub(super) fn initialize<T>(run: impl FnOnce() -> T) -> T {
    run()
}

pub(super) fn install() {}

pub(super) fn listen(_: Levels) {}

pub(super) fn begin(_: u64) {}

pub(super) fn end() {}

pub(super) fn ring() {}
