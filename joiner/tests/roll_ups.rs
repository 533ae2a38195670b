//! Roll-ups of documents, and documents that are set aside: what is told, when, and under which version.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use joiner::dead_letters::{Letter, TooLarge, Which};
use joiner::{Config, Engine, Page};
use schemas::TableName;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityDefinition;
use schemas::event::ChangeEvent;
use schemas::plan::Plan;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId};
use streams::{Batch, Layout};
use support::{change, config, encode, item, items, lsn, order, orders, read, record};

const SALES: &str = "
entity: sales
of: order
group_by: [status]
aggregates: {orders: {count: rows}, total: {sum: rows.total}, greatest: {max: rows.total}}
";

fn plans(texts: &[&str]) -> Vec<Arc<Plan>> {
    let lookup = |name: &TableName| [orders(), items()].into_iter().find(|table| table.name == *name);
    let definitions: Vec<_> = texts.iter().map(|text| EntityDefinition::from_yaml("e.yaml", text).unwrap()).collect();
    Plan::resolve_all(&definitions, &lookup).unwrap().into_iter().map(Arc::new).collect()
}

/// A joiner, and how much it has been fed.
struct Fed {
    engine: Engine,
    events: u64,
    records: u64,
}

impl Fed {
    /// With a snapshot of three orders, the first of two of them, an item each.
    fn new(config: &Config) -> Self {
        let mut fed = Self { engine: Engine::open(config).unwrap(), events: 0, records: 0 };
        let rows = [
            read(orders(), 5, order(1, "new")),
            read(orders(), 5, order(2, "new")),
            read(orders(), 5, order(3, "done")),
            read(items(), 5, item(1, 1, 100)),
            read(items(), 5, item(2, 1, 250)),
            read(items(), 5, item(3, 1, 999)),
        ];
        fed.feed(&rows, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 3), (&items(), 3)]));
        fed
    }

    fn feed(&mut self, events: &[ChangeEvent], mut record: ProgressRecord) {
        let (stream, shard) = (Layout::Shared.stream("p", &orders().name), ShardId("0".into()));
        let numbered = events.iter().zip(self.events + 1..);
        let records = numbered.map(|(event, n)| (SequenceNumber::from(n), encode(event).into())).collect();
        self.engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records }).unwrap();
        self.events += events.len() as u64;
        self.records += 1;
        record.positions.entry(stream).or_default().insert(shard.clone(), SequenceNumber::from(self.events));
        let sequence = SequenceNumber::from(self.records);
        self.engine.progress(&Layout::progress_stream("p"), &shard, &sequence, record).unwrap();
        self.engine.advance().unwrap();
    }

    /// What the outbox has told after an entry.
    fn told(&self, after: u64) -> Vec<EntityChange> {
        match self.engine.handle().outbox().read_after(after, 100).unwrap() {
            Page::Changes { changes, .. } => changes.into_iter().map(|(_, change)| change).collect(),
            page => panic!("{page:?}"),
        }
    }

    fn get(&self, entity: &str, key: &str) -> Option<String> {
        self.engine.handle().get(entity, &EntityKey::from_text(key)).unwrap().map(|(_, text)| text)
    }

    fn set_aside(&self) -> Vec<TooLarge> {
        let letters = self.engine.handle().dead_letters().list(&Which::All, 10).unwrap();
        let letter = |letter| match letter {
            Letter::Document(letter) => letter,
            other => panic!("{other:?}"),
        };
        letters.into_iter().map(|kept| letter(kept.letter)).collect()
    }
}

fn sales(status: &str, orders: u64, total: &str, greatest: &str) -> String {
    format!("{{\"status\":\"{status}\",\"greatest\":\"{greatest}\",\"orders\":{orders},\"total\":\"{total}\"}}")
}

