//! Runs `examples/untrusted_images.rs` and checks what it prints.
//!
//! `cargo test` builds the examples before it runs this file. `cargo test --test untrusted_images`
//! does not: run `cargo build --examples` first, or the program is missing or old.

#![cfg(all(target_os = "linux", feature = "auto-init"))]

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::example;
use image::{ImageFormat, RgbImage};
use procession::{PoolError, ProcessPool, Sandbox};

/// What it prints, line by line; `None` where there is no sandbox.
#[tokio::main(flavor = "current_thread")]
async fn lines(arguments: &[PathBuf]) -> Option<Vec<String>> {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    if let Err(PoolError::NotConfined { reason }) = ProcessPool::builder().sandbox(Sandbox::new()).build() {
        assert!(!output.status.success() && error.contains(&reason), "{error}");
        eprintln!("skipped: there is no sandbox here: {reason}");
        return None;
    }
    assert!(output.status.success(), "{}: {error}", output.status);
    assert_eq!(error, "", "it has nothing to complain about");
    let said = String::from_utf8(output.stdout).expect("it prints UTF-8");
    Some(said.lines().map(str::to_owned).collect())
}

fn run(arguments: &[PathBuf]) -> Output {
    Command::new(example("untrusted_images"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the example starts")
}

#[test]
fn each_sample_gets_its_verdict() {
    let Some(lines) = lines(&[]) else { return };
    let expected = [
        "good PNG: 320 x 200, #",
        "good JPEG: 320 x 200, #",
        "truncated PNG: refused: ",
        "truncated JPEG: refused: ",
        "decompression bomb: stopped: ",
        "random bytes: refused: ",
        "thief: refused: /etc/passwd: ",
        "spinner: stopped: the task timed out after ",
        "good PNG again: 320 x 200, #",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line} is not {start}..");
    }
    assert!(lines[4].contains("memory"), "{}", lines[4]);
    assert_eq!(lines[0].split_once(": ").unwrap().1, lines[8].split_once(": ").unwrap().1);
}

#[test]
fn files_on_the_command_line_are_decoded_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let [good, small, bad] = ["good.png", "small.jpg", "bad.gif"].map(|name| dir.path().join(name));
    RgbImage::from_pixel(30, 20, image::Rgb([16, 32, 255]))
        .save_with_format(&good, ImageFormat::Png)
        .unwrap();
    RgbImage::from_pixel(8, 8, image::Rgb([128; 3])).save_with_format(&small, ImageFormat::Jpeg).unwrap();
    std::fs::write(&bad, "no image at all").unwrap();
    let Some(lines) = lines(&[bad.clone(), good.clone(), small.clone()]) else { return };
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].starts_with(&format!("{}: refused: ", bad.display())), "{}", lines[0]);
    assert_eq!(lines[1], format!("{}: 30 x 20, #1020ff", good.display()));
    assert!(lines[2].starts_with(&format!("{}: 8 x 8, #", small.display())), "{}", lines[2]);
}

#[test]
fn a_file_that_is_missing_ends_it() {
    let output = run(&["/no/such/image.png".into()]);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("a worker could not be given its limits or its sandbox") {
        eprintln!("skipped: there is no sandbox here: {error}");
        return;
    }
    assert!(error.contains("No such file"), "{output:?}");
}
