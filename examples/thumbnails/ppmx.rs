//! A decoder for a made-up format, written as carelessly as real ones sometimes are, so that what goes
//! wrong in workers is shown by real faults. It trusts its input: a copy from before the first pixel
//! makes it panic, a wrong checksum makes it abort, and its jumps lead it in circles.
//!
//! A file is `PPMX`, the width and the height (`u16`, little-endian, as all numbers), and operations:
//!
//! | bytes | meaning |
//! | --- | --- |
//! | `R` count:`u16` red green blue | so many pixels of a colour |
//! | `C` back:`u16` count:`u16` | copies pixels, from so many back |
//! | `J` to:`u16` | goes on at that offset of the file |
//! | `G` .. `E` | a group, with operations of its own |
//! | `S` sum:`u8` | the low byte of the sum of all colours so far |
//! | `E` | the end of the group, or of the image |

use image::RgbImage;

pub(crate) const MAGIC: &[u8] = b"PPMX";

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    colours: Vec<u8>,
}

/// The size that the header claims, if there is a header.
pub(crate) fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let size: [u8; 4] = bytes.strip_prefix(MAGIC)?.get(..4)?.try_into().ok()?;
    let [width, height] = [[size[0], size[1]], [size[2], size[3]]].map(u16::from_le_bytes);
    Some((width.into(), height.into()))
}

pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let (width, height) = dimensions(bytes).ok_or("the header is cut off")?;
    let mut decoder = Decoder { bytes, at: MAGIC.len() + 4, colours: Vec::new() };
    decoder.group();
    let pixels = decoder.colours.len() / 3;
    RgbImage::from_raw(width, height, decoder.colours)
        .ok_or_else(|| format!("there are {pixels} pixels, not {width} x {height}"))
}

impl Decoder<'_> {
    /// Returns how deep the groups within were nested.
    fn group(&mut self) -> u32 {
        let mut depth = 0;
        loop {
            match self.byte() {
                b'R' => self.run(),
                b'C' => self.copy(),
                b'J' => self.at = self.number(),
                b'G' => depth = depth.max(1 + self.group()),
                b'S' => self.check(),
                b'E' => return depth,
                other => panic!("no such operation: {other:#04x}"),
            }
        }
    }

    fn run(&mut self) {
        let count = self.number();
        let colour = [self.byte(), self.byte(), self.byte()];
        self.colours.extend(std::iter::repeat_n(colour, count).flatten());
    }

    fn copy(&mut self) {
        let (back, count) = (self.number(), self.number());
        let start = self.colours.len().checked_sub(3 * back).expect("a copy from before the first pixel");
        self.colours.extend_from_within(start..start + 3 * count);
    }

    /// As `assert` does in C.
    fn check(&mut self) {
        let sum = self.colours.iter().fold(0u8, |sum, colour| sum.wrapping_add(*colour));
        if sum != self.byte() {
            eprintln!("ppmx.c: assertion `sum == expected` failed");
            std::process::abort();
        }
    }

    fn byte(&mut self) -> u8 {
        self.at += 1;
        self.bytes[self.at - 1]
    }

    fn number(&mut self) -> usize {
        u16::from_le_bytes([self.byte(), self.byte()]).into()
    }
}
