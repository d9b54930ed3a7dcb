//! Single faults at chosen moments.

use std::time::{Duration, Instant};

use procession::{Builder, ExitCause, PoolError, ProcessPool, StartMethod, TaskError, WorkerStdio};

use crate::common::{
    self, Given, Ledger, Meeting, a_worker, attend, current_thread, died, eventually, gone, multi_thread,
    note, parent_of,
};
use crate::harness::deeds::{self, Noise, Then, babble, scribble};

both! {
    sync a_cancelled_task_that_is_done_does_not_take_the_next_along,
    workers_killed_while_they_start_cost_no_task,
    workers_that_never_get_ready_break_the_pool_for_a_while,
    a_worker_stopped_while_it_starts_is_given_up,
    a_stopped_worker_with_nothing_to_do_does_not_keep_shutdown_waiting,
    noise_in_the_result_pipe_costs_its_own_task,
    noise_in_the_shared_memory_costs_one_worker,
    daughters_do_not_keep_shutdown_waiting,
    a_flood_of_output_ends_with_its_tail,
    sync no_thread_of_the_runtime_is_needed_to_start_a_worker,
    sync a_runtime_dropped_while_workers_start_leaves_nothing,
    sync a_pool_without_its_runtime_shows_no_workers,
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
}

fn a_cancelled_task_that_is_done_does_not_take_the_next_along(builder: Builder) {
    fn next(place: String) -> u32 {
        note(&place, "next");
        std::thread::sleep(Duration::from_millis(20));
        7
    }
    current_thread().block_on(async {
        let pool = builder.workers(1).cancel_grace(Duration::ZERO).look_out(Duration::ZERO).build().unwrap();
        for _ in 0..10 {
            // So many that the worker is sent several at a time.
            for _ in 0..100 {
                a_worker(&pool).await;
            }
            // Until no alarm is set that would hide the one in question.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let ledger = Ledger::new();
            let cancelled = pool.submit(|| (), ());
            let next = pool.submit(next, ledger.place());
            // The runtime is held up, with the worker's first answer unread, until the second task has
            // begun: briefly, for nothing else is to be due then.
            let start = Instant::now();
            while ledger.lines().is_empty() && start.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            cancelled.cancel();
            assert_eq!(next.await.unwrap(), 7);
        }
        assert_eq!(pool.stats().workers_died(), 0);
        pool.shutdown().await;
    });
}

/// Has each worker attend before it is ready.
fn attending(builder: Builder, meeting: &Meeting) -> Builder {
    builder.workers(1).initializer(|place: String| attend(&place, "initializer"), meeting.place())
}

async fn workers_killed_while_they_start_cost_no_task(builder: Builder) {
    let meeting = Meeting::new();
    let pool = attending(builder, &meeting).build().unwrap();
    let task = pool.submit(|| 7u8, ());
    for signal in [libc::SIGKILL, libc::SIGSEGV] {
        let guest = meeting.next().await;
        kill(guest.pid, signal);
        guest.gone().await;
    }
    drop(meeting.next().await);
    assert_eq!(task.await.unwrap(), 7);
    pool.shutdown().await;
    assert_eq!((pool.stats().workers_started(), pool.stats().workers_died()), (1, 0));
}

