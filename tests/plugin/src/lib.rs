//! A function here is not in the image of the program that loads this, so no worker could find it.

use procession::{ProcessPool, TaskError};

fn double(x: u64) -> u64 {
    x * 2
}

/// Returns 0 where the pool refuses the task with [`TaskError::NotInMainImage`].
#[unsafe(no_mangle)]
pub extern "C" fn submit_a_task_of_this_plugin() -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let pool = match ProcessPool::builder().workers(1).build() {
            Ok(pool) => pool,
            Err(error) => {
                eprintln!("build: {error}");
                return 1;
            }
        };
        let outcome = pool.submit(double, 21).await;
        pool.shutdown().await;
        match outcome {
            Err(TaskError::NotInMainImage { task, .. }) if task.contains("double") => 0,
            other => {
                eprintln!("submit: {other:?}");
                2
            }
        }
    })
}
