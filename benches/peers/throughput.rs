//! No-op tasks a second with one worker and 4,096 tasks in flight.
//!
//! `spawn_blocking` runs once on a runtime as it comes, which has up to 512 threads for it, and once
//! on one with a single such thread, the counterpart of a single worker. The bare frames are
//! gathered into large writes one way and answered one by one, with a oneshot channel each.

use super::bench::{Bench, PROCESSION, PROCSPAWN, SPAWN_BLOCKING, run_on};
use super::contest::{Contest, Metric};
use super::pipe_echo::Pipeline;
use super::python::Kind;
use super::svg::Plot;
use super::tasks::{WINDOW, blocking_rate, rate, same};
use rustix::process::{Resource, getrlimit};
use std::sync::Arc;
use tokio::runtime;
use tokio::task::spawn_blocking;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    let tasks = bench.pick(50_000, 500_000);
    let slow_tasks = bench.pick(5_000, 20_000);
    let title = "no-op tasks a second, one worker, 4,096 in flight";
    let mut contest = Contest::new([Metric::more(title, "1/s")]);
    enter_procession(bench, &mut contest, tasks)?;
    enter_spawn_blocking(bench, &mut contest, tasks)?;
    enter_frames(bench, &mut contest, tasks)?;
    enter_procspawn(&mut contest, slow_tasks)?;
    let question = format!("rate {WINDOW} {slow_tasks}");
    bench.enter_python(&mut contest, Kind::Executor, 1, &question)?;
    bench.enter_python(&mut contest, Kind::Pool, 1, &question)?;
    let outcomes = contest.run(bench.rounds());
    bench.report.add_all(&outcomes)?;
    bench.draw("throughput.svg", || Plot::rows(&outcomes[0]))
}

fn enter_procession<'a>(bench: &'a Bench, contest: &mut Contest<'a>, tasks: u64) -> anyhow::Result<()> {
    let pool = bench.pool(1)?;
    contest.enter(PROCESSION, move || {
        let pool = pool.clone();
        bench.run(rate(tasks, WINDOW, move |n| pool.submit(same::<u64>, n)))
    });
    Ok(())
}

fn enter_spawn_blocking<'a>(bench: &'a Bench, contest: &mut Contest<'a>, tasks: u64) -> anyhow::Result<()> {
    contest
        .enter(SPAWN_BLOCKING, move || bench.run(rate(tasks, WINDOW, |n| spawn_blocking(move || same(n)))));
    let mut settings = runtime::Builder::new_multi_thread();
    let single = settings.worker_threads(2).max_blocking_threads(1).enable_all().build()?;
    contest.enter(format!("{SPAWN_BLOCKING}, one thread"), move || {
        run_on(&single, rate(tasks, WINDOW, |n| spawn_blocking(move || same(n))))
    });
    Ok(())
}

fn enter_frames<'a>(bench: &'a Bench, contest: &mut Contest<'a>, tasks: u64) -> anyhow::Result<()> {
    let pipeline = Arc::new(bench.within(Pipeline::start)?);
    contest.enter("bare frames through a pipe echo", move || {
        let pipeline = pipeline.clone();
        bench.run(rate(tasks, WINDOW, move |n| pipeline.send(n)))
    });
    Ok(())
}

/// It has three descriptors open for each task in flight, and panics without them.
fn enter_procspawn(contest: &mut Contest<'_>, tasks: u64) -> anyhow::Result<()> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let window = WINDOW.min(usize::try_from(files / 4)?);
    let name =
        if window == WINDOW { PROCSPAWN.to_string() } else { format!("{PROCSPAWN}, {window} in flight") };
    let pool = procspawn::Pool::new(1)?;
    contest.enter(name, move || {
        blocking_rate(tasks, window, |n| {
            let handle = pool.spawn(n, same::<u64>);
            || Ok(handle.join()?)
        })
    });
    Ok(())
}
