//! What a program and the processes that it starts say over the control socket.

use super::Limits;
use crate::sys::child::Ended;
use serde::{Deserialize, Serialize};

/// To a started process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first message.
    Configure {
        protocol: u32,
        build: Vec<u8>,
        /// How many pools there are around the processes started here.
        depth: u32,
        limits: Limits,
        /// The shim of the preload function; its arguments come in a memory file.
        preload: Option<u64>,
    },
    /// Be a worker, or fork one: with its pipes, its page, and its standard streams as flagged.
    Start { id: u64, stdout: bool, stderr: bool },
}

/// From a started process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Notice {
    /// The first message.
    Hello { protocol: u32, build: Vec<u8> },
    /// Preloading is done, with a text that says why it failed if it did.
    Configured { refused: Option<Refusal> },
    /// A worker was forked; with a descriptor of its process.
    Forked { id: u64, pid: u32 },
    /// A worker could not be forked.
    NotForked { id: u64, reason: String },
    /// A worker has ended.
    Ended { id: u64, ended: Ended },
}

/// Why a started process cannot serve.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    OtherBuild,
    Preload(String),
}
