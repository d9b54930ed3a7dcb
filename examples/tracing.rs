//! What a service sees of its tasks with `tracing`: the tree of a request's span, with the spans and events
//! of the workers in it.
//!
//! ```sh
//! cargo run --example tracing --features tracing
//! ```

use procession::{ProcessPool, TaskError};
use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument, Subscriber, info, info_span, warn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// A task. It knows nothing of pools and processes.
fn resize(image: String, width: u32) -> Result<u32, String> {
    let span = info_span!("resize", image, width, bytes = tracing::field::Empty);
    let _entered = span.enter();
    info!("decoding");
    if image.ends_with(".txt") {
        warn!(reason = "not an image", "giving up");
        return Err(format!("{image} is not an image"));
    }
    let bytes = info_span!("encode").in_scope(|| {
        info!(quality = 0.8, "encoding");
        width * 100
    });
    span.record("bytes", bytes);
    Ok(bytes)
}

async fn handle_request(pool: &ProcessPool) -> Result<(), TaskError> {
    info!("two images came in");
    for image in ["cat.png", "notes.txt"] {
        match pool.submit(resize, (image.to_string(), 640)).await? {
            Ok(bytes) => info!(image, bytes, "done"),
            Err(error) => info!(image, error, "refused"),
        }
    }
    // A task that dies has had its say.
    let dies = || {
        warn!("something is wrong here");
        std::process::abort()
    };
    match pool.submit(dies, ()).await {
        Err(TaskError::WorkerDied(exit)) => info!(signal = exit.signal(), "a worker died"),
        Err(error) => return Err(error),
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let tree = Tree::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(tree.clone()))?;

    let pool = ProcessPool::builder().workers(1).build()?;
    handle_request(&pool).instrument(info_span!("request", id = 17)).await?;
    pool.shutdown().await;

    tree.print();
    Ok(())
}

/// Keeps what it is told as a tree.
#[derive(Clone, Default)]
struct Tree(Arc<Mutex<Nodes>>);

#[derive(Default)]
struct Nodes {
    nodes: Vec<Node>,
    /// Which node an open span is.
    open: HashMap<Id, usize>,
}

struct Node {
    text: String,
    parent: Option<usize>,
}

impl Tree {
    fn add(&self, text: String, span: Option<Id>, parent: Option<Id>) {
        let mut nodes = self.0.lock().unwrap();
        let parent = parent.and_then(|id| nodes.open.get(&id).copied());
        nodes.nodes.push(Node { text, parent });
        let node = nodes.nodes.len() - 1;
        nodes.open.extend(span.map(|id| (id, node)));
    }

    fn print(&self) {
        fn print(nodes: &[Node], parent: Option<usize>, depth: usize) {
            for (at, node) in nodes.iter().enumerate().filter(|(_, node)| node.parent == parent) {
                println!("{:indent$}{}", "", node.text, indent = 4 * depth);
                print(nodes, Some(at), depth + 1);
            }
        }
        print(&self.0.lock().unwrap().nodes, None, 0);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Tree {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut text = format!("[{}]", attributes.metadata().name());
        attributes.record(&mut Fields(&mut text));
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.id());
        self.add(text, Some(id.clone()), parent);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut nodes = self.0.lock().unwrap();
        if let Some(node) = nodes.open.get(id).copied() {
            values.record(&mut Fields(&mut nodes.nodes[node].text));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = event.metadata().level().to_string();
        event.record(&mut Fields(&mut text));
        self.add(text, None, context.event_span(event).map(|span| span.id()));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.0.lock().unwrap().open.remove(&id);
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
