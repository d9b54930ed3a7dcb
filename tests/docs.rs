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

const PAGES: [&str; 5] = ["README.md", "coming-from.md", "recipes.md", "services.md", "troubleshooting.md"];

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new("docs/guide").join(name)).unwrap()
}

/// The variants of an enum, as its source has them.
fn variants(file: &str, name: &str) -> Vec<String> {
    let source = std::fs::read_to_string(file).unwrap();
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let at_margin = body.lines().filter_map(|line| line.strip_prefix("    "));
    let starts = at_margin.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    let word = |line: &str| line.chars().take_while(|c| c.is_alphanumeric()).collect();
    starts.map(word).collect()
}

/// The entries on the page about errors: what stands below each heading of the third level.
fn entries() -> Vec<(String, String)> {
    let text = page("troubleshooting.md");
    let parts = text.split("\n### `").skip(1).map(|part| part.split("\n## ").next().unwrap());
    parts.map(|part| part.split_once("`\n").map(|(name, text)| (name.into(), text.into())).unwrap()).collect()
}

#[test]
fn every_error_has_its_entry() {
    let enums = [
        ("src/task/error.rs", "TaskError"),
        ("src/task/exit.rs", "ExitCause"),
        ("src/task/error.rs", "CodecStage"),
        ("src/task/error.rs", "PoolError"),
    ];
    let all = enums.iter().flat_map(|(file, name)| {
        variants(file, name).into_iter().map(move |variant| format!("{name}::{variant}"))
    });
    let all: Vec<String> = all.collect();
    for known in ["TaskError::Panicked", "TaskError::PoolBroken", "ExitCause::Unknown", "PoolError::ShutDown"]
    {
        assert!(all.iter().any(|variant| variant == known), "the enums were not understood: {all:?}");
    }
    let entries = entries();
    assert_eq!(entries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), all, "in the enums' order");
    for (name, text) in entries {
        for part in ["\n**Causes.** ", "\n**Causes.**\n", "\n**What to do.** "].chunks(2) {
            let has = part.iter().any(|start| text.split(start).nth(1).is_some_and(|rest| rest.len() > 5));
            assert!(has, "`{name}` has no {part:?}");
        }
    }
}

/// The ids that headings have, in rustdoc as on sites that show Markdown.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let slug = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

/// Links by name that lead to files, as `[name]: file` says at the end of a page.
fn definitions(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('['));
    lines.filter_map(|line| line.split_once("]: ")).collect()
}

#[test]
fn links_of_the_guide_lead_somewhere() {
    let shown = std::fs::read_to_string("src/guide.rs").unwrap();
    for name in PAGES {
        let text = page(name);
        let anchors = anchors(&text);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let anchor = target.strip_prefix('#').unwrap_or_else(|| {
                panic!("`{target}` in {name} leads nowhere in rustdoc: name the link, and define it below")
            });
            assert!(anchors.iter().any(|known| known == anchor), "{name} has no heading for #{anchor}");
        }
        let start = shown.find(&format!("docs/guide/{name}")).unwrap();
        let module = shown[..start].rfind("pub mod").unwrap_or(0);
        for (link, target) in definitions(&text) {
            let (file, _) = target.split_once('#').unwrap_or((target, ""));
            assert!(Path::new("docs/guide").join(file).is_file(), "{name}: there is no {target}");
            let definition = format!("\"[{link}]: ");
            assert!(shown[module..start].contains(&definition), "src/guide.rs has no target for [{link}]");
            assert!(text.contains(&format!("[{link}]")), "{name} does not use [{link}]");
        }
    }
}

#[test]
fn every_page_of_the_guide_is_shown() {
    let shown = std::fs::read_to_string("src/guide.rs").unwrap();
    let entries = std::fs::read_dir("docs/guide").unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, PAGES);
    for name in files {
        assert!(shown.contains(&format!("include_str!(\"../docs/guide/{name}\")")), "{name} is not shown");
    }
}
