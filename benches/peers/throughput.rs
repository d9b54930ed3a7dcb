//! No-op tasks a second with one worker and 4,096 tasks in flight.
//!
//! Results are taken as they get ready, in one contest, and in the order of the tasks in another:
//! how often the one who takes them is woken can make more of a difference than all else. `procspawn`
//! and Python's pools, whose results are waited for by blocking, are taken in order.
//!
//! `spawn_blocking` runs once on a runtime as it comes, which has up to 512 threads for it, and once
//! on one with a single such thread, the counterpart of a single worker. The bare frames are
//! gathered into large writes one way and answered one by one, with a oneshot channel each.

use super::bench::{Bench, PROCESSION, PROCSPAWN, SPAWN_BLOCKING, run_on};
use super::contest::{Contest, Metric, Outcome};
use super::pipe_echo::Pipeline;
use super::python::Kind;
use super::svg::Plot;
use super::tasks::{Load, Taking, WINDOW, blocking_rate, rate, same};
use rustix::process::{Resource, getrlimit};
use std::sync::Arc;
use tokio::runtime;
use tokio::task::spawn_blocking;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    let title = "no-op tasks a second, one worker, 4,096 in flight";
    let outcome = measure_taking(bench, title, Taking::AsReady)?;
    bench.draw("throughput.svg", || Plot::rows(&outcome))?;
    let outcome = measure_taking(bench, &format!("{title}, taken in order"), Taking::InOrder)?;
    bench.draw("throughput-in-order.svg", || Plot::rows(&outcome))
}

fn measure_taking(bench: &Bench, title: &str, taking: Taking) -> anyhow::Result<Outcome> {
    let load = Load { tasks: bench.pick(50_000, 500_000), window: WINDOW };
    let mut contest = Contest::new([Metric::more(title, "1/s")]);
    enter_procession(bench, &mut contest, load, taking)?;
    enter_spawn_blocking(bench, &mut contest, load, taking)?;
    enter_frames(bench, &mut contest, load, taking)?;
    // For what blocks there is only one way, and no need to see it twice.
    if taking == Taking::AsReady {
        enter_blocking(bench, &mut contest)?;
    }
    let outcome = contest.run(bench.rounds()).remove(0);
    bench.report.add(&outcome)?;
    Ok(outcome)
}

fn enter_procession<'a>(
    bench: &'a Bench,
    contest: &mut Contest<'a>,
    load: Load,
    taking: Taking,
) -> anyhow::Result<()> {
    let pool = bench.pool(1)?;
    contest.enter(PROCESSION, move || {
        let pool = pool.clone();
        bench.run(rate(load, taking, move |n| pool.submit(same::<u64>, n)))
    });
    Ok(())
}

fn enter_spawn_blocking<'a>(
    bench: &'a Bench,
    contest: &mut Contest<'a>,
    load: Load,
    taking: Taking,
) -> anyhow::Result<()> {
    let noop = |n| spawn_blocking(move || same(n));
    contest.enter(SPAWN_BLOCKING, move || bench.run(rate(load, taking, noop)));
    let mut settings = runtime::Builder::new_multi_thread();
    let single = settings.worker_threads(2).max_blocking_threads(1).enable_all().build()?;
    contest.enter(format!("{SPAWN_BLOCKING}, one thread"), move || run_on(&single, rate(load, taking, noop)));
    Ok(())
}

fn enter_frames<'a>(
    bench: &'a Bench,
    contest: &mut Contest<'a>,
    load: Load,
    taking: Taking,
) -> anyhow::Result<()> {
    let pipeline = Arc::new(bench.within(Pipeline::start)?);
    contest.enter("bare frames through a pipe echo", move || {
        let pipeline = pipeline.clone();
        bench.run(rate(load, taking, move |n| pipeline.send(n)))
    });
    Ok(())
}

fn enter_blocking(bench: &Bench, contest: &mut Contest<'_>) -> anyhow::Result<()> {
    let tasks = bench.pick(3_000, 10_000);
    enter_procspawn(contest, tasks)?;
    let question = format!("rate {WINDOW} {tasks}");
    bench.enter_python(contest, Kind::Executor, 1, &question)?;
    bench.enter_python(contest, Kind::Pool, 1, &question)
}

/// It has three descriptors open for each task in flight, and panics without them.
fn enter_procspawn(contest: &mut Contest<'_>, tasks: u64) -> anyhow::Result<()> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let window = WINDOW.min(usize::try_from(files / 4)?);
    let few = if window < WINDOW { format!(", {window} in flight") } else { String::new() };
    let pool = procspawn::Pool::new(1)?;
    contest.enter(format!("{PROCSPAWN}{few}"), move || {
        blocking_rate(Load { tasks, window }, |n| {
            let handle = pool.spawn(n, same::<u64>);
            || Ok(handle.join()?)
        })
    });
    Ok(())
}
