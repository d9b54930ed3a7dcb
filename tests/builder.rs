//! What a [`Builder`] sets up in the processes of a pool, and what it refuses.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Given, Ledger, Meeting, a_worker, attend, died, eventually, helper, helping, note, parent_of};
use procession::{Builder, PoolError, ProcessPool, StartMethod, TaskError, WorkerStdio};

both! {
    variables_are_set_for_workers_only,
    variables_are_removed,
    variables_are_cleared,
    workers_inherit_the_environment,
    workers_have_a_directory_of_their_own,
    workers_read_nothing_from_standard_input,
    workers_are_not_in_the_process_group_of_the_program,
    captured_output_is_kept,
    nonsense_is_refused,
    sync inherited_output_reaches_the_program,
    sync captured_output_goes_nowhere_else,
    sync null_output_is_lost,
}

type Variables = BTreeMap<String, String>;

async fn variables(pool: &ProcessPool) -> Variables {
    pool.submit(|| std::env::vars().collect::<Variables>(), ()).await.unwrap()
}

async fn variables_are_set_for_workers_only(builder: Builder) {
    let pool = builder.env("PROCESSION_COLOUR", "blue").env("EMPTY", "").build().unwrap();
    let vars = variables(&pool).await;
    assert_eq!(vars["PROCESSION_COLOUR"], "blue");
    assert_eq!(vars["EMPTY"], "");
    assert_eq!(std::env::var_os("PROCESSION_COLOUR"), None);
    pool.shutdown().await;
}

async fn variables_are_removed(builder: Builder) {
    let pool = builder.env("GONE", "1").env_remove("GONE").env_remove("PATH").build().unwrap();
    let vars = variables(&pool).await;
    assert!(!vars.contains_key("GONE") && !vars.contains_key("PATH"), "{vars:?}");
    assert!(std::env::var_os("PATH").is_some());
    pool.shutdown().await;
}

async fn variables_are_cleared(builder: Builder) {
    let pool = builder.env("BEFORE", "1").env_clear().env("ONLY", "2").build().unwrap();
    let only = Variables::from([("ONLY".to_owned(), "2".to_owned())]);
    assert_eq!(variables(&pool).await, only);
    pool.shutdown().await;
}

async fn workers_inherit_the_environment(builder: Builder) {
    let pool = builder.build().unwrap();
    let ours: Variables = std::env::vars().collect();
    assert_eq!(variables(&pool).await, ours);
    pool.shutdown().await;
}

async fn workers_have_a_directory_of_their_own(method: StartMethod) {
    let current = || std::env::current_dir().unwrap().to_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    let elsewhere = Builder::given(method).current_dir(dir.path()).build().unwrap();
    assert_eq!(elsewhere.submit(current, ()).await.unwrap(), there);
    elsewhere.shutdown().await;
    let here = Builder::given(method).build().unwrap();
    assert_eq!(here.submit(current, ()).await.unwrap(), current());
    here.shutdown().await;
}

async fn workers_read_nothing_from_standard_input(builder: Builder) {
    let pool = builder.build().unwrap();
    let read = || std::io::read_to_string(std::io::stdin()).unwrap();
    assert_eq!(pool.submit(read, ()).await.unwrap(), "");
    pool.shutdown().await;
}

async fn workers_are_not_in_the_process_group_of_the_program(builder: Builder) {
    // SAFETY: getpgid takes no pointers.
    let group = |pid: u32| unsafe { libc::getpgid(pid as libc::pid_t) };
    let pool = builder.build().unwrap();
    let theirs = group(a_worker(&pool).await);
    assert!(theirs > 0 && theirs != group(0)); // so Ctrl-C in a terminal does not reach them
    pool.shutdown().await;
}

fn say(word: String) -> u32 {
    println!("out: {word}");
    eprintln!("err: {word}");
    std::process::id()
}

async fn captured_output_is_kept(builder: Builder) {
    let builder = builder.stdout(WorkerStdio::Capture).stderr(WorkerStdio::Capture);
    let pool = builder.workers(1).build().unwrap();
    pool.submit(say, "word".to_owned()).await.unwrap();
    eventually("both tails arrive", || {
        let worker = &pool.workers()[0];
        worker.stdout_tail().contains("out: word") && worker.stderr_tail().contains("err: word")
    })
    .await;
    let exit = died(pool.submit(|| -> u8 { std::process::exit(1) }, ()).await);
    assert!(exit.stderr_tail().contains("err: word"));
    pool.shutdown().await;
}

/// Runs the helper program below, which has its workers say something.
fn program(method: StartMethod, stdio: &str) -> Output {
    helper("says_something", &format!("{method:?} {stdio}")).output().unwrap()
}

#[test]
#[ignore = "a program for the tests around it"]
fn says_something() {
    let Some(word) = helping() else { return };
    let (method, stdio) = word.split_once(' ').unwrap();
    let method = match method {
        "ForkServer" => StartMethod::ForkServer,
        _ => StartMethod::Spawn,
    };
    common::multi_thread().block_on(async {
        let builder = Builder::given(method);
        let builder = match stdio {
            "null" => builder.stdout(WorkerStdio::Null).stderr(WorkerStdio::Null),
            "capture" => builder.stdout(WorkerStdio::Capture).stderr(WorkerStdio::Capture),
            _ => builder, // which inherits
        };
        let pool = builder.build().unwrap();
        for i in 0..100 {
            pool.submit(say, format!("line {i}.")).await.unwrap();
        }
        pool.shutdown().await;
    });
    println!("the program is done");
}

