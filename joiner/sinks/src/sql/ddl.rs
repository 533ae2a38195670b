//! What has to be done to an entity's tables for them to have the shape that is wanted. Pure: what is there comes in, statements come out, so that `tributary check` can say them and `prepare` run them.
//!
//! # Whose a column is
//! Columns and tables that Tributary made stand in `_tributary_shape`, a row for each version of an entity's tables, with the statements that led there. Only these are ever changed or dropped. Everything in them can be made of the
//! documents again, so whatever is no longer wanted goes, and whatever changes in meaning is dropped and made anew: nobody reads values of an earlier definition under a name of today's. A column that only becomes wider is
//! changed where it stands. Columns of others are left alone, as long as rows can be written without them.
//!
//! # When it is filled
//! New columns and tables of children are empty. The new version of the shape is noted as not filled, the sink names the entity as one that lacks something, and the caller loads it anew, and no other; documents are served meanwhile
//! as they are. The last write of the load notes that all is filled, or, where several instances write, that their share is.
//!
//! # Whose documents they are
//! With the shape stands what the documents follow from, where the caller says it ([`Sink::describe`](crate::Sink::describe)). Where that is another than was on record, documents may be of either from then on, and the entity is loaded anew, too.
//!
//! # Indexes
//! They are made when the table is full: behind the load where there is to be one, else at once, on a connection of their own where the database can (`Indexing`), so that nothing waits for them. In their names is what they are
//! over, so an index of another definition is another index.

use std::collections::BTreeMap;

use schemas::entity::EntityInfo;
use serde::{Deserialize, Serialize};

use super::kind::{Dialect, Kind, widens};
use super::shape::{BASE, Column, INDEX_PREFIX, Shape, TableShape, index_name};
use super::{check_base, quote_in};
use crate::Error;

/// What an entity's tables were last made to be; kept as JSON in `_tributary_shape`, whose reader ignores what it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    #[serde(default)]
    keeps_deleted: bool,
    /// What the documents follow from; none where it was never said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_of: Option<String>,
    #[serde(default)]
    columns: BTreeMap<String, RecordedColumn>,
    /// By the table's name.
    #[serde(default)]
    children: BTreeMap<String, RecordedChild>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedColumn {
    path: String,
    #[serde(rename = "type")]
    type_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedChild {
    list: String,
    columns: BTreeMap<String, RecordedColumn>,
}

/// A table as the catalog describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) columns: Vec<FoundColumn>,
    /// The names of its indexes that can be used.
    pub(crate) indexes: Vec<String>,
    /// The names of those that are being made, or were cut short.
    pub(crate) broken_indexes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundColumn {
    pub(crate) name: String,
    pub(crate) type_name: String,
    /// A row cannot be written without a value for it.
    pub(crate) required: bool,
}

/// What has to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The entity's table is made: what the frontier says of it is not so.
    pub(crate) creates: bool,
    pub(crate) statements: Vec<String>,
    /// Something is empty that was not there before.
    pub(crate) unfilled: bool,
    /// What there is then, where it is something else than is on record.
    pub(crate) record: Option<Recorded>,
    /// What may be there while it is being done, for databases that cannot do it all at once: what was, and beside it what comes.
    pub(crate) meanwhile: Recorded,
    /// Statements that make the missing indexes, after dropping what is left of earlier attempts: each by itself, outside of a transaction.
    pub(crate) indexes: Vec<String>,
}

impl Plan {
    /// Whether nothing is left to be filled by a load: a table that is made is loaded anyway.
    pub(crate) const fn leaves_filled(&self) -> bool {
        self.creates || !self.unfilled
    }

    /// All that it would do, in words that a person can read.
    pub(crate) fn described(&self) -> impl Iterator<Item = &String> {
        self.statements.iter().chain(&self.indexes)
    }
}

