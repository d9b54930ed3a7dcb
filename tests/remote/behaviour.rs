//! A pool with its workers elsewhere is a pool like any other.

use super::common::{Guest, Ledger, Meeting, attend, attend_async, died, eventually, note, panicked};
use super::stage::Stage;
use futures::StreamExt;
use procession::{ExitCause, Launcher, PoolError, ProcessPool, TaskError, TaskStatus, WorkerStdio, worker};
use std::time::Duration;

ways! {
    tasks_come_back_with_what_became_of_them: command command_stdio command_tls slurm slurm_stdio ssh ssh_tls ssh_stdio;
    a_death_says_how_it_was: command command_stdio command_tls slurm ssh;
    many_tasks_run_once_each: command command_stdio command_tls slurm ssh;
    a_cancelled_task_ends: command command_stdio command_tls slurm ssh;
    a_task_that_is_called_off_behind_another_never_begins: command;
    what_waits_behind_a_long_task_goes_elsewhere: command command_stdio command_tls slurm;
    a_task_times_out: command command_stdio command_tls slurm ssh;
    workers_are_recycled: command command_stdio slurm ssh;
    workers_have_the_environment_and_the_directory_that_were_asked_for: command ssh slurm;
    what_a_worker_prints_is_kept: command command_stdio command_tls slurm ssh;
    time_counts_for_each_item_of_a_chunk: command command_tls;
    an_initializer_and_a_preload_run_before_tasks: command command_stdio;
    a_preload_may_print_and_read: command command_stdio command_tls;
    limits_hold: command slurm;
    a_sandbox_is_made_there: command;
    what_cannot_be_put_in_place_breaks_the_pool: command;
    connections_are_kept_alive: command command_tls;
    nothing_listens_for_a_pool_that_is_not_built: command command_tls;
    a_pool_that_is_dropped_finishes_its_tasks: command slurm ssh;
    pools_may_be_nested: command;
}

async fn tasks_come_back_with_what_became_of_them(stage: &mut Stage) {
    let pool = stage.pool();
    assert_eq!(pool.submit(|x: u64, y: u64| x * y, (6, 7)).await.unwrap(), 42);
    let pid = pool.submit(std::process::id, ()).await.unwrap();
    assert_ne!(pid, std::process::id());
    assert_eq!(panicked(pool.submit(|| panic!("no way"), ()).await).message(), "no way");
    let failed = pool.submit(|| -> anyhow::Result<()> { anyhow::bail!("not today") }, ()).await;
    assert_eq!(failed.unwrap_err().to_string(), "not today");
    assert!(pool.submit(async || worker::is_worker(), ()).await.unwrap());
    let doubled: Vec<_> = pool.map(|n: u64| n * 2, 0..300).map(Result::unwrap).collect().await;
    assert_eq!(doubled, (0..300).map(|n| n * 2).collect::<Vec<_>>());
    let stats = pool.stats();
    assert_eq!(stats.failed(), 2);
    assert!(stats.run_time().count() >= 4, "{:?}", stats.run_time());
    pool.shutdown().await;
}

async fn a_death_says_how_it_was(stage: &mut Stage) {
    let pool = stage.one_worker();
    let exit = died(pool.submit(|| std::process::exit(3), ()).await);
    assert_eq!((exit.code(), exit.cause()), (Some(3), ExitCause::Exited));
    let last_words = || {
        eprintln!("these are my last words");
        std::process::abort();
    };
    let exit = died(pool.submit(last_words, ()).await);
    assert_eq!((exit.signal(), exit.cause()), (Some(libc::SIGABRT), ExitCause::Signalled));
    assert!(exit.stderr_tail().contains("these are my last words"), "{exit:?}");
    assert!(exit.max_rss() > 0);
    fn deep(n: u64) -> u64 {
        std::hint::black_box([n; 1000])[0] + if n == 0 { 0 } else { deep(n - 1) }
    }
    let exit = died(pool.submit(|| deep(u64::MAX), ()).await);
    assert_eq!(exit.cause(), ExitCause::StackOverflow);
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    pool.shutdown().await;
}

async fn many_tasks_run_once_each(stage: &mut Stage) {
    let pool = stage.pool();
    let ledger = Ledger::new();
    let place = ledger.place();
    let handles: Vec<_> = (0..500u32)
        .map(|n| pool.submit(|place: String, n: u32| note(&place, n), (place.clone(), n)))
        .collect();
    for handle in handles {
        handle.await.unwrap();
    }
    let mut seen: Vec<u32> = ledger.lines().iter().map(|line| line.parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..500).collect::<Vec<_>>());
    pool.shutdown().await;
}