#[test]
fn a_roll_up_of_documents_is_told_with_them() {
    for chunk_entities in [1, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { plans: plans(&[support::ORDER, SALES]), chunk_entities, threads: 1, ..config(dir.path()) };
        let mut fed = Fed::new(&config);
        // What stood when the load ended is rolled up already.
        assert_eq!(fed.get("sales", "new"), Some(sales("new", 2, "3.50", "2.50")));
        let head = fed.engine.handle().outbox().head().borrow().sequence;
        // An item grows, an order goes over to another group, one vanishes, with its item.
        let changes = [
            change(items(), 6, 1, Some(item(1, 1, 100)), Some(item(1, 1, 700))),
            change(orders(), 6, 2, Some(order(2, "new")), Some(order(2, "done"))),
            change(orders(), 7, 1, Some(order(3, "done")), None),
            change(items(), 7, 2, Some(item(3, 1, 999)), None),
        ];
        fed.feed(&changes, record(Phase::Tail, 5, 7, &[(&orders(), 2), (&items(), 2)]));
        let told = fed.told(head);
        let entities: Vec<(&str, &str)> = told.iter().map(|change| (&*change.entity, change.key.as_str())).collect();
        assert_eq!(entities, [("order", "1"), ("order", "2"), ("order", "3"), ("sales", "done"), ("sales", "new")]);
        assert!(told.iter().all(|change| change.version == lsn(7)));
        assert_eq!(told[3].document.as_deref(), Some(&*sales("done", 1, "2.50", "2.50")));
        assert_eq!(told[4].document.as_deref(), Some(&*sales("new", 1, "7.00", "7.00")));
        // A group without documents is gone; what changes nothing of a group's is not told of it.
        let head = head + 5;
        let changes = [change(orders(), 8, 1, Some(order(2, "done")), Some(order(2, "new")))];
        fed.feed(&changes, record(Phase::Tail, 7, 8, &[(&orders(), 1)]));
        let told = fed.told(head);
        let gone: Vec<(&str, bool)> = told.iter().map(|change| (change.key.as_str(), change.document.is_none())).collect();
        assert_eq!(gone, [("2", false), ("done", true), ("new", false)]);
    }
}

#[test]
fn a_roll_up_is_made_anew_when_what_it_rolls_up_is_defined_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { plans: plans(&[support::ORDER, SALES]), threads: 1, ..config(dir.path()) };
    let fed = Fed::new(&config);
    drop(fed);
    // A total of something else, under the same name.
    let counted = support::ORDER.replace("{sum: items.price}", "{sum: items.line}");
    let counted = counted.replace("fields: [line, price]", "fields: [line]");
    let other = Config {
        plans: plans(&[&counted, &SALES.replace("greatest: {max: rows.total}", "greatest: {min: rows.total}")]),
        ..config.clone()
    };
    match Engine::open(&other) {
        // The values are of another type: they are kept in another form.
        Err(joiner::Error::OtherDefinitions { .. }) => {}
        opened => panic!("{opened:?}"),
    }
    let least = support::ORDER.replace("{sum: items.price}", "{min: items.price}").replace("total:", "least:");
    let least = format!("{least}computed: {{total: least * 2}}");
    let rolled_up = SALES.replace("greatest: {max: rows.total}", "greatest: {min: rows.total}");
    match Engine::open(&Config { plans: plans(&[&least, &rolled_up]), ..config.clone() }) {
        Err(joiner::Error::OtherDefinitions { .. }) => {}
        opened => panic!("{opened:?}"),
    }
    // Another filter of the children: the same columns.
    let shown = support::ORDER.replace("fields: [line, price]", "fields: [line]");
    let engine = Engine::open(&Config { plans: plans(&[&shown, SALES]), ..config }).unwrap();
    let found = engine.handle().get("sales", &EntityKey::from_text("new")).unwrap().unwrap();
    assert_eq!(found.1, sales("new", 2, "3.50", "2.50"));
}

const LIMITED: &str = "
entity: order
table: dbo.orders
limits: {children: 1, exceeded: dead_letter}
many: {items: {table: dbo.items, by: [order_id], fields: [line]}}
";

