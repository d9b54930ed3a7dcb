//! Jobs that are more than a task and its result: handles that are dropped or cancelled, places in
//! a queue, services, reports, maps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::poll_immediate;
use procession::{Permit, ProcessPool, ProgressWatch, TaskError, TaskHandle};

use super::deeds;
use super::kinds::{Kind, Outcome};
use super::plan::{ITEMS, ITEMS_EACH, Job};
use super::round::Round;
use super::submit::{Desk, outcome_of};

/// How long it is waited for a task to begin that is to be cancelled when it has.
const LONG: Duration = Duration::from_secs(20);

impl Desk<'_> {
    /// Jobs whose results nobody waits for, or not to the end.
    pub fn submit_unwanted(self) {
        use Kind::*;
        let (id, dice) = (self.job.id, self.job.dice);
        match self.job.kind {
            Detached => {
                let handle = self.pool.submit(deeds::triple, (id, dice));
                self.round.numbered(self.job.pool, handle.id().get());
                handle.detach();
                self.round.resolved(&self.job, self.since, Outcome::Unseen, None);
            }
            Dropped => self.drop_later(),
            QueuedCancelled => {
                let handle = self.pool.submit(deeds::triple, (id, dice >> 8));
                handle.cancel();
                self.follow(handle, move |value| *value == (dice >> 8) * 3 + 1);
            }
            HangCancelled => {
                let handle = self.pool.submit(deeds::hangs, (id,));
                self.follow_until_cancelled(handle);
            }
            AsyncCancelled => {
                let handle = self.pool.submit(deeds::hangs_async, (id,));
                self.follow_until_cancelled(handle);
            }
            _ => {
                let handle = self.pool.submit(deeds::heeds, (id,));
                self.follow_until_cancelled(handle);
            }
        }
    }

    fn follow_until_cancelled(self, handle: TaskHandle<u32>) {
        let (canceller, round, job) = (handle.canceller(), self.round.clone(), self.job.clone());
        let (observer, id) = (self.observer, job.id);
        self.follow(handle, move |value| *value == id);
        observer.spawn(async move {
            moment_to_cancel(&round, &job, || !round.is_open(id)).await;
            canceller.cancel();
        });
    }

    fn drop_later(self) {
        let handle = self.pool.submit(deeds::hangs, (self.job.id,));
        let watched = self.watch(handle);
        let Desk { round, job, since, place, observer, .. } = self;
        observer.spawn(async move {
            let is_over = || watched.lock().unwrap().as_ref().is_none_or(TaskHandle::is_finished);
            moment_to_cancel(&round, &job, is_over).await;
            drop(watched.lock().unwrap().take());
            round.resolved(&job, since, Outcome::Unseen, None);
            drop(place);
        });
    }

    /// Waits for a place in the queue, or gives up waiting.
    pub fn reserve(self) {
        let Desk { round, pool, job, since, place, observer } = self;
        round.opened(&job, since, Arc::new(|| "waits for a place".to_owned()));
        observer.spawn(async move {
            let (outcome, error) = match job.kind {
                Kind::ReserveDropped => match poll_immediate(pool.reserve()).await {
                    None | Some(Ok(_)) => (Outcome::Unseen, None),
                    Some(Err(error)) => (Outcome::of(&error), Some(error)),
                },
                Kind::Service | Kind::ServiceDropped => call_service(&round, &pool, &job).await,
                _ => match pool.reserve().await {
                    Ok(permit) => use_permit(&round, permit, &job).await,
                    Err(error) => (Outcome::of(&error), Some(error)),
                },
            };
            drop(pool);
            round.resolved(&job, since, outcome, error);
            drop(place);
        });
    }

    /// Submits a task that reports, and watches it.
    pub fn watch_reporting(self) {
        let then_crash = self.job.kind == Kind::ReportsThenCrash;
        let handle = self.pool.submit(deeds::reports, (self.job.id, self.job.dice % 40, then_crash));
        let watch = handle.progress();
        let watched = self.watch(handle);
        let Desk { round, pool, job, since, place, observer } = self;
        drop(pool);
        observer.spawn(async move {
            let last = watch_reports(&round, &job, watch).await;
            let result = outcome_of(&watched).await;
            drop(watched.lock().unwrap().take());
            let (outcome, error) = super::submit::judge(result, |value| *value == last);
            round.resolved(&job, since, outcome, error);
            drop(place);
        });
    }

    /// Takes the results of a map, all of them or some.
    pub fn map(self) {
        let Desk { round, pool, job, since, place, observer } = self;
        round.opened(&job, since, Arc::new(|| "takes results".to_owned()));
        observer.spawn(async move {
            let outcome = take_results(&round, pool, &job).await;
            round.resolved(&job, since, outcome, None);
            drop(place);
        });
    }
}

