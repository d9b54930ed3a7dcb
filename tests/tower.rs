//! The pool as a `tower::Service`: its readiness, and how it does within tower's layers and axum.

#![cfg(all(target_os = "linux", feature = "tower"))]

#[macro_use]
mod common;

use std::future::{Ready, ready};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use common::{Guest, Ledger, Meeting, Open, attend, beside_what_runs, died, note, panicked, shown};
use futures::future::{join_all, try_join_all};
use futures::poll;
use procession::{Builder, PoolService, PoolStats, Priority, ProcessPool, TaskError, worker};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

both! {
    a_service_calls_its_function,
    a_service_without_a_bound_is_always_ready,
    readiness_wakes_up_when_there_is_room,
    a_ready_service_has_a_place_until_it_is_called_or_dropped,
    a_service_that_waits_and_is_dropped_holds_nobody_up,
    a_clone_is_not_ready,
    a_call_without_a_place_is_a_submit,
    a_service_is_not_ready_after_shutdown,
    a_service_that_waits_hears_of_shutdown,
    a_place_is_no_use_after_shutdown,
    a_dropped_response_cancels_the_task,
    what_each_task_is_told,
    errors_come_as_they_are,
    a_timeout_layer_frees_the_worker,
    a_full_queue_is_shed,
    a_concurrency_limit_bounds_what_runs,
    a_retry_layer_repeats_a_crash,
    a_buffer_waits_for_room,
    layers_on_layers,
    places_are_not_lost,
    an_axum_handler_calls_it,
    an_axum_service_sheds,
}

/// A pool of one worker, which is at a task until the guest is let go.
async fn occupied(builder: Builder) -> (ProcessPool, Guest) {
    let pool = builder.workers(1).open().unwrap();
    let meeting = Meeting::new();
    pool.submit(attend_as_occupant, meeting.place()).detach();
    let guest = meeting.next().await;
    (pool, guest)
}

fn attend_as_occupant(place: String) {
    attend(&place, "occupant");
}

fn double(n: u32) -> u32 {
    n * 2
}

type Double = PoolService<u32, u32>;

/// Whether the service is ready at this moment.
async fn is_ready<A, T>(service: &mut PoolService<A, T>) -> bool
where
    PoolService<A, T>: Service<A, Error = TaskError>,
{
    poll!(service.ready()).is_ready()
}

/// What axum asks of a state, and tower's `buffer` of a service.
fn is_shareable<S: Clone + Send + Sync + Unpin + 'static>(_: &S) {}

async fn a_service_calls_its_function(builder: Builder) {
    async fn join(words: Vec<String>, by: String) -> anyhow::Result<String> {
        Ok(words.join(&by))
    }
    let pool = builder.open().unwrap();
    let mut one = pool.service(double);
    assert_eq!(one.ready().await.unwrap().call(4).await.unwrap(), 8);
    let mut none = pool.service(|| 7u8);
    assert_eq!(none.ready().await.unwrap().call(()).await.unwrap(), 7);
    let words = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(pool.service(join).oneshot((words, "-".to_owned())).await.unwrap(), "a-b");
    is_shareable(&one);
    let named: PoolService<u32, u32> = one.clone();
    assert_eq!(named.oneshot(5).await.unwrap(), 10);
    pool.shutdown().await;
}

async fn a_service_without_a_bound_is_always_ready(builder: Builder) {
    let (pool, guest) = occupied(builder).await;
    let mut service = pool.service(double);
    let mut responses = Vec::new();
    for n in 0..100 {
        assert!(is_ready(&mut service).await);
        responses.push(service.call(n));
    }
    drop(guest);
    assert_eq!(try_join_all(responses).await.unwrap(), (0..100).map(double).collect::<Vec<_>>());
    pool.shutdown().await;
}

async fn readiness_wakes_up_when_there_is_room(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(1))).await;
    let queued = pool.submit(double, 1);
    let mut service = pool.service(double);
    assert!(!is_ready(&mut service).await);
    let mut waits = pin!(async { service.ready().await.unwrap().call(2).await });
    assert!(poll!(waits.as_mut()).is_pending());
    drop(guest);
    assert_eq!(waits.await.unwrap(), 4);
    assert_eq!(queued.await.unwrap(), 2);
    pool.shutdown().await;
}

