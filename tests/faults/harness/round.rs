//! The state of a round that is under way: what is open, what is resolved, what was done from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use procession::{ProcessPool, TaskError};
use tempfile::TempDir;

use super::board::{Board, PLACE};
use super::kinds::{Fault, Kind, Outcome};
use super::plan::{Job, Plan, SUBMITTERS};
use super::system::{Process, processes_of};

pub struct Round {
    pub plan: Plan,
    pub board: Board,
    /// The path of the board.
    pub place: PathBuf,
    dir: TempDir,
    state: Mutex<State>,
    changed: Condvar,
}

pub struct State {
    /// Tasks that are submitted and not resolved.
    pub open: BTreeMap<u32, Open>,
    pub records: Vec<Record>,
    /// How many jobs are resolved.
    pub done: u64,
    /// How many threads still submit.
    pub submitting: usize,
    /// When the end began.
    pub ending: Option<Instant>,
    pub log: Log,
    /// What is going on, and since when.
    pub phase: (&'static str, Instant),
    /// For faults and for the dump; given up when the end says so.
    pub pools: Vec<ProcessPool>,
}

/// A task that is not resolved.
pub struct Open {
    pub kind: Kind,
    pub since: Instant,
    /// Says how far it has got.
    pub probe: Probe,
}

pub type Probe = Arc<dyn Fn() -> String + Send + Sync>;

/// What became of a task.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: u32,
    pub kind: Kind,
    pub pool: usize,
    pub outcome: Outcome,
    pub error: Option<TaskError>,
    pub at: Instant,
    pub took: Duration,
}

/// What was done from outside.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub strikes: Vec<(Instant, Fault)>,
    pub missed: Vec<Fault>,
    /// Workers that were killed, and when.
    pub killed: BTreeMap<u32, Instant>,
    /// Fork servers that were killed or stopped, and when.
    pub servers: BTreeMap<u32, Instant>,
    /// The parents of workers, as they were seen.
    pub parents: BTreeMap<u32, u32>,
    /// The numbers that the pools gave to tasks, and those that they gave twice.
    pub numbers: BTreeSet<(usize, u64)>,
    pub repeated: Vec<(usize, u64)>,
    /// Tasks that ran out of time, and whether it is known where they were.
    pub timed_out: Vec<(u32, usize, bool)>,
    /// What those who followed tasks found wrong.
    pub complaints: Vec<String>,
}

