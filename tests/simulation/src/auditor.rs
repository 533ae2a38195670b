//! The auditor: holds a history against the invariants. It is given nothing else, and uses nothing of importer, joiner or sinks: the truth is the source's transactions, joined by hand ([`joined`]).
//!
//! | | what is looked for |
//! |---|---|
//! | INV-1 | a change at or below a record's `to_lsn` that the same process appends after the record, and that had not been appended before |
//! | INV-2 | progress that is saved before everything up to it, and a record that says so, is in the streams |
//! | INV-3 | an entry of the outbox that is told twice with different contents, left out, or told after what it replaces; a state after a start, or in a checkpoint, that is not as of its own frontier; a checkpoint of which no state can be made |
//! | INV-4 | a document, told, written or kept, that is not the join of the source as of the LSN that it names |
//! | INV-5 | a target in which an older version has replaced a newer one |
//! | INV-6 | a change that was captured and neither appended, nor set aside, nor made up for by reading its table again; and in the end a target that does not hold the source's join |

use std::collections::{BTreeMap, BTreeSet};

use schemas::Lsn;
use serde_json::Value;

use crate::history::{Change, Content, Document, Entry, Event};
use crate::joined::{self, Definitions, Tables};
use crate::shop::{TABLES, key_of};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// As in `ARCHITECTURE.md`; 0: the run did not come to an end.
    pub(crate) invariant: u8,
    pub(crate) at_ms: u64,
    pub(crate) what: String,
}

/// A change: its table, and where it stands.
type Identity = (String, Lsn, Lsn, char);
type Entity = (String, String);

/// What was told by one outbox.
#[derive(Default)]
struct Outbox {
    entries: BTreeMap<u64, (Lsn, Document)>,
    entities: BTreeMap<Entity, Value>,
    /// The last entry that `entities` has.
    last: u64,
}

#[derive(Default)]
struct Auditor {
    /// The source after each transaction.
    truth: BTreeMap<Lsn, Tables>,
    now: Tables,
    /// Changes that were committed, by table: their LSNs.
    committed: BTreeMap<String, BTreeSet<Lsn>>,
    captured: Lsn,
    appended: BTreeSet<Identity>,
    /// LSNs of which a table's changes are in the streams, or set aside.
    published: BTreeMap<String, BTreeSet<Lsn>>,
    /// How far each process has said that it has come.
    promised: BTreeMap<u32, Lsn>,
    /// The furthest that any record says.
    recorded: Lsn,
    /// When what records go up to was committed, as far as they know.
    times: BTreeMap<Lsn, i64>,
    /// Tables that were read again, and how far records had come by then.
    reread: BTreeMap<String, Lsn>,
    first_record: Option<Lsn>,
    /// What each joiner serves, and what the last one does.
    served: BTreeMap<u32, Definitions>,
    serves: Definitions,
    outboxes: BTreeMap<u64, Outbox>,
    /// Those that were made, and how far each has come.
    checkpoints: BTreeMap<u64, Lsn>,
    versions: BTreeMap<(String, Entity), Lsn>,
    violations: Vec<Violation>,
    at_ms: u64,
}

/// Everything that is wrong with a history.
pub(crate) fn audit(entries: &[Entry]) -> Vec<Violation> {
    let mut auditor = Auditor::default();
    for entry in entries {
        auditor.at_ms = entry.at_ms;
        auditor.take(&entry.event);
    }
    auditor.end();
    auditor.violations
}

fn parsed(document: Option<&String>) -> Option<Value> {
    document.map(|text| serde_json::from_str(text).unwrap_or(Value::Null))
}

