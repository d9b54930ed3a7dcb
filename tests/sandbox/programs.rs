//! What a task executes is in the same sandbox.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use procession::{Builder, Sandbox};

use super::common::{helper_at, helping};
use super::{Host, Stage, all_names, attempt, caged, expect_refused, named, strict};

both! { nothing_escapes_from_a_program, a_program_has_no_more_privileges_than_its_worker }

/// Where the libraries of programs are, on this machine.
pub(super) fn libraries() -> Vec<PathBuf> {
    let places = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store"];
    places.iter().map(PathBuf::from).filter(|path| path.is_dir()).collect()
}

fn with_libraries(sandbox: Sandbox) -> Sandbox {
    libraries().into_iter().fold(sandbox, Sandbox::execute)
}

/// In a task: runs this program as the helper below.
fn execute(program: String, stage: Stage) -> (i32, String) {
    let output = helper_at(Path::new(&program), "programs::tries_all", &stage.to_text()).output().unwrap();
    (output.status.code().unwrap_or(-1), said(&output))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "a program for the test below"]
fn tries_all() {
    let Some(stage) = helping() else { return };
    let outcomes = attempt(what_a_program_may_not(), Stage::from_text(&stage));
    expect_refused(&outcomes, &what_a_program_may_not());
    println!("tried {}", outcomes.len());
}

/// All that is not granted with the permission to execute something.
fn what_a_program_may_not() -> Vec<String> {
    let granted = |name: &String| named(name).granted_by == Some(super::Grant::Execute);
    all_names().into_iter().filter(|name| !granted(name)).collect()
}

async fn nothing_escapes_from_a_program(builder: Builder) {
    let host = Host::new().await;
    let this = std::env::current_exe().unwrap();
    let sandbox = with_libraries(strict(&host.stage).execute(&this));
    let Some(pool) = caged(builder, sandbox) else { return };
    let this = this.to_str().unwrap().to_owned();
    let (code, said) = pool.submit(execute, (this.clone(), host.stage.clone())).await.unwrap();
    assert_eq!(code, 0, "{said}");
    let expected = format!("tried {}", what_a_program_may_not().len());
    assert!(said.contains(&expected), "{said}");
    assert!(!host.heard_by_network() && !host.heard_by_unix_socket());
    pool.shutdown().await;
}

/// Also where that worker runs as root.
async fn a_program_has_no_more_privileges_than_its_worker(builder: Builder) {
    fn status() -> String {
        let output = Command::new("/bin/cat").arg("/proc/self/status").output().unwrap();
        said(&output)
    }
    let sandbox = with_libraries(Sandbox::new().read("/proc").execute("/bin/cat"));
    let Some(pool) = caged(builder.workers(1), sandbox) else { return };
    let theirs = pool.submit(status, ()).await.unwrap();
    let pid = super::common::a_worker(&pool).await;
    let workers = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for status in [&theirs, &workers] {
        for (name, value) in [
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            assert!(status.contains(&format!("{name}:\t{value}\n")), "{name}: {status}");
        }
    }
    pool.shutdown().await;
}
