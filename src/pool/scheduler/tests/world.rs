//! A simulated world for the scheduler: workers, what their pages say, and what may befall them.

use super::super::*;
use crate::pool::scheduler::slot::Fate;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};

pub(super) const MILLISECOND: Nanos = 1_000_000;

/// What the memory that is shared with workers would show.
#[derive(Default)]
pub(super) struct Pages(
    pub(super) RefCell<HashMap<(WorkerKey, u64), Page>>,
    RefCell<HashMap<WorkerKey, Far>>,
);

/// A worker without a page, as it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Far {
    /// It says when a task begins, or does not.
    Alive { tells: bool },
    /// What it had begun is known.
    Dead,
    /// Nothing is known of it.
    Lost,
}

/// Which workers have no page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pageless {
    None,
    Odd,
    All,
    /// And none tells when a task begins.
    AllSilent,
}

impl Pageless {
    fn has(self, worker: WorkerKey) -> bool {
        match self {
            Pageless::None => false,
            Pageless::Odd => worker % 2 == 1,
            Pageless::All | Pageless::AllSilent => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Page {
    Offered,
    Begun(Nanos),
    Finished(Nanos),
    TakenBack,
}

impl Ledger for Pages {
    fn offer(&self, worker: WorkerKey, seq: u64) {
        self.0.borrow_mut().insert((worker, seq), Page::Offered);
    }

    fn take_back(&self, worker: WorkerKey, seq: u64) -> bool {
        if let Some(Far::Alive { .. } | Far::Lost) = self.1.borrow().get(&worker) {
            return false;
        }
        let mut pages = self.0.borrow_mut();
        let page = pages.get_mut(&(worker, seq)).filter(|page| **page == Page::Offered);
        page.map(|page| *page = Page::TakenBack).is_some()
    }

    fn is_finished(&self, worker: WorkerKey, seq: u64) -> bool {
        matches!(self.0.borrow().get(&(worker, seq)), Some(Page::Finished(_)))
    }

    fn written(&self, _: WorkerKey) -> u64 {
        0
    }

    fn began_at(&self, worker: WorkerKey, seq: u64) -> Option<Nanos> {
        if let Some(Far::Alive { tells: false }) = self.1.borrow().get(&worker) {
            return None;
        }
        match self.0.borrow().get(&(worker, seq)) {
            Some(Page::Begun(at) | Page::Finished(at)) => Some(*at),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Life {
    Starting,
    Ready,
    /// Its stream of requests has ended.
    Closing,
    /// Killed, but its end has not been reported.
    Killed,
}

#[derive(Debug)]
pub(super) struct FakeWorker {
    pub(super) life: Life,
    pub(super) inbox: VecDeque<(u64, TaskKey)>,
    pub(super) begun: Option<(u64, TaskKey)>,
    /// Without a page: what it was asked to leave, or was cancelled, and has not heard of.
    pub(super) calls: VecDeque<u64>,
}

impl FakeWorker {
    pub(super) fn is_busy(&self) -> bool {
        !self.inbox.is_empty() || self.begun.is_some()
    }
}

/// A pool without processes.
pub(super) struct World {
    pub(super) scheduler: Scheduler<u64>,
    pub(super) pages: Pages,
    pub(super) now: Nanos,
    pub(super) max_workers: usize,
    pub(super) workers: HashMap<WorkerKey, FakeWorker>,
    pub(super) keys: HashMap<u64, TaskKey>,
    pub(super) retries: HashMap<u64, u32>,
    pub(super) begun: HashMap<u64, u32>,
    pub(super) open: HashSet<u64>,
    pub(super) next_id: u64,
    pub(super) terminated: bool,
    pub(super) pageless: Pageless,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Submit {
        priority: u8,
        timeout: Option<u8>,
        retries: u8,
    },
    Cancel(u8),
    Ready(u8),
    StartFails(u8),
    Step(u8),
    Crash(u8),
    /// A worker without a page hears a call.
    Heed(u8),
    /// A worker is gone, and if it had no page, nobody knows what it had begun.
    Lose(u8),
    Advance(u16),
    WarmUp,
    Drain,
    Stop,
}

pub(super) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0u8..3, prop::option::weighted(0.3, 1u8..20), 0u8..3)
            .prop_map(|(priority, timeout, retries)| Event::Submit { priority, timeout, retries }),
        3 => any::<u8>().prop_map(Event::Cancel),
        4 => any::<u8>().prop_map(Event::Ready),
        1 => any::<u8>().prop_map(Event::StartFails),
        12 => any::<u8>().prop_map(Event::Step),
        2 => any::<u8>().prop_map(Event::Crash),
        6 => any::<u8>().prop_map(Event::Heed),
        1 => any::<u8>().prop_map(Event::Lose),
        4 => (0u16..4000).prop_map(Event::Advance),
        1 => Just(Event::WarmUp),
    ];
    let last = prop_oneof![3 => Just(None), 2 => Just(Some(Event::Drain)), 1 => Just(Some(Event::Stop))];
    (prop::collection::vec(event.clone(), 0..120), last, prop::collection::vec(event, 0..20)).prop_map(
        |(mut events, last, after)| {
            events.extend(last);
            events.extend(after);
            events
        },
    )
}

impl World {
    pub(super) fn new(max_workers: usize, min_workers: usize, max_tasks: u64) -> World {
        let config = Config {
            death_limit: 1_000_000_000,
            recycles_at_once: false,
            max_workers,
            min_workers,
            idle_timeout: 50 * MILLISECOND,
            cancel_grace: 5 * MILLISECOND,
            max_tasks_per_worker: max_tasks,
        };
        let mut world = World {
            scheduler: Scheduler::new(config),
            pages: Pages::default(),
            now: 1,
            max_workers,
            workers: HashMap::new(),
            keys: HashMap::new(),
            retries: HashMap::new(),
            begun: HashMap::new(),
            open: HashSet::new(),
            next_id: 1,
            terminated: false,
            pageless: Pageless::None,
        };
        world.scheduler.open(world.now, &world.pages);
        world.act();
        world
    }

    pub(super) fn apply(&mut self, event: &Event) {
        self.now += 1000;
        match *event {
            Event::Submit { priority, timeout, retries } => self.submit(priority, timeout, retries),
            Event::Cancel(at) => {
                if let Some(id) = pick(self.keys.keys().copied(), at) {
                    self.scheduler.cancel(self.keys[&id], Verdict::Cancelled, self.now, &self.pages);
                }
            }
            Event::Ready(at) => self.with_worker(at, Life::Starting, World::get_ready),
            Event::Heed(at) => self.with_worker(at, Life::Ready, World::heed),
            Event::Lose(at) => self.with_worker(at, Life::Ready, |world, worker| {
                world.pages.1.borrow_mut().entry(worker).and_modify(|far| *far = Far::Lost);
                world.bury(worker);
            }),
            Event::StartFails(at) => {
                self.with_worker(at, Life::Starting, |world, worker| world.fail_start(worker))
            }
            Event::Step(at) => self.with_worker(at, Life::Ready, World::step),
            Event::Crash(at) => self.with_worker(at, Life::Ready, World::bury),
            Event::Advance(micros) => {
                self.now += u64::from(micros) * 10_000;
                self.scheduler.tick(self.now, &self.pages);
            }
            Event::WarmUp => self.scheduler.warm_up(self.now, &self.pages),
            Event::Drain => self.scheduler.drain(Nanos::MAX, self.now, &self.pages),
            Event::Stop => self.scheduler.stop(self.now, &self.pages),
        }
        self.act();
        self.check();
    }

    pub(super) fn submit(&mut self, priority: u8, timeout: Option<u8>, retries: u8) {
        let id = self.next_id;
        self.next_id += 1;
        let priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(priority)];
        let timeout = timeout.map(|timeout| u64::from(timeout) * MILLISECOND);
        let terms = Terms { priority, timeout, retries: retries.into(), bytes: 100, items: 0 };
        if let Ok(key) = self.scheduler.submit(id, id, terms, self.now, &self.pages) {
            self.keys.insert(id, key);
            self.retries.insert(id, retries.into());
            self.open.insert(id);
        }
    }

    pub(super) fn with_worker(&mut self, at: u8, life: Life, act: impl FnOnce(&mut World, WorkerKey)) {
        let candidates = self.workers.iter().filter(|(_, worker)| worker.life == life).map(|(key, _)| *key);
        if let Some(worker) = pick(candidates, at) {
            act(self, worker);
        }
    }

    pub(super) fn fail_start(&mut self, worker: WorkerKey) {
        self.workers.remove(&worker);
        let cause = PoolError::Start { reason: "no".into() };
        self.scheduler.start_failed(worker, cause, self.now, &self.pages);
    }

    pub(super) fn get_ready(&mut self, key: WorkerKey) {
        self.workers.get_mut(&key).unwrap().life = Life::Ready;
        let is_pageless = self.pageless.has(key);
        if is_pageless {
            let far = Far::Alive { tells: self.pageless != Pageless::AllSilent };
            self.pages.1.borrow_mut().insert(key, far);
        }
        self.scheduler.worker_ready(key, !is_pageless, self.now, &self.pages);
    }

    /// The worker leaves a task if it has not begun it.
    pub(super) fn heed(&mut self, key: WorkerKey) {
        let worker = self.workers.get_mut(&key).unwrap();
        let Some(call) = worker.calls.pop_front().filter(|_| self.pageless.has(key)) else { return };
        if let Some(at) = worker.inbox.iter().position(|(seq, _)| *seq == call) {
            worker.inbox.remove(at);
            let answer = Answer { skipped: true, ..Answer::default() };
            assert_eq!(self.scheduler.answered(key, call, answer, self.now), Ok(None));
            self.scheduler.answers_end(key, self.now, &self.pages);
        }
    }

    /// The worker ends the task that it runs, or begins the next, as a real one would.
    pub(super) fn step(&mut self, key: WorkerKey) {
        let worker = self.workers.get_mut(&key).unwrap();
        if let Some((seq, task)) = worker.begun.take() {
            let answer = Answer { is_value: true, ran: 1000, ..Answer::default() };
            let resolved = self.scheduler.answered(key, seq, answer, self.now).unwrap();
            if let Some((id, _)) = resolved {
                assert_eq!(id, task.id);
                assert!(self.open.remove(&id), "task {id} was resolved twice");
            }
            self.scheduler.answers_end(key, self.now, &self.pages);
        } else if let Some((seq, task)) = worker.inbox.pop_front() {
            let page = self.pages.0.borrow().get(&(key, seq)).copied();
            if page == Some(Page::TakenBack) {
                let answer = Answer { skipped: true, ..Answer::default() };
                assert_eq!(self.scheduler.answered(key, seq, answer, self.now), Ok(None));
                self.scheduler.answers_end(key, self.now, &self.pages);
            } else {
                self.pages.0.borrow_mut().insert((key, seq), Page::Begun(self.now));
                worker.begun = Some((seq, task));
                let begun = self.begun.entry(task.id).or_default();
                *begun += 1;
                assert!(*begun <= self.retries[&task.id] + 1, "task {} began {begun} times", task.id);
            }
        }
    }

    pub(super) fn bury(&mut self, worker: WorkerKey) {
        let life = self.workers.remove(&worker).map(|worker| worker.life);
        let alive = |far: &mut Far| {
            if let Far::Alive { .. } = far {
                *far = Far::Dead;
            }
        };
        self.pages.1.borrow_mut().entry(worker).and_modify(alive);
        let departure = self.scheduler.worker_gone(worker, "it died", self.now, &self.pages);
        self.pages.1.borrow_mut().remove(&worker);
        match life {
            Some(Life::Ready) => assert_eq!(departure, Departure::Died),
            Some(Life::Closing) => assert!(!departure.is_death(), "{departure:?}"),
            _ => {}
        }
        self.pages.0.borrow_mut().retain(|(key, _), _| *key != worker);
    }

    pub(super) fn act(&mut self) {
        for action in std::mem::take(&mut self.scheduler.actions) {
            match action {
                Action::GivenUp(_) => {}
                Action::Start(key) => {
                    let worker = FakeWorker {
                        life: Life::Starting,
                        inbox: VecDeque::new(),
                        begun: None,
                        calls: VecDeque::new(),
                    };
                    assert!(self.workers.insert(key, worker).is_none());
                }
                Action::Send { worker, seq, task } => {
                    let worker = self.workers.get_mut(&worker).unwrap();
                    assert_eq!(worker.life, Life::Ready);
                    worker.inbox.push_back((seq, task));
                }
                Action::Kill { worker, .. } => {
                    // It may be killed again when everything is to end, and be gone by then.
                    let Some(life) = self.workers.get(&worker).map(|worker| worker.life) else { continue };
                    if life == Life::Starting {
                        self.fail_start(worker);
                        self.act();
                    } else {
                        self.workers.get_mut(&worker).unwrap().life = Life::Killed;
                    }
                }
                Action::Close(worker) => {
                    let worker = self.workers.get_mut(&worker).unwrap();
                    assert!(worker.inbox.is_empty() && worker.begun.is_none());
                    worker.life = Life::Closing;
                }
                Action::Resolve { job: id, .. } => {
                    assert!(self.open.remove(&id), "task {id} was resolved twice")
                }
                Action::Terminated => {
                    assert!(!self.terminated && self.workers.is_empty() && self.open.is_empty());
                    self.terminated = true;
                }
                Action::Cancel { worker, seq } | Action::Recall { worker, seq } => {
                    if let Some(worker) = self.workers.get_mut(&worker) {
                        worker.calls.push_back(seq);
                    }
                }
                Action::Retry { .. } | Action::WarmedUp(_) => {}
            }
        }
    }

    /// What must hold after every event.
    pub(super) fn check(&self) {
        let counts = self.scheduler.counts(&self.pages);
        assert_eq!(counts.workers, self.workers.len());
        let resolved = counts.succeeded + counts.failed + counts.cancelled + counts.timed_out;
        assert_eq!(counts.submitted - resolved, self.open.len() as u64);
        let sent =
            self.workers.values().map(|worker| worker.inbox.len() + usize::from(worker.begun.is_some()));
        let with_workers = sent.sum();
        let waiting = self.open.len().saturating_sub(with_workers);
        // A worker that is ready to replace another waits until that is done.
        let busy =
            self.workers.values().filter(|worker| worker.life == Life::Ready && worker.is_busy()).count();
        assert!(busy <= self.max_workers, "{busy} workers are busy");
        let all_busy = busy == self.max_workers;
        assert!(counts.idle == 0 || waiting == 0 || all_busy, "a worker is idle beside a waiting task");
        let live = self.workers.values().filter(|worker| matches!(worker.life, Life::Starting | Life::Ready));
        assert!(live.count() <= self.max_workers + 1, "too many workers");
        self.check_loads(counts.starting, counts.idle);
    }

    /// What those who watch the pool are told agrees with what there is.
    fn check_loads(&self, starting: usize, idle: usize) {
        let loads = self.scheduler.loads();
        assert_eq!(loads.queued + loads.running, self.open.len());
        assert_eq!((loads.starting, loads.idle), (starting, idle));
        assert_eq!(loads.starting + loads.idle + loads.busy + loads.retiring, self.workers.len());
        let sent = self.scheduler.slots.iter().flat_map(|(_, slot)| &slot.sent);
        assert_eq!(self.scheduler.abandoned, sent.filter(|sent| sent.fate == Fate::Abandoned).count());
    }

    /// Lets everything run its course: every worker works, nobody crashes any more.
    pub(super) fn finish(&mut self) {
        self.scheduler.drain(Nanos::MAX, self.now, &self.pages);
        self.act();
        for _ in 0..10_000 {
            if self.terminated {
                return;
            }
            self.now += MILLISECOND / 10;
            let mut keys: Vec<_> = self.workers.keys().copied().collect();
            keys.sort_unstable();
            for key in keys {
                match self.workers.get(&key).map(|worker| worker.life) {
                    Some(Life::Starting) => self.get_ready(key),
                    Some(Life::Ready) => {
                        if self.pageless.has(key) {
                            self.heed(key);
                        }
                        self.step(key);
                    }
                    Some(Life::Closing | Life::Killed) => self.bury(key),
                    None => {}
                }
                self.act();
                self.check();
            }
            if self.workers.is_empty() {
                self.now = self.now.max(self.scheduler.next_alarm().min(self.now + 60_000 * MILLISECOND));
            }
            self.scheduler.tick(self.now, &self.pages);
            self.act();
        }
        panic!("it did not terminate: {} tasks are open, workers {:?}", self.open.len(), self.workers);
    }
}

pub(super) fn pick<K: Ord + Copy>(keys: impl Iterator<Item = K>, at: u8) -> Option<K> {
    let mut keys: Vec<K> = keys.collect();
    keys.sort_unstable();
    keys.get(usize::from(at) % keys.len().max(1)).copied()
}
