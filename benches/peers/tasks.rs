//! The functions that pools are given to run, and ways to have them run.

use super::contest::{Figures, quantile};
use anyhow::ensure;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::time::Instant;

/// How many tasks are kept in flight where throughput is measured.
pub(crate) const WINDOW: usize = 4096;

/// Does nothing, and shows that it was done.
pub(crate) fn same<T>(value: T) -> T {
    value
}

/// Ends the process that it runs in.
pub(crate) fn abort(_: u64) -> u64 {
    std::process::abort()
}

/// Which process it runs in.
pub(crate) fn pid(_: u64) -> u32 {
    std::process::id()
}

/// Keeps up to `window` futures in flight until `tasks` have passed; tasks a second.
///
/// `start(n)` must yield `n`.
pub(crate) async fn rate<F, E>(
    tasks: u64,
    window: usize,
    mut start: impl FnMut(u64) -> F,
) -> anyhow::Result<Figures>
where
    F: Future<Output = Result<u64, E>>,
    anyhow::Error: From<E>,
{
    let begin = Instant::now();
    let mut flying = FuturesUnordered::new();
    let mut sum = 0;
    for n in 0..tasks {
        if flying.len() == window
            && let Some(done) = flying.next().await
        {
            sum += done?;
        }
        flying.push(start(n));
    }
    while let Some(done) = flying.next().await {
        sum += done?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(sum == (0..tasks).sum(), "results are missing or wrong");
    Ok(vec![tasks as f64 / seconds])
}

/// The same for what blocks: the oldest of the window is waited for.
pub(crate) fn blocking_rate<W>(
    tasks: u64,
    window: usize,
    mut start: impl FnMut(u64) -> W,
) -> anyhow::Result<Figures>
where
    W: FnOnce() -> anyhow::Result<u64>,
{
    let begin = Instant::now();
    let mut flying: VecDeque<W> = VecDeque::new();
    let mut sum = 0;
    for n in 0..tasks {
        if flying.len() == window
            && let Some(wait) = flying.pop_front()
        {
            sum += wait()?;
        }
        flying.push_back(start(n));
    }
    for wait in flying {
        sum += wait()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(sum == (0..tasks).sum(), "results are missing or wrong");
    Ok(vec![tasks as f64 / seconds])
}

/// One task after another; the median and the 99th percentile of their times, in microseconds.
pub(crate) async fn one_by_one<F, E>(tasks: u64, mut run: impl FnMut(u64) -> F) -> anyhow::Result<Figures>
where
    F: Future<Output = Result<u64, E>>,
    anyhow::Error: From<E>,
{
    let mut times = Vec::with_capacity(tasks as usize);
    for n in 0..tasks {
        let begin = Instant::now();
        let value = run(n).await?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        ensure!(value == n, "a wrong result");
    }
    Ok(median_and_p99(times))
}

/// The same for what blocks.
pub(crate) fn blocking_one_by_one(
    tasks: u64,
    mut run: impl FnMut(u64) -> anyhow::Result<u64>,
) -> anyhow::Result<Figures> {
    let mut times = Vec::with_capacity(tasks as usize);
    for n in 0..tasks {
        let begin = Instant::now();
        let value = run(n)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        ensure!(value == n, "a wrong result");
    }
    Ok(median_and_p99(times))
}

fn median_and_p99(times: Vec<f64>) -> Figures {
    vec![quantile(times.clone(), 0.5), quantile(times, 0.99)]
}
