//! How a pool ends: by one of its three shutdowns, with its last handle, with its runtime, or with
//! the whole program. Nothing hangs, and nothing stays behind.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::io::{BufRead, BufReader};
use std::pin::pin;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{
    Given, Guest, Ledger, Meeting, Open, a_worker, attend, eventually, gone, helper, helping, is_alive, note,
    parent_of, server,
};
use futures::poll;
use procession::{Builder, ProcessPool, StartMethod, TaskError};

both! {
    shutdown_finishes_every_accepted_task,
    shutdown_reaps_every_worker,
    shutdown_refuses_new_tasks_from_its_first_moment,
    shutdown_is_idempotent_and_concurrent,
    shutdown_of_an_unused_pool_returns,
    shutdown_timeout_waits_for_what_ends_in_time,
    shutdown_timeout_sweeps_what_does_not,
    shutdown_now_sweeps_everything,
    shutdown_now_hurries_a_shutdown_that_waits,
    every_handle_of_the_pool_is_shut_down,
    submitting_while_it_shuts_down_never_hangs,
    the_last_handle_lets_accepted_tasks_finish,
    the_last_handle_reaps_the_workers,
    the_last_handle_of_an_unused_pool,
    sync a_dropped_runtime_resolves_every_handle_and_kills_the_workers,
    sync a_task_submitted_after_its_runtime_resolves,
    sync a_killed_program_leaves_nothing_behind,
    sync a_program_that_exits_leaves_nothing_behind,
}

const AGES: Duration = Duration::from_secs(3600);

/// Starts a task, and returns when a worker has begun it.
async fn begin(pool: &ProcessPool) -> (procession::TaskHandle<()>, Guest) {
    let meeting = Meeting::new();
    let handle = pool.submit(|place: String| attend(&place, "begun"), meeting.place());
    let guest = meeting.next().await;
    (handle, guest)
}

async fn shutdown_finishes_every_accepted_task(builder: Builder) {
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let handles: Vec<_> = (100..200u32)
        .map(|n| pool.submit(|place: String, n: u32| note(&place, n), (ledger.place(), n)))
        .collect();
    pool.shutdown().await;
    assert_eq!(ledger.sorted(), (100..200).map(|n| n.to_string()).collect::<Vec<_>>());
    for handle in handles {
        assert!(handle.is_finished());
        handle.await.unwrap();
    }
}

async fn shutdown_reaps_every_worker(builder: Builder) {
    let pool = builder.open().unwrap();
    let (one, two) = (begin(&pool).await, begin(&pool).await);
    let pids = [one.1.pid, two.1.pid];
    drop((one.1, two.1));
    pool.shutdown().await;
    assert!(pool.workers().is_empty());
    assert_eq!(pool.stats().workers(), 0);
    one.0.await.unwrap();
    two.0.await.unwrap();
    not_with_agents!("workers are the agents', and outlive the pool");
    assert!(!pids.into_iter().any(is_alive), "not even a zombie");
}

async fn shutdown_refuses_new_tasks_from_its_first_moment(builder: Builder) {
    let pool = builder.open().unwrap();
    let (handle, guest) = begin(&pool).await;
    assert!(!pool.is_shut_down());
    let mut shutdown = pin!(pool.shutdown());
    assert!(poll!(shutdown.as_mut()).is_pending());
    assert!(pool.is_shut_down());
    assert_matches!(pool.submit(|| 1u8, ()).await, Err(TaskError::ShutDown));
    assert!(!handle.is_finished());
    drop(guest);
    shutdown.await;
    handle.await.unwrap();
}

async fn shutdown_is_idempotent_and_concurrent(builder: Builder) {
    let pool = builder.open().unwrap();
    let (handle, guest) = begin(&pool).await;
    let pid = guest.pid;
    let later = async {
        tokio::task::yield_now().await;
        drop(guest);
    };
    let timed = pool.shutdown_timeout(AGES);
    tokio::join!(pool.shutdown(), pool.shutdown(), timed, pool.shutdown(), later);
    assert!(!is_alive(pid) || server().is_some(), "agents' workers outlive the pool");
    pool.shutdown().await;
    pool.shutdown_now().await;
    pool.shutdown_timeout(Duration::ZERO).await;
    handle.await.unwrap();
}

