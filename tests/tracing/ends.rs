//! How the spans end that tasks are in.

use std::sync::{Arc, Mutex};

use procession::Builder;
use tracing::span::Id;
use tracing::{Subscriber, info, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

both! {
    spans_of_a_scoped_registry_close,
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
    let pool = builder.workers(1).build().unwrap();
    let task = || info_span!("outer").in_scope(|| info_span!("inner").in_scope(|| info!("within")));
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    assert_eq!(*closed.0.lock().unwrap(), ["inner", "outer", "request"]);
    pool.shutdown().await;
}
