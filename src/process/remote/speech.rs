//! What a pool and the steward of a worker on another machine say to each other.
//!
//! ```text
//! u32 little-endian: length of what follows | u8: what it is | the rest
//! ```
//!
//! It is a message ([`Command`] or [`Report`], in postcard), or a piece of a [`Channel`]; an empty
//! piece ends its channel. Who sends pieces has so much room ahead as the other side has given it,
//! so that a channel that nobody reads holds up no other.

use crate::process::Limits;
use crate::sys::child::Ended;
use rustix::net::sockopt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// What a steward reads first from its standard input.
pub(in crate::process) const MAGIC: [u8; 8] = *b"prcsn-1\n";

/// How much of a channel may be on its way.
pub(in crate::process) const WINDOW: usize = 256 * 1024;

/// The longest piece of a channel.
pub(in crate::process) const PIECE: usize = 32 * 1024;

/// The longest message of a steward's.
pub(in crate::process) const MAX_REPORT: usize = 64 * 1024;

/// The longest text in a report.
pub(in crate::process) const MAX_TEXT: usize = 8 * 1024;

/// The longest preamble: certificates and addresses.
pub(in crate::process) const MAX_PREAMBLE: usize = 64 * 1024;

/// A secret, or the number of an expected worker, which is as hard to guess.
pub(in crate::process) type Secret = [u8; 32];

/// How long a handshake may take, its connection made.
pub(in crate::process) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// After how long without a byte a connection is tried.
const QUIET: Duration = Duration::from_secs(60);

/// How long the answer to that may take, and how many may be missing.
const PROBE: (Duration, u32) = (Duration::from_secs(15), 4);

/// Has the kernel see to it that a connection is remembered on its way, and its loss found out, while nothing
/// is said: over that of a worker nothing comes for as long as a task runs.
pub(in crate::process) fn keep_alive(connection: impl AsFd) -> io::Result<()> {
    let connection = connection.as_fd();
    sockopt::set_socket_keepalive(connection, true)?;
    sockopt::set_tcp_keepidle(connection, QUIET)?;
    sockopt::set_tcp_keepintvl(connection, PROBE.0)?;
    Ok(sockopt::set_tcp_keepcnt(connection, PROBE.1)?)
}

/// What a steward needs to know to reach its pool. It comes through standard input: what is in the
/// arguments or the environment of a process, others can read.
#[derive(Serialize, Deserialize)]
pub(in crate::process) struct Preamble {
    /// Who is expected: not secret.
    pub(in crate::process) id: Secret,
    /// What the pool says first, so that this is told to nobody else:
    pub(in crate::process) answer: Secret,
    /// what proves that it is this steward that connects.
    pub(in crate::process) token: Secret,
    pub(in crate::process) route: Route,
    /// For how long nothing may be heard.
    pub(in crate::process) silence: Duration,
}

/// The way to the pool.
#[derive(Serialize, Deserialize)]
pub(in crate::process) enum Route {
    /// To one of these addresses: the worker has a connection of its own.
    Dial { addresses: Vec<String> },
    /// To one of these addresses, encrypted.
    Tls { addresses: Vec<String>, identity: Identity },
    /// Standard input and output.
    Stdio,
}

/// Certificates and a key, in DER.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::process) struct Identity {
    pub(in crate::process) authority: Vec<u8>,
    pub(in crate::process) certificate: Vec<u8>,
    pub(in crate::process) key: Vec<u8>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::process) enum Part {
    Control = 1,
    /// The requests and replies of a worker, as they are.
    Data = 2,
}

/// The length of what a connection begins with: who it is from, and what it is for.
pub(in crate::process) const OPENING: usize = MAGIC.len() + size_of::<Secret>() + 1;

/// What a connection begins with.
pub(in crate::process) fn opening(id: &Secret, part: Part) -> Vec<u8> {
    [&MAGIC[..], id, &[part as u8]].concat()
}

