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

/// So many tasks, of which so many are in flight at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) tasks: u64,
    pub(crate) window: usize,
}

/// Which result is taken next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// Whichever is ready, by `FuturesUnordered`: each result wakes the one who takes them.
    AsReady,
    /// The oldest task's: who waits for it is not woken by the others.
    InOrder,
}

/// Tasks a second under a load; `start(n)` must yield `n`.
pub(crate) async fn rate<F, E>(
    load: Load,
    taking: Taking,
    start: impl FnMut(u64) -> F,
) -> anyhow::Result<Figures>
where
    F: Future<Output = Result<u64, E>>,
    anyhow::Error: From<E>,
{
    let begin = Instant::now();
    let sum = match taking {
        Taking::AsReady => sum_as_ready(load, start).await?,
        Taking::InOrder => sum_in_order(load, start).await?,
    };
    per_second(load, begin, sum)
}

async fn sum_as_ready<F, E>(load: Load, mut start: impl FnMut(u64) -> F) -> Result<u64, E>
where
    F: Future<Output = Result<u64, E>>,
{
    let mut flying = FuturesUnordered::new();
    let mut sum = 0;
    for n in 0..load.tasks {
        if flying.len() == load.window
            && let Some(done) = flying.next().await
        {
            sum += done?;
        }
        flying.push(start(n));
    }
    while let Some(done) = flying.next().await {
        sum += done?;
    }
    Ok(sum)
}

async fn sum_in_order<F, E>(load: Load, mut start: impl FnMut(u64) -> F) -> Result<u64, E>
where
    F: Future<Output = Result<u64, E>>,
{
    let mut flying: VecDeque<F> = VecDeque::new();
    let mut sum = 0;
    for n in 0..load.tasks {
        if flying.len() == load.window
            && let Some(oldest) = flying.pop_front()
        {
            sum += oldest.await?;
        }
        flying.push_back(start(n));
    }
    for oldest in flying {
        sum += oldest.await?;
    }
    Ok(sum)
}

/// The same for what blocks, in order.
pub(crate) fn blocking_rate<W>(load: Load, mut start: impl FnMut(u64) -> W) -> anyhow::Result<Figures>
where
    W: FnOnce() -> anyhow::Result<u64>,
{
    let begin = Instant::now();
    let mut flying: VecDeque<W> = VecDeque::new();
    let mut sum = 0;
    for n in 0..load.tasks {
        if flying.len() == load.window
            && let Some(wait) = flying.pop_front()
        {
            sum += wait()?;
        }
        flying.push_back(start(n));
    }
    for wait in flying {
        sum += wait()?;
    }
    per_second(load, begin, sum)
}

fn per_second(load: Load, begin: Instant, sum: u64) -> anyhow::Result<Figures> {
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(sum == (0..load.tasks).sum::<u64>(), "results are missing or wrong");
    Ok(vec![load.tasks as f64 / seconds])
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
