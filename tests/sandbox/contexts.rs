//! All escapes, from everywhere in a worker.

use std::sync::OnceLock;

use procession::{Builder, ProcessPool};

use super::{Host, Outcome, Stage, all_names, attempt, caged, expect_refused, strict};

both! {
    nothing_escapes_from_a_thread,
    nothing_escapes_from_an_async_task,
    nothing_escapes_from_the_initializer,
    nothing_escapes_from_a_second_task,
    nothing_escapes_after_a_panic,
}

type Outcomes = Vec<(String, Outcome)>;

async fn one_caged(builder: Builder, host: &Host) -> Option<ProcessPool> {
    caged(builder.workers(1), strict(&host.stage))
}

async fn expect_nothing_done(pool: &ProcessPool, host: &Host, outcomes: &Outcomes) {
    expect_refused(outcomes, &all_names());
    assert!(!host.heard_by_network() && !host.heard_by_unix_socket());
    assert_eq!(pool.stats().workers_died(), 0);
    pool.shutdown().await;
}

async fn nothing_escapes_from_a_thread(builder: Builder) {
    fn on_thread(names: Vec<String>, stage: Stage) -> Outcomes {
        let within = || std::thread::spawn(move || attempt(names, stage)).join().unwrap();
        std::thread::spawn(within).join().unwrap()
    }
    let host = Host::new().await;
    let Some(pool) = one_caged(builder, &host).await else { return };
    let outcomes = pool.submit(on_thread, (all_names(), host.stage.clone())).await.unwrap();
    expect_nothing_done(&pool, &host, &outcomes).await;
}

async fn nothing_escapes_from_an_async_task(builder: Builder) {
    async fn awaited(names: Vec<String>, stage: Stage) -> Outcomes {
        tokio::task::spawn_blocking(|| attempt(names, stage)).await.unwrap()
    }
    let host = Host::new().await;
    let Some(pool) = one_caged(builder, &host).await else { return };
    let outcomes = pool.submit(awaited, (all_names(), host.stage.clone())).await.unwrap();
    expect_nothing_done(&pool, &host, &outcomes).await;
}

async fn nothing_escapes_from_the_initializer(builder: Builder) {
    static OUTCOMES: OnceLock<Outcomes> = OnceLock::new();
    fn initialize(names: Vec<String>, stage: Stage) {
        OUTCOMES.set(attempt(names, stage)).unwrap();
    }
    let host = Host::new().await;
    let builder = builder.initializer(initialize, (all_names(), host.stage.clone()));
    let Some(pool) = one_caged(builder, &host).await else { return };
    let outcomes = pool.submit(|| OUTCOMES.get().unwrap().clone(), ()).await.unwrap();
    expect_nothing_done(&pool, &host, &outcomes).await;
}

async fn nothing_escapes_from_a_second_task(builder: Builder) {
    let host = Host::new().await;
    let Some(pool) = one_caged(builder, &host).await else { return };
    let first = pool.submit(attempt, (all_names(), host.stage.clone())).await.unwrap();
    let outcomes = pool.submit(attempt, (all_names(), host.stage.clone())).await.unwrap();
    assert_eq!(outcomes, first);
    assert_eq!(pool.stats().workers_started(), 1);
    expect_nothing_done(&pool, &host, &outcomes).await;
}

async fn nothing_escapes_after_a_panic(builder: Builder) {
    let host = Host::new().await;
    let Some(pool) = one_caged(builder, &host).await else { return };
    super::common::panicked(pool.submit(|| -> u8 { panic!("on purpose") }, ()).await);
    let outcomes = pool.submit(attempt, (all_names(), host.stage.clone())).await.unwrap();
    expect_nothing_done(&pool, &host, &outcomes).await;
}
