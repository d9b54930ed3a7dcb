//! A service that ends well: on SIGINT (Ctrl-C), SIGTERM or SIGHUP it takes no more work, finishes
//! what it has accepted, and exits with 0. A second signal ends it at once.
//!
//! The pool's processes leave the signal to the program. `shutdown_timeout` finishes the accepted
//! tasks, as far as the time allows; what is left then fails as `TaskError::ShutDown`.
//!
//! Run without `--serve` it is its own supervisor, and sends itself SIGTERM after a second.
//! ```text
//! cargo run --example graceful_shutdown
//! cargo run --example graceful_shutdown -- --serve    # until you press Ctrl-C
//! ```

use std::io::Write;
use std::thread;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use procession::ProcessPool;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{interval, sleep};

/// How long accepted tasks may take after a signal; less than the supervisor's patience.
const GRACE: Duration = Duration::from_secs(8);

fn do_work(request: u64) -> u64 {
    thread::sleep(Duration::from_millis(30));
    request * request
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    if !std::env::args().any(|arg| arg == "--serve") {
        tokio::spawn(async {
            sleep(Duration::from_secs(1)).await;
            kill_process(getpid(), Signal::TERM)
        });
    }

    let pool = ProcessPool::new()?;
    let mut requests = interval(Duration::from_millis(20));
    let mut tasks = FuturesUnordered::new();
    let (mut accepted, mut finished, mut failed) = (0, 0, 0);
    let mut count = |outcome: Result<u64, _>| match outcome {
        Ok(_) => finished += 1,
        Err(_) => failed += 1,
    };

    let signal = loop {
        tokio::select! {
            _ = requests.tick() => {
                tasks.push(pool.submit(do_work, accepted));
                accepted += 1;
            }
            Some(outcome) = tasks.next() => count(outcome),
            signal = signals.next() => break signal,
        }
    };

    say(&format!("{signal}: finishing {} tasks", tasks.len()));
    tokio::select! {
        () = pool.shutdown_timeout(GRACE) => {}
        signal = signals.next() => {
            say(&format!("{signal} again: ending at once"));
            pool.shutdown_now().await;
        }
    }
    // Every task is resolved by now.
    while let Some(outcome) = tasks.next().await {
        count(outcome);
    }
    say(&format!("accepted: {accepted}, finished: {finished}, failed: {failed}"));
    Ok(())
}

/// Unlike `println!` it does not panic after SIGHUP, when the terminal is gone.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

struct Signals([unix::Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(unix::signal);
        Ok(Signals([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) -> &'static str {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    }
}
