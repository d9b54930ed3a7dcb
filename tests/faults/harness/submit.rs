//! The threads that submit, and the futures that see what becomes of it.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use procession::{Priority, ProcessPool, TaskError, TaskHandle};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::deeds::{self, Birth, Crash, Noise, Then};
use super::kinds::{Kind, Outcome};
use super::plan::{Job, SUBMITTERS};
use super::round::Round;

pub const MIB: usize = 1 << 20;

/// How long a task may run that is there to run out of time.
pub const SHORT: Duration = Duration::from_millis(60);

/// How long a worker may go on that has sent what is too long.
const OVERSIZE_LIMIT: Duration = Duration::from_secs(5);

/// Submits every eighth job, and returns when the last of them is submitted.
pub fn submit_share(round: &Arc<Round>, share: usize, observer: &Handle) {
    round.wait_for_pools();
    let window = Arc::new(Semaphore::new(round.plan.window));
    for job in round.plan.jobs.iter().skip(share).step_by(SUBMITTERS) {
        let place = observer.block_on(window.clone().acquire_owned()).unwrap();
        let pool = round.pool(job.pool).expect("pools stay while there is something to submit");
        let desk =
            Desk { round: round.clone(), pool, job: job.clone(), since: Instant::now(), place, observer };
        desk.submit();
    }
    round.submitter_ended();
}

/// Where one job is submitted and followed.
pub struct Desk<'a> {
    pub round: Arc<Round>,
    pub pool: ProcessPool,
    pub job: Job,
    pub since: Instant,
    pub place: OwnedSemaphorePermit,
    pub observer: &'a Handle,
}

/// A handle that a future polls and a dump looks at.
pub type Watched<T> = Arc<Mutex<Option<TaskHandle<T>>>>;

