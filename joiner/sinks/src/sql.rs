//! What the SQL sinks share: names, the shape of an entity's tables, and how a deleted entity stays deleted.
//!
//! # Layout
//! One table for each entity, named as the entity: `key` (primary key), `version` (the LSN's text, which sorts as the LSN does), `commit_time_ms`, `document`, and the columns that the configuration promotes (`shape`). It holds live
//! entities and nothing else, so that other people's SQL needs no condition, unless it is told to keep what was deleted. Our own tables (`migrations/`) start with an underscore, which no entity's name does.
//!
//! # Why an older version never replaces a newer one (INV-5), although deleted rows are really gone
//! For a row that is there, its own version guards it. For one that is not, there are two witnesses:
//! - its **tombstone** `(entity, key, version)`, written in the transaction that deleted the row: an upsert needs a version at least as high;
//! - the entity's **floor**: upserts below it are passed over. It is raised to P, and the tombstones at or below P removed, in one transaction, and only while P is at or
//!   below the frontier F that this database holds. F says that every change at or below F is here. So a change below P ≤ F that comes again has been superseded by what is
//!   here, be that a row or the row's absence, and dropping it is right. Nothing else can bring a purged key back, since a change at or above P is by itself as new as the
//!   tombstone was.
//!
//! A first load ([`Sink::end_load`](crate::Sink::end_load)) says the same of its version V: every live entity was written with V, so rows below V are deleted and the floor
//! becomes V. Where several instances write, each raises a floor of its own part of the keys, which it alone goes by, before it looks for what has vanished. Changes *at* the floor are not dropped, so that a load that was cut short after `end_load` can be repeated.
//!
//! When P moves is a matter of space, not of correctness: it follows F at a distance of [`TOMBSTONE_RETENTION_MS`] of the source's time, which leaves room to load again at the
//! version that the database holds already, with a changed definition: a document of the same version that differs replaces the one that is there.

use std::collections::{BTreeMap, HashMap};

use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::{Lsn, Vector};

use tokio::task::JoinHandle;

use crate::{Error, Operator, Reading};

#[cfg(any(feature = "sqlite", feature = "mysql"))]
pub(crate) mod bind;
pub(crate) mod cells;
pub(crate) mod ddl;
pub(crate) mod kind;
mod moment;
pub(crate) mod pool;
pub(crate) mod promoted;
pub(crate) mod shape;

use ddl::{Found, FoundColumn, Plan, Recorded};
use kind::Dialect;
use shape::{Row, Shape, Shapes};

/// How long tombstones are kept, in the source's time.
pub(crate) const TOMBSTONE_RETENTION_MS: i64 = 3_600_000;
/// Purging is tried once in so many writes that carried a frontier.
pub(crate) const PURGE_EVERY_WRITES: u32 = 1_000;

/// An identifier in double quotes.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An identifier, quoted as this database does.
pub(crate) fn quote_in(dialect: Dialect, name: &str) -> String {
    match dialect {
        Dialect::Mysql => format!("`{}`", name.replace('`', "``")),
        _ => quote(name),
    }
}

/// Refuses names that could not stand as a table's: lower-case letters, digits, `_` and `-` after a letter, at most 63 bytes (PostgreSQL's limit), not `sqlite_…`.
pub(crate) fn check_name(target: &str, entity: &str) -> Result<(), Error> {
    let mut characters = entity.chars();
    let valid = characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
        && entity.len() <= 63
        && !entity.starts_with("sqlite_");
    if valid {
        return Ok(());
    }
    let message = format!("the entity name {entity:?} cannot be a table's name");
    Err(Error::misconfigured(
        target,
        message,
        "Use at most 63 lower-case letters, digits, '_' and '-', starting with a letter and not with 'sqlite_'",
    ))
}

/// Refuses a table that has not the columns which every entity's table begins with.
pub(crate) fn check_base(target: &str, entity: &EntityInfo, found: &[FoundColumn], dialect: Dialect) -> Result<(), Error> {
    let types = match dialect {
        Dialect::Postgres => ["text", "text", "bigint", "jsonb"],
        Dialect::Mysql => ["varbinary(2000)", "char(22)", "bigint", "json"],
        Dialect::Sqlite => ["TEXT", "TEXT", "INTEGER", "TEXT"],
    };
    let expected = shape::BASE.into_iter().zip(types);
    let has = |(name, kind): (&str, &str)| {
        found.iter().any(|column| column.name == name && ddl::same_type(dialect, kind, &column.type_name))
    };
    if expected.clone().all(has) {
        return Ok(());
    }
    let columns = |pairs: Vec<String>| pairs.join(", ");
    let message = format!(
        "the table {:?} exists with columns ({}), but Tributary's has ({})",
        entity.name,
        columns(found.iter().map(|column| format!("{} {}", column.name, column.type_name)).collect()),
        columns(expected.map(|(name, kind)| format!("{name} {kind}")).collect()),
    );
    Err(Error::misconfigured(
        target,
        message,
        "Rename that table or the entity, or give the sink a schema or database of its own",
    ))
}

