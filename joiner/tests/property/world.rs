//! A random world: tables, entity definitions over them, and transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::entity::{
    Aggregate, AggregateFunction, AggregateValue, EntityDefinition, Exceeded, FanOut, Field, GroupBy, Limits, ManyEdge, OneEdge,
    OrderBy, Rows as GroupRows, TimeToLive,
};
use schemas::event::{ChangeEvent, Op, Row};
use schemas::plan::{Plan, PlanError};
use schemas::table::{Column, SqlType, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};

use crate::dice::Dice;

/// Every table has the same columns; what they are, and which are the key, differs.
pub(crate) const K1: usize = 0;
pub(crate) const K2: usize = 1;
pub(crate) const F1: usize = 2;
pub(crate) const F2: usize = 3;
pub(crate) const D: usize = 4;
pub(crate) const M: usize = 5;
pub(crate) const X: usize = 6;
pub(crate) const U: usize = 7;
pub(crate) const T: usize = 8;
pub(crate) const NAMES: [&str; 9] = ["k1", "k2", "f1", "f2", "d", "m", "x", "u", "t"];

/// Where time begins, 2024-01-01 in days since 0001-01-01; and 1970-01-01.
const START: i64 = 738_885;
const UNIX: i64 = 719_162;
const HOUR_MS: i64 = 3_600_000;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;
/// How long entities live.
pub(crate) const SPANS: [&str; 4] = ["0s", "5h", "1d", "36h"];

/// Some hours after time begins, in milliseconds since 1970-01-01.
pub(crate) const fn hours(n: i64) -> i64 {
    (START - UNIX) * DAY_MS + n * HOUR_MS
}

/// The same of what stands in a row.
pub(crate) fn milliseconds(value: &Value) -> Option<i64> {
    let of = |days: u32, ticks: u64| (i64::from(days) - UNIX) * DAY_MS + (ticks / 10_000) as i64;
    match *value {
        Value::Date(days) => Some(of(days, 0)),
        Value::DateTime { days, ticks, .. } => Some(of(days, ticks)),
        Value::DateTimeOffset { days, ticks, offset_minutes, .. } => Some(of(days, ticks) - i64::from(offset_minutes) * 60_000),
        _ => None,
    }
}

/// What rows are filtered by; `brute` knows what they mean.
pub(crate) const FILTERS: [&str; 5] = ["d >= 1", "m > 0.5", "u != 2 && f2 != 0", "d == null || d < 2", "k2 + u > 1"];
/// Numbers, and a yes or no.
pub(crate) const VALUES: [&str; 3] = ["d + u", "m * 2", "u == 1"];
pub(crate) const COMPUTED: [&str; 3] = ["d * 2 + 1", "m + 0.25", "u == 1 ? \"one\" : \"other\""];

/// What hangs on a node.
#[derive(Default)]
struct Edges {
    one: BTreeMap<String, OneEdge>,
    many: BTreeMap<String, ManyEdge>,
    aggregates: BTreeMap<String, Aggregate>,
    computed: BTreeMap<String, String>,
}

/// Rows by the normal form of their key.
pub(crate) type Rows = BTreeMap<Vec<String>, Row>;
/// A database at one LSN: rows by table.
pub(crate) type Database = Vec<Rows>;

pub(crate) struct World {
    pub(crate) tables: Vec<Arc<TableSchema>>,
    pub(crate) plans: Vec<Arc<Plan>>,
    textual: bool,
    /// How many values of a key there are: few, so that rows meet.
    keys: usize,
}

