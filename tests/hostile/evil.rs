//! What hostile tasks do, in their workers. They know how the shared memory is laid out and how
//! replies are encoded (`src/wire/`), which nobody else outside the crate should.

#![allow(unreachable_pub)]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long they wait before they begin, for the test to see who they are.
const PREPARATION: Duration = Duration::from_millis(40);

/// How long they go on.
const REIGN: Duration = Duration::from_millis(160);

const TAIL: usize = 8;
const HEAD: usize = 16;
const SLOTS: std::ops::Range<usize> = 64..64 + 2 * 1024;
const WHEREABOUTS: usize = 8 + 2048;
/// The memory of a worker that is behind a connection has these words: the task that it has begun last, and when.
const BOARD_BEGUN: usize = 0;
const BOARD_BEGAN_AT: usize = 2;

const RING: std::ops::Range<usize> = SLOTS.end + WHEREABOUTS..SLOTS.end + WHEREABOUTS + 32 * 1024;

/// States of a slot.
const OFFERED: u64 = 0;
const BEGUN: u64 = 1;
const FINISHED: u64 = 3;

/// Replies, by the number that their encoding begins with.
const PART: u8 = 5;
const VALUE: u8 = 6;
const BELL: u8 = 8;
const SKIPPED: u8 = 9;
const ITEM: u8 = 10;
const PROGRESS: u8 = 11;
const VOICE: u8 = 12;

/// What false answers say: no process has the number 0.
const FALSE: [u8; 2] = [0, 66];

/// The shared memory, as a task finds it.
pub struct Page(&'static [AtomicU64]);

impl Page {
    pub fn find() -> Page {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("/memfd:procession (deleted)")).unwrap();
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
        // SAFETY: the kernel says that this is mapped; the worker never unmaps it, and everybody
        // looks at it through atomics.
        Page(unsafe { std::slice::from_raw_parts(start as *const AtomicU64, (end - start) / 8) })
    }

    /// Whether this is all that is shared with somebody who speaks through a connection.
    fn is_board(&self) -> bool {
        self.0.len() < RING.end
    }

    /// The number of the task that runs.
    fn own_seq(&self) -> u64 {
        match self.is_board() {
            true => self.0[BOARD_BEGUN].load(SeqCst),
            false => self.own_slot().1,
        }
    }

    /// Where it says when that has begun.
    fn began_at(&self) -> &AtomicU64 {
        match self.is_board() {
            true => &self.0[BOARD_BEGAN_AT],
            false => &self.0[self.own_slot().0 + 1],
        }
    }

    /// The slot of the task that runs, and its number.
    fn own_slot(&self) -> (usize, u64) {
        let states = SLOTS.step_by(2).map(|at| (at, self.0[at].load(SeqCst)));
        let begun = states.filter(|(_, state)| state & 3 == BEGUN);
        begun.map(|(at, state)| (at, state >> 2)).max_by_key(|(_, seq)| *seq).unwrap()
    }

    /// Waits for room first, and gives up when there is none for long.
    fn push_with_room(&self, record: &[u8]) {
        let needed = 1 + record.len().div_ceil(8) as u64;
        let used = || self.0[TAIL].load(SeqCst) - self.0[HEAD].load(SeqCst);
        let start = Instant::now();
        while !self.is_board() && used() + needed > RING.len() as u64 {
            if start.elapsed() > REIGN {
                return;
            }
            std::thread::yield_now();
        }
        self.push(record);
    }

    /// Has the pool look at what was pushed first.
    fn ring(&self) {
        if !self.is_board() {
            Pipes::find().say(&frame(&reply(BELL, 0, &[])));
        }
    }

    fn push(&self, record: &[u8]) {
        if self.is_board() {
            return Pipes::find().say(&frame(record));
        }
        let (tail, capacity) = (self.0[TAIL].load(SeqCst), RING.len() as u64);
        let word = |at: u64| &self.0[RING.start + (at % capacity) as usize];
        word(tail).store(record.len() as u64, SeqCst);
        let chunks = record.chunks(8);
        let next = tail + 1 + chunks.len() as u64;
        for (at, chunk) in (tail + 1..).zip(chunks) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word(at).store(u64::from_le_bytes(bytes), SeqCst);
        }
        self.0[TAIL].store(next, SeqCst);
    }
}

/// What it hears and speaks through, be it two descriptors of one connection.
struct Pipes {
    requests: i32,
    results: i32,
}

