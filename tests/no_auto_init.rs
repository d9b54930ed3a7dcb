//! Programs that are built without the feature `auto-init`.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::process::{Command, Output};

use procession::StartMethod;

both! {
    sync init_makes_workers,
    sync without_init_the_pool_says_so_and_does_not_multiply,
}

/// Runs the program, and counts how often its `main` was entered.
fn run(method: StartMethod, init: bool) -> (Output, usize) {
    let entries = common::Ledger::new();
    let mut program = Command::new(common::built_program("no_auto_init", "procession-no_auto_init"));
    program.env("METHOD", format!("{method:?}")).env("ENTRIES", entries.place());
    program.env_remove("INIT");
    if init {
        program.env("INIT", "1");
    }
    let output = program.output().unwrap();
    (output, entries.lines().len())
}

fn init_makes_workers(method: StartMethod) {
    let (output, _) = run(method, true);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the answer is 42\n");
}

fn without_init_the_pool_says_so_and_does_not_multiply(method: StartMethod) {
    let (output, entries) = run(method, false);
    let told = String::from_utf8_lossy(&output.stdout);
    let last = told.lines().last().unwrap_or_default();
    assert!(!output.status.success(), "{told}");
    assert!(last.starts_with("refused: ") && last.contains("procession::init()"), "{told}");
    // And it blames whom it started.
    assert_eq!(last.contains("fork server"), method == StartMethod::ForkServer, "{told}");
    assert!((1..=40).contains(&entries), "main was entered {entries} times");
}
