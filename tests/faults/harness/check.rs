//! What must hold when a round is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procession::{ExitCause, PoolStats, TaskError, WorkerExit};

use super::board::TASKS;
use super::kinds::{End, Kind, Outcome};
use super::listener::Heard;
use super::plan::{ITEMS, ITEMS_EACH};
use super::play::Ended;
use super::round::{Log, Record, Round};
use super::tally::Tally;

/// With so many faults from outside, workers may have failed to start three times in a row.
const BREAKING: usize = 3;

/// Everything that is wrong.
pub fn violations(round: &Round, ended: &Ended, left: Vec<String>, heard: &Heard) -> Vec<String> {
    let evidence = Evidence::gather(round);
    let mut found: Vec<String> = left.into_iter().map(|what| format!("left behind: {what}")).collect();
    found.extend(ended.complaint.clone());
    found.extend(evidence.log.complaints.clone());
    found.extend(heard.complaints.clone());
    found.extend(evidence.timeout_reports());
    found.extend(evidence.timelines());
    found.extend(evidence.each_is_resolved_once());
    found.extend(evidence.records.iter().filter_map(|record| evidence.complaint(record)));
    found.extend(evidence.none_began_too_often());
    found.extend(evidence.one_victim_a_death());
    for (at, stats) in ended.stats.iter().enumerate() {
        found.extend(evidence.stats_add_up(at, stats));
    }
    found
}

/// Who is to answer for the death of a task that did nothing to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excuse {
    /// Its worker, or the fork server of that, was killed from outside, so long before.
    Outside(Option<Duration>),
    /// An earlier task in its worker had spoilt the pipes.
    Spoilt,
}

struct Evidence<'a> {
    round: &'a Round,
    records: Vec<Record>,
    log: Log,
    ending: Option<std::time::Instant>,
    /// The parent of each worker that began something.
    parents: BTreeMap<u32, u32>,
    spoilt: BTreeSet<u32>,
}

