//! The scheduler's promises, under random sequences of events, with a world that is simulated.

mod world;

use super::*;
use proptest::prelude::*;
use world::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_task_is_resolved_once_and_the_pool_terminates(
        workers in 1usize..5,
        min_workers in 0usize..2,
        max_tasks in prop_oneof![Just(u64::MAX), 1u64..4],
        pageless in prop_oneof![
            Just(Pageless::None),
            Just(Pageless::Odd),
            Just(Pageless::All),
            Just(Pageless::AllSilent)
        ],
        events in events(),
    ) {
        let mut world = World::new(workers, min_workers, max_tasks);
        world.pageless = pageless;
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
    world.scheduler.cancel(long, Verdict::Cancelled, world.now, &world.pages);
    world.act();
    let (seq, _) = world.workers[&worker].inbox[0];
    let answer = Answer { is_value: true, ..Answer::default() };
    let (id, _) = world.scheduler.answered(worker, seq, answer, world.now).unwrap().unwrap();
    world.open.remove(&id);
    world.scheduler.answers_end(worker, world.now, &world.pages);
    world.now += 6 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

/// It may be at the next task, which would die for nothing.
#[test]
fn a_worker_that_has_finished_a_cancelled_task_is_not_killed_for_it() {
    let (mut world, worker, long) = world_with_an_answer_unread();
    let (seq, _) = world.workers[&worker].inbox[1];
    world.pages.0.borrow_mut().insert((worker, seq), Page::Finished(world.now));
    world.scheduler.cancel(long, Verdict::Cancelled, world.now, &world.pages);
    world.act();
    world.now += 6 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].life, Life::Ready);
    // One that says so and does not answer is found out.
    wait_half_a_minute(&mut world);
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

#[test]
fn nothing_is_sent_behind_a_cancelled_task() {
    let (mut world, worker, long) = world_with_an_answer_unread();
    world.scheduler.cancel(long, Verdict::Cancelled, world.now, &world.pages);
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
    let (id, _) = world.scheduler.answered(worker, 1, answer, world.now).unwrap().unwrap();
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

/// A world of one worker without a page that is at a task, with so many sent behind it.
fn far_world(behind: usize) -> (World, WorkerKey, Vec<TaskKey>) {
    let mut world = World::new(1, 0, u64::MAX);
    world.pageless = Pageless::All;
    submit(&mut world);
    world.apply(&Event::Ready(0));
    for _ in 0..50 {
        world.apply(&Event::Step(0));
        world.apply(&Event::Step(0));
        submit(&mut world);
    }
    let worker = *world.workers.keys().next().unwrap();
    world.apply(&Event::Step(0));
    let tasks = (0..behind).map(|_| submit(&mut world)).collect();
    assert!(world.workers[&worker].begun.is_some());
    assert_eq!(world.workers[&worker].inbox.len(), behind, "no pipelining");
    (world, worker, tasks)
}

#[test]
fn a_worker_without_a_page_is_asked_for_what_waits_behind_a_long_task() {
    let (mut world, worker, _) = far_world(5);
    world.now += 3 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].calls.len(), 5);
    for _ in 0..5 {
        world.apply(&Event::Heed(0));
    }
    assert!(world.workers[&worker].inbox.is_empty());
    // In the order in which they were submitted they go to whoever is free.
    world.apply(&Event::Step(0));
    let next = world.workers[&worker].inbox[0].1;
    assert_eq!(world.scheduler.counts(&world.pages).queued, 5);
    assert_eq!(next.id, world.open.iter().copied().min().unwrap());
}

#[test]
fn what_a_dead_worker_without_a_page_had_not_begun_runs_elsewhere_unless_that_is_unknown() {
    for is_lost in [false, true] {
        let (mut world, _, _) = far_world(5);
        world.apply(&if is_lost { Event::Lose(0) } else { Event::Crash(0) });
        assert_eq!(world.open.len(), if is_lost { 0 } else { 5 });
        world.finish();
    }
}

#[test]
fn a_worker_without_a_page_is_not_killed_for_a_cancelled_task_before_it_comes_to_it() {
    let (mut world, worker, tasks) = far_world(2);
    world.scheduler.cancel(tasks[0], Verdict::Cancelled, world.now, &world.pages);
    world.act();
    wait_half_a_minute(&mut world);
    assert_eq!(world.workers[&worker].life, Life::Ready);
    // It comes to it before it hears of that.
    world.apply(&Event::Step(0));
    world.apply(&Event::Step(0));
    world.now += 6 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.workers[&worker].life, Life::Killed);
}

#[test]
fn a_worker_without_a_page_may_not_leave_what_it_was_not_asked_for() {
    let (mut world, worker, _) = far_world(2);
    let skipped = Answer { skipped: true, ..Answer::default() };
    let first = world.scheduler.first_in_pipeline(worker);
    for seq in [first, first + 1, first + 2, first + 3, 0] {
        assert_eq!(world.scheduler.answered(worker, seq, skipped, world.now), Err(Violation));
    }
    world.now += 3 * MILLISECOND;
    world.scheduler.tick(world.now, &world.pages);
    world.act();
    assert_eq!(world.scheduler.answered(worker, first + 1, skipped, world.now), Ok(None));
    assert_eq!(world.scheduler.answered(worker, first + 1, skipped, world.now), Err(Violation));
}

/// Others take the places of those who say that they are about to die. They must not all stay.
#[test]
fn those_who_say_that_they_die_and_live_on_get_no_company_without_end() {
    let world = World::new(2, 0, u64::MAX);
    let (mut scheduler, pages, mut now) = (world.scheduler, world.pages, world.now);
    let mut most = 0;
    for id in 0..50 {
        scheduler.submit(id, id, Terms::default(), now, &pages).unwrap();
        while !scheduler.actions.is_empty() {
            for action in std::mem::take(&mut scheduler.actions) {
                match action {
                    Action::Start(worker) => drop(scheduler.worker_ready(worker, true, now, &pages)),
                    Action::Send { worker, seq, .. } => {
                        let last = Answer { dying: true, ..Answer::default() };
                        scheduler.answered(worker, seq, last, now).unwrap();
                        scheduler.answers_end(worker, now, &pages);
                    }
                    Action::Kill { worker, .. } => drop(scheduler.worker_gone(worker, "", now, &pages)),
                    _ => {}
                }
            }
            most = most.max(scheduler.slots.len());
            now += MILLISECOND;
            scheduler.tick(now, &pages);
        }
    }
    assert!(most <= 4, "{most} workers where there may be two");
}
