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

/// The tests that a page's tables name, as `file::function`. A row has at least one, or says why there is none.
fn named_tests(page: &str) -> Vec<(String, String)> {
    let page = read(page);
    let mut named = Vec::new();
    for cells in rows(&page).into_iter().filter(|cells| !["what it covers", "what is asked"].contains(&cells[0])) {
        let tests: Vec<&str> = quoted(cells[1]).filter(|text| text.contains("::")).collect();
        assert!(!tests.is_empty() || cells[1].starts_with("not applicable: "), "no test and no reason: {cells:?}");
        let split = |test: &str| test.split_once("::").map(|(file, function)| (file.to_owned(), function.to_owned())).unwrap();
        named.extend(tests.into_iter().map(split));
    }
    named
}

/// Whether a function is a test.
fn is_test(file: &str, function: &str) -> bool {
    let text = read(file);
    let found = text.split(&format!("fn {function}(")).next().filter(|before| before.len() < text.len());
    let before = found.unwrap_or_else(|| panic!("{file} has no function {function}"));
    // The attribute stands above it, perhaps with others and with documentation.
    let mut above = before.lines().rev().take(8).take_while(|line| line.trim() != "}");
    above.any(|line| line.contains("test"))
}

#[test]
fn every_test_that_the_parity_table_names_exists() {
    let named = named_tests("docs/debezium-parity.md");
    assert!(named.len() > 60, "{}", named.len());
    for (file, function) in named {
        assert!(is_test(&file, &function), "{file}::{function} is no test");
    }
}

/// Where one server serves many cases, a case is a function that a test of its folder calls.
#[test]
fn every_test_that_the_tables_of_the_joiner_and_its_sinks_name_exists() {
    let named: Vec<_> = ["docs/joiner-coverage.md", "docs/sinks-coverage.md"].map(named_tests).into_iter().flatten().collect();
    assert!(named.len() > 200, "{}", named.len());
    for (file, function) in named.into_iter().filter(|(file, function)| !is_test(file, function)) {
        let mut files = Vec::new();
        sources(root().join(&file).parent().unwrap(), &mut files);
        let texts: String = files.iter().map(read).collect();
        let words = texts.split(|character: char| !character.is_alphanumeric() && character != '_');
        let is_called = words.filter(|word| *word == function).count() > 1;
        assert!(file.contains("/tests/") && is_called, "{file}::{function} is no test");
    }
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
        "docs/joiner-coverage.md",
        "docs/sinks-coverage.md",
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
