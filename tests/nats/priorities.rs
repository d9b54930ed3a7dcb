//! Priorities, as far as a queue that many take from can have them.

use std::time::Duration;

use procession::{Priority, TaskStatus};

use crate::common::{Ledger, Meeting, attend, eventually, note};
use crate::stage::play;

#[test]
fn what_is_urgent_comes_first() {
    play(async |stage| {
        let (pool, ledger, meeting) = (stage.pool(), Ledger::new(), Meeting::new());
        let agent = stage.agent(1).await;
        let first = pool.submit(|place: String| attend(&place, "first"), meeting.place());
        let guest = meeting.next().await;
        eventually("it is seen", || first.status() == TaskStatus::Running).await;
        let write = |place: String, line: String| note(&place, line);
        let mut handles = Vec::new();
        for (priority, name) in
            [(Priority::Low, "low"), (Priority::Normal, "normal"), (Priority::High, "high")]
        {
            for n in 0..3 {
                let task = pool.task(write, (ledger.place(), format!("{name} {n}"))).priority(priority);
                handles.push(task.submit());
            }
        }
        stage.stored(10).await;
        // A busy agent looks for what is urgent now and then.
        let start = std::time::Instant::now();
        eventually("it will look again", || start.elapsed() > Duration::from_millis(100)).await;
        drop(guest);
        for handle in handles {
            handle.await.unwrap();
        }
        first.await.unwrap();
        let lines = ledger.lines();
        // The agent may have been waiting for any when the first came, and has handed that back.
        let place = |name: &str| lines.iter().position(|line| line == name).unwrap();
        assert!(place("high 2") < place("normal 2"), "{lines:?}");
        assert!(place("normal 2") < place("low 2"), "{lines:?}");
        assert_eq!(lines.len(), 9);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_idle_agent_takes_every_priority() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        for _ in 0..3 {
            for priority in [Priority::High, Priority::Low, Priority::Normal] {
                assert_eq!(pool.task(|n: u8| n, 7).priority(priority).await.unwrap(), 7);
            }
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

/// With one worker and tasks of all priorities at once more may come than there are workers for: what is
/// too much goes back, and each runs once.
#[test]
fn what_is_too_much_is_handed_back_and_runs_once() {
    play(async |stage| {
        let (one, two) = (stage.agent(1).await, stage.agent(1).await);
        let (pool, ledger) = (stage.pool(), Ledger::new());
        let write = |place: String, line: u32| note(&place, line);
        let handles: Vec<_> = (0..90_u32)
            .map(|n| {
                let priority = [Priority::High, Priority::Low, Priority::Normal][n as usize % 3];
                pool.task(write, (ledger.place(), n)).priority(priority).submit()
            })
            .collect();
        for handle in handles {
            handle.await.unwrap();
        }
        let mut lines: Vec<u32> = ledger.lines().iter().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        assert!(lines.into_iter().eq(0..90));
        pool.shutdown().await;
        one.shutdown().await;
        two.shutdown().await;
        stage
    });
}