async fn a_ready_service_has_a_place_until_it_is_called_or_dropped(builder: Builder) {
    not_with_agents!("a queue keeps no places");
    let (pool, guest) = occupied(builder.queue_capacity(2)).await;
    let (mut called, mut dropped): (Double, Double) = (pool.service(double), pool.service(double));
    assert!(is_ready(&mut called).await && is_ready(&mut dropped).await);
    assert!(is_ready(&mut called).await, "it has its place, and takes no other");
    assert_matches!(pool.submit(double, 0).await, Err(TaskError::QueueFull { capacity: 2 }));
    drop(dropped);
    let by_submit = pool.submit(double, 1);
    let by_call = called.call(2);
    assert!(!is_ready(&mut called).await, "its place is used");
    drop(guest);
    assert_eq!((by_submit.await.unwrap(), by_call.await.unwrap()), (2, 4));
    pool.shutdown().await;
}

async fn a_service_that_waits_and_is_dropped_holds_nobody_up(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(0))).await;
    let (mut first, mut second): (Double, Double) = (pool.service(double), pool.service(double));
    assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
    drop(first);
    drop(guest);
    assert_eq!(second.ready().await.unwrap().call(3).await.unwrap(), 6);
    pool.shutdown().await;
}

async fn a_clone_is_not_ready(builder: Builder) {
    not_with_agents!("a queue keeps no places");
    let (pool, guest) = occupied(builder.queue_capacity(1)).await;
    let mut service: Double = pool.service(double);
    assert!(is_ready(&mut service).await);
    let mut clone = service.clone();
    assert!(!is_ready(&mut clone).await);
    assert_matches!(clone.call(1).await, Err(TaskError::QueueFull { .. }));
    let response = service.call(1);
    drop(guest);
    assert_eq!(response.await.unwrap(), 2);
    assert_eq!(clone.ready().await.unwrap().call(2).await.unwrap(), 4);
    pool.shutdown().await;
}

async fn a_call_without_a_place_is_a_submit(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(1))).await;
    let mut service: Double = pool.service(double);
    let accepted = service.call(1);
    assert_matches!(service.call(2).await, Err(TaskError::QueueFull { .. }));
    drop(guest);
    assert_eq!(accepted.await.unwrap(), 2);
    pool.shutdown().await;
    assert_matches!(service.call(3).await, Err(TaskError::ShutDown));
}

async fn a_service_is_not_ready_after_shutdown(builder: Builder) {
    for builder in [builder.clone(), builder.queue_capacity(1)] {
        let pool = builder.open().unwrap();
        let mut service: Double = pool.service(double);
        assert!(is_ready(&mut service).await);
        pool.shutdown().await;
        assert_matches!(service.ready().await.map(drop), Err(TaskError::ShutDown));
        assert_matches!(service.clone().ready().await.map(drop), Err(TaskError::ShutDown));
        assert_matches!(service.oneshot(1).await, Err(TaskError::ShutDown));
    }
}

async fn a_service_that_waits_hears_of_shutdown(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(0))).await;
    let mut service: Double = pool.service(double);
    assert!(!is_ready(&mut service).await);
    let (outcome, ()) = futures::join!(service.ready(), pool.shutdown_now());
    assert_matches!(outcome.map(drop), Err(TaskError::ShutDown));
    guest.gone().await;
}

async fn a_place_is_no_use_after_shutdown(builder: Builder) {
    let pool = builder.queue_capacity(1).open().unwrap();
    let mut service: Double = pool.service(double);
    assert!(is_ready(&mut service).await);
    pool.shutdown().await;
    assert_matches!(service.call(1).await, Err(TaskError::ShutDown));
}

async fn a_dropped_response_cancels_the_task(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(1))).await;
    let ledger = Ledger::new();
    let mut service = pool.service(|place: String| note(&place, "ran"));
    drop(service.ready().await.unwrap().call(ledger.place()));
    assert!(is_ready(&mut service).await, "its place is free again");
    drop(guest);
    pool.shutdown().await;
    assert_eq!((ledger.lines().len(), pool.stats().cancelled()), (0, 1));
}

async fn what_each_task_is_told(builder: Builder) {
    fn terms() -> (Option<String>, bool, u32) {
        let task = worker::current().unwrap();
        if task.attempt() == 1 {
            std::process::abort();
        }
        (task.name().map(str::to_owned), task.deadline().is_some(), task.attempt())
    }
    let pool = builder.clone().open().unwrap();
    let service = pool.service(terms).name("terms").retries(1).timeout(Duration::from_secs(1000));
    for service in [service.clone(), service] {
        assert_eq!(service.oneshot(()).await.unwrap(), (Some("terms".to_owned()), true, 2));
    }
    pool.shutdown().await;

    not_with_agents!("what was handed back, since no worker was free, may be overtaken on its way");
    let (pool, guest) = occupied(builder).await;
    let ledger = Ledger::new();
    let write = |place: String, line: String| note(&place, line);
    let later = pool.service(write).priority(Priority::Low).call((ledger.place(), "low".to_owned()));
    let sooner = pool.service(write).priority(Priority::High).call((ledger.place(), "high".to_owned()));
    drop(guest);
    try_join_all([later, sooner]).await.unwrap();
    assert_eq!(ledger.lines(), ["high", "low"]);
    pool.shutdown().await;
}