/// Who a connection says that it is from, and what it is for.
pub(in crate::process) fn read_opening(bytes: &[u8; OPENING]) -> Option<(Secret, Part)> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (id, rest) = rest.split_first_chunk::<32>()?;
    let part = match rest {
        [1] => Part::Control,
        [2] => Part::Data,
        _ => return None,
    };
    Some((*id, part))
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
pub(in crate::process) fn same(one: &Secret, other: &Secret) -> bool {
    one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// To a steward.
#[derive(Serialize, Deserialize)]
pub(in crate::process) enum Command {
    /// Start the worker.
    Start(Box<Configuration>),
    /// End it.
    Kill,
    /// So many more bytes of this channel may be sent.
    Room { channel: Channel, bytes: u32 },
    /// Say what the worker has begun.
    Look,
    /// This is the pool, which is still there.
    Beat,
}

/// How the worker is to be.
#[derive(Serialize, Deserialize)]
pub(in crate::process) struct Configuration {
    pub(in crate::process) protocol: u32,
    pub(in crate::process) build: Vec<u8>,
    pub(in crate::process) depth: u32,
    pub(in crate::process) limits: Limits,
    pub(in crate::process) clear_env: bool,
    pub(in crate::process) env: Vec<(OsString, Option<OsString>)>,
    pub(in crate::process) current_dir: Option<OsString>,
    /// Whether its standard output and standard error are wanted.
    pub(in crate::process) stdout: bool,
    pub(in crate::process) stderr: bool,
    /// The shim of the preload function, and its arguments.
    pub(in crate::process) preload: Option<(u64, Vec<u8>)>,
}

/// From a steward.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::process) enum Report {
    /// The first message.
    Hello {
        protocol: u32,
        build: Vec<u8>,
        host: String,
    },
    Started {
        pid: u32,
    },
    NotStarted(Refusal),
    /// The worker has begun the task with this number last, so many nanoseconds ago; 0 if none.
    Begun {
        seq: u64,
        ran: u64,
    },
    /// Goodbye: the worker has ended. All that it has said is on its way already.
    Ended(Farewell),
    Room {
        channel: Channel,
        bytes: u32,
    },
    Beat,
}

/// How a worker has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::process) struct Farewell {
    pub(in crate::process) ended: Ended,
    /// The number of the last task that it had begun; 0 if none.
    pub(in crate::process) begun: u64,
    /// How many nanoseconds ago.
    pub(in crate::process) ran: u64,
    /// What its handlers of faults left behind.
    pub(in crate::process) last_words: u64,
    /// Why the steward ended it, if it did so unasked.
    pub(in crate::process) why: Option<String>,
    /// The kernel has killed processes there for want of memory since it started.
    pub(in crate::process) starved: bool,
    /// Its own connection had ended at the pool's end.
    pub(in crate::process) cut_off: bool,
}

/// Why a worker was not started.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::process) enum Refusal {
    OtherBuild,
    Preload(String),
    NotConfined(String),
    Other(String),
}

/// A stream of bytes that shares a connection with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub(in crate::process) enum Channel {
    Requests = 1,
    Results = 2,
    Stdout = 3,
    Stderr = 4,
}

/// What a frame was.
pub(in crate::process) enum Frame<M> {
    Message(M),
    Piece(Channel, Vec<u8>),
}

/// A frame that is a message.
pub(in crate::process) fn message(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 5];
    frame = postcard::to_extend(message, frame).map_err(io::Error::other)?;
    finish(frame)
}

/// A frame that is a piece of a channel.
pub(in crate::process) fn piece(channel: Channel, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u32 + 1; // no longer than a `PIECE`
    [&length.to_le_bytes()[..], &[channel as u8], bytes].concat()
}

