//! What callers and agents say to each other.
//!
//! A message is a head, its length (u32, little-endian) before it, and then whatever is left: a body.

use super::report::Ending;
use crate::task::{CodecStage, Fault, Progress, TraceContext, decode};
use crate::wire::Levels;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Both sides are of one build; this is against what is no message of this crate at all.
pub(super) const VERSION: u32 = 2;

/// The header of a task with the subject where its caller listens. The reply subject of the message
/// itself is where the server confirms that it has the task.
pub(super) const REPLY_TO: &str = "Procession-Reply";

/// The longest head that is looked at: that of an answer has the report of a fault in it.
const MAX_HEAD: usize = 16 << 20;

/// A submission of a task: the same task may be submitted again for another attempt, or because an agent
/// has handed it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Key {
    /// The task's number with its caller.
    pub(super) task: u64,
    /// Which attempt it is, from 1.
    pub(super) attempt: u32,
    /// How often it was handed back.
    pub(super) hop: u32,
}

impl Key {
    /// By which the server knows a submission again.
    pub(super) fn message_id(self, caller: &str) -> String {
        let Key { task, attempt, hop } = self;
        format!("{caller}.{task}.{attempt}.{hop}")
    }
}

/// Where a body is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// Behind the head.
    Here,
    /// In the object store.
    Object { name: String, size: u64 },
}

/// The head of a task; its body is the encoded arguments.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskHead {
    pub(super) version: u32,
    pub(super) build: Vec<u8>,
    pub(super) key: Key,
    /// The offset of the function's shim.
    pub(super) shim: u64,
    /// How long it may run, in nanoseconds.
    pub(super) timeout: Option<u64>,
    /// How long it may wait, in nanoseconds.
    pub(super) max_wait: u64,
    pub(super) name: Option<String>,
    /// How many items it has, if it is a chunk.
    pub(super) items: u32,
    /// It is a stream, of which so many items may come before the first are taken.
    pub(super) window: Option<u64>,
    /// The trace that it is part of.
    pub(super) trace: Option<Box<TraceContext>>,
    /// How much its caller wants to hear of what it logs.
    pub(super) levels: Levels,
    pub(super) place: Place,
}

/// To a caller, from an agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ToCaller {
    pub(super) agent: String,
    pub(super) key: Key,
    pub(super) what: News,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum News {
    /// The agent has the task, and this process has begun it.
    Alive { pid: Option<u32> },
    /// The agent has no worker for it after all, and has not begun it.
    HandedBack,
    /// The server has given the task up, which is at this place of the stream: the agent that had it is gone.
    /// Another one says so.
    Overdue { place: u64 },
    /// How far it has got, as it says itself.
    Progress { progress: Progress },
    /// What it has logged, after so many messages of this kind, which have come or not; the body is messages,
    /// each its length (u32, little-endian) and its bytes.
    Voice { before: u64 },
    /// The packet of a stream with this number; the body is pieces of items.
    Packet { number: u64 },
    /// It is done, and took so many nanoseconds; the body is an answer.
    Done { ran: u64, place: Place },
}

/// To an agent, from a caller. To all of them at once, no message at all is a roll call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToAgent {
    /// The caller has the answer, or does not want it any more.
    Confirm { caller: String, key: Key },
    /// The caller does not want this submission of a task any more.
    Cancel { caller: String, key: Key },
    /// How a stream's caller gets on.
    Flow { caller: String, key: Key, flow: Flow },
    /// The caller has ended, and wants nothing any more. To all agents of its build.
    Left { caller: String },
}

/// How far the caller of a stream has got since its beginning: so it does no harm if it is lost, or comes
/// twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flow {
    /// How many packets have arrived.
    pub(super) packets: u64,
    /// What was taken and made room for more: items, and their bytes with what each costs beside.
    pub(super) items: u64,
    pub(super) bytes: u64,
    /// What has not arrived is missing: it was lost.
    pub(super) is_missing: bool,
}

/// Adds a part to a body: its length (u32, little-endian) and its bytes.
pub(super) fn add_part(body: &mut Vec<u8>, part: &[u8]) {
    // A message is far below 4 GiB.
    body.extend_from_slice(&(part.len() as u32).to_le_bytes());
    body.extend_from_slice(part);
}

