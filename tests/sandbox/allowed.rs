//! What works within a sandbox: all that it allows, and all that it does not concern.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use procession::{Builder, ExitCause, Sandbox, WorkerStdio};

use super::caged;
use super::common::{a_worker, died, panicked};
use super::programs::libraries;

both! {
    files_that_may_be_read_are_read,
    directories_that_may_be_written_are,
    a_file_that_may_be_written_is,
    programs_that_may_be_executed_are,
    static_programs_need_nothing_else,
    children_can_be_killed,
    the_network_that_is_allowed_is_used,
    names_are_resolved_where_that_is_allowed,
    threads_work_together,
    async_tasks_have_timers_files_and_channels,
    memory_can_be_mapped_and_protected,
    panics_have_backtraces_with_names,
    aborts_and_overflows_are_told_apart,
    signals_to_oneself_arrive,
    large_values_go_both_ways,
}

async fn files_that_may_be_read_are_read(builder: Builder) {
    fn read(dir: PathBuf) -> (String, Vec<String>, Vec<u8>) {
        let whole = fs::read_to_string(dir.join("sub/file")).unwrap();
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        let names = entries.map(|name| name.into_string().unwrap()).collect();
        (whole, names, map_file(&dir.join("sub/file")))
    }
    fn map_file(path: &std::path::Path) -> Vec<u8> {
        use std::os::fd::AsRawFd;
        let file = fs::File::open(path).unwrap();
        let length = file.metadata().unwrap().len() as usize;
        let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE);
        // SAFETY: a new mapping touches no memory in use; it is as long as the file, which nobody cuts.
        unsafe {
            let place = libc::mmap(std::ptr::null_mut(), length, access, kind, file.as_raw_fd(), 0);
            assert_ne!(place, libc::MAP_FAILED);
            std::slice::from_raw_parts(place.cast::<u8>(), length).to_vec()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), "content").unwrap();
    let Some(pool) = caged(builder, Sandbox::new().read(dir.path())) else { return };
    let (whole, names, mapped) = pool.submit(read, dir.path().to_owned()).await.unwrap();
    assert_eq!((whole.as_str(), names), ("content", vec!["sub".to_owned()]));
    assert_eq!(mapped, b"content");
    pool.shutdown().await;
}

