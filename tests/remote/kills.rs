//! Everything that stands between a pool and its worker is killed, or stopped, in mid-task.

use super::common::{
    Guest, Meeting, attend, descendants, died, eventually, gone, helper, helping, is_alive, parent_of,
    processes,
};
use super::stage::{Stage, Way, signal};
use procession::{ExitCause, Launcher, ProcessPool, TaskError, TaskHandle};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

ways! {
    a_killed_worker_is_a_death: command command_stdio command_tls slurm slurm_stdio ssh ssh_stdio ssh_tls;
    a_killed_steward_is_a_lost_node: command command_stdio command_tls slurm slurm_stdio ssh ssh_stdio;
    a_launcher_that_is_killed_ends_its_worker: slurm ssh slurm_stdio ssh_stdio ssh_tls;
    a_node_that_is_not_heard_of_is_lost_in_time: command command_stdio command_tls slurm ssh;
    a_connection_that_goes_nowhere_is_a_lost_node: command command_tls;
    a_broken_connection_of_a_worker_is_a_lost_node: command;
    a_kill_that_is_not_heeded_is_not_waited_for: command;
    a_worker_that_is_stopped_before_it_begins_is_found_out: command;
    the_daemon_of_a_node_may_die_under_a_task: slurm;
    a_killed_step_is_a_lost_node: slurm;
    a_killed_server_is_a_lost_node: ssh;
    nothing_is_left_of_a_program_that_is_killed: command command_stdio command_tls slurm ssh ssh_stdio;
    nothing_is_left_of_a_runtime_that_is_dropped: command command_stdio command_tls slurm ssh;
    nothing_is_left_of_a_start_that_is_called_off: command slurm;
}

/// Has a worker run `attend`, and waits until it does.
async fn attending(pool: &ProcessPool, meeting: &Meeting) -> (TaskHandle<()>, Guest) {
    let handle = pool.submit(|place: String| attend(&place, "it"), meeting.place());
    (handle, meeting.next().await)
}

/// After whatever has befallen it, the pool goes on.
async fn goes_on(pool: ProcessPool) {
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    pool.shutdown().await;
}

fn steward_of(worker: u32) -> u32 {
    let steward = parent_of(worker).unwrap();
    let name = processes().into_iter().find(|process| process.pid == steward).unwrap().name;
    assert_eq!(name, "steward");
    steward
}

/// The process of this name that this one has started.
fn launcher() -> u32 {
    let ours = descendants(std::process::id());
    let is_launcher = |name: &str| name == "srun" || name == "ssh";
    let mut launchers: Vec<_> = ours.iter().filter(|process| is_launcher(&process.name)).collect();
    // `srun` has a second process for what it prints.
    launchers.retain(|process| process.parent == std::process::id());
    assert_eq!(launchers.len(), 1, "{ours:?}");
    launchers[0].pid
}

async fn a_killed_worker_is_a_death(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    signal(guest.pid, libc::SIGKILL);
    let exit = died(handle.await);
    assert_eq!((exit.pid(), exit.signal()), (guest.pid, Some(libc::SIGKILL)));
    assert_eq!(exit.cause(), ExitCause::Signalled);
    goes_on(pool).await;
}

async fn a_killed_steward_is_a_lost_node(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    signal(steward_of(guest.pid), libc::SIGKILL);
    assert_matches!(handle.await, Err(TaskError::NodeLost));
    guest.gone().await;
    goes_on(pool).await;
}

/// Its steward may yet have told how the worker ended, or not.
fn lost_or_killed(outcome: Result<(), TaskError>) {
    match outcome {
        Err(TaskError::NodeLost) => {}
        Err(TaskError::WorkerDied(exit)) => {
            assert_matches!(exit.signal(), Some(libc::SIGKILL | libc::SIGTERM))
        }
        other => panic!("expected a loss, not {other:?}"),
    }
}

async fn a_launcher_that_is_killed_ends_its_worker(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    signal(launcher(), libc::SIGKILL);
    lost_or_killed(handle.await);
    guest.gone().await;
    goes_on(pool).await;
}

async fn a_node_that_is_not_heard_of_is_lost_in_time(stage: &mut Stage) {
    let limit = Duration::from_millis(1500);
    let launcher = stage.launcher().node_timeout(limit);
    let pool = stage.builder().workers(1).launcher(launcher).build().unwrap();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    let steward = steward_of(guest.pid);
    // A task that takes longer than that is none the worse for it.
    tokio::time::sleep(limit * 2).await;
    assert!(!handle.is_finished());
    signal(steward, libc::SIGSTOP);
    let stopped = Instant::now();
    assert_matches!(handle.await, Err(TaskError::NodeLost));
    assert!(stopped.elapsed() >= limit / 2, "given up at once");
    // When it goes on it finds that nobody wants it any more.
    signal(steward, libc::SIGCONT);
    guest.gone().await;
    goes_on(pool).await;
}

