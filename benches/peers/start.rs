//! How long it takes to start: a new pool up to its first result, and one more worker up to its
//! first result while this program has much memory in use.

use super::bench::{Bench, PROCESSION, PROCSPAWN};
use super::contest::{Contest, Figures, Metric};
use super::python::Kind;
use super::tasks::same;
use anyhow::{Context, ensure};
use procession::{Builder, StartMethod, TaskStatus};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How much memory is in use for the second part.
const HEAP: usize = 2 << 30;

const METHODS: [(&str, StartMethod); 2] =
    [("fork server", StartMethod::ForkServer), ("spawn", StartMethod::Spawn)];

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    measure_pool(bench)?;
    measure_worker(bench, "no heap to speak of")?;
    if available_memory()? < 2 * HEAP as u64 {
        bench.report.note("a worker's start with 2 GiB of heap: too little memory here")?;
        return Ok(());
    }
    let heap = black_box(vec![1u8; HEAP]);
    measure_worker(bench, "2 GiB of heap in use")?;
    drop(black_box(heap));
    Ok(())
}

fn measure_pool(bench: &Bench) -> anyhow::Result<()> {
    let mut contest = Contest::new([Metric::less("a new pool up to its first result", "ms")]);
    for (name, method) in METHODS {
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            bench.run(new_pool(bench.builder().workers(1).start_method(method)))
        });
    }
    contest.enter(PROCSPAWN, move || {
        let begin = Instant::now();
        let pool = procspawn::Pool::new(1)?;
        pool.spawn(0, same::<u64>).join()?;
        Ok(milliseconds(begin))
    });
    bench.enter_python(&mut contest, Kind::Executor, 1, "start")?;
    bench.enter_python(&mut contest, Kind::Pool, 1, "start")?;
    bench.report.add_all(&contest.run(bench.pick(7, 20)))?;
    Ok(())
}

async fn new_pool(builder: Builder) -> anyhow::Result<Figures> {
    let begin = Instant::now();
    let pool = builder.build()?;
    pool.submit(same::<u64>, 0).await?;
    let figures = milliseconds(begin);
    pool.shutdown().await;
    Ok(figures)
}

fn measure_worker(bench: &Bench, state: &str) -> anyhow::Result<()> {
    let title = format!("one more worker up to its first result, {state}");
    let mut contest = Contest::new([Metric::less(title, "ms")]);
    for (name, method) in METHODS {
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            bench.run(second_worker(bench.builder().workers(2).start_method(method)))
        });
    }
    bench.report.add_all(&contest.run(bench.pick(7, 20)))?;
    Ok(())
}

/// With the first worker busy, a task must wait for the second to start.
async fn second_worker(builder: Builder) -> anyhow::Result<Figures> {
    let pool = builder.build()?;
    let busy = pool.submit(|seconds: u64| std::thread::sleep(Duration::from_secs(seconds)), 600);
    while busy.status() != TaskStatus::Running {
        ensure!(!busy.is_finished(), "the first task has ended");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begin = Instant::now();
    pool.submit(same::<u64>, 0).await?;
    let figures = milliseconds(begin);
    pool.shutdown_now().await;
    Ok(figures)
}

fn milliseconds(begin: Instant) -> Figures {
    vec![begin.elapsed().as_secs_f64() * 1e3]
}

/// In bytes, as the system estimates it.
pub(crate) fn available_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib: u64 =
        line.and_then(|line| line.split_whitespace().nth(1)).context("no MemAvailable")?.parse()?;
    Ok(kib << 10)
}