impl Desk<'_> {
    fn submit(self) {
        use Kind::*;
        let (id, dice) = (self.job.id, self.job.dice);
        let small = dice % 5;
        match self.job.kind {
            Quick | MapItem | MapCrash => {
                self.run(deeds::triple, (id, dice >> 8), move |value| *value == (dice >> 8) * 3 + 1);
            }
            Echo => self.echo(4 * MIB),
            EchoBeyondArena => self.echo(40 * MIB),
            Sleep => self.run(deeds::nap, (id, small), move |value| *value == id),
            Spin => self.run(deeds::spin, (id, small), move |value| *value == id),
            Async => self.run(deeds::slumber, (id, small), move |value| *value == id),
            Flood => self.run(deeds::floods, (id, 2 * MIB), move |value| *value == id),
            Detached | Dropped | QueuedCancelled | HangCancelled | AsyncCancelled | HeedsCancelled => {
                self.submit_unwanted();
            }
            Reserved | ReserveDropped | Service | ServiceDropped => self.reserve(),
            Map | MapDropped | MapWithCrash => self.map(),
            Panic => self.run(deeds::panics, (id,), |_| false),
            Error => self.run(deeds::fails, (id,), |_| false),
            Abort => self.crash(Crash::Abort),
            ExitZero => self.crash(Crash::Exit(0)),
            ExitThree => self.crash(Crash::Exit(3)),
            Signal => self.crash(Crash::Signal(libc::SIGSEGV)),
            Overflow => self.crash(Crash::Overflow),
            CrashWithArguments => self.run(deeds::crashes_with, (id, vec![9; 4 * MIB]), |_| false),
            DaughterForked => self.bear(Birth::Fork, false),
            DaughterSpawned => self.bear(Birth::Spawn, false),
            DaughterThenCrash => self.bear(Birth::Fork, true),
            ClosesThenHangs => self.run(deeds::closes, (id, Then::Hang), |_| false),
            ClosesThenReturns => self.run(deeds::closes, (id, Then::Return), move |value| *value == id),
            ReportsUnwatched => self.run(deeds::reports, (id, dice % 20, false), |value| *value > 0),
            Reports | ReportsThenCrash => self.watch_reporting(),
            Logs => self.run(deeds::logs, (id, dice % 3000), move |value| *value == id),
            OutOfDescriptors => self.run(deeds::takes_descriptors, (id,), move |value| *value == id),
            OutOfMemory => self.run(deeds::takes_memory, (id,), |_| false),
            Streams => self.streams(),
            kind if kind.is_stream() => self.stream(),
            _ => self.submit_with_terms(),
        }
    }

    /// Jobs that have a timeout or retries, or make noise.
    fn submit_with_terms(self) {
        use Kind::*;
        let (id, dice) = (self.job.id, self.job.dice);
        let pool = self.pool.clone();
        let babble = |noise, then| pool.task(deeds::babbles, (id, noise, then));
        match self.job.kind {
            HangTimeout => self.follow(pool.task(deeds::hangs, (id,)).timeout(SHORT).submit(), |_| false),
            AsyncTimeout => {
                self.follow(pool.task(deeds::hangs_async, (id,)).timeout(SHORT).submit(), |_| false)
            }
            StopTimeout => self.follow(pool.task(deeds::stops, (id,)).timeout(SHORT * 2).submit(), |_| false),
            Retried => {
                let good = (dice % 3) as u32 + 1;
                let task = pool.task(deeds::succeeds_at, (id, good)).retries(3);
                self.follow(task.submit(), move |attempt| (good..=4).contains(attempt));
            }
            RetriedInVain => {
                self.follow(pool.task(deeds::succeeds_at, (id, 9)).retries(1).submit(), |_| false);
            }
            TruncatedThenAbort => self.follow(babble(Noise::Truncated, Then::Abort).submit(), |_| false),
            TruncatedThenHang => {
                self.follow(babble(Noise::Truncated, Then::Hang).timeout(SHORT).submit(), |_| false);
            }
            Oversize => {
                // It is not to last so long, unless an earlier task has spoilt the pipe.
                let task = babble(Noise::Oversize, Then::Hang).timeout(OVERSIZE_LIMIT);
                self.follow(task.submit(), |_| false);
            }
            RandomFrame => {
                let task = babble(Noise::Random(dice), Then::Hang).timeout(SHORT * 4);
                self.follow(task.submit(), |_| true);
            }
            TruncatedThenReturn => {
                self.follow(babble(Noise::Truncated, Then::Return).submit(), move |value| *value == id);
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn run<F, A, M, T>(self, function: F, arguments: A, is_right: impl FnOnce(&T) -> bool + Send + 'static)
    where
        F: Copy + Send + Sync + 'static,
        A: procession::Arguments<F, M, Output = T>,
        T: DeserializeOwned + Send + 'static,
    {
        let priorities = [Priority::Low, Priority::Normal, Priority::Normal, Priority::High];
        let priority = priorities[(self.job.dice >> 32) as usize % priorities.len()];
        let handle = self.pool.task(function, arguments).priority(priority).submit();
        self.follow(handle, is_right);
    }

    fn echo(self, size: usize) {
        // In a worker whose pipe is spoilt these may be taken for a length, which is to be too much.
        let (id, fill) = (self.job.id, self.job.dice as u8 | 0x80);
        let bytes = vec![fill; size + id as usize];
        self.run(deeds::echo, (id, bytes), move |back: &Vec<u8>| {
            back.len() == size + id as usize && back.iter().all(|byte| *byte == fill)
        });
    }

    fn crash(self, crash: Crash) {
        let id = self.job.id;
        self.run(deeds::crashes, (id, crash), |_| false);
    }

    fn bear(self, birth: Birth, then_crash: bool) {
        let id = self.job.id;
        self.run(deeds::bears, (id, birth, then_crash), move |value| *value == id);
    }

    /// Sees what becomes of a task.
    pub fn follow<T>(self, handle: TaskHandle<T>, is_right: impl FnOnce(&T) -> bool + Send + 'static)
    where
        T: DeserializeOwned + Send + 'static,
    {
        let watched = self.watch(handle);
        let Desk { round, job, since, place, observer, .. } = self;
        observer.spawn(async move {
            let (outcome, error) = judge(outcome_of(&watched).await, is_right);
            let handle = watched.lock().unwrap().take();
            if outcome == Outcome::TimedOut {
                let report = handle.as_ref().and_then(TaskHandle::timeout_report);
                round.timed_out(&job, report.is_some());
            }
            drop(handle);
            round.resolved(&job, since, outcome, error);
            drop(place);
        });
    }

    /// Notes the task as open.
    pub fn watch<T: Send + 'static>(&self, handle: TaskHandle<T>) -> Watched<T> {
        self.round.numbered(self.job.pool, handle.id().get());
        let watched = Arc::new(Mutex::new(Some(handle)));
        let seen = watched.clone();
        let probe = move || format!("{:?}", seen.lock().unwrap().as_ref().map(TaskHandle::status));
        self.round.opened(&self.job, self.since, Arc::new(probe));
        watched
    }
}

/// The result of a task; a future that leaves its handle to be looked at between polls.
pub async fn outcome_of<T: DeserializeOwned + 'static>(watched: &Watched<T>) -> Result<T, TaskError> {
    std::future::poll_fn(|context| {
        let mut handle = watched.lock().unwrap();
        match handle.as_mut() {
            Some(handle) => pin!(handle).poll(context),
            None => Poll::Pending,
        }
    })
    .await
}

/// A result as an outcome and an error.
pub fn judge<T>(
    result: Result<T, TaskError>,
    is_right: impl FnOnce(&T) -> bool,
) -> (Outcome, Option<TaskError>) {
    match result {
        Ok(value) if is_right(&value) => (Outcome::Value, None),
        Ok(_) => (Outcome::WrongValue, None),
        Err(error) => (Outcome::of(&error), Some(error)),
    }
}
