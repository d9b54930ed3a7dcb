//! Inner parts, one operation each, for the benchmarks in `benches/micro.rs`. Not for use.

use crate::pool::scheduler_cycle;
use crate::task::{CodecStage, from_body, to_body};
use crate::wire::{Page, Record, Reply, write_frame};

/// Encodes and decodes a value of a few fields.
pub fn codec_small(id: u64) -> u64 {
    let body = to_body((id, "a name".to_string(), [1u32, 2, 3]), u64::MAX, CodecStage::EncodeArguments);
    let value: Result<(u64, String, [u32; 3]), _> =
        body.and_then(|body| from_body(body, CodecStage::DecodeArguments));
    value.map_or(0, |value| value.0)
}

/// Encodes and decodes bytes as a whole.
pub fn codec_bytes(bytes: Vec<u8>) -> Vec<u8> {
    let body = to_body(bytes, u64::MAX, CodecStage::EncodeArguments);
    body.and_then(|body| from_body(body, CodecStage::DecodeArguments)).unwrap_or_default()
}

/// Writes the head of a reply.
pub fn frame_head(seq: u64, out: &mut Vec<u8>) {
    out.clear();
    write_frame(&Reply::Skipped { seq }, 0, out);
}

/// Submits so many tasks to a scheduler with one worker, and has them answered one by one.
pub fn scheduler(tasks: u64) -> u64 {
    scheduler_cycle(tasks)
}

/// A ring in shared memory, both of whose ends are here.
pub struct Ring {
    page: Page,
    head: u64,
    tail: u64,
    out: Vec<u8>,
}

impl Ring {
    /// Makes the shared memory.
    ///
    /// # Errors
    /// When the system will not give any.
    pub fn new() -> std::io::Result<Ring> {
        Ok(Ring { page: Page::create()?.0, head: 0, tail: 0, out: Vec::new() })
    }

    /// Writes a record and reads it; whether it came out whole.
    pub fn round_trip(&mut self, record: &[u8]) -> bool {
        self.out.clear();
        self.page.push(&mut self.tail, record);
        let popped = self.page.pop(&mut self.head, &mut self.out);
        self.page.release(self.head);
        popped == Ok(Some(Record::Here(record.len())))
    }
}
