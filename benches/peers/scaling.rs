//! How costs grow with the number of workers, the length of the queue and the size of payloads.

use super::bench::{Bench, cpus};
use super::contest::{Contest, Figures, Metric, Outcome};
use super::start::available_memory;
use super::svg::Plot;
use super::tasks::{Load, Taking, WINDOW, rate, same};
use anyhow::ensure;
use std::time::Instant;

/// How many bytes go there in a round, and as many back.
const ROUND_BYTES: usize = 256 << 20;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    measure_workers(bench)?;
    measure_queue(bench)?;
    measure_payload(bench)
}

/// No-op tasks: beyond the number of CPUs it can at best stay as it is.
fn measure_workers(bench: &Bench) -> anyhow::Result<()> {
    let load = Load { tasks: bench.pick(20_000, 200_000), window: WINDOW };
    let workers = [1, 2, 4, 16, 64];
    let title = format!("no-op tasks a second, 4,096 in flight, {} CPUs, by number of workers", cpus());
    let mut contest = Contest::series([Metric::more(title, "1/s")]);
    for workers in workers {
        let pool = bench.pool(workers)?;
        contest.enter(workers.to_string(), move || {
            let pool = pool.clone();
            bench.run(rate(load, Taking::AsReady, move |n| pool.submit(same::<u64>, n)))
        });
    }
    let outcome = run(bench, contest)?;
    bench.draw("scaling-workers.svg", || Plot::line(&outcome, "workers", &places(&workers)))
}

/// All are queued at once; short queues are tried many times.
fn measure_queue(bench: &Bench) -> anyhow::Result<()> {
    let lengths: Vec<usize> = (0..=bench.pick(5, 6)).map(|power| 10usize.pow(power)).collect();
    let metric = Metric::less("a no-op task's time in a queue of this length, one worker", "us");
    let mut contest = Contest::series([metric]);
    let pool = bench.pool(1)?;
    for &length in &lengths {
        let pool = pool.clone();
        contest.enter(length.to_string(), move || {
            let pool = pool.clone();
            bench.run(async move {
                let load = Load { tasks: length as u64, window: length };
                let times = (1_000 / length).max(1);
                let mut micros = 0.0;
                for _ in 0..times {
                    let pool = pool.clone();
                    let rates = rate(load, Taking::InOrder, move |n| pool.submit(same::<u64>, n)).await?;
                    micros += rates.iter().map(|rate| 1e6 / rate).sum::<f64>();
                }
                Ok(vec![micros / times as f64])
            })
        });
    }
    let outcome = run(bench, contest)?;
    bench.draw("scaling-queue.svg", || Plot::line(&outcome, "tasks queued", &places(&lengths)))
}

/// One at a time, as `Vec<u8>`; each result is the next argument.
fn measure_payload(bench: &Bench) -> anyhow::Result<()> {
    let largest = if available_memory()? < 8 << 30 { 24 } else { bench.pick(24, 28) };
    let sizes: Vec<usize> = (4..=largest).step_by(2).map(|power| 1 << power).collect();
    let mut contest = Contest::series([
        Metric::less("a payload of this many bytes there and back, one at a time", "us"),
        Metric::more("the same, each way", "GiB/s"),
    ]);
    for &size in &sizes {
        let pool = bench.pool(1)?;
        let count = (ROUND_BYTES / size).clamp(1, bench.pick(100, 1_000));
        contest.enter(size.to_string(), move || {
            let pool = pool.clone();
            bench.run(async move {
                let mut payload = vec![1u8; size];
                let begin = Instant::now();
                for _ in 0..count {
                    payload = pool.submit(same::<Vec<u8>>, payload).await?;
                }
                let seconds = begin.elapsed().as_secs_f64() / count as f64;
                ensure!(payload.len() == size, "{} bytes came back", payload.len());
                Ok::<Figures, _>(vec![seconds * 1e6, 2.0 * size as f64 / seconds / f64::from(1 << 30)])
            })
        });
    }
    let outcomes = contest.run(bench.pick(1, 5));
    bench.report.add_all(&outcomes)?;
    bench.draw("scaling-payload.svg", || Plot::line(&outcomes[0], "bytes", &places(&sizes)))
}

fn run(bench: &Bench, contest: Contest<'_>) -> anyhow::Result<Outcome> {
    let mut outcomes = contest.run(bench.pick(1, 5));
    bench.report.add_all(&outcomes)?;
    Ok(outcomes.remove(0))
}

/// Counts as places on an axis.
fn places(counts: &[usize]) -> Vec<f64> {
    counts.iter().map(|&count| count as f64).collect()
}
