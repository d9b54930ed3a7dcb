//! Agents that come and go, are slow, or are of another build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use procession::nats::Agent;
use procession::{ProcessPool, TaskHandle, TaskStatus};

use crate::common::{self, Ledger, Meeting, attend, eventually, note};
use crate::stage::play;

#[test]
fn tasks_wait_for_an_agent_to_come() {
    play(async |stage| {
        let pool = stage.pool();
        let handles: Vec<_> = (0..20_u32).map(|n| pool.submit(|n: u32| n, n)).collect();
        assert_eq!((pool.stats().queued(), pool.stats().workers()), (20, 0));
        assert!(handles.iter().all(|handle| handle.status() == TaskStatus::Queued));
        let agent = stage.agent(2).await;
        for (n, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap(), n as u32);
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_takes_as_many_as_it_has_workers() {
    play(async |stage| {
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let (busy, other) = (stage.agent(2).await, stage.agent(1).await);
        let handles: Vec<_> =
            (0..6).map(|_| pool.submit(|place: String| attend(&place, "task"), meeting.place())).collect();
        let guests = meeting.all(3).await;
        let held = |agent: &Agent| agent.stats().queued() + agent.stats().running();
        eventually("each has its share", || (held(&busy), held(&other)) == (2, 1)).await;
        eventually("three are seen", || pool.stats().running() == 3).await;
        assert_eq!(pool.stats().queued(), 3);
        drop(guests);
        drop(meeting.all(3).await);
        for handle in handles {
            handle.await.unwrap();
        }
        pool.shutdown().await;
        busy.shutdown().await;
        other.shutdown().await;
        stage
    });
}

/// One worker is held up for good; the others' tasks must not be behind it.
#[test]
fn a_slow_agent_takes_less() {
    play(async |stage| {
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let (slow, fast) = (stage.agent(1).await, stage.agent(1).await);
        let blocker = pool.submit(|place: String| attend(&place, "blocker"), meeting.place());
        let guest = meeting.next().await;
        for n in 0..40_u32 {
            assert_eq!(pool.submit(|n: u32| n, n).await.unwrap(), n);
        }
        drop(guest);
        blocker.await.unwrap();
        assert_eq!(slow.stats().succeeded() + fast.stats().succeeded(), 41);
        pool.shutdown().await;
        slow.shutdown().await;
        fast.shutdown().await;
        stage
    });
}

/// While tasks are short, agents take some ahead. What waits behind a long one goes to others, and each
/// runs once.
#[test]
fn what_came_ahead_of_a_long_task_runs_elsewhere() {
    play(async |stage| {
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agents = [stage.agent(1).await, stage.agent(1).await];
        let write = |place: String, n: u32| note(&place, n);
        let short = |n: u32| pool.submit(write, (ledger.place(), n));
        let mut handles: Vec<_> = (0..150).map(short).collect();
        let blocker = pool.submit(|place: String| attend(&place, "blocker"), meeting.place());
        handles.extend((150..300).map(short));
        let guest = meeting.next().await;
        for handle in handles {
            handle.await.unwrap();
        }
        assert_eq!(blocker.status(), TaskStatus::Running);
        drop(guest);
        blocker.await.unwrap();
        let mut lines: Vec<u32> = ledger.lines().iter().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        assert!(lines.into_iter().eq(0..300));
        pool.shutdown().await;
        for agent in agents {
            agent.shutdown().await;
        }
        stage
    });
}

/// Even if all before were short, tasks that take a while are not begun later than they could be because
/// an agent keeps them that has no worker for them.
#[test]
fn tasks_that_take_a_while_are_shared_out() {
    play(async |stage| {
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let (one, two) = (stage.agent(2).await, stage.agent(1).await);
        for handle in (0..200_u32).map(|n| pool.submit(|n: u32| n, n)).collect::<Vec<_>>() {
            handle.await.unwrap();
        }
        let long = |_| pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let handles: Vec<_> = (0..6).map(long).collect();
        // All three workers have one at the same time; the rest is with nobody.
        let guests = meeting.all(3).await;
        let held = |agent: &Agent| agent.stats().queued() + agent.stats().running();
        assert_eq!((held(&one), held(&two)), (2, 1));
        eventually("the others wait", || pool.stats().running() == 3 && pool.stats().queued() == 3).await;
        drop(guests);
        drop(meeting.all(3).await);
        for handle in handles {
            handle.await.unwrap();
        }
        pool.shutdown().await;
        one.shutdown().await;
        two.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_is_told_to_stop_finishes_what_it_has() {
    play(async |stage| {
        let (pool, meeting, ledger) = (stage.pool(), Meeting::new(), Ledger::new());
        let agent = stage.agent_process(1).await;
        let task = |place: String, ledger: String, n: u32| {
            attend(&place, "task");
            note(&ledger, n);
        };
        let handles: Vec<_> =
            (0..4_u32).map(|n| pool.submit(task, (meeting.place(), ledger.place(), n))).collect();
        let guest = meeting.next().await;
        eventually("its worker is told of", || !pool.workers().is_empty()).await;
        agent.ask_to_end();
        eventually("it has left", || pool.workers().is_empty()).await;
        let first = guest.pid;
        drop(guest);
        agent.ended().await;
        assert_eq!(ledger.lines().len(), 1);
        assert_eq!(pool.stats().queued(), 3);
        let successor = stage.agent(1).await;
        for _ in 1..4 {
            assert_ne!(meeting.next().await.pid, first);
        }
        for handle in handles {
            handle.await.unwrap();
        }
        assert_eq!(ledger.lines().len(), 4);
        pool.shutdown().await;
        successor.shutdown().await;
        stage
    });
}

/// Agents that end at any moment while tasks flow lose none, and none runs twice.
#[test]
fn agents_come_and_go_and_nothing_is_lost() {
    play(async |stage| {
        let (pool, ledger) = (stage.pool(), Ledger::new());
        let write = |place: String, n: u32| note(&place, n);
        let mut handles = Vec::new();
        let stays = stage.agent(1).await;
        for _ in 0..6 {
            let agent = stage.agent(3).await;
            while agent.stats().succeeded() < 4 {
                handles.extend((0..10).map(|_| pool.submit(write, (ledger.place(), 1))));
                // Some of them are then still under way.
                let some = handles.len() - 5;
                eventually("most are done", || handles[..some].iter().all(TaskHandle::is_finished)).await;
            }
            handles.extend((0..20).map(|_| pool.submit(write, (ledger.place(), 1))));
            agent.shutdown().await;
        }
        let expected = handles.len();
        for handle in handles {
            handle.await.unwrap();
        }
        assert_eq!(ledger.lines().len(), expected);
        pool.shutdown().await;
        stays.shutdown().await;
        stage
    });
}

#[test]
fn an_agent_that_is_stopped_for_good_gives_its_tasks_up() {
    play(async |stage| {
        let (pool, meeting) = (stage.pool(), Meeting::new());
        let agent = stage.agent(1).await;
        let handle = pool.submit(|place: String| attend(&place, "task"), meeting.place());
        let _guest = meeting.next().await;
        agent.shutdown_timeout(Duration::from_millis(50)).await;
        assert_matches!(handle.await, Err(procession::TaskError::NodeLost));
        pool.shutdown().await;
        stage
    });
}

/// The note that the linker has put into this program.
fn build_id_at(program: &[u8]) -> usize {
    let note = [4_u32.to_le_bytes(), 20_u32.to_le_bytes(), 3_u32.to_le_bytes(), *b"GNU\0"].concat();
    program.windows(note.len()).position(|window| window == note).expect("a build id") + note.len()
}

/// A copy of this program that is of another build, as far as anybody can tell.
pub fn other_build(dir: &std::path::Path) -> std::path::PathBuf {
    let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let at = build_id_at(&program);
    program[at] ^= 0xff;
    let path = dir.join("other");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_agent_of_another_build_never_sees_a_task() {
    play(async |stage| {
        let (dir, pool) = (tempfile::tempdir().unwrap(), stage.pool());
        let program = other_build(dir.path());
        let command = common::helper_at(&program, "stage::agent_program", &stage.word(1));
        let stranger = stage.start_agent(command);
        // It is there, with what it takes tasks from.
        let start = Instant::now();
        while stage.consumers().await < 3 {
            assert!(start.elapsed() < Duration::from_secs(30), "the other agent does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let handle = pool.submit(|n: u8| n, 1);
        while stage.server.left().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(futures::poll!(Box::pin(pool.warm_up())).is_pending());
        assert_eq!(
            (handle.status(), pool.stats().queued(), pool.stats().workers()),
            (TaskStatus::Queued, 1, 0)
        );
        let agent = stage.agent(1).await;
        assert_eq!(handle.await.unwrap(), 1);
        assert_eq!(agent.stats().succeeded(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stranger.end().await;
        stage
    });
}

#[test]
fn pools_of_many_callers_share_agents() {
    play(async |stage| {
        let agent = Agent::start(stage.queue(), ProcessPool::builder().workers(2)).await.unwrap();
        let pools: Vec<_> = (0..4).map(|_| stage.pool()).collect();
        let handles: Vec<_> = (0..80_u32).map(|n| pools[n as usize % 4].submit(|n: u32| n * 2, n)).collect();
        for (n, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap(), 2 * n as u32);
        }
        for pool in pools {
            assert_eq!(pool.stats().succeeded(), 20);
            pool.shutdown().await;
        }
        agent.shutdown().await;
        stage
    });
}
