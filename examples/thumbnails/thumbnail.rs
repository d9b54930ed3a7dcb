//! What runs in a worker: from the bytes of an upload to those of a thumbnail.

use std::io::Cursor;

use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

use crate::ppmx;

/// An image of more pixels is refused by its header, before any memory is spent on it.
pub(crate) const MOST_PIXELS: u64 = 100_000_000;

const JPEG_QUALITY: u8 = 85;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Thumbnail {
    pub(crate) is_jpeg: bool,
    /// The size of the upload.
    pub(crate) original: (u32, u32),
    pub(crate) bytes: Bytes,
}

/// What the decoders themselves find wrong with an upload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    UnknownFormat,
    TooManyPixels { width: u32, height: u32 },
    Broken(String),
}

/// The upload as an image that fits into `width` and `height`: a JPEG of a JPEG, a PNG of all others.
pub(crate) fn make(upload: Bytes, width: u32, height: u32) -> Result<Thumbnail, Refusal> {
    let is_jpeg = image::guess_format(&upload).is_ok_and(|format| format == ImageFormat::Jpeg);
    let image = if upload.starts_with(ppmx::MAGIC) { decode_ppmx(&upload)? } else { decode(&upload)? };
    let original = (image.width(), image.height());
    let fits = image.width() <= width && image.height() <= height;
    let small = if fits { image } else { image.thumbnail(width, height) };
    let bytes = encode(&small, is_jpeg).map_err(broken)?;
    Ok(Thumbnail { is_jpeg, original, bytes })
}

fn decode_ppmx(upload: &[u8]) -> Result<DynamicImage, Refusal> {
    if let Some(size) = ppmx::dimensions(upload) {
        check_pixels(size)?;
    }
    ppmx::decode(upload).map(DynamicImage::from).map_err(Refusal::Broken)
}

fn decode(upload: &[u8]) -> Result<DynamicImage, Refusal> {
    let format = image::guess_format(upload).map_err(|_| Refusal::UnknownFormat)?;
    let mut reader = ImageReader::with_format(Cursor::new(upload), format);
    reader.no_limits(); // the worker has limits of its own
    let mut decoder = reader.into_decoder().map_err(broken)?;
    check_pixels(decoder.dimensions())?;
    // Cameras store what they see, and which side of it is up.
    let orientation = decoder.orientation().map_err(broken)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn check_pixels((width, height): (u32, u32)) -> Result<(), Refusal> {
    match u64::from(width) * u64::from(height) {
        0..=MOST_PIXELS => Ok(()),
        _ => Err(Refusal::TooManyPixels { width, height }),
    }
}

fn broken(error: ImageError) -> Refusal {
    match error {
        ImageError::Unsupported(_) => Refusal::UnknownFormat,
        _ => Refusal::Broken(error.to_string()),
    }
}

fn encode(image: &DynamicImage, as_jpeg: bool) -> Result<Bytes, ImageError> {
    let mut bytes = Cursor::new(Vec::new());
    if as_jpeg {
        image.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
    } else {
        image.write_to(&mut bytes, ImageFormat::Png)?;
    }
    Ok(bytes.into_inner().into())
}