/// The pool of one worker whose connections lead through a relay, which passes on what `pass` makes of what
/// the pool sends, and hangs up the worker's own when it is told to.
async fn behind_a_relay(
    stage: &Stage,
    pass: impl Fn(Vec<u8>) -> Vec<u8> + Copy + Send + Sync + 'static,
    breaks: Arc<Notify>,
) -> (ProcessPool, tokio::task::JoinHandle<()>) {
    let pool_end = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = pool_end.local_addr().unwrap();
    drop(pool_end);
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let launcher = stage.launcher().bind(bind).advertise(relay.local_addr().unwrap().to_string());
    let pool = stage.builder().workers(1).launcher(launcher).build().unwrap();
    let relaying = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (far, _) = relay.accept().await.unwrap();
            let is_second = connections.len() == 1;
            let breaks = breaks.clone();
            connections.spawn(async move {
                let breaks =
                    async { if is_second { breaks.notified().await } else { std::future::pending().await } };
                let near = tokio::net::TcpStream::connect(bind).await.unwrap();
                let ((mut from_far, mut to_far), (mut from_near, mut to_near)) =
                    (far.into_split(), near.into_split());
                let down = async {
                    let mut bytes = vec![0; 64 * 1024];
                    while let Ok(read @ 1..) = from_near.read(&mut bytes).await {
                        if to_far.write_all(&pass(bytes[..read].to_vec())).await.is_err() {
                            break;
                        }
                    }
                    let _ = to_far.shutdown().await;
                };
                let up = async {
                    let _ = tokio::io::copy(&mut from_far, &mut to_near).await;
                    let _ = to_near.shutdown().await;
                };
                tokio::select! {
                    _ = async { tokio::join!(up, down) } => {}
                    () = breaks => {}
                }
            });
        }
    });
    (pool, relaying)
}

/// The connections of a worker lead through a relay, which dies.
async fn a_connection_that_goes_nowhere_is_a_lost_node(stage: &mut Stage) {
    let (pool, relaying) = behind_a_relay(stage, |bytes| bytes, Arc::default()).await;
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    relaying.abort();
    assert_matches!(handle.await, Err(TaskError::NodeLost));
    guest.gone().await;
    pool.shutdown_now().await;
    let _ = relaying.await;
}

/// That is no fault of the task's, nor of the worker's, which ends without the pool.
async fn a_broken_connection_of_a_worker_is_a_lost_node(stage: &mut Stage) {
    let breaks = Arc::new(Notify::new());
    let (pool, relaying) = behind_a_relay(stage, |bytes| bytes, breaks.clone()).await;
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    breaks.notify_one();
    assert_matches!(handle.await, Err(TaskError::NodeLost));
    guest.gone().await;
    pool.shutdown_now().await;
    relaying.abort();
    let _ = relaying.await;
}

/// Its steward gives signs of life all the time, but does not hear of the kill.
async fn a_kill_that_is_not_heeded_is_not_waited_for(stage: &mut Stage) {
    let without_kill = |bytes: Vec<u8>| {
        let kill = [2, 0, 0, 0, 0, 1];
        if bytes.starts_with(&kill) { bytes[kill.len()..].to_vec() } else { bytes }
    };
    let (pool, relaying) = behind_a_relay(stage, without_kill, Arc::default()).await;
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    pool.shutdown_now().await;
    assert_matches!(handle.await, Err(TaskError::ShutDown));
    guest.gone().await;
    relaying.abort();
    let _ = relaying.await;
}

/// A task that was sent to it runs elsewhere: it is known that it has not begun.
async fn a_worker_that_is_stopped_before_it_begins_is_found_out(stage: &mut Stage) {
    let pool = stage.one_worker();
    let pid = pool.submit(std::process::id, ()).await.unwrap();
    signal(pid, libc::SIGSTOP);
    let is_stopped = || processes().iter().any(|process| process.pid == pid && process.state == 'T');
    eventually("it is stopped", is_stopped).await;
    let other = pool.submit(std::process::id, ()).await.unwrap();
    assert_ne!(other, pid);
    gone(pid).await;
    pool.shutdown().await;
}

async fn the_daemon_of_a_node_may_die_under_a_task(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    for node in &stage.cluster().nodes {
        signal(node.pid(), libc::SIGKILL);
    }
    // What it has started goes on, and so does the task.
    for node in &mut stage.cluster().nodes {
        gone(node.pid()).await;
    }
    assert!(is_alive(guest.pid) && !handle.is_finished());
    drop(guest);
    handle.await.unwrap();
    pool.shutdown().await;
}

/// What Slurm looks after a task with, which has started the steward.
async fn a_killed_step_is_a_lost_node(stage: &mut Stage) {
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    let step = parent_of(steward_of(guest.pid)).unwrap();
    signal(step, libc::SIGKILL);
    lost_or_killed(handle.await);
    guest.gone().await;
    goes_on(pool).await;
}

