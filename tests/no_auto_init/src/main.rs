//! Calls `procession::init()` where INIT is set. Its workers, which enter `main` again, inherit that.
//! Every entry adds a line to the file ENTRIES.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use procession::{ProcessPool, StartMethod};

fn count_this_entry() {
    let path = std::env::var("ENTRIES").unwrap();
    let mut entries = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    entries
        .write_all(format!("{}\n", std::process::id()).as_bytes())
        .unwrap();
}

async fn ask(method: StartMethod) -> Result<u64, String> {
    let builder = ProcessPool::builder().workers(2).start_method(method);
    let pool = builder.build().map_err(|error| describe(&error))?;
    let outcome = pool.submit(|x: u64, y: u64| x * y, (6, 7)).await;
    pool.shutdown().await;
    outcome.map_err(|error| describe(&error))
}

/// An error and what caused it.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

fn main() -> ExitCode {
    count_this_entry();
    if std::env::var_os("INIT").is_some() {
        procession::init();
    }
    let method = match std::env::var("METHOD").unwrap().as_str() {
        "ForkServer" => StartMethod::ForkServer,
        _ => StartMethod::Spawn,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(ask(method)) {
        Ok(answer) => {
            println!("the answer is {answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("refused: {error}");
            ExitCode::FAILURE
        }
    }
}
