//! How far tasks have got that an agent runs.

use futures::{StreamExt, TryStreamExt};
use procession::worker::{Emit, emit};
use procession::{Progress, TaskError, worker};

use crate::common::{Meeting, attend, died, eventually};
use crate::stage::play;

fn report(progress: Progress) {
    worker::current().unwrap().report(progress);
}

fn report_and_attend(done: u64, place: String) {
    report(Progress::new(done).with_total(10).with_message("attending"));
    attend(&place, "reported");
}

#[test]
fn a_report_is_seen_while_the_task_runs() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let task = pool.submit(report_and_attend, (3, meeting.place()));
        let mut watch = task.progress();
        let seen = watch.changed().await.unwrap();
        assert_eq!((seen.done(), seen.total(), seen.message()), (3, Some(10), "attending"));
        assert!(!task.is_finished());
        drop(meeting.next().await);
        task.await.unwrap();
        assert_eq!(watch.changed().await, None);
        assert_eq!(watch.latest(), Some(seen));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn the_last_report_comes_with_the_answer() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        for _ in 0..20 {
            let task = pool.submit(|n: u64| (1..=n).for_each(|done| report(Progress::new(done))), 5);
            let mut watch = task.progress();
            task.await.unwrap();
            assert_eq!(watch.latest(), Some(Progress::new(5)));
            while watch.changed().await.is_some() {}
        }
        let silent = pool.submit(|| (), ());
        let watch = silent.progress();
        silent.await.unwrap();
        assert_eq!(watch.latest(), None);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_loop_that_reports_all_the_time_sends_few() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let hot = |n: u64| {
            let start = std::time::Instant::now();
            for done in 1..=n {
                report(Progress::new(done));
            }
            start.elapsed()
        };
        let n = 300_000;
        let task = pool.submit(hot, n);
        let seen = task.progress();
        let counted = tokio::spawn(seen.map(|progress| progress.done()).collect::<Vec<_>>());
        let took = task.await.unwrap();
        let seen = counted.await.unwrap();
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&n));
        assert!(seen.len() as u128 <= took.as_millis() / 40 + 4, "{} in {took:?}", seen.len());
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_task_that_is_run_again_goes_on_reporting() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let fatal = |place: String| -> () {
            report(Progress::new(u64::from(worker::current().unwrap().attempt())));
            attend(&place, "reported");
            std::process::abort();
        };
        let task = pool.task(fatal, meeting.place()).retries(1).submit();
        let mut watch = task.progress();
        for attempt in 1..=2 {
            assert_eq!(watch.changed().await, Some(Progress::new(attempt)));
            drop(meeting.next().await);
        }
        died(task.await);
        assert_eq!(watch.changed().await, None);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_stream_reports_as_well() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let counted = |n: u64| -> Emit<u64> {
            emit(move |out| {
                report(Progress::new(0).with_total(n));
                for item in 0..n {
                    out.send(item)?;
                    report(Progress::new(item + 1).with_total(n));
                }
                Ok(())
            })
        };
        let items = pool.stream(counted, 1000).window(10);
        let watch = items.progress();
        let all: Vec<u64> = items.try_collect().await.unwrap();
        assert_eq!(all.len(), 1000);
        assert_eq!(watch.latest(), Some(Progress::new(1000).with_total(1000)));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn it_ends_with_the_task_however_that_ends() {
    play(async |stage| {
        let (agent, pool, meeting) = (stage.agent(1).await, stage.pool(), Meeting::new());
        let task = pool.submit(report_and_attend, (7, meeting.place()));
        let mut watch = task.progress();
        let guest = meeting.next().await;
        eventually("it is seen", || watch.latest().is_some()).await;
        task.cancel();
        assert_matches!(task.await, Err(TaskError::Cancelled));
        assert_eq!(watch.changed().await.unwrap().done(), 7);
        assert_eq!(watch.changed().await, None);
        drop(guest);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
