//! Replays what fuzzing has found to be worth keeping, and inputs made from that.

use super::{DECODERS, Decoder};
use crate::sys::counting::peak_of;
use fastrand::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// How many inputs are made for each decoder, and how many are read of what was kept.
const MUTATIONS: usize = if cfg!(miri) { 4 } else { 400 };
const KEPT: usize = if cfg!(miri) { 8 } else { usize::MAX };

/// These share memory with a worker, which miri cannot.
const SHARING: [&str; 5] = ["replies", "ring", "places", "slots", "whereabouts"];

/// The longest input that is made.
const LONGEST: usize = 8 * 1024;

fn check(decoder: &Decoder, data: &[u8]) {
    let mut peak = 0;
    let done = catch_unwind(AssertUnwindSafe(|| peak = peak_of(|| (decoder.run)(data))));
    assert!(done.is_ok(), "{} panics at {data:02x?}", decoder.name);
    let allowance = decoder.allowance(data.len());
    assert!(peak <= allowance, "{} makes {peak} bytes, not {allowance}, of {data:02x?}", decoder.name);
}

fn corpus(decoder: &Decoder) -> Vec<Vec<u8>> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    if !fuzz.exists() {
        // It is a package of its own, and so not part of this one where that is published.
        return vec![vec![0; 64]];
    }
    let folder = fuzz.join("corpus").join(decoder.name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn mutate(random: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[random.usize(0..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(0..=data.len());
        match random.usize(0..6) {
            0 if at < data.len() => data[at] = random.u8(..),
            1 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
            2 => data.insert(at, [0, 1, 127, 128, 255][random.usize(0..5)]),
            3 => data.truncate(at),
            4 => {
                let other = &corpus[random.usize(0..corpus.len())];
                data.splice(at.., other[random.usize(0..=other.len())..].iter().copied());
            }
            _ => {
                let mut word = [0; 8];
                random.fill(&mut word);
                data.splice(at..data.len().min(at + 8), word);
            }
        }
    }
    data.truncate(LONGEST);
    data
}

#[test]
fn what_was_kept_is_read_as_it_should_be_and_so_is_what_is_made_of_it() {
    for decoder in DECODERS.iter().filter(|decoder| !cfg!(miri) || !SHARING.contains(&decoder.name)) {
        let corpus = corpus(decoder);
        assert!(!corpus.is_empty(), "nothing is kept for {}", decoder.name);
        corpus.iter().take(KEPT).for_each(|data| check(decoder, data));
        let mut random = Rng::with_seed(7);
        for _ in 0..MUTATIONS {
            check(decoder, &mutate(&mut random, &corpus));
        }
    }
}
