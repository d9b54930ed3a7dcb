//! Every way for a worker to die under a task, or to be killed for it, and what the task's handle
//! then says.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{Given, Meeting, Open, a_worker, attend, died};
use procession::{Builder, ExitCause, ProcessPool, StartMethod, TaskError, WorkerExit};

both! {
    an_exit_in_mid_task_is_a_death_whatever_its_code,
    an_exit_in_an_async_task_is_a_death,
    a_kill_tells_its_signal,
    a_segmentation_fault_tells_its_signal,
    an_abort_tells_its_signal,
    a_termination_tells_its_signal,
    a_stack_overflow_is_named,
    running_out_of_memory_is_named,
    running_out_of_the_machines_memory_is_named,
    an_exit_keeps_the_tail_of_stderr,
    the_tail_of_stderr_is_bounded_and_is_the_tail,
    an_exit_knows_the_memory_that_was_used,
    a_death_says_why_in_words,
    a_signal_has_its_name_and_its_meaning,
    who_cuts_its_worker_off_is_told_so,
    a_panic_with_little_memory_is_a_panic,
    a_worker_that_dies_in_its_initializer_says_how,
    a_task_that_ignores_signals_times_out,
    an_async_task_times_out,
    the_time_limit_of_the_pool_holds_unless_the_task_has_its_own,
    a_cancelled_task_says_so,
}

const MIB: usize = 1 << 20;

/// Has the one worker of `pool` run `task`, expects its death, and that another takes its place.
macro_rules! death {
    ($pool:ident, $task:expr, $arguments:expr) => {{
        let pid = a_worker(&$pool).await;
        let exit = died($pool.submit($task, $arguments).await);
        assert_eq!(exit.pid(), pid);
        assert_ne!(a_worker(&$pool).await, pid, "a worker was replaced");
        exit
    }};
}

fn one_worker(builder: Builder) -> ProcessPool {
    builder.workers(1).open().unwrap()
}

fn expect_signal(exit: &WorkerExit, signal: i32) {
    assert_eq!((exit.signal(), exit.code()), (Some(signal), None));
    assert_matches!(exit.cause(), ExitCause::Signalled);
    assert!(!exit.core_dumped(), "these tests forbid it");
}

async fn an_exit_in_mid_task_is_a_death_whatever_its_code(builder: Builder) {
    let pool = one_worker(builder);
    for code in [0, 1, 99] {
        let exit = death!(pool, |code: i32| -> u8 { std::process::exit(code) }, code);
        assert_eq!((exit.code(), exit.signal()), (Some(code), None));
        assert_matches!(exit.cause(), ExitCause::Exited);
        assert!(!exit.core_dumped());
    }
    // SAFETY: _exit has no preconditions.
    let exit = death!(pool, || -> u8 { unsafe { libc::_exit(0) } }, ());
    assert_eq!(exit.code(), Some(0));
    pool.shutdown().await;
}

async fn an_exit_in_an_async_task_is_a_death(builder: Builder) {
    let pool = one_worker(builder);
    let exit = death!(pool, async || -> u8 { std::process::exit(3) }, ());
    assert_eq!(exit.code(), Some(3));
    pool.shutdown().await;
}

fn raise(signal: i32) {
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(signal) };
}

async fn a_kill_tells_its_signal(builder: Builder) {
    let pool = one_worker(builder);
    expect_signal(&death!(pool, raise, libc::SIGKILL), libc::SIGKILL);
    pool.shutdown().await;
}

async fn a_segmentation_fault_tells_its_signal(builder: Builder) {
    fn write_to_nowhere() {
        let nowhere = black_box(16) as *mut u64;
        // SAFETY: none; the crash is the point.
        unsafe { nowhere.write_volatile(1) };
    }
    let pool = one_worker(builder);
    expect_signal(&death!(pool, write_to_nowhere, ()), libc::SIGSEGV);
    pool.shutdown().await;
}

