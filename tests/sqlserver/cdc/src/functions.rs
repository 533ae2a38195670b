//! The functions: `sys.fn_cdc_*` and `cdc.fn_cdc_get_{all,net}_changes_<instance>`.
//!
//! Scalar ones become expressions of SQLite, because a function that SQLite calls back cannot read the database (that needs unsafe code); the pure ones
//! among them rest on SQLite functions that [`register`] installs. The table-valued ones become a SELECT, after the check of the range that SQL Server
//! answers with error 313, whatever is wrong with it: a NULL, a position that cleanup has passed or capture has not reached, an unknown filter.
//!
//! The functions read change tables that exist only in a database enabled for CDC. Without it the expressions name tables that do not exist, which the
//! engine reports as SQL Server does (208, invalid object name 'cdc.lsn_time_mapping').

use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Result as SqliteResult};

use crate::select::{literal, quote, storage};
use crate::{Column, Error, Lsn, Result, Select, schema};

/// An expression in SQLite's SQL, and the T-SQL type of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    pub sql: String,
    pub type_name: &'static str,
}

/// Installs the pure functions that the expressions below call. On every connection.
pub fn register(conn: &Connection) -> SqliteResult<()> {
    let pure = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    conn.create_scalar_function("__cdc_increment_lsn", 1, pure, |context| {
        Ok(lsn_argument(context)?.map(|lsn| Value::from(lsn.increment())))
    })?;
    conn.create_scalar_function("__cdc_decrement_lsn", 1, pure, |context| {
        Ok(lsn_argument(context)?.map(|lsn| Value::from(lsn.decrement())))
    })?;
    conn.create_scalar_function("__cdc_is_bit_set", 2, pure, |context| {
        let (position, mask) = (context.get_raw(0), context.get_raw(1));
        Ok(match (position, mask) {
            (ValueRef::Integer(position), ValueRef::Blob(mask)) => Some(is_bit_set(position, mask)),
            _ => None,
        })
    })?;
    conn.create_aggregate_function("__cdc_or_masks", 1, pure, OrMasks)
}

fn lsn_argument(context: &Context<'_>) -> SqliteResult<Option<Lsn>> {
    context.get(0)
}

/// `sys.fn_cdc_is_bit_set`: bit `position` (from 1) of an update mask, counted from the lowest bit of its last byte.
pub fn is_bit_set(position: i64, mask: &[u8]) -> bool {
    let Ok(bit) = usize::try_from(position - 1) else { return false };
    mask.len().checked_sub(1 + bit / 8).is_some_and(|byte| mask[byte] & (1 << (bit % 8)) != 0)
}

/// All bits of several update masks of one change table.
struct OrMasks;

impl Aggregate<Vec<u8>, Option<Vec<u8>>> for OrMasks {
    fn init(&self, _: &mut Context<'_>) -> SqliteResult<Vec<u8>> {
        Ok(Vec::new())
    }

    fn step(&self, context: &mut Context<'_>, all: &mut Vec<u8>) -> SqliteResult<()> {
        if let ValueRef::Blob(mask) = context.get_raw(0) {
            all.resize(mask.len().max(all.len()), 0);
            for (bits, more) in all.iter_mut().zip(mask) {
                *bits |= more;
            }
        }
        Ok(())
    }

    fn finalize(&self, _: &mut Context<'_>, all: Option<Vec<u8>>) -> SqliteResult<Option<Vec<u8>>> {
        Ok(all)
    }
}

/// The expression of a scalar function; `None` if the name (without `sys.`, in any case) is no function of CDC.
///
/// Arguments are expressions of SQLite. Times must be in stored form, LSNs and masks BLOBs, positions integers.
pub fn scalar(name: &str, args: &[String]) -> Option<Result<Expression>> {
    let name = name.to_ascii_lowercase();
    let (arity, type_name) = match name.as_str() {
        "fn_cdc_get_max_lsn" => (0, "binary(10)"),
        "fn_cdc_get_min_lsn" | "fn_cdc_increment_lsn" | "fn_cdc_decrement_lsn" => (1, "binary(10)"),
        "fn_cdc_map_time_to_lsn" => (2, "binary(10)"),
        "fn_cdc_map_lsn_to_time" => (1, "datetime"),
        "fn_cdc_has_column_changed" => (3, "bit"),
        "fn_cdc_is_bit_set" => (2, "bit"),
        "fn_cdc_get_column_ordinal" => (2, "int"),
        _ => return None,
    };
    if let Err(error) = check_arity(&format!("sys.{name}"), arity, args.len()) {
        return Some(Err(error));
    }
    Some(Ok(Expression { sql: scalar_sql(&name, args), type_name }))
}