/// Has a worker run `attend`, and waits until it does.
async fn begun(pool: &ProcessPool, meeting: &Meeting) -> (procession::TaskHandle<()>, Guest) {
    let handle = pool.submit(|place: String| attend(&place, "it"), meeting.place());
    let guest = meeting.next().await;
    eventually("it is known to run", || handle.status() == TaskStatus::Running).await;
    (handle, guest)
}

async fn a_cancelled_task_ends(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    // An async task is dropped where it waits, and its worker goes on.
    let handle = pool.submit(async |place: String| attend_async(&place, "it").await, meeting.place());
    let guest = meeting.next().await;
    let pid = guest.pid;
    handle.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    guest.gone().await;
    assert_eq!(pool.submit(std::process::id, ()).await.unwrap(), pid);
    // Any other is ended with its worker.
    let (handle, guest) = begun(&pool, &meeting).await;
    handle.cancel();
    assert_matches!(handle.await, Err(TaskError::Cancelled));
    guest.gone().await;
    assert_ne!(pool.submit(std::process::id, ()).await.unwrap(), pid);
    pool.shutdown().await;
}

/// A pool with one worker that has short tasks behind it, so that it is sent several at a time.
async fn with_a_deep_pipeline(pool: &ProcessPool) {
    for _ in 0..30 {
        pool.submit(|| (), ()).await.unwrap();
    }
}

