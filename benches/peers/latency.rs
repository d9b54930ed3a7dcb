//! One no-op task at a time, from its submission to its result.
//!
//! Much of what is seen here is whether a processor sleeps in between: waking one takes some tens of
//! microseconds, whatever wakes it. The bare echo sleeps in each of its reads; on a machine that is
//! kept awake by others it is several times as fast.

use super::bench::{Bench, PROCESSION, PROCSPAWN, SPAWN_BLOCKING};
use super::contest::{Contest, Metric};
use super::pipe_echo::PipeEcho;
use super::python::Kind;
use super::svg::Plot;
use super::tasks::{blocking_one_by_one, one_by_one, same};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    let tasks = bench.pick(2_000, 10_000);
    let slow_tasks = bench.pick(300, 2_000);
    let metrics = ["median", "99th percentile"]
        .map(|which| Metric::less(format!("one no-op task there and back, {which}"), "us"));
    let mut contest = Contest::new(metrics);
    let pool = bench.pool(1)?;
    contest.enter(PROCESSION, move || {
        let pool = pool.clone();
        bench.run(one_by_one(tasks, move |n| pool.submit(same::<u64>, n)))
    });
    let echo = Arc::new(Mutex::new(bench.within(PipeEcho::start)?));
    contest.enter("bare frame through a pipe echo", move || {
        let echo = echo.clone();
        bench.run(one_by_one(tasks, move |n| {
            let echo = echo.clone();
            async move { echo.lock().await.number(n).await }
        }))
    });
    contest.enter(SPAWN_BLOCKING, move || bench.run(one_by_one(tasks, |n| spawn_blocking(move || same(n)))));
    let other = procspawn::Pool::new(1)?;
    contest.enter(PROCSPAWN, move || {
        blocking_one_by_one(slow_tasks, |n| Ok(other.spawn(n, same::<u64>).join()?))
    });
    bench.enter_python(&mut contest, Kind::Executor, 1, &format!("latency {slow_tasks}"))?;
    bench.enter_python(&mut contest, Kind::Pool, 1, &format!("latency {slow_tasks}"))?;
    let outcomes = contest.run(bench.rounds());
    bench.report.add_all(&outcomes)?;
    bench.draw("latency.svg", || Plot::rows(&outcomes[0]))
}
