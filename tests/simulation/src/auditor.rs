//! The auditor: holds a history against the invariants. It is given nothing else, and uses nothing of importer, joiner or sinks: the truth is the source's transactions, joined by hand ([`joined`]).
//!
//! | | what is looked for |
//! |---|---|
//! | INV-1 | a change at or below a record's `to_lsn` that the same process appends after the record, and that had not been appended before |
//! | INV-2 | progress that is saved before everything up to it, and a record that says so, is in the streams |
//! | INV-3 | an entry of the outbox that is told twice with different contents, left out, or told after what it replaces; a state after a start, or in a checkpoint, that is not as of its own frontier; a checkpoint of which no state can be made |
//! | INV-4 | a document, told, written or kept, that is not the join of the source as of the LSN that it names, or of an entity that another joiner makes |
//! | INV-5 | a target in which an older version has replaced a newer one |
//! | INV-6 | a change that was captured and neither appended, nor set aside, nor made up for by reading its table again; a target that does not hold, of a share, what it was told that it holds, and in the end the source's join |

use std::collections::{BTreeMap, BTreeSet};

use schemas::{KeyRange, Lsn};
use serde_json::Value;

use crate::history::{Change, Content, Document, Entry, Event};
use crate::joined::{self, Definitions, Tables};
use crate::shares::{Pieces, is_of};
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