async fn an_abort_tells_its_signal(builder: Builder) {
    let pool = one_worker(builder);
    expect_signal(&death!(pool, || -> u8 { std::process::abort() }, ()), libc::SIGABRT);
    pool.shutdown().await;
}

async fn a_termination_tells_its_signal(builder: Builder) {
    let pool = one_worker(builder);
    expect_signal(&death!(pool, raise, libc::SIGTERM), libc::SIGTERM);
    pool.shutdown().await;
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + black_box(frame)[0]
}

async fn a_stack_overflow_is_named(builder: Builder) {
    let pool = one_worker(builder);
    let exit = death!(pool, recurse, 0);
    assert_matches!(exit.cause(), ExitCause::StackOverflow);
    assert!(exit.signal().is_some());
    let shown = TaskError::WorkerDied(exit).to_string();
    assert!(shown.contains("stack"), "{shown}");
    pool.shutdown().await;
}

async fn running_out_of_memory_is_named(builder: Builder) {
    fn allocate_without_end() -> usize {
        let mut hoard = Vec::new();
        loop {
            hoard.push(black_box(vec![1u8; MIB]));
        }
    }
    let pool = one_worker(builder.worker_memory_limit(512 << 20));
    let exit = death!(pool, allocate_without_end, ());
    assert_matches!(exit.cause(), ExitCause::OutOfMemory);
    let shown = TaskError::WorkerDied(exit).to_string();
    assert!(shown.contains("memory"), "{shown}");
    let modest = |size: usize| vec![1u8; size].len();
    assert_eq!(pool.submit(modest, 64 * MIB).await.unwrap(), 64 * MIB);
    pool.shutdown().await;
}

/// Needs a control group of its own, so it only says something where the tests may make one.
async fn running_out_of_the_machines_memory_is_named(builder: Builder) {
    let Some(group) = MemoryGroup::new(96 * MIB) else {
        return eprintln!("skipped: the tests may not make a control group with a memory limit");
    };
    let pool = one_worker(builder);
    group.add(a_worker(&pool).await);
    let hoard = |size: usize| black_box(vec![1u8; size]).len();
    let exit = died(pool.submit(hoard, 200 * MIB).await);
    assert_matches!(exit.cause(), ExitCause::Signalled);
    assert_eq!(exit.signal(), Some(libc::SIGKILL));
    let shown = TaskError::WorkerDied(exit).to_string();
    assert!(shown.contains("want of memory"), "{shown}");
    assert_eq!(pool.submit(hoard, MIB).await.unwrap(), MIB);
    pool.shutdown().await;
}

/// A control group for memory, of version 1 or 2.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(limit: usize) -> Option<MemoryGroup> {
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        places.into_iter().find_map(|(parent, file)| {
            let group = MemoryGroup(format!("{parent}/procession-{}", std::process::id()).into());
            std::fs::create_dir(&group.0).ok()?;
            std::fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        })
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

async fn an_exit_keeps_the_tail_of_stderr(builder: Builder) {
    fn last_words() {
        eprintln!("last words of {}", std::process::id());
        std::process::exit(1)
    }
    let pool = one_worker(builder);
    let exit = death!(pool, last_words, ());
    let words = format!("last words of {}", exit.pid());
    assert!(exit.stderr_tail().contains(&words), "{:?}", exit.stderr_tail());
    pool.shutdown().await;
}

async fn the_tail_of_stderr_is_bounded_and_is_the_tail(builder: Builder) {
    fn many_words() {
        for line in 0..20_000 {
            eprintln!("line {line} of many");
        }
        std::process::abort()
    }
    let pool = one_worker(builder.stderr(procession::WorkerStdio::Capture));
    let exit = death!(pool, many_words, ());
    let tail = exit.stderr_tail();
    assert!(tail.trim_end().ends_with("line 19999 of many"), "{tail:?}");
    assert!(!tail.contains("line 0 of many"), "all {} bytes were kept", tail.len());
    pool.shutdown().await;
}

