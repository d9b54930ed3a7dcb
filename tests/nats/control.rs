//! Cancelling, looking, and ending.

use std::time::Duration;

use futures::StreamExt;
use procession::{PoolError, TaskError, TaskStatus};

use crate::common::{self, Ledger, Meeting, attend, eventually, gone, note};
use crate::stage::play;

fn wait_at(place: String) {
    attend(&place, "task");
}

#[test]
fn a_task_that_waits_is_cancelled_and_never_runs() {
    play(async |stage| {
        let (pool, ledger) = (stage.pool(), Ledger::new());
        let write = |place: String, line: u32| note(&place, line);
        let handles: Vec<_> = (0..4).map(|n| pool.submit(write, (ledger.place(), n))).collect();
        assert_eq!(pool.stats().queued(), 4);
        assert_eq!(handles[0].status(), TaskStatus::Queued);
        handles[0].cancel();
        assert_eq!(handles[0].status(), TaskStatus::Cancelled);
        handles[1].canceller().cancel();
        let mut handles = handles.into_iter();
        assert_matches!(handles.next().unwrap().await, Err(TaskError::Cancelled));
        assert_matches!(handles.next().unwrap().await, Err(TaskError::Cancelled));
        drop(handles.next());
        assert_eq!((pool.stats().queued(), pool.stats().cancelled()), (1, 3));
        let last = handles.next().unwrap();
        // They are out of the queue before there is anybody to take them.
        stage.stored(1).await;
        let agent = stage.agent(1).await;
        last.await.unwrap();
        pool.shutdown().await;
        agent.shutdown().await;
        assert_eq!(ledger.lines(), ["3"]);
        stage
    });
}

#[test]
fn a_running_task_is_cancelled_with_its_worker() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let handle = pool.submit(wait_at, meeting.place());
        let guest = meeting.next().await;
        eventually("it is seen", || handle.status() == TaskStatus::Running).await;
        assert_eq!(handle.worker_pid(), Some(guest.pid));
        assert_eq!((pool.stats().running(), pool.stats().queued()), (1, 0));
        let pid = guest.pid;
        drop(handle);
        gone(pid).await;
        drop(guest);
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_task_that_looks_ends_when_it_is_cancelled() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let polite = async |place: String| {
            common::attend_async(&place, "it").await;
        };
        let mut handle = pool.submit(polite, meeting.place());
        let guest = tokio::select! {
            guest = meeting.next() => guest,
            outcome = &mut handle => panic!("it ends by itself: {outcome:?}"),
        };
        eventually("it is seen", || handle.status() == TaskStatus::Running).await;
        handle.cancel();
        assert_matches!(handle.await, Err(TaskError::Cancelled));
        // The same worker, which did not have to be killed.
        assert_eq!(pool.submit(std::process::id, ()).await.unwrap(), guest.pid);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_detached_task_runs_on() {
    play(async |stage| {
        let (agent, pool, ledger) = (stage.agent(1).await, stage.pool(), Ledger::new());
        pool.submit(|place: String| note(&place, "ran"), ledger.place()).detach();
        pool.shutdown().await;
        assert_eq!(ledger.lines(), ["ran"]);
        assert_eq!(pool.stats().succeeded(), 1);
        agent.shutdown().await;
        stage
    });
}

#[test]
fn shutdown_finishes_what_was_accepted_and_refuses_the_rest() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let handles: Vec<_> = (0..50_u64).map(|n| pool.submit(|n: u64| n + 1, n)).collect();
        let ending = tokio::spawn({
            let pool = pool.clone();
            async move { pool.shutdown().await }
        });
        eventually("it is shut down", || pool.is_shut_down()).await;
        assert_matches!(pool.submit(|n: u64| n, 1).await, Err(TaskError::ShutDown));
        for (n, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap(), n as u64 + 1);
        }
        ending.await.unwrap();
        pool.shutdown_now().await;
        let stats = pool.stats();
        assert_eq!((stats.submitted(), stats.succeeded(), stats.queued()), (50, 50, 0));
        assert_eq!(stats.run_time().count(), 50);
        agent.shutdown().await;
        stage
    });
}

