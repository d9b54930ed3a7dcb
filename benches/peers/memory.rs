//! The memory of tasks that wait, and of workers that do nothing.
//!
//! Tasks are queued in a process of its own, whose allocator has nothing to spare from earlier
//! measures. Its resident memory is compared before and after: that includes the arguments (eight
//! bytes at most), the result's place, and the handle, which it keeps. Nothing is subtracted.

use super::bench::{Bench, PROCESSION, PROCSPAWN, SPAWN_BLOCKING};
use super::contest::{Contest, Figures, Metric};
use super::python::{Kind, Python};
use super::report::figure_text;
use super::roles;
use super::tasks::{pid, same};
use anyhow::{Context, ensure};
use procession::{ProcessPool, StartMethod, TaskStatus};
use std::time::{Duration, Instant};
use tokio::runtime;

pub(crate) fn measure_queue(bench: &Bench) -> anyhow::Result<()> {
    let tasks = bench.pick(100_000, 1_000_000);
    let title = format!("a queued task's memory, {} of them", figure_text(tasks as f64));
    let mut contest = Contest::new([
        Metric::less(title, "bytes"),
        Metric::less("to queue one", "ns"),
        Metric::less("to cancel one, by dropping its handle", "ns"),
        Metric::less("files open with all of them queued, above those before", "files"),
        Metric::less("files open after all were cancelled, above those before", "files"),
    ]);
    contest.enter(PROCESSION, move || in_a_process("queue", tasks));
    contest.enter(format!("{SPAWN_BLOCKING}, one thread"), || in_a_process("queue-blocking", tasks));
    bench.report.add_all(&contest.run(bench.pick(1, 3)))?;
    Ok(())
}

fn in_a_process(role: &str, tasks: usize) -> anyhow::Result<Figures> {
    let told = roles::command(&format!("{role} {tasks}")).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(told.status.success(), "the process ended with {}", told.status);
    let text = String::from_utf8(told.stdout)?;
    text.split_whitespace().map(|figure| Ok(figure.parse()?)).collect()
}

/// A process's role: queues tasks behind one that occupies the only worker.
pub(crate) fn queue_tasks(tasks: usize) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::ZERO).build()?;
        let busy = pool.submit(|seconds: u64| std::thread::sleep(Duration::from_secs(seconds)), 600);
        while busy.status() != TaskStatus::Running {
            ensure!(!busy.is_finished(), "the first task has ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        weigh(tasks, |n| pool.submit(same::<u64>, n), drop)?;
        drop(busy);
        pool.shutdown_now().await;
        Ok(())
    })
}

/// A process's role: the same with tokio's own.
pub(crate) fn queue_blocking(tasks: usize) -> anyhow::Result<()> {
    let mut runtime = runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(1).enable_all().build()?;
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    weigh(tasks, |n| runtime.spawn_blocking(move || same(n)), |handle| handle.abort())?;
    drop(release);
    Ok(())
}

/// Prints what so many tasks weigh, in the order of the metrics above.
fn weigh<T>(tasks: usize, mut queue: impl FnMut(u64) -> T, cancel: impl Fn(T)) -> anyhow::Result<()> {
    let mut handles = Vec::with_capacity(tasks);
    let (memory, files) = (resident_bytes()?, open_files()?);
    let begin = Instant::now();
    handles.extend((0..tasks as u64).map(&mut queue));
    let queued = begin.elapsed();
    let (more_memory, more_files) = (resident_bytes()? - memory, open_files()? - files);
    let begin = Instant::now();
    handles.into_iter().for_each(cancel);
    let cancelled = begin.elapsed();
    let each = |total: f64| total / tasks as f64;
    println!(
        "{} {} {} {} {}",
        each(more_memory),
        each(queued.as_nanos() as f64),
        each(cancelled.as_nanos() as f64),
        more_files,
        open_files()? - files,
    );
    Ok(())
}

fn resident_bytes() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = text.split(' ').nth(1).context("an empty statm")?.parse()?;
    Ok(pages * rustix::param::page_size() as f64)
}

fn open_files() -> anyhow::Result<f64> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count() as f64)
}

/// Of a worker that has run one small task.
pub(crate) fn measure_idle(bench: &Bench) -> anyhow::Result<()> {
    let mut contest = Contest::new([Metric::less("private memory of an idle worker", "MiB")]);
    let methods = [("fork server", StartMethod::ForkServer), ("spawn", StartMethod::Spawn)];
    for (name, method) in methods {
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            let pool = bench.builder().workers(1).start_method(method).build()?;
            let asked = pool.clone();
            let worker = bench.run(async move { Ok(asked.submit(pid, 0).await?) })?;
            private_memory(worker)
        });
    }
    contest.enter(PROCSPAWN, move || {
        let pool = procspawn::Pool::new(1)?;
        private_memory(pool.spawn(0, pid).join()?)
    });
    if bench.has_python() {
        for kind in [Kind::Executor, Kind::Pool] {
            contest.enter(kind.name(), move || {
                let mut python = Python::start(kind, 1)?;
                let answer = python.ask("pid")?;
                private_memory(*answer.first().context("no pid")? as u32)
            });
        }
    }
    bench.report.add_all(&contest.run(bench.pick(1, 5)))?;
    Ok(())
}

/// What nobody else has: clean and dirty private pages.
fn private_memory(pid: u32) -> anyhow::Result<Figures> {
    // It has answered; let it come to rest.
    std::thread::sleep(Duration::from_millis(20));
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(vec![kib.sum::<f64>() / 1024.0])
}
