//! What the integration tests share: the turn that each test takes, the check that it left nothing
//! behind, and ways for a test and its tasks to meet without sleeping.
//!
//! A test is a function of a [`Builder`] (or a [`StartMethod`]); [`both!`] runs it under each start
//! method. [`run`] and [`alone`] let one test of a binary run at a time, so that a look at the
//! children and descriptors of this process sees that test's and no other's.

#![allow(dead_code, unused_imports, unused_macros)] // every test binary uses a part of this
#![allow(unreachable_pub, unsafe_code)]

#[cfg(feature = "nats")]
mod agents;
#[macro_use]
mod elsewhere;
mod leftovers;
mod meeting;
mod programs;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::abort;
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

use procession::{Builder, Panic, ProcessPool, StartMethod, TaskError, WorkerExit};
use tokio::runtime::Runtime;

pub use elsewhere::{Open, beside_what_runs, is_elsewhere, placed, server, way};
pub use leftovers::{Process, Scene, descendants, descriptors, gone, is_alive, parent_of, processes};
pub use meeting::{Guest, Ledger, Meeting, attend, attend_async, note};
pub use programs::{built_program, example, helper, helper_at, helping};

/// No test takes this long, unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Makes a module of two tests, `fork_server` and `spawn`, of each function named.
///
/// An `async fn` is named as it is, and a plain `fn` (which brings its own runtime) as `sync name`.
macro_rules! both {
    () => {};
    (sync $name:ident $(, $($rest:tt)*)?) => {
        mod $name {
            use procession::StartMethod::{ForkServer, Spawn};
            #[test]
            fn fork_server() {
                not_with_agents!("it brings a runtime of its own");
                crate::common::alone(|| super::$name(crate::common::Given::given(ForkServer)));
            }
            #[test]
            fn spawn() {
                here_only!("elsewhere there is one start method");
                crate::common::alone(|| super::$name(crate::common::Given::given(Spawn)));
            }
        }
        both! { $($($rest)*)? }
    };
    ($name:ident $(, $($rest:tt)*)?) => {
        mod $name {
            use procession::StartMethod::{ForkServer, Spawn};
            #[test]
            fn fork_server() {
                crate::common::run(async { super::$name(crate::common::Given::given(ForkServer)).await });
            }
            #[test]
            fn spawn() {
                here_only!("elsewhere there is one start method");
                crate::common::run(async { super::$name(crate::common::Given::given(Spawn)).await });
            }
        }
        both! { $($($rest)*)? }
    };
}

/// What a test of [`both!`] may ask for.
pub trait Given {
    fn given(method: StartMethod) -> Self;
}

impl Given for StartMethod {
    fn given(method: StartMethod) -> Self {
        method
    }
}

/// Two workers at most, and the given start method.
impl Given for Builder {
    fn given(method: StartMethod) -> Self {
        placed(ProcessPool::builder().start_method(method).workers(2))
    }
}

pub fn multi_thread() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `body` on a runtime of its own, as [`alone`] does, and checks while that runtime still lives
/// that the pools of `body` have cleaned up after themselves.
pub fn run(body: impl Future<Output = ()>) {
    alone(|| {
        let runtime = multi_thread();
        let before = Scene::now();
        #[cfg(feature = "nats")]
        agents::forget();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, body).await.expect("the test hangs");
            #[cfg(feature = "nats")]
            if let Some(server) = server() {
                let finished = tokio::time::timeout(PATIENCE, agents::finish(&server)).await;
                finished.expect("its agents do not end");
            }
        });
        before.expect_no_more();
    });
}

/// Runs `body` while no other test of this process runs, and checks that it left neither a process
/// nor a descriptor behind.
pub fn alone(body: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    prepare();
    let _alarm = Alarm::set();
    let before = Scene::now();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => before.expect_no_more(),
        Err(panic) => {
            before.await_no_more(); // so that the next test starts clean
            resume_unwind(panic);
        }
    }
}

/// Once a process: marks what it starts, forbids core dumps, and lets whatever a first pool sets up
/// for good be there before descriptors are counted.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        leftovers::mark_this_process();
        forbid_core_dumps();
        let runtime = multi_thread();
        for method in [StartMethod::ForkServer, StartMethod::Spawn] {
            runtime.block_on(async {
                let _ = tokio::time::timeout(PATIENCE, first_pool(method)).await;
            });
        }
        runtime.shutdown_timeout(PATIENCE);
    });
}

async fn first_pool(method: StartMethod) {
    let Ok(pool) = Builder::given(method).build() else {
        return; // for the tests to find out
    };
    let _ = pool.submit(std::process::id, ()).await;
    pool.shutdown().await;
}

fn forbid_core_dumps() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit for the length of the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }, 0);
}

/// Ends the process if a test blocks its thread for good, where no async timeout can help.
struct Alarm {
    _disarm: mpsc::Sender<()>,
}

impl Alarm {
    fn set() -> Alarm {
        let (disarm, disarmed) = mpsc::channel::<()>();
        let test = std::thread::current().name().map(str::to_owned);
        std::thread::spawn(move || {
            if disarmed.recv_timeout(PATIENCE * 2) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test:?} blocks its thread");
                abort();
            }
        });
        Alarm { _disarm: disarm }
    }
}

/// Looks until `holds`, for what the interface shows but gives no event for.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Asserts what a pool shows of its workers. Of those on other machines it learns a moment later.
pub async fn shown(what: &str, mut holds: impl FnMut() -> bool) {
    match is_elsewhere() {
        true => eventually(what, holds).await,
        false => assert!(holds(), "{what}"),
    }
}

/// The process id of a worker of `pool`: of its only one, if it has one.
pub async fn a_worker(pool: &ProcessPool) -> u32 {
    pool.submit(std::process::id, ()).await.unwrap()
}

#[track_caller]
pub fn panicked<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> Panic {
    match outcome {
        Err(TaskError::Panicked(panic)) => panic,
        other => panic!("expected a panic, not {other:?}"),
    }
}

#[track_caller]
pub fn died<T: std::fmt::Debug>(outcome: Result<T, TaskError>) -> WorkerExit {
    match outcome {
        Err(TaskError::WorkerDied(exit)) => exit,
        other => panic!("expected a death, not {other:?}"),
    }
}

/// Asserts that an outcome matches a pattern, and shows the outcome where it does not.
macro_rules! assert_matches {
    ($outcome:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        match $outcome {
            $pattern $(if $guard)? => {}
            other => panic!("expected {}, not {other:?}", stringify!($pattern $(if $guard)?)),
        }
    };
}
