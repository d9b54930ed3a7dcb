//! A model that all workers use: made once and shared, against made in each.
//!
//! What [`Builder::preload`] makes in the fork server, every worker has from its start, and the memory is
//! the same for as long as nobody writes to it. What [`Builder::initializer`] makes, each worker makes
//! for itself. The task is the same, and so is the place of the model: a static `OnceLock`.
//!
//! For each way this prints how long it took from the pool's making to the first result, and until all
//! workers had answered, and what the kernel says of the memory then (`/proc/PID/smaps_rollup`, in MiB).
//! "Proportional" is what a process has for itself, and of what it shares its share; the sum of that,
//! over the workers and their fork server, is what all of it takes.
//!
//! ```text
//! cargo run --release --example shared_model -- [MIB] [WORKERS]
//! ```

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use procession::{Builder, ProcessPool};

/// The weights, by the name of the process that has them.
static MODEL: OnceLock<Vec<u64>> = OnceLock::new();

/// Makes a model of so many MiB. It stands for one that takes a while to be read or computed.
fn load(mib: usize) {
    MODEL.get_or_init(|| {
        let mut weight = 1_u64;
        let next = |_| {
            weight = weight.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            weight
        };
        (0..mib << 17).map(next).collect()
    });
}

/// Runs in a worker, and reads all of the model.
fn score(input: u64) -> u64 {
    let model = MODEL.get().expect("the model was made before the first task");
    model.iter().fold(input, |sum, weight| sum.rotate_left(5) ^ weight)
}

/// In MiB.
#[derive(Debug, Default)]
struct Memory {
    resident: f64,
    proportional: f64,
    shared: f64,
    private: f64,
}

fn memory_of(pid: u32) -> anyhow::Result<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut memory = Memory::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<f64>)) else {
            continue;
        };
        match name {
            "Rss:" => memory.resident += kib / 1024.0,
            "Pss:" => memory.proportional += kib / 1024.0,
            "Shared_Clean:" | "Shared_Dirty:" => memory.shared += kib / 1024.0,
            "Private_Clean:" | "Private_Dirty:" => memory.private += kib / 1024.0,
            _ => {}
        }
    }
    Ok(memory)
}

/// The process that forked a worker, unless that is this one.
fn fork_server_of(worker: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    (parent != std::process::id()).then_some(parent)
}

async fn try_out(name: &str, builder: Builder, workers: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let pool = builder.workers(workers).start_timeout(Duration::from_secs(600)).build()?;
    let expected = pool.submit(score, 1).await?;
    let first = start.elapsed();
    pool.warm_up().await?;
    // All are idle, so each has one.
    let scores = try_join_all((0..workers).map(|_| pool.submit(score, 1))).await?;
    let all = start.elapsed();
    anyhow::ensure!(scores.iter().all(|score| *score == expected), "the models differ");

    println!(
        "{name}: first result after {:.3} s, all workers after {:.3} s",
        first.as_secs_f64(),
        all.as_secs_f64()
    );
    let pids: BTreeSet<u32> = pool.workers().iter().map(|worker| worker.pid()).collect();
    let fork_server = pids.first().and_then(|pid| fork_server_of(*pid));
    let mut total = 0.0;
    for (role, pid) in
        pids.iter().map(|pid| ("worker", *pid)).chain(fork_server.map(|pid| ("fork server", pid)))
    {
        let memory = memory_of(pid).context("the kernel does not tell of its memory")?;
        println!(
            "{name}: {role} {pid}: resident {:.1}, shared {:.1}, private {:.1}, proportional {:.1}",
            memory.resident, memory.shared, memory.private, memory.proportional
        );
        total += memory.proportional;
    }
    println!("{name}: all together {total:.1}");
    pool.shutdown().await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let mib = numbers.next().transpose()?.unwrap_or(256);
    let workers = numbers.next().transpose()?.unwrap_or(4).max(1);
    println!("a model of {mib} MiB, {workers} workers");
    try_out("preload", ProcessPool::builder().preload(load, mib), workers).await?;
    try_out("initializer", ProcessPool::builder().initializer(load, mib), workers).await
}