impl World {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        Self::of_sources(dice, &[])
    }

    /// The tables are those of several sources, in turns. Tables of different sources may have one name.
    pub(crate) fn of_sources(dice: &mut Dice, sources: &[&str]) -> Self {
        let textual = dice.chance(40);
        let keys = 2 + dice.below(4);
        let mut tables: Vec<_> = (0..2 + dice.below(3)).map(|n| table(dice, n, textual)).collect();
        for (n, table) in tables.iter_mut().enumerate().filter(|_| !sources.is_empty()) {
            let name = TableName::new("dbo", format!("t{}", n / sources.len())).of(&sources[n % sources.len()].into());
            *table = Arc::new(TableSchema { name, ..(**table).clone() });
        }
        let mut world = Self { tables, plans: Vec::new(), textual, keys };
        let mut definitions: Vec<EntityDefinition> = (0..1 + dice.below(2)).map(|n| world.entity(dice, n)).collect();
        // What is told last of an entity that is set aside, only who has followed it from the beginning knows.
        for limits in definitions.iter_mut().filter(|_| !sources.is_empty()).filter_map(|one| one.limits.as_mut()) {
            limits.exceeded = Exceeded::Truncate;
        }
        if dice.chance(30) {
            definitions.extend(of_documents(dice, "r0", &definitions[0]));
            // Of a roll-up in turn.
            let last = definitions.last().filter(|last| last.of.is_some() && dice.chance(30)).cloned();
            definitions.extend(last.and_then(|last| of_documents(dice, "r1", &last)));
        }
        let plans = world.resolve(&definitions).unwrap_or_else(|error| panic!("{error}\n{definitions:?}"));
        world.plans = plans;
        world
    }

    /// The same without roll-ups of documents, which take all of them.
    pub(crate) fn of_tables(mut self) -> Self {
        self.plans.retain(|plan| plan.input.is_none());
        self
    }

    pub(crate) fn resolve(&self, definitions: &[EntityDefinition]) -> Result<Vec<Arc<Plan>>, PlanError> {
        let lookup = |name: &TableName| self.tables.iter().find(|table| table.name == *name).cloned();
        Ok(Plan::resolve_all(definitions, &lookup)?.into_iter().map(Arc::new).collect())
    }

    fn entity(&self, dice: &mut Dice, n: usize) -> EntityDefinition {
        let table = dice.below(self.tables.len());
        let definition = EntityDefinition::new(format!("e{n}"), self.tables[table].name.clone());
        let filter = filter(dice, 25);
        if dice.chance(20) {
            return self.roll_up(dice, EntityDefinition { filter, ..definition });
        }
        let edges = self.edges(dice, 0);
        let composite = self.tables[table].key.len() == 2;
        EntityDefinition {
            // Several rows may then have one entity key.
            key: if composite && dice.chance(20) { vec!["k1".into()] } else { Vec::new() },
            filter,
            limits: dice.chance(25).then(|| {
                let exceeded = if dice.chance(60) { Exceeded::Truncate } else { Exceeded::DeadLetter };
                Limits { children: Some(dice.below(3)), bytes: None, exceeded }
            }),
            time_to_live: if dice.chance(35) { time_to_live(dice) } else { None },
            fields: fields(dice),
            one: edges.one,
            many: edges.many,
            aggregates: edges.aggregates,
            computed: edges.computed,
            ..definition
        }
    }

    fn roll_up(&self, dice: &mut Dice, definition: EntityDefinition) -> EntityDefinition {
        let rows = self.edges(dice, 2);
        let groups = [&["k1"][..], &["f1"], &["f1", "d"], &["u + 1"], &["k2", "u + 1"]];
        let part = |expression: &&str| GroupBy { name: format!("by {expression}"), expression: (*expression).to_owned() };
        let group_by = dice.pick(&groups).iter().map(part).collect();
        let mut aggregates = aggregates(dice, "rows", "", &rows.aggregates);
        aggregates.insert("n".into(), Aggregate::count("rows"));
        let computed = [("many".to_owned(), "n > 2".to_owned())].into();
        let rows = GroupRows { one: rows.one, many: rows.many, aggregates: rows.aggregates, computed: rows.computed };
        EntityDefinition { group_by, rows, aggregates, computed, ..definition }
    }

    fn edges(&self, dice: &mut Dice, depth: usize) -> Edges {
        let mut edges = Edges::default();
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let count = if depth >= 3 { 0 } else { dice.below(3 - usize::from(depth > 1)) + usize::from(depth == 0) };
        for n in 0..count {
            let table = dice.pick(&self.tables).name.clone();
            let inner = self.edges(dice, depth + 1);
            let (require, filter) = (dice.chance(15), filter(dice, 20));
            let repeat = if depth == 2 && dice.chance(25) { 1 + dice.below(2) } else { 0 };
            if dice.chance(45) {
                let (by, references) = dice
                    .pick(&[(&["f1"][..], &["k1"][..]), (&["f1", "f2"], &["k1", "k2"]), (&["k1"], &["k1"]), (&["f2"], &["d"])])
                    .to_owned();
                let edge = OneEdge {
                    references: columns(references),
                    require,
                    filter,
                    fan_out: if dice.chance(50) { FanOut::Lazy } else { FanOut::Strict },
                    repeat,
                    fields: fields(dice),
                    one: inner.one,
                    many: inner.many,
                    aggregates: inner.aggregates,
                    computed: inner.computed,
                    ..OneEdge::new(table, columns(by))
                };
                edges.one.insert(format!("o{depth}{n}"), edge);
            } else {
                let (by, references) = dice
                    .pick(&[
                        (&["f1"][..], &["k1"][..]),
                        (&["f1", "f2"], &["k1", "k2"]),
                        (&["k1"], &["k1"]),
                        (&["f2"], &["d"]),
                        (&["f2"], &["k2"]),
                    ])
                    .to_owned();
                let order_by = if dice.chance(40) {
                    let names = [&["d"][..], &["m", "d"], &["f1"], &["k2"], &["k1", "k2"], &["f2", "u"]];
                    let order = |name: &&str| OrderBy { column: (*name).to_owned(), descending: false };
                    let mut order: Vec<OrderBy> = dice.pick(&names).iter().map(order).collect();
                    order.iter_mut().for_each(|part| part.descending = dice.chance(40));
                    order
                } else {
                    Vec::new()
                };
                let name = format!("m{depth}{n}");
                edges.aggregates.extend(aggregates(dice, &name, &n.to_string(), &inner.aggregates));
                if dice.chance(15) {
                    edges.computed.insert(format!("size{n}"), format!("size({name})"));
                }
                let edge = ManyEdge {
                    references: columns(references),
                    order_by,
                    require,
                    filter,
                    repeat,
                    fields: fields(dice),
                    one: inner.one,
                    many: inner.many,
                    aggregates: inner.aggregates,
                    computed: inner.computed,
                    ..ManyEdge::new(table, columns(by))
                };
                edges.many.insert(name, edge);
            }
        }
        for (n, text) in COMPUTED.iter().enumerate() {
            if dice.chance(8) {
                edges.computed.insert(format!("computed{n}"), (*text).to_owned());
            }
        }
        edges
    }

    pub(crate) fn empty(&self) -> Database {
        vec![Rows::new(); self.tables.len()]
    }

    fn key_value(&self, dice: &mut Dice, table: usize, column: usize) -> Value {
        let n = dice.below(self.keys);
        let declared = &self.tables[table].columns[column];
        if self.textual {
            let text = ["a", "b", "c", "d", "é\""][n.min(4)].to_owned();
            let text = if dice.chance(30) { text.to_uppercase() } else { text };
            return Value::Text(if dice.chance(15) { format!("{text} ") } else { text });
        }
        match declared.sql_type {
            SqlType::Decimal { scale, .. } => Value::Decimal { mantissa: (n as i128 - 1) * 10i128.pow(u32::from(scale)), scale },
            _ => Value::Int(n as i64 - 1),
        }
    }

    fn value(&self, dice: &mut Dice, table: usize, column: usize) -> Value {
        match column {
            K1 => self.key_value(dice, table, column),
            F1 if dice.chance(85) => self.key_value(dice, table, column),
            K2 => Value::Int(dice.below(3) as i64),
            F2 | D if dice.chance(85) => Value::Int(dice.below(3) as i64),
            M if dice.chance(80) => Value::Decimal { mantissa: dice.below(4000) as i128 - 2000, scale: 2 },
            X if dice.chance(80) => Value::Text(["long", "lång \u{1F600}\n", ""][dice.below(3)].to_owned()),
            U => Value::Int(dice.below(3) as i64),
            T if dice.chance(85) => self.moment(dice, table),
            _ => Value::Null,
        }
    }

    /// A time around those that commits have.
    fn moment(&self, dice: &mut Dice, table: usize) -> Value {
        let at = hours(dice.below(90) as i64 - 40) + if dice.chance(30) { 1 } else { 0 };
        let offset_minutes = *dice.pick(&[0, 120, -570]);
        let split = |at: i64| ((at.div_euclid(DAY_MS) + UNIX) as u32, at.rem_euclid(DAY_MS) as u64 * 10_000);
        let (days, ticks) = split(at);
        match self.tables[table].columns[T].sql_type {
            SqlType::Date => Value::Date(days),
            SqlType::DateTimeOffset { scale } => {
                let (days, ticks) = split(at + i64::from(offset_minutes) * 60_000);
                Value::DateTimeOffset { days, ticks, scale, offset_minutes }
            }
            _ => Value::DateTime { days, ticks, scale: 3 },
        }
    }

    fn row(&self, dice: &mut Dice, table: usize) -> Row {
        (0..NAMES.len()).map(|column| self.value(dice, table, column)).collect()
    }

    /// One transaction over the database, and its events in order.
    pub(crate) fn transaction(&self, dice: &mut Dice, tables: &[usize], database: &mut Database, lsn: Lsn) -> Vec<ChangeEvent> {
        let mut log = Log { events: Vec::new(), lsn };
        for _ in 0..1 + dice.below(4) {
            let table = *dice.pick(tables);
            let known: Vec<Vec<String>> = database[table].keys().cloned().collect();
            let choice = dice.below(10);
            if known.is_empty() || choice < 4 {
                let row = self.row(dice, table);
                let key = self.normal_key(table, &row);
                match database[table].insert(key, row.clone()) {
                    None => log.push(self, table, Op::Create, None, Some(row)),
                    Some(old) => self.update(&mut log, database, table, old, row),
                }
            } else if choice < 8 {
                let key = dice.pick(&known).clone();
                let Some(old) = database[table].remove(&key) else { continue };
                let mut new = old.clone();
                for _ in 0..1 + dice.below(2) {
                    let column = *dice.pick(&[K1, F1, F2, D, M, X, U, F1, D, T]);
                    new[column] = self.value(dice, table, column);
                }
                let new_key = self.normal_key(table, &new);
                if new_key != key && database[table].contains_key(&new_key) {
                    // The unique index refuses it.
                    database[table].insert(key, old);
                    continue;
                }
                database[table].insert(new_key, new.clone());
                self.update(&mut log, database, table, old, new);
            } else {
                let key = dice.pick(&known).clone();
                if let Some(old) = database[table].remove(&key) {
                    log.push(self, table, Op::Delete, Some(old), None);
                }
            }
        }
        log.events
    }

    /// A change of key, even of its case alone, is a delete and an insert.
    fn update(&self, log: &mut Log, _database: &Database, table: usize, old: Row, new: Row) {
        let key = |row: &Row| self.tables[table].key.iter().map(|&column| row[column].clone()).collect::<Vec<_>>();
        if key(&old) != key(&new) {
            log.push(self, table, Op::Delete, Some(old), None);
            log.push(self, table, Op::Create, None, Some(new));
            return;
        }
        let (mut before, mut after) = (old, new);
        if before[X] == after[X] {
            (before[X], after[X]) = (Value::Unavailable, Value::Unavailable);
        }
        log.push(self, table, Op::Update, Some(before), Some(after));
    }

    pub(crate) fn normal_key(&self, table: usize, row: &Row) -> Vec<String> {
        self.tables[table]
            .key
            .iter()
            .map(|&column| crate::brute::normal(&self.tables[table].columns[column], &row[column]).unwrap_or_default())
            .collect()
    }
}