async fn an_exit_knows_the_memory_that_was_used(builder: Builder) {
    fn use_memory_and_exit() {
        black_box(vec![1u8; 64 * MIB]);
        std::process::exit(1)
    }
    let pool = one_worker(builder);
    assert!(death!(pool, use_memory_and_exit, ()).max_rss() >= 64 * MIB as u64);
    pool.shutdown().await;
}

async fn a_death_says_why_in_words(builder: Builder) {
    let pool = one_worker(builder);
    let killed = TaskError::WorkerDied(death!(pool, raise, libc::SIGKILL)).to_string();
    assert!(killed.contains("SIGKILL") || killed.contains("signal 9"), "{killed}");
    let exit = death!(pool, |code: i32| -> u8 { std::process::exit(code) }, 99);
    let exited = TaskError::WorkerDied(exit).to_string();
    assert!(exited.contains("99"), "{exited}");
    pool.shutdown().await;
}

async fn a_signal_has_its_name_and_its_meaning(builder: Builder) {
    fn read_behind_the_end() -> u8 {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        file.set_len(1).unwrap();
        let (access, kind) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping touches no memory in use. Reading it ends the process, as it should.
        unsafe {
            let place = libc::mmap(std::ptr::null_mut(), 1, access, kind, file.as_raw_fd(), 0);
            assert_ne!(place, libc::MAP_FAILED);
            file.set_len(0).unwrap();
            place.cast::<u8>().read_volatile()
        }
    }
    let pool = one_worker(builder);
    let told = death!(pool, read_behind_the_end, ()).to_string();
    assert!(told.contains("SIGBUS") && told.contains("cut short"), "{told}");
    let told = death!(pool, raise, libc::SIGRTMIN() + 3).to_string();
    assert!(told.contains("SIGRTMIN+3"), "{told}");
    let told = death!(pool, raise, libc::SIGVTALRM).to_string();
    assert!(told.contains("SIGVTALRM"), "{told}");
    pool.shutdown().await;
}

/// The worker may be ended by itself, or by the pool.
async fn who_cuts_its_worker_off_is_told_so(builder: Builder) {
    here_only!("a worker elsewhere has a connection that tells");
    fn close_all() {
        // SAFETY: nothing that is used from here on has an open file.
        unsafe { libc::close_range(3, u32::MAX, 0) };
        loop {
            std::thread::park();
        }
    }
    let pool = one_worker(builder);
    let told = death!(pool, close_all, ()).to_string();
    assert!(told.contains("closed"), "{told}");
    pool.shutdown().await;
}

