//! What tasks do in workers.

use std::hint::black_box;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::process::{Command, abort, exit};
use std::time::{Duration, Instant};

use anyhow::Context;
use procession::{Progress, worker};
use serde::{Deserialize, Serialize};

use super::board::begin;

/// For an initializer: time in which a worker is there and not ready.
pub fn dawdle(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

pub fn triple(id: u32, n: u64) -> u64 {
    let _turn = begin(id);
    n * 3 + 1
}

pub fn echo(id: u32, bytes: Vec<u8>) -> Vec<u8> {
    let _turn = begin(id);
    bytes
}

pub fn nap(id: u32, milliseconds: u64) -> u32 {
    let _turn = begin(id);
    std::thread::sleep(Duration::from_millis(milliseconds));
    id
}

pub fn spin(id: u32, milliseconds: u64) -> u32 {
    let _turn = begin(id);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(milliseconds) {
        black_box(id);
    }
    id
}

pub async fn slumber(id: u32, milliseconds: u64) -> u32 {
    let _turn = begin(id);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    id
}

pub fn panics(id: u32) -> u32 {
    let _turn = begin(id);
    panic!("task {id} panics")
}

pub fn fails(id: u32) -> anyhow::Result<u32> {
    let _turn = begin(id);
    Err(anyhow::anyhow!("the cause")).with_context(|| format!("task {id} fails"))
}

/// The ways to take the whole worker along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Crash {
    Abort,
    Exit(i32),
    Signal(i32),
    Overflow,
}

pub fn crashes(id: u32, crash: Crash) -> u32 {
    let _turn = begin(id);
    match crash {
        Crash::Abort => abort(),
        Crash::Exit(code) => exit(code),
        // SAFETY: raise has no preconditions.
        Crash::Signal(signal) => unsafe { libc::raise(signal) as u32 },
        Crash::Overflow => recurse(u64::from(id)) as u32,
    }
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + black_box(frame)[0]
}

pub fn crashes_with(id: u32, bytes: Vec<u8>) -> u32 {
    let _turn = begin(id);
    black_box(bytes);
    abort()
}

pub fn hangs(id: u32) -> u32 {
    let _turn = begin(id);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

pub async fn hangs_async(id: u32) -> u32 {
    let _turn = begin(id);
    std::future::pending().await
}

/// Goes on until it is cancelled, and then returns.
pub fn heeds(id: u32) -> u32 {
    let _turn = begin(id);
    let context = worker::current().expect("in a task");
    while !context.is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    id
}

/// Stops its own process, as a debugger or a terminal would.
pub fn stops(id: u32) -> u32 {
    let _turn = begin(id);
    loop {
        // Whoever stops workers continues them too, this one among them.
        // SAFETY: raise has no preconditions.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}

/// Dies in each attempt before the given one.
pub fn succeeds_at(id: u32, good: u32) -> u32 {
    let _turn = begin(id);
    let attempt = worker::current().expect("in a task").attempt();
    if attempt < good { abort() } else { attempt }
}

/// How a process comes to be that holds all of the worker's descriptors it can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Birth {
    Fork,
    Spawn,
}

/// Leaves a process behind. Should nobody end it, it does so itself.
pub fn bears(id: u32, birth: Birth, then_crash: bool) -> u32 {
    let _turn = begin(id);
    match birth {
        Birth::Fork => _ = fork_daughter(),
        // A sandbox does not let it, nor the fork.
        Birth::Spawn => drop(Command::new("sleep").arg("60").spawn()),
    }
    if then_crash { abort() } else { id }
}

/// Returns the daughter's process id.
pub fn fork_daughter() -> u32 {
    // SAFETY: the daughter calls only what may be called after a fork, and never returns.
    unsafe {
        let daughter = libc::fork();
        if daughter == 0 {
            libc::prctl(libc::PR_SET_NAME, c"daughter".as_ptr());
            libc::sleep(60);
            libc::_exit(0);
        }
        daughter as u32
    }
}

/// What may be written to a pool that is not what a worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Noise {
    /// A frame that promises more than follows.
    Truncated,
    /// A frame longer than any may be.
    Oversize,
    /// A whole frame, and nobody knows what is in it.
    Random(u64),
}

impl Noise {
    fn bytes(self) -> Vec<u8> {
        match self {
            Noise::Truncated => [&1000u32.to_le_bytes()[..], &[7; 10]].concat(),
            Noise::Oversize => [&u32::MAX.to_le_bytes()[..], &[7; 10]].concat(),
            Noise::Random(seed) => {
                let mut random = fastrand::Rng::with_seed(seed);
                let body: Vec<u8> = (0..random.u32(0..300)).map(|_| random.u8(..)).collect();
                [&(body.len() as u32).to_le_bytes()[..], &body].concat()
            }
        }
    }
}

/// What a hostile task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    Return,
    Abort,
    Hang,
}