/// Returns when a task has begun, is over, or was not begun for long; or at once.
async fn moment_to_cancel(round: &Round, job: &Job, is_over: impl Fn() -> bool) {
    if job.dice.is_multiple_of(4) {
        return;
    }
    let start = Instant::now();
    while round.board.line(job.id).began() == 0 && !is_over() && start.elapsed() < LONG {
        // The board gives no event.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn use_permit(round: &Round, permit: Permit, job: &Job) -> (Outcome, Option<TaskError>) {
    let n = job.dice >> 8;
    let handle = permit.submit(deeds::triple, (job.id, n));
    round.numbered(job.pool, handle.id().get());
    super::submit::judge(handle.await, |value| *value == n * 3 + 1)
}

/// Calls a function of the pool as a service, or leaves it when it is ready.
#[cfg(feature = "tower")]
async fn call_service(round: &Round, pool: &ProcessPool, job: &Job) -> (Outcome, Option<TaskError>) {
    use tower::{Service, ServiceExt};
    let n = job.dice >> 8;
    let mut service = pool.service(deeds::triple);
    match service.ready().await {
        Ok(_) if job.kind == Kind::ServiceDropped => (Outcome::Unseen, None),
        Ok(ready) => {
            let handle = ready.call((job.id, n));
            round.numbered(job.pool, handle.id().get());
            super::submit::judge(handle.await, |value| *value == n * 3 + 1)
        }
        Err(error) => (Outcome::of(&error), Some(error)),
    }
}

#[cfg(not(feature = "tower"))]
async fn call_service(_: &Round, _: &ProcessPool, job: &Job) -> (Outcome, Option<TaskError>) {
    unreachable!("{:?}, without the feature", job.kind)
}

/// Sees reports until the task is over, each after the one before it; returns the last, or zero.
pub async fn watch_reports(round: &Round, job: &Job, mut watch: ProgressWatch) -> u64 {
    let mut last = 0;
    while let Some(progress) = watch.changed().await {
        let before = std::mem::replace(&mut last, progress.done());
        if last <= before {
            round.complain(job, format!("told {last} after {before}"));
        }
    }
    last
}

async fn take_results(round: &Round, pool: ProcessPool, job: &Job) -> Outcome {
    let dice = job.dice as u32;
    let first = ITEMS + job.id * ITEMS_EACH;
    let count = dice % (ITEMS_EACH - 1) + 2;
    let crash = (job.kind == Kind::MapWithCrash).then_some(first + (dice >> 8) % count);
    let wanted = if job.kind == Kind::MapDropped { count / 2 } else { count };
    let items = (first..first + count).map(move |id| (id, Some(id) == crash));
    let mut results = pool.map(deeds::item, items);
    drop(pool);
    match (dice >> 16) % 3 {
        0 => results = results.chunk_size(1),
        1 => results = results.chunk_size(10),
        _ => {}
    }
    let mut taken = 0;
    while taken < wanted {
        let (id, since) = (first + taken, Instant::now());
        let kind = if Some(id) == crash { Kind::MapCrash } else { Kind::MapItem };
        match results.next().await {
            Some(Ok(value)) if value != id.wrapping_mul(7) => return Outcome::WrongValue,
            Some(result) => round.item_resolved(job, id, kind, since, result.err()),
            None => return Outcome::Other, // an item is missing
        }
        taken += 1;
    }
    if wanted == count && results.next().await.is_some() {
        return Outcome::Other; // a result too many
    }
    Outcome::Value
}