impl Pipes {
    fn find() -> Pipes {
        let open = |kind: &str| Pipes::open(kind);
        let pipes = open("pipe:");
        // SAFETY: fcntl with F_GETFL takes no pointers.
        let mode = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFL) } & libc::O_ACCMODE;
        let find = |wanted| pipes.iter().copied().find(|fd| mode(fd) == wanted);
        if let (Some(requests), Some(results)) = (find(libc::O_RDONLY), find(libc::O_WRONLY)) {
            return Pipes { requests, results };
        }
        let connection = open("socket:");
        Pipes { requests: connection[0], results: connection[1] }
    }

    fn open(kind: &str) -> Vec<i32> {
        let mut open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let target = std::fs::read_link(entry.path()).ok()?;
                let fd = entry.file_name().to_str()?.parse().ok()?;
                (fd > 2 && target.to_str()?.starts_with(kind)).then_some(fd)
            })
            .collect();
        open.sort_unstable();
        open
    }

    fn say(&self, bytes: &[u8]) {
        write(self.results, bytes);
    }
}

fn write(fd: i32, bytes: &[u8]) {
    // SAFETY: the pointer and the length are those of a live slice.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n > 127 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A reply to the task with this number: for a value, neither over its memory nor elsewhere, and done in
/// no time.
fn reply(kind: u8, seq: u64, body: &[u8]) -> Vec<u8> {
    let mut reply = vec![kind];
    if kind != BELL {
        varint(seq, &mut reply);
    }
    if kind == VALUE {
        reply.extend([0, 0, 0]);
    }
    reply.extend(body);
    reply
}

fn frame(reply: &[u8]) -> Vec<u8> {
    [&(reply.len() as u32).to_le_bytes(), reply].concat()
}

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Waits to be seen, and sees to it that the process ends some time later.
fn prepare() {
    std::thread::sleep(PREPARATION);
    std::thread::spawn(|| {
        std::thread::sleep(REIGN * 2);
        std::process::abort();
    });
}

fn for_a_while(mut act: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < REIGN {
        act();
    }
}

/// Writes all over the shared memory.
pub fn scribble(mut seed: u64) -> (u32, u64) {
    prepare();
    let page = Page::find();
    let is_board = page.is_board();
    std::thread::spawn(move || {
        loop {
            let at = random(&mut seed) as usize;
            let at = match at % 16 {
                _ if is_board => at / 16 % page.0.len(),
                0 => at / 16 % page.0.len(),
                1..4 => TAIL + at / 16 % 2 * 8,
                4..10 => SLOTS.start + at / 16 % SLOTS.len(),
                _ => RING.start + at / 16 % RING.len(),
            };
            page.0[at].store(random(&mut seed) >> (seed % 64), SeqCst);
        }
    });
    std::thread::sleep(REIGN / 4);
    // Who it is, the pool may not have seen: not whether it has begun.
    (if is_board { std::process::id() } else { 0 }, 66)
}

/// Sends frames that are none, are cut short, are too long, or are answers given before.
pub fn say_anything(mut seed: u64) -> (u32, u64) {
    prepare();
    let (pipes, seq) = (Pipes::find(), Page::find().own_seq());
    for_a_while(|| match random(&mut seed) % 5 {
        0 => pipes.say(&random(&mut seed).to_le_bytes()),
        1 => pipes.say(&frame(&reply(VALUE, seq, &FALSE))[..4]),
        2 => pipes.say(&u32::MAX.to_le_bytes()),
        3 => pipes.say(&frame(&reply(SKIPPED, seq, &[]))),
        _ => pipes.say(&frame(&reply(VALUE, seq, &FALSE))),
    });
    (0, 66)
}

/// Answers its own task again and again, and those to come.
pub fn answer_for_others(_: u64) -> (u32, u64) {
    prepare();
    let (page, seq) = (Page::find(), Page::find().own_seq());
    for other in seq..seq + 5 {
        page.push(&reply(VALUE, other, &FALSE));
    }
    Pipes::find().say(&frame(&reply(BELL, 0, &[])));
    std::thread::sleep(REIGN);
    (0, 66)
}

/// Rings, and there is nothing.
pub fn ring(_: u64) -> (u32, u64) {
    prepare();
    let (pipes, bells) = (Pipes::find(), frame(&reply(BELL, 0, &[])).repeat(1000));
    for_a_while(|| pipes.say(&bells));
    (0, 66)
}

/// Says with every breath that it has just begun, until it is killed.
pub fn begin_for_ever(_: u64) -> (u32, u64) {
    std::thread::sleep(PREPARATION);
    let (page, start) = (Page::find(), Instant::now());
    let began_at = page.began_at();
    while start.elapsed() < Duration::from_secs(20) {
        // Not later than now, as that would be seen through.
        began_at.store(now() - 1_000_000, SeqCst);
        std::thread::sleep(Duration::from_micros(100));
    }
    std::process::abort();
}

fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Says that it is done, and is not.
pub fn finish_and_go_on(_: u64) -> (u32, u64) {
    prepare();
    let page = Page::find();
    let (at, seq) = page.own_slot();
    page.0[at].store(seq << 2 | FINISHED, SeqCst);
    std::thread::sleep(REIGN * 3);
    (0, 66)
}

/// Says that it has never begun, and dies.
pub fn never_begin(_: u64) -> (u32, u64) {
    let page = Page::find();
    if page.is_board() {
        page.0[BOARD_BEGUN].store(0, SeqCst);
    } else {
        let (at, seq) = page.own_slot();
        page.0[at].store(seq << 2 | OFFERED, SeqCst);
    }
    std::process::abort();
}

/// Tries to cut the shared memory short; how often that worked.
pub fn shrink(_: u64) -> (u32, u64) {
    std::thread::sleep(PREPARATION);
    let maps = std::fs::read_dir("/proc/self/map_files");
    let files = maps.into_iter().flatten().flatten().map(|entry| entry.path());
    let page = Page::find();
    let start = format!("{:x}-", page.0.as_ptr() as usize);
    let mut done = 0;
    for path in files.filter(|path| path.to_string_lossy().contains(&start)) {
        let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) else { continue };
        done += u64::from(file.set_len(0).is_ok()) + u64::from(file.set_len(1 << 40).is_ok());
    }
    (std::process::id(), done)
}

