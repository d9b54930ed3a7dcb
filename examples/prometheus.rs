//! Metrics of a pool for Prometheus: a recorder is installed, pools tell it what they do, and a page
//! at `/metrics` shows it.
//!
//! The recorder comes first: a pool takes its handles when it is built. Tasks of every kind are run,
//! and then the program reads its own page, prints what it says of the pool, and ends.
//! ```text
//! cargo run --features metrics --example prometheus
//! cargo run --features metrics --example prometheus -- --serve    # until you press Ctrl-C
//! ```

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use procession::{ProcessPool, TaskError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep};

/// Histograms are told in these buckets, in seconds; without them they would be quantiles.
const BUCKETS: [f64; 9] = [0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0];

/// How often what histograms have gathered is put into buckets, lest it grow.
const UPKEEP: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .install_recorder()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, recorder.clone()));
    tokio::spawn(keep_up(recorder));
    println!("metrics at http://{address}/metrics");

    let pool = ProcessPool::builder().name("demo").workers(2).queue_capacity(100).build()?;
    if std::env::args().any(|arg| arg == "--serve") {
        let rounds = async {
            loop {
                run_one_of_each(&pool).await;
                sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = rounds => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    } else {
        run_one_of_each(&pool).await;
        let page = read(TcpStream::connect(address).await?).await?;
        let (_, samples) = page.split_once("\r\n\r\n").unwrap_or_default();
        // What has not happened is there as well.
        samples.lines().filter(|line| !line.ends_with(" 0")).for_each(|line| println!("{line}"));
    }
    pool.shutdown().await;
    Ok(())
}

fn crash() {
    std::process::abort();
}

fn break_down() {
    panic!("it is broken");
}

/// Tasks that end in as many ways as can be shown in a moment.
async fn run_one_of_each(pool: &ProcessPool) {
    let doze = |millis: u64| std::thread::sleep(Duration::from_millis(millis));
    let fail = || -> anyhow::Result<()> { anyhow::bail!("it is Monday") };
    let outcomes = [
        pool.submit(doze, 20).await,
        pool.submit(break_down, ()).await,
        pool.submit(fail, ()).await,
        pool.task(crash, ()).retries(1).await,
        pool.task(doze, 60_000).timeout(Duration::from_millis(20)).await,
    ];
    drop(pool.submit(doze, 60_000));
    let tasks: Vec<_> = (0..200).map(|_| pool.submit(|| (), ())).collect();
    let results = futures::future::join_all(tasks).await;
    let refused = results.iter().filter(|result| matches!(result, Err(TaskError::QueueFull { .. }))).count();
    for error in outcomes.into_iter().filter_map(Result::err) {
        println!("{error}");
    }
    println!("and {refused} of 200 tasks found no room");
}

/// A web server with one page.
async fn serve(listener: TcpListener, recorder: PrometheusHandle) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let page = recorder.render();
        tokio::spawn(async move {
            // Whatever is asked for; the rest is for the one who reads.
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close",
                page.len()
            );
            stream.write_all(format!("{head}\r\n\r\n{page}").as_bytes()).await
        });
    }
}

async fn read(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

async fn keep_up(recorder: PrometheusHandle) {
    let mut turns = interval(UPKEEP);
    loop {
        turns.tick().await;
        recorder.run_upkeep();
    }
}
