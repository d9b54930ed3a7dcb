//! What stands in for [`voice`] without the features `log` and `tracing`.

#[cfg(feature = "nats")]
#[path = "no_voice_relay.rs"]
mod relay;

use super::scheduler::Violation;
use crate::wire::{Body, Levels};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "nats")]
pub(super) use relay::{Hearing, Passage, Relay};

#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {}

impl Forwarding {
    pub(super) fn here(self) -> Forwarding {
        self
    }

    #[cfg(feature = "nats")]
    pub(super) fn levels(&self) -> Levels {
        Levels::default()
    }
}

#[derive(Clone, Default)]
pub(super) struct Audience;

impl Audience {
    pub(super) fn of_here(_: &Forwarding) -> Audience {
        Audience
    }

    #[cfg(feature = "nats")]
    pub(super) fn elsewhere(_: Option<Arc<Relay>>) -> Audience {
        Audience
    }

    pub(super) fn leave(&self) {}
}

pub(super) struct Ear;

/// There is nothing.
pub(super) enum Said {}

impl Said {
    pub(super) fn tell(self) {
        match self {}
    }
}

impl Ear {
    pub(super) fn new(_: &Forwarding) -> Arc<Ear> {
        Arc::new(Ear)
    }

    pub(super) fn levels(&self) -> Levels {
        Levels::default()
    }

    pub(super) fn news(&self, _: &Audience) -> Option<Levels> {
        None
    }

    pub(super) fn hear(
        self: &Arc<Self>,
        _: Option<u64>,
        _: Option<&Audience>,
        _: Body<'_>,
    ) -> Result<Option<Said>, Violation> {
        Err(Violation)
    }

    pub(super) fn task_end(self: &Arc<Self>, _: u64, _: Option<&Audience>) -> Option<Said> {
        None
    }

    pub(super) fn task_over(self: &Arc<Self>, _: u64) -> Option<Said> {
        None
    }

    pub(super) fn end(self: &Arc<Self>) -> Option<Said> {
        None
    }

    pub(super) fn pause(&self) -> Option<Duration> {
        None
    }
}
