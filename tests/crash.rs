//! One task's death is its own: nothing else is lost, run twice, leaked or held up by it.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Given, Ledger, Meeting, Open, a_worker, attend, died, gone, note, parent_of};
use procession::{Builder, ProcessPool, StartMethod, TaskError};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

both! {
    one_death_touches_no_other_task,
    tasks_with_large_arguments_that_all_abort_hold_nothing_up,
    a_thousand_crashes_leak_nothing,
    a_daughter_process_that_holds_the_pipes_holds_nothing_up,
    a_task_runs_at_most_once_whatever_dies_around_it,
    a_result_written_before_a_death_is_kept,
    a_worker_killed_from_outside_is_replaced,
    a_worker_killed_while_idle_costs_no_task,
    a_stopped_worker_times_out,
    a_stopped_worker_is_cancelled,
    every_task_of_any_mixture_has_its_own_outcome,
}

const MIB: usize = 1 << 20;

fn kill(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
}

async fn one_death_touches_no_other_task(builder: Builder) {
    fn task(n: u32) -> u32 {
        if n == 25 {
            std::process::abort();
        }
        n
    }
    let pool = builder.open().unwrap();
    let handles: Vec<_> = (0..50).map(|n| pool.submit(task, n)).collect();
    for (n, outcome) in (0..).zip(futures::future::join_all(handles).await) {
        if n == 25 {
            assert_eq!(died(outcome).signal(), Some(libc::SIGABRT));
        } else {
            assert_eq!(outcome.unwrap(), n);
        }
    }
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert_eq!(pool.stats().workers_died(), 1);
}

async fn tasks_with_large_arguments_that_all_abort_hold_nothing_up(builder: Builder) {
    let pool = builder.open().unwrap();
    let abort = |_: Vec<u8>| -> u8 { std::process::abort() };
    let handles: Vec<_> = (0..10).map(|_| pool.submit(abort, vec![1; 4 * MIB])).collect();
    let behind = pool.submit(|v: Vec<u8>| v.len(), vec![1; 4 * MIB]);
    for handle in handles {
        assert_eq!(died(handle.await).signal(), Some(libc::SIGABRT));
    }
    assert_eq!(behind.await.unwrap(), 4 * MIB);
    pool.shutdown().await;
}

async fn a_thousand_crashes_leak_nothing(builder: Builder) {
    let pool = builder.open().unwrap();
    pool.warm_up().await.unwrap();
    let (open, below) = (common::descriptors().len(), count_processes());
    for _ in 0..10 {
        let exit = |code: i32| -> u8 { std::process::exit(code) };
        let handles: Vec<_> = (0..100).map(|code| pool.submit(exit, code)).collect();
        for (code, handle) in (0..).zip(handles) {
            assert_eq!(died(handle.await).code(), Some(code));
        }
    }
    not_with_agents!("workers are the agents', and counted there");
    assert_eq!(pool.stats().workers_died(), 1000);
    pool.warm_up().await.unwrap();
    common::eventually("no more than before", || {
        common::descriptors().len() <= open && count_processes() <= below
    })
    .await;
    pool.shutdown().await;
}

/// Zombies and all.
fn count_processes() -> usize {
    common::descendants(std::process::id()).len()
}

async fn a_daughter_process_that_holds_the_pipes_holds_nothing_up(builder: Builder) {
    fn fork_and_exit(ledger: String) {
        // SAFETY: the daughter calls only what may be called after a fork.
        match unsafe { libc::fork() } {
            0 => loop {
                unsafe { libc::pause() };
            },
            daughter => note(&ledger, daughter),
        }
        std::process::exit(7)
    }
    let pool = builder.workers(1).open().unwrap();
    let ledger = Ledger::new();
    let exit = died(pool.submit(fork_and_exit, ledger.place()).await);
    assert_eq!(exit.code(), Some(7));
    a_worker(&pool).await;
    pool.shutdown().await;
    let daughter: u32 = ledger.lines()[0].parse().unwrap();
    if common::is_alive(daughter) {
        kill(daughter, libc::SIGKILL);
    }
    gone(daughter).await;
}

