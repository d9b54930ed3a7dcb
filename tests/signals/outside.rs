//! Signals that workers and the fork server get from outside, and what tasks and the programs that
//! they start have of them.

use std::process::Command;

use rustix::process::Signal;

use crate::common::{Meeting, a_worker, attend, died, eventually, multi_thread, parent_of};
use crate::session::{lives, signal};
use procession::{Builder, TaskHandle};

both! {
    workers_and_the_fork_server_leave_it_to_the_program,
    a_task_is_not_interrupted,
    a_task_may_handle_a_signal_itself,
    a_task_that_signals_itself_dies_of_it,
    a_task_that_signals_its_process_group_is_alone_in_it,
    a_program_that_a_task_starts_can_be_ended,
    what_the_program_ignores_stays_ignored,
    sync what_the_program_blocks_is_not_blocked_in_workers,
}

const ENDING: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// What this process ignores, because whoever started it did.
fn ignored() -> u64 {
    status(std::process::id(), "SigIgn")
}

/// Those of [`ENDING`] that do anything here and in everybody below.
fn not_ignored() -> impl Iterator<Item = i32> {
    ENDING.map(Signal::as_raw).into_iter().filter(|signal| ignored() & bit(*signal) == 0)
}

async fn workers_and_the_fork_server_leave_it_to_the_program(builder: Builder) {
    let pool = builder.build().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(|place: String| attend(&place, "task"), meeting.place());
    let guest = meeting.next().await;
    let idle = a_worker(&pool).await;
    let mut pids = vec![guest.pid, idle];
    let parent = parent_of(idle).unwrap();
    pids.extend((parent != std::process::id()).then_some(parent));
    for ending in ENDING {
        pids.iter().for_each(|pid| signal(*pid, ending));
        assert_eq!(a_worker(&pool).await, idle);
    }
    drop(guest);
    task.await.unwrap();
    assert!(pids.into_iter().all(lives));
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

async fn a_task_is_not_interrupted(builder: Builder) {
    let pool = builder.build().unwrap();
    let (meeting, end) = (Meeting::new(), Meeting::new());
    // `poll` fails when a handler has run in its thread, whatever the flags of that.
    let task = |place: String, end: String| {
        let mut end = std::os::unix::net::UnixStream::connect(end).unwrap();
        let who = format!("{} end\n", std::process::id());
        std::io::Write::write_all(&mut end, who.as_bytes()).unwrap();
        attend(&place, "task");
        let mut poll =
            libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&end), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        unsafe { libc::poll(&mut poll, 1, -1) }
    };
    let task = pool.submit(task, (meeting.place(), end.place()));
    let end = end.next().await;
    let guest = meeting.next().await;
    let pid = guest.pid;
    drop(guest);
    let in_poll = || syscall_of_its_task(pid) == Some(libc::SYS_poll);
    eventually("the task is in `poll`", in_poll).await;
    signal(pid, Signal::TERM);
    eventually("the signal is delivered", || status(pid, "ShdPnd") == 0).await;
    drop(end);
    assert_eq!(task.await.unwrap(), 1);
    pool.shutdown().await;
}

/// The number of the system call that a worker's task thread is in.
fn syscall_of_its_task(pid: u32) -> Option<i64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let threads = threads.filter_map(|thread| thread.ok()?.file_name().into_string().ok());
    let task = threads.into_iter().find(|thread| *thread != pid.to_string())?;
    let syscall = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/syscall")).ok()?;
    syscall.split(' ').next()?.parse().ok()
}

async fn a_task_may_handle_a_signal_itself(builder: Builder) {
    let pool = builder.build().unwrap();
    let meeting = Meeting::new();
    let task: TaskHandle<bool> = {
        use tokio::signal::unix::{SignalKind, signal};
        let task = async |place: String| -> bool {
            let mut terminate = signal(SignalKind::terminate()).unwrap();
            attend(&place, "task");
            terminate.recv().await.is_some()
        };
        pool.submit(task, meeting.place())
    };
    let guest = meeting.next().await;
    signal(guest.pid, Signal::TERM);
    drop(guest);
    assert!(task.await.unwrap());
    pool.shutdown().await;
}

