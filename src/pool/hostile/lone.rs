//! One peer that does some steps, with honest ones after it.

use super::script::{Line, Script, Step};
use super::{PANICS, PATIENCE, RUNTIME, Stage, count_panics, pool_on};
use crate::ProcessPool;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

// Which reply a line makes.
pub(super) const PART: u8 = 4;
pub(super) const VALUE: u8 = 5;
pub(super) const FAULT: u8 = 7;
pub(super) const ITEM: u8 = 9;
pub(super) const FAULT_ITEM: u8 = 14 * 12 + 9;
pub(super) const PROGRESS: u8 = 11;

pub(super) fn line(kind: u8, body: &[u8]) -> Line {
    Line { kind, offset: 0, place: None, body: body.to_vec() }
}

/// Has a peer begin the first task and then take some steps, with honest ones after it.
pub(super) fn with_peer<F: Future<Output = ()>>(steps: Vec<Step>, body: impl FnOnce(ProcessPool) -> F) {
    let steps = [vec![Step::Take(None)], steps].concat();
    with_stage([Script { greets: true, steps, lingers: true }].into(), true, body);
}

pub(super) fn with_stage<F: Future<Output = ()>>(
    scripts: VecDeque<Script>,
    has_pages: bool,
    body: impl FnOnce(ProcessPool) -> F,
) {
    count_panics();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name(RUNTIME).enable_all().build().unwrap();
    runtime.block_on(async {
        let (scripts, starts) = (Mutex::new(scripts), AtomicUsize::new(0));
        let pool =
            pool_on(Stage { scripts, starts, record: Arc::default(), hostile: Arc::default(), has_pages });
        let played = async {
            body(pool.clone()).await;
            pool.shutdown().await;
        };
        tokio::time::timeout(PATIENCE, played).await.expect("hangs");
    });
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "something panicked on the runtime");
}