impl Auditor {
    fn violation(&mut self, invariant: u8, what: String) {
        // One is enough to fail, and the first are those that tell.
        if self.violations.len() < 50 {
            self.violations.push(Violation { invariant, at_ms: self.at_ms, what });
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Committed { lsn, changes } => self.committed(*lsn, changes),
            Event::Captured { up_to } => self.captured = *up_to,
            Event::Appended { process, content, .. } => self.appended(*process, content),
            Event::Saved { process, lsn, tail } => self.saved(*process, *lsn, *tail),
            Event::JoinerStarted { process, definitions, .. } => {
                self.served.insert(*process, *definitions);
                self.serves = *definitions;
            }
            Event::Told { process, incarnation, sequence, version, change } => {
                self.told(*process, *incarnation, *sequence, *version, change);
            }
            Event::ToldAnew { process, incarnation, sequence, as_of, documents } => {
                self.all("a subscriber that read everything anew", self.served(*process), *as_of, documents, 4);
                let entities = documents.iter().map(|one| ((one.entity.clone(), one.key.clone()), parsed(one.document.as_ref())));
                let entities = entities.filter_map(|(entity, document)| Some((entity, document?))).collect();
                let outbox = self.outboxes.entry(*incarnation).or_default();
                (outbox.entities, outbox.last) = (entities, *sequence);
            }
            Event::ToldUpTo { process, incarnation, sequence, frontier } => {
                self.told_up_to(*process, *incarnation, *sequence, *frontier);
            }
            Event::State { process, as_of, documents } => {
                self.all(&format!("the state of joiner {process}"), self.served(*process), *as_of, documents, 3);
            }
            Event::Written { process, target, version, replaced, taken, change } => {
                self.written(*process, target, *version, *replaced, *taken, change);
            }
            Event::Vanished { process, target, entity, key, version } => {
                let gone = Document { entity: entity.clone(), key: key.clone(), document: None };
                self.document(&format!("what a load removed from the {target}"), self.served(*process), *version, &gone);
                self.versions.insert((target.clone(), (entity.clone(), key.clone())), *version);
            }
            Event::Holds { target, frontier, documents } => {
                // Time goes on where nothing is committed any more.
                let (last, what) = (self.last().max(frontier.unwrap_or_default()), format!("the {target} in the end"));
                self.all(&what, self.serves, last, documents, 6);
            }
            Event::Checkpoint { number, frontier, .. } => _ = self.checkpoints.insert(*number, *frontier),
            Event::Restored { number, frontier } => self.restored(*number, *frontier),
            Event::NotRestored { why, transient: false } => {
                self.violation(3, format!("no state could be made of a checkpoint: {why}"))
            }
            Event::Stored { numbers, keep, unnamed } => self.stored(numbers, *keep, *unnamed),
            Event::Stuck { what } => self.violation(0, what.clone()),
            Event::Purged { .. }
            | Event::ImporterStarted { .. }
            | Event::ImporterEnded { .. }
            | Event::JoinerEnded { .. }
            | Event::DiskLost
            | Event::NotRestored { .. }
            | Event::Trimmed { .. }
            | Event::Reached { .. }
            | Event::Fault { .. }
            | Event::Calm => {}
        }
    }

    fn served(&self, process: u32) -> Definitions {
        self.served.get(&process).copied().unwrap_or_default()
    }

    fn last(&self) -> Lsn {
        self.truth.keys().next_back().copied().unwrap_or_default()
    }

    fn committed(&mut self, lsn: Lsn, changes: &[Change]) {
        for Change { table, before, after } in changes {
            let Some(at) = TABLES.iter().position(|known| known.name == *table) else { continue };
            if let Some(before) = before {
                self.now[at].remove(&key_of(at, before));
            }
            if let Some(after) = after {
                self.now[at].insert(key_of(at, after), after.clone());
            }
            self.committed.entry(table.clone()).or_default().insert(lsn);
        }
        self.truth.insert(lsn, self.now.clone());
    }

    /// The commit times that the source may have come to by an LSN: the greatest of those that records tell. Where its clock went back, that may be of a record that was refused, because another importer had taken over.
    fn times(&self, lsn: Lsn) -> BTreeSet<i64> {
        let told = || self.times.range(..=lsn).map(|(_, time_ms)| *time_ms);
        let least = told().next_back().unwrap_or_default();
        told().filter(|time_ms| *time_ms >= least).chain([least]).collect()
    }

    /// The source as of an LSN.
    fn as_of(&self, lsn: Lsn) -> Tables {
        self.truth.range(..=lsn).next_back().map(|(_, tables)| tables.clone()).unwrap_or_default()
    }

