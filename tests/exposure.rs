//! What a worker can see of the program that has started it: its open descriptors, which are those
//! that it works with, and its environment, which is what the builder says.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::{Given, a_worker, parent_of};
use procession::{Builder, PoolError, ProcessPool, Sandbox, StartMethod, WorkerStdio};

both! {
    no_descriptor_of_the_program_is_open_in_a_worker,
    nor_in_one_that_is_started_later,
    nor_in_a_sandbox,
    the_environment_is_as_asked_for,
    a_cleared_environment_is_clear,
}

/// Open files and sockets that are not closed when another program is executed, at low numbers and
/// at high ones.
fn leaky() -> Vec<OwnedFd> {
    let file = tempfile::tempfile().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let pipe = std::io::pipe().unwrap();
    let fds = [file.as_fd(), listener.as_fd(), one.as_fd(), other.as_fd(), pipe.0.as_fd(), pipe.1.as_fd()];
    let copy = |fd: std::os::fd::BorrowedFd<'_>, least: i32| {
        // SAFETY: F_DUPFD gives a new descriptor, for us alone.
        unsafe {
            let copy = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, least);
            assert!(copy >= 0 && libc::fcntl(copy, libc::F_GETFD) == 0);
            OwnedFd::from_raw_fd(copy)
        }
    };
    fds.iter().flat_map(|fd| [copy(*fd, 3), copy(*fd, 700)]).collect()
}

/// The descriptors of a process above the standard streams, but the one that looks.
fn open_in(process: String) -> Vec<String> {
    let place = format!("/proc/{process}/fd");
    let links = fs::read_dir(&place).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
        let target = fs::read_link(&path).ok()?.display().to_string();
        (number > 2 && !target.ends_with("/fd")).then_some(target)
    });
    links.collect()
}

/// Without what tells one pipe from another.
fn kinds(open: &[String]) -> Vec<&str> {
    let mut kinds: Vec<_> = open.iter().map(|target| target.split(':').next().unwrap()).collect();
    kinds.sort_unstable();
    kinds
}

async fn expect_nothing_but_tools(pool: &ProcessPool, method: StartMethod, leaky: &[OwnedFd]) {
    let open = pool.submit(open_in, "self".to_owned()).await.unwrap();
    for fd in leaky {
        let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert!(open.iter().all(|open| **open != *target.to_string_lossy()), "{target:?}: {open:?}");
    }
    here_only!("a worker elsewhere has a connection for a tool, and a steward with others");
    assert_eq!(kinds(&open), ["pipe", "pipe"], "requests and results: {open:?}");
    let mut processes = vec![a_worker(pool).await];
    if method == StartMethod::ForkServer {
        let server = parent_of(processes[0]).unwrap();
        let open = open_in(server.to_string());
        assert_eq!(kinds(&open), ["anon_inode", "socket"], "orders, and ends of workers: {open:?}");
        processes.push(server);
    }
    for pid in processes {
        let stdin = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
        assert_eq!(stdin.to_str(), Some("/dev/null"));
    }
}

async fn no_descriptor_of_the_program_is_open_in_a_worker(method: StartMethod) {
    let leaky = leaky();
    for stdio in [WorkerStdio::Inherit, WorkerStdio::Null, WorkerStdio::Capture] {
        let pool = Builder::given(method).workers(1).stdout(stdio).stderr(stdio).build().unwrap();
        expect_nothing_but_tools(&pool, method, &leaky).await;
        pool.shutdown().await;
    }
}

async fn nor_in_one_that_is_started_later(method: StartMethod) {
    let pool = Builder::given(method).workers(1).build().unwrap();
    a_worker(&pool).await;
    let leaky = leaky();
    common::died(pool.submit(|| -> u8 { std::process::exit(1) }, ()).await);
    expect_nothing_but_tools(&pool, method, &leaky).await;
    pool.shutdown().await;
}

async fn nor_in_a_sandbox(method: StartMethod) {
    here_only!("a worker elsewhere has a connection for a tool");
    let _leaky = leaky();
    let builder = Builder::given(method).workers(1).stdout(WorkerStdio::Inherit);
    let pool = match builder.sandbox(Sandbox::new()).build() {
        Ok(pool) => pool,
        Err(PoolError::NotConfined { reason }) => {
            eprintln!("skipped: there is no sandbox here: {reason}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let pid = a_worker(&pool).await;
    let open = open_in(pid.to_string());
    assert_eq!(kinds(&open), ["pipe", "pipe"], "{open:?}");
    for stream in 1..=2 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
        let own = fs::read_link(format!("/proc/self/fd/{stream}")).unwrap();
        assert!(target.to_str().unwrap().starts_with("pipe:") && target != own, "{target:?}");
    }
    pool.shutdown().await;
}

/// The environment that a process was started with, as others see it.
fn environment_of(process: String) -> BTreeSet<String> {
    let bytes = fs::read(format!("/proc/{process}/environ")).unwrap();
    let variables = bytes.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    variables.map(|variable| String::from_utf8_lossy(variable).into_owned()).collect()
}

/// The environment that a task sees.
fn environment() -> BTreeSet<String> {
    std::env::vars().map(|(key, value)| format!("{key}={value}")).collect()
}

/// What says to a process that it is no ordinary one. Tasks, and what they start, do not see it.
fn without_role(mut variables: BTreeSet<String>) -> BTreeSet<String> {
    let before = variables.len();
    variables.retain(|variable| !variable.starts_with("PROCESSION_ROLE="));
    assert_eq!(variables.len(), before - 1);
    variables
}

async fn expect_environment(pool: &ProcessPool, method: StartMethod, expected: BTreeSet<String>) {
    assert_eq!(pool.submit(environment, ()).await.unwrap(), expected);
    here_only!("what others see of a worker elsewhere is what its launcher was started with");
    let seen = pool.submit(environment_of, "self".to_owned()).await.unwrap();
    assert_eq!(without_role(seen), expected);
    if method == StartMethod::ForkServer {
        let server = parent_of(a_worker(pool).await).unwrap();
        assert_eq!(without_role(environment_of(server.to_string())), expected);
    }
}

async fn the_environment_is_as_asked_for(method: StartMethod) {
    let builder = Builder::given(method).env("COLOUR", "blue").env("GONE", "1");
    let pool = builder.env_remove("GONE").env_remove("PATH").build().unwrap();
    let mut expected = environment();
    expected.retain(|variable| !variable.starts_with("PATH="));
    expected.insert("COLOUR=blue".to_owned());
    expect_environment(&pool, method, expected).await;
    pool.shutdown().await;
}

async fn a_cleared_environment_is_clear(method: StartMethod) {
    let builder = Builder::given(method).env("BEFORE", "1");
    let pool = builder.env_clear().env("ONLY", "2").build().unwrap();
    expect_environment(&pool, method, BTreeSet::from(["ONLY=2".to_owned()])).await;
    pool.shutdown().await;
}