struct Log {
    events: Vec<ChangeEvent>,
    lsn: Lsn,
}

impl Log {
    fn push(&mut self, world: &World, table: usize, op: Op, before: Option<Row>, after: Option<Row>) {
        let nth = self.events.len();
        let operation = match op {
            Op::Delete => 1,
            Op::Create => 2,
            Op::Update => 4,
            Op::Read | Op::Reread => 0,
        };
        // A delete and an insert that stand for one update share a seqval; the command id rises with every change.
        let mut seqval = [0; 10];
        seqval[9] = 200 - nth as u8;
        let position = Position { commit_lsn: self.lsn, command_id: nth as i32 + 1, seqval: Lsn::from_bytes(seqval), operation };
        self.events.push(ChangeEvent { table: world.tables[table].clone(), op, before, after, position, commit_time_ms: 5 });
    }
}

fn table(dice: &mut Dice, n: usize, textual: bool) -> Arc<TableSchema> {
    let column = |name: &str, sql_type: &str, nullable: bool, case_insensitive: bool| Column {
        name: name.to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable,
        case_insensitive,
    };
    let mut key_column = |name: &str, nullable: bool| {
        if textual {
            column(name, "nvarchar(20)", nullable, dice.chance(70))
        } else {
            let kinds: [&str; 4] = ["int", "int", "bigint", "decimal(8,2)"];
            column(name, kinds[dice.below(4)], nullable, false)
        }
    };
    let (k1, f1) = (key_column("k1", false), key_column("f1", true));
    let time = *dice.pick(&["datetime2(3)", "datetimeoffset(3)", "date"]);
    let columns = vec![
        k1,
        column("k2", "int", false, false),
        f1,
        column("f2", "int", true, false),
        column("d", "int", true, false),
        column("m", "decimal(8,2)", true, false),
        column("x", "nvarchar(max)", true, false),
        column("u", "int", false, false),
        column("t", time, true, false),
    ];
    let key = if dice.chance(50) { vec![K1] } else { vec![K1, K2] };
    Arc::new(TableSchema { name: TableName::new("dbo", format!("t{n}")), columns, key })
}

