//! Keys as long as SQL Server's widest index takes (1,700 bytes) of several columns, text and bytes, with zeros in them, one the beginning of another: through rows, indexes by foreign key, fan-out, roll-ups, deletions and restarts no two are taken for one, and
//! none is lost.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use joiner::{Config, Page};
use schemas::TableName;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityDefinition;
use schemas::event::{ChangeEvent, Row};
use schemas::plan::Plan;
use schemas::progress::Phase;
use schemas::table::{Column, TableSchema};
use schemas::value::Value;
use serde_json::{Value as Json, json};
use support::shop::Shop;
use support::{change, config, lsn, read, record};

const ENTITIES: [&str; 3] = [
    "{entity: part, table: dbo.parts, fields: [name, code, id, status], many: {lines: {table: dbo.lines, by: [name, code], fields: [line, amount]}}}",
    "{entity: line, table: dbo.lines, fields: [line, amount], one: {part: {table: dbo.parts, by: [name, code], fields: [id, status]}}}",
    "{entity: total, table: dbo.lines, group_by: [name, code], aggregates: {lines: {count: rows}, amount: {sum: rows.amount}}}",
];

/// Bytes of an index entry, of which a character of `nvarchar` takes two.
const KEY_BYTES: usize = 1700;
const NAME: usize = 600;
const CODE: usize = KEY_BYTES - 2 * NAME;

fn table(name: &str, key: Vec<usize>, columns: &[(&str, &str)]) -> Arc<TableSchema> {
    let column = |(name, sql_type): &(&str, &str)| Column {
        name: (*name).to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable: false,
        case_insensitive: *name == "name",
    };
    Arc::new(TableSchema { name: TableName::new("dbo", name), columns: columns.iter().map(column).collect(), key })
}

fn parts() -> Arc<TableSchema> {
    let columns = [("name", "nvarchar(600)"), ("code", "varbinary(500)"), ("id", "int"), ("status", "varchar(10)")];
    table("parts", vec![0, 1], &columns)
}

fn lines() -> Arc<TableSchema> {
    let columns = [("name", "nvarchar(600)"), ("code", "varbinary(500)"), ("line", "int"), ("amount", "int")];
    table("lines", vec![0, 1, 2], &columns)
}

/// Of one, two and three bytes in UTF-8, and pairs of surrogates.
fn names() -> Vec<String> {
    let begins = |characters: &str, units: usize| {
        let mut name = String::new();
        let mut characters = characters.chars().cycle();
        while name.encode_utf16().count() < units {
            name.push(characters.next().unwrap());
        }
        assert_eq!(name.encode_utf16().count(), units);
        name
    };
    let plain = begins("Part", NAME - 2);
    let wide = begins("漢Жä", NAME - 2);
    vec![
        format!("{plain}\0\0"),
        format!("{plain}\0a"),
        format!("{plain}a\0"),
        format!("{plain}\0"),
        plain,
        format!("{wide}, "),
        format!("{wide}%/"),
        begins("😀", NAME),
    ]
}

fn codes() -> Vec<Vec<u8>> {
    let ends = |first: u8, last: u8| {
        let mut code = vec![0; CODE];
        (code[0], code[CODE - 1]) = (first, last);
        code
    };
    vec![vec![], vec![0], vec![0; CODE - 1], ends(0, 0), ends(0, 1), ends(0, 0xff), ends(0xff, 0), vec![0xff; CODE]]
}

/// A part's place among the names and codes.
type Place = (usize, usize);

/// What the tables hold.
struct Model {
    names: Vec<String>,
    codes: Vec<Vec<u8>>,
    parts: BTreeMap<Place, &'static str>,
    lines: BTreeMap<(Place, i64), i64>,
}

impl Model {
    fn key(&self, (name, code): Place, lower: bool) -> [Value; 2] {
        let name = if lower { self.names[name].to_lowercase() } else { self.names[name].clone() };
        [Value::Text(name), Value::Bytes(self.codes[code].clone())]
    }

    fn part(&self, place: Place, status: &str) -> Row {
        let rest = [Value::Int(id(place)), Value::Text(status.to_owned())];
        self.key(place, false).into_iter().chain(rest).collect()
    }

    /// The foreign key is written in small letters.
    fn line(&self, place: Place, line: i64, amount: i64) -> Row {
        self.key(place, true).into_iter().chain([Value::Int(line), Value::Int(amount)]).collect()
    }

    fn lines_of(&self, place: Place) -> Vec<(i64, i64)> {
        self.lines.iter().filter(|((of, _), _)| *of == place).map(|((_, line), amount)| (*line, *amount)).collect()
    }

