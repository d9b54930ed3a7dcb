//! The program `examples/graceful_shutdown.rs`, as its user would run it.
//!
//! As with the other examples, `cargo test` builds it before it runs this file, and
//! `cargo test --test signals` does not.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::common::{descendants, eventually, example, run};
use crate::session::{signal, stop};

struct Example {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(args: &[&str]) -> Example {
        let mut command = Command::new(example("graceful_shutdown"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the example starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Example { child, lines }
    }

    fn signal(&self, kind: Signal) {
        signal(self.child.id().unwrap(), kind);
    }

    async fn line(&mut self) -> String {
        self.lines.next_line().await.unwrap().expect("a line")
    }

    /// Expects it to end well; the numbers in its last line.
    async fn end(mut self) -> [u64; 3] {
        let line = self.line().await;
        let output = self.child.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let number = |part: &str, name: &str| part.strip_prefix(name).expect(&line).parse().unwrap();
        let parts: Vec<_> = line.split(", ").collect();
        let [accepted, finished, failed] = parts[..] else { panic!("{line}") };
        [number(accepted, "accepted: "), number(finished, "finished: "), number(failed, "failed: ")]
    }
}

#[test]
fn it_ends_by_itself_and_finishes_what_it_has_accepted() {
    run(async {
        let mut example = Example::start(&[]);
        let line = example.line().await;
        assert!(line.starts_with("SIGTERM: finishing "), "{line}");
        let [accepted, finished, failed] = example.end().await;
        assert!(accepted > 0);
        assert_eq!([finished, failed], [accepted, 0]);
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    run(async {
        let mut example = Example::start(&["--serve"]);
        let id = example.child.id().unwrap();
        // It serves when there is a worker; the fork server is not one.
        eventually("a worker", || workers(id).next().is_some()).await;
        for pid in workers(id) {
            stop(pid).await;
        }
        example.signal(Signal::HUP);
        let line = example.line().await;
        assert!(line.starts_with("SIGHUP: finishing "), "{line}");
        // It would wait for those that are stopped.
        example.signal(Signal::INT);
        assert_eq!(example.line().await, "SIGINT again: ending at once");
        let [accepted, finished, failed] = example.end().await;
        assert_eq!(accepted, finished + failed);
    });
}

/// Those below the fork server, which is below the program.
fn workers(program: u32) -> impl Iterator<Item = u32> {
    let below = descendants(program).into_iter();
    below.filter(move |process| process.parent != program && process.state != 'Z').map(|process| process.pid)
}
