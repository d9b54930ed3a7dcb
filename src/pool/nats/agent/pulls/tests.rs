use super::*;
use proptest::prelude::*;

const SHORT: Duration = Duration::from_micros(200);
const LONG: Duration = Duration::from_millis(10);

fn ends<T>(pulls: &mut Pulls<T>, request: &Request, now: Instant) {
    pulls.ended(request.token, None, now);
}

/// An agent that has found all levels empty.
fn calm(width: usize, start: Instant) -> Pulls<u32> {
    let mut pulls = Pulls::new(width, start);
    for _ in 0..3 {
        let probe = pulls.next(start).unwrap();
        ends(&mut pulls, &probe, start);
    }
    pulls
}

/// The same, whose one worker has just had a task that took so long, and has another; many more wait.
/// Gives back as well for how many more it asks.
fn in_flow(took: Duration, start: Instant) -> (Pulls<u32>, usize) {
    let mut pulls = calm(1, start);
    assert_eq!(pulls.next(start).unwrap().tasks, 1);
    assert_eq!(pulls.came(Priority::Normal, 0, 51, start), Turn::Now(0));
    assert_eq!(pulls.freed(took, start), None);
    let request = pulls.next(start).unwrap();
    assert_eq!(request.level, Priority::Normal);
    assert_eq!(pulls.came(Priority::Normal, 1, 50, start), Turn::Now(1));
    assert_eq!(pulls.next(start), None);
    (pulls, request.tasks - 1)
}

/// The same, with all of them here.
fn with_tasks_ahead(now: Instant) -> Pulls<u32> {
    let (mut pulls, asked) = in_flow(SHORT, now);
    // That is a millisecond's work.
    assert_eq!(asked, 5);
    for task in 0..5 {
        assert_eq!(pulls.came(Priority::Normal, task, 50, now), Turn::Later);
    }
    pulls
}

#[test]
fn with_nothing_to_do_it_waits_on_all_levels() {
    let start = Instant::now();
    let mut pulls = Pulls::<()>::new(2, start);
    for level in [Priority::High, Priority::Normal, Priority::Low] {
        let probe = pulls.next(start).unwrap();
        assert_eq!((probe.level, probe.tasks, probe.wait), (level, 2, None));
        assert_eq!(pulls.next(start), None);
        ends(&mut pulls, &probe, start);
    }
    let normal = pulls.next(start).unwrap();
    assert_eq!((normal.level, normal.tasks, normal.wait), (Priority::Normal, 2, Some(LONG_WAIT)));
    assert_eq!(pulls.next(start), None);
    let calm = start + CALM;
    assert_eq!(pulls.wake_at(true), Some(calm));
    let also: Vec<_> = std::iter::from_fn(|| pulls.next(calm)).map(|request| request.level).collect();
    assert_eq!(also, [Priority::High, Priority::Low]);
}

#[test]
fn a_worker_that_gets_free_is_asked_for_once() {
    let start = Instant::now();
    let mut pulls = calm(1, start);
    for n in 0..10 {
        let request = pulls.next(start).unwrap();
        assert_eq!((request.level, request.tasks), (Priority::Normal, 1));
        // With no more of them waiting there is nothing to ask for ahead.
        assert_eq!(pulls.came(request.level, n, 0, start), Turn::Now(n));
        assert_eq!(pulls.next(start), None);
        assert_eq!(pulls.freed(SHORT, start), None);
    }
    // After a while, whether there is something more urgent.
    let later = start + PROBE_EVERY * 2;
    let request = pulls.next(later).unwrap();
    assert_eq!((request.level, request.wait), (Priority::High, None));
    ends(&mut pulls, &request, later);
    assert_eq!(pulls.next(later).unwrap().level, Priority::Normal);
}

#[test]
fn what_comes_with_all_workers_busy_is_too_much() {
    let now = Instant::now();
    let mut pulls = Pulls::new(1, now);
    assert_eq!(pulls.came(Priority::Normal, 1, 0, now), Turn::Now(1));
    assert_eq!(pulls.came(Priority::High, 2, 0, now), Turn::Never(2));
    assert_eq!(pulls.freed(LONG, now), None);
    assert_eq!(pulls.came(Priority::Low, 3, 0, now), Turn::Now(3));
}

#[test]
fn short_tasks_are_asked_for_ahead() {
    let now = Instant::now();
    let mut pulls = with_tasks_ahead(now);
    for task in [0, 1] {
        assert_eq!(pulls.freed(SHORT, now), Some(task));
        assert_eq!(pulls.next(now), None, "not for each of them");
    }
    assert_eq!(pulls.freed(SHORT, now), Some(2));
    let request = pulls.next(now).unwrap();
    assert_eq!((request.tasks, request.wait), (3, Some(AHEAD_WAIT)));
}

