//! The limits that a [`Builder`] puts on workers: what these see of them, what happens to who comes
//! up against them, and what is told of those that cannot be put in place.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use common::{Given, Open, a_worker, died, helper, helping, server};
use procession::{Builder, ExitCause, PoolError, ProcessPool, Sandbox, StartMethod, TaskError};

both! {
    a_worker_has_the_limits_that_were_asked_for,
    a_worker_has_the_programs_own_limits_otherwise,
    descriptors_run_out_and_the_worker_goes_on,
    who_has_few_descriptors_can_still_do_async_tasks,
    who_has_little_memory_can_still_take_large_values,
    a_spinner_runs_out_of_processor_time,
    nobody_is_ended_for_the_processor_time_of_others,
    nonsense_is_refused_with_the_name_of_the_setting,
    a_sandbox_with_a_missing_path_is_told,
    what_lies_where_tasks_may_write_cannot_be_allowed_beside,
    memory_that_is_too_little_for_a_worker_is_told,
    sync a_privilege_that_is_missing_is_told,
    sync core_dumps_can_be_allowed,
}

const MIB: u64 = 1 << 20;

/// The soft and the hard limit of this name, as `/proc` has them.
fn limit(limits: &str, name: &str) -> (String, String) {
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

fn both_are(limits: &str, name: &str, value: u64) -> bool {
    limit(limits, name) == (value.to_string(), value.to_string())
}

fn read_own(name: &str) -> String {
    fs::read_to_string(format!("/proc/self/{name}")).unwrap()
}

/// From the line of `stat`: the 19th field, where the second may hold spaces.
fn nice_value(stat: &str) -> i32 {
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
}

async fn look(pool: &ProcessPool) -> [String; 3] {
    let [limits, status, stat] =
        ["limits", "status", "stat"].map(|name| pool.submit(|name: String| read_own(&name), name.to_owned()));
    [limits.await.unwrap(), status.await.unwrap(), stat.await.unwrap()]
}

async fn a_worker_has_the_limits_that_were_asked_for(builder: Builder) {
    let builder = builder
        .worker_memory_limit(1 << 30)
        .worker_cpu_limit(Duration::from_millis(999_001))
        .worker_open_files_limit(64)
        .worker_core_dumps(false)
        .worker_nice(3)
        .worker_no_new_privs(true);
    let pool = builder.open().unwrap();
    let [limits, status, stat] = look(&pool).await;
    assert!(both_are(&limits, "Max data size", 1 << 30), "{limits}");
    assert_eq!(limit(&limits, "Max cpu time"), ("1000".to_owned(), "1001".to_owned()));
    assert!(both_are(&limits, "Max open files", 64), "{limits}");
    assert!(both_are(&limits, "Max core file size", 0), "{limits}");
    assert!(limit(&limits, "Max address space").1.parse::<u64>().unwrap() > 1 << 30, "{limits}");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    assert_eq!(nice_value(&stat), (nice_value(&read_own("stat")) + 3).min(19));
    pool.shutdown().await;
}

async fn a_worker_has_the_programs_own_limits_otherwise(builder: Builder) {
    let pool = builder.open().unwrap();
    let [limits, status, stat] = look(&pool).await;
    assert_eq!(limits, read_own("limits"));
    let privileges =
        |status: &str| status.lines().find(|line| line.starts_with("NoNewPrivs")).map(str::to_owned);
    assert_eq!(privileges(&status), privileges(&read_own("status")));
    assert_eq!(nice_value(&stat), nice_value(&read_own("stat")));
    pool.shutdown().await;
}

async fn descriptors_run_out_and_the_worker_goes_on(builder: Builder) {
    fn open_all() -> (usize, i32) {
        let mut files = Vec::new();
        loop {
            match fs::File::open("/proc/self/exe") {
                Ok(file) => files.push(file),
                Err(error) => return (files.len(), error.raw_os_error().unwrap()),
            }
        }
    }
    let pool = builder.workers(1).worker_open_files_limit(24).open().unwrap();
    let pid = a_worker(&pool).await;
    let (count, errno) = pool.submit(open_all, ()).await.unwrap();
    assert!((12..24).contains(&count), "{count}");
    assert_eq!(errno, libc::EMFILE);
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn who_has_few_descriptors_can_still_do_async_tasks(builder: Builder) {
    let pool = builder.worker_open_files_limit(16).max_worker_rss(1 << 40).open().unwrap();
    let nap = async || tokio::time::sleep(Duration::from_millis(1)).await;
    pool.submit(nap, ()).await.unwrap();
    pool.shutdown().await;
}

async fn who_has_little_memory_can_still_take_large_values(builder: Builder) {
    let pool = builder.workers(1).worker_memory_limit(256 * MIB).open().unwrap();
    let pid = a_worker(&pool).await;
    for mib in [1, 40] {
        let value = vec![7u8; mib << 20];
        let echoed = pool.submit(|value: Vec<u8>| value, value.clone()).await.unwrap();
        assert!(echoed == value);
    }
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

/// Also if it will not hear of it.
fn spin_on() {
    extern "C" fn ignore(_: i32) {}
    let handler: extern "C" fn(i32) = ignore;
    // SAFETY: a handler that does nothing is safe.
    unsafe { libc::signal(libc::SIGXCPU, handler as usize) };
    spin();
}

async fn a_spinner_runs_out_of_processor_time(builder: Builder) {
    let pool = builder.worker_cpu_limit(Duration::from_millis(500)).open().unwrap(); // rounded up
    let exit = died(pool.submit(spin, ()).await);
    assert_matches!(exit.cause(), ExitCause::CpuTime);
    assert_eq!(exit.signal(), Some(libc::SIGXCPU));
    assert!(exit.cpu_time() >= Duration::from_millis(800), "{exit:?}"); // clocks differ a little
    let told = TaskError::WorkerDied(exit).to_string();
    assert!(told.contains("processor time"), "{told}");
    a_worker(&pool).await;
    pool.shutdown().await;
}

#[test]
fn a_spinner_that_will_not_hear_of_it_is_killed() {
    common::run(async {
        let builder = Builder::given(StartMethod::ForkServer).worker_cpu_limit(Duration::from_secs(1));
        let pool = builder.open().unwrap();
        let exit = died(pool.submit(spin_on, ()).await);
        assert_matches!(exit.cause(), ExitCause::CpuTime);
        assert_eq!(exit.signal(), Some(libc::SIGKILL), "it outlived the first signal");
        assert!(exit.cpu_time() > Duration::ZERO, "{exit:?}");
        pool.shutdown().await;
    });
}

/// Uses up so much processor time.
fn burn(time: Duration) -> u32 {
    let used = || {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is live.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) }, 0);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let start = used();
    while used() - start < time {
        std::hint::spin_loop();
    }
    std::process::id()
}

async fn nobody_is_ended_for_the_processor_time_of_others(builder: Builder) {
    let pool = builder.workers(1).worker_cpu_limit(Duration::from_secs(1)).open().unwrap();
    let mut pids = Vec::new();
    for _ in 0..4 {
        pids.push(pool.submit(burn, Duration::from_millis(200)).await.unwrap());
    }
    let changes = pids.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((1..=3).contains(&changes), "a worker is replaced after half a second: {pids:?}");
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
    not_with_agents!("workers are the agents', and counted there");
    assert!(pool.stats().workers_recycled() >= 1);
}

async fn nonsense_is_refused_with_the_name_of_the_setting(method: StartMethod) {
    type Setting = fn(Builder) -> Builder;
    let nonsense: &[(&str, Setting)] = &[
        ("worker_memory_limit", |b| b.worker_memory_limit(0)),
        ("max_worker_rss", |b| b.max_worker_rss(0)),
        ("worker_cpu_limit", |b| b.worker_cpu_limit(Duration::ZERO)),
        ("worker_open_files_limit", |b| b.worker_open_files_limit(15)),
        ("worker_nice", |b| b.worker_nice(40)),
        ("worker_nice", |b| b.worker_nice(-41)),
        ("sandbox", |b| b.sandbox(Sandbox::new().read("/long".repeat(4000)))),
        ("sandbox", |b| b.sandbox(Sandbox::new().write(OsStr::from_bytes(b"/not-\xff-utf8")))),
    ];
    for (name, set) in nonsense {
        match set(Builder::given(method)).build() {
            Err(PoolError::InvalidSetting { reason }) => {
                assert!(reason.contains(&format!("`{name}`")), "{reason}")
            }
            Err(error) => panic!("{name}: {error:?}"),
            Ok(_) => panic!("a pool with {name}"),
        }
    }
    let sense = Builder::given(method)
        .worker_memory_limit(1 << 40)
        .worker_cpu_limit(Duration::MAX)
        .worker_open_files_limit(u64::MAX)
        .worker_nice(39);
    let pool = sense.open().unwrap();
    a_worker(&pool).await;
    pool.shutdown().await;
}

/// How long it may take to say that no worker can be started.
const BOUND: Duration = Duration::from_secs(20);

/// Has the pool say, by each way there is, why workers cannot be given their limits.
async fn not_confined(builder: Builder) -> String {
    let start = Instant::now();
    let pool = builder.open().unwrap();
    let told = match (pool.warm_up().await, pool.submit(std::process::id, ()).await) {
        (Err(PoolError::NotConfined { reason }), _) => reason,
        (Ok(()), Err(TaskError::PoolBroken(PoolError::NotConfined { reason }))) if server().is_some() => {
            reason
        }
        other => panic!("{other:?}"),
    };
    let tasks = [(); 3].map(|()| pool.submit(std::process::id, ()));
    for task in tasks {
        match task.await {
            Err(TaskError::PoolBroken(PoolError::NotConfined { reason })) => assert_eq!(reason, told),
            other => panic!("{other:?}"),
        }
    }
    pool.shutdown().await;
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    told
}

async fn a_sandbox_with_a_missing_path_is_told(method: StartMethod) {
    here_only!("a sandbox's paths are looked up where the worker is, so `build` cannot tell");
    let given = || Builder::given(method);
    if let Err(PoolError::NotConfined { reason }) = given().sandbox(Sandbox::new()).build() {
        eprintln!("skipped: there is no sandbox here: {reason}");
        return;
    }
    let refused = |sandbox: Sandbox| match given().sandbox(sandbox).build() {
        Err(PoolError::NotConfined { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let missing = "/no/such/place";
    for sandbox in [
        Sandbox::new().read(missing),
        Sandbox::new().write("/").write(missing),
        Sandbox::new().read("/").execute(missing),
    ] {
        let told = refused(sandbox);
        assert!(told.contains(missing) && told.contains("No such file"), "{told}");
    }
    let there = tempfile::tempdir().unwrap();
    let told = refused(Sandbox::new().read(there.path().join("not")));
    assert!(told.contains("not"), "{told}");
    // It may also go missing later.
    let pool = given().sandbox(Sandbox::new().read(there.path())).open().unwrap();
    let path = there.path().display().to_string();
    drop(there);
    match pool.warm_up().await {
        Err(PoolError::NotConfined { reason }) => assert!(reason.contains(&path), "{reason}"),
        other => panic!("{other:?}"),
    }
    pool.shutdown().await;
}

/// A task could put a symbolic link in its place, and the next worker would follow that.
async fn what_lies_where_tasks_may_write_cannot_be_allowed_beside(method: StartMethod) {
    here_only!("a sandbox's paths are looked up where the worker is, so `build` cannot tell");
    let dir = tempfile::tempdir().unwrap();
    let (job, input, link) = (dir.path().join("job"), dir.path().join("job/input"), dir.path().join("link"));
    std::fs::create_dir(&job).unwrap();
    std::fs::write(&input, "input").unwrap();
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let writing = || Sandbox::new().write(&job);
    for sandbox in [
        writing().read(&input),
        writing().read(&link),
        writing().execute(&input),
        writing().write(&input),
        writing().read(dir.path().join("job/../job/input")),
    ] {
        match Builder::given(method).sandbox(sandbox).build() {
            Err(PoolError::NotConfined { reason }) if reason.contains("there is no sandbox") => return,
            Err(PoolError::NotConfined { reason }) => assert!(
                reason.contains("lies in") || reason.contains("Landlock") || reason.contains("system calls"),
                "{reason}"
            ),
            other => panic!("{other:?}"),
        }
    }
}

async fn memory_that_is_too_little_for_a_worker_is_told(method: StartMethod) {
    for bytes in [1, 64 << 10, MIB, 4 * MIB] {
        let told = not_confined(Builder::given(method).worker_memory_limit(bytes)).await;
        assert!(told.contains("worker_memory_limit"), "{bytes}: {told}");
    }
}

#[test]
#[ignore = "a program for the test below"]
fn wants_to_go_first() {
    let Some(method) = helping() else { return };
    const NOBODY: u32 = 65534;
    // SAFETY: neither takes a pointer.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgid(NOBODY), 0);
            assert_eq!(libc::setuid(NOBODY), 0);
        }
    }
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    common::multi_thread().block_on(async {
        println!("it is told: {}", not_confined(Builder::given(method).worker_nice(-5)).await);
    });
}

fn a_privilege_that_is_missing_is_told(method: StartMethod) {
    let output = helper("wants_to_go_first", &format!("{method:?}")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("it is told: ") && said.contains("CAP_SYS_NICE"), "{said}");
}

#[test]
#[ignore = "a program for the test below"]
fn allows_core_dumps() {
    let Some(method) = helping() else { return };
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    let some = libc::rlimit { rlim_cur: 0, rlim_max: 4096 };
    // SAFETY: the structure is live.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &some) } != 0 {
        println!("skipped: the system allows no core dumps");
        return;
    }
    common::multi_thread().block_on(async {
        let pool = Builder::given(method).worker_core_dumps(true).open().unwrap();
        let [limits, ..] = look(&pool).await;
        assert!(both_are(&limits, "Max core file size", 4096), "{limits}");
        pool.shutdown().await;
    });
}

fn core_dumps_can_be_allowed(method: StartMethod) {
    let output = helper("allows_core_dumps", &format!("{method:?}")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    if let Some(line) = said.lines().find(|line| line.contains("skipped: ")) {
        eprintln!("{line}");
    }
}
