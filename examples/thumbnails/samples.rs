//! Files to try the service with: good, broken and hostile ones. All are made here, none is kept.

use std::io::Cursor;
use std::sync::LazyLock;

use bytes::Bytes;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The status that it is answered with.
    pub(crate) status: u16,
    pub(crate) bytes: Bytes,
}

pub(crate) static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let (png, jpeg) = (encoded(ImageFormat::Png), encoded(ImageFormat::Jpeg));
    let (half_png, some_jpeg) = (png[..png.len() / 2].to_vec(), jpeg[..jpeg.len() / 20].to_vec());
    let noise = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let samples = [
        ("photo.jpg", 200, "a good JPEG", jpeg),
        ("picture.png", 200, "a good PNG", png),
        ("flag.ppmx", 200, "a good file of a made-up format with a careless decoder", flag()),
        ("half.png", 422, "a PNG that breaks off in its middle", half_png),
        ("start.jpg", 422, "the start of a JPEG", some_jpeg),
        ("noise.bin", 415, "random bytes", noise),
        ("claims.png", 413, "a PNG that claims to be 60000 x 60000", zeros(60_000, 60_000, 1000)),
        ("expands.png", 413, "2 MB that are 360 MB when decoded: a real PNG", zeros_in_full(10_000, 9_000)),
        (
            "grows.ppmx",
            413,
            "repeats itself until the memory is used up",
            ppmx(b"R\xff\xff\x80\x80\x80C\xff\xff\xff\xffJ\x0e\x00"),
        ),
        ("panics.ppmx", 422, "makes the decoder panic", ppmx(b"C\x01\x00\x01\x00E")),
        ("nests.ppmx", 422, "groups within groups, until the stack overflows", ppmx(b"GJ\x08\x00")),
        ("aborts.ppmx", 500, "crashes the worker: an assertion fails, as in C", ppmx(b"S\x01E")),
        ("endless.ppmx", 504, "keeps the decoder running in a circle", ppmx(b"J\x08\x00")),
    ];
    let sample = |(name, status, about, bytes): (_, _, _, Vec<u8>)| Sample {
        name,
        about,
        status,
        bytes: bytes.into(),
    };
    samples.into_iter().map(sample).collect()
});

pub(crate) fn sample(name: &str) -> Option<&'static Sample> {
    SAMPLES.iter().find(|sample| sample.name == name)
}

/// Hills at sunset.
fn picture() -> RgbImage {
    const HILLS: [(f32, f32, f32, [u8; 3]); 3] = [
        (190.0, 60.0, 0.9, [88, 62, 110]),
        (225.0, 45.0, 2.1, [58, 44, 88]),
        (262.0, 75.0, 4.0, [30, 28, 60]),
    ];
    RgbImage::from_fn(480, 320, |x, y| {
        let (x, y) = (x as f32, y as f32);
        let hill = HILLS.iter().rev().find(|(base, width, phase, _)| {
            y > base + 14.0 * (x / width + phase).sin() + 7.0 * (x / width * 2.3 + phase).cos()
        });
        if let Some((.., colour)) = hill {
            return Rgb(*colour);
        }
        let from_sun = ((x - 330.0).powi(2) + (y - 150.0).powi(2)).sqrt();
        if from_sun < 38.0 {
            return Rgb([255, 236, 190]);
        }
        let (height, glow) = (y / 260.0, (1.0 - from_sun / 330.0).max(0.0).powi(2));
        let mix =
            |from: f32, to: f32, light: f32| (from + (to - from) * height + light * glow).min(255.0) as u8;
        Rgb([mix(60.0, 240.0, 120.0), mix(60.0, 130.0, 90.0), mix(120.0, 110.0, 20.0)])
    })
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(picture()).write_to(&mut bytes, format).expect("memory takes all that is written");
    bytes.into_inner()
}

/// A header of 64 x 64, and these operations from offset 8.
fn ppmx(operations: &[u8]) -> Vec<u8> {
    [b"PPMX\x40\x00\x40\x00", operations].concat()
}

/// Stripes: of each one half is a run, and the other a copy of it.
fn flag() -> Vec<u8> {
    let stripes = [[228, 3, 3], [255, 140, 0], [255, 237, 0], [0, 128, 38]];
    let stripe = |[red, green, blue]: [u8; 3]| [b'R', 0, 2, red, green, blue, b'C', 0, 2, 0, 2];
    // There are 1024 pixels of each colour, so the low byte of their sum is 0.
    ppmx(&[&stripes.map(stripe).concat()[..], b"S\x00E"].concat())
}

/// A PNG, red, green, blue and alpha all zero, with all of its pixels.
pub(crate) fn zeros_in_full(width: u32, height: u32) -> Vec<u8> {
    zeros(width, height, height as usize * (1 + 4 * width as usize))
}

/// The same, with only so many bytes of its pixels.
fn zeros(width: u32, height: u32, length: usize) -> Vec<u8> {
    const EIGHT_BITS_RGBA: [u8; 5] = [8, 6, 0, 0, 0];
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &EIGHT_BITS_RGBA].concat();
    let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &zlib_of_zeros(length)), chunk(b"IEND", &[])];
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let checked = [&kind[..], data].concat();
    let sum = crc32fast::hash(&checked).to_be_bytes();
    [&(data.len() as u32).to_be_bytes()[..], &checked, &sum].concat()
}

/// Zeros as one block with deflate's fixed codes, by hand: compressing them honestly takes as long as they
/// are many.
fn zlib_of_zeros(length: usize) -> Vec<u8> {
    const LONGEST: usize = 258;
    let mut bits = Bits(vec![0x78, 0x01], 0, 0);
    bits.push(0b011, 3); // the last block, of fixed codes
    let repeated = length - 1;
    for _ in 0..1 + repeated % LONGEST {
        bits.push(0b0000_1100, 8); // one zero
    }
    for _ in 0..repeated / LONGEST {
        bits.push(0b1010_0011, 8); // the last byte again, 258 times: the length
        bits.push(0, 5); // and the distance
    }
    bits.push(0, 7); // the end
    bits.push(0, 7); // fills up the last byte
    let mut bytes = bits.0;
    let adler = ((length % 65_521) as u32) << 16 | 1;
    bytes.extend(adler.to_be_bytes());
    bytes
}

/// Bytes, and bits that do not make up one yet.
struct Bits(Vec<u8>, u32, u32);

impl Bits {
    /// The first bit is the lowest.
    fn push(&mut self, bits: u32, count: u32) {
        self.1 |= bits << self.2;
        self.2 += count;
        while self.2 >= 8 {
            self.0.push(self.1 as u8);
            self.1 >>= 8;
            self.2 -= 8;
        }
    }
}
