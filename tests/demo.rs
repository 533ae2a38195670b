//! The demo, as a newcomer runs it: it ends by itself with a summary and a comparison of every entity with SQL, and its page is live in a real browser.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "demo")]

mod support;

use std::process::Command;

use support::process::{Process, run};

#[test]
fn the_demo_ends_with_every_entity_equal_to_sql() {
    let (success, out, errors) = run(&["demo", "--for", "8s", "--rate", "40", "--port", "0", "--sql-port", "0"]);
    assert!(success, "{out}\n{errors}");
    for expected in ["transactions", "p50", "p99", "order", "customer", "equal"] {
        assert!(out.contains(expected), "no {expected:?} in the summary:\n{out}");
    }
}

#[test]
fn the_page_is_live_in_a_browser() {
    let demo = Process::start(&["demo", "--rate", "20", "--port", "0", "--sql-port", "0"]);
    let url = demo.line_after("Page: ").trim().to_owned();
    let browser =
        std::env::var("TRIBUTARY_BROWSER").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/.setup/browser").to_owned());
    assert!(
        std::path::Path::new(&browser).join("node_modules/playwright-core").exists(),
        "{browser} has no playwright-core: run `make setup`"
    );
    let output = Command::new("node")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/page.mjs"), &url])
        .env("TRIBUTARY_BROWSER", browser)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("the page is live"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