#[test]
fn long_tasks_are_not_hoarded() {
    let now = Instant::now();
    for took in [LONG, Duration::from_millis(2), Duration::from_micros(1100)] {
        let (mut pulls, asked) = in_flow(took, now);
        assert_eq!(asked, 0);
        assert_eq!(pulls.came(Priority::Normal, 2, 50, now), Turn::Never(2));
    }
    // Nor behind one after many short ones, as soon as it has gone on for a moment, or has ended.
    let (mut pulls, _) = in_flow(SHORT, now);
    pulls.lost();
    assert_eq!(pulls.next(now + STALL), None);
    assert_eq!(pulls.freed(LONG, now), None);
    let asked = std::iter::from_fn(|| pulls.next(now)).find(|request| request.level == Priority::Normal);
    assert!(asked.is_none_or(|request| request.tasks == 1));
    assert_eq!(pulls.came(Priority::Normal, 2, 50, now), Turn::Now(2));
    assert_eq!(pulls.came(Priority::Normal, 3, 50, now), Turn::Never(3));
}

#[test]
fn what_came_ahead_of_a_long_one_is_handed_back() {
    let now = Instant::now();
    let mut pulls = with_tasks_ahead(now);
    assert_eq!(pulls.kept_too_long(now + KEEP / 2), None);
    assert_eq!(pulls.wake_at(true).map(|at| at <= now + KEEP), Some(true));
    let back: Vec<_> = std::iter::from_fn(|| pulls.kept_too_long(now + KEEP)).collect();
    assert_eq!(back, [0, 1, 2, 3, 4]);
    assert_eq!(pulls.freed(LONG, now + LONG), None);
}

#[test]
fn what_is_urgent_begins_before_what_came_ahead() {
    let now = Instant::now();
    let (mut pulls, _) = in_flow(SHORT, now);
    assert_eq!(pulls.came(Priority::Low, 7, 0, now), Turn::Later);
    assert_eq!(pulls.came(Priority::Normal, 8, 50, now), Turn::Later);
    assert_eq!(pulls.came(Priority::High, 9, 0, now), Turn::Later);
    let order: Vec<_> = (0..3).filter_map(|_| pulls.freed(SHORT, now)).collect();
    assert_eq!(order, [9, 8, 7]);
}

/// Else an agent would do nothing else.
#[test]
fn nobody_looks_again_and_again_at_what_cannot_be_asked_for() {
    let start = Instant::now();
    let mut pulls = calm(1, start);
    let later = start + CALM;
    assert_eq!(std::iter::from_fn(|| pulls.next(later)).count(), 3);
    // The connection is lost, and with it the answers.
    let end = later + LONG_WAIT + GRACE;
    pulls.expire(end);
    assert_eq!(pulls.wake_at(false), None);
    // With another one a probe is on its way, and the server takes its time.
    pulls.lost();
    assert!(pulls.next(end).unwrap().wait.is_none());
    assert_eq!(pulls.next(end + CALM), None);
    assert_eq!(pulls.wake_at(true), Some(end + GRACE));
}

#[derive(Clone, Debug)]
enum Event {
    Came(usize, usize),
    Ended,
    Freed(u64),
    Pass(u64),
    Lost,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..3_usize, 0..60_usize).prop_map(|(level, waiting)| Event::Came(level, waiting)),
        1 => Just(Event::Ended),
        4 => (20..3000_u64).prop_map(Event::Freed),
        2 => (0..15_000_u64).prop_map(Event::Pass),
        1 => Just(Event::Lost),
    ];
    prop::collection::vec(event, 0..200)
}

proptest! {
    /// Whatever happens, each task begins or is handed back, once; no more run than there are workers,
    /// no more wait than is work for a moment, and none for long.
    #[test]
    fn each_task_has_one_fate(width in 1..4_usize, events in events()) {
        let mut now = Instant::now();
        let mut pulls = Pulls::new(width, now);
        let (mut came, mut running, mut fates) = (0, 0, Vec::new());
        let mut asked = Vec::new();
        for event in events {
            match event {
                Event::Came(level, waiting) => {
                    let level = [Priority::High, Priority::Normal, Priority::Low][level];
                    match pulls.came(level, came, waiting, now) {
                        Turn::Now(task) => {
                            running += 1;
                            fates.push(task);
                        }
                        Turn::Later => {}
                        Turn::Never(task) => fates.push(task),
                    }
                    came += 1;
                }
                Event::Freed(took) if running > 0 => {
                    match pulls.freed(Duration::from_micros(took), now) {
                        Some(task) => fates.push(task),
                        None => running -= 1,
                    }
                }
                Event::Ended => {
                    if let Some(token) = asked.pop() {
                        pulls.ended(token, None, now);
                    }
                }
                Event::Pass(time) => now += Duration::from_micros(time),
                Event::Lost => pulls.lost(),
                Event::Freed(_) => {}
            }
            pulls.expire(now);
            fates.extend(std::iter::from_fn(|| pulls.kept_too_long(now)));
            let requests: Vec<_> = std::iter::from_fn(|| pulls.next(now)).take(100).collect();
            prop_assert!(requests.len() < 100, "it asks for ever");
            asked.extend(requests.iter().map(|request| request.token));
            prop_assert!(running <= width);
            prop_assert!(pulls.kept.len() <= width * MAX_AHEAD);
            prop_assert!(pulls.kept.iter().all(|kept| now.duration_since(kept.since) < KEEP));
            // With a worker free something is asked for, or will be soon.
            let is_waiting = pulls.open.values().any(|open| open.tasks > 0);
            prop_assert!(running == width || is_waiting);
        }
        fates.extend(std::iter::from_fn(|| pulls.take_kept()));
        fates.sort_unstable();
        prop_assert!(fates.into_iter().eq(0..came));
    }
}
