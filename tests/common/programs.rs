//! Whole programs that a test starts: its own binary once more, or a small crate beside the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const HELPING: &str = "PROCESSION_TEST_HELPER";

/// This test binary as a program that runs the one ignored test `name`, which is to begin with
/// [`helping`]. `word` is what that will return.
pub fn helper(name: &str, word: &str) -> Command {
    helper_at(&std::env::current_exe().unwrap(), name, word)
}

/// The same, of a copy of it.
pub fn helper_at(program: &Path, name: &str, word: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]).env(HELPING, word);
    command
}

/// The word that this program was started with as a [`helper`], if it was.
pub fn helping() -> Option<String> {
    std::env::var(HELPING).ok()
}

/// The program of an example, which cargo puts beside the directory that this test was built into.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.ancestors().nth(2).expect("tests lie in `<profile>/deps`");
    let path = profile.join("examples").join(name);
    assert!(
        path.is_file(),
        "no example at {}: run `cargo test` without `--test`, or `cargo build --all-features --examples` first",
        path.display()
    );
    path
}

/// Builds the crate `tests/{name}`, whose package is called `procession-{name}`, and returns the path
/// of `artifact` in its output. Needs no network, and its build is kept beside this one's.
pub fn built_program(name: &str, artifact: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = root.join("tests").join(name);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join(format!("tests-{name}"));
    // One build of it at a time: tests may be processes of their own.
    let turn = fs::File::create(target.with_extension("turn")).unwrap();
    turn.lock().unwrap();
    // The same versions as this build has, all of which are on this machine.
    fs::copy(root.join("Cargo.lock"), home.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--manifest-path"])
        .arg(home.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the build of {name} fails:\n{messages}");
    target.join("debug").join(artifact)
}
