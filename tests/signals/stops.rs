//! A program that is stopped and continued, and a terminal that stops who writes to it.

use std::io::Read;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::{self, eventually};
use crate::program::ALL_WELL;
use crate::session::{Program, Session, lives, signal, state_of, stop};
use procession::StartMethod;

both! {
    ctrl_z_stops_the_program_and_its_tasks_finish,
    a_task_that_finishes_in_time_while_the_program_is_stopped_has_a_value,
    a_terminal_does_not_stop_workers_that_use_it,
}

const CTRL_C: u8 = 0x03;
const CTRL_Z: u8 = 0x1a;

/// Stops a program by Ctrl-Z while a task runs, lets that finish, and continues the program after a
/// while.
async fn stop_and_continue(method: StartMethod, task_timeout: Duration, stop: Duration) {
    let task_timeout = task_timeout.as_millis() as u64;
    let program = Program { method, part: "graceful", task_timeout, prints: false };
    let session = Session::start(program).await;
    let task = session.tasks.next().await;
    drop(session.hear("ready").await);
    session.press(CTRL_Z);
    assert_eq!(session.status().await, "stopped");
    assert_eq!(state_of(session.program), Some('T'));
    let pool = session.pool();
    assert!(pool.iter().all(|pid| !matches!(state_of(*pid), Some('T' | 'Z') | None)));
    drop(task);
    eventually("the task is done", || session.ledger.lines() == ["done"]).await;
    tokio::time::sleep(stop).await;
    assert_eq!(state_of(session.program), Some('T'));
    assert!(pool.into_iter().all(lives), "they wait for the program");
    // As `fg` does.
    signal(session.program, Signal::CONT);
    session.press(CTRL_C);
    drop(session.hear("SIGINT").await);
    drop(session.hear(ALL_WELL).await);
    assert_eq!(session.status().await, "exited 0");
}

async fn ctrl_z_stops_the_program_and_its_tasks_finish(method: StartMethod) {
    stop_and_continue(method, Duration::ZERO, Duration::ZERO).await;
}

async fn a_task_that_finishes_in_time_while_the_program_is_stopped_has_a_value(method: StartMethod) {
    stop_and_continue(method, Duration::from_secs(4), Duration::from_secs(5)).await;
}

#[test]
fn when_everything_is_stopped_for_long_nobody_is_blamed() {
    common::run(async {
        tokio::join!(
            stop_everything_for_long(StartMethod::ForkServer),
            stop_everything_for_long(StartMethod::Spawn)
        );
    });
}

async fn stop_everything_for_long(method: StartMethod) {
    let session = Session::start(Program { method, part: "stopped", task_timeout: 0, prints: false }).await;
    let task = session.tasks.next().await;
    let ready = session.hear("ready").await;
    let pool = session.pool();
    for &pid in &pool {
        stop(pid).await;
    }
    drop(ready);
    let sent = session.hear("sent").await;
    stop(session.program).await;
    assert_eq!(session.status().await, "stopped");
    drop(sent);
    // More than the 10 s that a worker or the fork server may be silent.
    tokio::time::sleep(Duration::from_secs(11)).await;
    // The program goes on first, and has time to think the worst of the others.
    signal(session.program, Signal::CONT);
    let awake = session.hear("awake").await;
    for pid in pool {
        assert_eq!(state_of(pid), Some('T'));
        signal(pid, Signal::CONT);
    }
    drop((awake, task));
    drop(session.hear("Ok(7) Ok(1) Ok(2), died: 0, replaced: 0").await);
    assert_eq!(session.status().await, "exited 0");
}

async fn a_terminal_does_not_stop_workers_that_use_it(method: StartMethod) {
    let session = Session::start(Program { method, part: "printing", task_timeout: 0, prints: true }).await;
    let ready = session.hear("ready").await;
    session.stop_background_writers();
    drop(ready);
    // Its daughter's output comes, and neither can read, but both go on.
    let read = format!("(Some(0), Some({}), Some(1))", libc::EIO);
    let outcome = session.program_says.next().await;
    let (expected, got) = (read.split(", ").take(2), outcome.who.split(", ").take(2));
    assert!(expected.eq(got), "{}", outcome.who);
    assert!(!outcome.who.ends_with("Some(0))"), "a daughter has read from the terminal");
    drop(outcome);
    assert_eq!(session.status().await, "exited 0");
    let mut printed = Vec::new();
    let mut terminal = std::fs::File::from(session.terminal.as_ref().unwrap().try_clone().unwrap());
    // It ends with an error, once nobody has the other side open any more.
    let _ = terminal.read_to_end(&mut printed);
    let printed = String::from_utf8_lossy(&printed);
    let mut lines = vec!["from a worker", "from its standard error", "from a daughter"];
    lines.extend((method == StartMethod::ForkServer).then_some("from the fork server"));
    for line in lines {
        assert!(printed.contains(line), "no `{line}` in: {printed}");
    }
}