async fn a_task_that_signals_itself_dies_of_it(builder: Builder) {
    let pool = builder.build().unwrap();
    for ending in not_ignored() {
        // SAFETY: neither takes pointers.
        let raise = |signal: i32| unsafe { libc::raise(signal) };
        assert_eq!(died(pool.submit(raise, ending).await).signal(), Some(ending));
        let kill = |signal: i32| unsafe {
            // Any thread may get it, so this one may go on for a moment.
            libc::kill(libc::getpid(), signal);
            libc::sleep(3600)
        };
        assert_eq!(died(pool.submit(kill, ending).await).signal(), Some(ending));
    }
    pool.shutdown().await;
}

async fn a_task_that_signals_its_process_group_is_alone_in_it(builder: Builder) {
    let pool = builder.build().unwrap();
    let meeting = Meeting::new();
    let other = pool.submit(|place: String| attend(&place, "task"), meeting.place());
    let guest = meeting.next().await;
    // SAFETY: it takes no pointers.
    let kill_all = || unsafe { libc::kill(0, libc::SIGKILL) };
    assert_eq!(died(pool.submit(kill_all, ()).await).signal(), Some(libc::SIGKILL));
    drop(guest);
    other.await.unwrap();
    assert_eq!(pool.stats().workers_died(), 1);
    pool.shutdown().await;
}

async fn a_program_that_a_task_starts_can_be_ended(builder: Builder) {
    let pool = builder.build().unwrap();
    let task = |signal: i32| {
        use std::os::unix::process::ExitStatusExt;
        let mut daughter = Command::new("sleep").arg("3600").spawn().unwrap();
        // SAFETY: it takes no pointers, and the daughter is not reaped.
        unsafe { libc::kill(daughter.id() as i32, signal) };
        daughter.wait().unwrap().signal()
    };
    for ending in not_ignored() {
        assert_eq!(pool.submit(task, ending).await.unwrap(), Some(ending));
    }
    let ours = ignored() & !bit(libc::SIGPIPE);
    let (blocked, theirs) = pool.submit(signals_of_a_daughter, ()).await.unwrap();
    assert_eq!(blocked, 0);
    assert_eq!(theirs, ours | bit(libc::SIGTTIN) | bit(libc::SIGTTOU));
    pool.shutdown().await;
}

async fn what_the_program_ignores_stays_ignored(builder: Builder) {
    // As under `nohup`. SAFETY: it installs no code, and no other test runs.
    let before = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let pool = builder.build().unwrap();
    let (_, ignored) = pool.submit(signals_of_a_daughter, ()).await.unwrap();
    pool.shutdown().await;
    // SAFETY: it is what there was before.
    unsafe { libc::signal(libc::SIGHUP, before) };
    assert_ne!(ignored & bit(libc::SIGHUP), 0);
}

fn what_the_program_blocks_is_not_blocked_in_workers(builder: Builder) {
    let blocked = std::thread::spawn(|| {
        // What programs do that wait for signals on a thread of their own. SAFETY: a zeroed sigset
        // is valid storage that these fill.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
        multi_thread().block_on(async {
            let pool = builder.build().unwrap();
            let (blocked, _) = pool.submit(signals_of_a_daughter, ()).await.unwrap();
            pool.shutdown().await;
            blocked
        })
    });
    assert_eq!(blocked.join().unwrap(), 0);
}

/// In a task: which signals a program that it starts has blocked, and which ignored.
fn signals_of_a_daughter() -> (u64, u64) {
    let output = Command::new("cat").arg("/proc/self/status").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (field(&text, "SigBlk"), field(&text, "SigIgn"))
}

fn status(pid: u32, name: &str) -> u64 {
    field(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), name)
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    // Without those from 32, which are for the C library and whoever wants them.
    u64::from_str_radix(line.unwrap(), 16).unwrap() & 0x7fff_ffff
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