async fn a_task_runs_at_most_once_whatever_dies_around_it(builder: Builder) {
    fn task(place: String, n: u32) -> u32 {
        note(&place, n);
        if n.is_multiple_of(7) {
            std::process::abort();
        }
        n
    }
    let pool = builder.open().unwrap();
    let ledger = Ledger::new();
    let numbers = 1000..1210;
    let handles: Vec<_> = numbers.clone().map(|n| pool.submit(task, (ledger.place(), n))).collect();
    for (n, handle) in numbers.clone().zip(handles) {
        match handle.await {
            Ok(result) => assert_eq!((result, n % 7 != 0), (n, true)),
            Err(error) => assert!(n % 7 == 0 && matches!(error, TaskError::WorkerDied(_)), "{n} {error:?}"),
        }
    }
    assert_eq!(ledger.sorted(), numbers.map(|n| n.to_string()).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn a_result_written_before_a_death_is_kept(builder: Builder) {
    fn die_soon_after(millis: u64) -> u64 {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(millis));
            std::process::abort()
        });
        millis
    }
    let pool = builder.workers(1).open().unwrap();
    for _ in 0..20 {
        let kept = pool.submit(|v: Vec<u8>| v, vec![7; 1000]);
        let dies = pool.submit(|| -> u8 { std::process::abort() }, ());
        let behind = pool.submit(|| 8u8, ());
        assert_eq!(kept.await.unwrap(), [7; 1000]);
        died(dies.await);
        assert_eq!(behind.await.unwrap(), 8);
    }
    // Long enough after the result is written, not long enough to read it at leisure.
    assert_eq!(pool.submit(die_soon_after, 100).await.unwrap(), 100);
    pool.shutdown().await;
}

async fn a_worker_killed_from_outside_is_replaced(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(|place: String| attend(&place, "one"), meeting.place());
    let guest = meeting.next().await;
    kill(guest.pid, libc::SIGKILL);
    let exit = died(task.await);
    assert_eq!((exit.pid(), exit.signal()), (guest.pid, Some(libc::SIGKILL)));
    assert_ne!(a_worker(&pool).await, guest.pid);
    pool.shutdown().await;
}

async fn a_worker_killed_while_idle_costs_no_task(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    for _ in 0..20 {
        let pid = a_worker(&pool).await;
        kill(pid, libc::SIGKILL);
        gone(pid).await;
        assert_ne!(a_worker(&pool).await, pid); // it never began in the one that died
    }
    pool.shutdown().await;
}

async fn a_stopped_worker_times_out(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    let attends = |place: String| attend(&place, "stopped");
    let task = pool.task(attends, meeting.place()).timeout(Duration::from_millis(200)).submit();
    let guest = meeting.next().await;
    kill(guest.pid, libc::SIGSTOP);
    assert_matches!(task.await, Err(TaskError::TimedOut { .. }));
    guest.gone().await;
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn a_stopped_worker_is_cancelled(builder: Builder) {
    let pool = builder.workers(1).cancel_grace(Duration::from_millis(20)).open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(|place: String| attend(&place, "stopped"), meeting.place());
    let guest = meeting.next().await;
    kill(guest.pid, libc::SIGSTOP);
    task.cancel();
    assert_matches!(task.await, Err(TaskError::Cancelled));
    guest.gone().await;
    a_worker(&pool).await;
    pool.shutdown().await;
}

/// What a task does, and so what its outcome must be.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
enum Deed {
    Return(u32),
    ReturnMuch(u32),
    Panic(u32),
    Exit(u8),
    Abort,
}

fn a_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => any::<u32>().prop_map(Deed::Return),
        2 => (0..300_000u32).prop_map(Deed::ReturnMuch),
        2 => any::<u32>().prop_map(Deed::Panic),
        1 => any::<u8>().prop_map(Deed::Exit),
        1 => Just(Deed::Abort),
    ]
}