/// Takes the next part off a body; `None` if there is no whole one.
pub(super) fn take_part(body: &mut Bytes) -> Option<Bytes> {
    let end = 4 + u32::from_le_bytes(*body.first_chunk::<4>()?) as usize;
    (end <= body.len()).then(|| body.split_to(end).split_off(4))
}

/// What a piece of a stream's item is.
pub(super) const IS_FAULT: u8 = 1;
/// The item goes on with the next piece.
pub(super) const GOES_ON: u8 = 2;

/// Adds a piece of an item to a packet: what it is, its length (u32, little-endian) and its bytes.
pub(super) fn add_piece(packet: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    packet.push(kind);
    add_part(packet, bytes);
}

/// What a piece takes beside its bytes.
pub(super) const PIECE_HEAD: usize = 5;

/// Takes the next piece off a packet; `None` if there is none.
pub(super) fn take_piece(packet: &mut Bytes) -> Option<(u8, Bytes)> {
    let kind = *packet.first()?;
    let mut rest = packet.slice(1..);
    let piece = take_part(&mut rest)?;
    *packet = rest;
    Some((kind, piece))
}

/// The head of an answer. The rest is the results of a chunk's items, each its length (u32,
/// little-endian) and its bytes, and then the value.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AnswerHead {
    pub(super) ending: Ending,
    pub(super) part_bytes: u64,
    /// How many packets it has sent, if it is a stream.
    pub(super) packets: u64,
    /// How many messages there were of what it has logged.
    pub(super) voices: u64,
    /// The last that it said of how far it had got.
    pub(super) progress: Option<Progress>,
}

/// What an agent tells of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Presence {
    pub(super) agent: String,
    /// It takes no more tasks.
    pub(super) is_leaving: bool,
    /// The most workers that it may have.
    pub(super) width: u32,
    pub(super) workers: Vec<WorkerNote>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerNote {
    pub(super) pid: u32,
    /// 0 starting, 1 idle, 2 busy, 3 retiring.
    pub(super) state: u8,
    pub(super) tasks_done: u64,
    /// How long it has been there, in nanoseconds.
    pub(super) age: u64,
    pub(super) rss: u64,
}

/// What the server tells of a task that was delivered as often as it may be.
#[derive(Debug, Deserialize)]
pub(super) struct Advisory {
    pub(super) consumer: String,
    pub(super) stream_seq: u64,
}

/// Puts a message together.
pub(super) fn pack<T: Serialize>(head: &T, bodies: &[&[u8]]) -> Bytes {
    let rest: usize = bodies.iter().map(|body| body.len()).sum();
    let mut message = Vec::with_capacity(128 + rest);
    message.extend_from_slice(&[0; 4]);
    // Plain data into memory: there is nothing to go wrong.
    let mut message = postcard::to_extend(head, message).unwrap_or_default();
    let length = message.len().saturating_sub(4) as u32;
    if let Some(front) = message.first_chunk_mut::<4>() {
        *front = length.to_le_bytes();
    }
    bodies.iter().for_each(|body| message.extend_from_slice(body));
    message.into()
}

/// Takes one apart; `None` if it is none.
pub(super) fn unpack<T: DeserializeOwned + 'static>(mut message: Bytes) -> Option<(T, Bytes)> {
    let length = u32::from_le_bytes(*message.first_chunk::<4>()?) as usize;
    let end = 4 + length;
    if length > MAX_HEAD || message.len() < end {
        return None;
    }
    let head = message.split_to(end).split_off(4);
    Some((decode(&head, CodecStage::DecodeResult).ok()?, message))
}

/// Takes apart what follows the head of an answer: hands on the results of a chunk's items, of which there are
/// so many bytes, for as long as they are wanted, and gives the value.
pub(super) fn take_apart(
    part_bytes: u64,
    mut rest: Bytes,
    max_message: u64,
    mut keep: impl FnMut(&[u8]) -> bool,
) -> Result<Bytes, Fault> {
    let end = usize::try_from(part_bytes).ok().filter(|end| *end <= rest.len());
    let mut parts = rest.split_to(end.ok_or_else(Fault::malformed_chunk)?);
    while let Some(part) = take_part(&mut parts) {
        if !keep(&part) {
            return Err(Fault::malformed_chunk());
        }
    }
    if !parts.is_empty() {
        return Err(Fault::malformed_chunk());
    }
    let (size, limit) = (rest.len() as u64, max_message);
    match size > limit {
        true => Err(Fault::TooLarge { size, limit }),
        false => Ok(rest),
    }
}