impl Round {
    pub fn new(plan: Plan) -> Round {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("board");
        let state = State {
            open: BTreeMap::new(),
            records: Vec::new(),
            done: 0,
            submitting: SUBMITTERS,
            ending: None,
            log: Log::default(),
            phase: ("beginning", Instant::now()),
            pools: Vec::new(),
        };
        Round {
            board: Board::create(&place),
            place,
            dir,
            state: Mutex::new(state),
            changed: Condvar::new(),
            plan,
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn enter(&self, phase: &'static str) {
        self.state().phase = (phase, Instant::now());
    }

    /// Lets everybody begin who waits for the pools.
    pub fn open(&self, pools: Vec<ProcessPool>) {
        self.state().pools = pools;
        self.changed.notify_all();
    }

    pub fn wait_for_pools(&self) {
        self.wait_until(|state| !state.pools.is_empty() || state.ending.is_some());
    }

    pub fn pool(&self, at: usize) -> Option<ProcessPool> {
        self.state().pools.get(at).cloned()
    }

    /// Notes a task as open.
    pub fn opened(&self, job: &Job, since: Instant, probe: Probe) {
        self.state().open.insert(job.id, Open { kind: job.kind, since, probe });
    }

    pub fn is_open(&self, id: u32) -> bool {
        self.state().open.contains_key(&id)
    }

    /// Notes the number that a pool gave to a task.
    pub fn numbered(&self, pool: usize, number: u64) {
        let log = &mut self.state().log;
        if !log.numbers.insert((pool, number)) {
            log.repeated.push((pool, number));
        }
    }

    /// Notes whether there was a report of where a task was when its time ran out.
    pub fn timed_out(&self, job: &Job, has_report: bool) {
        self.state().log.timed_out.push((job.id, job.pool, has_report));
    }

    /// Notes what is wrong with what a task has given.
    pub fn complain(&self, job: &Job, what: String) {
        self.state().log.complaints.push(format!("task {} ({:?}): {what}", job.id, job.kind));
    }

    /// Where the board is, and the timelines.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Notes what became of a job.
    pub fn resolved(&self, job: &Job, since: Instant, outcome: Outcome, error: Option<TaskError>) {
        let probe = {
            let mut state = self.state();
            state.records.push(record(job, job.kind, since, outcome, error));
            state.done += 1;
            state.open.remove(&job.id)
        };
        drop(probe);
        self.changed.notify_all();
    }

    /// Notes what became of an item of a map.
    pub fn item_resolved(&self, job: &Job, id: u32, kind: Kind, since: Instant, error: Option<TaskError>) {
        let outcome = error.as_ref().map_or(Outcome::Value, Outcome::of);
        let item = Job { id, ..job.clone() };
        self.state().records.push(record(&item, kind, since, outcome, error));
    }

    pub fn submitter_ended(&self) {
        self.state().submitting -= 1;
        self.changed.notify_all();
    }

    /// Waits until something has changed, for a limited time.
    pub fn wait_while(&self, limit: Duration, condition: impl FnMut(&mut State) -> bool) {
        drop(self.changed.wait_timeout_while(self.state(), limit, condition).unwrap());
    }

    /// Waits for as long as the watchdog lets it.
    pub fn wait_until(&self, mut condition: impl FnMut(&mut State) -> bool) {
        drop(self.changed.wait_while(self.state(), |state| !condition(state)).unwrap());
    }

    pub fn begin_end(&self) {
        self.state().ending = Some(Instant::now());
        self.changed.notify_all();
    }

    /// The environment variable that its processes have.
    pub fn mark(&self) -> (&'static str, &Path) {
        (PLACE, &self.place)
    }

    /// Its processes, but for those that tasks have left behind and those that are dead.
    pub fn processes(&self) -> Vec<Process> {
        let mut processes = processes_of(&self.place);
        processes.retain(|process| !process.is_daughter() && process.state != 'Z');
        processes
    }

    /// Everything that is known about it now.
    pub fn dump(&self) -> String {
        let (mut lines, probes, pools) = {
            let state = self.state();
            let (phase, since) = state.phase;
            let lines = vec![
                format!("plan: {:?}", self.plan),
                format!("phase `{phase}` for {:.1?}, {} done", since.elapsed(), state.done),
                format!(
                    "ending for {:?}, {} threads submit",
                    state.ending.map(|at| at.elapsed()),
                    state.submitting
                ),
                format!("from outside: {:?}", state.log),
            ];
            let probes: Vec<_> = state
                .open
                .iter()
                .map(|(id, open)| (*id, open.kind, open.since.elapsed(), open.probe.clone()))
                .collect();
            (lines, probes, state.pools.clone())
        };
        for (id, kind, age, probe) in probes {
            let line = self.board.line(id);
            let board = format!("began {} ended {} in {}", line.began(), line.ended(), line.pid());
            lines.push(format!("open: task {id} {kind:?} for {age:.1?}: {}; {board}", probe()));
        }
        for pool in &pools {
            lines.push(format!("{:?}\n{:?}", pool.stats(), pool.workers()));
        }
        // The last handle of a pool, dropped here, would change what is being looked at.
        std::mem::forget(pools);
        lines.extend(processes_of(&self.place).iter().map(Process::describe));
        lines.join("\n")
    }
}

fn record(job: &Job, kind: Kind, since: Instant, outcome: Outcome, error: Option<TaskError>) -> Record {
    let at = Instant::now();
    Record { id: job.id, kind, pool: job.pool, outcome, error, at, took: at - since }
}
