//! T-SQL's functions and operators where SQLite's own differ, registered on every connection. Values arrive and leave in their stored form; where the
//! form does not tell the type, the type's code is an argument.

mod aggregates;
mod clr;
mod dates;
mod numbers;
mod strings;

pub(crate) use dates::part_name;
pub(crate) use strings::split_name;

use std::cmp::Ordering;
use std::sync::{Arc, Mutex};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Value as Stored, ValueRef};
use rusqlite::{Connection, Error};
use tds::{SqlError, Value};

use crate::message;
use crate::types::convert::{Mode, convert};
use crate::types::{self, storage};

/// What identity columns and row versions are numbered from during a statement.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) identity: i64,
    pub(crate) increment: i64,
    pub(crate) used: bool,
    pub(crate) rowversion: i64,
}

pub(crate) type SharedCounters = Arc<Mutex<Counters>>;

/// An error on its way through SQLite.
#[derive(Debug)]
struct Packed(String);

impl std::fmt::Display for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Packed {}

pub(crate) fn fail(e: &SqlError) -> Error {
    Error::UserFunctionError(Box::new(Packed(message::pack(e))))
}

const PURE: FunctionFlags = FunctionFlags::SQLITE_UTF8.union(FunctionFlags::SQLITE_DETERMINISTIC);

/// Registers a function; an SQL error of it becomes the statement's.
fn scalar<F>(db: &Connection, name: &str, arguments: i32, f: F) -> rusqlite::Result<()>
where
    F: Fn(&Context<'_>) -> Result<Stored, SqlError> + Send + std::panic::UnwindSafe + 'static,
{
    db.create_scalar_function(name, arguments, PURE, move |ctx| f(ctx).map_err(|e| fail(&e)))
}

fn int(ctx: &Context<'_>, i: usize) -> i64 {
    match ctx.get_raw(i) {
        ValueRef::Integer(n) => n,
        ValueRef::Real(f) => f as i64,
        _ => 0,
    }
}

fn string<'a>(ctx: &'a Context<'_>, i: usize) -> Option<&'a str> {
    match ctx.get_raw(i) {
        ValueRef::Text(t) => std::str::from_utf8(t).ok(),
        _ => None,
    }
}

/// The first argument as it is.
fn copy(ctx: &Context<'_>) -> Stored {
    match ctx.get_raw(0) {
        ValueRef::Null => Stored::Null,
        ValueRef::Integer(i) => Stored::Integer(i),
        ValueRef::Real(f) => Stored::Real(f),
        ValueRef::Text(t) => Stored::Text(String::from_utf8_lossy(t).into_owned()),
        ValueRef::Blob(b) => Stored::Blob(b.to_vec()),
    }
}

fn is_null(ctx: &Context<'_>, i: usize) -> bool {
    matches!(ctx.get_raw(i), ValueRef::Null)
}

/// The comparison of the default collation: cases are alike, trailing blanks do not count.
pub(crate) fn compare_insensitive(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_end_matches(' '), b.trim_end_matches(' '));
    if a.is_ascii() && b.is_ascii() {
        let (x, y) = (a.bytes(), b.bytes());
        return x.map(|c| c.to_ascii_lowercase()).cmp(y.map(|c| c.to_ascii_lowercase()));
    }
    a.chars().flat_map(char::to_lowercase).cmp(b.chars().flat_map(char::to_lowercase))
}

/// Letters before cases: `a`, `A`, `b`, `B`.
fn compare_sensitive(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_end_matches(' '), b.trim_end_matches(' '));
    compare_insensitive(a, b).then_with(|| b.cmp(a))
}

/// A collation as a number, for `enc`.
pub(crate) fn packed(collation: tds::Collation) -> i64 {
    let [a, b, c, d, e] = collation.0;
    i64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
}

/// Registers all functions, aggregates and collations on a connection.
pub(crate) fn register(db: &Connection, counters: &SharedCounters) -> rusqlite::Result<()> {
    db.create_collation("CI", compare_insensitive)?;
    db.create_collation("CS", compare_sensitive)?;
    db.create_collation("BIN2", |a, b| a.trim_end_matches(' ').cmp(b.trim_end_matches(' ')))?;
    conversions(db)?;
    numbers::register(db)?;
    strings::register(db)?;
    dates::register(db)?;
    aggregates::register(db)?;
    clr::register(db)?;
    generators(db, counters)
}

