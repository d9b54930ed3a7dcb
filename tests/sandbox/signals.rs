//! Escapes by signals: to the process attacked, and to all there are.

use std::io::Write;
use std::os::fd::AsRawFd;

use procession::{Builder, StartMethod};

use super::processes::pidfd;
use super::{Escape, Host, Outcome, Stage, caged, check, escape, generous};

both! {
    nobody_is_signalled,
    everybody_is_signalled_without_a_sandbox,
    the_group_is_out_of_reach_even_of_who_may_start_processes,
}

async fn nobody_is_signalled(method: StartMethod) {
    super::are_refused(method, ESCAPES).await;
}

async fn everybody_is_signalled_without_a_sandbox(method: StartMethod) {
    super::work_without_a_sandbox(method, ESCAPES).await;
}

/// One that nobody minds.
const SIGNAL: i32 = libc::SIGURG;

pub(super) static ESCAPES: &[Escape] = &[
    escape("kill", |stage| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::kill(stage.target, SIGNAL) })
    }),
    escape("look for by kill", |stage| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::kill(stage.target, 0) })
    }),
    // A process that may start others may signal these, and its group is itself and these.
    escape("kill the group", |_| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::kill(0, SIGNAL) })
    })
    .granted_by(super::Grant::Execute),
    escape("kill all", |_| {
        // SAFETY: it takes no pointers, and sends nothing.
        check(unsafe { libc::kill(-1, 0) })
    })
    .granted_by(super::Grant::Execute),
    escape("tgkill", |stage| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::syscall(libc::SYS_tgkill, stage.target, stage.target, SIGNAL) })
    }),
    escape("tkill", |stage| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::syscall(libc::SYS_tkill, stage.target, SIGNAL) })
    }),
    escape("sigqueue", |stage| {
        let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
        // SAFETY: the value is none.
        check(unsafe { libc::sigqueue(stage.target, SIGNAL, value) })
    }),
    escape("sigqueue to a thread", sigqueue_to_thread),
    escape("signal by a pidfd", |stage| {
        let nothing = 0usize;
        // SAFETY: no further information is given.
        check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd(stage), SIGNAL, nothing, 0) })
    }),
    escape("have a pipe signal", |stage| have_pipe_signal(stage.target)),
    escape("have a pipe signal a group", |stage| {
        // SAFETY: it takes no pointers.
        have_pipe_signal(-unsafe { libc::getpgid(stage.target) })
    }),
    escape("have a pipe signal a thread", have_pipe_signal_thread),
    escape("have a socket signal", have_socket_signal),
];

fn sigqueue_to_thread(stage: &Stage) -> Outcome {
    // SAFETY: a zeroed siginfo is valid, and lives for the length of the call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = SIGNAL;
        info.si_code = -1; // SI_QUEUE
        let call = libc::SYS_rt_tgsigqueueinfo;
        check(libc::syscall(call, stage.target, stage.target, SIGNAL, &raw const info))
    }
}

fn have_pipe_signal(whom: i32) -> Outcome {
    have_pipe_signal_by(|pipe| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::fcntl(pipe, libc::F_SETOWN, whom) })
    })
}

fn have_pipe_signal_thread(stage: &Stage) -> Outcome {
    const F_SETOWN_EX: i32 = 15;
    let owner = [0, stage.target]; // F_OWNER_TID
    have_pipe_signal_by(|pipe| {
        // SAFETY: that is an f_owner_ex.
        check(unsafe { libc::fcntl(pipe, F_SETOWN_EX, &raw const owner) })
    })
}

fn have_socket_signal(stage: &Stage) -> Outcome {
    const FIOSETOWN: libc::c_ulong = 0x8901;
    let (socket, _other) = std::os::unix::net::UnixStream::pair().map_err(|_| libc::EIO)?;
    // SAFETY: it reads one number.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), FIOSETOWN as _, &raw const stage.target) })
}

fn have_pipe_signal_by(own: impl Fn(i32) -> Outcome) -> Outcome {
    const F_SETSIG: i32 = 10;
    let (from, mut to) = std::io::pipe().map_err(|_| libc::EIO)?;
    let pipe = from.as_raw_fd();
    // SAFETY: it takes no pointers.
    let chosen = check(unsafe { libc::fcntl(pipe, F_SETSIG, SIGNAL) });
    let owned = own(pipe);
    // SAFETY: it takes no pointers.
    let armed = check(unsafe { libc::fcntl(pipe, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) });
    to.write_all(b"now").map_err(|_| libc::EIO)?;
    owned.and(chosen).and(armed)
}

/// Ends its group, and with it all processes that it can reach, but for itself.
fn end_group() {
    // SAFETY: neither takes a pointer; no handler is installed.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::kill(0, libc::SIGTERM);
        libc::kill(-libc::getpgid(0), libc::SIGTERM);
    }
}

/// That is also the group of the fork server and its other workers.
async fn the_group_is_out_of_reach_even_of_who_may_start_processes(builder: Builder) {
    let host = Host::new().await;
    let Some(pool) = caged(builder.min_workers(2), generous(&host.stage)) else { return };
    pool.warm_up().await.unwrap();
    super::common::eventually("two workers", || pool.stats().idle_workers() == 2).await;
    pool.submit(end_group, ()).await.unwrap();
    for _ in 0..10 {
        pool.submit(std::process::id, ()).await.unwrap();
    }
    let stats = pool.stats();
    assert_eq!((stats.workers_died(), stats.workers_started()), (0, 2));
    pool.shutdown().await;
}
