//! What a worker holds that has done a thousand tasks.

use procession::StartMethod;

use crate::common;
use crate::harness::{Veteran, prepare};

/// Until everything has been as large as it gets, in every place that it comes to.
const WARM_UP: u32 = 5;

const TURNS: u32 = 20;

/// What the allocator may keep beyond that.
const SLACK: u64 = 16 << 20;

fn holds_no_more(method: StartMethod) {
    common::alone(|| {
        let _prepared = prepare();
        let mut veteran = Veteran::start(method);
        let mut take_turns = |turns: u32| {
            for _ in 0..turns {
                veteran.take_turn().unwrap();
            }
            veteran.burden()
        };
        let (warm, old) = (take_turns(WARM_UP), take_turns(TURNS));
        veteran.retire();
        println!("{warm:?}\n{old:?}");
        assert!(old.tasks - warm.tasks > 1000, "{old:?}");
        assert_eq!((old.descriptors, old.threads), (warm.descriptors, warm.threads));
        assert!(old.resident < warm.resident + SLACK, "{old:?}, and before {warm:?}");
    });
}

#[test]
fn a_worker_that_lives_long_under_a_fork_server() {
    holds_no_more(StartMethod::ForkServer);
}

#[test]
fn a_spawned_worker_that_lives_long() {
    holds_no_more(StartMethod::Spawn);
}