async fn directories_that_may_be_written_are(builder: Builder) {
    fn write(input: PathBuf, dir: PathBuf) -> std::io::Result<Vec<String>> {
        let at = |name: &str| dir.join(name);
        fs::create_dir(at("sub"))?;
        fs::copy(&input, at("sub/copy"))?;
        fs::rename(at("sub/copy"), at("moved"))?;
        fs::write(at("gone"), "gone")?;
        fs::remove_file(at("gone"))?;
        fs::create_dir_all(at("a/b"))?;
        fs::remove_dir_all(at("a"))?;
        fs::hard_link(at("moved"), at("same"))?;
        std::os::unix::fs::symlink("moved", at("link"))?;
        let mut file = fs::OpenOptions::new().read(true).append(true).open(at("link"))?;
        file.write_all(b", and more")?;
        file.set_len(12)?;
        file.sync_all()?;
        let mode = file.metadata()?.permissions();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        fs::set_permissions(at("moved"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        assert_eq!(file.metadata()?.permissions(), mode, "asked for in vain");
        file.lock()?;
        file.unlock()?;
        fs::File::create(at("moved"))?.write_all(&fs::read(&input)?)?;
        let mut lines = vec![fs::read_to_string(at("same"))?];
        for entry in fs::read_dir(&dir)? {
            lines.push(entry?.file_name().into_string().unwrap());
        }
        lines.sort();
        Ok(lines)
    }
    fn texts(result: std::io::Result<Vec<String>>) -> Result<Vec<String>, String> {
        result.map_err(|error| error.to_string())
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("input"), dir.path().join("output"));
    fs::write(&input, "input").unwrap();
    fs::create_dir(&output).unwrap();
    let Some(pool) = caged(builder, Sandbox::new().read(&input).write(&output)) else { return };
    if landlock_version() < 2 {
        eprintln!("skipped: before Linux 5.19 a sandbox keeps files in their directories");
        pool.shutdown().await;
        return;
    }
    let written = pool.submit(|input, output| texts(write(input, output)), (input, output)).await.unwrap();
    assert_eq!(written.unwrap(), ["input", "link", "moved", "same", "sub"]);
    pool.shutdown().await;
}

async fn a_file_that_may_be_written_is(builder: Builder) {
    fn write(path: PathBuf) -> (bool, bool) {
        let written = fs::write(&path, "new").is_ok();
        (written, fs::remove_file(&path).is_ok())
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "a longer text").unwrap();
    let Some(pool) = caged(builder, Sandbox::new().write(&path)) else { return };
    assert_eq!(pool.submit(write, path.clone()).await.unwrap(), (true, false));
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    pool.shutdown().await;
}

/// Runs a program with one argument; its output, or what kept it from running.
fn execute(program: String, argument: String) -> Result<String, String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{output:?}")) }
}

async fn programs_that_may_be_executed_are(builder: Builder) {
    let sandbox = libraries().into_iter().fold(Sandbox::new().execute("/bin/echo"), Sandbox::execute);
    let Some(pool) = caged(builder, sandbox) else { return };
    let run = |program: &str| pool.submit(execute, (program.to_owned(), "hello".to_owned()));
    assert_eq!(run("/bin/echo").await.unwrap(), Ok("hello\n".to_owned()));
    async fn execute_async(program: String) -> Option<i32> {
        tokio::process::Command::new(program).stdout(Stdio::null()).status().await.unwrap().code()
    }
    assert_eq!(pool.submit(execute_async, "/bin/echo".to_owned()).await.unwrap(), Some(0));
    let refused = run("/bin/cat").await.unwrap().unwrap_err();
    assert!(refused.contains("denied"), "{refused}");
    pool.shutdown().await;
}

/// Whether it is an executable that needs no other program to load it.
fn is_static(path: &str) -> bool {
    const INTERPRETER: u32 = 3;
    let Ok(bytes) = fs::read(path) else { return false };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (start, count) = (word(32) as usize, word(56) & 0xffff);
    (0..count as usize).all(|at| word(start + at * 56) != INTERPRETER)
}

async fn static_programs_need_nothing_else(builder: Builder) {
    let candidates = ["/sbin/ldconfig.real", "/sbin/ldconfig", "/bin/busybox"];
    let Some(program) = candidates.into_iter().find(|path| is_static(path)) else {
        eprintln!("skipped: no static program is known here");
        return;
    };
    let Some(pool) = caged(builder, Sandbox::new().execute(program)) else { return };
    let argument = if program.ends_with("busybox") { "true" } else { "--version" };
    let done = pool.submit(execute, (program.to_owned(), argument.to_owned())).await.unwrap();
    assert!(done.is_ok(), "{program}: {done:?}");
    pool.shutdown().await;
}

fn landlock_version() -> i64 {
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<u8>();
    // SAFETY: asked for its version, it takes no rules.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) }
}

async fn children_can_be_killed(builder: Builder) {
    fn kill_a_child() -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap().signal()
    }
    let sandbox = libraries().into_iter().fold(Sandbox::new().execute("/bin/cat"), Sandbox::execute);
    let Some(pool) = caged(builder, sandbox) else { return };
    // Before Linux 6.12 there is nothing to tell one's own children from other processes.
    if landlock_version() >= 6 {
        assert_eq!(pool.submit(kill_a_child, ()).await.unwrap(), Some(libc::SIGKILL));
    } else {
        eprintln!("skipped: this kernel cannot bound where signals go");
    }
    pool.shutdown().await;
}

