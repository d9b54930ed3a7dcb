//! A task that aborts its worker: how soon its caller knows, and how soon the next task is done.
//!
//! There is one worker, idle when the task is submitted; the next task runs on its replacement.

use super::bench::{Bench, PROCESSION, PROCSPAWN};
use super::contest::{Contest, Figures, Metric};
use super::tasks::{abort, same};
use anyhow::ensure;
use procession::{ProcessPool, TaskError};
use std::time::Instant;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    let mut contest = Contest::new([
        Metric::less("a task aborts: from its submission to the error", "ms"),
        Metric::less("from that error to the next task's result", "ms"),
    ]);
    let pool = bench.pool(1)?;
    contest.enter(PROCESSION, move || bench.run(crash(pool.clone())));
    let other = procspawn::Pool::new(1)?;
    contest.enter(PROCSPAWN, move || crash_procspawn(&other));
    bench.report.add_all(&contest.run(bench.pick(15, 50)))?;
    Ok(())
}

async fn crash(pool: ProcessPool) -> anyhow::Result<Figures> {
    pool.submit(same::<u64>, 0).await?;
    let begin = Instant::now();
    let outcome = pool.submit(abort, 0).await;
    let told = Instant::now();
    ensure!(matches!(outcome, Err(TaskError::WorkerDied(_))), "no death but {outcome:?}");
    pool.submit(same::<u64>, 0).await?;
    Ok(figures(begin, told))
}

fn crash_procspawn(pool: &procspawn::Pool) -> anyhow::Result<Figures> {
    pool.spawn(0, same::<u64>).join()?;
    let begin = Instant::now();
    let outcome = pool.spawn(0, abort).join();
    let told = Instant::now();
    ensure!(outcome.is_err(), "no error but {outcome:?}");
    pool.spawn(0, same::<u64>).join()?;
    Ok(figures(begin, told))
}

fn figures(begin: Instant, told: Instant) -> Figures {
    vec![(told - begin).as_secs_f64() * 1e3, told.elapsed().as_secs_f64() * 1e3]
}
