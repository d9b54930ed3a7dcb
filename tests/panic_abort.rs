//! Programs that are built with `panic = "abort"`.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::process::Command;

#[test]
fn a_panic_that_aborts_its_worker_is_told_as_a_panic() {
    let program = common::built_program("abort", "procession-abort");
    common::alone(|| {
        let output = Command::new(program).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{messages}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "all is well\n");
    });
}