#[test]
fn a_document_past_its_limits_is_set_aside_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { plans: plans(&[LIMITED]), threads: 1, ..config(dir.path()) };
    let mut fed = Fed::new(&config);
    let head = fed.engine.handle().outbox().head().borrow().sequence;
    let more = [change(items(), 6, 1, None, Some(item(1, 2, 100))), change(items(), 6, 2, None, Some(item(2, 2, 100)))];
    fed.feed(&more, record(Phase::Tail, 5, 6, &[(&items(), 2)]));
    assert_eq!(fed.told(head), [], "what was told last stands");
    assert_eq!(fed.get("order", "1"), None);
    let letters = fed.set_aside();
    let keys: Vec<(&str, &str)> = letters.iter().map(|letter| (letter.entity.as_str(), letter.key.as_str())).collect();
    assert_eq!((keys, letters[0].version), (vec![("order", "1"), ("order", "2")], lsn(6)));
    assert!(letters[0].reason.contains("more than 1 children in a list"), "{}", letters[0].reason);
    // One fits again and is told although it is what it was, one goes.
    let less = [change(items(), 7, 1, Some(item(1, 2, 100)), None), change(orders(), 7, 2, Some(order(2, "new")), None)];
    fed.feed(&less, record(Phase::Tail, 6, 7, &[(&orders(), 1), (&items(), 1)]));
    let told = fed.told(head);
    let present: Vec<(&str, bool)> = told.iter().map(|change| (change.key.as_str(), change.document.is_some())).collect();
    assert_eq!(present, [("1", true), ("2", false)]);
    assert_eq!(fed.set_aside(), []);
    // With less room, what stands is looked through.
    drop(fed);
    let narrower = LIMITED.replace("children: 1", "children: 0");
    let engine = Engine::open(&Config { plans: plans(&[&narrower]), ..config }).unwrap();
    let letters = engine.handle().dead_letters();
    assert_eq!(letters.list(&Which::All, 10).unwrap().len(), 2);
    assert_eq!(letters.retry(&Which::All).unwrap().documents, 2);
}

#[test]
fn a_document_that_is_set_aside_is_in_no_roll_up_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let counted = "{entity: counted, of: order, group_by: [status], aggregates: {orders: {count: rows}}}";
    let config = Config { plans: plans(&[LIMITED, counted]), threads: 1, ..config(dir.path()) };
    let mut fed = Fed::new(&config);
    let count = |status: &str, orders: u64| Some(format!("{{\"status\":\"{status}\",\"orders\":{orders}}}"));
    assert_eq!((fed.get("counted", "new"), fed.get("counted", "done")), (count("new", 2), count("done", 1)));
    let head = fed.engine.handle().outbox().head().borrow().sequence;
    let more = [change(items(), 6, 1, None, Some(item(1, 2, 100))), change(items(), 6, 2, None, Some(item(3, 2, 100)))];
    fed.feed(&more, record(Phase::Tail, 5, 6, &[(&items(), 2)]));
    // Nothing is told of the orders, and their groups are without them.
    let told = |fed: &Fed, after: u64| {
        let told = fed.told(after).into_iter();
        told.map(|change| (change.entity.to_string(), change.key.to_string(), change.document.is_some())).collect::<Vec<_>>()
    };
    let of = |entity: &str, key: &str, present: bool| (entity.to_owned(), key.to_owned(), present);
    assert_eq!(told(&fed, head), [of("counted", "done", false), of("counted", "new", true)]);
    assert_eq!((fed.get("counted", "new"), fed.get("counted", "done")), (count("new", 1), None));
    // A state that begins with the documents as they are has the same.
    drop(fed);
    let engine = Engine::open(&Config { plans: plans(&[LIMITED, &counted.replace("orders:", "n:")]), ..config.clone() }).unwrap();
    let found = engine.handle().get("counted", &EntityKey::from_text("new")).unwrap().unwrap();
    assert_eq!(
        (found.1.as_str(), engine.handle().get("counted", &EntityKey::from_text("done")).unwrap()),
        (r#"{"status":"new","n":1}"#, None)
    );
}