async fn shutdown_of_an_unused_pool_returns(method: StartMethod) {
    Builder::given(method).open().unwrap().shutdown().await;
    Builder::given(method).open().unwrap().shutdown_now().await;
    Builder::given(method).open().unwrap().shutdown_timeout(AGES).await;
}

async fn shutdown_timeout_waits_for_what_ends_in_time(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let (running, guest) = begin(&pool).await;
    let queued = pool.submit(|| 5u8, ());
    drop(guest);
    pool.shutdown_timeout(AGES).await;
    running.await.unwrap();
    assert_eq!(queued.await.unwrap(), 5);
}

async fn shutdown_timeout_sweeps_what_does_not(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(AGES).open().unwrap();
    let (running, guest) = begin(&pool).await;
    let queued = pool.submit(|| 5u8, ());
    let (start, limit) = (Instant::now(), Duration::from_millis(100));
    pool.shutdown_timeout(limit).await;
    assert!(start.elapsed() >= limit);
    assert_matches!(running.await, Err(TaskError::ShutDown));
    assert_matches!(queued.await, Err(TaskError::ShutDown));
    not_with_agents!("what runs has its agent's `cancel_grace`");
    assert!(!is_alive(guest.pid));
}

async fn shutdown_now_sweeps_everything(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(AGES).open().unwrap();
    let (running, guest) = begin(&pool).await;
    let queued: Vec<_> = (0..20).map(|_| pool.submit(|| 5u8, ())).collect();
    pool.shutdown_now().await;
    let is_left = is_alive(guest.pid);
    assert_matches!(running.await, Err(TaskError::ShutDown));
    for handle in queued {
        assert_matches!(handle.await, Err(TaskError::ShutDown));
    }
    assert_matches!(pool.submit(|| 5u8, ()).await, Err(TaskError::ShutDown));
    not_with_agents!("what runs has its agent's `cancel_grace`");
    assert!(!is_left);
}

async fn shutdown_now_hurries_a_shutdown_that_waits(builder: Builder) {
    let pool = builder.open().unwrap();
    let (running, guest) = begin(&pool).await;
    let mut waiting = pin!(pool.shutdown());
    assert!(poll!(waiting.as_mut()).is_pending());
    pool.shutdown_now().await;
    waiting.await;
    assert_matches!(running.await, Err(TaskError::ShutDown));
    guest.gone().await;
}

async fn every_handle_of_the_pool_is_shut_down(builder: Builder) {
    let pool = builder.open().unwrap();
    let other = pool.clone();
    pool.shutdown().await;
    assert!(other.is_shut_down());
    assert_matches!(other.submit(|| 1u8, ()).await, Err(TaskError::ShutDown));
}

async fn submitting_while_it_shuts_down_never_hangs(builder: Builder) {
    let pool = builder.open().unwrap();
    a_worker(&pool).await;
    let submitter = pool.clone();
    let submits = std::thread::spawn(move || {
        let mut handles = Vec::new();
        while !submitter.is_shut_down() {
            handles.push(submitter.submit(|x: u8| x, 1));
        }
        handles.push(submitter.submit(|x: u8| x, 1));
        handles
    });
    eventually("some are accepted", || pool.stats().submitted() > 10).await;
    pool.shutdown().await;
    let handles = submits.join().unwrap();
    let mut outcomes = futures::future::join_all(handles).await;
    assert_matches!(outcomes.pop().unwrap(), Err(TaskError::ShutDown));
    for outcome in outcomes {
        assert_matches!(outcome, Ok(1) | Err(TaskError::ShutDown));
    }
}

async fn the_last_handle_lets_accepted_tasks_finish(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let ledger = Ledger::new();
    let (running, guest) = begin(&pool).await;
    let queued = pool.submit(|| 5u8, ());
    pool.submit(|place: String| note(&place, "detached"), ledger.place()).detach();
    drop(pool);
    drop(guest);
    running.await.unwrap();
    assert_eq!(queued.await.unwrap(), 5);
    eventually("the detached one is done", || ledger.lines() == ["detached"]).await;
}