impl Evidence<'_> {
    fn gather(round: &Round) -> Evidence<'_> {
        let (records, log, ending) = {
            let state = round.state();
            (state.records.clone(), state.log.clone(), state.ending)
        };
        let mut parents = log.parents.clone();
        let lines = (0..TASKS as u32).map(|id| round.board.line(id)).filter(|line| line.began() > 0);
        // One that began when its fork server was dead already has a foster parent.
        parents.extend(lines.filter(|line| line.parent() != 1).map(|line| (line.pid(), line.parent())));
        let poisons = round.plan.jobs.iter().filter(|job| job.kind.poisons());
        let spoilt = poisons.map(|job| round.board.line(job.id)).filter(|line| line.began() > 0);
        let spoilt = spoilt.map(|line| line.pid()).collect();
        Evidence { round, records, log, ending, parents, spoilt }
    }

    fn each_is_resolved_once(&self) -> Vec<String> {
        let mut times: BTreeMap<u32, usize> = self.round.plan.jobs.iter().map(|job| (job.id, 0)).collect();
        for record in &self.records {
            *times.entry(record.id).or_default() += 1;
        }
        let wrong = times.into_iter().filter(|(_, times)| *times != 1);
        let mut found: Vec<String> =
            wrong.map(|(id, times)| format!("task {id} was resolved {times} times")).collect();
        found.extend(
            self.log
                .repeated
                .iter()
                .map(|(pool, number)| format!("pool {pool} has given the number {number} to two tasks")),
        );
        found
    }

    /// What is wrong with what became of a task.
    fn complaint(&self, record: &Record) -> Option<String> {
        let line = self.round.board.line(record.id);
        let wrong = match (&record.error, record.outcome) {
            (Some(error), _) if self.is_explained(record, error) => return None,
            (Some(error), _) => format!("has no reason for: {error} ({error:?})"),
            (None, Outcome::Value) if !record.kind.may_have_value() => "cannot have a value".into(),
            (None, Outcome::Value)
                if !record.kind.has_items() && !forges(record.kind) && line.began() == 0 =>
            {
                "has a value and never began".into()
            }
            (None, Outcome::Value | Outcome::Unseen) => return self.is_unfinished(record),
            (None, outcome) => format!("gave {outcome:?}"),
        };
        Some(format!("task {} ({:?}) {wrong}", record.id, record.kind))
    }

    /// A detached task whose pool was allowed to finish must have run.
    fn is_unfinished(&self, record: &Record) -> Option<String> {
        let is_calm = self.is_calm();
        let is_bounded = self.round.plan.pools[record.pool].queue_capacity.is_some();
        let is_swept = self.round.plan.end.sweeps();
        let line = self.round.board.line(record.id);
        let must = record.kind == Kind::Detached && is_calm && !is_bounded && !is_swept;
        (must && (line.began(), line.ended()) != (1, 1))
            .then(|| format!("detached task {} began {} times", record.id, line.began()))
    }

    fn is_explained(&self, record: &Record, error: &TaskError) -> bool {
        if record.kind.earns(record.id, error) && self.names_the_cause(record, error) {
            return true;
        }
        let began = self.round.board.line(record.id).began();
        match error {
            TaskError::ShutDown => {
                self.round.plan.end.sweeps() && self.ending.is_some_and(|ending| ending <= record.at)
            }
            TaskError::QueueFull { capacity } => {
                let bound = self.round.plan.pools[record.pool].queue_capacity;
                bound == Some(*capacity) && record.kind != Kind::Reserved && began == 0
            }
            TaskError::PoolBroken(_) if self.is_short() => began < record.kind.attempts(),
            // What a task itself needs may be lacking too.
            TaskError::Panicked(_) | TaskError::Failed(_) if self.is_short() => !record.kind.is_innocent(),
            TaskError::PoolBroken(_) => {
                let before = self.log.strikes.iter().filter(|(at, _)| *at <= record.at);
                before.count() >= BREAKING && began < record.kind.attempts()
            }
            TaskError::WorkerDied(exit) => self.excuse(record, exit).is_some(),
            TaskError::TimedOut { .. } => {
                record.kind == Kind::Oversize && self.spoilt.contains(&self.round.board.line(record.id).pid())
            }
            _ => false,
        }
    }

    /// Memory that runs out is told as such, if what the worker says of it is kept.
    fn names_the_cause(&self, record: &Record, error: &TaskError) -> bool {
        let keeps = self.round.plan.pools[record.pool].captures;
        let is_named = |exit: &WorkerExit| exit.cause() == ExitCause::OutOfMemory;
        !matches!(error, TaskError::WorkerDied(exit)
            if record.kind == Kind::OutOfMemory && keeps && !is_named(exit))
    }

    /// Whether nothing was done to workers that they did not do themselves.
    fn is_calm(&self) -> bool {
        self.log.strikes.is_empty() && self.spoilt.is_empty() && !self.is_short()
    }

    fn is_short(&self) -> bool {
        self.round.plan.shortage.is_some()
    }

    fn excuse(&self, record: &Record, exit: &WorkerExit) -> Option<Excuse> {
        let pid = exit.pid();
        let since = |at: &std::time::Instant| Excuse::Outside(record.at.checked_duration_since(*at));
        if let Some(killed) = self.log.killed.get(&pid) {
            return Some(since(killed));
        }
        match self.parents.get(&pid) {
            Some(parent) => {
                if let Some(struck) = self.log.servers.get(parent) {
                    return Some(since(struck));
                }
            }
            None if exit.cause() == ExitCause::Unknown && !self.log.servers.is_empty() => {
                return Some(Excuse::Outside(None));
            }
            None => {}
        }
        self.spoilt.contains(&pid).then_some(Excuse::Spoilt)
    }

    fn none_began_too_often(&self) -> Vec<String> {
        let jobs = self.round.plan.jobs.iter().map(|job| (job.id, job.kind.attempts()));
        let items = self.round.plan.jobs.iter().flat_map(|job| {
            let first = ITEMS + job.id * ITEMS_EACH;
            (first..first + ITEMS_EACH).map(|id| (id, 1))
        });
        let began = jobs.chain(items).map(|(id, most)| (id, self.round.board.line(id).began(), most));
        let too_often = began.filter(|(_, began, most)| began > most);
        too_often.map(|(id, began, most)| format!("task {id} began {began} times, not {most}")).collect()
    }

    /// A worker runs one task at a time, so only one can have died with it.
    fn one_victim_a_death(&self) -> Vec<String> {
        let mut victims: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for record in &self.records {
            if let Some(TaskError::WorkerDied(exit)) = &record.error {
                victims.entry(exit.pid()).or_default().push(record.id);
            }
        }
        victims.retain(|_, tasks| tasks.len() > 1);
        victims.iter().map(|(pid, tasks)| format!("tasks {tasks:?} all died with worker {pid}")).collect()
    }

    /// A stream that was cancelled before it began may never have been submitted.
    fn seen_by_the_pool(&self, record: &Record) -> Outcome {
        let began = self.round.board.line(record.id).began() > 0;
        match record.outcome {
            Outcome::Cancelled if record.kind.is_stream() && !began => Outcome::Unseen,
            outcome => outcome,
        }
    }

    /// Only who asks is told where a task was, and that if the worker was there to be looked at.
    fn timeout_reports(&self) -> Vec<String> {
        let timed_out = self.log.timed_out.iter();
        let wrong = timed_out.filter(|(_, pool, has_report)| {
            let wanted = self.round.plan.pools[*pool].timeout_reports;
            *has_report && !wanted || wanted && !has_report && self.is_calm()
        });
        wrong.map(|(id, _, has)| format!("task {id} ran out of time, and a report is there: {has}")).collect()
    }

    /// What is wrong with the files of timelines: they are complete, whatever was done to the pool.
    fn timelines(&self) -> Vec<String> {
        let pools = self.round.plan.pools.iter().enumerate();
        let files = pools.filter_map(|(at, pool)| pool.timeline(self.round.dir(), at));
        let wrong = files.filter_map(|file| {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string());
            let events = text.and_then(|text| {
                serde_json::from_str::<Vec<serde_json::Value>>(&text).map_err(|error| error.to_string())
            });
            events.err().map(|error| format!("{}: {error}", file.display()))
        });
        wrong.collect()
    }

    fn stats_add_up(&self, pool: usize, stats: &PoolStats) -> Vec<String> {
        let of_pool = |record: &&Record| record.pool == pool && record.id < ITEMS;
        let records: Vec<&Record> = self.records.iter().filter(of_pool).collect();
        let count = |wanted: &[Outcome]| -> u64 {
            let is_counted = |record: &&&Record| {
                wanted.contains(&self.seen_by_the_pool(record)) && !record.kind.has_items()
            };
            records.iter().filter(is_counted).count() as u64
        };
        // Those that tried whether a pool works again are on no record.
        let after = if self.is_short() { u64::MAX / 4 } else { 0 };
        let has_maps = records.iter().any(|record| record.kind.has_items());
        let refused = count(&[Outcome::QueueFull, Outcome::Broken, Outcome::ShutDown]);
        let unseen = count(&[Outcome::Unseen]);
        let beyond = if has_maps { u64::MAX / 2 } else { 0 };
        let all = count(&Outcome::ALL);
        let resolved = stats.succeeded() + stats.failed() + stats.cancelled() + stats.timed_out();
        let value = count(&[Outcome::Value]);
        let failed = count(&[Outcome::Panicked, Outcome::Failed, Outcome::Died]);
        let (cancelled, timed_out) = (count(&[Outcome::Cancelled]), count(&[Outcome::TimedOut]));
        let bounds = [
            ("submitted", stats.submitted(), all.saturating_sub(refused + unseen), all + beyond + after),
            ("resolved", resolved, stats.submitted(), stats.submitted()),
            ("succeeded", stats.succeeded(), value, value + unseen + beyond + after),
            ("failed", stats.failed(), failed, failed + refused + unseen + beyond + after),
            ("cancelled", stats.cancelled(), cancelled, cancelled + unseen + beyond),
            ("timed out", stats.timed_out(), timed_out, timed_out + unseen),
            ("died", stats.workers_died(), 0, stats.workers_started()),
            ("queued", stats.queued() as u64, 0, 0),
            ("running", stats.running() as u64, 0, 0),
            ("workers", stats.workers() as u64, 0, 0),
        ];
        let wrong = bounds.iter().filter(|(_, is, least, most)| is < least || is > most);
        wrong.map(|bound| format!("pool {pool}: {bound:?} (name, is, least, most) in {stats:?}")).collect()
    }
}