    /// By entity, the documents.
    fn documents(&self) -> [BTreeSet<String>; 3] {
        let part = |(place, status): (&Place, &&str)| {
            let lines: Vec<Json> =
                self.lines_of(*place).into_iter().map(|(line, amount)| json!({"line": line, "amount": amount})).collect();
            let (name, code) = (&self.names[place.0], BASE64.encode(&self.codes[place.1]));
            json!({"name": name, "code": code, "id": id(*place), "status": status, "lines": lines})
        };
        let line = |((place, line), amount): (&(Place, i64), &i64)| {
            let part = self.parts.get(place).map(|status| json!({"id": id(*place), "status": status}));
            json!({"line": line, "amount": amount, "part": part})
        };
        let of_places: BTreeSet<Place> = self.lines.keys().map(|(place, _)| *place).collect();
        let total = |place: Place| {
            let lines = self.lines_of(place);
            json!({"lines": lines.len(), "amount": lines.iter().map(|(_, amount)| amount).sum::<i64>()})
        };
        let texts = |documents: Vec<Json>| documents.iter().map(sorted).collect();
        [
            texts(self.parts.iter().map(part).collect()),
            texts(self.lines.iter().map(line).collect()),
            texts(of_places.into_iter().map(total).collect()),
        ]
    }
}

/// With its members in one order.
fn sorted(document: &Json) -> String {
    let members: BTreeMap<&String, &Json> = document.as_object().unwrap().iter().collect();
    serde_json::to_string(&members).unwrap()
}

/// So that no two documents are alike.
fn id((name, code): Place) -> i64 {
    (100 * name + code) as i64
}

fn amount(place: Place, line: i64) -> i64 {
    1000 * id(place) + line
}

/// What was told, by entity and key.
type Told = BTreeMap<(String, EntityKey), Json>;

struct Case {
    shop: Shop,
    model: Model,
    told: Told,
    cursor: u64,
    at: u8,
}

impl Case {
    fn begin(dir: &std::path::Path) -> Self {
        let tables = [parts(), lines()];
        let lookup = |name: &TableName| tables.iter().find(|table| table.name == *name).cloned();
        let definitions = ENTITIES.map(|text| EntityDefinition::from_yaml("long.yaml", text).unwrap());
        let plans = Plan::resolve_all(&definitions, &lookup).unwrap().into_iter().map(Arc::new).collect();
        let mut model = Model { names: names(), codes: codes(), parts: BTreeMap::new(), lines: BTreeMap::new() };
        let longest = model.names[0].encode_utf16().count() * 2 + model.codes[3].len();
        assert_eq!(longest, KEY_BYTES);
        let mut shop = Shop::open(Config { plans, chunk_entities: 7, ..config(dir) });
        let mut rows = Vec::new();
        for place in (0..model.names.len()).flat_map(|name| (0..model.codes.len()).map(move |code| (name, code))) {
            rows.push(read(parts(), 5, model.part(place, "new")));
            model.parts.insert(place, "new");
            for line in 0..2 {
                rows.push(read(lines(), 5, model.line(place, line, amount(place, line))));
                model.lines.insert((place, line), amount(place, line));
            }
        }
        shop.feed(&rows);
        let counts = [(&parts(), model.parts.len() as u64), (&lines(), model.lines.len() as u64)];
        shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts));
        let mut case = Self { shop, model, told: Told::new(), cursor: 0, at: 5 };
        case.told = case.scanned();
        case.check();
        case
    }

    fn scanned(&self) -> Told {
        let found = Mutex::new(Told::new());
        let receive = |changes: Vec<EntityChange>| {
            for change in changes {
                let document = serde_json::from_str(change.document.as_deref().unwrap()).unwrap();
                let twice = found.lock().unwrap().insert((change.entity.to_string(), change.key), document);
                assert_eq!(twice, None);
            }
            true
        };
        ["part", "line", "total"].iter().for_each(|entity| self.shop.engine.scan(entity, 1, &receive).unwrap());
        found.into_inner().unwrap()
    }

    /// One transaction: rows of `parts` and `lines`, before and after.
    fn commit(&mut self, of_parts: Vec<(Option<Row>, Option<Row>)>, of_lines: Vec<(Option<Row>, Option<Row>)>) {
        let from = self.at;
        self.at += 1;
        let counts = [of_parts.len() as u64, of_lines.len() as u64];
        let of_parts = of_parts.into_iter().map(|change| (parts(), change));
        let all = of_parts.chain(of_lines.into_iter().map(|change| (lines(), change)));
        let events: Vec<ChangeEvent> =
            (1..).zip(all).map(|(n, (table, (before, after)))| change(table, self.at, n, before, after)).collect();
        self.shop.feed(&events);
        self.shop.tell(record(Phase::Tail, from, self.at, &[(&parts(), counts[0]), (&lines(), counts[1])]));
        self.check();
    }

    /// As after a kill.
    fn restart(mut self) -> Self {
        self.shop = self.shop.restart();
        self.check();
        self
    }

    /// What stands in the state, and what was told by now, is what the tables are.
    fn check(&mut self) {
        let Page::Changes { changes, .. } = self.shop.engine.handle().outbox().read_after(self.cursor, usize::MAX).unwrap()
        else {
            panic!("trimmed")
        };
        for (sequence, change) in changes {
            self.cursor = sequence;
            let key = (change.entity.to_string(), change.key);
            let was = match change.document {
                Some(document) => self.told.insert(key, serde_json::from_str(&document).unwrap()),
                None => Some(self.told.remove(&key).expect("what is gone was there")),
            };
            // The keys by which an entity is deleted are those by which it was told.
            assert!(was.is_none_or(|was| was.is_object()));
        }
        let scanned = self.scanned();
        assert!(self.told == scanned, "what was told is another thing than what is there");
        for (entity, expected) in ["part", "line", "total"].into_iter().zip(self.model.documents()) {
            let of_entity = scanned.iter().filter(|((of, _), _)| of == entity);
            let found: BTreeSet<String> = of_entity
                .map(|((_, key), document)| {
                    let (_, text) = self.shop.engine.handle().get(entity, key).unwrap().unwrap();
                    assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), *document);
                    // Of a group, its key is in the document as it is compared.
                    let mut document = document.clone();
                    if let (true, Some(members)) = (entity == "total", document.as_object_mut()) {
                        members.retain(|name, _| name != "name" && name != "code");
                    }
                    sorted(&document)
                })
                .collect();
            let other = found.symmetric_difference(&expected).next();
            assert!(other.is_none(), "{entity} at {}: {} documents for {}: {other:?}", self.at, found.len(), expected.len());
        }
    }
}