/// The changes of one entity in a batch.
#[derive(Default)]
pub(crate) struct Group<'r, 'a> {
    pub(crate) upserts: Vec<&'r Row<'a>>,
    pub(crate) deletions: Vec<&'a EntityChange>,
}

/// Splits a batch by entity and kind, keys in order: neighbours in an index are then written together, and two writers would lock in one order.
pub(crate) fn group<'r, 'a>(rows: &'r [Row<'a>]) -> BTreeMap<&'a str, Group<'r, 'a>> {
    let mut groups = BTreeMap::<&str, Group<'_, '_>>::new();
    for row in rows {
        let group = groups.entry(&row.change.entity).or_default();
        if row.change.document.is_some() { group.upserts.push(row) } else { group.deletions.push(row.change) }
    }
    for group in groups.values_mut() {
        group.upserts.sort_unstable_by(|a, b| a.change.key.cmp(&b.change.key));
        group.deletions.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
    groups
}

/// What `_tributary_shape` says of an entity's tables.
pub(crate) fn recorded(target: &str, text: &str) -> Result<Recorded, Error> {
    serde_json::from_str(text).map_err(|error| Error::unexpected(target, format!("_tributary_shape: {error}")))
}

pub(crate) fn recorded_text(target: &str, record: &Recorded) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|error| Error::unexpected(target, error))
}

/// What has to be done to an entity's tables, with the version of the shape that is on record, 0 where there is none.
pub(crate) type Planned = (EntityInfo, i32, Plan);

/// What has to be done, by entity. `recorded`: the latest of each, with its version.
pub(crate) fn plans(
    target: &str,
    dialect: Dialect,
    shapes: &Shapes,
    entities: &[EntityInfo],
    recorded: &HashMap<String, (i32, Recorded)>,
    found: &BTreeMap<String, Found>,
) -> Result<Vec<Planned>, Error> {
    let plan = |info: &EntityInfo| {
        check_name(target, &info.name)?;
        let known = recorded.get(&*info.name);
        let plan = ddl::plan(target, dialect, info, &shapes.of(&info.name), known.map(|(_, recorded)| recorded), found)?;
        Ok((info.clone(), known.map_or(0, |(version, _)| *version), plan))
    };
    entities.iter().map(plan).collect()
}

/// How many of the tables are there, and what would be done to them.
pub(crate) fn summary(plans: &[Planned]) -> (usize, Vec<String>) {
    let there = plans.iter().filter(|(_, _, plan)| !plan.creates).count();
    (there, plans.iter().flat_map(|(info, _, plan)| said(info, plan)).collect())
}

/// What `tributary check` says of tables that are to be more than a place of documents, and of those that are to be changed.
fn said(info: &EntityInfo, plan: &Plan) -> Vec<String> {
    if plan.creates && plan.record.is_none() {
        return Vec::new();
    }
    let mut said: Vec<String> = plan.described().map(|statement| format!("will run: {statement}")).collect();
    if !plan.leaves_filled() {
        said.push(format!("{} will be loaded anew, to fill what is new there", info.name));
    }
    said
}

/// Indexes that are being made beside what the sink writes. It ends with the sink, though a server may finish what it has begun.
#[derive(Default)]
pub(crate) struct Indexing(Option<JoinHandle<()>>);

impl Indexing {
    /// Nothing happens while an earlier one goes on: what is missing then is found by the next `prepare`.
    pub(crate) fn begin(&mut self, target: &str, making: impl Future<Output = Result<(), Error>> + Send + 'static) {
        if self.0.as_ref().is_some_and(|earlier| !earlier.is_finished()) {
            return;
        }
        let target = target.to_owned();
        self.0 = Some(tokio::spawn(async move {
            if let Err(error) = making.await {
                tracing::warn!(target, %error, "not all indexes could be made; they are tried again at the next start");
            }
        }));
    }
}

impl Drop for Indexing {
    fn drop(&mut self) {
        if let Some(making) = &self.0 {
            making.abort();
        }
    }
}

/// The latest commit time in a batch, from which the age of tombstones is told.
pub(crate) fn newest_ms(rows: &[Row<'_>]) -> i64 {
    rows.iter().map(|row| row.change.commit_time_ms).max().unwrap_or(0)
}

pub(crate) fn operator_text(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq => "=",
        Operator::Neq => "<>",
        Operator::Gt => ">",
        Operator::Gte => ">=",
        Operator::Lt => "<",
        Operator::Lte => "<=",
    }
}

/// Whether text is a decimal number as the source's types are written: no leading zeros, no exponent. `"01234"` is a text that happens to be digits, and is compared as one.
pub(crate) fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    all_digits(whole) && (whole == "0" || !whole.starts_with('0')) && fraction.is_none_or(all_digits)
}

