//! Workers that turn against their pool: they write whatever they like to the memory and the pipes
//! that they share with it. Nobody but their own tasks may suffer.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;
#[path = "hostile/evil.rs"]
mod evil;

use common::{eventually, gone, processes};
use futures::StreamExt;
use procession::{Arguments, Builder, ExitCause, ProcessPool, TaskError, WorkerStdio};
use std::time::{Duration, Instant};

/// The time that hostile tasks are given.
const TIME: Duration = Duration::from_secs(1);

/// How much later than that they may resolve, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(5);

/// How much more memory the program may take up meanwhile: that which it shares with the worker,
/// should all of that be written to, and some.
const ROOM: u64 = 160 << 20;

both! {
    writing_all_over_the_shared_memory,
    saying_anything,
    answering_for_others,
    ringing_without_end,
    beginning_for_ever,
    finishing_and_going_on,
    never_beginning,
    cutting_the_memory_short,
    flooding_the_standard_streams,
    closing_everything,
    claiming_much_and_stalling,
    filling_the_ring,
    a_tail_that_wavers,
    hearing_nothing,
    leaving_a_daughter_behind,
    reporting_without_end,
    logging_without_end,
    sending_without_room,
    never_dying,
    closing_its_ear,
    bearing_siblings,
}

type Outcome = Result<(u32, u64), TaskError>;

/// A task as it should be.
fn good(n: u64) -> (u32, u64) {
    (std::process::id(), n + 1)
}

fn culprit_of(outcome: &Outcome) -> u32 {
    match outcome {
        Ok((pid, _)) => *pid,
        Err(TaskError::WorkerDied(exit)) => exit.pid(),
        Err(error) => panic!("it never ran: {error}"),
    }
}