/// Writes to its standard streams as fast as it can.
pub fn flood(_: u64) -> (u32, u64) {
    std::thread::sleep(PREPARATION);
    for_a_while(|| {
        write(1, &[0xff; 4096]);
        write(2, &[b'\n'; 4096]);
    });
    (std::process::id(), 0)
}

/// Closes everything.
pub fn close_all(_: u64) -> (u32, u64) {
    prepare();
    // SAFETY: descriptors are nothing that memory depends on; that others are surprised is the point.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    std::thread::sleep(REIGN * 3);
    (0, 66)
}

/// Announces a long frame, and sends a part of it.
pub fn claim(_: u64) -> (u32, u64) {
    prepare();
    let pipes = Pipes::find();
    pipes.say(&(200u32 << 20).to_le_bytes());
    pipes.say(&[VALUE; 50_000]);
    std::thread::sleep(REIGN * 3);
    (0, 66)
}

/// Fills the ring with what is no record.
pub fn fill_ring(_: u64) -> (u32, u64) {
    prepare();
    let page = Page::find();
    for at in RING {
        page.0[at].store(0x0101_0101_0101_0101, SeqCst);
    }
    page.0[TAIL].store(page.0[HEAD].load(SeqCst) + RING.len() as u64, SeqCst);
    std::thread::sleep(REIGN * 3);
    (0, 66)
}

/// Moves the ring's tail to and fro, with nothing ever there.
pub fn waver(_: u64) -> (u32, u64) {
    prepare();
    let (page, seq) = (Page::find(), Page::find().own_slot().1);
    // Whatever makes the pool look.
    Pipes::find().say(&frame(&reply(BELL, 0, &[])));
    let head = page.0[HEAD].load(SeqCst);
    for_a_while(|| {
        page.0[TAIL].store(head + 1 + seq % 2, SeqCst);
        page.0[TAIL].store(head, SeqCst);
    });
    (0, 66)
}

/// Hears no requests any more, while its pipe stays open.
pub fn be_deaf(_: u64) -> (u32, u64) {
    prepare();
    let mut silent = [0; 2];
    let requests = Pipes::find().requests;
    // SAFETY: the array has room for both descriptors, and the others take no pointers. What the
    // worker reads from is another pipe from here on, to which nobody writes.
    unsafe {
        libc::pipe(silent.as_mut_ptr());
        libc::dup(requests);
        libc::dup2(silent[0], requests);
    }
    (std::process::id(), 0)
}