impl Recorded {
    fn of(shape: &Shape, dialect: Dialect) -> Self {
        let columns = |table: &TableShape| -> BTreeMap<String, RecordedColumn> {
            let recorded =
                |column: &Column| RecordedColumn { path: column.path.clone(), type_name: column.kind.type_name(dialect) };
            table.columns.iter().map(|column| (column.plain.clone(), recorded(column))).collect()
        };
        let child = |child: &super::shape::ChildShape| {
            (child.table.name.clone(), RecordedChild { list: child.list.clone(), columns: columns(&child.table) })
        };
        Self {
            keeps_deleted: shape.keeps_deleted,
            made_of: shape.made_of.clone(),
            columns: columns(&shape.table),
            children: shape.children.iter().map(child).collect(),
        }
    }

    /// What is there already, and what of this is not.
    fn beside(&self, already: &Self) -> Self {
        let mut both = already.clone();
        both.keeps_deleted |= self.keeps_deleted;
        for (name, column) in &self.columns {
            both.columns.entry(name.clone()).or_insert_with(|| column.clone());
        }
        for (name, child) in &self.children {
            let known = both.children.entry(name.clone()).or_insert_with(|| child.clone());
            for (name, column) in &child.columns {
                known.columns.entry(name.clone()).or_insert_with(|| column.clone());
            }
        }
        both
    }

    /// The columns of the entity's own table: name, path and type.
    pub(crate) fn promoted(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.columns.iter().map(|(name, column)| (name.as_str(), column.path.as_str(), column.type_name.as_str()))
    }

    /// The tables that it speaks of, beside the entity's own.
    pub(crate) fn children(&self) -> impl Iterator<Item = &String> {
        self.children.keys()
    }
}

/// Compares what is wanted with what is there. An error says which table or column of somebody else is in the way.
pub(crate) fn plan(
    target: &str,
    dialect: Dialect,
    info: &EntityInfo,
    shape: &Shape,
    recorded: Option<&Recorded>,
    found: &BTreeMap<String, Found>,
) -> Result<Plan, Error> {
    let mut wanted = Recorded::of(shape, dialect);
    let nothing = Recorded::default();
    let recorded = recorded.unwrap_or(&nothing);
    let mut planner = Planner { target, dialect, plan: Plan::default() };
    let table = found.get(&*info.name);
    // Who says nothing of it has not changed it.
    wanted.made_of = wanted.made_of.or_else(|| recorded.made_of.clone());
    planner.plan.unfilled = table.is_some() && recorded.made_of.is_some() && wanted.made_of != recorded.made_of;
    planner.drop_children(&wanted, recorded, found, table.is_none());
    match table {
        None => planner.create(shape),
        Some(found) => {
            check_base(target, info, &found.columns, dialect)?;
            planner.mark_of_deletion(shape, recorded.keeps_deleted, found)?;
            planner.alter(&shape.table, &BASE, &recorded.columns, found)?;
        }
    }
    for child in &shape.children {
        let name = &child.table.name;
        let known = recorded.children.get(name).filter(|known| known.list == child.list && table.is_some());
        match (known, found.get(name)) {
            (Some(known), Some(found)) => planner.alter(&child.table, &["key", "position"], &known.columns, found)?,
            (None, Some(_)) if !recorded.children.contains_key(name) => {
                let message = format!("the table {name:?} exists, and is not one that Tributary made for {}", child.list);
                return Err(planner.taken(message));
            }
            _ => planner.create_child(&info.name, &child.table, table.is_some()),
        }
    }
    let mut plan = planner.plan;
    plan.meanwhile = wanted.beside(recorded);
    plan.record = (wanted != *recorded).then_some(wanted);
    Ok(plan)
}

struct Planner<'a> {
    target: &'a str,
    dialect: Dialect,
    plan: Plan,
}