async fn workers_that_never_get_ready_break_the_pool_for_a_while(builder: Builder) {
    let meeting = Meeting::new();
    let pool = attending(builder, &meeting).build().unwrap();
    let task = pool.submit(|| 7u8, ());
    for _ in 0..3 {
        let guest = meeting.next().await;
        kill(guest.pid, libc::SIGKILL);
        guest.gone().await;
    }
    assert_matches!(task.await, Err(TaskError::PoolBroken(PoolError::NotReady { .. })));
    let mends = async {
        while pool.submit(|| 7u8, ()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let lets_one_start = async { drop(meeting.next().await) };
    futures::join!(mends, lets_one_start);
    pool.shutdown().await;
}

async fn a_worker_stopped_while_it_starts_is_given_up(builder: Builder) {
    let meeting = Meeting::new();
    let pool = attending(builder, &meeting).start_timeout(Duration::from_millis(500)).build().unwrap();
    let task = pool.submit(|| 7u8, ());
    let guest = meeting.next().await;
    kill(guest.pid, libc::SIGSTOP);
    guest.gone().await;
    drop(meeting.next().await);
    assert_eq!(task.await.unwrap(), 7);
    pool.shutdown().await;
}

async fn a_stopped_worker_with_nothing_to_do_does_not_keep_shutdown_waiting(builder: Builder) {
    let pool = builder.workers(1).build().unwrap();
    let pid = a_worker(&pool).await;
    kill(pid, libc::SIGSTOP);
    pool.shutdown().await;
    assert!(!common::is_alive(pid));
}

async fn noise_in_the_result_pipe_costs_its_own_task(builder: Builder) {
    let pool = builder.workers(1).stderr(WorkerStdio::Null).build().unwrap();
    let limit = Duration::from_millis(200);
    for _ in 0..3 {
        let task = pool.task(babble, (Noise::Oversize, Then::Hang)).submit();
        let behind: Vec<_> = (0..20u32).map(|n| pool.submit(|n: u32| n, n)).collect();
        assert_eq!(died(task.await).cause(), ExitCause::ProtocolViolation);
        assert_eq!(futures::future::try_join_all(behind).await.unwrap(), (0..20).collect::<Vec<_>>());
        let hangs = pool.task(babble, (Noise::Truncated, Then::Hang)).timeout(limit);
        assert_matches!(hangs.await, Err(TaskError::TimedOut { .. }));
        let aborts = pool.submit(babble, (Noise::Truncated, Then::Abort));
        assert_eq!(died(aborts.await).signal(), Some(libc::SIGABRT));
    }
    for seed in 0..30 {
        let random = pool.task(babble, (Noise::Random(seed), Then::Abort));
        assert!(random.await.is_err());
        assert_eq!(pool.submit(|| 7u8, ()).await.unwrap(), 7);
    }
    pool.shutdown().await;
}

async fn noise_in_the_shared_memory_costs_one_worker(builder: Builder) {
    let pool = builder.workers(1).stderr(WorkerStdio::Null).build().unwrap();
    let limit = Duration::from_millis(100);
    // One that hangs may have said that it is done, and is given some seconds to show for it.
    let hangs = (0..2).map(|seed| (seed, Then::Hang));
    for (seed, then) in (0..30).map(|seed| (seed, Then::Abort)).chain(hangs) {
        // What is told of this task may be anything.
        let _ = pool.task(scribble, (seed, then)).timeout(limit).await;
        assert_eq!(pool.submit(|| 7u8, ()).await.unwrap(), 7);
    }
    pool.shutdown().await;
}

async fn daughters_do_not_keep_shutdown_waiting(builder: Builder) {
    let pool = builder.build().unwrap();
    let daughter: u32 = pool.submit(deeds::fork_daughter, ()).await.unwrap();
    pool.shutdown().await;
    kill(daughter, libc::SIGKILL);
    gone(daughter).await;
}

async fn a_flood_of_output_ends_with_its_tail(builder: Builder) {
    fn flood() {
        for line in 0..100_000 {
            println!("{line}");
            eprintln!("{line}");
        }
        std::process::abort()
    }
    let (out, err) = (WorkerStdio::Capture, WorkerStdio::Capture);
    let pool = builder.stdout(out).stderr(err).build().unwrap();
    let exit = died(pool.submit(flood, ()).await);
    for tail in [exit.stdout_tail(), exit.stderr_tail()] {
        assert!(tail.len() <= 8 << 10 && tail.ends_with("\n99999\n"), "{tail:?}");
    }
    pool.shutdown().await;
}

/// Where all blocking threads wait for the pool, there is none to start its workers with.
fn no_thread_of_the_runtime_is_needed_to_start_a_worker(builder: Builder) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        let pool = builder.build().unwrap();
        let waits = |pool: ProcessPool| move || futures::executor::block_on(pool.submit(|| 7u8, ()));
        let mut waiting = tokio::task::spawn_blocking(waits(pool.clone()));
        let result = tokio::time::timeout(Duration::from_secs(20), &mut waiting).await;
        // It lets go of the thread, should that still wait.
        pool.shutdown_now().await;
        assert_eq!(result.expect("no worker is started").unwrap().unwrap(), 7);
    });
}

