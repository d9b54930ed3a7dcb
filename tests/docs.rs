//! The tests that the documentation names are there.

use std::path::{Path, PathBuf};

/// What `docs/reliability.md` names as `file: test`, a path of the project or the name of a test file.
fn named() -> Vec<(String, String)> {
    let text = std::fs::read_to_string("docs/reliability.md").unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let pairs = quoted.filter_map(|name| name.split_once(": "));
    pairs.map(|(file, test)| (file.into(), test.into())).collect()
}

fn sources(file: &str) -> Vec<PathBuf> {
    if file.starts_with("src/") {
        return vec![file.into()];
    }
    let root = Path::new("tests").join(file);
    let inner = walkdir::WalkDir::new(&root).into_iter().flatten().map(|entry| entry.into_path());
    inner.chain([root.with_extension("rs")]).filter(|path| path.is_file()).collect()
}

#[test]
fn the_tests_that_hold_the_promises_are_there() {
    let named = named();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    for (file, test) in named {
        let is_there = sources(&file).iter().any(|path| {
            let source = std::fs::read_to_string(path).unwrap();
            source.contains(&format!("fn {test}(")) || source.contains(&format!("{test},"))
        });
        assert!(is_there, "there is no test `{test}` in `{file}`");
    }
}
