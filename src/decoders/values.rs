//! What tasks have come to, and what they have written.

use super::Input;
use crate::process::Tail;
use crate::task::{CodecStage, TaskError, from_body, to_body};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Serialize, Deserialize)]
struct Inner {
    name: String,
    bytes: Vec<u8>,
    at: Option<(f64, char)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Outer {
    Nothing,
    One(Inner),
    Many { inner: Vec<Inner>, flag: bool },
}

/// A value, of one of several types.
pub(super) fn values(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let body = Bytes::copy_from_slice(input.0);
    match kind % 12 {
        0 => read::<Vec<u8>>(body),
        1 => read::<String>(body),
        2 => read::<[Option<u16>; 4]>(body),
        3 => read::<(u64, String, [u32; 3])>(body),
        4 => read::<Outer>(body),
        5 => read::<BTreeMap<String, Vec<u32>>>(body),
        6 => drop(read_any::<HashMap<u32, Option<String>>>(body)),
        7 => read::<(Vec<u8>, Vec<u8>, i16)>(body),
        8 => read::<Vec<Option<String>>>(body),
        9 => read::<Result<Vec<String>, (i64, f32)>>(body),
        10 => read::<Vec<(char, bool, u8)>>(body),
        _ => read::<Option<Box<[i128]>>>(body),
    }
}

/// What can be read can be written, and is then read as the same.
fn read<T: Serialize + DeserializeOwned + 'static>(body: Bytes) {
    let Some(value) = read_any::<T>(body) else { return };
    let written = to_body(value, u64::MAX, CodecStage::EncodeResult).expect("it can be written");
    let again: T = from_body(written.clone(), CodecStage::DecodeResult).expect("it can be read");
    let again = to_body(again, u64::MAX, CodecStage::EncodeResult).expect("it can be written again");
    assert_eq!(written, again);
}

fn read_any<T: DeserializeOwned + 'static>(body: Bytes) -> Option<T> {
    from_body::<T>(body, CodecStage::DecodeResult)
        .map_err(|fault| assert!(matches!(TaskError::from(fault), TaskError::Codec(_))))
        .ok()
}

/// The results of a chunk's items.
pub(super) fn parts(data: &[u8]) {
    let mut input = Input(data);
    let count = usize::from(input.byte());
    let bytes = Bytes::copy_from_slice(input.0);
    let results = crate::pool::results_of_parts(count, bytes);
    assert!(results.len() <= count);
    let values = results.iter().flatten().map(Bytes::len);
    // Each has its length and its kind before it.
    assert!(values.map(|length| length + 5).sum::<usize>() <= input.0.len());
    for result in results {
        match result {
            Ok(value) => drop(read_any::<u64>(value)),
            Err(error) => assert!(!format!("{error} {error:?}").is_empty()),
        }
    }
}

/// The items of a stream, as they come and as they are taken.
pub(super) fn items(data: &[u8]) {
    let mut input = Input(data);
    let (window, max_item) = (1 + u64::from(input.byte()), u64::from(input.byte()));
    let stream = crate::pool::StreamItems::new(window, max_item);
    let (mut room, mut waiting) = (window, 0);
    while !input.is_empty() {
        let (kind, length) = (input.byte(), usize::from(input.byte()));
        if kind % 4 < 3 {
            let (is_fault, body) = (kind % 4 == 2, input.bytes(length));
            let fits = room > 0 && (is_fault || body.len() as u64 <= max_item);
            assert_eq!(stream.add(is_fault, body), fits);
            (room, waiting) = (room - u64::from(fits), waiting + u64::from(fits));
            continue;
        }
        let Some((item, granted)) = stream.take() else {
            assert_eq!(waiting, 0);
            continue;
        };
        (room, waiting) = (room + granted, waiting - 1);
        assert!(room + waiting <= window);
        match item {
            Ok(value) => drop(read_any::<(u32, String)>(value)),
            Err(error) => assert!(!format!("{error} {error:?}").is_empty()),
        }
    }
}

/// The end of what was written to standard error.
pub(super) fn tails(data: &[u8]) {
    const TAIL: usize = 8 * 1024;
    let tail = Tail::default();
    let mut input = Input(data);
    // Much at a time, and more than is kept.
    let times = usize::from(input.byte()) * 2;
    let piece = usize::from(input.byte()).max(1);
    let mut written = Vec::new();
    while !input.is_empty() {
        let bytes = input.bytes(piece).repeat(1 + times % 50);
        tail.push(&bytes);
        written.extend_from_slice(&bytes);
        written.drain(..written.len().saturating_sub(TAIL));
    }
    assert_eq!(tail.text(), String::from_utf8_lossy(&written));
}

/// What a task has logged.
pub(super) fn voice(data: &[u8]) {
    use crate::wire::voice::{Head, LONGEST_NAME, MOST_CAUSES, MOST_FIELDS, Value, What};
    let Some((head, rest)) = crate::wire::voice::read_head(data) else { return };
    match &head.what {
        What::Event { site, .. } | What::Span { site, .. } => {
            let texts = [Some(site.name), Some(site.target), site.module, site.file];
            assert!(texts.into_iter().flatten().all(|text| text.len() <= LONGEST_NAME));
            assert!(site.fields.len() <= MOST_FIELDS);
        }
        What::Log { target, .. } => assert!(target.len() <= LONGEST_NAME),
        What::Nothing | What::Recorded { .. } | What::Follows { .. } => {}
    }
    let bytes = postcard::to_stdvec(&head).expect("what was read can be written");
    let (again, _) = postcard::take_from_bytes::<Head<'_>>(&bytes).expect("what is written is a head");
    assert_eq!(format!("{head:?}"), format!("{again:?}"));
    let values = crate::wire::voice::read_values(rest);
    let pairs = crate::wire::voice::read_pairs(rest);
    assert!(values.len() <= MOST_FIELDS && pairs.len() <= MOST_FIELDS);
    let causes = values.iter().map(|(_, value)| value).chain(pairs.iter().map(|(_, value)| value));
    assert!(
        causes.into_iter().all(|value| !matches!(value, Value::Error(causes) if causes.len() > MOST_CAUSES))
    );
}