#[test]
fn keys_of_1700_bytes_are_told_apart_wherever_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = Case::begin(dir.path());
    let all: Vec<Place> = case.model.parts.keys().copied().collect();
    assert_eq!(case.scanned().len(), all.len() * 4, "parts, their lines, and a total of each");

    // Fan-out: each part's status, in two transactions, with a kill between them.
    for (some, status) in [(all.iter().step_by(2), "paid"), (all[1..].iter().step_by(2), "sent")] {
        let some: Vec<Place> = some.copied().collect();
        let rows =
            some.iter().map(|place| (Some(case.model.part(*place, "new")), Some(case.model.part(*place, status)))).collect();
        case.model.parts.extend(some.into_iter().map(|place| (place, status)));
        case.commit(rows, Vec::new());
        case = case.restart();
    }

    // Lines change, go from one part to the next (their keys hold the foreign key: a deletion and an insertion), and go.
    let moved: Vec<(Place, Place)> = all.iter().copied().zip(all[1..].iter().copied()).step_by(3).collect();
    let mut rows = Vec::new();
    for (from, to) in &moved {
        let model = &mut case.model;
        let amount = model.lines.remove(&(*from, 1)).unwrap();
        rows.push((Some(model.line(*from, 1, amount)), None));
        rows.push((None, Some(model.line(*to, 7, amount))));
        model.lines.insert((*to, 7), amount);
        let was = model.lines[&(*to, 0)];
        rows.push((Some(model.line(*to, 0, was)), Some(model.line(*to, 0, was + 1))));
        model.lines.insert((*to, 0), was + 1);
    }
    case.commit(Vec::new(), rows);
    case = case.restart();

    // Every other part goes, its lines stay, and find none; then they go, and it comes back.
    let gone: Vec<Place> = all.iter().copied().skip(1).step_by(2).collect();
    let rows = gone.iter().map(|place| (Some(case.model.part(*place, case.model.parts[place])), None)).collect();
    case.model.parts.retain(|place, _| !gone.contains(place));
    case.commit(rows, Vec::new());
    let mut rows = Vec::new();
    for ((place, line), amount) in case.model.lines.clone().into_iter().filter(|((place, _), _)| gone.contains(place)) {
        rows.push((Some(case.model.line(place, line, amount)), None));
        case.model.lines.remove(&(place, line));
    }
    case.commit(Vec::new(), rows);
    case = case.restart();
    let rows = gone.iter().map(|place| (None, Some(case.model.part(*place, "back")))).collect();
    case.model.parts.extend(gone.iter().map(|place| (*place, "back")));
    case.commit(rows, Vec::new());
    assert_eq!(case.shop.frontier(), lsn(case.at));
}
