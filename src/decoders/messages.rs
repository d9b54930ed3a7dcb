//! Messages of pipes and sockets.

use super::Input;
use crate::task::{Fault, Shown, TaskError};
use crate::wire::{FrameCodec, Incoming, PROTOCOL, Reply, write_frame};
use bytes::BytesMut;
use tokio_util::codec::Decoder;

/// The stream of replies, in pieces of any length.
pub(super) fn frames(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte()).max(1);
    let mut codec = FrameCodec::<Reply>::new(0);
    let mut buffer = BytesMut::new();
    let mut stream = input.0;
    while !input.is_empty() {
        buffer.extend_from_slice(input.bytes(piece));
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    let length = Input(stream).word() as u32 as usize;
                    let (content, rest) = stream[4..].split_at(length);
                    stream = rest;
                    let body = postcard::take_from_bytes::<Reply>(content).expect("it was one").1;
                    assert_eq!(frame.body, body);
                    says_the_same(&frame.head, body);
                }
                Ok(None) => break,
                Err(error) => return drop(error.to_string()),
            }
        }
    }
    assert_eq!(buffer, stream);
}

/// What was read can be written, and is then read as the same.
fn says_the_same(head: &Reply, body: &[u8]) {
    let mut written = Vec::new();
    write_frame(head, body.len(), &mut written);
    written.extend_from_slice(body);
    let again = FrameCodec::<Reply>::new(1 << 30).decode(&mut BytesMut::from(&written[..]));
    let again = again.expect("what is written is a frame").expect("it is whole");
    assert_eq!(format!("{head:?}"), format!("{:?}", again.head));
    assert_eq!(again.body, body);
}

/// What a started worker says first.
pub(super) fn greetings(data: &[u8]) {
    let mut incoming = Incoming::new(None, 1 << 16, 64);
    incoming.buffer(data.len()).extend_from_slice(data);
    while let Ok(Some(frame)) = incoming.next_frame() {
        match frame.head {
            Reply::Hello { protocol, build } => {
                assert!(build.len() <= data.len());
                let _ = protocol == PROTOCOL && build == crate::wire::build_identity();
            }
            Reply::NotReady { fault } => read(fault),
            _ => {}
        }
    }
}

/// What a fork server says.
pub(super) fn notices(data: &[u8]) {
    if let Some((notice, bytes)) = crate::process::read_notice(data) {
        let (again, _) = crate::process::read_notice(&bytes).expect("what is written is a notice");
        assert_eq!(notice, again);
    }
}

/// Why a task has no value.
pub(super) fn faults(data: &[u8]) {
    if let Ok(fault) = postcard::from_bytes::<Fault>(data) {
        let bytes = postcard::to_stdvec(&fault).expect("what was read can be written");
        assert!(postcard::from_bytes::<Fault>(&bytes).is_ok());
        read(fault);
    }
}

/// Looks at all that an error shows.
fn read(fault: Fault) {
    let error = TaskError::from(fault);
    let shown = format!("{error} {error:#} {error:?}");
    assert!(!shown.is_empty() && !shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    match error {
        TaskError::Panicked(panic) => {
            let place = panic.location();
            assert!(place.starts_with(place.file()));
            assert!(shown.contains(&Shown(panic.message()).to_string()));
            let _ = (panic.backtrace(), panic.thread(), place.line(), place.column());
        }
        TaskError::Failed(error) => {
            assert!(error.chain().count() <= Fault::MAX_CHAIN);
            let _ = (error.backtrace(), format!("{error:#}"));
        }
        TaskError::Codec(error) => {
            let texts = [error.cause(), error.type_name()];
            assert!(texts.into_iter().all(|text| shown.contains(&Shown(text).to_string())));
        }
        _ => {}
    }
}