impl Planner<'_> {
    fn quote(&self, name: &str) -> String {
        quote_in(self.dialect, name)
    }

    fn run(&mut self, statement: String) {
        self.plan.statements.push(statement);
    }

    fn taken(&self, message: String) -> Error {
        let remedy =
            "Rename that table or column, or the one in the sink's `tables`, or give the sink a schema or database of its own";
        Error::misconfigured(self.target, message, remedy)
    }

    /// Tables that are no longer wanted, are of another list, or hold rows of a table that is gone.
    fn drop_children(&mut self, wanted: &Recorded, recorded: &Recorded, found: &BTreeMap<String, Found>, orphaned: bool) {
        for (name, known) in &recorded.children {
            let same = wanted.children.get(name).is_some_and(|wanted| wanted.list == known.list);
            if found.contains_key(name) && (orphaned || !same) {
                self.run(format!("DROP TABLE {}", self.quote(name)));
            }
        }
    }

    fn create(&mut self, shape: &Shape) {
        let (key, rest) = match self.dialect {
            Dialect::Postgres => (
                "key text COLLATE \"C\" PRIMARY KEY, version text COLLATE \"C\" NOT NULL, commit_time_ms bigint NOT NULL, document jsonb NOT NULL",
                ")",
            ),
            Dialect::Mysql => (
                "`key` varbinary(2000) NOT NULL PRIMARY KEY, version char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
                 commit_time_ms bigint NOT NULL, document json NOT NULL",
                ") ENGINE = InnoDB",
            ),
            Dialect::Sqlite => (
                "key TEXT PRIMARY KEY NOT NULL, version TEXT NOT NULL, commit_time_ms INTEGER NOT NULL, document TEXT NOT NULL",
                ") STRICT",
            ),
        };
        let mark = if shape.keeps_deleted { format!(", {}", self.mark()) } else { String::new() };
        let columns = self.definitions(&shape.table);
        self.run(format!("CREATE TABLE IF NOT EXISTS {} ({key}{mark}{columns}{rest}", self.quote(&shape.table.name)));
        self.plan.creates = true;
        self.indexes(&shape.table, &Found::default(), &[]);
    }

    fn create_child(&mut self, entity: &str, table: &TableShape, beside_rows: bool) {
        let parent = self.quote(entity);
        let (base, reference, rest) = match self.dialect {
            Dialect::Postgres => (
                "key text COLLATE \"C\" NOT NULL, position integer NOT NULL",
                format!("FOREIGN KEY (key) REFERENCES {parent} (key) ON DELETE CASCADE, PRIMARY KEY (key, position)"),
                ")",
            ),
            Dialect::Mysql => (
                "`key` varbinary(2000) NOT NULL, position int NOT NULL",
                format!("FOREIGN KEY (`key`) REFERENCES {parent} (`key`) ON DELETE CASCADE, PRIMARY KEY (`key`, position)"),
                ") ENGINE = InnoDB",
            ),
            Dialect::Sqlite => (
                "key TEXT NOT NULL, position INTEGER NOT NULL",
                format!("FOREIGN KEY (key) REFERENCES {parent} (key) ON DELETE CASCADE, PRIMARY KEY (key, position)"),
                ") STRICT, WITHOUT ROWID",
            ),
        };
        let columns = self.definitions(table);
        self.run(format!("CREATE TABLE {} ({base}{columns}, {reference}{rest}", self.quote(&table.name)));
        self.plan.unfilled |= beside_rows;
        self.indexes(table, &Found::default(), &[]);
    }

    fn mark(&self) -> &'static str {
        match self.dialect {
            Dialect::Postgres => "deleted boolean NOT NULL DEFAULT false",
            Dialect::Mysql => "deleted tinyint(1) NOT NULL DEFAULT 0",
            Dialect::Sqlite => "deleted INTEGER NOT NULL DEFAULT 0",
        }
    }

    fn mark_of_deletion(&mut self, shape: &Shape, recorded: bool, found: &Found) -> Result<(), Error> {
        let there = found.columns.iter().find(|column| column.name == "deleted");
        let table = self.quote(&shape.table.name);
        match (shape.keeps_deleted, there) {
            (true, Some(_)) if !recorded => {
                let message = format!("the table {:?} has a column \"deleted\" that Tributary did not make", shape.table.name);
                return Err(self.taken(message));
            }
            (true, None) => self.run(format!("ALTER TABLE {table} ADD COLUMN {}", self.mark())),
            (false, Some(_)) if recorded => {
                self.run(format!("DELETE FROM {table} WHERE deleted"));
                self.run(format!("ALTER TABLE {table} DROP COLUMN deleted"));
            }
            _ => {}
        }
        Ok(())
    }

    /// A column's type where it is made.
    fn definition(&self, column: &Column) -> String {
        let type_name = column.kind.type_name(self.dialect);
        let characters = match (self.dialect, column.kind) {
            (Dialect::Mysql, Kind::Text(_)) => " CHARACTER SET utf8mb4",
            (Dialect::Mysql, Kind::Uuid) => " CHARACTER SET ascii",
            _ => "",
        };
        format!("{} {type_name}{characters}", column.name)
    }

    fn definitions(&self, table: &TableShape) -> String {
        table.columns.iter().fold(String::new(), |text, column| format!("{text}, {}", self.definition(column)))
    }

    /// Brings the columns and indexes of a table that is there to what is wanted.
    fn alter(
        &mut self,
        table: &TableShape,
        base: &[&str],
        recorded: &BTreeMap<String, RecordedColumn>,
        found: &Found,
    ) -> Result<(), Error> {
        let name = self.quote(&table.name);
        let is = |column: &FoundColumn| column.name.clone();
        let mut dropped: Vec<String> = Vec::new();
        let (mut added, mut widened) = (Vec::new(), Vec::new());
        for column in &table.columns {
            let wanted = column.kind.type_name(self.dialect);
            let Some(there) = found.columns.iter().find(|there| there.name.eq_ignore_ascii_case(&column.plain)) else {
                added.push(column);
                continue;
            };
            let same = same_type(self.dialect, &wanted, &there.type_name);
            match recorded.get(&column.plain) {
                None if same => self.plan.unfilled = true,
                None => {
                    let (table, column, is) = (&table.name, &column.plain, &there.type_name);
                    let message = format!("the table {table:?} has a column {column:?} of type {is}, which is to be {wanted}");
                    return Err(self.taken(message));
                }
                Some(known) if known.path == column.path && same => {}
                Some(known) if known.path == column.path && widens(&plain_type(self.dialect, &there.type_name), &wanted) => {
                    widened.push(column);
                }
                Some(_) => {
                    dropped.push(is(there));
                    added.push(column);
                }
            }
        }
        for there in &found.columns {
            let wanted = table.columns.iter().any(|column| column.plain.eq_ignore_ascii_case(&there.name));
            if wanted || base.contains(&there.name.as_str()) || there.name == "deleted" {
                continue;
            }
            if recorded.contains_key(&there.name) {
                dropped.push(is(there));
            } else if there.required {
                let message =
                    format!("the table {:?} has a column {:?} without which no row can be written", table.name, there.name);
                return Err(self.taken(message));
            }
        }
        // First the indexes: SQLite drops no column that is indexed, and MySQL would leave an index of the others.
        self.indexes(table, found, &dropped);
        for column in &dropped {
            self.run(format!("ALTER TABLE {name} DROP COLUMN {}", self.quote(column)));
        }
        for column in widened {
            let definition = self.definition(column);
            self.run(match self.dialect {
                Dialect::Mysql => format!("ALTER TABLE {name} MODIFY COLUMN {definition}"),
                _ => format!("ALTER TABLE {name} ALTER COLUMN {} TYPE {}", column.name, column.kind.type_name(self.dialect)),
            });
        }
        for column in added {
            self.plan.unfilled = true;
            self.run(format!("ALTER TABLE {name} ADD COLUMN {}", self.definition(column)));
        }
        Ok(())
    }

    /// Drops our indexes that are not wanted, or are over columns that go; lists the missing ones.
    fn indexes(&mut self, table: &TableShape, found: &Found, dropped: &[String]) {
        let name = self.quote(&table.name);
        for broken in &found.broken_indexes {
            self.plan.indexes.push(format!("DROP INDEX CONCURRENTLY IF EXISTS {}", self.quote(broken)));
        }
        let mut wanted = Vec::new();
        for columns in &table.indexes {
            let over = self.over(table, columns);
            let index = index_name(&table.name, columns, &over);
            let goes = columns.iter().any(|column| dropped.contains(column));
            if goes || !found.indexes.contains(&index) {
                let made = self.quote(&index);
                self.plan.indexes.push(match self.dialect {
                    Dialect::Postgres => format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {made} ON {name} ({over})"),
                    Dialect::Mysql => format!("ALTER TABLE {name} ADD INDEX {made} ({over})"),
                    Dialect::Sqlite => format!("CREATE INDEX IF NOT EXISTS {made} ON {name} ({over})"),
                });
            }
            if !goes {
                wanted.push(index);
            }
        }
        let unwanted = found.indexes.iter().filter(|index| index.starts_with(INDEX_PREFIX) && !wanted.contains(index));
        for index in unwanted {
            let index = self.quote(index);
            self.run(match self.dialect {
                Dialect::Mysql => format!("ALTER TABLE {name} DROP INDEX {index}"),
                _ => format!("DROP INDEX IF EXISTS {index}"),
            });
        }
    }

    /// The columns of an index. MySQL indexes long texts by their beginning, and no more than 3,072 bytes.
    fn over(&self, table: &TableShape, columns: &[String]) -> String {
        const MYSQL_BYTES: usize = 3072;
        let kind = |name: &String| table.columns.iter().find(|column| column.plain == *name).map(|column| column.kind);
        let is_long = |kind: Option<Kind>| kind.is_some_and(|kind| matches!(kind, Kind::Text(_) | Kind::Bytes(_) | Kind::Json));
        let bytes = |name: &String| match (name.as_str(), kind(name)) {
            (_, Some(kind)) => kind.mysql_index_bytes(),
            // Our own.
            ("key", None) => Some(2000),
            _ => Some(22),
        };
        let whole: Option<usize> = columns.iter().map(bytes).sum();
        let cut = self.dialect == Dialect::Mysql && whole.is_none_or(|whole| whole > MYSQL_BYTES);
        let (long, short): (Vec<&String>, Vec<&String>) = columns.iter().partition(|name| is_long(kind(name)));
        let rest: usize = short.iter().filter_map(|name| bytes(name)).sum();
        let share = MYSQL_BYTES.saturating_sub(rest) / long.len().max(1);
        let part = |name: &String| match kind(name) {
            Some(kind) if cut && is_long(Some(kind)) => {
                let room = if matches!(kind, Kind::Bytes(_)) { share } else { share / 4 };
                let limit = match kind {
                    Kind::Text(Some(limit)) | Kind::Bytes(Some(limit)) => usize::from(limit),
                    _ => usize::MAX,
                };
                let room = room.min(191);
                if limit <= room { self.quote(name) } else { format!("{}({room})", self.quote(name)) }
            }
            _ => self.quote(name),
        };
        columns.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}

