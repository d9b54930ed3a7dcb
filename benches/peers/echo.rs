//! Large payloads there and back: the bytes of one way over half the time.
//!
//! A result is the next task's argument, so that only the pools' own copies count. The bare echoes
//! use the same memory over and over.

use super::bench::{Bench, PROCESSION, PROCSPAWN};
use super::contest::{Contest, Figures, Metric};
use super::pipe_echo::PipeEcho;
use super::python::Kind;
use super::shared_echo::SharedEcho;
use super::svg::Plot;
use super::tasks::same;
use anyhow::ensure;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    measure_size(bench, 1 << 20, bench.pick([40, 4], [200, 20]))?;
    measure_size(bench, 16 << 20, bench.pick([4, 1], [16, 3]))
}

/// So many echoes a round, for those that are fast and those that are slow.
fn measure_size(bench: &Bench, size: usize, [count, slow_count]: [u32; 2]) -> anyhow::Result<()> {
    let title = format!("echo of {} MiB, each way", size >> 20);
    let mut contest = Contest::new([Metric::more(title, "GiB/s")]);
    enter_procession(bench, &mut contest, size, count)?;
    enter_bare(bench, &mut contest, size, count)?;
    let other = procspawn::Pool::new(1)?;
    contest.enter(format!("{PROCSPAWN}, Vec<u8>"), move || {
        let mut bytes = vec![1; size];
        let begin = Instant::now();
        for _ in 0..slow_count {
            bytes = other.spawn(bytes, same::<Vec<u8>>).join()?;
        }
        gib_per_second(begin, size, slow_count, bytes.len())
    });
    bench.enter_python(&mut contest, Kind::Executor, 1, &format!("echo {size} {slow_count}"))?;
    let outcomes = contest.run(bench.rounds());
    bench.report.add_all(&outcomes)?;
    bench.draw(&format!("echo-{}-mib.svg", size >> 20), || Plot::rows(&outcomes[0]))
}

/// Each type of payload has a pool of its own, so that none warms up another's buffers.
fn enter_procession<'a>(
    bench: &'a Bench,
    contest: &mut Contest<'a>,
    size: usize,
    count: u32,
) -> anyhow::Result<()> {
    macro_rules! enter {
        ($name:literal, $type:ty, $payload:expr) => {
            let pool = bench.pool(1)?;
            contest.enter(format!("{PROCESSION}, {}", $name), move || {
                let pool = pool.clone();
                let mut payload: $type = $payload;
                bench.run(async move {
                    let begin = Instant::now();
                    for _ in 0..count {
                        payload = pool.submit(same::<$type>, payload).await?;
                    }
                    gib_per_second(begin, size, count, payload.len())
                })
            });
        };
    }
    enter!("Vec<u8>", Vec<u8>, vec![1; size]);
    enter!("bytes::Bytes", Bytes, Bytes::from(vec![1; size]));
    enter!("String", String, "x".repeat(size));
    Ok(())
}

fn enter_bare<'a>(
    bench: &'a Bench,
    contest: &mut Contest<'a>,
    size: usize,
    count: u32,
) -> anyhow::Result<()> {
    macro_rules! enter {
        ($name:literal, $echo:expr) => {
            let echo = Arc::new(Mutex::new(bench.within(|| $echo)?));
            contest.enter($name, move || {
                let echo = echo.clone();
                bench.run(async move {
                    let mut echo = echo.lock().await;
                    let mut bytes = vec![1; size];
                    let begin = Instant::now();
                    for _ in 0..count {
                        echo.bytes(&mut bytes).await?;
                    }
                    gib_per_second(begin, size, count, bytes.len())
                })
            });
        };
    }
    enter!("shared memory, answered in place", SharedEcho::start(size, false));
    enter!("shared memory, copied out and in", SharedEcho::start(size, true));
    enter!("pipe echo", PipeEcho::start());
    Ok(())
}

fn gib_per_second(begin: Instant, size: usize, count: u32, length: usize) -> anyhow::Result<Figures> {
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(length == size, "{length} bytes came back, not {size}");
    let bytes_both_ways = 2.0 * size as f64 * f64::from(count);
    Ok(vec![bytes_both_ways / seconds / f64::from(1 << 30)])
}
