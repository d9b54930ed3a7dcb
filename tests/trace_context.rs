//! A task's place in a distributed trace goes along with it.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::{Open, current_thread};
use futures::StreamExt;
use procession::{Builder, ProcessPool, TraceContext, worker};

both! {
    a_task_without_a_trace_has_none,
    a_task_has_the_trace_that_it_was_given,
    the_pool_asks_for_the_trace_at_each_submit,
    what_a_task_was_given_goes_before_what_the_pool_is_told,
    the_items_of_a_map_have_the_trace_of_the_map,
    retries_have_the_same_trace,
    tasks_of_tasks_have_the_same_trace,
    an_initializer_has_no_trace,
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn context(span: u32) -> TraceContext {
    TraceContext::parse(&format!("00-{TRACE}-{span:016x}-01"), "vendor=some").unwrap()
}

/// What the task sees of its trace.
fn seen() -> Option<TraceContext> {
    worker::current()?.trace_context().cloned()
}

/// What the pool is told: another span each time.
fn next() -> Option<TraceContext> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    Some(context(NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn span_of(context: Option<TraceContext>) -> u32 {
    u32::from_str_radix(context.expect("there is a trace").parent_id(), 16).unwrap()
}

async fn a_task_without_a_trace_has_none(builder: Builder) {
    let pool = builder.open().unwrap();
    assert_eq!(pool.submit(seen, ()).await.unwrap(), None);
    pool.shutdown().await;
}

async fn a_task_has_the_trace_that_it_was_given(builder: Builder) {
    let pool = builder.open().unwrap();
    let given = context(5);
    let seen = pool.task(seen, ()).trace_context(given.clone()).await.unwrap().unwrap();
    assert_eq!(seen, given);
    assert_eq!((seen.trace_id(), seen.tracestate(), seen.sampled()), (TRACE, "vendor=some", true));
    assert_eq!(pool.submit(self::seen, ()).await.unwrap(), None);
    pool.shutdown().await;
}

async fn the_pool_asks_for_the_trace_at_each_submit(builder: Builder) {
    let pool = builder.trace_context(next).open().unwrap();
    let first = span_of(pool.submit(seen, ()).await.unwrap());
    let handles: Vec<_> = (0..10).map(|_| pool.submit(seen, ())).collect();
    for (n, handle) in (1..).zip(handles) {
        assert!(span_of(handle.await.unwrap()) >= first + n);
    }
    pool.shutdown().await;
}

async fn what_a_task_was_given_goes_before_what_the_pool_is_told(builder: Builder) {
    let pool = builder.trace_context(next).open().unwrap();
    let given = context(0xffff_ffff);
    assert_eq!(pool.task(seen, ()).trace_context(given.clone()).await.unwrap(), Some(given));
    pool.shutdown().await;
}

async fn the_items_of_a_map_have_the_trace_of_the_map(builder: Builder) {
    let pool = builder.trace_context(next).open().unwrap();
    let spans: Vec<_> = pool.map(|_: u32| seen(), 0..100).map(|seen| span_of(seen.unwrap())).collect().await;
    assert!(spans.iter().all(|span| *span == spans[0]), "{spans:?}");
    pool.shutdown().await;
}

async fn retries_have_the_same_trace(builder: Builder) {
    fn third_time_lucky() -> (u32, Option<TraceContext>) {
        let attempt = worker::current().unwrap().attempt();
        if attempt < 3 {
            std::process::abort();
        }
        (attempt, seen())
    }
    let pool = builder.open().unwrap();
    let outcome = pool.task(third_time_lucky, ()).retries(5).trace_context(context(9)).await;
    assert_eq!(outcome.unwrap(), (3, Some(context(9))));
    pool.shutdown().await;
}

async fn tasks_of_tasks_have_the_same_trace(builder: Builder) {
    fn outer() -> Vec<Option<TraceContext>> {
        current_thread().block_on(async {
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            let told = ProcessPool::builder().workers(1).trace_context(|| Some(context(7))).build().unwrap();
            let inherited = pool.submit(seen, ()).await.unwrap();
            let given = pool.task(seen, ()).trace_context(context(8)).await.unwrap();
            let asked_for = told.submit(seen, ()).await.unwrap();
            pool.shutdown().await;
            told.shutdown().await;
            vec![inherited, given, asked_for]
        })
    }
    let pool = builder.open().unwrap();
    let seen = pool.task(outer, ()).trace_context(context(3)).await.unwrap();
    assert_eq!(seen, [3, 8, 7].map(|span| Some(context(span))));
    assert_eq!(pool.submit(outer, ()).await.unwrap(), [None, Some(context(8)), Some(context(7))]);
    pool.shutdown().await;
}

async fn an_initializer_has_no_trace(builder: Builder) {
    fn initializer() {
        assert_eq!(seen(), None);
    }
    let pool = builder.trace_context(next).initializer(initializer, ()).open().unwrap();
    assert!(pool.submit(seen, ()).await.unwrap().is_some());
    pool.shutdown().await;
}