async fn errors_come_as_they_are(builder: Builder) {
    let pool = builder.max_message_size(1000).open().unwrap();
    let panics = pool.service(|n: u32| if n > 0 { panic!("{n}") } else { n });
    assert_eq!(panicked(panics.clone().oneshot(3).await).message(), "3");
    assert!(format!("{panics:?}").contains("tower.rs"), "{panics:?}");
    let dies = pool.service(|| -> () { std::process::abort() });
    assert!(died(dies.oneshot(()).await).task().unwrap().contains("tower.rs"));
    let large = pool.service(|text: String| text).oneshot("x".repeat(2000)).await;
    assert_matches!(large, Err(TaskError::TooLarge { limit: 1000, .. }));
    pool.shutdown().await;
}

async fn a_timeout_layer_frees_the_worker(builder: Builder) {
    let pool =
        builder.workers(1).queue_capacity(beside_what_runs(0)).cancel_grace(Duration::ZERO).open().unwrap();
    pool.warm_up().await.unwrap();
    let meeting = Meeting::new();
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(300))
        .service(pool.service(|place: String| attend(&place, "hangs")));
    let error = service.oneshot(meeting.place()).await.unwrap_err();
    assert!(error.is::<tower::timeout::error::Elapsed>(), "{error}");
    // There is no other worker, and no place to wait in.
    assert_eq!(pool.service(double).oneshot(2).await.unwrap(), 4);
    assert_eq!(pool.stats().cancelled(), 1);
    pool.shutdown().await;
}

async fn a_full_queue_is_shed(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(1))).await;
    let mut service = ServiceBuilder::new().load_shed().service(pool.service(double));
    let accepted = service.ready().await.unwrap().call(1);
    for _ in 0..10 {
        let error = service.ready().await.unwrap().call(2).await.unwrap_err();
        assert!(error.is::<tower::load_shed::error::Overloaded>(), "{error}");
    }
    assert_eq!(pool.stats().submitted(), 2, "what is shed does not reach the pool");
    drop(guest);
    assert_eq!(accepted.await.unwrap(), 2);
    assert_eq!(service.ready().await.unwrap().call(3).await.unwrap(), 6);
    pool.shutdown().await;
    let error = service.ready().await.map(drop).unwrap_err();
    assert_matches!(error.downcast_ref(), Some(TaskError::ShutDown));
}

async fn a_concurrency_limit_bounds_what_runs(builder: Builder) {
    let pool = builder.workers(2).open().unwrap();
    let meeting = Meeting::new();
    let service = ServiceBuilder::new()
        .concurrency_limit(1)
        .service(pool.service(|place: String| attend(&place, "one")));
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(service.clone().oneshot(meeting.place()))).collect();
    for _ in 0..3 {
        let guest = meeting.next().await;
        let counts = |stats: PoolStats| (stats.running(), stats.queued());
        shown("one runs, and none waits", || counts(pool.stats()) == (1, 0)).await;
        drop(guest);
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    pool.shutdown().await;
}

/// Repeats what a worker's death has cut short, so many times.
#[derive(Clone)]
struct Repeat(u32);

impl<Q: Clone, R> tower::retry::Policy<Q, R, TaskError> for Repeat {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Q, result: &mut Result<R, TaskError>) -> Option<Ready<()>> {
        if !matches!(result, Err(TaskError::WorkerDied(_))) {
            return None;
        }
        self.0 = self.0.checked_sub(1)?;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Q) -> Option<Q> {
        Some(request.clone())
    }
}

/// Dies unless it has been called so many times before.
fn die_first(place: String, times: usize) -> usize {
    note(&place, "called");
    let calls = std::fs::read_to_string(&place).unwrap().lines().count();
    if calls <= times {
        std::process::abort();
    }
    calls
}

async fn a_retry_layer_repeats_a_crash(builder: Builder) {
    let pool = builder.queue_capacity(1).open().unwrap();
    let service = ServiceBuilder::new().retry(Repeat(2)).service(pool.service(die_first));
    let ledger = Ledger::new();
    assert_eq!(service.clone().oneshot((ledger.place(), 2)).await.unwrap(), 3);
    let ledger = Ledger::new();
    died(service.oneshot((ledger.place(), 9)).await);
    assert_eq!(ledger.lines().len(), 3);
    pool.shutdown().await;
}