async fn the_network_that_is_allowed_is_used(builder: Builder) {
    fn talk(tcp: u16, udp: u16) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        writeln!(stream, "{port}").unwrap();
        UdpSocket::bind(("127.0.0.1", 0)).unwrap().send_to(b"datagram", ("127.0.0.1", udp)).unwrap();
        let mut said = String::new();
        listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
        said
    }
    async fn talk_async(tcp: u16) -> String {
        use tokio::io::AsyncReadExt;
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", tcp)).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }
    let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let [tcp_port, udp_port] = [tcp.local_addr(), udp.local_addr()].map(|address| address.unwrap().port());
    let Some(pool) = caged(builder, Sandbox::new().allow_network()) else { return };
    let task = pool.submit(talk, (tcp_port, udp_port));
    let served = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut port = String::new();
        std::io::BufReader::new(tcp.accept().unwrap().0).read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(b"hello").unwrap();
        let mut datagram = [0; 8];
        udp.recv(&mut datagram).unwrap();
        (tcp, datagram)
    });
    assert_eq!(task.await.unwrap(), "hello");
    let (tcp, datagram) = served.await.unwrap();
    assert_eq!(&datagram, b"datagram");
    let task = pool.submit(talk_async, tcp_port);
    tokio::task::spawn_blocking(move || tcp.accept().unwrap().0.write_all(b"async")).await.unwrap().unwrap();
    assert_eq!(task.await.unwrap(), "async");
    pool.shutdown().await;
}

async fn names_are_resolved_where_that_is_allowed(builder: Builder) {
    fn resolve(name: String) -> Result<bool, String> {
        use std::net::ToSocketAddrs;
        let addresses = (name.as_str(), 80).to_socket_addrs().map_err(|error| error.to_string())?;
        Ok(addresses.map(|address| address.ip()).all(|ip| ip.is_loopback()))
    }
    let name = "localhost".to_owned();
    let Some(pool) = caged(builder, Sandbox::new().allow_network().read("/etc")) else { return };
    match resolve(name.clone()) {
        Ok(true) => assert_eq!(pool.submit(resolve, name).await.unwrap(), Ok(true)),
        other => eprintln!("skipped: {name} is not known here: {other:?}"),
    }
    pool.shutdown().await;
}

async fn threads_work_together(builder: Builder) {
    fn sum(n: u64) -> u64 {
        let (send, receive) = mpsc::channel();
        let local = std::sync::Mutex::new(0);
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let (send, local) = (send.clone(), &local);
                std::thread::Builder::new()
                    .name(format!("summer {worker}"))
                    .spawn_scoped(scope, move || {
                        let part: u64 = (0..n).filter(|i| i % 8 == worker).sum();
                        *local.lock().unwrap() += part;
                        send.send(part).unwrap();
                    })
                    .unwrap();
            }
        });
        drop(send);
        assert!(std::thread::available_parallelism().is_ok());
        assert_eq!(receive.iter().sum::<u64>(), *local.lock().unwrap());
        local.into_inner().unwrap()
    }
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    assert_eq!(pool.submit(sum, 1000).await.unwrap(), 499_500);
    pool.shutdown().await;
}

async fn async_tasks_have_timers_files_and_channels(builder: Builder) {
    async fn task(path: PathBuf) -> (String, bool, u32) {
        let start = Instant::now();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let late = tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
        let (send, receive) = tokio::sync::oneshot::channel();
        tokio::spawn(async move { send.send(7).unwrap() });
        let received = receive.await.unwrap();
        let read = tokio::fs::read_to_string(path).await.unwrap();
        (read, late.is_err() && start.elapsed() >= Duration::from_millis(10), received)
    }
    fn own_runtime() -> u32 {
        let runtime = super::common::multi_thread();
        runtime.block_on(async { tokio::spawn(async { 8 }).await.unwrap() })
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "content").unwrap();
    let Some(pool) = caged(builder, Sandbox::new().read(&path)) else { return };
    assert_eq!(pool.submit(task, path).await.unwrap(), ("content".to_owned(), true, 7));
    assert_eq!(pool.submit(own_runtime, ()).await.unwrap(), 8);
    pool.shutdown().await;
}