/// `cv(x, from, to, style)`, `tcv` (NULL instead of an error), `acv(x, from, to, table, column)` (assignment: strings must fit).
fn conversions(db: &Connection) -> rusqlite::Result<()> {
    let run = |ctx: &Context<'_>, style: i64, mode: Mode| -> Result<Stored, SqlError> {
        let (from, to) = (types::decode(int(ctx, 1)), types::decode(int(ctx, 2)));
        let value = storage::decode(ctx.get_raw(0), &from);
        Ok(storage::encode(&convert(value, &from, &to, style, mode)?, &to))
    };
    scalar(db, "cv", 4, move |ctx| run(ctx, int(ctx, 3), Mode::Cast))?;
    scalar(db, "tcv", 4, move |ctx| Ok(run(ctx, int(ctx, 3), Mode::Cast).unwrap_or(Stored::Null)))?;
    scalar(db, "acv", 5, move |ctx| {
        run(ctx, 0, Mode::Assign)
            .map_err(|e| message::truncated_in(e, string(ctx, 3).unwrap_or_default(), string(ctx, 4).unwrap_or_default()))
    })?;
    // datetime as change data capture keeps it in its own tables: text.
    scalar(db, "cdt", 1, |ctx| {
        let Some(text) = string(ctx, 0) else { return Ok(Stored::Null) };
        let datetime = tds::DataType::DateTime;
        Ok(storage::encode(
            &convert(Value::Text(text.to_string()), &tds::DataType::VarChar(tds::Length::Max), &datetime, 0, Mode::Cast)?,
            &datetime,
        ))
    })?;
    // And back, for what is written there by SQL.
    scalar(db, "cdt_text", 1, |ctx| {
        let datetime = tds::DataType::DateTime;
        let value = storage::decode(ctx.get_raw(0), &datetime);
        Ok(storage::encode(
            &convert(value, &datetime, &tds::DataType::VarChar(tds::Length::Max), 121, Mode::Cast)?,
            &tds::DataType::Text,
        ))
    })?;
    // enc(x, collation, bytes, table, column): text as a column of another code page takes it.
    scalar(db, "enc", 5, |ctx| {
        let Some(text) = string(ctx, 0) else { return Ok(Stored::Null) };
        let [a, b, c, d, e, ..] = int(ctx, 1).to_le_bytes();
        let collation = tds::Collation([a, b, c, d, e]);
        let mut text = collation.reduced(text);
        let most = usize::try_from(int(ctx, 2)).unwrap_or(usize::MAX);
        while collation.encoded_len(&text) > most && text.ends_with(' ') {
            text.pop();
        }
        if collation.encoded_len(&text) > most {
            let cut: String = text.chars().take(most).collect();
            let (table, column) = (string(ctx, 3).unwrap_or_default(), string(ctx, 4).unwrap_or_default());
            return Err(message::truncated_in(message::truncated(&cut), table, column));
        }
        Ok(Stored::Text(text))
    })?;
    // A value that must not be NULL: SQLite would give a rowid column a number of its own.
    scalar(db, "nn", 3, |ctx| {
        if is_null(ctx, 0) {
            let (table, column) = (string(ctx, 1).unwrap_or_default(), string(ctx, 2).unwrap_or_default());
            return Err(message::error(
                515,
                16,
                format!(
                    "Cannot insert the value NULL into column '{column}', table '{table}'; column does not allow nulls. INSERT fails."
                ),
            ));
        }
        Ok(copy(ctx))
    })?;
    scalar(db, "variant_property", 2, |ctx| {
        let Value::Variant(v) = storage::decode(ctx.get_raw(0), &tds::DataType::SqlVariant) else { return Ok(Stored::Null) };
        let (_, _, length, precision, scale) = crate::catalog::type_facts(&v.0, "");
        let int = tds::DataType::Int;
        let answer = match string(ctx, 1).unwrap_or_default().to_ascii_lowercase().as_str() {
            "basetype" => {
                let name = if matches!(v.0, tds::DataType::Numeric { .. }) { "numeric" } else { types::name(&v.0) };
                (tds::DataType::NVarChar(tds::Length::Limited(128)), Value::Text(name.into()))
            }
            "precision" => (int, Value::Int(i64::from(precision))),
            "scale" => (int, Value::Int(i64::from(scale))),
            "maxlength" => (int, Value::Int(i64::from(length))),
            "collation" if types::is_string(&v.0) => {
                (tds::DataType::NVarChar(tds::Length::Limited(128)), Value::Text(crate::catalog::DEFAULT_COLLATION.into()))
            }
            _ => return Ok(Stored::Null),
        };
        Ok(storage::encode(&Value::Variant(Box::new(answer)), &tds::DataType::SqlVariant))
    })
}

fn generators(db: &Connection, counters: &SharedCounters) -> rusqlite::Result<()> {
    let volatile = FunctionFlags::SQLITE_UTF8;
    let c = counters.clone();
    db.create_scalar_function("next_identity", 0, volatile, move |_| {
        let mut c = c.lock().map_err(|_| fail(&message::error(0, 20, "The session's counters are poisoned.".into())))?;
        c.identity += c.increment;
        c.used = true;
        Ok(c.identity)
    })?;
    let c = counters.clone();
    db.create_scalar_function("next_rowversion", 0, volatile, move |_| {
        let mut c = c.lock().map_err(|_| fail(&message::error(0, 20, "The session's counters are poisoned.".into())))?;
        c.rowversion += 1;
        Ok(c.rowversion.to_be_bytes().to_vec())
    })?;
    db.create_scalar_function("newid", 0, volatile, |_| Ok(storage::guid_to_storage(uuid::Uuid::new_v4().as_bytes()).to_vec()))?;
    db.create_scalar_function("rand", 0, volatile, |_| Ok((uuid::Uuid::new_v4().as_u128() >> 75) as f64 / (1u64 << 53) as f64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn db() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        register(&db, &SharedCounters::default()).unwrap();
        db
    }

    #[test]
    fn the_default_collation_ignores_case_and_trailing_blanks() {
        assert_eq!(compare_insensitive("Abc ", "aBC"), Ordering::Equal);
        assert_eq!(compare_insensitive("é", "É"), Ordering::Equal);
        assert_eq!(compare_sensitive("a", "A"), Ordering::Less);
        assert_eq!(compare_sensitive("A", "b"), Ordering::Less);
    }

    #[test]
    fn errors_pass_through_sqlite_whole() {
        let from = types::code(&tds::DataType::VarChar(tds::Length::Max));
        let to = types::code(&tds::DataType::Int);
        let e = db().query_row("SELECT cv('x', ?1, ?2, 0)", [from, to], |r| r.get::<_, i64>(0)).unwrap_err();
        let e = message::unpack(&e.to_string()).unwrap();
        assert_eq!(
            (e.number, e.message.as_str()),
            (245, "Conversion failed when converting the varchar value 'x' to data type int.")
        );
    }
}
