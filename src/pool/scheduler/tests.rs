//! The scheduler's promises, under random sequences of events, with a world that is simulated.

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};

const MILLISECOND: Nanos = 1_000_000;

/// What the memory that is shared with workers would show.
#[derive(Default)]
struct Pages(RefCell<HashMap<(WorkerKey, u64), Page>>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
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
        match self.0.borrow().get(&(worker, seq)) {
            Some(Page::Begun(at) | Page::Finished(at)) => Some(*at),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Starting,
    Ready,
    /// Its stream of requests has ended.
    Closing,
    /// Killed, but its end has not been reported.
    Killed,
}

#[derive(Debug)]
struct FakeWorker {
    life: Life,
    inbox: VecDeque<(u64, TaskKey)>,
    begun: Option<(u64, TaskKey)>,
}

impl FakeWorker {
    fn is_busy(&self) -> bool {
        !self.inbox.is_empty() || self.begun.is_some()
    }
}

/// A pool without processes.
struct World {
    scheduler: Scheduler<u64>,
    pages: Pages,
    now: Nanos,
    max_workers: usize,
    workers: HashMap<WorkerKey, FakeWorker>,
    keys: HashMap<u64, TaskKey>,
    retries: HashMap<u64, u32>,
    begun: HashMap<u64, u32>,
    open: HashSet<u64>,
    next_id: u64,
    terminated: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Submit { priority: u8, timeout: Option<u8>, retries: u8 },
    Cancel(u8),
    Ready(u8),
    StartFails(u8),
    Step(u8),
    Crash(u8),
    Advance(u16),
    WarmUp,
    Drain,
    Stop,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0u8..3, prop::option::weighted(0.3, 1u8..20), 0u8..3)
            .prop_map(|(priority, timeout, retries)| Event::Submit { priority, timeout, retries }),
        3 => any::<u8>().prop_map(Event::Cancel),
        4 => any::<u8>().prop_map(Event::Ready),
        1 => any::<u8>().prop_map(Event::StartFails),
        12 => any::<u8>().prop_map(Event::Step),
        2 => any::<u8>().prop_map(Event::Crash),
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
    fn new(max_workers: usize, min_workers: usize, max_tasks: u64) -> World {
        let config = Config {
            death_limit: 1_000_000_000,
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
        };
        world.scheduler.open(world.now, &world.pages);
        world.act();
        world
    }

    fn apply(&mut self, event: &Event) {
        self.now += 1000;
        match *event {
            Event::Submit { priority, timeout, retries } => self.submit(priority, timeout, retries),
            Event::Cancel(at) => {
                if let Some(id) = pick(self.keys.keys().copied(), at) {
                    self.scheduler.cancel(self.keys[&id], self.now, &self.pages);
                }
            }
            Event::Ready(at) => self.with_worker(at, Life::Starting, |world, worker| {
                world.workers.get_mut(&worker).unwrap().life = Life::Ready;
                world.scheduler.worker_ready(worker, true, world.now, &world.pages);
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

    fn submit(&mut self, priority: u8, timeout: Option<u8>, retries: u8) {
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

    fn with_worker(&mut self, at: u8, life: Life, act: impl FnOnce(&mut World, WorkerKey)) {
        let candidates = self.workers.iter().filter(|(_, worker)| worker.life == life).map(|(key, _)| *key);
        if let Some(worker) = pick(candidates, at) {
            act(self, worker);
        }
    }

    fn fail_start(&mut self, worker: WorkerKey) {
        self.workers.remove(&worker);
        let cause = PoolError::Start { reason: "no".into() };
        self.scheduler.start_failed(worker, cause, self.now, &self.pages);
    }

    /// The worker ends the task that it runs, or begins the next, as a real one would.
    fn step(&mut self, key: WorkerKey) {
        let worker = self.workers.get_mut(&key).unwrap();
        if let Some((seq, task)) = worker.begun.take() {
            let answer = Answer { is_value: true, ..Answer::default() };
            let resolved = self.scheduler.answered(key, seq, answer, self.now).unwrap();
            if let Some(id) = resolved {
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

    fn bury(&mut self, worker: WorkerKey) {
        self.workers.remove(&worker);
        self.scheduler.worker_gone(worker, "it died", self.now, &self.pages);
        self.pages.0.borrow_mut().retain(|(key, _), _| *key != worker);
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.scheduler.actions) {
            match action {
                Action::Start(key) => {
                    let worker = FakeWorker { life: Life::Starting, inbox: VecDeque::new(), begun: None };
                    assert!(self.workers.insert(key, worker).is_none());
                }
                Action::Send { worker, seq, task } => {
                    let worker = self.workers.get_mut(&worker).unwrap();
                    assert_eq!(worker.life, Life::Ready);
                    worker.inbox.push_back((seq, task));
                }
                Action::Kill { worker, .. } => {
                    if self.workers[&worker].life == Life::Starting {
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
                Action::Resolve(id, _) => assert!(self.open.remove(&id), "task {id} was resolved twice"),
                Action::Terminated => {
                    assert!(!self.terminated && self.workers.is_empty() && self.open.is_empty());
                    self.terminated = true;
                }
                Action::Cancel { .. } | Action::WarmedUp(_) => {}
            }
        }
    }

    /// What must hold after every event.
    fn check(&self) {
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
    }

    /// Lets everything run its course: every worker works, nobody crashes any more.
    fn finish(&mut self) {
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
                    Some(Life::Starting) => {
                        self.workers.get_mut(&key).unwrap().life = Life::Ready;
                        self.scheduler.worker_ready(key, true, self.now, &self.pages);
                    }
                    Some(Life::Ready) => self.step(key),
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

fn pick<K: Ord + Copy>(keys: impl Iterator<Item = K>, at: u8) -> Option<K> {
    let mut keys: Vec<K> = keys.collect();
    keys.sort_unstable();
    keys.get(usize::from(at) % keys.len().max(1)).copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_task_is_resolved_once_and_the_pool_terminates(
        workers in 1usize..5,
        min_workers in 0usize..2,
        max_tasks in prop_oneof![Just(u64::MAX), 1u64..4],
        events in events(),
    ) {
        let mut world = World::new(workers, min_workers, max_tasks);
        for event in &events {
            world.apply(event);
        }
        world.finish();
        prop_assert!(world.open.is_empty());
    }
}

/// A world of workers that are ready, with nothing random about it.
fn world_of(workers: usize) -> World {
    let mut world = World::new(workers, workers, u64::MAX);
    for _ in 0..workers {
        world.apply(&Event::Ready(0));
    }
    world
}

fn submit(world: &mut World) -> TaskKey {
    world.apply(&Event::Submit { priority: 1, timeout: None, retries: 0 });
    world.keys[&(world.next_id - 1)]
}

#[test]
fn a_second_worker_is_only_started_when_none_is_idle() {
    let mut world = World::new(4, 0, u64::MAX);
    submit(&mut world);
    assert_eq!(world.workers.len(), 1);
    world.apply(&Event::Ready(0));
    world.apply(&Event::Step(0));
    world.apply(&Event::Step(0));
    submit(&mut world);
    assert_eq!(world.workers.len(), 1);
    submit(&mut world);
    assert_eq!(world.workers.len(), 2);
}

#[test]
fn what_waits_behind_a_long_task_goes_to_a_worker_that_is_free() {
    let mut world = world_of(2);
    // Short tasks, until the pipelines are deep.
    for _ in 0..200 {
        submit(&mut world);
        for at in 0..8 {
            world.apply(&Event::Step(at));
        }
    }
    for _ in 0..20 {
        submit(&mut world);
    }
    let longest = world.workers.values().map(|worker| worker.inbox.len()).max().unwrap();
    assert!(longest > 2, "no pipelining: {longest}");
    let stuck = *world.workers.keys().min().unwrap();
    world.step(stuck);
    world.act();
    // The other one goes on; the tasks behind the stuck one are taken back when it stalls.
    for _ in 0..200 {
        world.now += MILLISECOND / 10;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
        let other = *world.workers.keys().max().unwrap();
        world.step(other);
        world.act();
    }
    assert_eq!(world.open.len(), 1);
}

#[test]
fn a_worker_that_does_not_begin_what_it_was_sent_is_killed_and_the_task_runs_elsewhere() {
    let mut world = world_of(2);
    submit(&mut world);
    let hung = *world.workers.iter().find(|(_, worker)| !worker.inbox.is_empty()).unwrap().0;
    for _ in 0..200 {
        world.now += 100 * MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
        let others: Vec<_> = world.workers.keys().copied().filter(|worker| *worker != hung).collect();
        for other in others {
            if world.workers[&other].life == Life::Ready {
                world.step(other);
                world.act();
            }
        }
    }
    assert!(world.open.is_empty());
    assert_eq!(world.workers[&hung].life, Life::Killed);
}

/// The program is stopped for half a minute, with its worker or without.
fn stop_and_continue(world: &mut World) {
    world.now += 30_000 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
}

/// Half a minute goes by, and the pool sees to its alarms.
fn wait_half_a_minute(world: &mut World) {
    for _ in 0..300 {
        world.now += 100 * MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
    }
}

#[test]
fn a_worker_is_not_to_blame_for_the_time_in_which_the_pool_was_held_up() {
    let mut world = world_of(1);
    submit(&mut world);
    let worker = *world.workers.keys().next().unwrap();
    for _ in 0..3 {
        stop_and_continue(&mut world);
        assert_eq!(world.workers[&worker].life, Life::Ready);
    }
    world.apply(&Event::Step(0));
    world.apply(&Event::Step(0));
    assert!(world.open.is_empty());
    // That is no excuse for ever.
    submit(&mut world);
    stop_and_continue(&mut world);
    wait_half_a_minute(&mut world);
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

#[test]
fn a_task_that_finished_while_the_pool_was_held_up_has_not_run_out_of_time() {
    for is_finished in [true, false] {
        let mut world = world_of(1);
        world.apply(&Event::Submit { priority: 1, timeout: Some(10), retries: 0 });
        world.apply(&Event::Step(0));
        let worker = *world.workers.keys().next().unwrap();
        if is_finished {
            world.pages.0.borrow_mut().insert((worker, 1), Page::Finished(world.now));
        }
        stop_and_continue(&mut world);
        let life = if is_finished { Life::Ready } else { Life::Killed };
        assert_eq!(world.workers[&worker].life, life);
        // One that says so and does not answer is found out.
        wait_half_a_minute(&mut world);
        assert_eq!(world.workers[&worker].life, Life::Killed);
    }
}

/// Has the world's only worker begin a task of so many items and 10 ms for each, and say ever after
/// that it has begun it just now; for how long that goes well, in milliseconds.
fn begin_for_ever(items: u32) -> u64 {
    let mut world = world_of(1);
    let terms = Terms { timeout: Some(10 * MILLISECOND), items, ..Terms::default() };
    world.scheduler.submit(1, 1, terms, world.now, &world.pages).unwrap();
    world.act();
    let worker = *world.workers.keys().next().unwrap();
    for passed in 0..1000 {
        world.pages.0.borrow_mut().insert((worker, 1), Page::Begun(world.now));
        world.now += MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.open.insert(1);
        world.act();
        if world.workers[&worker].life == Life::Killed {
            return passed;
        }
    }
    panic!("it goes on for ever");
}

#[test]
fn a_worker_that_moves_the_time_at_which_it_began_gains_nothing() {
    assert!(begin_for_ever(0) < 15);
    let chunk = begin_for_ever(20);
    assert!((190..210).contains(&chunk), "{chunk}");
}

#[test]
fn a_task_whose_workers_never_begin_it_is_not_handed_on_for_ever() {
    let mut world = world_of(1);
    submit(&mut world);
    for _ in 0..3 {
        let worker = *world.workers.keys().next().unwrap();
        assert_eq!(world.workers[&worker].inbox.len(), 1);
        world.bury(worker);
        world.now += 100 * MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
        world.apply(&Event::Ready(0));
    }
    assert!(world.open.is_empty());
}

#[test]
fn a_timeout_counts_from_when_the_task_began() {
    let mut world = world_of(1);
    world.apply(&Event::Submit { priority: 1, timeout: Some(10), retries: 0 });
    world.now += 100 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.open.len(), 1, "it timed out before it began");
    // The worker finds that the task was taken back, gets it again, and begins it.
    world.apply(&Event::Step(0));
    world.apply(&Event::Step(0));
    for _ in 0..12 {
        world.now += MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
    }
    // It is resolved when its worker is dead.
    let worker = *world.workers.iter().find(|(_, worker)| worker.life == Life::Killed).unwrap().0;
    world.bury(worker);
    world.act();
    assert!(world.open.is_empty());
    assert_eq!(world.scheduler.counts(&world.pages).timed_out, 1);
}

#[test]
fn a_task_that_cannot_be_killed_is_given_up() {
    let mut world = world_of(1);
    world.apply(&Event::Submit { priority: 1, timeout: Some(10), retries: 2 });
    world.apply(&Event::Step(0));
    for _ in 0..30 {
        world.now += 100 * MILLISECOND;
        world.scheduler.tick(world.now, &world.pages);
        world.act();
    }
    assert!(world.open.is_empty());
}

/// A world with one worker that has begun a short task and, behind it, a long one, with the answer
/// to the first on its way.
fn world_with_an_answer_unread() -> (World, WorkerKey, TaskKey) {
    let mut world = world_of(1);
    for _ in 0..50 {
        submit(&mut world);
        world.apply(&Event::Step(0));
        world.apply(&Event::Step(0));
    }
    submit(&mut world);
    let long = submit(&mut world);
    let worker = *world.workers.keys().next().unwrap();
    for (seq, _) in &world.workers[&worker].inbox {
        world.pages.0.borrow_mut().insert((worker, *seq), Page::Begun(world.now));
    }
    assert_eq!(world.workers[&worker].inbox.len(), 2);
    (world, worker, long)
}

#[test]
fn an_answer_that_was_on_its_way_does_not_call_off_the_end_of_a_cancelled_task() {
    let (mut world, worker, long) = world_with_an_answer_unread();
    world.scheduler.cancel(long, world.now, &world.pages);
    world.act();
    let (seq, _) = world.workers[&worker].inbox[0];
    let answer = Answer { is_value: true, ..Answer::default() };
    let id = world.scheduler.answered(worker, seq, answer, world.now).unwrap().unwrap();
    world.open.remove(&id);
    world.scheduler.answers_end(worker, world.now, &world.pages);
    world.now += 6 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

#[test]
fn nothing_is_sent_behind_a_cancelled_task() {
    let (mut world, worker, long) = world_with_an_answer_unread();
    world.scheduler.cancel(long, world.now, &world.pages);
    world.act();
    submit(&mut world);
    assert_eq!(world.workers[&worker].inbox.len(), 2);
}

#[test]
fn a_worker_that_says_that_it_is_dying_and_lives_on_is_killed() {
    let mut world = world_of(1);
    submit(&mut world);
    let worker = *world.workers.keys().next().unwrap();
    let answer = Answer { dying: true, ..Answer::default() };
    let id = world.scheduler.answered(worker, 1, answer, world.now).unwrap().unwrap();
    world.open.remove(&id);
    world.scheduler.answers_end(worker, world.now, &world.pages);
    world.now += DYING_LIMIT + MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

#[test]
fn what_ends_several_workers_at_once_is_one_failure() {
    let mut world = world_of(4);
    let workers: Vec<_> = world.workers.keys().copied().collect();
    for worker in workers {
        world.bury(worker);
        world.act();
    }
    world.apply(&Event::Submit { priority: 1, timeout: None, retries: 0 });
    assert_eq!(world.open.len(), 1, "the pool is broken");
}

#[test]
fn an_answer_to_another_task_is_a_violation() {
    let mut world = world_of(1);
    submit(&mut world);
    let (worker, seq) = (*world.workers.keys().next().unwrap(), 1);
    for (seq, skipped) in [(seq + 1, false), (0, false), (seq, true)] {
        let answer = Answer { skipped, ..Answer::default() };
        assert_eq!(world.scheduler.answered(worker, seq, answer, world.now), Err(Violation));
    }
}