/// The process of the server that serves this connection.
async fn a_killed_server_is_a_lost_node(stage: &mut Stage) {
    assert_eq!(stage.way, Way::ssh);
    let pool = stage.one_worker();
    let meeting = Meeting::new();
    let (handle, guest) = attending(&pool, &meeting).await;
    let server = parent_of(steward_of(guest.pid)).unwrap();
    signal(server, libc::SIGKILL);
    lost_or_killed(handle.await);
    guest.gone().await;
    goes_on(pool).await;
}

/// As a program of its own: has a pool with this launcher, and waits for ever.
fn keeps_a_pool(launcher: Launcher, place: String) {
    super::common::multi_thread().block_on(async {
        let pool = ProcessPool::builder().workers(1).launcher(launcher).build().unwrap();
        let handle = pool.submit(|place: String| attend(&place, "it"), place);
        println!("\nsubmitted");
        handle.await.unwrap();
    });
}

#[test]
#[ignore = "a program for the tests around it"]
fn keeps_a_pool_for_ever() {
    let Some(word) = helping() else { return };
    let mut words = word.split('\n').map(str::to_owned);
    let (way, place) = (words.next().unwrap(), words.next().unwrap());
    keeps_a_pool(super::stage::launcher_of(&way, words.collect()), place);
}

async fn nothing_is_left_of_a_program_that_is_killed(stage: &mut Stage) {
    let meeting = Meeting::new();
    let word = [format!("{:?}", stage.way), meeting.place()].into_iter().chain(stage.details());
    let word = word.collect::<Vec<_>>().join("\n");
    let mut program = helper("kills::keeps_a_pool_for_ever", &word).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    while line != "submitted\n" {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let guest = meeting.next().await;
    let steward = steward_of(guest.pid);
    let launchers = descendants(program.id());
    program.kill().unwrap();
    program.wait().unwrap();
    guest.gone().await;
    gone(steward).await;
    for launcher in launchers {
        gone(launcher.pid).await;
    }
}

async fn nothing_is_left_of_a_runtime_that_is_dropped(stage: &mut Stage) {
    let meeting = Meeting::new();
    let runtime = super::common::multi_thread();
    let pool = stage.builder().workers(1).runtime(runtime.handle().clone()).build().unwrap();
    let (handle, guest) = attending(&pool, &meeting).await;
    let steward = steward_of(guest.pid);
    runtime.shutdown_background();
    assert_matches!(handle.await, Err(TaskError::ShutDown));
    guest.gone().await;
    gone(steward).await;
}

async fn nothing_is_left_of_a_start_that_is_called_off(stage: &mut Stage) {
    // A launcher that never gets as far as to start anything.
    let launcher = Launcher::command(["sh", "-c", "exec sleep 1000"]);
    let pool = stage.builder().launcher(launcher).build().unwrap();
    let handle = pool.submit(|| (), ());
    let sleeps = || descendants(std::process::id()).iter().any(|process| process.name == "sleep");
    eventually("the launcher runs", sleeps).await;
    pool.shutdown_now().await;
    assert_matches!(handle.await, Err(TaskError::ShutDown));
    assert!(!sleeps());
    // Nor of what it is the launcher of in its turn.
    let pool = stage.builder().launcher(Launcher::command(["sh", "-c", "sleep 1000; exit"])).build().unwrap();
    let handle = pool.submit(|| (), ());
    eventually("the launcher runs", sleeps).await;
    // Without the servers of the stage.
    let mut ours = descendants(std::process::id());
    ours.retain(|process| process.name == "sleep");
    pool.shutdown_now().await;
    assert_matches!(handle.await, Err(TaskError::ShutDown));
    for process in ours {
        gone(process.pid).await;
    }
    if stage.way == Way::slurm {
        // There is no room for a third of these.
        let launcher = stage.launcher().option("--cpus-per-task=2");
        let pool = ProcessPool::builder().workers(3).launcher(launcher).build().unwrap();
        let meeting = Meeting::new();
        let handles: Vec<_> =
            (0..3).map(|_| pool.submit(|place: String| attend(&place, "it"), meeting.place())).collect();
        let guests = meeting.all(2).await;
        eventually("one waits", || {
            stage
                .cluster()
                .ask("squeue", &["--noheader", "--format=%T"])
                .iter()
                .any(|state| state == "PENDING")
        })
        .await;
        pool.shutdown_now().await;
        for handle in handles {
            assert_matches!(handle.await, Err(TaskError::ShutDown));
        }
        for guest in guests {
            guest.gone().await;
        }
        eventually("the queue is empty", || stage.cluster().ask("squeue", &["--noheader"]).is_empty()).await;
    }
}
