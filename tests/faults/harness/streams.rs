//! Jobs that are streams: those who take from them, and what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, poll_immediate};
use procession::{ProcessPool, ProgressWatch, TaskError, TaskStream};
use serde::de::DeserializeOwned;

use super::kinds::{Kind, Outcome};
use super::plan::{ITEMS, ITEMS_EACH, Job};
use super::producers::{self, Item, Script, Size, Then};
use super::round::Round;
use super::special::watch_reports;
use super::submit::{Desk, SHORT};

/// More items than anybody takes.
const ENDLESS: u64 = u64::MAX;

/// How many streams there are at once in a job of that kind, at most.
const AT_ONCE: u32 = 12;

/// How long a consumer takes nothing that does not.
const LONG_HELD: Duration = Duration::from_millis(100);

/// How a consumer takes.
#[derive(Clone, Copy, Debug)]
struct Manner {
    window: usize,
    /// How long it waits between items.
    pace: Duration,
    /// Takes no more than so many items.
    until: Option<(u64, Stop)>,
    timeout: Option<Duration>,
}

/// What a consumer does when it has enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Drop,
    Cancel,
    /// Waits, and then takes what there is.
    Hold,
}

/// What there is to choose about a stream of some kind.
struct Course {
    script: Script,
    manner: Manner,
}

impl Course {
    fn of(job: &Job) -> Course {
        use Kind::*;
        let few = job.dice % 150;
        let window = [1, 2, 3, 16, 64, 1000][(job.dice >> 8) as usize % 6];
        let some = (job.dice >> 16) % 60;
        let mut script =
            Script { id: job.id, items: few, size: Size::Small, pause: 0, reports: false, then: Then::End };
        let mut manner = Manner { window, pace: Duration::ZERO, until: None, timeout: None };
        match job.kind {
            StreamSlow => {
                (script.items, manner.window) = (few % 30, window.min(3));
                manner.pace = Duration::from_millis(2);
            }
            StreamBulky => (script.items, script.size) = (few % 20, Size::Mixed),
            StreamBeyondArena => (script.items, script.size) = (2, Size::BeyondArena),
            StreamReports => (script.reports, script.pause) = (true, 300),
            StreamDropped => manner.until = Some((few / 2, Stop::Drop)),
            StreamEndless => (script.items, manner.until) = (ENDLESS, Some((some, Stop::Drop))),
            StreamPanic => script.then = Then::Panic,
            StreamError => script.then = Then::Fail,
            StreamAbort => script.then = Then::Abort,
            StreamHang => (script.then, manner.timeout) = (Then::Hang, Some(SHORT)),
            StreamStop => (script.then, manner.timeout) = (Then::Stop, Some(SHORT * 2)),
            StreamHeld => {
                (script.items, manner.timeout) = (ENDLESS, Some(SHORT));
                manner.until = Some((some % 3 + 1, Stop::Hold));
            }
            StreamCancelled => (script.items, manner.until) = (ENDLESS, Some((some, Stop::Cancel))),
            _ => {}
        }
        Course { script, manner }
    }
}

impl Desk<'_> {
    /// Takes from a stream as its kind is meant to.
    pub fn stream(self) {
        let Desk { round, pool, job, since, place, observer } = self;
        let taken = Arc::new(AtomicU64::new(0));
        let seen = taken.clone();
        round.opened(&job, since, Arc::new(move || format!("{} items are taken", seen.load(SeqCst))));
        observer.spawn(async move {
            let (outcome, error) = take_stream(&round, pool, &job, taken).await;
            round.resolved(&job, since, outcome, error);
            drop(place);
        });
    }

    /// Takes from several streams at once.
    pub fn streams(self) {
        let Desk { round, pool, job, since, place, observer } = self;
        round.opened(&job, since, Arc::new(|| "takes from many streams".to_owned()));
        observer.spawn(async move {
            let first = ITEMS + job.id * ITEMS_EACH;
            let count = 2 + job.dice as u32 % (AT_ONCE - 1);
            let each = |id: u32| {
                let dice = job.dice.rotate_left(id % 64);
                let own = Job { id, kind: Kind::StreamOfMany, dice, ..job.clone() };
                let (round, pool) = (&round, pool.clone());
                async move {
                    let (outcome, error) = take_stream(round, pool, &own, Arc::default()).await;
                    if outcome == Outcome::Value || error.is_some() {
                        round.item_resolved(&own, own.id, own.kind, since, error);
                    }
                    outcome
                }
            };
            let outcomes = futures::future::join_all((first..first + count).map(each)).await;
            drop(pool);
            let wrong = outcomes.into_iter().find(|outcome| *outcome == Outcome::WrongValue);
            round.resolved(&job, since, wrong.unwrap_or(Outcome::Value), None);
            drop(place);
        });
    }
}

type Taken = (Outcome, Option<TaskError>);

