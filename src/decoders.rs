//! What reads that which a worker, a fork server or another machine has written, each as a function of bytes, for the
//! fuzzing in `tests/fuzz`. Not for use.
//!
//! None of them may panic, take for ever, or make more memory than [`Decoder::allowance`] says. What
//! else holds for each is asserted.

#[cfg(any(feature = "nats", feature = "remote"))]
mod elsewhere;
mod memory;
mod messages;
mod values;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Its name, which is also that of its fuzz target and of its corpus.
    pub name: &'static str,
    /// Reads what is given to it.
    pub run: fn(&[u8]),
    /// How much memory it may make for nothing,
    pub constant: usize,
    /// and how much for each byte.
    pub factor: usize,
}

impl Decoder {
    /// The most memory that it may have at a time when it reads so many bytes.
    pub fn allowance(&self, bytes: usize) -> usize {
        self.constant + self.factor * bytes
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<&'static Decoder> {
        DECODERS.iter().find(|decoder| decoder.name == name)
    }
}

const fn decoder(name: &'static str, run: fn(&[u8]), constant: usize, factor: usize) -> Decoder {
    Decoder { name, run, constant, factor }
}

/// What serde makes ahead for a sequence, whatever length that claims; and as much again as it grows.
const AHEAD: usize = 3 << 20;

/// How many bytes of memory one byte of a message may become: an empty string, in a vector that has
/// just doubled its room.
const GROWTH: usize = 64;

/// All of them.
pub const DECODERS: &[Decoder] = &[
    decoder("frames", messages::frames, AHEAD, GROWTH),
    decoder("greetings", messages::greetings, AHEAD, GROWTH),
    decoder("notices", messages::notices, AHEAD, GROWTH),
    decoder("faults", messages::faults, AHEAD, GROWTH),
    decoder("replies", memory::replies, AHEAD, GROWTH),
    decoder("ring", memory::ring, 1 << 20, GROWTH),
    decoder("places", memory::places, 34 << 20, GROWTH),
    decoder("voice", values::voice, AHEAD, 2 * GROWTH),
    decoder("slots", memory::slots, 64 << 10, GROWTH),
    decoder("whereabouts", memory::whereabouts, 256 << 10, GROWTH),
    decoder("values", values::values, AHEAD, GROWTH),
    decoder("parts", values::parts, AHEAD, 2 * GROWTH),
    decoder("items", values::items, AHEAD, 2 * GROWTH),
    decoder("tails", values::tails, 256 << 10, GROWTH),
    #[cfg(feature = "remote")]
    decoder("reports", elsewhere::reports, AHEAD, GROWTH),
    #[cfg(feature = "remote")]
    decoder("commands", elsewhere::commands, AHEAD, GROWTH),
    #[cfg(feature = "remote")]
    decoder("knocks", elsewhere::knocks, 64 << 10, GROWTH),
    #[cfg(feature = "nats")]
    decoder("agents", elsewhere::agents, AHEAD, 2 * GROWTH),
    #[cfg(feature = "nats")]
    decoder("callers", elsewhere::callers, AHEAD, GROWTH),
];

/// Takes numbers and lengths off the front of what a decoder is given.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let taken = self.bytes(8);
        word[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(word)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