fn finish(mut frame: Vec<u8>) -> io::Result<Vec<u8>> {
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Takes frames out of what has come of a stream.
pub(in crate::process) struct Frames {
    bytes: Vec<u8>,
    /// How much of that is done with.
    done: usize,
    limit: usize,
}

impl Frames {
    /// Frames may be so long.
    pub(in crate::process) fn new(limit: usize) -> Frames {
        Frames { bytes: Vec::new(), done: 0, limit }
    }

    pub(in crate::process) fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.done));
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether so much has come that it should be looked at before more is read.
    pub(in crate::process) fn has_much(&self) -> bool {
        self.bytes.len() - self.done > 1 << 20
    }

    /// The next frame, if all of it has come.
    pub(in crate::process) fn next<M: DeserializeOwned>(&mut self) -> io::Result<Option<Frame<M>>> {
        let left = &self.bytes[self.done..];
        let Some(length) = left.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > self.limit {
            return Err(garbled("a frame of an impossible length"));
        }
        let Some(content) = left.get(4..4 + length) else { return Ok(None) };
        let (kind, rest) = (content[0], &content[1..]);
        let channel = match kind {
            0 => None,
            1 => Some(Channel::Requests),
            2 => Some(Channel::Results),
            3 => Some(Channel::Stdout),
            4 => Some(Channel::Stderr),
            _ => return Err(garbled("a frame of an unknown kind")),
        };
        let frame = match channel {
            None => Frame::Message(postcard::from_bytes(rest).map_err(|error| garbled(&error.to_string()))?),
            Some(channel) if rest.len() <= PIECE => Frame::Piece(channel, rest.to_vec()),
            Some(_) => return Err(garbled("a piece that is too long")),
        };
        self.done += 4 + length;
        Ok(Some(frame))
    }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a stream that comes in pieces of this length; in words, what it says.
#[cfg(any(test, feature = "internals"))]
pub(in crate::process) fn read_in_pieces<M: DeserializeOwned + Serialize>(
    bytes: &[u8],
    piece: usize,
    limit: usize,
) -> Vec<String> {
    let (mut frames, mut said, mut total) = (Frames::new(limit), Vec::new(), 0);
    for piece in bytes.chunks(piece.max(1)) {
        frames.add(piece);
        loop {
            match frames.next::<M>() {
                Ok(Some(Frame::Message(read))) => {
                    let written = message(&read).expect("what was read can be written");
                    let mut again = Frames::new(usize::MAX);
                    again.add(&written);
                    assert!(matches!(again.next::<M>(), Ok(Some(Frame::Message(_)))));
                    said.push("a message".to_owned());
                }
                Ok(Some(Frame::Piece(channel, bytes))) => {
                    assert!(bytes.len() <= PIECE);
                    total += bytes.len();
                    said.push(format!("{} bytes of {channel:?}", bytes.len()));
                }
                Ok(None) => break,
                Err(error) => {
                    said.push(error.to_string());
                    return said;
                }
            }
        }
    }
    assert!(total <= bytes.len());
    said
}

/// A text that is no longer than it may be.
pub(in crate::process) fn cut(text: impl ToString) -> String {
    let mut text = text.to_string();
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_arrive_however_the_stream_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..10),
            cut in 1usize..700,
        ) {
            let mut stream = message(&Report::Started { pid: 7 }).unwrap();
            for bytes in &pieces {
                stream.extend(piece(Channel::Results, bytes));
            }
            let (mut frames, mut seen, mut started) = (Frames::new(MAX_REPORT), Vec::new(), 0);
            for part in stream.chunks(cut) {
                frames.add(part);
                while let Some(frame) = frames.next::<Report>().unwrap() {
                    match frame {
                        Frame::Message(Report::Started { pid: 7 }) => started += 1,
                        Frame::Piece(Channel::Results, bytes) => seen.push(bytes),
                        _ => prop_assert!(false),
                    }
                }
            }
            prop_assert_eq!((started, seen), (1, pieces));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = Frames::new(100);
            frames.add(&bytes);
            while let Ok(Some(_)) = frames.next::<Report>() {}
        }
    }

    #[test]
    fn a_length_over_the_limit_is_an_error() {
        let mut frames = Frames::new(MAX_REPORT);
        frames.add(&u32::MAX.to_le_bytes());
        assert!(frames.next::<Report>().is_err());
    }

    #[test]
    fn an_opening_is_read_as_it_was_written() {
        let bytes = opening(&[7; 32], Part::Data);
        assert_eq!(read_opening(bytes[..].try_into().unwrap()), Some(([7; 32], Part::Data)));
        for at in [0, OPENING - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0xff;
            assert_eq!(read_opening(wrong[..].try_into().unwrap()), None);
        }
        assert!(same(&[1; 32], &[1; 32]));
        let mut other = [1; 32];
        other[31] = 2;
        assert!(!same(&[1; 32], &other));
    }
}