async fn take_stream(round: &Round, pool: ProcessPool, job: &Job, taken: Arc<AtomicU64>) -> Taken {
    let Course { script, manner } = Course::of(job);
    let taker = Taker { round, job, manner, taken };
    let whole = |number: u64, item: &Item| *item == script.item(number);
    match job.kind {
        Kind::StreamUnits => {
            let count = 20 * script.items;
            taker.take(pool.stream(producers::units, (job.id, count)), count, |_, ()| true).await
        }
        Kind::StreamThreads => {
            const THREADS: u32 = 3;
            let each = script.items;
            let mut next = [0; THREADS as usize];
            let in_order = move |_, (thread, number): &(u32, u64)| {
                let expected = std::mem::replace(&mut next[*thread as usize], number + 1);
                *number == expected
            };
            let stream = pool.stream(producers::push_from_threads, (job.id, THREADS, each));
            taker.take(stream, each * u64::from(THREADS), in_order).await
        }
        Kind::StreamWithErrors => {
            taker.take(pool.stream(producers::items_and_errors, script), script.items, whole).await
        }
        Kind::StreamError => taker.take(pool.stream(producers::push, script), script.items, whole).await,
        _ => {
            let stream = match (job.dice >> 40) % 3 {
                0 => pool.stream(producers::items, script),
                1 => pool.stream(producers::flow, script),
                _ => pool.stream(producers::push, script),
            };
            let watch = script.reports.then(|| stream.progress());
            let taking = taker.take(stream, script.items, whole);
            let (outcome, last) = join(taking, watch_all(round, job, watch)).await;
            if outcome.0 == Outcome::Value && last.is_some_and(|last| last != script.items) {
                round.complain(job, format!("told {last:?} last, not {}", script.items));
            }
            outcome
        }
    }
}

async fn watch_all(round: &Round, job: &Job, watch: Option<ProgressWatch>) -> Option<u64> {
    match watch {
        Some(watch) => Some(watch_reports(round, job, watch).await),
        None => None,
    }
}

/// A consumer.
struct Taker<'a> {
    round: &'a Round,
    job: &'a Job,
    manner: Manner,
    taken: Arc<AtomicU64>,
}

/// What a consumer has come to.
enum Next {
    /// An item, or the error in its place.
    Item,
    /// With so many items that had been taken.
    End(u64, Option<TaskError>),
    Wrong(String),
}

impl Taker<'_> {
    /// Takes from a stream that has so many items, and looks at each.
    async fn take<T: DeserializeOwned + 'static>(
        self,
        stream: TaskStream<T>,
        items: u64,
        mut is_right: impl FnMut(u64, &T) -> bool,
    ) -> Taken {
        let Manner { window, pace, until, timeout } = self.manner;
        let mut stream = stream.window(window);
        if let Some(limit) = timeout {
            stream = stream.timeout(limit);
        }
        self.round.numbered(self.job.pool, stream.id().get());
        let mut enough = until;
        let (all, end) = loop {
            if let Some((_, stop)) = enough.take_if(|(most, _)| self.taken.load(SeqCst) >= *most) {
                match stop {
                    Stop::Drop => {
                        // So that it has begun, or waits to begin.
                        let next = poll_immediate(stream.next()).await;
                        drop((stream, next));
                        return (Outcome::Unseen, None);
                    }
                    Stop::Cancel => stream.canceller().cancel(),
                    Stop::Hold => tokio::time::sleep(LONG_HELD).await,
                }
            }
            match self.next(&mut stream, &mut is_right).await {
                Next::Item => {}
                Next::End(all, end) => break (all, end),
                Next::Wrong(what) => return self.wrong(what),
            }
            if !pace.is_zero() {
                tokio::time::sleep(pace).await;
            }
        };
        // It stays at its end.
        if stream.next().await.is_some() || stream.next().await.is_some() {
            return self.wrong("it goes on after its end".into());
        }
        if matches!(end, Some(TaskError::TimedOut { .. })) {
            self.round.timed_out(self.job, stream.timeout_report().is_some());
        }
        drop(stream);
        self.judge(all, items, end)
    }

    async fn next<T: DeserializeOwned + 'static>(
        &self,
        stream: &mut TaskStream<T>,
        is_right: &mut impl FnMut(u64, &T) -> bool,
    ) -> Next {
        let number = self.taken.load(SeqCst);
        match stream.next().await {
            Some(Ok(item)) if is_right(number, &item) && !self.expects_error(number) => {}
            Some(Ok(_)) => return Next::Wrong(format!("another item came in place of number {number}")),
            Some(Err(TaskError::Failed(error)))
                if self.expects_error(number) && error.to_string() == format!("item {number} fails") => {}
            Some(Err(error)) => return Next::End(number, Some(error)),
            None => return Next::End(number, None),
        }
        self.taken.fetch_add(1, SeqCst);
        Next::Item
    }

    fn expects_error(&self, number: u64) -> bool {
        self.job.kind == Kind::StreamWithErrors && Script::has_error(number)
    }

    /// Whether all items came that had to before such an end.
    fn judge(&self, all: u64, items: u64, end: Option<TaskError>) -> Taken {
        let must_be_whole = match &end {
            None => true,
            // It went down with the last item behind it, and what was sent before counts.
            Some(error @ (TaskError::Panicked(_) | TaskError::Failed(_) | TaskError::WorkerDied(_))) => {
                self.job.kind.earns(self.job.id, error)
            }
            Some(_) => false,
        };
        if all > items || must_be_whole && all < items {
            return self.wrong(format!("{all} items came, not {items}, before {end:?}"));
        }
        match end {
            None => (Outcome::Value, None),
            Some(error) => (Outcome::of(&error), Some(error)),
        }
    }

    fn wrong(&self, what: String) -> Taken {
        self.round.complain(self.job, what);
        (Outcome::WrongValue, None)
    }
}
