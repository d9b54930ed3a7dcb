//! Runs `examples/stream.rs` and `examples/shared_model.rs` and checks what they print.
//!
//! `cargo test` builds the examples before it runs this file. `cargo test --test stream_examples` does
//! not: run `cargo build --examples` first, or the programs are missing or old.

#![cfg(all(target_os = "linux", feature = "auto-init"))]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::example;

fn run(name: &str, arguments: &[&OsStr]) -> Output {
    Command::new(example(name)).args(arguments).stdin(Stdio::null()).output().expect("the example starts")
}

fn run_well(name: &str, arguments: &[&OsStr]) -> Vec<String> {
    let output = run(name, arguments);
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "it has nothing to complain about");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Two hundred files in twenty folders.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..200 {
        let sub = folder.path().join(format!("sub{:02}", number / 10));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("file{number:03}")), vec![b'a'; number]).unwrap();
    }
    folder
}

#[test]
fn every_file_of_a_folder_is_streamed_in_order() {
    let folder = folder();
    fs::write(folder.path().join(OsStr::from_bytes(b"zz-not-\xff-utf8")), "abc").unwrap();
    let lines = run_well("stream", &[folder.path().as_os_str()]);
    assert_eq!(lines.len(), 203);
    for (number, line) in lines[..200].iter().enumerate() {
        let (bytes, path) = line.trim_start().split_once(' ').unwrap();
        assert_eq!(bytes, number.to_string());
        assert!(path.ends_with(&format!("file{number:03}")), "{path}");
    }
    assert!(lines[200].contains("zz-not-"), "{}", lines[200]);
    assert_eq!(lines[201], format!("files: 201, bytes: {}, errors: 0", 199 * 200 / 2 + 3));
    assert!(lines[202].starts_with("folders: 21, the last of them: ") && lines[202].ends_with("sub19"));
}

#[test]
fn who_has_enough_stops_the_walk_and_keeps_the_worker() {
    let lines = run_well("stream", &["--first".as_ref(), "5".as_ref(), folder().path().as_os_str()]);
    assert_eq!(lines[5], "files: 5, bytes: 10, errors: 0");
    let (_, rest) = lines.last().unwrap().split_once("the walk of worker ").unwrap();
    let (walker, next) = rest.split_once("; the next task ran in worker ").unwrap();
    assert_eq!(walker, next);
}

#[test]
fn what_cannot_be_read_is_an_error_and_no_end() {
    let output = run("stream", &[Path::new("/nowhere/at/all").as_os_str()]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("files: 0, bytes: 0, errors: 1"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/at/all"));
    assert!(!run("stream", &["--first".as_ref(), "many".as_ref()]).status.success());
}

/// The numbers behind a word, on the lines that begin with some text.
fn numbers(lines: &[String], start: &str, word: &str) -> Vec<f64> {
    let rests = lines.iter().filter(|line| line.starts_with(start)).map(|line| line.split_once(word));
    let number = |rest: &str| rest.split([',', ' ']).next().and_then(|text| text.parse().ok());
    rests.map(|found| found.and_then(|(_, rest)| number(rest)).expect("a number")).collect()
}

#[test]
fn a_preloaded_model_is_there_once_and_one_of_an_initializer_in_each_worker() {
    const MODEL: f64 = 24.0;
    let lines = run_well("shared_model", &["24".as_ref(), "3".as_ref()]);
    assert_eq!(lines[0], "a model of 24 MiB, 3 workers");
    for worker in ["preload: worker", "initializer: worker"] {
        let resident = numbers(&lines, worker, "resident ");
        assert!(resident.len() == 3 && resident.iter().all(|mib| *mib >= MODEL), "{lines:?}");
    }
    let private = numbers(&lines, "preload: worker", "private ");
    assert!(private.iter().all(|mib| *mib < MODEL / 2.0), "{lines:?}");
    let private = numbers(&lines, "initializer: worker", "private ");
    assert!(private.iter().all(|mib| *mib >= MODEL), "{lines:?}");
    let shared = numbers(&lines, "preload: all", "together ")[0];
    let separate = numbers(&lines, "initializer: all", "together ")[0];
    assert!(shared >= MODEL && separate >= 3.0 * MODEL && shared < separate / 2.0, "{lines:?}");
    assert_eq!(numbers(&lines, "preload: first", "result after ").len(), 1);
}
