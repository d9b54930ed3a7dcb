//! Decodes images that come from strangers, in workers that are shut in.
//!
//! Image decoders are a favourite target: a file may be made to crash them, to have them take all
//! memory, or to run code of its maker's. So the workers here are in a sandbox without any file or
//! network access, with limits on memory and time. The program reads the files itself and passes
//! their bytes. Whatever a file does to its worker, it is one line here, and the others decode.
//!
//! ```text
//! cargo run --example untrusted_images -- FILE...
//! ```
//!
//! Without files it makes some in memory: good ones, broken ones, a bomb; and it plays two that have
//! taken over their decoder, one to read a file of the system's, and one to spin for ever.

use std::io::Cursor;
use std::time::Duration;

use futures::future::join_all;
use image::{DynamicImage, ImageFormat, ImageReader, Limits, RgbImage};
use procession::{ProcessPool, Sandbox, TaskError, TaskHandle, WorkerStdio};

/// Width, height, and the average colour; or why there is no image.
type Decoded = Result<(u32, u32, [u64; 3]), String>;

/// Runs in a worker.
fn decode(bytes: Vec<u8>) -> Decoded {
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    reader.limits(Limits::no_limits()); // the worker has limits of its own
    let pixels = reader.decode().map_err(|error| error.to_string())?.into_rgb8();
    let mut sums = [0; 3];
    for pixel in pixels.pixels() {
        (0..3).for_each(|channel| sums[channel] += u64::from(pixel.0[channel]));
    }
    let count = u64::from(pixels.width()) * u64::from(pixels.height());
    Ok((pixels.width(), pixels.height(), sums.map(|sum| sum / count.max(1))))
}

/// An image that has its decoder read what is none of its business.
fn steal(_: Vec<u8>) -> Decoded {
    let stolen = std::fs::read("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    Ok((stolen.len() as u32, 1, [0; 3]))
}

/// An image that has its decoder work for ever.
fn hang(_: Vec<u8>) -> Decoded {
    loop {
        std::hint::spin_loop();
    }
}

fn encode(format: ImageFormat) -> anyhow::Result<Vec<u8>> {
    let gradient = RgbImage::from_fn(320, 200, |x, y| image::Rgb([(x / 2) as u8, y as u8, 128]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(gradient).write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// A good image, whose header then says that it is 60000 pixels wide and as many high.
fn bomb() -> anyhow::Result<Vec<u8>> {
    let mut gif = encode(ImageFormat::Gif)?;
    let side = 60_000u16.to_le_bytes();
    gif[6..10].copy_from_slice(&[side, side].concat());
    Ok(gif)
}

fn samples(pool: &ProcessPool) -> anyhow::Result<Vec<(String, TaskHandle<Decoded>)>> {
    let (png, jpeg) = (encode(ImageFormat::Png)?, encode(ImageFormat::Jpeg)?);
    let noise = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let images = [
        ("good PNG", png.clone()),
        ("good JPEG", jpeg.clone()),
        ("truncated PNG", png[..png.len() / 2].to_vec()),
        ("truncated JPEG", jpeg[..jpeg.len() / 20].to_vec()),
        ("decompression bomb", bomb()?),
        ("random bytes", noise),
    ];
    let decoded = |(name, bytes): (&str, _)| (name.to_string(), pool.submit(decode, bytes));
    let mut tasks: Vec<_> = images.into_iter().map(decoded).collect();
    tasks.push(("thief".into(), pool.submit(steal, png.clone())));
    tasks.push(("spinner".into(), pool.task(hang, png.clone()).timeout(Duration::from_secs(1)).submit()));
    tasks.push(("good PNG again".into(), pool.submit(decode, png)));
    Ok(tasks)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder()
        .sandbox(Sandbox::new())
        .worker_memory_limit(512 << 20)
        .task_timeout(Duration::from_secs(20))
        .stderr(WorkerStdio::Capture)
        .env_clear()
        .build()?;

    let mut tasks = Vec::new();
    for path in std::env::args().skip(1) {
        let bytes = tokio::fs::read(&path).await?;
        tasks.push((path, pool.submit(decode, bytes)));
    }
    if tasks.is_empty() {
        tasks = samples(&pool)?;
    }

    let verdicts = tasks.into_iter().map(async |(name, task)| match task.await {
        Ok(Ok((width, height, [r, g, b]))) => format!("{name}: {width} x {height}, #{r:02x}{g:02x}{b:02x}"),
        Ok(Err(refusal)) => format!("{name}: refused: {}", refusal.lines().next().unwrap_or_default()),
        Err(error @ (TaskError::WorkerDied(_) | TaskError::TimedOut { .. })) => {
            format!("{name}: stopped: {error}")
        }
        Err(error) => format!("{name}: {error}"),
    });
    for verdict in join_all(verdicts).await {
        println!("{verdict}");
    }
    pool.shutdown().await;
    Ok(())
}