    fn appended(&mut self, process: u32, content: &Content) {
        match content {
            Content::Change { table, lsn, seqval, op, .. } => {
                let identity = (table.clone(), *lsn, *seqval, *op);
                let promised = self.promised.get(&process).copied().unwrap_or_default();
                if *lsn <= promised && !self.appended.contains(&identity) {
                    self.violation(
                        1,
                        format!("importer {process} appended a change of {table} at {lsn} after its record up to {promised}"),
                    );
                }
                self.appended.insert(identity);
                self.published.entry(table.clone()).or_default().insert(*lsn);
            }
            Content::DeadLetter { table, lsn } => {
                let table = table.rsplit('.').next().unwrap_or_default().to_owned();
                self.published.entry(table).or_default().insert(*lsn);
            }
            Content::Progress { from, to, time_ms, rereads, .. } => {
                if *time_ms > 0 {
                    self.times.insert(*to, *time_ms);
                }
                let promised = self.promised.entry(process).or_default();
                *promised = (*promised).max(*to);
                self.recorded = self.recorded.max(*to);
                self.first_record.get_or_insert(*from);
                for table in rereads {
                    let table = table.rsplit('.').next().unwrap_or_default().to_owned();
                    let known = self.reread.entry(table).or_default();
                    *known = (*known).max(*to);
                }
            }
            Content::Read { .. } => {}
            Content::Unknown => self.violation(6, "a record that is nothing known was appended".to_owned()),
        }
    }

    fn saved(&mut self, process: u32, lsn: Lsn, tail: bool) {
        if !tail {
            return;
        }
        if lsn > self.recorded {
            let recorded = self.recorded;
            self.violation(2, format!("importer {process} saved {lsn}, and no record goes further than {recorded}"));
        }
        self.published_up_to(2, lsn);
    }

    /// Whether every change up to an LSN is in the streams, is set aside, or is of a table that is read again.
    fn published_up_to(&mut self, invariant: u8, lsn: Lsn) {
        let Some(first) = self.first_record else { return };
        let mut missing = Vec::new();
        for (table, committed) in &self.committed {
            let published = self.published.get(table);
            let reread = self.reread.get(table).copied().unwrap_or_default();
            for at in committed.range(first.next()..).take_while(|at| **at <= lsn) {
                if published.is_none_or(|published| !published.contains(at)) && *at > reread {
                    missing.push(format!("{table} at {at}"));
                }
            }
        }
        if let Some(one) = missing.first() {
            self.violation(
                invariant,
                format!("up to {lsn} changes of {} transactions are not in the streams: {one} …", missing.len()),
            );
        }
    }