/// A type's name without what differs between servers.
fn plain_type(dialect: Dialect, name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    if dialect != Dialect::Mysql {
        return lower;
    }
    // MySQL before 8.0.19 and MariaDB say how wide a whole number is shown.
    match lower.split_once('(') {
        Some((kind @ ("smallint" | "int" | "bigint"), _)) => kind.to_owned(),
        _ => lower,
    }
}

/// Whether the catalog's name of a type is that of the wanted one. MariaDB keeps JSON as text and calls it that.
pub(crate) fn same_type(dialect: Dialect, wanted: &str, found: &str) -> bool {
    let found = plain_type(dialect, found);
    found.eq_ignore_ascii_case(wanted) || dialect == Dialect::Mysql && wanted == "json" && found == "longtext"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::shape::{Shapes, Tables};
    use super::*;

    fn order() -> EntityInfo {
        let item = json!({"type": "object", "properties": {"sku": {"type": "string", "x-sql-type": "varchar(9)"}}});
        let schema = json!({"type": "object", "properties": {
            "id": {"type": "integer", "x-sql-type": "int"}, "name": {"type": "string", "x-sql-type": "nvarchar(20)"},
            "text": {"type": "string", "x-sql-type": "nvarchar(max)"}, "items": {"type": "array", "items": item}}});
        EntityInfo { name: "order".into(), key: Vec::new(), document_schema: schema }
    }

    fn shape(dialect: Dialect, yaml: &str) -> std::sync::Arc<Shape> {
        let tables: Tables = serde_yaml_ng::from_str(yaml).unwrap();
        Shapes::resolve("sink s", dialect, &tables, &[order()]).unwrap().of("order")
    }

    fn table(columns: &[(&str, &str)]) -> Found {
        let column = |(name, type_name): &(&str, &str)| FoundColumn {
            name: (*name).to_owned(),
            type_name: (*type_name).to_owned(),
            required: true,
        };
        Found { columns: columns.iter().map(column).collect(), ..Found::default() }
    }

    const BASE_OF_MARIADB: [(&str, &str); 4] =
        [("key", "varbinary(2000)"), ("version", "char(22)"), ("commit_time_ms", "bigint(20)"), ("document", "longtext")];

    /// MySQL can do one statement at a time: wherever it was cut short, the next look finds the way on.
    #[test]
    fn a_change_that_was_cut_short_anywhere_is_finished() {
        let old =
            shape(Dialect::Mysql, "{order: {columns: {a: id, b: name}, children: {line: {list: items, columns: {sku: sku}}}}}");
        let new =
            shape(Dialect::Mysql, "{order: {columns: {a: name, c: id}, children: {part: {list: items, columns: {sku: sku}}}}}");
        let (before, after) = (Recorded::of(&old, Dialect::Mysql), Recorded::of(&new, Dialect::Mysql));
        let meanwhile = after.beside(&before);
        for state in 0..48 {
            let (a, b, c, line, part) = (state % 3, state / 3 % 2 == 1, state / 6 % 2 == 1, state / 12 % 2 == 1, state / 24 == 1);
            let mut columns = BASE_OF_MARIADB.to_vec();
            columns.extend([("a", "int(11)"), ("a", "varchar(20)")].get(a));
            columns.extend(b.then_some(("b", "varchar(20)")));
            columns.extend(c.then_some(("c", "int(11)")));
            let mut found = BTreeMap::from([("order".to_owned(), table(&columns))]);
            let child = || table(&[("key", "varbinary(2000)"), ("position", "int(11)"), ("sku", "varchar(9)")]);
            found.extend(line.then(|| ("line".to_owned(), child())));
            found.extend(part.then(|| ("part".to_owned(), child())));
            let plan = plan("MySQL", Dialect::Mysql, &order(), &new, Some(&meanwhile), &found).unwrap();
            let runs = |words: &str| plan.statements.iter().any(|statement| statement.contains(words));
            assert_eq!(runs("DROP COLUMN `a`"), a < 2, "{:?}", plan.statements);
            assert!(runs("ADD COLUMN `a` varchar(20)"), "its values are those of another member, and gone");
            assert_eq!((runs("DROP COLUMN `b`"), runs("ADD COLUMN `c` int"), runs("DROP TABLE `line`")), (b, !c, line));
            assert_eq!(runs("CREATE TABLE `part`"), !part);
            assert!(plan.unfilled && plan.record == Some(after.clone()) && !plan.creates);
        }
    }

    #[test]
    fn nothing_is_done_to_what_is_as_it_should_be() {
        let wanted = "{order: {columns: {a: id, b: name, t: text}, indexes: [[b, t]], deleted: keep}}";
        let shape = shape(Dialect::Mysql, wanted);
        let mut columns = BASE_OF_MARIADB.to_vec();
        columns.extend([("deleted", "tinyint(1)"), ("a", "int(11)"), ("b", "varchar(20)"), ("t", "longtext")]);
        let mut found = table(&columns);
        let over = "`b`, `t`(191)";
        found.indexes.push(index_name("order", &["b".to_owned(), "t".to_owned()], over));
        let found = BTreeMap::from([("order".to_owned(), found)]);
        let recorded = Recorded::of(&shape, Dialect::Mysql);
        let same = plan("MySQL", Dialect::Mysql, &order(), &shape, Some(&recorded), &found).unwrap();
        assert_eq!(same, Plan { meanwhile: recorded.clone(), ..Plan::default() });
        let text = serde_json::to_string(&recorded).unwrap();
        assert_eq!(serde_json::from_str::<Recorded>(&text).unwrap(), recorded);
        // A table that is gone takes its children's with it.
        let gone = plan("MySQL", Dialect::Mysql, &order(), &shape, Some(&recorded), &BTreeMap::new()).unwrap();
        assert!(gone.creates && !gone.unfilled && gone.record.is_none(), "{gone:?}");
        assert!(gone.indexes[0].ends_with("(`b`, `t`(191))"), "{:?}", gone.indexes);
    }

    #[test]
    fn documents_of_another_definition_are_written_anew() {
        let tables = Tables::default();
        let planned = |made_of: Option<&str>, recorded: Option<&Recorded>| {
            let shapes = Shapes::resolve("sink s", Dialect::Sqlite, &tables, &[order()]).unwrap();
            let made_of = made_of.map(|made_of| ("order".into(), made_of.to_owned())).into_iter().collect();
            let base = [("key", "TEXT"), ("version", "TEXT"), ("commit_time_ms", "INTEGER"), ("document", "TEXT")];
            let found = BTreeMap::from([("order".to_owned(), table(&base))]);
            plan("SQLite", Dialect::Sqlite, &order(), &shapes.made_of(&made_of).of("order"), recorded, &found).unwrap()
        };
        let first = planned(Some("first"), None);
        assert!(!first.unfilled, "what stands there was made before anybody said of what");
        let recorded = first.record.unwrap();
        assert_eq!(planned(Some("first"), Some(&recorded)), Plan { meanwhile: recorded.clone(), ..Plan::default() });
        assert_eq!(planned(None, Some(&recorded)), Plan { meanwhile: recorded.clone(), ..Plan::default() });
        let other = planned(Some("other"), Some(&recorded));
        assert!(other.unfilled && other.statements.is_empty());
        assert!(planned(Some("first"), other.record.as_ref()).unfilled, "and back again");
    }

    #[test]
    fn an_index_that_was_cut_short_is_made_again() {
        let shape = shape(Dialect::Postgres, "{order: {columns: {a: id}, indexes: [[a]]}}");
        let name = index_name("order", &["a".to_owned()], "\"a\"");
        let mut found =
            table(&[("key", "text"), ("version", "text"), ("commit_time_ms", "bigint"), ("document", "jsonb"), ("a", "integer")]);
        found.broken_indexes.push(name.clone());
        let found = BTreeMap::from([("order".to_owned(), found)]);
        let recorded = Recorded::of(&shape, Dialect::Postgres);
        let plan = plan("PostgreSQL", Dialect::Postgres, &order(), &shape, Some(&recorded), &found).unwrap();
        assert!(plan.statements.is_empty(), "nothing waits for it");
        let expected = [
            format!("DROP INDEX CONCURRENTLY IF EXISTS \"{name}\""),
            format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS \"{name}\" ON \"order\" (\"a\")"),
        ];
        assert_eq!(plan.indexes, expected);
    }
}
