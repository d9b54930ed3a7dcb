//! What tasks write within a sandbox, and where it arrives.

use procession::{Builder, Sandbox, StartMethod, WorkerStdio};

use super::caged;
use super::common::{Given, died, eventually, helper, helping};

both! { output_is_captured, sync output_is_inherited_or_lost }

fn say(word: String) {
    println!("out: {word}");
    eprintln!("err: {word}");
}

async fn output_is_captured(builder: Builder) {
    let builder = builder.workers(1).stdout(WorkerStdio::Capture).stderr(WorkerStdio::Capture);
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    pool.submit(say, "word".to_owned()).await.unwrap();
    eventually("both tails arrive", || {
        let worker = &pool.workers()[0];
        worker.stdout_tail().contains("out: word") && worker.stderr_tail().contains("err: word")
    })
    .await;
    let exit = died(pool.submit(|| -> u8 { std::process::exit(1) }, ()).await);
    assert!(exit.stderr_tail().contains("err: word") && exit.stdout_tail().contains("out: word"));
    pool.shutdown().await;
}

#[test]
#[ignore = "a program for the test below"]
fn says_something() {
    let Some(word) = helping() else { return };
    let (method, stdio) = word.split_once(' ').unwrap();
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    let stdio = if stdio == "null" { WorkerStdio::Null } else { WorkerStdio::Inherit };
    super::common::multi_thread().block_on(async {
        let builder = Builder::given(method).stdout(stdio).stderr(stdio);
        let Some(pool) = caged(builder, Sandbox::new()) else { return };
        for i in 0..20 {
            pool.submit(say, format!("line {i}.")).await.unwrap();
        }
        pool.shutdown().await;
    });
    println!("the program is done");
}

fn output_is_inherited_or_lost(method: StartMethod) {
    for (stdio, lines) in [("inherit", 20), ("null", 0)] {
        let output = helper("output::says_something", &format!("{method:?} {stdio}")).output().unwrap();
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{out}\n{err}");
        if err.contains("skipped: ") {
            continue;
        }
        assert!(out.contains("the program is done"), "{out}\n{err}");
        assert_eq!((out.matches("out: line ").count(), err.matches("err: line ").count()), (lines, lines));
    }
}