    /// One document against the truth as of its version (INV-4).
    fn document(&mut self, who: &str, definitions: Definitions, version: Lsn, change: &Document) {
        let (tables, found) = (self.as_of(version), parsed(change.document.as_ref()));
        let truths = self.times(version).into_iter();
        let truths = truths.map(|time_ms| joined::entity(definitions, &tables, time_ms, &change.entity, &change.key));
        let truths: Vec<Option<Value>> = truths.collect();
        if !truths.contains(&found) {
            let truth = truths.into_iter().next_back().flatten();
            let Document { entity, key, .. } = change;
            let shown = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), ToString::to_string);
            self.violation(
                4,
                format!("{who}: {entity} {key} as of {version} is {} and should be {}", shown(&found), shown(&truth)),
            );
        }
    }

    /// All documents at once.
    fn all(&mut self, who: &str, definitions: Definitions, as_of: Lsn, documents: &[Document], invariant: u8) {
        let found: BTreeMap<Entity, Value> = documents
            .iter()
            .filter_map(|one| Some(((one.entity.clone(), one.key.clone()), parsed(one.document.as_ref())?)))
            .collect();
        self.compare(who, definitions, as_of, &found, invariant);
    }

    fn compare(&mut self, who: &str, definitions: Definitions, as_of: Lsn, found: &BTreeMap<Entity, Value>, invariant: u8) {
        let tables = self.as_of(as_of);
        let truths = self.times(as_of).into_iter().map(|time_ms| joined::entities(definitions, &tables, time_ms));
        let truths: Vec<BTreeMap<Entity, Value>> = truths.collect();
        let Some(truth) = truths.last().filter(|_| !truths.contains(found)) else { return };
        let names: BTreeSet<&Entity> = found.keys().chain(truth.keys()).collect();
        let differs = names.into_iter().find(|name| found.get(*name) != truth.get(*name)).cloned();
        if let Some(name) = differs {
            let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), ToString::to_string);
            let (found, truth) = (shown(found.get(&name)), shown(truth.get(&name)));
            self.violation(invariant, format!("{who}: {} {} as of {as_of} is {found} and should be {truth}", name.0, name.1));
        }
    }

    fn told(&mut self, process: u32, incarnation: u64, sequence: u64, version: Lsn, change: &Document) {
        self.document("what a subscriber was told", self.served(process), version, change);
        let outbox = self.outboxes.entry(incarnation).or_default();
        let entry = (version, change.clone());
        let before = outbox.entries.insert(sequence, entry.clone());
        if before.as_ref().is_some_and(|before| *before != entry) {
            self.violation(3, format!("entry {sequence} of the outbox was told twice, and differs: {before:?}, {entry:?}"));
            return;
        }
        if sequence <= outbox.last {
            return;
        }
        if sequence != outbox.last + 1 {
            let last = outbox.last;
            self.violation(3, format!("entry {sequence} of the outbox was told after {last}"));
        }
        let outbox = self.outboxes.entry(incarnation).or_default();
        outbox.last = sequence;
        let place = (change.entity.clone(), change.key.clone());
        match parsed(change.document.as_ref()) {
            Some(document) => outbox.entities.insert(place, document),
            None => outbox.entities.remove(&place),
        };
    }

    /// What a subscriber has been told, put together, is the source as of the frontier.
    fn told_up_to(&mut self, process: u32, incarnation: u64, sequence: u64, frontier: Lsn) {
        let Some(outbox) = self.outboxes.get(&incarnation) else { return };
        // It is compared when the subscriber stands exactly there.
        if outbox.last != sequence {
            return;
        }
        let found = outbox.entities.clone();
        self.compare("what subscribers were told, put together,", self.served(process), frontier, &found, 3);
    }

    fn written(&mut self, process: u32, target: &str, version: Lsn, replaced: Option<Lsn>, taken: bool, change: &Document) {
        self.document(&format!("what was written to the {target}"), self.served(process), version, change);
        // A topic takes what comes.
        if target == "topic" {
            return;
        }
        let place = (target.to_owned(), (change.entity.clone(), change.key.clone()));
        let held = self.versions.get(&place).copied().max(replaced);
        if taken && held.is_some_and(|held| held > version) {
            let Document { entity, key, .. } = change;
            let held = held.unwrap_or_default();
            self.violation(5, format!("the {target} held {entity} {key} as of {held} and took it as of {version}"));
        }
        if taken {
            self.versions.insert(place, version);
        }
    }

    /// What a state is made of is the newest checkpoint, as it was made; maybe one of which nobody was told.
    fn restored(&mut self, number: u64, frontier: Lsn) {
        let newest = self.checkpoints.keys().next_back().copied().unwrap_or_default();
        if number < newest {
            self.violation(3, format!("checkpoint {number} was restored, and {newest} was made before"));
        }
        if let Some(made) = self.checkpoints.get(&number).filter(|made| **made != frontier) {
            let what = format!("checkpoint {number} was made as of {made} and restored as of {frontier}");
            self.violation(3, what);
        }
    }

    fn stored(&mut self, numbers: &[u64], keep: u32, unnamed: usize) {
        if numbers.len() > keep as usize || unnamed > 0 {
            self.violation(
                0,
                format!("checkpoints {numbers:?} are kept instead of {keep}, and {unnamed} objects that none of them names"),
            );
        }
    }

    fn end(&mut self) {
        if self.violations.iter().any(|violation| violation.invariant == 0) {
            return;
        }
        let last = self.last();
        if self.captured < last {
            let captured = self.captured;
            self.violation(0, format!("the run ended with {captured} captured of {last}"));
        }
        self.published_up_to(6, last);
    }
}