/// Closes the pipe of its requests, and hears another one in its place.
pub fn close_its_ear(_: u64) -> (u32, u64) {
    std::thread::sleep(PREPARATION);
    let mut silent = [0; 2];
    // SAFETY: the array has room for both descriptors, and the others take no pointers.
    unsafe {
        libc::pipe(silent.as_mut_ptr());
        libc::dup2(silent[0], Pipes::find().requests);
    }
    // Who waits for requests at this moment keeps the pipe open until it looks again.
    std::thread::sleep(REIGN);
    (std::process::id(), 0)
}

/// Bears children for its parent, if that is a fork server, which end at once.
pub fn bear_siblings(_: u64) -> (u32, u64) {
    std::thread::sleep(PREPARATION);
    let parent = format!("/proc/{}/comm", std::os::unix::process::parent_id());
    if std::fs::read_to_string(parent).unwrap() == "fork server\n" {
        // SAFETY: the new processes do nothing but end.
        for_a_while(|| unsafe {
            if libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) == 0 {
                libc::_exit(0);
            }
        });
    }
    (std::process::id(), 0)
}

/// Dies, and leaves a process behind that goes on ringing and answering.
pub fn leave_a_daughter(_: u64) -> (u32, u64) {
    prepare();
    let (page, pipes, seq) = (Page::find(), Pipes::find(), Page::find().own_seq());
    let part = reply(PART, seq + 1, &FALSE);
    let (framed, bells) = (frame(&part), frame(&reply(BELL, 0, &[])).repeat(1000));
    // SAFETY: the new process only writes to memory and pipes that are there already.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: these take no pointers. The daughter must not outlive the test for long.
            unsafe {
                libc::fcntl(pipes.results, libc::F_SETPIPE_SZ, 1 << 20);
                libc::alarm(1);
            }
            loop {
                match page.is_board() {
                    true => pipes.say(&framed),
                    false => page.push(&part),
                }
                pipes.say(&bells);
            }
        }
        _ => std::process::abort(),
    }
}

/// Goes on saying the same, always with room for it, until it is killed.
fn repeat(record: &[u8]) -> ! {
    std::thread::sleep(PREPARATION);
    let (page, start) = (Page::find(), Instant::now());
    page.push_with_room(record);
    page.ring();
    while start.elapsed() < Duration::from_secs(20) {
        page.push_with_room(record);
    }
    std::process::abort();
}

/// Says without end how far it has got.
pub fn report_without_end(_: u64) -> (u32, u64) {
    repeat(&reply(PROGRESS, Page::find().own_seq(), &[7, 0, 0]))
}

/// Logs without end what it was never asked for, and what is none of what workers log.
pub fn log_without_end(_: u64) -> (u32, u64) {
    repeat(&[&[VOICE, 0][..], &[0xff; 6]].concat())
}

/// Sends items although nobody takes any, and its task is a stream or none.
pub fn send_without_room(_: u64) -> std::vec::IntoIter<(u32, u64)> {
    prepare();
    let (page, seq) = (Page::find(), Page::find().own_seq());
    let item = reply(ITEM, seq, &[&[0, 0][..], &FALSE].concat());
    page.push_with_room(&item);
    page.ring();
    for_a_while(|| page.push_with_room(&item));
    vec![].into_iter()
}

/// Has somebody hold it when it is killed, and then breaks the protocol.
pub fn never_die(_: u64) -> (u32, u64) {
    const ANYBODY: libc::c_ulong = libc::c_ulong::MAX;
    std::thread::sleep(PREPARATION);
    let (page, pipes) = (Page::find(), Pipes::find());
    // SAFETY: these take no pointers that are looked at. The daughter only makes system calls.
    unsafe {
        libc::prctl(libc::PR_SET_PTRACER, ANYBODY);
        let itself = libc::getpid();
        if libc::fork() == 0 {
            // Should nobody end it before.
            libc::alarm(90);
            libc::ptrace(libc::PTRACE_SEIZE, itself, 0, libc::PTRACE_O_TRACEEXIT);
            loop {
                libc::pause();
            }
        }
    }
    let is_held = || !std::fs::read_to_string("/proc/self/status").unwrap().contains("TracerPid:\t0\n");
    let start = Instant::now();
    while !is_held() {
        if start.elapsed() > Duration::from_secs(5) {
            return (std::process::id(), 0);
        }
        std::thread::yield_now();
    }
    if !page.is_board() {
        page.0[TAIL].store(page.0[HEAD].load(SeqCst) + 2 * RING.len() as u64, SeqCst);
    }
    pipes.say(&frame(&[0xff; 20]));
    loop {
        std::thread::park();
    }
}