fn check_arity(function: &str, wanted: usize, given: usize) -> Result<()> {
    match given.cmp(&wanted) {
        std::cmp::Ordering::Less => Err(Error::TooFewArguments { function: function.to_owned() }),
        std::cmp::Ordering::Greater => Err(Error::TooManyArguments { function: function.to_owned() }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

fn scalar_sql(name: &str, args: &[String]) -> String {
    let mapping = storage("cdc", "lsn_time_mapping");
    let tables = storage("cdc", "change_tables");
    match (name, args) {
        ("fn_cdc_get_max_lsn", _) => format!("(SELECT max(start_lsn) FROM {mapping})"),
        ("fn_cdc_get_min_lsn", [instance]) => {
            format!(
                "coalesce((SELECT start_lsn FROM {tables} WHERE capture_instance = ({instance}) COLLATE NOCASE), zeroblob(10))"
            )
        }
        ("fn_cdc_increment_lsn", [lsn]) => format!("__cdc_increment_lsn({lsn})"),
        ("fn_cdc_decrement_lsn", [lsn]) => format!("__cdc_decrement_lsn({lsn})"),
        ("fn_cdc_map_lsn_to_time", [lsn]) => format!("(SELECT tran_end_time FROM {mapping} WHERE start_lsn = ({lsn}))"),
        ("fn_cdc_map_time_to_lsn", [operator, time]) => {
            // LSNs and commit times grow together, so the extreme LSN of those that match has the extreme time.
            let pick = |text: &str, best: &str, comparison: &str| {
                format!(" WHEN '{text}' THEN (SELECT {best}(start_lsn) FROM {mapping} WHERE tran_end_time {comparison} ({time}))")
            };
            format!(
                "(CASE lower(trim({operator})){}{}{}{} END)",
                pick("largest less than", "max", "<"),
                pick("largest less than or equal", "max", "<="),
                pick("smallest greater than", "min", ">"),
                pick("smallest greater than or equal", "min", ">="),
            )
        }
        ("fn_cdc_get_column_ordinal", [instance, column]) => ordinal_sql(instance, column),
        ("fn_cdc_has_column_changed", [instance, column, mask]) => {
            format!("__cdc_is_bit_set({}, {mask})", ordinal_sql(instance, column))
        }
        // fn_cdc_is_bit_set: the arity has been checked.
        (_, args) => format!("__cdc_is_bit_set({})", args.join(", ")),
    }
}

fn ordinal_sql(instance: &str, column: &str) -> String {
    format!(
        "(SELECT c.column_ordinal FROM {} c JOIN {} t ON t.object_id = c.object_id
          WHERE t.capture_instance = ({instance}) COLLATE NOCASE AND c.column_name = ({column}) COLLATE NOCASE)",
        storage("cdc", "captured_columns"),
        storage("cdc", "change_tables"),
    )
}

/// `sys.fn_cdc_get_min_lsn`: zero for an unknown instance.
pub fn get_min_lsn(conn: &Connection, instance: &str) -> Result<Lsn> {
    let argument = crate::select::text(instance);
    Ok(conn.query_row(&format!("SELECT {}", scalar_sql("fn_cdc_get_min_lsn", &[argument])), [], |row| row.get(0))?)
}

/// `sys.fn_cdc_get_max_lsn`: `None` until something was captured.
pub fn get_max_lsn(conn: &Connection) -> Result<Option<Lsn>> {
    Ok(conn.query_row(&format!("SELECT {}", scalar_sql("fn_cdc_get_max_lsn", &[])), [], |row| row.get(0))?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    All,
    Net,
}

/// The SELECT behind `cdc.<name>(@from_lsn, @to_lsn, @row_filter_option)`; `None` if there is no such function.
///
/// Arguments are evaluated. Refuses with 313 a range outside the instance's timeline.
pub fn table_valued(conn: &Connection, name: &str, args: &[Value]) -> Result<Option<Select>> {
    let prefixes = [("fn_cdc_get_all_changes_", Kind::All), ("fn_cdc_get_net_changes_", Kind::Net)];
    let found = prefixes.into_iter().find_map(|(prefix, kind)| {
        let head = name.get(..prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then(|| (kind, &name[prefix.len()..]))
    });
    let Some((kind, instance)) = found else { return Ok(None) };
    if !schema::is_enabled(conn)? {
        return Ok(None);
    }
    let Some(instance) = schema::find_instance(conn, instance)? else { return Ok(None) };
    if kind == Kind::Net && !instance.supports_net_changes {
        return Ok(None);
    }
    check_arity(&format!("cdc.{name}"), 3, args.len())?;
    let (from, to, filter) = range(conn, kind, &instance, args)?;
    let captured = captured_columns(conn, instance.object_id)?;
    let table = storage("cdc", &format!("{}_CT", instance.name));
    Ok(Some(match kind {
        Kind::All => all_changes(&table, &captured, from, to, &filter),
        Kind::Net => net_changes(&table, &captured, &key_columns(conn, instance.object_id)?, from, to, &filter),
    }))
}

/// The checked arguments.
fn range(conn: &Connection, kind: Kind, instance: &schema::InstanceRow, args: &[Value]) -> Result<(Lsn, Lsn, String)> {
    let (kind, filters): (_, &[&str]) = match kind {
        Kind::All => ("all", &["all", "all update old"]),
        Kind::Net => ("net", &["all", "all with mask", "all with merge"]),
    };
    let refused = || Error::RangeOutOfBounds { kind };
    let [Value::Blob(from), Value::Blob(to), Value::Text(filter)] = args else { return Err(refused()) };
    let (from, to, filter) = (Lsn::from(&from[..]), Lsn::from(&to[..]), filter.trim().to_lowercase());
    let max = get_max_lsn(conn)?.unwrap_or(Lsn::ZERO);
    if from > to || from < instance.start_lsn || to > max || !filters.contains(&filter.as_str()) {
        return Err(refused());
    }
    Ok((from, to, filter))
}

fn captured_columns(conn: &Connection, object_id: i64) -> Result<Vec<Column>> {
    let mut statement =
        conn.prepare_cached("SELECT name, declared_type FROM __cdc_instance_column WHERE object_id = ?1 ORDER BY ordinal")?;
    let columns = statement.query_map([object_id], |row| Ok(Column { name: row.get(0)?, type_name: row.get(1)? }))?;
    Ok(columns.collect::<rusqlite::Result<_>>()?)
}

fn key_columns(conn: &Connection, object_id: i64) -> Result<Vec<String>> {
    let sql = format!("SELECT column_name FROM {} WHERE object_id = ?1 ORDER BY index_ordinal", storage("cdc", "index_columns"));
    Ok(conn.prepare(&sql)?.query_map([object_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

fn result_columns(head: &[(&str, &str)], captured: &[Column]) -> Vec<Column> {
    head.iter().map(|(name, kind)| Column::new(*name, *kind)).chain(captured.iter().cloned()).collect()
}

fn between(from: Lsn, to: Lsn) -> String {
    format!("\"__$start_lsn\" BETWEEN {} AND {}", literal(&from.into()), literal(&to.into()))
}

fn all_changes(table: &str, captured: &[Column], from: Lsn, to: Lsn, filter: &str) -> Select {
    let head = [
        ("__$start_lsn", "binary(10)"),
        ("__$seqval", "binary(10)"),
        ("__$operation", "int"),
        ("__$update_mask", "varbinary(128)"),
    ];
    let columns = result_columns(&head, captured);
    let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
    let operations = if filter == "all" { "1, 2, 4" } else { "1, 2, 3, 4" };
    let sql =
        format!("SELECT {} FROM {table} WHERE {} AND \"__$operation\" IN ({operations})", names.join(", "), between(from, to));
    Select { columns, sql }
}

/// One row a key: its last values, and the operation that leads from what was before the range to what was after it. A row that both appears and goes
/// within the range is left out.
fn net_changes(table: &str, captured: &[Column], keys: &[String], from: Lsn, to: Lsn, filter: &str) -> Select {
    let head = [("__$start_lsn", "binary(10)"), ("__$operation", "int"), ("__$update_mask", "varbinary(128)")];
    let columns = result_columns(&head, captured);
    let names: String = captured.iter().map(|column| format!(", {}", quote(&column.name))).collect();
    let key = keys.iter().map(|key| quote(key)).collect::<Vec<_>>().join(", ");
    let order = |way: &str| {
        ["__$start_lsn", "__$command_id", "__$seqval", "__$operation"].map(|column| format!("\"{column}\" {way}")).join(", ")
    };
    let (update, insert) = if filter == "all with merge" { (5, 5) } else { (4, 2) };
    let mask = if filter == "all with mask" {
        "CASE WHEN \"__$operation\" = 1 OR __first = 2 THEN NULL ELSE __mask END"
    } else {
        "NULL"
    };
    let sql = format!(
        "SELECT \"__$start_lsn\", CASE WHEN \"__$operation\" = 1 THEN 1 WHEN __first = 2 THEN {insert} ELSE {update} END AS \"__$operation\",
             {mask} AS \"__$update_mask\"{names}
         FROM (SELECT \"__$start_lsn\", \"__$operation\"{names},
                   row_number() OVER (PARTITION BY {key} ORDER BY {}) AS __back,
                   first_value(\"__$operation\") OVER (PARTITION BY {key} ORDER BY {}) AS __first,
                   {} AS __mask
               FROM {table} AS __change WHERE {} AND \"__$operation\" IN (1, 2, 4))
         WHERE __back = 1 AND NOT (__first = 2 AND \"__$operation\" = 1)",
        order("DESC"),
        order("ASC"),
        net_mask(table, keys, from, to, filter),
        between(from, to),
    );
    Select { columns, sql }
}

/// The columns that any update of the key touched within the range.
fn net_mask(table: &str, keys: &[String], from: Lsn, to: Lsn, filter: &str) -> String {
    if filter != "all with mask" {
        return "NULL".to_owned();
    }
    let same: String = keys.iter().map(|key| format!(" AND u.{0} IS __change.{0}", quote(key))).collect();
    format!("(SELECT __cdc_or_masks(u.\"__$update_mask\") FROM {table} u WHERE u.{}{same})", between(from, to))
}