fn fields(dice: &mut Dice) -> Option<Vec<Field>> {
    if dice.chance(15) {
        return None;
    }
    let chosen = NAMES.iter().filter(|_| dice.chance(40)).map(|name| (*name).to_owned()).collect::<Vec<_>>();
    Some(
        chosen
            .into_iter()
            .map(|column| Field { name: if dice.chance(20) { format!("{column} \"é\"") } else { column.clone() }, column })
            .collect(),
    )
}

/// A roll-up of an entity's documents by members that are whole numbers, if it has any.
fn of_documents(dice: &mut Dice, name: &str, of: &EntityDefinition) -> Option<EntityDefinition> {
    let whole = |column: &str| ["d", "u", "k2", "f2"].contains(&column);
    let fields = of.fields.iter().flatten().filter(|field| field.name == field.column && whole(&field.column));
    let mut numbers: Vec<String> = fields.map(|field| field.name.clone()).collect();
    let counts = of.aggregates.iter().filter(|(_, aggregate)| aggregate.function == AggregateFunction::Count);
    numbers.extend(counts.map(|(name, _)| name.clone()));
    if numbers.is_empty() {
        return None;
    }
    let pick = |dice: &mut Dice| dice.pick(&numbers).clone();
    let by = pick(dice);
    let mut group_by = vec![GroupBy { name: format!("by {by}"), expression: by }];
    if dice.chance(40) {
        group_by.push(GroupBy { name: "next".into(), expression: format!("{} + 1", pick(dice)) });
    }
    let mut aggregates = BTreeMap::from([("n".to_owned(), Aggregate::count("rows"))]);
    for function in [
        AggregateFunction::Sum,
        AggregateFunction::Min,
        AggregateFunction::Max,
        AggregateFunction::Avg,
        AggregateFunction::Distinct,
    ] {
        if dice.chance(40) {
            let value = if dice.chance(50) {
                AggregateValue::Member(pick(dice))
            } else {
                AggregateValue::Expression(format!("{} + 1", pick(dice)))
            };
            let filter = dice.chance(30).then(|| format!("{} > 0", pick(dice)));
            aggregates.insert(
                format!("of {}", function.name()),
                Aggregate { function, edge: "rows".into(), value: Some(value), filter },
            );
        }
    }
    let filter = dice.chance(30).then(|| format!("{} > 0", pick(dice)));
    let computed = [("many".to_owned(), "n > 2".to_owned())].into();
    let (of, table) = (Some(of.entity.clone()), TableName::none());
    Some(EntityDefinition { of, filter, group_by, aggregates, computed, ..EntityDefinition::new(name, table) })
}

