//! A pool as a `tower::Service`, behind layers: what finds the queue full is turned away, a request has
//! a limit for all that it waits and runs, and one whose worker died is sent again.
//!
//! ```text
//! cargo run --features tower --example tower
//! ```

use std::future::{Ready, ready};
use std::thread::sleep;
use std::time::Duration;

use futures::future::join_all;
use procession::{ProcessPool, TaskError};
use serde::{Deserialize, Serialize};
use tower::load_shed::error::Overloaded;
use tower::retry::Policy;
use tower::timeout::error::Elapsed;
use tower::{ServiceBuilder, ServiceExt};

const LIMIT: Duration = Duration::from_millis(500);

#[derive(Clone, Deserialize, Serialize)]
enum Job {
    Sleep(Duration),
    Crash,
}

type Request = (u32, Job);

fn work(number: u32, job: Job) -> String {
    match job {
        Job::Sleep(time) => sleep(time),
        Job::Crash => std::process::abort(),
    }
    format!("{number} done by process {}", std::process::id())
}

/// Sends a request once more, without what crashed it, when its worker died.
#[derive(Clone)]
struct OnceMore;

impl<T> Policy<Request, T, TaskError> for OnceMore {
    type Future = Ready<()>;

    fn retry(&mut self, request: &mut Request, result: &mut Result<T, TaskError>) -> Option<Ready<()>> {
        let Err(TaskError::WorkerDied(exit)) = result else { return None };
        println!("once more: {exit}");
        request.1 = Job::Sleep(Duration::ZERO);
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(request.clone())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).queue_capacity(1).build()?;
    pool.warm_up().await?;
    let service = ServiceBuilder::new()
        .load_shed()
        .timeout(LIMIT)
        .retry(OnceMore)
        .service(pool.service(work).name("work"));

    let short = Duration::from_millis(20);
    // Two workers, one place to wait in: the fourth is turned away.
    let jobs = [Job::Crash, Job::Sleep(10 * LIMIT), Job::Sleep(short), Job::Sleep(short)];
    let requests = (1..).zip(jobs).map(|request| service.clone().oneshot(request));
    for (number, answer) in (1..).zip(join_all(requests).await) {
        match answer {
            Ok(text) => println!("{text}"),
            Err(error) if error.is::<Overloaded>() => println!("{number} turned away"),
            Err(error) if error.is::<Elapsed>() => println!("{number} took longer than {LIMIT:?}"),
            Err(error) => return Err(anyhow::anyhow!(error)),
        }
    }
    pool.shutdown().await;
    Ok(())
}
