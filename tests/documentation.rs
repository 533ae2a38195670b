//! The pages of `docs/` against the code.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of a page's table rows.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().filter(|line| line.starts_with("| ") && line.ends_with(" |"));
    lines.map(|line| line[2..line.len() - 2].split(" | ").map(str::trim).collect()).collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Rust's files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every metric that the code describes: name, kind, meaning.
fn described() -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut files = Vec::new();
    for folder in [
        "importer/src",
        "importer/source/src",
        "streams/src",
        "streams/archive/src",
        "joiner/src",
        "joiner/checkpoints/src",
        "joiner/sinks/src",
        "joiner/api/src",
        "src",
    ] {
        sources(&root().join(folder), &mut files);
    }
    for file in files.iter().filter(|file| file.ends_with("metrics.rs")) {
        let text = read(file);
        let constant = |line: &str| -> Option<(String, String)> {
            let (name, value) = line.split_once("const ")?.1.split_once(": &str = \"tributary_")?;
            Some((name.to_owned(), format!("tributary_{}", value.strip_suffix("\";")?)))
        };
        let constants: BTreeMap<String, String> = text.lines().filter_map(constant).collect();
        names.extend(constants.values().cloned());
        for call in text.split("describe_").skip(1) {
            let Some((kind, rest)) = call.split_once("!(") else { continue };
            if !["counter", "gauge", "histogram"].contains(&kind) {
                continue;
            }
            let (arguments, _) = rest.split_once(");").unwrap();
            let name = arguments.split(',').next().unwrap().trim();
            let meaning = arguments.split('"').nth(1).unwrap();
            let Some(name) = constants.get(name) else { panic!("{}: {name} is no constant", file.display()) };
            found.insert(name.clone(), (kind.to_owned(), meaning.to_owned()));
        }
    }
    let undescribed: Vec<_> = names.iter().filter(|name| !found.contains_key(*name)).collect();
    assert!(undescribed.is_empty(), "metrics without a description: {undescribed:?}");
    found
}

#[test]
fn every_metric_is_documented_as_it_is_described() {
    let page = read("docs/metrics.md");
    let documented: BTreeMap<String, (String, String)> = rows(&page)
        .into_iter()
        .filter_map(|cells| Some((quoted(cells[0]).next()?.to_owned(), (cells[1].to_owned(), cells[2].to_owned()))))
        .collect();
    assert!(documented.len() > 20, "{documented:?}");
    assert_eq!(documented, described());
}

#[test]
fn every_test_that_the_parity_table_names_exists() {
    let page = read("docs/debezium-parity.md");
    let mut named = 0;
    for cells in rows(&page).into_iter().filter(|cells| cells[0] != "what it covers") {
        let tests: Vec<&str> = quoted(cells[1]).filter(|text| text.contains("::")).collect();
        assert!(!tests.is_empty() || cells[1].starts_with("not applicable: "), "no test and no reason: {cells:?}");
        for test in tests {
            let (file, function) = test.split_once("::").unwrap();
            let text = read(file);
            let found = text.split(&format!("fn {function}(")).next().filter(|before| before.len() < text.len());
            let before = found.unwrap_or_else(|| panic!("{file} has no function {function}"));
            // The attribute stands above it, perhaps with others and with documentation.
            let above: String = before.lines().rev().take(8).collect::<Vec<_>>().join("\n");
            assert!(above.contains("test"), "{test} is no test");
            named += 1;
        }
    }
    assert!(named > 60, "{named}");
}

/// Links between the pages, and to files of the project.
#[test]
fn links_lead_somewhere() {
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "docs/archive.md",
        "docs/checkpoints.md",
        "docs/configuration.md",
        "docs/entities.md",
        "docs/metrics.md",
        "docs/sinks.md",
        "docs/sqlserver.md",
        "docs/streams.md",
        "docs/debezium-parity.md",
    ] {
        let text = read(page);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = root().join(page).parent().unwrap().join(link.split('#').next().unwrap());
            assert!(path.exists(), "{page} links to {link}");
        }
    }
}