fn carry_out(place: String, index: usize, deed: Deed) -> Vec<u8> {
    note(&place, format!("{index:04}"));
    match deed {
        Deed::Return(value) => value.to_le_bytes().to_vec(),
        Deed::ReturnMuch(size) => vec![42; size as usize],
        Deed::Panic(value) => panic!("{value}"),
        Deed::Exit(code) => std::process::exit(code.into()),
        Deed::Abort => std::process::abort(),
    }
}

fn expect_outcome(deed: Deed, outcome: Result<Vec<u8>, TaskError>) {
    match deed {
        Deed::Return(value) => assert_eq!(outcome.unwrap(), value.to_le_bytes()),
        Deed::ReturnMuch(size) => assert!(outcome.unwrap() == vec![42; size as usize]),
        Deed::Panic(value) => assert_eq!(common::panicked(outcome).message(), value.to_string()),
        Deed::Exit(code) => assert_eq!(died(outcome).code(), Some(code.into())),
        Deed::Abort => assert_eq!(died(outcome).signal(), Some(libc::SIGABRT)),
    }
}

async fn every_task_of_any_mixture_has_its_own_outcome(method: StartMethod) {
    let mut runner = proptest::test_runner::TestRunner::default();
    for _ in 0..5 {
        let deeds = prop::collection::vec(a_deed(), 100).new_tree(&mut runner).unwrap().current();
        let (pool, ledger) = (Builder::given(method).open().unwrap(), Ledger::new());
        let submit = |(index, &deed)| pool.submit(carry_out, (ledger.place(), index, deed));
        let handles: Vec<_> = deeds.iter().enumerate().map(submit).collect();
        for (&deed, outcome) in deeds.iter().zip(futures::future::join_all(handles).await) {
            expect_outcome(deed, outcome);
        }
        let each_once: Vec<String> = (0..100).map(|index| format!("{index:04}")).collect();
        assert_eq!(ledger.sorted(), each_once);
        pool.shutdown().await;
    }
}

/// What happens to the process that starts the others.
mod a_killed_fork_server {
    use super::*;

    /// Starts a worker at a task, and finds its parent.
    async fn find(pool: &ProcessPool) -> u32 {
        let pid = a_worker(pool).await;
        let server = parent_of(pid).unwrap();
        assert!(server != std::process::id() && server > 1, "{server}");
        server
    }

    fn pool() -> ProcessPool {
        Builder::given(StartMethod::ForkServer).open().unwrap()
    }

    #[test]
    fn takes_its_workers_along_and_the_pool_goes_on() {
        here_only!("a worker's parent is its steward, without which its machine is lost");
        common::run(async {
            let (pool, meeting) = (pool(), Meeting::new());
            let server = find(&pool).await;
            let task = pool.submit(|place: String| attend(&place, "one"), meeting.place());
            let guest = meeting.next().await;
            kill(server, libc::SIGKILL);
            let pid = guest.pid;
            guest.gone().await;
            assert_eq!(died(task.await).pid(), pid);
            assert_ne!(find(&pool).await, server);
            pool.shutdown().await;
        });
    }

    #[test]
    fn costs_no_task_while_idle() {
        here_only!("a worker's parent is its steward, without which its machine is lost");
        common::run(async {
            let pool = pool();
            let mut servers = BTreeSet::new();
            for _ in 0..5 {
                let server = find(&pool).await;
                assert!(servers.insert(server));
                kill(server, libc::SIGKILL);
                gone(server).await;
            }
            a_worker(&pool).await;
            pool.shutdown().await;
        });
    }

    #[test]
    fn does_not_keep_shutdown_waiting() {
        common::run(async {
            let pool = pool();
            kill(find(&pool).await, libc::SIGKILL);
            pool.shutdown().await;
        });
    }
}