/// How many of the 100 lines of each stream the program's own output has.
fn lines_of(output: &Output) -> (usize, usize) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("the program is done"), "{out}\n{err}");
    (out.matches("out: line ").count(), err.matches("err: line ").count())
}

fn inherited_output_reaches_the_program(method: StartMethod) {
    assert_eq!(lines_of(&program(method, "inherit")), (100, 100));
}

fn captured_output_goes_nowhere_else(method: StartMethod) {
    assert_eq!(lines_of(&program(method, "capture")), (0, 0));
}

fn null_output_is_lost(method: StartMethod) {
    assert_eq!(lines_of(&program(method, "null")), (0, 0));
}

async fn nonsense_is_refused(method: StartMethod) {
    type Setting = fn(Builder) -> Builder;
    let nonsense: &[(&str, Setting)] = &[
        ("no workers", |b| b.workers(0)),
        ("a minimum above the maximum", |b| b.workers(2).min_workers(3)),
        ("no time for a task", |b| b.task_timeout(Duration::ZERO)),
        ("no task for a worker", |b| b.max_tasks_per_worker(0)),
        ("no room for a message", |b| b.max_message_size(0)),
    ];
    for (what, set) in nonsense {
        match set(Builder::given(method)).build() {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(_) => panic!("a pool with {what}"),
        }
    }
    let sense = Builder::given(method).workers(3).min_workers(3).cancel_grace(Duration::ZERO);
    sense.build().unwrap().shutdown().await;
}

/// Preloading is what a fork server does.
mod preload {
    use super::*;

    static TABLE: OnceLock<Vec<u32>> = OnceLock::new();

    fn load(place: String, n: u32) {
        note(&place, std::process::id());
        TABLE.set((0..n).collect()).unwrap();
    }

    fn fork_server() -> Builder {
        Builder::given(StartMethod::ForkServer)
    }

    #[test]
    fn runs_once_in_the_fork_server_and_is_there_in_every_worker() {
        here_only!("a preload function runs in each steward");
        common::run(async {
            let (ledger, meeting) = (Ledger::new(), Meeting::new());
            let pool = fork_server().preload(load, (ledger.place(), 1000)).build().unwrap();
            let handles = [(); 2].map(|()| {
                let last = |place: String| {
                    attend(&place, "loaded");
                    *TABLE.get().unwrap().last().unwrap()
                };
                pool.submit(last, meeting.place())
            });
            let guests = meeting.all(2).await;
            let parents = [0, 1].map(|i| parent_of(guests[i].pid).unwrap().to_string());
            assert_ne!(guests[0].pid, guests[1].pid);
            drop(guests);
            assert_eq!(futures::future::try_join_all(handles).await.unwrap(), [999, 999]);
            assert_eq!(ledger.lines(), [parents[0].clone()], "one line, from the fork server");
            assert_eq!(parents[0], parents[1]);
            assert_eq!(TABLE.get(), None);
            pool.shutdown().await;
        });
    }

    /// The error of a pool that cannot preload, be it told at `build` or by its first task.
    async fn refusal(built: Result<ProcessPool, PoolError>) -> String {
        let error = match built {
            Err(error) => anyhow::Error::new(error),
            Ok(pool) => {
                let error = pool.submit(std::process::id, ()).await.unwrap_err();
                assert_matches!(&error, TaskError::PoolBroken(_));
                pool.shutdown().await;
                anyhow::Error::new(error)
            }
        };
        format!("{error:#}")
    }

    #[test]
    fn that_fails_breaks_the_pool() {
        common::run(async {
            let fails = |n: u8| -> anyhow::Result<()> { anyhow::bail!("no table {n}") };
            let told = refusal(fork_server().preload(fails, 7).build()).await;
            assert!(told.contains("no table 7"), "{told}");
            let told = refusal(fork_server().preload(|| panic!("oh dear"), ()).build()).await;
            assert!(told.contains("oh dear"), "{told}");
        });
    }

    #[test]
    fn that_starts_a_thread_is_refused() {
        common::run(async {
            let starts_one = || {
                std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)));
            };
            let told = refusal(fork_server().preload(starts_one, ()).build()).await;
            assert!(told.contains("thread"), "{told}");
        });
    }

    #[test]
    fn that_ends_its_threads_is_accepted() {
        common::run(async {
            let joins = || {
                std::thread::spawn(|| TABLE.set(vec![5]).unwrap()).join().unwrap();
            };
            let pool = fork_server().preload(joins, ()).build().unwrap();
            assert_eq!(pool.submit(|| TABLE.get().unwrap()[0], ()).await.unwrap(), 5);
            a_worker(&pool).await;
            pool.shutdown().await;
        });
    }
}
