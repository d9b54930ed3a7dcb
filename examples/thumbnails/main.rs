//! A service that makes thumbnails of images that come from strangers: `docs/service.md` has all of it.
//!
//! Each upload is decoded in a worker that is shut in, with limits on memory and time. Whatever a file does
//! to its decoder (a panic, a crash, an endless loop, all memory) is the answer to that one request, and
//! the others go on.
//!
//! ```text
//! cargo run --example thumbnails                   # then open the address that it prints
//! cargo run --example thumbnails -- --self-test    # or: it sends itself all samples, and ends
//! ```
//!
//! Options: `--port N`, `--workers N`, `--queue N`, `--timeout-ms N`, `--upload-ms N`, `--grace-ms N`,
//! `--memory-mib N`.

mod answer;
mod live;
mod options;
mod ppmx;
mod samples;
mod self_test;
mod service;
mod thumbnail;

use std::io::Write;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::FusedFuture;
use procession::{Builder, PoolError, ProcessPool, Sandbox, WorkerStdio};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::options::Options;
use crate::service::{Service, router};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::of_this_program()?;
    let mut signals = Signals::new()?;
    let pool = pool(&options)?;
    pool.warm_up().await?; // so that it does not come up where workers cannot
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await.context("the port")?;
    let address = listener.local_addr()?;
    let (sender, receiver) = watch::channel(String::new());
    let service = Service::new(pool.clone(), &options, receiver);
    let watching = tokio::spawn(live::watch(service.clone(), sender));
    let (ask_to_end, asked_to_end) = oneshot::channel::<()>();
    let mut serving = pin!(
        axum::serve(listener, router(service))
            .with_graceful_shutdown(async { _ = asked_to_end.await })
            .into_future()
            .fuse()
    );

    let mut outcome = Ok(());
    if options.is_self_test {
        tokio::select! {
            tested = self_test::run(address) => outcome = tested,
            ended = &mut serving => ended?,
        }
    } else {
        say(&format!("listening on http://{address}"));
        tokio::select! {
            () = signals.next() => say("ending: no new connections, finishing what was accepted"),
            ended = &mut serving => ended?,
        }
    }

    watching.abort(); // ends the streams of events
    let _ = ask_to_end.send(());
    let finish = async {
        let _ = (&mut serving).await;
        pool.shutdown().await;
    };
    tokio::select! {
        ended = timeout(options.grace, finish) => if ended.is_err() { say("out of patience") },
        () = signals.next() => say("ending at once"),
    }
    // Resolves what is left, if anything is, and its requests are answered.
    pool.shutdown_now().await;
    if !serving.is_terminated() {
        let _ = timeout(Duration::from_secs(1), serving).await;
    }
    outcome
}

/// In a sandbox, if the kernel has what that takes.
fn pool(options: &Options) -> Result<ProcessPool, PoolError> {
    match configured(options).sandbox(Sandbox::new()).build() {
        Err(PoolError::NotConfined { reason }) => {
            eprintln!("workers are not shut in: there is no sandbox here: {reason}");
            configured(options).build()
        }
        built => built,
    }
}

fn configured(options: &Options) -> Builder {
    ProcessPool::builder()
        .workers(options.workers)
        .min_workers(options.workers)
        .queue_capacity(options.queue)
        .task_timeout(options.timeout)
        .worker_memory_limit(options.memory)
        .cancel_grace(Duration::ZERO) // decoders do not ask whether they are cancelled
        .stderr(WorkerStdio::Capture) // it comes with the error
        .env_clear()
}

/// Unlike `println!` it does not panic when nobody reads it any more.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

struct Signals([Signal; 2]);

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