/// Whether a value may come from noise rather than from the task.
fn forges(kind: Kind) -> bool {
    kind == Kind::RandomFrame
}

/// What occurred in a round without violations.
pub fn tally(round: &Round, ended: &Ended, heard: &Heard) -> Tally {
    let evidence = Evidence::gather(round);
    let mut tally = Tally { rounds: 1, ..Tally::default() };
    for record in &evidence.records {
        *tally.tasks.entry((record.kind, record.outcome)).or_default() += 1;
        let slowest = tally.slowest.entry(record.kind).or_default();
        *slowest = (*slowest).max(record.took);
        let Some(TaskError::WorkerDied(exit)) = &record.error else { continue };
        if record.kind.earns(record.id, &TaskError::WorkerDied(exit.clone())) {
            continue;
        }
        match evidence.excuse(record, exit) {
            Some(Excuse::Outside(time)) => {
                tally.victims += 1;
                tally.slowest_death = tally.slowest_death.max(time.unwrap_or_default());
            }
            _ => tally.poisoned += 1,
        }
    }
    for (_, fault) in &evidence.log.strikes {
        *tally.faults.entry(*fault).or_default() += 1;
    }
    for fault in &evidence.log.missed {
        *tally.missed.entry(*fault).or_default() += 1;
    }
    let end: End = round.plan.end;
    tally.ends.insert(end, 1);
    tally.heard = heard.records;
    tally.timeout_reports =
        evidence.log.timed_out.iter().filter(|(_, _, has_report)| *has_report).count() as u64;
    for pool in &round.plan.pools {
        for setting in pool.special() {
            *tally.pools.entry(setting).or_default() += 1;
        }
    }
    tally.slowest_end.insert(end, ended.took);
    tally.workers_started = ended.stats.iter().map(PoolStats::workers_started).sum();
    tally.workers_died = ended.stats.iter().map(PoolStats::workers_died).sum();
    tally
}
