//! The program that runs in a [`session`](crate::session), in several parts.

use std::fs::File;
use std::future::pending;
use std::io::Read;
use std::process::Command;
use std::time::Duration;

use crate::common::{Given, a_worker, attend, eventually, helping, multi_thread, note};
use procession::{Builder, ProcessPool, StartMethod, TaskError, TaskHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the program says last when nothing has failed.
pub const ALL_WELL: &str = "Ok(7) Ok(5), died: 0, replaced: 0";

#[test]
#[ignore = "a program for the tests around it"]
fn a_program() {
    let Some(word) = helping() else { return };
    let words: Vec<_> = word.split(' ').collect();
    let [method, part, task_timeout, says, tasks, ledger] = words[..] else { panic!("{word}") };
    let method = match method {
        "ForkServer" => StartMethod::ForkServer,
        _ => StartMethod::Spawn,
    };
    let mut builder = Builder::given(method);
    match task_timeout.parse().unwrap() {
        0 => {}
        limit => builder = builder.task_timeout(Duration::from_millis(limit)),
    }
    let say = |what: &str| attend(says, what);
    multi_thread().block_on(async {
        match part {
            "heedless" => heedless(builder, tasks, say).await,
            "graceful" => graceful(builder, tasks, ledger, say).await,
            "printing" => printing(builder, method, say).await,
            "stopped" => stopped(builder, tasks, say).await,
            _ => panic!("there is no such part: {part}"),
        }
    });
}

fn begin(pool: &ProcessPool, tasks: &str, ledger: &str) -> TaskHandle<u8> {
    let task = |tasks: String, ledger: String| {
        attend(&tasks, "task");
        note(&ledger, "done");
        7
    };
    pool.submit(task, (tasks.to_owned(), ledger.to_owned()))
}

/// Knows nothing of signals.
async fn heedless(builder: Builder, tasks: &str, say: impl Fn(&str)) {
    let pool = builder.build().unwrap();
    let _running = begin(&pool, tasks, "/dev/null");
    let _idle = a_worker(&pool).await;
    say("ready");
    pending().await
}

/// On a signal, finishes what it has accepted, and says what has become of it.
async fn graceful(builder: Builder, tasks: &str, ledger: &str, say: impl Fn(&str)) {
    let mut signals = Signals::new();
    let pool = builder.build().unwrap();
    let running = begin(&pool, tasks, ledger);
    a_worker(&pool).await;
    let workers = pids(&pool);
    say("ready");
    let name = signals.next().await;
    say(name);
    let last = pool.submit(|| 5u8, ());
    let now = pids(&pool);
    pool.shutdown().await;
    let died = pool.stats().workers_died();
    let replaced = workers.iter().filter(|pid| !now.contains(pid)).count();
    say(&format!("{} {}, died: {died}, replaced: {replaced}", tell(running).await, tell(last).await));
}

fn pids(pool: &ProcessPool) -> Vec<u32> {
    pool.workers().into_iter().map(|worker| worker.pid()).collect()
}

async fn tell(handle: TaskHandle<u8>) -> String {
    let outcome: Result<u8, TaskError> = handle.await;
    format!("{outcome:?}")
}

struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Signals {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Signals(kinds.map(|kind| signal(kind).unwrap()))
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

/// Has its processes use the terminal, in whose background they are.
async fn printing(builder: Builder, method: StartMethod, say: impl Fn(&str)) {
    let builder = match method {
        StartMethod::ForkServer => builder.preload(|| println!("from the fork server"), ()),
        _ => builder,
    };
    let pool = builder.build().unwrap();
    say("ready");
    let task = || {
        println!("from a worker");
        eprintln!("from its standard error");
        let daughter = Command::new("sh").args(["-c", "echo from a daughter"]).status().unwrap();
        let read = File::open("/dev/tty").unwrap().read(&mut [0]).unwrap_err();
        let daughter_reads = Command::new("sh").args(["-c", "read line </dev/tty 2>/dev/null"]).status();
        (daughter.code(), read.raw_os_error(), daughter_reads.unwrap().code())
    };
    let outcome = pool.submit(task, ()).await;
    pool.shutdown().await;
    say(&format!("{:?}", outcome.unwrap()));
}

/// Sends tasks to a pool whose processes are stopped, is stopped itself, and goes on first.
async fn stopped(builder: Builder, tasks: &str, say: impl Fn(&str)) {
    let mut continued = signal(SignalKind::from_raw(libc::SIGCONT)).unwrap();
    let pool = builder.workers(3).build().unwrap();
    let running = begin(&pool, tasks, "/dev/null");
    a_worker(&pool).await;
    let workers = pids(&pool);
    say("ready");
    let sent = pool.submit(|| 1u8, ());
    let for_another = pool.submit(|| 2u8, ());
    eventually("another worker is to start", || pool.workers().len() > workers.len()).await;
    // The order is on its way to the fork server, which is stopped.
    tokio::time::sleep(Duration::from_millis(100)).await;
    say("sent");
    continued.recv().await;
    // By then its alarms have rung.
    tokio::time::sleep(Duration::from_millis(500)).await;
    say("awake");
    let outcomes = [tell(running).await, tell(sent).await, tell(for_another).await].join(" ");
    let now = pids(&pool);
    let replaced = workers.iter().filter(|pid| !now.contains(pid)).count();
    pool.shutdown().await;
    say(&format!("{outcomes}, died: {}, replaced: {replaced}", pool.stats().workers_died()));
}