/// What a joiner makes.
#[derive(Debug, Clone, Copy, Default)]
struct Served {
    definitions: Definitions,
    share: KeyRange,
}

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
    served: BTreeMap<u32, Served>,
    serves: Served,
    outboxes: BTreeMap<u64, Outbox>,
    /// Those that were made of each share, and how far each has come.
    checkpoints: BTreeMap<KeyRange, BTreeMap<u64, Lsn>>,
    /// What targets hold; of the topic, the newest that it was sent.
    held: BTreeMap<(String, Entity), (Lsn, Option<Value>)>,
    /// As of which version targets were loaded with the entities of a kind, by target and kind.
    loaded: BTreeMap<(String, String), Pieces<Lsn>>,
    /// What targets were told that they hold of each share.
    reached: BTreeMap<String, Pieces<Lsn>>,
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
            Event::JoinerStarted { process, share, definitions, .. } => {
                self.served.insert(*process, Served { definitions: *definitions, share: *share });
                self.serves = Served { definitions: *definitions, share: KeyRange::ALL };
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
                self.held.insert((target.clone(), (entity.clone(), key.clone())), (*version, None));
            }
            Event::Loaded { target, entity, share, version } => {
                let place = (target.clone(), entity.clone());
                self.loaded.entry(place).or_insert_with(|| Pieces::new(Lsn::ZERO)).raise(*share, *version);
            }
            Event::Reached { target, share, frontier, all } => self.reached(target, *share, *frontier, *all),
            Event::Holds { target, frontier, documents } => {
                // Time goes on where nothing is committed any more.
                let (last, what) = (self.last().max(frontier.unwrap_or_default()), format!("the {target} in the end"));
                self.all(&what, self.serves, last, documents, 6);
            }
            Event::Checkpoint { share, number, frontier, .. } => {
                self.checkpoints.entry(*share).or_default().insert(*number, *frontier);
            }
            Event::Restored { share, number, frontier } => self.restored(*share, *number, *frontier),
            Event::NotRestored { why, transient: false } => {
                self.violation(3, format!("no state could be made of a checkpoint: {why}"))
            }
            Event::Stored { numbers, keep, unnamed, .. } => self.stored(numbers, *keep, *unnamed),
            Event::Stuck { what } => self.violation(0, what.clone()),
            Event::Purged { .. }
            | Event::ImporterStarted { .. }
            | Event::ImporterEnded { .. }
            | Event::JoinerEnded { .. }
            | Event::DiskLost
            | Event::NotRestored { .. }
            | Event::Trimmed { .. }
            | Event::Turn { .. }
            | Event::Frozen { .. }
            | Event::Thawed { .. }
            | Event::Reshaped { .. }
            | Event::NotReshaped { .. }
            | Event::Fault { .. }
            | Event::Calm => {}
        }
    }

    fn served(&self, process: u32) -> Served {
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
    fn document(&mut self, who: &str, Served { definitions, share }: Served, version: Lsn, change: &Document) {
        if !is_of(share, &change.entity, &change.key) {
            let Document { entity, key, .. } = change;
            self.violation(4, format!("{who}: {entity} {key} is not of the share {share}, which this joiner makes"));
        }
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
    fn all(&mut self, who: &str, served: Served, as_of: Lsn, documents: &[Document], invariant: u8) {
        let found: BTreeMap<Entity, Value> = documents
            .iter()
            .filter_map(|one| Some(((one.entity.clone(), one.key.clone()), parsed(one.document.as_ref())?)))
            .collect();
        self.compare(who, served, as_of, &found, invariant);
    }

    fn compare(&mut self, who: &str, served: Served, as_of: Lsn, found: &BTreeMap<Entity, Value>, invariant: u8) {
        let truths = self.truths(served, as_of);
        let Some(truth) = truths.last().filter(|_| !truths.contains(found)) else { return };
        let names: BTreeSet<&Entity> = found.keys().chain(truth.keys()).collect();
        let differs = names.into_iter().find(|name| found.get(*name) != truth.get(*name)).cloned();
        if let Some(name) = differs {
            let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), ToString::to_string);
            let (found, truth) = (shown(found.get(&name)), shown(truth.get(&name)));
            self.violation(invariant, format!("{who}: {} {} as of {as_of} is {found} and should be {truth}", name.0, name.1));
        }
    }

    /// What all entities of a share may be as of an LSN.
    fn truths(&self, Served { definitions, share }: Served, as_of: Lsn) -> Vec<BTreeMap<Entity, Value>> {
        let tables = self.as_of(as_of);
        let of_share = |mut entities: BTreeMap<Entity, Value>| {
            entities.retain(|(entity, key), _| is_of(share, entity, key));
            entities
        };
        let truths = self.times(as_of).into_iter().map(|time_ms| of_share(joined::entities(definitions, &tables, time_ms)));
        truths.collect()
    }

    /// What a target was told that it holds of a share. An entity that it holds in a newer version is not spoken of; nor is, while definitions change, whether it is as the one or the other have it.
    fn reached(&mut self, target: &str, share: KeyRange, frontier: Lsn, all: Option<Lsn>) {
        let reached = self.reached.entry(target.to_owned()).or_insert_with(|| Pieces::new(Lsn::ZERO));
        reached.raise(share, frontier);
        let least = reached.least(KeyRange::ALL).unwrap_or_default();
        if all.is_some_and(|all| all > least) {
            let all = all.unwrap_or_default();
            self.violation(
                6,
                format!("the {target} says that it holds everything up to {all}, and was told so of all shares up to {least}"),
            );
        }
        let Some(name) = self.lacks(target, share) else { return };
        let known = self.held.get(&(target.to_owned(), name.clone()));
        let (version, document) = known.cloned().unwrap_or_default();
        let document = document.map_or("nothing".to_owned(), |document| document.to_string());
        let (entity, key) = name;
        self.violation(6, format!("the {target} is to hold everything of {share} up to {frontier}, and {entity} {key} is {document}, as of {version}"));
    }

    /// An entity of a share that a target does not hold as it stood at what the target was told of it last.
    fn lacks(&self, target: &str, share: KeyRange) -> Option<Entity> {
        let reached = self.reached.get(target)?;
        let mut truths: BTreeMap<Lsn, Vec<BTreeMap<Entity, Value>>> = BTreeMap::new();
        for frontier in reached.within(share) {
            let of = |definitions| self.truths(Served { definitions, share: KeyRange::ALL }, frontier);
            truths
                .entry(frontier)
                .or_insert_with(|| [Definitions::First, Definitions::Otherwise].into_iter().flat_map(of).collect());
        }
        let held = self.held.iter().filter(|((of, _), _)| of == target).map(|((_, entity), held)| (entity, held));
        let held: BTreeMap<&Entity, &(Lsn, Option<Value>)> = held.collect();
        let known = truths.values().flatten().flat_map(BTreeMap::keys);
        let names: BTreeSet<&Entity> =
            held.keys().copied().chain(known).filter(|(entity, key)| is_of(share, entity, key)).collect();
        let is_lacking = |(entity, key): &Entity| {
            let frontier = reached.of(entity, key);
            let truths = truths.get(&frontier).map(Vec::as_slice).unwrap_or_default();
            let truth = |truth: &BTreeMap<Entity, Value>| truth.get(&(entity.clone(), key.clone())).cloned();
            let loaded = self.loaded.get(&(target.to_owned(), entity.clone()));
            let loaded = loaded.map_or(Lsn::ZERO, |loaded| loaded.of(entity, key));
            match held.get(&(entity.clone(), key.clone())) {
                Some((version, _)) if *version > frontier => false,
                // It is gone as of a load, although a predecessor that was frozen says only now how far it had come before.
                Some((_, None)) | None if loaded > frontier => false,
                // A topic that is loaded is not told of what has vanished.
                Some((_, Some(_))) if target == "topic" && truths.iter().any(|known| truth(known).is_none()) => false,
                Some((_, document)) => truths.iter().all(|known| truth(known) != *document),
                None => truths.iter().all(|known| truth(known).is_some()),
            }
        };
        names.into_iter().find(|name| is_lacking(name)).cloned()
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
        let place = (target.to_owned(), (change.entity.clone(), change.key.clone()));
        let known = self.held.get(&place).map(|(version, _)| *version);
        let document = parsed(change.document.as_ref());
        // A topic takes what comes.
        if target == "topic" {
            if known.is_none_or(|known| known <= version) {
                self.held.insert(place, (version, document));
            }
            return;
        }
        let held = known.max(replaced);
        if taken && held.is_some_and(|held| held > version) {
            let Document { entity, key, .. } = change;
            let held = held.unwrap_or_default();
            self.violation(5, format!("the {target} held {entity} {key} as of {held} and took it as of {version}"));
        }
        if taken {
            self.held.insert(place, (version, document));
        }
    }

    /// What a state is made of are the newest checkpoints, as they were made; maybe some of which nobody was told. They are those that are furthest ahead: of the share itself, of one that covers it, or of its parts.
    fn restored(&mut self, share: KeyRange, number: u64, frontier: Lsn) {
        let newest = |of: &BTreeMap<u64, Lsn>| of.values().next_back().copied();
        let covering = self.checkpoints.iter().filter(|(of, _)| of.covers(&share)).filter_map(|(_, of)| newest(of)).max();
        if let Some(newest) = covering.filter(|newest| frontier < *newest) {
            let what = format!("checkpoint {number} was restored as of {frontier}, and one as of {newest} was made before");
            self.violation(3, what);
        }
        // Numbers are those of a share; of which share one is that was restored is known where there is but one.
        let Some(of_all) = self.checkpoints.get(&KeyRange::ALL).filter(|_| self.checkpoints.len() == 1) else { return };
        let newest = of_all.keys().next_back().copied().unwrap_or_default();
        let made = of_all.get(&number).copied();
        if number < newest {
            self.violation(3, format!("checkpoint {number} was restored, and {newest} was made before"));
        }
        if let Some(made) = made.filter(|made| *made != frontier) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::history::Cell;

    /// An order is told as gone, comes, goes; a load removes it as of its end, and then somebody says that the target holds everything as of when it was there.
    fn audited(load: Option<&str>) -> Vec<Violation> {
        let lsn = |number: u32| format!("00000000:00000010:{number:04x}").parse::<Lsn>().unwrap();
        let row = || Some(vec![Cell::Int(5), Cell::Null, Cell::Int(0), Cell::Int(1), Cell::Null]);
        let committed = |number, before, after| {
            let changes = vec![Change { table: "orders".to_owned(), before, after }];
            Event::Committed { lsn: lsn(number), changes }
        };
        let (target, share) = ("table".to_owned(), KeyRange::ALL);
        let change = Document { entity: "order".to_owned(), key: "5".to_owned(), document: None };
        let gone = Event::Written { process: 1, target: target.clone(), version: lsn(1), replaced: None, taken: true, change };
        let mut events = vec![gone, committed(2, None, row()), committed(4, row(), None), Event::Captured { up_to: lsn(4) }];
        if let Some(entity) = load {
            let entity = entity.to_owned();
            events.push(Event::Loaded { target: target.clone(), entity, share, version: lsn(5) });
        }
        events.push(Event::Reached { target, share, frontier: lsn(3), all: Some(lsn(3)) });
        let entries: Vec<_> = events.into_iter().map(|event| Entry { at_ms: 0, event }).collect();
        audit(&entries)
    }

    #[test]
    fn what_a_load_knew_to_be_gone_is_not_missing_as_of_before() {
        assert_eq!(audited(Some("order")), Vec::new());
        for missing in [audited(None), audited(Some("customer"))] {
            assert!(matches!(&*missing, [Violation { invariant: 6, .. }]), "{missing:?}");
        }
    }
}
