//! Work that keeps a processor busy, on two workers against one.
//!
//! Two plain threads against one, with the same work, show what the machine has to give.

use super::bench::{Bench, PROCESSION, cpus};
use super::contest::{Contest, Metric};
use anyhow::{Context, ensure};
use futures::future::try_join_all;
use procession::ProcessPool;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a task takes, about.
const TASK: Duration = Duration::from_millis(5);

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    ensure!(cpus() > 1, "there is one CPU");
    let steps = steps_for(TASK);
    let tasks = bench.pick(40, 400);
    let title = format!("speed-up by a second worker, {tasks} tasks of 5 ms");
    let mut contest = Contest::new([Metric::more(title, "times")]);
    let (one, two) = (bench.pool(1)?, bench.pool(2)?);
    contest.enter(PROCESSION, move || {
        let single = bench.run(on_workers(one.clone(), tasks, steps))?;
        let double = bench.run(on_workers(two.clone(), tasks, steps))?;
        Ok(vec![single / double])
    });
    contest.enter("plain threads", move || {
        Ok(vec![on_threads(1, tasks, steps)? / on_threads(2, tasks, steps)?])
    });
    bench.report.add_all(&contest.run(bench.pick(3, 5)))?;
    Ok(())
}

/// Arithmetic that no compiler takes a short cut through.
fn spin(steps: u64) -> u64 {
    (0..steps).fold(1, |state: u64, step| black_box(state.wrapping_mul(6_364_136_223_846_793_005) ^ step))
}

/// How many steps take so long here: by the best of several tries.
fn steps_for(time: Duration) -> u64 {
    const TRY: u64 = 1 << 20;
    let took = |_| {
        let begin = Instant::now();
        black_box(spin(TRY));
        begin.elapsed()
    };
    let best = (0..20).map(took).min().unwrap_or(time);
    (TRY as f64 * time.as_secs_f64() / best.as_secs_f64()) as u64
}

/// The seconds that the tasks take.
async fn on_workers(pool: ProcessPool, tasks: u64, steps: u64) -> anyhow::Result<f64> {
    let begin = Instant::now();
    try_join_all((0..tasks).map(|_| pool.submit(spin, steps))).await?;
    Ok(begin.elapsed().as_secs_f64())
}

fn on_threads(threads: usize, tasks: u64, steps: u64) -> anyhow::Result<f64> {
    let taken = AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let work = || {
            while taken.fetch_add(1, Ordering::Relaxed) < tasks {
                black_box(spin(steps));
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().ok()).context("a thread panicked")
    })?;
    Ok(begin.elapsed().as_secs_f64())
}
