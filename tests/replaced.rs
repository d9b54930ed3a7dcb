//! A program whose file is replaced or removed while it runs, as an upgrade does, still starts
//! workers, and of its own build.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use common::{Given, a_worker, helper_at, helping};
use procession::{Builder, StartMethod};

both! {
    sync a_program_whose_file_is_removed_starts_workers,
    sync a_program_whose_file_is_replaced_starts_workers,
}

/// Starts a copy of this program, does something to its file, and then lets it have a pool.
fn upgrade(method: StartMethod, change: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
    let mut program = helper_at(&file, "starts_workers_late", &format!("{method:?}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    while line != "begun\n" {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended");
    }
    change(&file);
    drop(program.stdin.take());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(program.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("a worker said 42"), "{rest}");
}

#[test]
#[ignore = "a program for the tests around it"]
fn starts_workers_late() {
    let Some(word) = helping() else { return };
    println!("\nbegun");
    std::io::read_to_string(std::io::stdin()).unwrap();
    let method = match word.as_str() {
        "ForkServer" => StartMethod::ForkServer,
        _ => StartMethod::Spawn,
    };
    common::multi_thread().block_on(async {
        let pool = Builder::given(method).build().unwrap();
        assert_ne!(a_worker(&pool).await, std::process::id());
        let answer = pool.submit(|x: u64, y: u64| x * y, (6, 7)).await.unwrap();
        pool.shutdown().await;
        println!("a worker said {answer}");
    });
}

fn a_program_whose_file_is_removed_starts_workers(method: StartMethod) {
    here_only!("elsewhere the program is found by its path");
    upgrade(method, |file| fs::remove_file(file).unwrap());
}

fn a_program_whose_file_is_replaced_starts_workers(method: StartMethod) {
    here_only!("elsewhere the program is found by its path");
    upgrade(method, |file| {
        let other = file.with_extension("new");
        fs::copy("/bin/true", &other).unwrap();
        fs::rename(&other, file).unwrap();
    });
}
