//! What is lost when a worker, an agent, a caller or the server ends in the midst of a task.

use std::process::Command;
use std::time::Duration;

use procession::nats::Agent;
use procession::{ExitCause, ProcessPool, TaskError, TaskStatus};

use crate::common::{self, Ledger, Meeting, attend, died, eventually, gone, note};
use crate::stage::{Stage, play, told};

fn note_and_wait(ledger: String, place: String) -> u32 {
    note(&ledger, procession::worker::current().unwrap().attempt());
    attend(&place, "task");
    std::process::id()
}

#[test]
fn a_worker_that_is_killed() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(2).await, stage.pool(), Meeting::new());
        let handle = pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let guest = meeting.next().await;
        let others: Vec<_> = (0..10_u32).map(|n| pool.submit(|n: u32| n, n)).collect();
        let pid = rustix::process::Pid::from_raw(guest.pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let exit = died(handle.await);
        assert_eq!((exit.pid(), exit.cause(), exit.signal()), (guest.pid, ExitCause::Signalled, Some(9)));
        for (n, other) in others.into_iter().enumerate() {
            assert_eq!(other.await.unwrap(), n as u32);
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_is_killed_is_a_lost_node() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent_process(2).await;
        let lost = pool.submit(note_and_wait, (ledger.place(), meeting.place()));
        let guest = meeting.next().await;
        let waits = pool.submit(|n: u8| n, 1);
        assert_eq!(waits.await.unwrap(), 1);
        agent.kill().await;
        gone(guest.pid).await; // its workers went with it
        assert_matches!(lost.await, Err(TaskError::NodeLost));
        // With another one there, things go on; nothing is run again.
        let agent = stage.agent(1).await;
        assert_eq!(pool.submit(|n: u8| n, 2).await.unwrap(), 2);
        assert_eq!(ledger.lines(), ["1"]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// As one that the network cuts off for a while: its task is lost, and ended when it hears of that.
#[test]
fn an_agent_that_is_not_heard_of_is_a_lost_node_and_may_come_back() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent_process(1).await;
        let lost = pool.submit(note_and_wait, (ledger.place(), meeting.place()));
        let guest = meeting.next().await;
        eventually("it is seen", || lost.status() == TaskStatus::Running).await;
        agent.send(rustix::process::Signal::STOP);
        assert_matches!(lost.await, Err(TaskError::NodeLost));
        agent.send(rustix::process::Signal::CONT);
        gone(guest.pid).await;
        assert_eq!(pool.submit(|n: u8| n, 2).await.unwrap(), 2);
        assert_eq!(ledger.lines(), ["1"]);
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

#[test]
fn a_lost_task_runs_elsewhere_if_it_may() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent_process(1).await;
        let task = pool.task(note_and_wait, (ledger.place(), meeting.place())).retries(1).submit();
        let guest = meeting.next().await;
        agent.kill().await;
        let agent = stage.agent_process(1).await;
        let again = meeting.next().await;
        assert_ne!(again.pid, guest.pid);
        let pid = again.pid;
        drop(again);
        assert_eq!(task.await.unwrap(), pid);
        assert_eq!(ledger.lines(), ["1", "2"]);
        assert_eq!(pool.stats().retried(), 1);
        pool.shutdown().await;
        agent.end().await;
        stage
    });
}

