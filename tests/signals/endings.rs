//! Signals that ask a program to end: it decides whether its tasks do, too.

use rustix::process::Signal;

use crate::common::{self, Given, Guest, Meeting, attend, gone, helper, helping};
use crate::program::ALL_WELL;
use crate::session::{Program, Session, lives, signal, stop};
use procession::{Builder, StartMethod};

both! {
    ctrl_c_leaves_the_tasks_of_a_program_that_handles_it,
    sigterm_leaves_the_tasks_of_a_program_that_handles_it,
    sighup_leaves_the_tasks_of_a_program_that_handles_it,
    a_hang_up_leaves_the_tasks_of_a_program_that_handles_it,
    ctrl_c_leaves_nothing_of_a_program_that_does_not,
    ctrl_backslash_leaves_nothing_of_a_program,
    sigterm_leaves_nothing_of_a_program_that_does_not,
    sighup_leaves_nothing_of_a_program_that_does_not,
    a_hang_up_leaves_nothing_of_a_program_that_does_not,
    a_supervisor_that_signals_every_process_leaves_the_tasks,
    a_pool_that_is_stopped_does_not_outlive_its_program,
    a_program_that_is_killed_while_its_workers_get_ready_leaves_nothing,
}

const CTRL_C: u8 = 0x03;
const CTRL_BACKSLASH: u8 = 0x1c;

/// A program of which one task runs, and another worker is idle.
async fn at_work(method: StartMethod, part: &'static str) -> (Session, Guest, Vec<u32>) {
    let session = Session::start(Program { method, part, task_timeout: 0, prints: false }).await;
    let task = session.tasks.next().await;
    drop(session.hear("ready").await);
    let pool = session.pool();
    let fork_servers = usize::from(method == StartMethod::ForkServer);
    assert_eq!(pool.len(), 2 + fork_servers, "two workers: {pool:?}");
    (session, task, pool)
}

/// The program is told to end: its task goes on until it is done, and the program is told.
async fn finishes(method: StartMethod, name: &str, tell: impl FnOnce(&mut Session)) -> Session {
    let (mut session, task, pool) = at_work(method, "graceful").await;
    tell(&mut session);
    let told = session.hear(name).await;
    assert!(pool.iter().all(|pid| lives(*pid)), "they died before the program has decided");
    drop(told);
    drop(task);
    drop(session.hear(ALL_WELL).await);
    for pid in pool {
        gone(pid).await;
    }
    session
}

/// The program is ended, and nothing of it stays.
async fn ends(method: StartMethod, tell: impl FnOnce(&mut Session)) -> Session {
    let (mut session, task, pool) = at_work(method, "heedless").await;
    tell(&mut session);
    for pid in pool {
        gone(pid).await;
    }
    task.gone().await;
    gone(session.program).await;
    session
}

async fn ctrl_c_leaves_the_tasks_of_a_program_that_handles_it(method: StartMethod) {
    let session = finishes(method, "SIGINT", |session| session.press(CTRL_C)).await;
    assert_eq!(session.status().await, "exited 0");
}

async fn sigterm_leaves_the_tasks_of_a_program_that_handles_it(method: StartMethod) {
    let session = finishes(method, "SIGTERM", |session| signal(session.program, Signal::TERM)).await;
    assert_eq!(session.status().await, "exited 0");
}

async fn sighup_leaves_the_tasks_of_a_program_that_handles_it(method: StartMethod) {
    let session = finishes(method, "SIGHUP", |session| signal(session.program, Signal::HUP)).await;
    assert_eq!(session.status().await, "exited 0");
}

async fn a_hang_up_leaves_the_tasks_of_a_program_that_handles_it(method: StartMethod) {
    // It ends the shell, so there is nobody to tell how the program ended.
    let session = finishes(method, "SIGHUP", |session| drop(session.terminal.take())).await;
    gone(session.program).await;
}

async fn ctrl_c_leaves_nothing_of_a_program_that_does_not(method: StartMethod) {
    let session = ends(method, |session| session.press(CTRL_C)).await;
    assert_eq!(session.status().await, format!("killed {}", libc::SIGINT));
}

async fn ctrl_backslash_leaves_nothing_of_a_program(method: StartMethod) {
    let session = ends(method, |session| session.press(CTRL_BACKSLASH)).await;
    assert_eq!(session.status().await, format!("killed {}", libc::SIGQUIT));
}

async fn sigterm_leaves_nothing_of_a_program_that_does_not(method: StartMethod) {
    let session = ends(method, |session| signal(session.program, Signal::TERM)).await;
    assert_eq!(session.status().await, format!("killed {}", libc::SIGTERM));
}

async fn sighup_leaves_nothing_of_a_program_that_does_not(method: StartMethod) {
    let session = ends(method, |session| signal(session.program, Signal::HUP)).await;
    assert_eq!(session.status().await, format!("killed {}", libc::SIGHUP));
}

async fn a_hang_up_leaves_nothing_of_a_program_that_does_not(method: StartMethod) {
    ends(method, |session| drop(session.terminal.take())).await;
}

/// As systemd does by default, with each process of the service.
async fn a_supervisor_that_signals_every_process_leaves_the_tasks(method: StartMethod) {
    for (ending, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP")] {
        let everyone = |session: &mut Session| {
            let pool = session.pool();
            pool.into_iter().chain([session.program]).for_each(|pid| signal(pid, ending));
        };
        let session = finishes(method, name, everyone).await;
        assert_eq!(session.status().await, "exited 0");
    }
}

async fn a_pool_that_is_stopped_does_not_outlive_its_program(method: StartMethod) {
    let (session, _task, pool) = at_work(method, "heedless").await;
    for &pid in &pool {
        stop(pid).await;
    }
    signal(session.program, Signal::KILL);
    for pid in pool {
        gone(pid).await;
    }
    assert_eq!(session.status().await, format!("killed {}", libc::SIGKILL));
}

#[test]
#[ignore = "a program for the test below"]
fn gets_ready_for_long() {
    fn get_ready(place: String) {
        attend(&place, "getting ready");
    }
    let Some(text) = helping() else { return };
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    let [method, how, place] = words[..] else { panic!("{text}") };
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    common::multi_thread().block_on(async {
        let builder = Builder::given(method);
        let builder = match how {
            "preload" => builder.preload(get_ready, place.to_owned()),
            _ => builder.initializer(get_ready, place.to_owned()),
        };
        let _ = builder.build().unwrap().warm_up().await;
    });
}

async fn a_program_that_is_killed_while_its_workers_get_ready_leaves_nothing(method: StartMethod) {
    here_only!("a worker elsewhere is looked after there, and what it preloads is waited for");
    for how in ["initializer", "preload"] {
        if how == "preload" && method == StartMethod::Spawn {
            continue;
        }
        let meeting = Meeting::new();
        let text = format!("{method:?} {how} {}", meeting.place());
        let mut program = helper("endings::gets_ready_for_long", &text).spawn().unwrap();
        let guest = meeting.next().await;
        program.kill().unwrap();
        program.wait().unwrap();
        guest.gone().await;
    }
}