async fn a_buffer_waits_for_room(builder: Builder) {
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(1))).await;
    let service = ServiceBuilder::new().buffer(16).service(pool.service(double));
    let calls = (0..10).map(|n| tokio::spawn(service.clone().oneshot(n)));
    let calls: Vec<_> = calls.collect();
    common::eventually("one is in the pool, and nine in the buffer", || pool.stats().queued() == 1).await;
    drop(guest);
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), double(n as u32));
    }
    drop(service);
    pool.shutdown().await;
}

async fn layers_on_layers(builder: Builder) {
    let pool = builder.queue_capacity(4).open().unwrap();
    let service = ServiceBuilder::new()
        .buffer(64)
        .concurrency_limit(4)
        .retry(Repeat(1))
        .service(pool.service(|n: u32| if n == 13 { panic!("13") } else { n * 2 }));
    let service = ServiceBuilder::new().timeout(common::PATIENCE).service(service);
    let outcomes = join_all((0..50).map(|n| service.clone().oneshot(n))).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(value) => assert_eq!(value as usize, n * 2),
            Err(error) => {
                assert_eq!(n, 13);
                assert_matches!(error.downcast_ref(), Some(TaskError::Panicked(_)));
            }
        }
    }
    drop(service);
    pool.shutdown().await;
}

/// However its places were taken, all of them are there in the end.
async fn places_are_not_lost(builder: Builder) {
    not_with_agents!("a queue keeps no places");
    let pool = builder.workers(2).queue_capacity(3).open().unwrap();
    let service = pool.service(|n: u32| match n % 4 {
        0 => std::process::abort(),
        1 => panic!("as told"),
        _ => n,
    });
    for n in 0..100 {
        let mut service = service.clone();
        let response = service.ready().await.unwrap().call(n);
        match n % 5 {
            0 => drop(response),
            1 => drop(poll!(service.ready()).map(drop)),
            _ => drop(response.await),
        }
    }
    let mut all: Vec<_> = (0..5).map(|_| service.clone()).collect();
    for service in &mut all {
        service.ready().await.unwrap();
    }
    assert!(!is_ready(&mut service.clone()).await);
    let last = all.pop().unwrap().call(2);
    assert_eq!(last.await.unwrap(), 2);
    drop(all);
    pool.shutdown().await;
}

fn get_from(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn body(response: axum::response::Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn an_axum_handler_calls_it(builder: Builder) {
    async fn doubled(
        State(service): State<PoolService<u32, u32>>,
        axum::extract::Path(n): axum::extract::Path<u32>,
    ) -> Result<String, (StatusCode, String)> {
        let answer = service.oneshot(n).await;
        let answer = answer.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(answer.to_string())
    }
    let pool = builder.queue_capacity(4).open().unwrap();
    let careful = |n: u32| n.checked_mul(2).expect("too much");
    let app = Router::new().route("/double/{n}", get(doubled)).with_state(pool.service(careful));
    let response = app.clone().oneshot(get_from("/double/21")).await.unwrap();
    assert_eq!((response.status(), body(response).await), (StatusCode::OK, "42".to_owned()));
    let response = app.clone().oneshot(get_from("/double/4000000000")).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body(response).await.contains("too much"));
    drop(app);
    pool.shutdown().await;
}

async fn an_axum_service_sheds(builder: Builder) {
    async fn shed(error: BoxError) -> (StatusCode, String) {
        match error.is::<tower::load_shed::error::Overloaded>() {
            true => (StatusCode::SERVICE_UNAVAILABLE, "busy".to_owned()),
            false => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
    let (pool, guest) = occupied(builder.queue_capacity(beside_what_runs(0))).await;
    let service = ServiceBuilder::new()
        .layer(axum::error_handling::HandleErrorLayer::new(shed))
        .load_shed()
        .map_request(|_: Request<Body>| 21)
        .map_response(|n: u32| axum::response::IntoResponse::into_response(n.to_string()))
        .service(pool.service(double));
    let app = Router::new().route_service("/", service);
    let response = app.clone().oneshot(get_from("/")).await.unwrap();
    assert_eq!(
        (response.status(), body(response).await),
        (StatusCode::SERVICE_UNAVAILABLE, "busy".to_owned())
    );
    drop(guest);
    drop(pool.reserve().await.unwrap());
    let response = app.clone().oneshot(get_from("/")).await.unwrap();
    assert_eq!((response.status(), body(response).await), (StatusCode::OK, "42".to_owned()));
    drop(app);
    pool.shutdown().await;
}
