//! Where a panic ends the process, its message arrives all the same, and the pool goes on.

use procession::{ProcessPool, StartMethod, TaskError};

const LINE_OF_PANIC: u32 = line!() + 2;
fn fail(x: u8) -> u8 {
    panic!("aborts with {x}")
}

async fn check(method: StartMethod) {
    let pool = ProcessPool::builder()
        .workers(1)
        .start_method(method)
        .build()
        .unwrap();
    for x in 0..3 {
        let pid = pool.submit(std::process::id, ()).await.unwrap();
        match pool.submit(fail, x).await {
            Err(TaskError::Panicked(panic)) => {
                assert_eq!(panic.message(), format!("aborts with {x}"));
                assert_eq!(panic.location().line(), LINE_OF_PANIC);
            }
            other => panic!("expected a panic, not {other:?}"),
        }
        let next = pool.submit(std::process::id, ()).await.unwrap();
        assert_ne!(next, pid, "the worker was replaced");
    }
    match pool.submit(|| -> u8 { std::process::abort() }, ()).await {
        Err(TaskError::WorkerDied(exit)) => assert_eq!(exit.signal(), Some(6)),
        other => panic!("expected a death, not {other:?}"),
    }
    pool.shutdown().await;
}

#[tokio::main]
async fn main() {
    assert!(cfg!(panic = "abort"));
    check(StartMethod::ForkServer).await;
    check(StartMethod::Spawn).await;
    println!("all is well");
}
