//! The cases: one joiner over a source; several, each with a share, of which one is merged.

use crate::dice::Dice;
use crate::encodings::Encodings;
use crate::reader::{NAME, Reader, Told, reader};
use crate::source::{Source, published};
use crate::world::World;
use joiner::Error;
use joiner::reshape::{Copied, reshape};
use schemas::KeyRange;
use std::collections::BTreeMap;
use streams::Layout;

/// Runs a case; answers how many frontiers were compared, how often the definitions were changed in place, how many frontiers were compared while fan-outs waited, how many steps a kill has left in the middle, and at how many frontiers the time of entities was over.
pub(crate) fn case(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::new(&mut dice);
    let layout = if dice.chance(50) { Layout::Shared } else { Layout::Table };
    let (encodings, schemas) = Encodings::of(&world.tables);
    let source = published(&mut dice, &world, layout, encodings, NAME, (0..world.tables.len()).collect());
    let mut reader = reader(&mut dice, &world, layout, &schemas, KeyRange::ALL);
    reader.open(&source.streams);
    let restarts = if dice.chance(40) { 3 } else { 0 };
    let changes = if dice.chance(25) { 12 } else { 0 };
    loop {
        let mut any = false;
        for _ in 0..1 + dice.below(20) {
            any |= reader.feed(&mut dice, &source.streams);
        }
        // Where steps are written in portions, between them.
        let often = if reader.config.portion_bytes < 1000 { 12 } else { 3 };
        if any && dice.chance(restarts * often) {
            reader.killed(&mut dice, &source.streams);
            reader.check_after_advance(&source.history);
            continue;
        }
        if reader.engine().advance().unwrap() {
            reader.check_after_advance(&source.history);
        }
        if !any {
            break;
        }
        let change = dice.chance(changes);
        if dice.chance(restarts) || change {
            reader.restart(&mut dice, &source.streams, change);
            reader.check_after_advance(&source.history);
        }
    }
    while reader.engine().advance().unwrap() {
        reader.check_after_advance(&source.history);
    }
    let last = source.streams.progress.last().unwrap();
    assert_eq!(reader.engine().frontier(), last.to_lsn, "not everything was applied");
    assert_eq!(reader.engine().handle().status().fan_out, None, "not everything was told");
    [reader.checks, reader.changes, reader.lazy_checks, reader.torn, reader.expired]
}

/// Several instances over the same streams, at different places in them, some of them split; then one that is merged of them and goes on. Answers how many frontiers were compared, and whether one was merged.
pub(crate) fn several(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::new(&mut dice).of_tables();
    let layout = if dice.chance(50) { Layout::Shared } else { Layout::Table };
    let (encodings, schemas) = Encodings::of(&world.tables);
    let source = published(&mut dice, &world, layout, encodings, NAME, (0..world.tables.len()).collect());
    let count = 2 + dice.below(3) as u32;
    let ranges = (0..count).map(|nth| KeyRange::of(nth, count).unwrap());
    let mut parts: Vec<Reader<'_>> = ranges.map(|range| reader(&mut dice, &world, layout, &schemas, range)).collect();
    for part in &mut parts {
        part.again = true;
        part.open(&source.streams);
    }
    let split = dice.chance(30);
    loop {
        let mut any = false;
        for part in &mut parts {
            for _ in 0..dice.below(20) {
                part.feed(&mut dice, &source.streams);
            }
            if part.engine().advance().unwrap() {
                part.check_after_advance(&source.history);
            }
            any |= part.feed(&mut dice, &source.streams);
            if split && dice.chance(10) {
                part.split(&mut dice, &source.streams);
                part.check_after_advance(&source.history);
            } else if dice.chance(3) {
                // States that are to be merged serve the same definitions.
                let change = split && dice.chance(50);
                part.restart(&mut dice, &source.streams, change);
                part.check_after_advance(&source.history);
            }
        }
        let checks = parts.iter().map(|part| part.checks).sum();
        if dice.chance(15) || !any {
            match if split { None } else { merged(&mut dice, &mut parts) } {
                Some(one) => return [checks + read_to_the_end(&mut dice, one, &source), 1, 0, 0, 0],
                // Of a source that ends while rows are of different ages nothing can be merged.
                None if !any => return [checks, 0, 0, 0, 0],
                None => {}
            }
        }
    }
}

/// One of several, if their states can be merged as they stand.
fn merged<'a>(dice: &mut Dice, parts: &mut [Reader<'a>]) -> Option<Reader<'a>> {
    let mut copies: Vec<Copied> = parts.iter_mut().map(Reader::copied).collect();
    let first = copies.len() / 2;
    copies.rotate_left(first);
    let mut config = parts[0].config.clone();
    config.range = KeyRange::ALL;
    config.chunk_entities = if dice.chance(30) { 1 + dice.below(4) } else { 1000 };
    let made = match reshape(copies, &config) {
        Err(Error::NotMerged { .. }) => return None,
        made => made.unwrap(),
    };
    let mut union = vec![BTreeMap::new(); parts[0].world.plans.len()];
    for told in parts.iter_mut().filter_map(|part| part.told.take()) {
        union.iter_mut().zip(told.entities).for_each(|(union, entities)| union.extend(entities));
    }
    let mut one = Reader {
        world: parts[0].world,
        config,
        engine: None,
        handed: BTreeMap::new(),
        handed_records: 0,
        told: Some(Told { load: 0, cursor: 0, entities: union, versions: BTreeMap::new() }),
        again: true,
        dirs: parts.iter_mut().flat_map(|part| std::mem::take(&mut part.dirs)).collect(),
        checks: 0,
        lazy_checks: 0,
        torn: 0,
        expired: 0,
        changes: 0,
    };
    one.seal(&made);
    Some(one)
}

fn read_to_the_end(dice: &mut Dice, mut one: Reader<'_>, source: &Source<'_>) -> u64 {
    let told = one.told.take();
    one.open(&source.streams);
    let head = *one.engine().handle().outbox().head().borrow();
    one.told = told.map(|told| Told::new(&head, told.entities));
    loop {
        let mut any = false;
        for _ in 0..1 + dice.below(20) {
            any |= one.feed(dice, &source.streams);
        }
        if one.engine().advance().unwrap() {
            one.check_after_advance(&source.history);
        }
        if !any {
            break;
        }
        if dice.chance(10) {
            one.restart(dice, &source.streams, false);
        }
    }
    while one.engine().advance().unwrap() {
        one.check_after_advance(&source.history);
    }
    assert_eq!(one.engine().frontier(), source.streams.progress.last().unwrap().to_lsn, "not everything was applied");
    one.checks
}