async fn a_task_that_is_called_off_behind_another_never_begins(stage: &mut Stage) {
    let pool = stage.one_worker();
    with_a_deep_pipeline(&pool).await;
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let long = pool.submit(|place: String| attend(&place, "it"), meeting.place());
    let behind: Vec<_> = (0..5u32)
        .map(|n| pool.submit(|place: String, n: u32| note(&place, n), (ledger.place(), n)))
        .collect();
    let guest = meeting.next().await;
    for handle in &behind[1..] {
        handle.cancel();
    }
    let mut behind = behind.into_iter();
    let first = behind.next().unwrap();
    for handle in behind {
        assert_matches!(handle.await, Err(TaskError::Cancelled));
    }
    // Nobody has killed the worker, which was at another task.
    drop(guest);
    long.await.unwrap();
    first.await.unwrap();
    pool.submit(|| (), ()).await.unwrap();
    assert_eq!(ledger.lines(), ["0"]);
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

async fn what_waits_behind_a_long_task_goes_elsewhere(stage: &mut Stage) {
    let pool = stage.pool();
    pool.warm_up().await.unwrap();
    for _ in 0..200 {
        pool.submit(|| (), ()).await.unwrap();
    }
    let meeting = Meeting::new();
    let long = pool.submit(|place: String| attend(&place, "it"), meeting.place());
    let behind: Vec<_> = (0..100u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    let guest = meeting.next().await;
    for (n, handle) in behind.into_iter().enumerate() {
        assert_eq!(handle.await.unwrap() as usize, n);
    }
    drop(guest);
    long.await.unwrap();
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

async fn a_task_times_out(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let attending = pool.task(|place: String| attend(&place, "it"), meeting.place());
    let handle = attending.timeout(Duration::from_millis(100)).submit();
    let guest = meeting.next().await;
    assert_matches!(handle.await, Err(TaskError::TimedOut { .. }));
    guest.gone().await;
    // A short limit is no trouble for a short task.
    pool.task(|| (), ()).timeout(Duration::from_secs(5)).await.unwrap();
    pool.shutdown().await;
}

async fn time_counts_for_each_item_of_a_chunk(stage: &mut Stage) {
    let pool = stage.one_worker();
    let slow = |n: u64| {
        std::thread::sleep(Duration::from_millis(150));
        n
    };
    let results = pool.map(slow, 0..8).chunk_size(8).timeout(Duration::from_secs(1));
    let results: Vec<_> = results.map(Result::unwrap).collect().await; // 1.2 s in all
    assert_eq!(results, (0..8).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn workers_are_recycled(stage: &mut Stage) {
    let pool = stage.builder().workers(1).max_tasks_per_worker(2).build().unwrap();
    let mut pids = Vec::new();
    for _ in 0..6 {
        pids.push(pool.submit(std::process::id, ()).await.unwrap());
    }
    pids.dedup();
    assert!(pids.len() >= 3, "{pids:?}");
    pool.shutdown().await;
    assert_eq!(pool.stats().workers_died(), 0);
}

async fn workers_have_the_environment_and_the_directory_that_were_asked_for(stage: &mut Stage) {
    let dir = tempfile::tempdir().unwrap();
    let builder = stage.builder().env("COLOUR", "green").env_remove("LOGNAME").current_dir(dir.path());
    let pool = builder.build().unwrap();
    let look = || {
        let home = std::env::current_dir().unwrap();
        let variables = ["COLOUR", "LOGNAME", "PROCESSION_ROLE"].map(|name| std::env::var(name).ok());
        (home.to_str().unwrap().to_owned(), variables.to_vec())
    };
    let (home, variables) = pool.submit(look, ()).await.unwrap();
    assert_eq!(home, dir.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(variables, [Some("green".to_string()), None, None]);
    pool.shutdown().await;
    let pool = stage.builder().env_clear().env("ONLY", "this").build().unwrap();
    let all = pool.submit(|| std::env::vars().collect::<Vec<_>>(), ()).await.unwrap();
    assert_eq!(all, [("ONLY".to_string(), "this".to_string())]);
    pool.shutdown().await;
}

async fn what_a_worker_prints_is_kept(stage: &mut Stage) {
    let builder = stage.builder().workers(1).stdout(WorkerStdio::Capture).stderr(WorkerStdio::Capture);
    let pool = builder.build().unwrap();
    let print = || {
        for n in 0..20_000 {
            println!("out {n}");
            eprintln!("err {n}");
        }
        std::process::exit(1)
    };
    let exit = died(pool.submit(print, ()).await);
    assert!(exit.stdout_tail().ends_with("out 19999\n"), "{exit:?}");
    assert!(exit.stderr_tail().ends_with("err 19999\n"), "{exit:?}");
    pool.shutdown().await;
    let pool = stage.builder().workers(1).stderr(WorkerStdio::Null).build().unwrap();
    let exit = died(
        pool.submit(
            || -> () {
                eprintln!("unheard");
                std::process::exit(1)
            },
            (),
        )
        .await,
    );
    assert_eq!(exit.stderr_tail(), "");
    pool.shutdown().await;
}

static SEEN: std::sync::Mutex<Vec<&str>> = std::sync::Mutex::new(Vec::new());

fn see(what: &'static str) {
    SEEN.lock().unwrap().push(what);
}

async fn an_initializer_and_a_preload_run_before_tasks(stage: &mut Stage) {
    let builder = stage.builder().preload(|| see("preload"), ()).initializer(|| see("initializer"), ());
    let pool = builder.build().unwrap();
    let seen = pool.submit(|| SEEN.lock().unwrap().join(" "), ()).await.unwrap();
    assert_eq!(seen, "preload initializer");
    pool.shutdown().await;
    let pool = stage.builder().preload(|| panic!("not here"), ()).build().unwrap();
    let error = pool.submit(|| (), ()).await.unwrap_err();
    assert_matches!(&error, TaskError::PoolBroken(PoolError::Preload { reason }) if reason.contains("not here"));
    pool.shutdown().await;
}

/// What it prints is none of what its steward says, and what its steward is told is nothing that it could
/// read.
async fn a_preload_may_print_and_read(stage: &mut Stage) {
    let preload = || {
        println!("what a preload function prints");
        assert_eq!(std::io::stdin().lines().count(), 0);
    };
    let pool = stage.builder().preload(preload, ()).build().unwrap();
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    pool.shutdown().await;
}

async fn limits_hold(stage: &mut Stage) {
    let pool = stage.builder().workers(1).worker_memory_limit(256 << 20).build().unwrap();
    let greedy = |size: usize| vec![1_u8; size].len();
    let exit = died(pool.submit(greedy, 1 << 30).await);
    assert_eq!(exit.cause(), ExitCause::OutOfMemory, "{exit}");
    assert_eq!(pool.submit(greedy, 1 << 20).await.unwrap(), 1 << 20);
    pool.shutdown().await;
}

async fn a_sandbox_is_made_there(stage: &mut Stage) {
    if ProcessPool::builder().sandbox(procession::Sandbox::new()).build().is_err() {
        return eprintln!("skipped: this kernel has no Landlock");
    }
    let pool = stage.builder().sandbox(procession::Sandbox::new()).build().unwrap();
    assert!(pool.submit(|| std::fs::read("/etc/passwd").is_err(), ()).await.unwrap());
    pool.shutdown().await;
}

async fn what_cannot_be_put_in_place_breaks_the_pool(stage: &mut Stage) {
    let pool = stage.builder().current_dir("/no/such/place").build().unwrap();
    let error = pool.submit(|| (), ()).await.unwrap_err();
    assert_matches!(&error, TaskError::PoolBroken(PoolError::Start { reason }) if reason.contains("/no/such/place"));
    pool.shutdown().await;
    let launcher = Launcher::command(["/no/such/launcher"]);
    let pool = ProcessPool::builder().launcher(launcher).build().unwrap();
    let error = pool.submit(|| (), ()).await.unwrap_err();
    assert_matches!(&error, TaskError::PoolBroken(PoolError::Start { reason }) if reason.contains("/no/such/launcher"));
    pool.shutdown().await;
    let launcher = Launcher::command(["sh", "-c", "echo there is no room >&2; exit 5"]);
    let pool = ProcessPool::builder().launcher(launcher).build().unwrap();
    let error = pool.submit(|| (), ()).await.unwrap_err().to_string();
    assert!(error.contains("exited with code 5") && error.contains("there is no room"), "{error}");
    pool.shutdown().await;
    let pool = stage.builder().launcher(stage.launcher().program("/no/such/program")).build().unwrap();
    let error = pool.submit(|| (), ()).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    pool.shutdown().await;
    for launcher in [
        Launcher::command::<&str>([]),
        Launcher::local().option("-v"),
        stage.launcher().node_timeout(Duration::ZERO),
        stage.launcher().over_stdio(true).encrypted(true),
    ] {
        assert_matches!(
            ProcessPool::builder().launcher(launcher).build(),
            Err(PoolError::InvalidSetting { .. })
        );
    }
    assert_matches!(stage.builder().timeout_reports(true).build(), Err(PoolError::InvalidSetting { .. }));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = stage.launcher().bind(taken.local_addr().unwrap());
    assert_matches!(ProcessPool::builder().launcher(launcher).build(), Err(PoolError::Start { .. }));
}

/// What stands in between forgets connections over which nothing comes, as while a task runs.
async fn connections_are_kept_alive(stage: &mut Stage) {
    let [port] = super::servers::free_ports();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let pool = stage.builder().workers(1).launcher(stage.launcher().bind(address)).build().unwrap();
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    // Both ends are here, of each connection; which timer runs for it, and its state, are in the table.
    let timers = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let is_ours = |end: &str| end.ends_with(&format!(":{port:04X}"));
        let ours = rows.filter(|row| row[3] == "01" && (is_ours(row[1]) || is_ours(row[2])));
        ours.map(|row| row[5][..2].to_string()).collect::<Vec<_>>()
    };
    let ends = if stage.way == super::stage::Way::command { 4 } else { 2 };
    eventually("both ends of each are", || timers() == vec!["02"; ends]).await;
    pool.shutdown().await;
}

async fn nothing_listens_for_a_pool_that_is_not_built(stage: &mut Stage) {
    let [port] = super::servers::free_ports();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let builder = stage.builder().launcher(stage.launcher().bind(address));
    assert_matches!(builder.clone().timeline("/no/such/place/at/all").build(), Err(_));
    let pool = builder.clone().build().unwrap();
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    // One at a time.
    let taken = builder.clone().build();
    assert_matches!(&taken, Err(PoolError::Start { reason }) if reason.contains("in use"));
    pool.shutdown().await;
    builder.build().unwrap().shutdown().await;
}

async fn a_pool_that_is_dropped_finishes_its_tasks(stage: &mut Stage) {
    let pool = stage.pool();
    let meeting = Meeting::new();
    let (handle, guest) = begun(&pool, &meeting).await;
    drop(pool);
    drop(guest);
    handle.await.unwrap();
}

async fn pools_may_be_nested(stage: &mut Stage) {
    let pool = stage.one_worker();
    let inner = async || {
        let pool = ProcessPool::new().unwrap();
        let pid = pool.submit(std::process::id, ()).await.unwrap();
        pool.shutdown().await;
        (std::process::id(), pid)
    };
    let (outer, inner) = pool.submit(inner, ()).await.unwrap();
    assert_ne!(outer, inner);
    pool.shutdown().await;
}
