//! INV-4, INV-6 and INV-3 over random worlds: random tables and entity trees, random transactions, a snapshot that overlaps the tail, repeats and replays, shards read in
//! any order, restarts and crashes: at every frontier each entity equals a join written independently, and so does what the outbox has told.
//!
//! A case follows from its seed alone; a failure prints it, and `TRIBUTARY_SEED=<seed> cargo test -p joiner --test property` runs it again. `TRIBUTARY_CASES` sets how many are run.

#![allow(clippy::unwrap_used)]

#[path = "property/brute.rs"]
mod brute;
#[path = "property/change.rs"]
mod change;
#[path = "support/crash.rs"]
mod crash;
#[path = "property/dice.rs"]
mod dice;
#[path = "property/encodings.rs"]
mod encodings;
#[path = "property/reader.rs"]
mod reader;
#[path = "property/run.rs"]
mod run;
#[path = "property/source.rs"]
mod source;
#[path = "property/sources.rs"]
mod sources;
#[path = "property/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough to meet every combination of the choices many times.
const CASES: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Of several instances, each with a share.
const SEVERAL: u64 = 600;

#[test]
fn every_entity_is_the_join_of_the_source_at_every_frontier() {
    let rare = [
        "changes of definitions",
        "fan-outs that wait",
        "steps that a kill has left in the middle",
        "entities whose time was over",
    ];
    cases(CASES, &rare, run::case);
}

#[test]
fn several_instances_are_together_what_one_is_and_merge_wherever_they_stand() {
    cases(SEVERAL, &["merges"], run::several);
}

/// Of several sources.
const SOURCES: u64 = 800;

#[test]
fn entities_over_several_sources_are_the_join_of_each_as_of_one_lsn_of_its_own() {
    cases(SOURCES, &["sources at different places", "states that were lost or put back"], sources::case);
}

/// Of several sources, by several instances.
const SHARES: u64 = 200;

#[test]
fn several_instances_over_several_sources_merge_wherever_they_stand() {
    cases(SHARES, &["merges", "merges of states of which none is behind in every source"], sources::several);
}

/// Each answers how many frontiers it has compared, and how often what is `rare` was met.
fn cases(count: u64, rare: &[&str], case: impl Fn(u64) -> [u64; 5] + Sync) {
    if let Some(seed) = number("TRIBUTARY_SEED") {
        case(seed);
        return;
    }
    let cases = number("TRIBUTARY_CASES").unwrap_or(count);
    let next = AtomicU64::new(0);
    let counts: [AtomicU64; 5] = Default::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= cases {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| case(seed))) {
                Ok(counted) => counts.iter().zip(counted).for_each(|(count, more)| _ = count.fetch_add(more, Ordering::Relaxed)),
                Err(_) => {
                    next.store(cases, Ordering::Relaxed);
                    panic!("failed: run it again with TRIBUTARY_SEED={seed}");
                }
            };
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..std::thread::available_parallelism().map_or(2, usize::from)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    // A test that compares nothing proves nothing.
    let [checks, met @ ..] = counts.map(AtomicU64::into_inner);
    assert!(checks > cases, "only {checks} frontiers were compared in {cases} cases");
    for (name, met) in rare.iter().zip(met) {
        println!("{name}: {met} in {cases} cases");
        // How often a few cases meet something rare is chance.
        assert!(cases < count || met > cases / 50, "{name}: only {met} in {cases} cases");
    }
}