/// Reads what comes as an agent's word, or the server's; in words, what it says.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_as_caller(bytes: &[u8]) -> Vec<String> {
    let (message, mut said) = (Bytes::copy_from_slice(bytes), Vec::new());
    if let Some((head, rest)) = unpack::<ToCaller>(message.clone()) {
        said.push(format!("{head:?} {}", rest.len()));
    }
    if let Some((head, _)) = unpack::<Presence>(message.clone()) {
        said.push(format!("{head:?}"));
    }
    if let Ok(advisory) = serde_json::from_slice::<Advisory>(&message) {
        said.push(format!("{advisory:?}"));
    }
    let mut kept = 0;
    let keep = |part: &[u8]| {
        kept += 4 + part.len();
        kept <= 1000
    };
    if let Some((head, rest)) = unpack::<AnswerHead>(message.clone())
        && let Ok(value) = take_apart(head.part_bytes, rest, 100, keep)
    {
        assert!(kept <= 1000 && value.len() <= 100 && kept + value.len() <= bytes.len());
        let (outcome, stuck) = head.ending.into_outcome(value, || "it".into());
        said.push(format!("{:?} {stuck:?}", outcome.into_result()));
    }
    let mut packet = message;
    while let Some((kind, piece)) = take_piece(&mut packet) {
        said.push(format!("{kind} {}", piece.len()));
    }
    said
}

/// Reads what comes as a caller's word; in words, what it says.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_as_agent(bytes: &[u8]) -> Vec<String> {
    let (message, mut said) = (Bytes::copy_from_slice(bytes), Vec::new());
    if let Some((head, rest)) = unpack::<TaskHead>(message.clone()) {
        assert!(rest.len() < bytes.len());
        let id = head.key.message_id("caller");
        said.push(format!("{head:?} {id}"));
    }
    if let Some((head, _)) = unpack::<ToAgent>(message) {
        said.push(format!("{head:?}"));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_apart_as_it_was_put_together() {
        let key = Key { task: 1, attempt: 2, hop: 3 };
        let message = pack(&ToAgent::Confirm { caller: "me".into(), key }, &[b"ab", b"c"]);
        let (head, body) = unpack::<ToAgent>(message).unwrap();
        assert!(matches!(head, ToAgent::Confirm { caller, key: found } if caller == "me" && found == key));
        assert_eq!(&body[..], b"abc");
    }

    #[test]
    fn pieces_come_apart_as_they_were_put_together() {
        let mut packet = Vec::new();
        add_piece(&mut packet, IS_FAULT, b"abc");
        add_piece(&mut packet, GOES_ON, b"");
        for end in 0..packet.len() {
            let mut cut = Bytes::copy_from_slice(&packet[..end]);
            let whole = std::iter::from_fn(|| take_piece(&mut cut)).count();
            assert_eq!(whole, usize::from(end >= PIECE_HEAD + 3));
        }
        let mut packet = Bytes::from(packet);
        assert_eq!(take_piece(&mut packet).unwrap(), (IS_FAULT, Bytes::from_static(b"abc")));
        assert_eq!(take_piece(&mut packet).unwrap(), (GOES_ON, Bytes::new()));
        assert!(packet.is_empty());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let key = Key { task: 7, attempt: 1, hop: 0 };
        let message = pack(&ToAgent::Cancel { caller: "me".into(), key }, &[]);
        for end in 0..message.len() {
            assert!(unpack::<ToAgent>(message.slice(..end)).is_none());
        }
        assert!(unpack::<ToAgent>(Bytes::from_static(&[255; 64])).is_none());
        assert!(unpack::<ToCaller>(Bytes::from_static(&[3, 0, 0, 0, 200, 200, 200, 1])).is_none());
    }
}
