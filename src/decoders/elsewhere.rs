//! What comes from other machines.

#[cfg(feature = "remote")]
use super::Input;

/// What a steward says to its pool, in pieces of any length.
#[cfg(feature = "remote")]
pub(super) fn reports(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte());
    let said = crate::process::read_as_pool(input.0, piece);
    // However it is cut, it is the same.
    assert_eq!(said, crate::process::read_as_pool(input.0, usize::MAX));
}

/// What a steward reads: how to reach its pool, and what that says.
#[cfg(feature = "remote")]
pub(super) fn commands(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte());
    let said = crate::process::read_as_steward(input.0, piece);
    assert_eq!(said, crate::process::read_as_steward(input.0, usize::MAX));
}

/// What strangers say to whoever waits for workers.
#[cfg(feature = "remote")]
pub(super) fn knocks(data: &[u8]) {
    assert!(crate::process::read_knocks(data) <= 2);
}

/// What a pool hears of agents, and of the server.
#[cfg(feature = "nats")]
pub(super) fn agents(data: &[u8]) {
    assert!(crate::pool::nats::read_as_caller(data).len() <= 4);
}

/// What an agent hears of pools.
#[cfg(feature = "nats")]
pub(super) fn callers(data: &[u8]) {
    assert!(crate::pool::nats::read_as_agent(data).len() <= 2);
}
