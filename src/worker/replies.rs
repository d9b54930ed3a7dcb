//! Writing to the pool.

use crate::sys::child::exit_now;
use crate::task::Fault;
use crate::wire::{Reply, write_frame};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// Bodies up to this size are copied behind their head, to leave in one write.
const COPY_LIMIT: usize = 16 * 1024;

/// The stream of replies.
pub(super) struct Replies(Mutex<Stream>);

struct Stream {
    file: File,
    /// Kept for its memory.
    buffer: Vec<u8>,
}

impl Replies {
    pub(super) fn new(file: OwnedFd) -> Replies {
        Replies(Mutex::new(Stream { file: file.into(), buffer: Vec::new() }))
    }

    /// Sends one reply at once. A pool that is gone ends the process.
    pub(super) fn send(&self, head: &Reply, body: &[u8]) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Stream { file, buffer } = &mut *stream;
        buffer.clear();
        write_frame(head, body.len(), buffer);
        let written = if body.len() <= COPY_LIMIT {
            buffer.extend_from_slice(body);
            file.write_all(buffer)
        } else {
            write_both(file, buffer, body)
        };
        if written.is_err() {
            exit_now(1);
        }
    }

    /// Sends how a task ended.
    pub(super) fn send_outcome(&self, seq: u64, over_rss_mark: bool, outcome: Result<&[u8], Fault>) {
        match outcome {
            Ok(body) => self.send(&Reply::Value { seq, over_rss_mark }, body),
            Err(fault) => {
                let fault = fault.bounded();
                self.send(&Reply::Fault { seq, over_rss_mark, dying: false, fault }, &[]);
            }
        }
    }
}

/// Writes a head and a long body without copying the body.
fn write_both(file: &mut File, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
    match head.get(written..) {
        Some(rest) => {
            file.write_all(rest)?;
            file.write_all(body)
        }
        None => file.write_all(&body[written - head.len()..]),
    }
}
