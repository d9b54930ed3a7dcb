//! What a sandbox stops, and what it lets through.
//!
//! An [`Escape`] is a plain function that tries one thing which a sandbox is to stop, and tells the
//! error number that it got. Each is tried in a sandbox that allows next to nothing, in one that
//! allows all that it can without allowing this, and without any sandbox, where it must succeed: so
//! no escape fails for another reason than the sandbox.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

#[path = "sandbox/allowed.rs"]
mod allowed;
#[path = "sandbox/contexts.rs"]
mod contexts;
#[path = "sandbox/files.rs"]
mod files;
#[path = "sandbox/kernel.rs"]
mod kernel;
#[path = "sandbox/machine.rs"]
mod machine;
#[path = "sandbox/output.rs"]
mod output;
#[path = "sandbox/processes.rs"]
mod processes;
#[path = "sandbox/programs.rs"]
mod programs;
#[path = "sandbox/resources.rs"]
mod resources;
#[path = "sandbox/signals.rs"]
mod signals;
#[path = "sandbox/sockets.rs"]
mod sockets;
#[path = "sandbox/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use common::Given;
use procession::{Builder, PoolError, ProcessPool, Sandbox, StartMethod, TaskError};

use stage::{Host, Stage};

/// Nothing if it could be done, or else the error number.
type Outcome = Result<(), i32>;

struct Escape {
    name: &'static str,
    attempt: fn(&Stage) -> Outcome,
    granted_by: Option<Grant>,
    /// What it takes beside the absence of a sandbox, which not every machine gives.
    needs: Option<&'static str>,
}

/// What the builder of a sandbox can allow, if it allows this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grant {
    Execute,
    Network,
}

const fn escape(name: &'static str, attempt: fn(&Stage) -> Outcome) -> Escape {
    Escape { name, attempt, granted_by: None, needs: None }
}

impl Escape {
    const fn granted_by(mut self, grant: Grant) -> Escape {
        self.granted_by = Some(grant);
        self
    }

    const fn needs(mut self, what: &'static str) -> Escape {
        self.needs = Some(what);
        self
    }
}

/// All there are.
static GROUPS: &[&[Escape]] =
    &[files::ESCAPES, sockets::ESCAPES, processes::ESCAPES, signals::ESCAPES, kernel::ESCAPES];

fn all_names() -> Vec<String> {
    GROUPS.iter().copied().flatten().map(|escape| escape.name.to_owned()).collect()
}

fn names(escapes: &[Escape], chosen: impl Fn(&Escape) -> bool) -> Vec<String> {
    escapes.iter().filter(|escape| chosen(escape)).map(|escape| escape.name.to_owned()).collect()
}

fn named(name: &str) -> &'static Escape {
    let mut all = GROUPS.iter().copied().flatten();
    all.find(|escape| escape.name == name).unwrap()
}

/// In a worker: tries one after the other.
fn attempt(names: Vec<String>, stage: Stage) -> Vec<(String, Outcome)> {
    let outcome = |name: String| {
        let outcome = (named(&name).attempt)(&stage);
        (name, outcome)
    };
    names.into_iter().map(outcome).collect()
}