/// Finding the names for a backtrace takes more memory than there is, and what Rust's standard library
/// does about that is to wait for ever.
async fn a_panic_with_little_memory_is_a_panic(builder: Builder) {
    fn fail() -> anyhow::Result<u8> {
        anyhow::bail!("no luck")
    }
    let builder = builder.env("RUST_BACKTRACE", "1").env_remove("RUST_LIB_BACKTRACE");
    let pool = one_worker(builder.worker_memory_limit(24 * MIB as u64));
    for _ in 0..2 {
        let panic = common::panicked(pool.submit(|| -> u8 { panic!("no luck") }, ()).await);
        assert_eq!((panic.message(), panic.backtrace()), ("no luck", None));
        match pool.submit(fail, ()).await {
            Err(TaskError::Failed(error)) => assert_eq!(error.backtrace(), None),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

/// What a pool says that cannot start its workers.
async fn broken(builder: Builder) -> String {
    let pool = one_worker(builder);
    let error = pool.submit(std::process::id, ()).await.unwrap_err();
    assert_matches!(&error, TaskError::PoolBroken(_));
    pool.shutdown().await;
    error.to_string()
}

async fn a_worker_that_dies_in_its_initializer_says_how(builder: Builder) {
    fn exit() {
        eprintln!("the licence is out of date");
        std::process::exit(37);
    }
    fn fail() -> anyhow::Result<()> {
        Err(anyhow::anyhow!("no such file").context("no model"))
    }
    let told = broken(builder.clone().initializer(exit, ())).await;
    assert!(told.contains("code 37") && told.contains("the initializer"), "{told}");
    assert!(told.contains("out of date"), "{told}");
    let told = broken(builder.clone().initializer(|| assert_eq!(recurse(0), 0), ())).await;
    assert!(told.contains("overflowed its stack") && told.contains("the initializer"), "{told}");
    let told = broken(builder.initializer(fail, ())).await;
    assert!(told.contains("no model: no such file"), "{told}");
}

#[test]
fn a_fork_server_that_dies_in_its_preload_says_how() {
    fn end_by(signal: i32) {
        if signal == 0 {
            std::process::exit(37);
        }
        raise(signal);
    }
    here_only!("a worker elsewhere preloads for itself");
    common::run(async {
        for (signal, how) in
            [(0, "exited with code 37"), (libc::SIGKILL, "SIGKILL"), (libc::SIGSEGV, "SIGSEGV")]
        {
            let told = broken(Builder::given(StartMethod::ForkServer).preload(end_by, signal)).await;
            assert!(told.contains("preload") && told.contains(how), "{told}");
        }
    });
}

fn stubborn(place: String) {
    // SAFETY: ignoring signals installs no handler.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    attend(&place, "stubborn");
    unreachable!("nobody lets it go");
}

async fn a_task_that_ignores_signals_times_out(builder: Builder) {
    let pool = one_worker(builder);
    let meeting = Meeting::new();
    let limit = Duration::from_millis(100);
    let start = Instant::now();
    let task = pool.task(stubborn, meeting.place()).timeout(limit).submit();
    let guest = meeting.next().await;
    let (outcome, pid) = (task.await, guest.pid);
    assert_matches!(outcome, Err(TaskError::TimedOut { limit: told }) if told == limit);
    assert!(start.elapsed() >= limit);
    guest.gone().await;
    assert_ne!(a_worker(&pool).await, pid);
    assert_eq!(pool.stats().timed_out(), 1);
    pool.shutdown().await;
}

async fn an_async_task_times_out(builder: Builder) {
    let pool = one_worker(builder);
    let limit = Duration::from_millis(50);
    let task = pool.task(std::future::pending::<()>, ()).timeout(limit);
    assert_matches!(task.await, Err(TaskError::TimedOut { limit: told }) if told == limit);
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn the_time_limit_of_the_pool_holds_unless_the_task_has_its_own(builder: Builder) {
    let (long, short) = (Duration::from_millis(80), Duration::from_millis(40));
    let pool = one_worker(builder.task_timeout(long));
    let meeting = Meeting::new();
    let by_pool = pool.submit(stubborn, meeting.place());
    let guest = meeting.next().await;
    assert_matches!(by_pool.await, Err(TaskError::TimedOut { limit }) if limit == long);
    let by_task = pool.task(stubborn, meeting.place()).timeout(short).submit();
    let another = meeting.next().await;
    assert_matches!(by_task.await, Err(TaskError::TimedOut { limit }) if limit == short);
    let patient = pool.task(|d: Duration| std::thread::sleep(d), long * 2);
    patient.timeout(common::PATIENCE).await.unwrap();
    guest.gone().await;
    another.gone().await;
    pool.shutdown().await;
}

async fn a_cancelled_task_says_so(builder: Builder) {
    let pool = one_worker(builder.cancel_grace(Duration::from_millis(10)));
    let meeting = Meeting::new();
    let task = pool.submit(stubborn, meeting.place());
    let guest = meeting.next().await;
    task.cancel();
    assert_matches!(task.await, Err(TaskError::Cancelled));
    guest.gone().await;
    a_worker(&pool).await;
    pool.shutdown().await;
}
