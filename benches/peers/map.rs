//! One trivial function over a million numbers.
//!
//! The pools do not promise the same: `procession` streams, with a bounded window and a result for
//! each item on its own; `multiprocessing.Pool` sends a quarter of a worker's share as one list, and
//! has one list of all results at the end.

use super::bench::{Bench, PROCESSION, cpus};
use super::contest::{Contest, Figures, Metric};
use super::python::Kind;
use super::report::figure_text;
use super::tasks::same;
use anyhow::ensure;
use futures::StreamExt;
use procession::ProcessPool;
use std::time::Instant;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    let items = bench.pick(100_000, 1_000_000);
    let workers = cpus();
    let title = format!("map over {} numbers, a worker a CPU", figure_text(items as f64));
    let mut contest = Contest::new([Metric::more(title, "1/s")]);
    let pool = bench.pool(workers)?;
    contest.enter(PROCESSION, move || bench.run(map(pool.clone(), items)));
    let single = bench.pool(1)?;
    contest.enter(format!("{PROCESSION}, one worker"), move || bench.run(map(single.clone(), items)));
    bench.enter_python(&mut contest, Kind::Pool, workers, &format!("map {items}"))?;
    bench.report.add_all(&contest.run(bench.rounds()))?;
    Ok(())
}

async fn map(pool: ProcessPool, items: u64) -> anyhow::Result<Figures> {
    let begin = Instant::now();
    let mut results = pool.map(same::<u64>, 0..items);
    let mut next = 0;
    while let Some(result) = results.next().await {
        ensure!(result? == next, "results are not in order");
        next += 1;
    }
    ensure!(next == items, "results are missing");
    Ok(vec![items as f64 / begin.elapsed().as_secs_f64()])
}