pub(crate) fn time_to_live(dice: &mut Dice) -> Option<TimeToLive> {
    Some(TimeToLive { column: "t".into(), duration: dice.pick(&SPANS).parse().unwrap() })
}

fn filter(dice: &mut Dice, percent: usize) -> Option<String> {
    dice.chance(percent).then(|| (*dice.pick(&FILTERS)).to_owned())
}

/// Aggregates over an edge; `inner`: those that its rows have.
fn aggregates(dice: &mut Dice, edge: &str, suffix: &str, inner: &BTreeMap<String, Aggregate>) -> BTreeMap<String, Aggregate> {
    let mut found = BTreeMap::new();
    if dice.chance(40) {
        found.insert(format!("count{suffix}"), Aggregate { filter: filter(dice, 30), ..Aggregate::count(edge) });
    }
    for column in ["d", "m"] {
        if dice.chance(30) {
            found.insert(format!("sum{suffix}{column}"), Aggregate::of(AggregateFunction::Sum, edge, column));
        }
    }
    for function in AggregateFunction::ALL {
        use AggregateFunction::{All, Any, Avg, Count, Distinct, First, Last, Max, Min, Sum};
        if function == Count || !dice.chance(8) {
            continue;
        }
        let expression = |text: &str| AggregateValue::Expression(text.to_owned());
        let value = match function {
            Any | All => expression(VALUES[2]),
            First | Last | Distinct if dice.chance(50) => AggregateValue::Member("x".into()),
            Count | Sum | Avg | Min | Max | First | Last | Distinct if dice.chance(50) => expression(VALUES[dice.below(2)]),
            _ => AggregateValue::Member((*dice.pick(&["d", "m", "u"])).to_owned()),
        };
        let aggregate = Aggregate { function, edge: edge.to_owned(), value: Some(value), filter: filter(dice, 30) };
        found.insert(format!("{}{suffix}", function.name()), aggregate);
    }
    // Of what the rows have counted themselves.
    let counted = inner.iter().find(|(_, aggregate)| aggregate.function == AggregateFunction::Count);
    if let Some((name, _)) = counted.filter(|_| dice.chance(40)) {
        found.insert(format!("inner{suffix}"), Aggregate::of(AggregateFunction::Sum, edge, name.clone()));
    }
    found
}