async fn the_last_handle_reaps_the_workers(builder: Builder) {
    not_with_agents!("workers are the agents', and outlive the pool");
    let pool = builder.open().unwrap();
    let (handle, guest) = begin(&pool).await;
    let pid = guest.pid;
    let server = parent_of(pid).unwrap();
    drop(guest);
    handle.await.unwrap();
    drop(pool);
    gone(pid).await;
    eventually("it is reaped", || !is_alive(pid)).await;
    if server != std::process::id() {
        gone(server).await;
    }
}

async fn the_last_handle_of_an_unused_pool(builder: Builder) {
    let pool = builder.open().unwrap();
    drop(pool.clone());
    assert!(!pool.is_shut_down());
    drop(pool); // and nothing is left behind
}

fn a_dropped_runtime_resolves_every_handle_and_kills_the_workers(builder: Builder) {
    let runtime = common::multi_thread();
    let (pool, handles, guest) = runtime.block_on(async {
        let pool = builder.workers(1).open().unwrap();
        let (running, guest) = begin(&pool).await;
        let handles = [running, pool.submit(|| (), ()), pool.submit(|| (), ())];
        (pool, handles, guest)
    });
    drop(runtime);
    for handle in handles {
        assert_matches!(futures::executor::block_on(handle), Err(TaskError::ShutDown));
    }
    common::current_thread().block_on(gone(guest.pid));
    drop(pool);
}

fn a_task_submitted_after_its_runtime_resolves(builder: Builder) {
    let runtime = common::multi_thread();
    let pool = runtime.block_on(async { builder.open().unwrap() });
    runtime.block_on(a_worker(&pool));
    drop(runtime);
    let outcome = futures::executor::block_on(pool.submit(|| 1u8, ()));
    assert_matches!(outcome, Err(TaskError::ShutDown));
    futures::executor::block_on(pool.shutdown());
}

/// Starts the helper program below, and reads the process ids of its workers, and of whoever
/// started them.
fn program(method: StartMethod, ending: &str) -> (Child, Vec<u32>) {
    let mut program = helper("has_a_pool", &format!("{method:?} {ending}"));
    let mut program = program.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(program.stdout.as_mut().unwrap()).lines();
    let mut pids = Vec::new();
    for line in lines {
        let line = line.unwrap();
        if line == "that is all" {
            break;
        }
        pids.extend(line.strip_prefix("pid ").map(|pid| pid.parse::<u32>().unwrap()));
    }
    let servers: Vec<u32> = pids.iter().filter_map(|&pid| parent_of(pid)).collect();
    pids.extend(servers.into_iter().filter(|&pid| pid != program.id()));
    assert!(pids.len() >= 3, "three workers at least: {pids:?}");
    (program, pids)
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

#[test]
#[ignore = "a program for the tests around it"]
fn has_a_pool() {
    let Some(word) = helping() else { return };
    let (method, ending) = word.split_once(' ').unwrap();
    let method = match method {
        "ForkServer" => StartMethod::ForkServer,
        _ => StartMethod::Spawn,
    };
    common::multi_thread().block_on(async {
        let pool = Builder::given(method).workers(4).open().unwrap();
        let (_handle, guest) = begin(&pool).await;
        println!("pid {}", guest.pid);
        for _ in 0..2 {
            let spins = pool.submit(spin, ());
            eventually("it spins", || spins.worker_pid().is_some()).await;
            println!("pid {}", spins.worker_pid().unwrap());
            spins.detach();
        }
        println!("pid {}\nthat is all", a_worker(&pool).await); // an idle one
        let stdin = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
        let _ = stdin.await;
        match ending {
            "exit" => std::process::exit(0),
            _ => drop(pool),
        }
    });
}

fn watch_them_go(pids: &[u32]) {
    common::current_thread().block_on(async {
        for &pid in pids {
            tokio::time::timeout(common::PATIENCE, gone(pid)).await.expect("it stays");
        }
    });
}

fn a_killed_program_leaves_nothing_behind(method: StartMethod) {
    let (mut program, pids) = program(method, "killed");
    assert!(pids.iter().copied().all(is_alive));
    program.kill().unwrap();
    program.wait().unwrap();
    watch_them_go(&pids);
}

fn a_program_that_exits_leaves_nothing_behind(method: StartMethod) {
    let (mut program, pids) = program(method, "exit");
    assert!(pids.iter().copied().all(is_alive));
    drop(program.stdin.take());
    assert!(program.wait().unwrap().success());
    watch_them_go(&pids);
}