/// Runs a hostile task, with others beside it and after it, and looks that these are well and that
/// the program is none the worse for it; what the task came to.
async fn suffer<F, M>(builder: Builder, hostile: F) -> Outcome
where
    F: Copy + Send + Sync + 'static,
    u64: Arguments<F, M, Output = (u32, u64)>,
{
    let pool = builder.build().unwrap();
    pool.warm_up().await.unwrap();
    let before = peak_memory();
    let start = Instant::now();
    let mut task = pool.task(hostile, 0x9E37_79B9_7F4A_7C15).timeout(TIME).submit();
    let mut culprit = None;
    eventually("it begins", || {
        culprit = task.worker_pid();
        culprit.is_some() || task.is_finished()
    })
    .await;
    // One that has ended before it could be seen to run has told what its process was.
    let mut early = None;
    let culprit = match culprit {
        Some(pid) => pid,
        None => culprit_of(early.insert((&mut task).await)),
    };
    let task = async {
        match early {
            Some(outcome) => outcome,
            None => task.await,
        }
    };
    let beside = async {
        for n in 0..40 {
            let outcome = pool.submit(good, n).await;
            assert!(is_well(&outcome, n, culprit), "{outcome:?}, and the culprit is {culprit}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (outcome, ()) = tokio::join!(task, beside);
    assert!(start.elapsed() < TIME + GRACE, "resolves only after {:?}: {outcome:?}", start.elapsed());
    afterwards(&pool, culprit).await;
    let more = peak_memory().saturating_sub(before);
    assert!(more < ROOM, "{more} bytes more");
    pool.shutdown().await;
    outcome
}

/// Whether a task came out as it should, or else can have been with the culprit, who may be idle.
fn is_well(outcome: &Outcome, n: u64, culprit: u32) -> bool {
    match outcome {
        Ok((pid, value)) => *value == n + 1 || [0, culprit].contains(pid),
        Err(TaskError::WorkerDied(exit)) => exit.pid() == culprit,
        Err(_) => false,
    }
}

/// With the culprit gone, all is well.
async fn afterwards(pool: &ProcessPool, culprit: u32) {
    if pool.workers().iter().any(|worker| worker.pid() == culprit && worker.current_task().is_some()) {
        gone(culprit).await;
    }
    let is_with_us = || pool.workers().iter().any(|worker| worker.pid() == culprit);
    eventually("the pool knows", || !is_with_us() || is_well_again(culprit)).await;
    for n in 0..20 {
        let mut outcome = pool.submit(good, n).await;
        // On its way out it has as many threads as one that is well, for a moment.
        if matches!(&outcome, Err(TaskError::WorkerDied(exit)) if exit.pid() == culprit) {
            outcome = pool.submit(good, n).await;
        }
        assert!(matches!(outcome, Ok((_, value)) if value == n + 1), "{outcome:?}");
    }
    let used = processor_time();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let used = processor_time() - used;
    assert!(used < Duration::from_millis(100), "busy for {used:?} with nothing to do");
}

/// Whether the culprit is as if nothing had been.
fn is_well_again(culprit: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{culprit}/status")).unwrap_or_default();
    // Its own two threads: what it did is over, and it has not said that it would end.
    name.contains("Threads:\t2\n")
}

fn processor_time() -> Duration {
    // SAFETY: an all-zero rusage is valid, and the pointer is to a live one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The most memory that this process has had since this was last asked.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn is_typed(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Ok(_) | Err(TaskError::WorkerDied(_) | TaskError::TimedOut { .. } | TaskError::Codec(_))
    )
}

fn is_violation(outcome: &Outcome) -> bool {
    matches!(outcome, Err(TaskError::WorkerDied(exit)) if exit.cause() == ExitCause::ProtocolViolation)
}

async fn writing_all_over_the_shared_memory(builder: Builder) {
    let outcome = suffer(builder, evil::scribble).await;
    assert!(is_typed(&outcome), "{outcome:?}");
}

async fn saying_anything(builder: Builder) {
    let outcome = suffer(builder, evil::say_anything).await;
    // What it says of itself is believed, should that come first: without a ring it may come so.
    let is_own = common::is_elsewhere() && matches!(outcome, Ok((0, 66)));
    assert!(is_violation(&outcome) || is_own, "{outcome:?}");
}

async fn answering_for_others(builder: Builder) {
    let outcome = suffer(builder, evil::answer_for_others).await;
    assert_eq!(outcome.unwrap(), (0, 66));
}

async fn ringing_without_end(builder: Builder) {
    let outcome = suffer(builder, evil::ring).await;
    assert!(is_violation(&outcome), "{outcome:?}");
}

async fn beginning_for_ever(builder: Builder) {
    let outcome = suffer(builder, evil::begin_for_ever).await;
    assert_matches!(outcome, Err(TaskError::TimedOut { .. }));
}

async fn finishing_and_going_on(builder: Builder) {
    here_only!("elsewhere there is no ring and no slot: all there is comes through a connection");
    let outcome = suffer(builder, evil::finish_and_go_on).await;
    assert_matches!(outcome, Err(TaskError::WorkerDied(_)));
}

async fn cutting_the_memory_short(builder: Builder) {
    let outcome = suffer(builder, evil::shrink).await;
    assert_eq!(outcome.unwrap().1, 0);
}

async fn flooding_the_standard_streams(builder: Builder) {
    let builder = builder.stdout(WorkerStdio::Capture).stderr(WorkerStdio::Capture);
    let outcome = suffer(builder, evil::flood).await;
    assert_eq!(outcome.unwrap().1, 0);
}

async fn closing_everything(builder: Builder) {
    let outcome = suffer(builder, evil::close_all).await;
    assert_matches!(outcome, Err(TaskError::WorkerDied(_)));
}

async fn claiming_much_and_stalling(builder: Builder) {
    let outcome = suffer(builder, evil::claim).await;
    assert_matches!(outcome, Err(TaskError::WorkerDied(_)));
}

async fn filling_the_ring(builder: Builder) {
    here_only!("elsewhere there is no ring and no slot: all there is comes through a connection");
    let outcome = suffer(builder, evil::fill_ring).await;
    assert!(is_typed(&outcome), "{outcome:?}");
}

async fn a_tail_that_wavers(builder: Builder) {
    here_only!("elsewhere there is no ring and no slot: all there is comes through a connection");
    let outcome = suffer(builder, evil::waver).await;
    assert!(is_typed(&outcome), "{outcome:?}");
}

async fn hearing_nothing(builder: Builder) {
    let outcome = suffer(builder, evil::be_deaf).await;
    assert_eq!(outcome.unwrap().1, 0);
}

async fn leaving_a_daughter_behind(builder: Builder) {
    let outcome = suffer(builder, evil::leave_a_daughter).await;
    assert_matches!(outcome, Err(TaskError::WorkerDied(_)));
}

/// A task that says it has never begun runs elsewhere, but not again and again.
async fn never_beginning(builder: Builder) {
    let pool = builder.build().unwrap();
    let outcome = tokio::time::timeout(GRACE * 2, pool.submit(evil::never_begin, 1)).await;
    let outcome = outcome.expect("it goes on for ever");
    assert_matches!(outcome, Err(TaskError::WorkerDied(_) | TaskError::PoolBroken(_)));
    let start = Instant::now();
    while pool.submit(good, 1).await.is_err() {
        assert!(start.elapsed() < GRACE * 2, "the pool does not mend");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pool.shutdown().await;
}

/// The time for which the pool is busy with a task that it lets go on, as a share of the time that it is there.
async fn share<F, M>(builder: Builder, hostile: F) -> f64
where
    F: Copy + Send + Sync + 'static,
    u64: Arguments<F, M, Output = (u32, u64)>,
{
    let pool = builder.build().unwrap();
    pool.warm_up().await.unwrap();
    let (start, used) = (Instant::now(), processor_time());
    let outcome = pool.task(hostile, 1).timeout(TIME).submit().await;
    let share = (processor_time() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    assert_matches!(outcome, Err(TaskError::TimedOut { .. }));
    assert_eq!(pool.submit(good, 1).await.unwrap().1, 2);
    pool.shutdown().await;
    share
}

async fn reporting_without_end(builder: Builder) {
    bearable(share(builder, evil::report_without_end).await);
}

async fn logging_without_end(builder: Builder) {
    if !cfg!(any(feature = "log", feature = "tracing")) {
        // There is nothing that a worker may log.
        let outcome = suffer(builder, evil::log_without_end).await;
        return assert!(is_violation(&outcome), "{outcome:?}");
    }
    bearable(share(builder, evil::log_without_end).await);
}

/// Elsewhere it takes as much again to decrypt what comes, or more.
fn bearable(share: f64) {
    assert!(share < 0.5 || common::is_elsewhere(), "the program is busy for {share} of the time");
}

async fn sending_without_room(builder: Builder) {
    let pool = builder.clone().build().unwrap();
    let mut stream = pool.stream(evil::send_without_room, 1).window(10);
    let mut items: Vec<_> = stream.by_ref().take(5).collect().await;
    items.extend(stream.collect::<Vec<_>>().await);
    // As long as they are taken there is room.
    let end = items.pop().unwrap();
    assert!(matches!(&end, Err(TaskError::WorkerDied(_))) || end.is_ok(), "{end:?}");
    assert!(items.iter().all(|item| matches!(item, Ok((0, 66)))));
    pool.shutdown().await;
    let pool = builder.build().unwrap();
    let neglected = pool.stream(evil::send_without_room, 1).window(10);
    let mut neglected = std::pin::pin!(neglected.peekable());
    assert!(neglected.as_mut().peek().await.is_some());
    eventually("it is found out", || pool.stats().workers_died() == 1).await;
    let items: Vec<_> = neglected.collect().await;
    assert!(items.len() <= 11, "{}", items.len());
    assert!(matches!(items.last(), Some(Err(TaskError::WorkerDied(exit)))
        if exit.cause() == ExitCause::ProtocolViolation));
    for n in 0..20 {
        assert_eq!(pool.submit(good, n).await.unwrap().1, n + 1);
    }
    pool.shutdown().await;
}

/// A process that does not die although it is killed is not waited for.
async fn never_dying(builder: Builder) {
    here_only!("elsewhere its steward is in charge");
    let pool = builder.build().unwrap();
    let mut task = pool.submit(evil::never_die, 1);
    let mut culprit = None;
    eventually("it begins", || {
        culprit = task.worker_pid();
        culprit.is_some() || task.is_finished()
    })
    .await;
    let outcome = tokio::time::timeout(Duration::from_secs(30), &mut task).await;
    let outcome = outcome.expect("its task is never resolved");
    if outcome.is_ok() {
        eprintln!("skipped: no process may be traced here");
        return pool.shutdown().await;
    }
    assert!(is_violation(&outcome), "{outcome:?}");
    assert_eq!(pool.submit(good, 1).await.unwrap().1, 2);
    let ended = tokio::time::timeout(Duration::from_secs(30), pool.shutdown()).await;
    ended.expect("the pool never ends");
    let culprit = culprit.unwrap();
    assert!(common::is_alive(culprit), "it did die");
    for daughter in processes().into_iter().filter(|process| process.parent == culprit) {
        // SAFETY: this takes no pointers.
        unsafe { libc::kill(daughter.pid as i32, libc::SIGKILL) };
    }
}

/// Not even a program that a broken pipe would end, as other programs of the shell.
async fn closing_its_ear(builder: Builder) {
    here_only!("elsewhere it is a connection, and closed in both directions");
    // SAFETY: setting a signal to its default, or as it was, installs no code.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let outcome = suffer(builder, evil::close_its_ear).await;
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGPIPE, before) };
    assert_eq!(outcome.unwrap().1, 0);
}

async fn bearing_siblings(builder: Builder) {
    let outcome = suffer(builder, evil::bear_siblings).await;
    assert_eq!(outcome.unwrap().1, 0);
}