async fn memory_can_be_mapped_and_protected(builder: Builder) {
    fn map() -> bool {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = 4 << 20;
        // SAFETY: a new mapping touches no memory in use, and it is used as long as it is there.
        unsafe {
            let place = libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0);
            place.cast::<u8>().write_bytes(7, size);
            let grown = libc::mremap(place, size, 2 * size, libc::MREMAP_MAYMOVE);
            let kept = grown.cast::<u8>().add(size - 1).read() == 7;
            let advised = libc::madvise(grown, size, libc::MADV_DONTNEED) == 0;
            let protected = libc::mprotect(grown, size, libc::PROT_READ) == 0;
            kept && advised && protected && libc::munmap(grown, 2 * size) == 0
        }
    }
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    assert!(pool.submit(map, ()).await.unwrap());
    pool.shutdown().await;
}

#[inline(never)]
fn a_name_to_be_found() {
    panic!("on purpose");
}

async fn panics_have_backtraces_with_names(builder: Builder) {
    let builder = builder.env("RUST_BACKTRACE", "1").stderr(WorkerStdio::Capture);
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    let panic = panicked(pool.submit(a_name_to_be_found, ()).await);
    let backtrace = panic.backtrace().unwrap();
    assert!(backtrace.contains("a_name_to_be_found"), "{backtrace}");
    assert!(backtrace.contains("allowed.rs"), "{backtrace}");
    pool.shutdown().await;
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + std::hint::black_box(frame)[0]
}

async fn aborts_and_overflows_are_told_apart(builder: Builder) {
    let Some(pool) = caged(builder.stderr(WorkerStdio::Capture), Sandbox::new()) else { return };
    let exit = died(pool.submit(|| -> u8 { std::process::abort() }, ()).await);
    assert_eq!((exit.signal(), exit.cause()), (Some(libc::SIGABRT), ExitCause::Signalled));
    let exit = died(pool.submit(recurse, 0).await);
    assert_matches!(exit.cause(), ExitCause::StackOverflow);
    let exit = died(pool.submit(|| -> u8 { std::process::exit(7) }, ()).await);
    assert_eq!((exit.code(), exit.cause()), (Some(7), ExitCause::Exited));
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn signals_to_oneself_arrive(builder: Builder) {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    static HEARD: AtomicU32 = AtomicU32::new(0);
    extern "C" fn hear(_: i32) {
        HEARD.fetch_add(1, SeqCst);
    }
    fn signal_oneself() -> u32 {
        let handler: extern "C" fn(i32) = hear;
        // SAFETY: the handler does what is safe in one; the calls take no pointers.
        unsafe {
            libc::signal(libc::SIGUSR1, handler as usize);
            libc::raise(libc::SIGUSR1);
            libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1);
            libc::kill(libc::getpid(), libc::SIGUSR1);
        }
        while HEARD.load(SeqCst) < 3 {
            std::thread::yield_now();
        }
        HEARD.load(SeqCst)
    }
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    assert_eq!(pool.submit(signal_oneself, ()).await.unwrap(), 3);
    pool.shutdown().await;
}

async fn large_values_go_both_ways(builder: Builder) {
    let Some(pool) = caged(builder.workers(1), Sandbox::new()) else { return };
    for mib in [1, 40, 1] {
        let value: Vec<u8> = (0..mib << 20u32).map(|i| (i % 251) as u8).collect();
        let echo = |mut value: Vec<u8>| {
            value.reverse();
            value
        };
        let mut echoed = pool.submit(echo, value.clone()).await.unwrap();
        echoed.reverse();
        assert!(echoed == value, "{mib} MiB");
    }
    assert_eq!(pool.stats().workers_started(), 1);
    pool.shutdown().await;
}