#[test]
fn shutdown_now_clears_the_queue_and_the_workers() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let running = pool.submit(wait_at, meeting.place());
        let guest = meeting.next().await;
        eventually("it is seen", || running.status() == TaskStatus::Running).await;
        let waiting: Vec<_> = (0..5).map(|n| pool.submit(|n: u8| n, n)).collect();
        pool.shutdown_timeout(Duration::from_millis(50)).await;
        assert_matches!(running.await, Err(TaskError::ShutDown));
        for handle in waiting {
            assert_matches!(handle.await, Err(TaskError::ShutDown));
        }
        gone(guest.pid).await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn the_last_handle_of_a_pool_lets_it_finish() {
    play(async |stage| {
        let (agent, pool, ledger) = (stage.agent(1).await, stage.pool(), Ledger::new());
        let handles: Vec<_> = (0..10_u32)
            .map(|n| pool.submit(|place: String, n: u32| note(&place, n), (ledger.place(), n)))
            .collect();
        drop(pool);
        for handle in handles {
            handle.await.unwrap();
        }
        assert_eq!(ledger.lines().len(), 10);
        agent.shutdown().await;
        stage
    });
}

#[test]
fn without_its_runtime_a_pool_resolves_everything() {
    play(async |stage| {
        let runtime = common::multi_thread();
        let pool = stage.builder().runtime(runtime.handle().clone()).build().unwrap();
        let handle = pool.submit(|n: u8| n, 1);
        runtime.shutdown_background();
        assert_matches!(handle.await, Err(TaskError::ShutDown));
        assert_matches!(pool.submit(|n: u8| n, 1).await, Err(TaskError::ShutDown));
        pool.shutdown().await;
        // What may have got to the server by then is for an agent: nobody is there to want it.
        let agent = stage.agent(1).await;
        agent_is_idle(&stage).await;
        agent.shutdown().await;
        stage
    });
}

async fn agent_is_idle(stage: &crate::stage::Stage) {
    let pool = stage.pool();
    pool.submit(|n: u8| n, 1).await.unwrap();
    pool.shutdown().await;
}

#[test]
fn a_pool_without_a_server_ends_all_the_same() {
    common::run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let queue = procession::nats::Queue::at(format!("nats://127.0.0.1:{port}"));
        let pool = procession::ProcessPool::builder().nats(queue.clone()).build().unwrap();
        let handle = pool.submit(|n: u8| n, 1);
        assert_eq!((pool.stats().queued(), handle.status()), (1, TaskStatus::Queued));
        let cancelled = pool.submit(|n: u8| n, 1);
        cancelled.cancel();
        assert_matches!(cancelled.await, Err(TaskError::Cancelled));
        pool.shutdown_timeout(Duration::from_millis(20)).await;
        assert_matches!(handle.await, Err(TaskError::ShutDown));
        assert_matches!(pool.warm_up().await, Err(PoolError::ShutDown));
    });
}

#[test]
fn dropping_a_map_cancels_what_is_in_flight() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let places = std::iter::repeat_with(|| meeting.place()).take(5).collect::<Vec<_>>();
        let mut map = pool.map(wait_at, places).chunk_size(1);
        assert!(futures::poll!(map.next()).is_pending());
        let guest = meeting.next().await;
        eventually("it is seen", || pool.stats().running() == 1).await;
        drop(map);
        gone(guest.pid).await;
        eventually("nothing is left", || pool.stats().queued() + pool.stats().running() == 0).await;
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn the_workers_of_agents_are_seen() {
    play(async |stage| {
        let (one, two, pool, meeting) =
            (stage.agent(1).await, stage.agent(1).await, stage.pool(), Meeting::new());
        pool.warm_up().await.unwrap();
        let handles = [pool.submit(wait_at, meeting.place()), pool.submit(wait_at, meeting.place())];
        let guests = meeting.all(2).await;
        eventually("both are told of", || pool.workers().len() == 2 && pool.stats().running() == 2).await;
        let mut pids: Vec<_> = pool.workers().iter().map(|worker| worker.pid()).collect();
        let mut expected: Vec<_> = guests.iter().map(|guest| guest.pid).collect();
        pids.sort_unstable();
        expected.sort_unstable();
        assert_eq!(pids, expected);
        let tasks = || pool.workers().iter().filter_map(|worker| worker.current_task()).collect::<Vec<_>>();
        assert!(handles.iter().all(|handle| tasks().contains(&handle.id())));
        drop(guests);
        for handle in handles {
            handle.await.unwrap();
        }
        one.shutdown().await;
        two.shutdown().await;
        eventually("they have left", || pool.workers().is_empty()).await;
        pool.shutdown().await;
        stage
    });
}
