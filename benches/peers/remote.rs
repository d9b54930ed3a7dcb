//! Workers behind a connection: a task there and back beside a bare frame over TCP, both within this
//! machine, so that what is seen is the cost of a pool and not that of a network.

use super::bench::{Bench, PROCESSION};
use super::contest::{Contest, Metric};
use super::pipe_echo;
use super::roles::{Ended, command};
use super::tasks::{Load, Taking, WINDOW, one_by_one, rate, same};
use anyhow::ensure;
use procession::{Launcher, ProcessPool};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// The other process: connects, and answers frames until there are no more.
pub(crate) fn answer(address: &str) -> std::io::Result<()> {
    let stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    pipe_echo::answer_frames(stream.try_clone()?, stream)
}

/// Frames over TCP, one at a time.
struct TcpEcho {
    stream: TcpStream,
    _process: Ended,
}

impl TcpEcho {
    async fn start() -> anyhow::Result<TcpEcho> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let process = command(&format!("tcp-echo {}", listener.local_addr()?)).spawn()?;
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(TcpEcho { stream, _process: Ended(process) })
    }

    async fn number(&mut self, number: u64) -> anyhow::Result<u64> {
        let mut frame = [0; 12];
        frame[..4].copy_from_slice(&8_u32.to_le_bytes());
        frame[4..].copy_from_slice(&number.to_le_bytes());
        self.stream.write_all(&frame).await?;
        self.stream.read_exact(&mut frame).await?;
        Ok(u64::from_le_bytes([
            frame[4], frame[5], frame[6], frame[7], frame[8], frame[9], frame[10], frame[11],
        ]))
    }

    async fn bytes(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let head = (bytes.len() as u32).to_le_bytes();
        self.stream.write_all(&head).await?;
        self.stream.write_all(bytes).await?;
        let mut answered = [0; 4];
        self.stream.read_exact(&mut answered).await?;
        ensure!(answered == head, "an answer of another length");
        self.stream.read_exact(bytes).await?;
        Ok(())
    }
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<()> {
    measure_latency(bench)?;
    measure_throughput(bench)?;
    measure_echo(bench)
}

/// The ways to speak with a worker that are compared with a connection of its own.
fn ways() -> Vec<(&'static str, Launcher)> {
    let launcher = || Launcher::command(["env"]).bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    vec![
        ("a connection of its own", launcher()),
        #[cfg(feature = "remote-tls")]
        ("TLS", launcher().encrypted(true)),
        ("standard input and output", launcher().over_stdio(true)),
    ]
}

/// One worker that has started.
fn pool(bench: &Bench, launcher: Launcher) -> anyhow::Result<ProcessPool> {
    let pool = bench.builder().workers(1).launcher(launcher).build()?;
    let warm = pool.clone();
    bench.run(async move { Ok(warm.warm_up().await?) })?;
    Ok(pool)
}

fn echo(bench: &Bench) -> anyhow::Result<Arc<Mutex<TcpEcho>>> {
    Ok(Arc::new(Mutex::new(bench.run(TcpEcho::start())?)))
}

fn measure_latency(bench: &Bench) -> anyhow::Result<()> {
    let tasks = bench.pick(2_000, 10_000);
    let metrics = ["median", "99th percentile"]
        .map(|which| Metric::less(format!("one no-op task on a connected worker, {which}"), "us"));
    let mut contest = Contest::new(metrics);
    let echo = echo(bench)?;
    contest.enter("bare frame through a TCP echo", move || {
        let echo = echo.clone();
        bench.run(one_by_one(tasks, move |n| {
            let echo = echo.clone();
            async move { echo.lock().await.number(n).await }
        }))
    });
    for (name, launcher) in ways() {
        let pool = pool(bench, launcher)?;
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            let pool = pool.clone();
            bench.run(one_by_one(tasks, move |n| pool.submit(same::<u64>, n)))
        });
    }
    bench.report.add_all(&contest.run(bench.rounds()))?;
    Ok(())
}

fn measure_throughput(bench: &Bench) -> anyhow::Result<()> {
    let load = Load { tasks: bench.pick(20_000, 200_000), window: WINDOW };
    let mut contest =
        Contest::new([Metric::more("no-op tasks a second on one connected worker, 4,096 in flight", "1/s")]);
    for (name, launcher) in ways() {
        let pool = pool(bench, launcher)?;
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            let pool = pool.clone();
            bench.run(rate(load, Taking::AsReady, move |n| pool.submit(same::<u64>, n)))
        });
    }
    bench.report.add_all(&contest.run(bench.rounds()))?;
    Ok(())
}

fn measure_echo(bench: &Bench) -> anyhow::Result<()> {
    const SIZE: usize = 16 << 20;
    let count: u32 = bench.pick(2, 10);
    let rate = move |begin: Instant| {
        let bytes_both_ways = 2.0 * SIZE as f64 * f64::from(count);
        vec![bytes_both_ways / begin.elapsed().as_secs_f64() / f64::from(1 << 30)]
    };
    let mut contest = Contest::new([Metric::more("echo of 16 MiB on a connected worker, each way", "GiB/s")]);
    let echo = echo(bench)?;
    contest.enter("TCP echo", move || {
        let echo = echo.clone();
        bench.run(async move {
            let mut bytes = vec![1; SIZE];
            let begin = Instant::now();
            for _ in 0..count {
                echo.lock().await.bytes(&mut bytes).await?;
            }
            Ok(rate(begin))
        })
    });
    for (name, launcher) in ways() {
        let pool = pool(bench, launcher)?;
        contest.enter(format!("{PROCESSION}, {name}"), move || {
            let pool = pool.clone();
            bench.run(async move {
                let mut bytes = vec![1_u8; SIZE];
                let begin = Instant::now();
                for _ in 0..count {
                    bytes = pool.submit(same::<Vec<u8>>, bytes).await?;
                }
                ensure!(bytes.len() == SIZE, "{} bytes came back", bytes.len());
                Ok(rate(begin))
            })
        });
    }
    bench.report.add_all(&contest.run(bench.rounds()))?;
    Ok(())
}
