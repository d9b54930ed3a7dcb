//! The pool as it is, for the page and for monitoring.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use futures::stream;
use procession::{Distribution, WorkerInfo, WorkerState};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::interval;

use crate::service::Service;

/// How often the page hears of the pool.
const PERIOD: Duration = Duration::from_millis(250);

pub(crate) fn snapshot(service: &Service) -> Value {
    let stats = service.pool.stats();
    let mut workers = service.pool.workers();
    workers.sort_by_key(WorkerInfo::started);
    json!({
        "uploads": service.uploads(),
        "queued": stats.queued(),
        "running": stats.running(),
        "submitted": stats.submitted(),
        "succeeded": stats.succeeded(),
        "failed": stats.failed(),
        "cancelled": stats.cancelled(),
        "timed_out": stats.timed_out(),
        "workers_started": stats.workers_started(),
        "workers_died": stats.workers_died(),
        "queue_time": times(stats.queue_time()),
        "run_time": times(stats.run_time()),
        "answers": service.answers(),
        "workers": workers.iter().map(worker).collect::<Vec<_>>(),
    })
}

fn worker(info: &WorkerInfo) -> Value {
    let state = match info.state() {
        WorkerState::Starting => "starting",
        WorkerState::Idle => "idle",
        WorkerState::Busy => "busy",
        WorkerState::Retiring => "retiring",
        _ => "unknown",
    };
    json!({
        "pid": info.pid(),
        "state": state,
        "done": info.tasks_done(),
        "task": info.current_task().map(|task| task.get()),
        "rss": info.rss(),
        "age_ms": info.started().elapsed().as_millis() as u64,
    })
}

/// In microseconds.
fn times(times: &Distribution) -> Value {
    let micros = |time: Duration| time.as_micros() as u64;
    json!({
        "count": times.count(),
        "mean_us": micros(times.mean()),
        "p50_us": micros(times.p50()),
        "p90_us": micros(times.p90()),
        "p99_us": micros(times.p99()),
        "max_us": micros(times.max()),
    })
}

/// Makes snapshots for as long as it runs: one for all who look, and none while nobody does. When it ends,
/// so do the streams of events, which would keep the service from ending.
pub(crate) async fn watch(service: Arc<Service>, live: watch::Sender<String>) {
    let mut ticks = interval(PERIOD);
    loop {
        ticks.tick().await;
        // One receiver belongs to the service.
        if live.receiver_count() > 1 {
            live.send_replace(snapshot(&service).to_string());
        }
    }
}

pub(crate) async fn events(State(service): State<Arc<Service>>) -> impl IntoResponse {
    let events = stream::unfold(service.live.clone(), async |mut live| {
        live.changed().await.ok()?;
        let snapshot = live.borrow_and_update().clone();
        Some((Ok::<_, Infallible>(Event::default().data(snapshot)), live))
    });
    Sse::new(events)
}