#[test]
fn others_are_told_of_a_lost_node_by_the_server() {
    play(async |stage| {
        let stage = stage.impatient();
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let victim = stage.agent_process(1).await;
        let lost = pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let guest = meeting.next().await;
        // It waits for tasks, so the server notices what is overdue.
        let agent = stage.agent(1).await;
        victim.kill().await;
        assert_matches!(lost.await, Err(TaskError::NodeLost));
        drop(guest);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_long_task_runs_once() {
    play(async |stage| {
        let stage = stage.impatient();
        let (one, two) = (stage.agent(1).await, stage.agent(1).await);
        let (pool, ledger) = (stage.pool(), Ledger::new());
        let long = |place: String| {
            note(&place, "ran");
            std::thread::sleep(Duration::from_secs(4)); // of four times the patience of the server
        };
        pool.submit(long, ledger.place()).await.unwrap();
        assert_eq!(ledger.lines(), ["ran"]);
        pool.shutdown().await;
        one.shutdown().await;
        two.shutdown().await;
        stage
    });
}

#[test]
fn a_server_that_is_killed_and_comes_back_in_mid_task() {
    play(async |mut stage| {
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent(1).await;
        let running = pool.submit(note_and_wait, (ledger.place(), meeting.place()));
        let guest = meeting.next().await;
        let waiting = pool.submit(|n: u8| n, 1);
        eventually("it runs", || running.status() == TaskStatus::Running).await;
        stage.stored(2).await;
        stage.server.kill().await;
        let late = pool.submit(|n: u8| n, 2);
        let pid = guest.pid;
        drop(guest);
        stage.server.run().await;
        assert_eq!(running.await.unwrap(), pid);
        assert_eq!(waiting.await.unwrap(), 1);
        assert_eq!(late.await.unwrap(), 2);
        assert_eq!(ledger.lines(), ["1"]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_server_that_forgets_everything() {
    play(async |stage| {
        let mut stage = stage.impatient();
        let queue = stage.queue().in_memory(true);
        let pool = ProcessPool::builder().nats(queue.clone()).build().unwrap();
        let lost = pool.submit(|n: u8| n, 1);
        let repeated = pool.task(|n: u8| n, 2).retries(1).submit();
        stage.stored(2).await;
        stage.server.kill().await;
        stage.server.run().await;
        assert_matches!(lost.await, Err(TaskError::NodeLost));
        let agent = Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap();
        assert_eq!(repeated.await.unwrap(), 2);
        // Agents that were there find their way back, too.
        stage.server.kill().await;
        stage.server.run().await;
        assert_eq!(pool.submit(|n: u8| n, 3).await.unwrap(), 3);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// The place that a task had in a queue that is forgotten is another task's in the next.
#[test]
fn a_task_of_a_forgotten_queue_removes_no_other() {
    play(async |mut stage| {
        let (queue, meeting) = (stage.queue().in_memory(true), Meeting::new());
        let agent = Agent::start(queue.clone(), ProcessPool::builder().workers(1)).await.unwrap();
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let first = pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let guest = meeting.next().await;
        eventually("it runs", || first.status() == TaskStatus::Running).await;
        stage.server.kill().await;
        stage.server.run().await;
        let second = pool.submit(|n: u8| n, 2);
        stage.stored(1).await;
        drop(guest);
        first.await.unwrap();
        assert_eq!(second.await.unwrap(), 2);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_server_that_is_restarted_again_and_again() {
    play(async |mut stage| {
        let (pool, ledger) = (stage.pool(), Ledger::new());
        let agent = stage.agent(2).await;
        let write = |place: String, n: u32| {
            note(&place, n);
            std::thread::sleep(Duration::from_millis(5));
            n
        };
        let handles: Vec<_> = (0..200_u32).map(|n| pool.submit(write, (ledger.place(), n))).collect();
        for restart in 1..=3 {
            eventually("some are done", || pool.stats().succeeded() >= restart * 20).await;
            stage.server.stop().await;
            stage.server.run().await;
        }
        for (n, handle) in handles.into_iter().enumerate() {
            match handle.await {
                Ok(value) => assert_eq!(value, n as u32),
                // One that was on its way between the server and the agent.
                Err(error) => assert_matches!(error, TaskError::NodeLost),
            }
        }
        let mut lines: Vec<u32> = ledger.lines().iter().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        let all = lines.len();
        lines.dedup();
        assert_eq!(lines.len(), all, "some have run twice");
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// Not a test: submits a large task that nobody runs, or one that waits, and is killed then.
#[test]
#[ignore = "started by other tests"]
fn caller_program() {
    let Some(word) = common::helping() else { return };
    let (word, place) = word.split_once('|').unwrap();
    let (queue, _) = told(word);
    common::multi_thread().block_on(async {
        let queue = queue.max_wait(Duration::from_millis(1500));
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let large = |place: String, bytes: Vec<u8>| {
            attend(&place, "orphan");
            bytes
        };
        let handle = pool.submit(large, (place.to_owned(), vec![1; 2 << 20]));
        let _ = handle.await;
    });
}

pub fn caller(stage: &Stage, meeting: &Meeting) -> Command {
    common::helper("losses::caller_program", &format!("{}|{}", stage.word(1), meeting.place()))
}

#[test]
fn what_a_dead_caller_left_in_the_queue_is_dropped_in_time() {
    play(async |stage| {
        let meeting = Meeting::new();
        let caller = stage.start_agent(caller(&stage, &meeting));
        stage.stored(11).await; // the task, and an object: nine pieces and what is said of it
        caller.kill().await;
        let start = std::time::Instant::now();
        eventually("its time is over", || start.elapsed() > Duration::from_millis(1500)).await;
        let agent = stage.agent(1).await;
        stage.server.expect_empty().await;
        assert_eq!(agent.stats().submitted(), 0);
        agent.shutdown().await;
        stage
    });
}

#[test]
fn the_answer_to_a_dead_caller_is_dropped_with_its_objects() {
    play(async |stage| {
        let meeting = Meeting::new();
        let queue = stage.queue().reply_patience(Duration::from_secs(1));
        let agent = Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap();
        let caller = stage.start_agent(caller(&stage, &meeting));
        let guest = meeting.next().await;
        caller.kill().await;
        drop(guest);
        stage.server.expect_empty().await;
        agent.shutdown().await;
        stage
    });
}

/// Not a test: submits a task that waits, and many with results of 400 KiB, and is killed then.
#[test]
#[ignore = "started by other tests"]
fn greedy_caller_program() {
    let Some(word) = common::helping() else { return };
    let (word, place) = word.split_once('|').unwrap();
    let (queue, _) = told(word);
    common::multi_thread().block_on(async {
        let pool = ProcessPool::builder().nats(queue).build().unwrap();
        let first = pool.submit(|place: String| attend(&place, "first"), place.to_owned());
        let others: Vec<_> = (0..GREED).map(|_| pool.submit(|| vec![7_u8; 400 << 10], ())).collect();
        let _ = first.await;
        drop(others);
    });
}

const GREED: usize = 250;

/// They are 98 MiB. So many are kept in memory, and the others are stored until it is given up.
#[test]
fn the_answers_to_a_dead_caller_take_up_no_more_memory_than_they_may() {
    play(async |stage| {
        let meeting = Meeting::new();
        let queue = stage.queue().reply_patience(Duration::from_secs(3));
        let agent = Agent::start(queue, ProcessPool::builder().workers(1)).await.unwrap();
        let word = format!("{}|{}", stage.word(1), meeting.place());
        let caller = stage.start_agent(common::helper("losses::greedy_caller_program", &word));
        let guest = meeting.next().await;
        stage.stored(1 + GREED).await;
        caller.kill().await;
        drop(guest);
        let start = std::time::Instant::now();
        while !stage.server.left().await.iter().any(|line| line.starts_with("$O.")) {
            assert!(start.elapsed() < Duration::from_secs(30), "none is stored");
        }
        stage.server.expect_empty().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn when_caller_and_agent_both_die_others_clear_up() {
    play(async |stage| {
        let stage = stage.impatient();
        let meeting = Meeting::new();
        let victim = stage.agent_process(1).await;
        let caller = stage.start_agent(caller(&stage, &meeting));
        let guest = meeting.next().await;
        caller.kill().await;
        victim.kill().await;
        gone(guest.pid).await;
        let agent = stage.agent(1).await;
        stage.server.expect_empty().await;
        assert_eq!(agent.stats().submitted(), 0);
        agent.shutdown().await;
        stage
    });
}