impl Then {
    fn go_on(self) {
        match self {
            Then::Return => {}
            Then::Abort => abort(),
            Then::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
        }
    }
}

pub fn babbles(id: u32, noise: Noise, then: Then) -> u32 {
    let _turn = begin(id);
    babble(noise, then);
    id
}

/// Writes noise to the worker's own result pipe.
pub fn babble(noise: Noise, then: Then) {
    let pipes = result_pipes();
    assert!(!pipes.is_empty(), "the worker's result pipe is not to be found");
    for pipe in pipes {
        // SAFETY: the descriptor is open; its owner is not deprived of it.
        let mut pipe = ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(pipe) });
        pipe.write_all(&noise.bytes()).expect("writing to the result pipe");
    }
    then.go_on();
}

/// Writes noise all over the memory that the worker shares with the pool, but for the large arenas.
pub fn scribble(seed: u64, then: Then) {
    let mut random = fastrand::Rng::with_seed(seed);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("own mappings");
    let shared = maps.lines().filter(|line| line.contains("rw-s") && line.contains("memfd:"));
    let mut count = 0;
    for line in shared {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [range.0, range.1].map(|place| usize::from_str_radix(place, 16).expect("a place"));
        let words = (end - start).min(1 << 19) / 8;
        for at in 0..words {
            // Some stays as it is, so that what is read of it makes some sense.
            if random.u32(..4) == 0 {
                let word = if random.bool() { random.u64(..) } else { random.u64(..64) };
                // SAFETY: none is kept here: that the memory changes under its users is the fault. The
                // place itself is mapped and may be written to.
                unsafe { (start as *mut u64).add(at).write_volatile(word) };
            }
        }
        count += 1;
    }
    assert!(count > 0, "no shared memory is to be found in:\n{maps}");
    then.go_on();
}

/// Descriptors beyond the standard streams that are pipes to be written to.
fn result_pipes() -> Vec<RawFd> {
    let is_pipe = |fd: &RawFd| {
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        target.to_str().is_some_and(|target| target.starts_with("pipe:"))
    };
    // SAFETY: fcntl with F_GETFL takes no pointers.
    let is_writer =
        |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFL) & libc::O_ACCMODE == libc::O_WRONLY };
    open_descriptors().into_iter().filter(|fd| *fd > 2 && is_pipe(fd) && is_writer(fd)).collect()
}

fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("own descriptors").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Closes every descriptor beyond the standard streams.
pub fn closes(id: u32, then: Then) -> u32 {
    let _turn = begin(id);
    // SAFETY: none; that a task closes what is not its own is the fault that is being made.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    then.go_on();
    id
}

/// Writes so many bytes to each of the standard streams.
pub fn floods(id: u32, bytes: usize) -> u32 {
    let _turn = begin(id);
    let line = format!("{:0>1023}\n", id);
    for _ in 0..bytes / line.len() {
        std::io::stdout().write_all(line.as_bytes()).expect("standard output");
        std::io::stderr().write_all(line.as_bytes()).expect("standard error");
    }
    id
}

/// Tells all the time how far it has got, and in the end how often it has.
pub fn reports(id: u32, milliseconds: u64, then_crash: bool) -> u64 {
    let _turn = begin(id);
    let (context, start) = (worker::current().expect("in a task"), Instant::now());
    let mut done = 0;
    while done == 0 || start.elapsed() < Duration::from_millis(milliseconds) {
        done += 1;
        context.report(Progress::new(done).with_message("on its way"));
    }
    if then_crash { abort() } else { done }
}

/// What records of tasks are for, where they are logged.
pub const LOG: &str = "faults";

/// Logs so many records.
pub fn logs(id: u32, records: u64) -> u32 {
    let _turn = begin(id);
    for number in 0..records {
        log::info!(target: LOG, "{id} {number}");
    }
    id
}

/// Takes all descriptors that it can have, and gives them back.
pub fn takes_descriptors(id: u32) -> u32 {
    const MOST: usize = 2000;
    let _turn = begin(id);
    // SAFETY: dup takes no pointers.
    let copies = std::iter::repeat_with(|| unsafe { libc::dup(2) });
    let taken: Vec<RawFd> = copies.take(MOST).take_while(|fd| *fd >= 0).collect();
    for fd in taken {
        // SAFETY: it was made above, and nobody else has it.
        unsafe { libc::close(fd) };
    }
    id
}

/// Takes memory until there is none; most of it is never used.
pub fn takes_memory(id: u32) -> u32 {
    const EACH: usize = 64 << 20;
    let _turn = begin(id);
    let taken: Vec<Vec<u8>> = (0..1000).map(|_| black_box(Vec::with_capacity(EACH))).collect();
    taken.len() as u32
}

/// One item of a map.
pub fn item(id: u32, crash: bool) -> u32 {
    let _turn = begin(id);
    if crash { abort() } else { id.wrapping_mul(7) }
}
