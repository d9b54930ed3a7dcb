//! How the spans end that tasks are in.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use procession::{Builder, TaskError, worker};
use tracing::span::Id;
use tracing::{Subscriber, info, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::common::{Meeting, Open, attend, eventually, server};
use crate::recorder::Recorder;
use crate::the_event;

both! {
    spans_of_a_scoped_registry_close,
    a_cancelled_task_that_goes_on_is_in_no_span,
}

/// The names of the spans that are over, as a registry tells its layers.
#[derive(Clone, Default)]
struct Closed(Arc<Mutex<Vec<&'static str>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Closed {
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let name = context.span(&id).map_or("unknown", |span| span.name());
        self.0.lock().unwrap().push(name);
    }
}

async fn spans_of_a_scoped_registry_close(builder: Builder) {
    let closed = Closed::default();
    let _guard = tracing_subscriber::registry().with(closed.clone()).set_default();
    let pool = builder.workers(1).open().unwrap();
    let task = || info_span!("outer").in_scope(|| info_span!("inner").in_scope(|| info!("within")));
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    assert_eq!(*closed.0.lock().unwrap(), ["inner", "outer", "request"]);
    pool.shutdown().await;
}

async fn a_cancelled_task_that_goes_on_is_in_no_span(builder: Builder) {
    fn task(place: String) {
        let _span = info_span!("waiting").entered();
        info!("begun");
        attend(&place, "task");
        while !worker::current().unwrap().is_cancelled() {
            std::thread::yield_now();
        }
        info!("after");
        info_span!("later").in_scope(|| info!("in a span"));
        attend(&place, "again");
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).cancel_grace(Duration::from_secs(60)).open().unwrap();
    let meeting = Meeting::new();
    let task = info_span!("request").in_scope(|| pool.submit(task, meeting.place()));
    let guest = meeting.next().await;
    eventually("an event", || !recorder.messages().is_empty()).await;
    task.cancel();
    assert_matches!(task.await, Err(TaskError::Cancelled));
    // The worker is not even told yet, perhaps.
    recorder.expect_all_closed();
    drop(guest);
    let guest = meeting.next().await;
    if server().is_some() {
        // What comes once a task was cancelled is told to the agent's program.
        return;
    }
    eventually("the last event", || recorder.messages().len() == 3).await;
    assert_eq!(the_event(&recorder, "after").path, [""; 0]);
    assert_eq!(the_event(&recorder, "in a span").path, ["later"]);
    drop(guest);
    pool.shutdown().await;
    recorder.expect_all_closed();
}