fn a_runtime_dropped_while_workers_start_leaves_nothing(builder: Builder) {
    for delay in 0..12u32 {
        let runtime = multi_thread();
        let pool =
            builder.clone().workers(3).min_workers(3).runtime(runtime.handle().clone()).build().unwrap();
        let task = pool.submit(|| 7u8, ());
        // Each time at another moment of the starts.
        std::thread::sleep(Duration::from_micros(300) * delay);
        drop(runtime);
        match futures::executor::block_on(task) {
            Ok(7) | Err(TaskError::ShutDown) => {}
            other => panic!("{other:?}"),
        }
        futures::executor::block_on(pool.shutdown());
    }
}

/// They are dead, and their process ids may be those of others by now.
fn a_pool_without_its_runtime_shows_no_workers(builder: Builder) {
    let runtime = multi_thread();
    let pool = builder.runtime(runtime.handle().clone()).build().unwrap();
    let pid = runtime.block_on(a_worker(&pool));
    drop(runtime);
    futures::executor::block_on(pool.shutdown());
    assert!(pool.workers().is_empty(), "{:?}, of which {pid} was one", pool.workers());
    let stats = pool.stats();
    assert_eq!((stats.workers(), stats.idle_workers(), stats.starting_workers()), (0, 0, 0));
}

/// What happens to the process that starts the others.
mod a_fork_server {
    use super::*;

    fn builder() -> Builder {
        Builder::given(StartMethod::ForkServer)
    }

    #[test]
    fn killed_while_a_worker_starts_costs_no_task() {
        common::run(async {
            let meeting = Meeting::new();
            let pool = attending(builder(), &meeting).build().unwrap();
            let task = pool.submit(|| 7u8, ());
            for _ in 0..2 {
                let guest = meeting.next().await;
                kill(parent_of(guest.pid).unwrap(), libc::SIGKILL);
                guest.gone().await;
            }
            drop(meeting.next().await);
            assert_eq!(task.await.unwrap(), 7);
            pool.shutdown().await;
        });
    }

    #[test]
    fn stopped_when_it_is_to_start_a_worker_costs_no_task() {
        common::run(async {
            let (pool, meeting) = (builder().build().unwrap(), Meeting::new());
            let attends = |place: String| attend(&place, "task");
            let server = parent_of(a_worker(&pool).await).unwrap();
            kill(server, libc::SIGSTOP);
            let tasks = [pool.submit(attends, meeting.place()), pool.submit(attends, meeting.place())];
            let first = meeting.next().await;
            eventually("another is to start", || pool.stats().starting_workers() == 1).await;
            kill(server, libc::SIGCONT);
            drop((first, meeting.next().await));
            futures::future::try_join_all(tasks).await.unwrap();
            pool.shutdown().await;
            assert_eq!(pool.stats().workers_died(), 0);
        });
    }

    #[test]
    fn stopped_for_good_when_it_is_to_start_a_worker_is_replaced() {
        common::run(async {
            let (pool, meeting) = (builder().build().unwrap(), Meeting::new());
            let pid = a_worker(&pool).await;
            let server = parent_of(pid).unwrap();
            kill(server, libc::SIGSTOP);
            kill(pid, libc::SIGKILL);
            let task = pool.submit(|place: String| attend(&place, "task"), meeting.place());
            let guest = meeting.next().await;
            assert_ne!(parent_of(guest.pid).unwrap(), server);
            drop(guest);
            task.await.unwrap();
            pool.shutdown().await;
        });
    }

    #[test]
    fn stopped_under_a_dropped_runtime_leaves_nothing() {
        common::alone(|| {
            let runtime = multi_thread();
            let pool = builder().runtime(runtime.handle().clone()).build().unwrap();
            let server = runtime.block_on(async { parent_of(a_worker(&pool).await).unwrap() });
            kill(server, libc::SIGSTOP);
            drop(runtime);
            futures::executor::block_on(pool.shutdown());
        });
    }
}
