//! A short run of the simulation, and proof that its auditor finds what is broken.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Seeds that are run here; `make soak` runs as many as there is time for.
const SEEDS: u64 = 5;

fn simulation(arguments: &[&str]) -> (bool, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_simulation")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    (run.status.success(), said)
}

#[test]
fn seeds_run_twice_give_the_same_history_and_break_nothing() {
    let (well, said) = simulation(&["soak", "--first-seed", "1", "--seeds", &SEEDS.to_string(), "--jobs", "2"]);
    assert!(well, "{said}");
    assert!(said.contains(&format!("{SEEDS} seeds from 1, each twice")), "{said}");
}

/// Definitions change and change back between a predecessor's last word and a successor's first: what changed meanwhile is not in its outbox as it is told now.
#[test]
fn a_seed_that_found_a_fault_finds_it_no_more() {
    let (well, said) = simulation(&["run", "18"]);
    assert!(well, "{said}");
}

#[test]
fn a_history_is_the_same_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let history = |name: &str| {
        let path = directory.path().join(name);
        let (well, said) = simulation(&["run", "3", "--history", path.to_str().unwrap()]);
        assert!(well, "{said}");
        std::fs::read_to_string(path).unwrap()
    };
    let (first, second) = (history("first"), history("second"));
    for (nth, (one, other)) in first.lines().zip(second.lines()).enumerate() {
        assert_eq!(one, other, "line {nth} differs");
    }
    assert!(first == second && first.lines().count() > 1000);
}

/// Each switch that breaks an invariant, with a seed in which it does harm.
#[test]
fn the_auditor_finds_every_kind_of_breach() {
    for (sabotage, seed, invariant) in [
        ("late-change", "1", "INV-1"),
        ("saved-ahead", "3", "INV-2"),
        ("lying-disk", "40", "INV-3"),
        ("lost-part", "1", "INV-3"),
        ("wrong-value", "3", "INV-4"),
        ("no-guard", "8", "INV-5"),
        ("lost-change", "1", "INV-6"),
        ("wide-frontier", "2", "INV-6"),
        ("confirmed-ahead", "5", "INV-6"),
    ] {
        let (well, said) = simulation(&["run", seed, "--sabotage", sabotage]);
        assert!(!well && said.lines().any(|line| line.starts_with(invariant)), "{sabotage} in seed {seed}: {said}");
    }
}