/// What a system call gave, where -1 stands for an error.
fn check(result: impl Into<i64>) -> Outcome {
    if result.into() == -1 { Err(errno()) } else { Ok(()) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

/// The error number in an `io::Error`.
fn told<T>(result: io::Result<T>) -> Outcome {
    result.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

fn c_path(path: impl AsRef<Path>) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

/// A pool in a sandbox. `None`, having said so, where the kernel can do no such thing: which must
/// then be told by `build`.
fn caged(builder: Builder, sandbox: Sandbox) -> Option<ProcessPool> {
    match builder.sandbox(sandbox).build() {
        Ok(pool) => Some(pool),
        Err(PoolError::NotConfined { reason }) if !reason.is_empty() => {
            eprintln!("skipped: there is no sandbox here: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// It may read one file.
fn strict(stage: &Stage) -> Sandbox {
    Sandbox::new().read(stage.readable())
}

/// It has every permission, but not for what the escapes are after.
fn generous(stage: &Stage) -> Sandbox {
    let sandbox = strict(stage).write(stage.mine()).allow_network();
    programs::libraries().into_iter().fold(sandbox.execute("/bin/true"), Sandbox::execute)
}

/// Panics unless each attempt failed for want of permission.
#[track_caller]
fn expect_refused(outcomes: &[(String, Outcome)], expected: &[String]) {
    let done: Vec<&String> = outcomes.iter().map(|(name, _)| name).collect();
    assert!(done.iter().copied().eq(expected), "{done:?}");
    let refusals = [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EXDEV];
    let refused = |outcome: &Outcome| outcome.is_err_and(|errno| refusals.contains(&errno));
    let escaped: Vec<_> = outcomes.iter().filter(|(_, outcome)| !refused(outcome)).collect();
    assert!(escaped.is_empty(), "not refused: {escaped:?}");
}

/// Has each of a group tried in the strict sandbox and, where that does not allow it, the generous.
async fn are_refused(method: StartMethod, group: &[Escape]) {
    let host = Host::new().await;
    for (what, sandbox, chosen) in [
        ("strict", strict(&host.stage), names(group, |_| true)),
        ("generous", generous(&host.stage), names(group, |escape| escape.granted_by.is_none())),
    ] {
        let builder = Builder::given(method).min_workers(2);
        let Some(pool) = caged(builder, sandbox) else { return };
        pool.warm_up().await.unwrap();
        common::eventually("two workers", || pool.stats().idle_workers() == 2).await;
        let workers: BTreeSet<u32> = pool.workers().iter().map(|worker| worker.pid()).collect();
        let before = host.look();
        let outcomes = pool.submit(attempt, (chosen.clone(), host.stage.clone())).await.unwrap();
        eprintln!("{what}: {outcomes:?}");
        expect_refused(&outcomes, &chosen);
        // The same against another worker of the pool, whichever it is.
        for pid in &workers {
            let stage = Stage { target: *pid as i32, ..host.stage.clone() };
            let arguments = (*pid, chosen.clone(), stage);
            let outcomes = pool.submit(attempt_on_another, arguments).await.unwrap();
            expect_refused(&outcomes, if outcomes.is_empty() { &[] } else { &chosen });
        }
        assert_eq!(host.look(), before, "something has changed all the same");
        let still: BTreeSet<u32> = pool.workers().iter().map(|worker| worker.pid()).collect();
        assert_eq!(still, workers, "no worker was ended");
        pool.shutdown().await;
    }
}

fn attempt_on_another(pid: u32, names: Vec<String>, stage: Stage) -> Vec<(String, Outcome)> {
    if std::process::id() == pid { Vec::new() } else { attempt(names, stage) }
}

/// Has each of a group tried without a sandbox, on a stage and in a worker of its own.
async fn work_without_a_sandbox(method: StartMethod, group: &[Escape]) {
    let pool = Builder::given(method).workers(1).max_tasks_per_worker(1).build().unwrap();
    let mut failed = Vec::new();
    for escape in group {
        let host = Host::new().await;
        let name = escape.name.to_owned();
        let outcome = match pool.submit(attempt, (vec![name], host.stage.clone())).await {
            Ok(outcomes) => outcomes[0].1,
            // It has become another program, which has no use for the pipes to the pool.
            Err(TaskError::WorkerDied(exit))
                if exit.code() == Some(0) || exit.signal() == Some(libc::SIGKILL) =>
            {
                Ok(())
            }
            Err(error) => panic!("{}: {error}", escape.name),
        };
        match (outcome, escape.needs) {
            (Ok(()), _) => {}
            (Err(errno), Some(what)) => {
                let error = io::Error::from_raw_os_error(errno);
                eprintln!("skipped: `{}` needs {what}: without a sandbox: {error}", escape.name);
            }
            (Err(errno), None) => failed.push((escape.name, io::Error::from_raw_os_error(errno))),
        }
    }
    pool.shutdown().await;
    reap_strays();
    assert!(failed.is_empty(), "they do not work without a sandbox either: {failed:?}");
}

/// Children of this process that no pool knows of.
fn reap_strays() {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