/// Asks for keys behind one, whose rows are live and older than a version, up to a number; the parameters are given in this order.
pub(crate) fn older_statement(shape: &Shape, [after, version, limit]: [&str; 3]) -> String {
    let live = if shape.keeps_deleted { " AND NOT deleted" } else { "" };
    let (table, key) = (&shape.table.quoted, quote_in(shape.dialect, "key"));
    format!("SELECT {key} FROM {table} WHERE {key} > {after} AND version < {version}{live} ORDER BY {key} LIMIT {limit}")
}

/// Asks for the frontier, in one row: `lsn`, the least of the parts, and `sources`, an array of what each part says.
pub(crate) const fn frontier_statement(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "SELECT min(lsn) AS lsn, json_group_array(sources) AS sources FROM _tributary_frontier",
        Dialect::Postgres => "SELECT min(lsn) AS lsn, json_agg(sources)::text AS sources FROM _tributary_frontier",
        Dialect::Mysql => "SELECT min(lsn) AS lsn, CAST(JSON_ARRAYAGG(sources) AS CHAR) AS sources FROM _tributary_frontier",
    }
}

/// What readers say with a frontier, as [`frontier_statement`] has it: of one whose share has not been loaded, nothing. Of several sources, what all parts have in common is included, and nothing is said where one of them does not say.
pub(crate) fn reached<T>(target: &str, lsn: Option<&str>, sources: Option<&str>, value: T) -> Result<Reading<T>, Error> {
    let frontier = lsn.map(|text| parse_lsn(target, text)).transpose()?.filter(|lsn| !lsn.is_zero());
    let wrong = |error: &dyn std::fmt::Display| Error::unexpected(target, format!("_tributary_frontier: {error}"));
    let parts: Vec<Option<String>> = match sources.filter(|_| frontier.is_some()) {
        Some(text) => serde_json::from_str(text).map_err(|error| wrong(&error))?,
        None => Vec::new(),
    };
    let parts: Option<Vec<String>> = parts.into_iter().collect();
    let parts = parts.unwrap_or_default().iter().map(|text| text.parse()).collect::<Result<Vec<Vector>, _>>();
    let mut parts = parts.map_err(|error| wrong(&error))?.into_iter();
    let sources = parts.next().and_then(|first| parts.try_fold(first, |common, part| common.common(&part)));
    Ok(Reading { frontier, sources: sources.unwrap_or_default(), value })
}

pub(crate) fn parse_lsn(target: &str, text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|error| Error::unexpected(target, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_told_from_digits() {
        for text in ["0", "12", "-3", "12.50", "0.5", "-0.05"] {
            assert!(is_decimal(text), "{text}");
        }
        for text in ["", "-", "01", "1.", ".5", "1e3", "+1", "1.2.3", "１"] {
            assert!(!is_decimal(text), "{text}");
        }
    }

    #[test]
    fn of_several_parts_the_least_of_each_source_is_reached() {
        let lsn = |n: u8| Lsn::from_bytes([0, 0, 0, n, 0, 0, 0, 0, 0, 0]);
        let sources = |parts: &[Option<[u8; 2]>]| {
            let of = |[bank, shop]: [u8; 2]| format!("bank={};shop={}", lsn(bank), lsn(shop));
            let parts: Vec<_> = parts.iter().map(|part| part.map(of)).collect();
            let reading = reached("t", Some(&lsn(7).to_string()), Some(&serde_json::json!(parts).to_string()), ());
            reading.map(|reading| (reading.frontier, reading.sources.to_string())).map_err(|error| error.to_string())
        };
        let said = |text: &str| Ok((Some(lsn(7)), text.to_owned()));
        assert_eq!(sources(&[Some([3, 4])]), said(&format!("bank={};shop={}", lsn(3), lsn(4))));
        assert_eq!(sources(&[Some([3, 5]), Some([4, 4])]), said(&format!("bank={};shop={}", lsn(3), lsn(4))));
        assert_eq!(sources(&[Some([3, 4]), None]), said(""));
        assert_eq!(sources(&[None]), said(""));
        assert_eq!(sources(&[]), said(""));
        let none = reached("t", Some(&Lsn::ZERO.to_string()), Some("[null]"), ());
        assert!(none.is_ok_and(|none| none.frontier.is_none() && none.sources.is_empty()));
        assert!(reached("t", Some(&lsn(1).to_string()), Some("[\"bank\"]"), ()).is_err());
    }

    #[test]
    fn names_that_cannot_be_tables_are_refused() {
        assert!(check_name("t", "order-item_2").is_ok());
        for name in ["", "_x", "Order", "a b", "a\"b", "sqlite_x", &"a".repeat(64)] {
            assert!(check_name("t", name).is_err(), "{name}");
        }
    }
}
