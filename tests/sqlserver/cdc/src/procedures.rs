//! The stored procedures that answer rows about capture instances and jobs.

use rusqlite::Connection;
use rusqlite::types::Value;

use crate::select::storage;
use crate::{Catalog, Error, Lsn, Result, Select, SourceTable, instance, schema};

/// `sys.sp_cdc_help_change_data_capture`: every instance, or those of one table.
pub fn help_change_data_capture(
    conn: &Connection,
    catalog: &dyn Catalog,
    source_schema: Option<&str>,
    source_name: Option<&str>,
) -> Result<Select> {
    schema::require_enabled(conn)?;
    let given = |argument: Option<&str>| argument.map(str::to_owned).filter(|argument| !argument.is_empty());
    let only = match (given(source_schema), given(source_name)) {
        (None, None) => None,
        (Some(schema), Some(table)) => Some(tracked(conn, catalog, schema, table)?),
        _ => return Err(Error::HalfATable),
    };
    let columns = [
        ("source_schema", "nvarchar(128)"),
        ("source_table", "nvarchar(128)"),
        ("capture_instance", "nvarchar(128)"),
        ("object_id", "int"),
        ("source_object_id", "int"),
        ("start_lsn", "binary(10)"),
        ("end_lsn", "binary(10)"),
        ("supports_net_changes", "bit"),
        ("has_drop_pending", "bit"),
        ("role_name", "nvarchar(128)"),
        ("index_name", "nvarchar(128)"),
        ("filegroup_name", "nvarchar(128)"),
        ("create_date", "datetime"),
        ("index_column_list", "nvarchar(max)"),
        ("captured_column_list", "nvarchar(max)"),
    ];
    let sql = format!(
        "SELECT object_id, source_object_id, capture_instance, start_lsn, end_lsn, supports_net_changes, has_drop_pending, role_name, index_name,
             filegroup_name, create_date FROM {} WHERE ?1 IS NULL OR source_object_id = ?1 ORDER BY source_object_id, object_id",
        storage("cdc", "change_tables")
    );
    let found: Vec<Vec<Value>> = conn
        .prepare(&sql)?
        .query_map([only], |row| (0..11).map(|column| row.get(column)).collect())?
        .collect::<rusqlite::Result<_>>()?;
    let mut rows = Vec::new();
    for instance in found {
        let [Value::Integer(object_id), Value::Integer(source), ..] = instance[..] else { continue };
        let Some(table) = catalog.source_table_by_id(source)? else { continue };
        let keys = names(conn, "index_columns", "index_ordinal", object_id)?;
        let captured = names(conn, "captured_columns", "column_ordinal", object_id)?;
        let mut row = vec![Value::Text(table.schema), Value::Text(table.name), instance[2].clone()];
        row.extend(instance[..2].iter().cloned());
        row.extend(instance[3..].iter().cloned());
        row.push(bracketed(&keys));
        row.push(bracketed(&captured));
        rows.push(row);
    }
    Ok(Select::of_rows(&columns, &rows))
}

fn tracked(conn: &Connection, catalog: &dyn Catalog, schema: String, table: String) -> Result<i64> {
    if let Some(found) = catalog.source_table(&schema, &table)?
        && !instance::instances_of(conn, found.object_id)?.is_empty()
    {
        return Ok(found.object_id);
    }
    Err(Error::TableNotEnabled { schema, table })
}

fn names(conn: &Connection, table: &str, order: &str, object_id: i64) -> Result<Vec<String>> {
    let sql = format!("SELECT column_name FROM {} WHERE object_id = ?1 ORDER BY {order}", storage("cdc", table));
    Ok(conn.prepare_cached(&sql)?.query_map([object_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// `[id], [a]]b]`; NULL if there are none.
fn bracketed(names: &[String]) -> Value {
    if names.is_empty() {
        return Value::Null;
    }
    let names: Vec<String> = names.iter().map(|name| format!("[{}]", name.replace(']', "]]"))).collect();
    Value::Text(names.join(", "))
}

/// An instance by name, with its source table.
fn described(conn: &Connection, catalog: &dyn Catalog, name: &str) -> Result<(schema::InstanceRow, SourceTable)> {
    schema::require_enabled(conn)?;
    if name.trim().is_empty() {
        return Err(Error::EmptyParameter { parameter: "@capture_instance" });
    }
    let missing = |database| Error::NoSuchInstance { instance: name.to_owned(), database };
    if let Some(instance) = schema::find_instance(conn, name)?
        && let Some(table) = catalog.source_table_by_id(instance.source_object_id)?
    {
        return Ok((instance, table));
    }
    Err(missing(schema::database_name(conn)?))
}

/// `sys.sp_cdc_get_captured_columns`.
pub fn get_captured_columns(conn: &Connection, catalog: &dyn Catalog, capture_instance: &str) -> Result<Select> {
    let (instance, table) = described(conn, catalog, capture_instance)?;
    let columns = [
        ("source_schema", "nvarchar(128)"),
        ("source_table", "nvarchar(128)"),
        ("capture_instance", "nvarchar(128)"),
        ("column_name", "nvarchar(128)"),
        ("column_id", "int"),
        ("ordinal_position", "int"),
        ("data_type", "nvarchar(128)"),
        ("character_maximum_length", "int"),
        ("numeric_precision", "tinyint"),
        ("numeric_precision_radix", "smallint"),
        ("numeric_scale", "int"),
        ("datetime_precision", "smallint"),
    ];
    let sql = format!(
        "SELECT c.column_name, c.column_id, c.column_ordinal, c.column_type, k.declared_type FROM {} c
         JOIN __cdc_instance_column k ON k.object_id = c.object_id AND k.ordinal = c.column_ordinal
         WHERE c.object_id = ?1 ORDER BY c.column_ordinal",
        storage("cdc", "captured_columns")
    );
    let mut statement = conn.prepare(&sql)?;
    let rows = statement.query_map([instance.object_id], |row| {
        let (kind, declared): (String, String) = (row.get(3)?, row.get(4)?);
        let mut answer =
            vec![Value::Text(table.schema.clone()), Value::Text(table.name.clone()), Value::Text(instance.name.clone())];
        answer.extend([row.get(0)?, row.get(1)?, row.get(2)?, Value::Text(kind.clone())]);
        answer.extend(measures(&kind, &declared));
        Ok(answer)
    })?;
    let rows: Vec<Vec<Value>> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(Select::of_rows(&columns, &rows))
}

/// Length, precision, radix, scale and datetime precision of a type, as INFORMATION_SCHEMA.COLUMNS has them.
fn measures(kind: &str, declared: &str) -> [Value; 5] {
    let arguments: Vec<Option<i64>> = declared
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(inside, _)| inside.split(',').map(|part| part.trim().parse().ok()).collect())
        .unwrap_or_default();
    let argument = |at: usize, default: i64| arguments.get(at).copied().flatten().unwrap_or(default);
    let none = || Value::Null;
    let number = |precision: i64, radix: i64, scale: i64| {
        [none(), Value::Integer(precision), Value::Integer(radix), Value::Integer(scale), none()]
    };
    let length = |length: i64| [Value::Integer(length), none(), none(), none(), none()];
    let time = |precision: i64| [none(), none(), none(), none(), Value::Integer(precision)];
    match kind.to_ascii_lowercase().as_str() {
        "tinyint" => number(3, 10, 0),
        "smallint" => number(5, 10, 0),
        "int" => number(10, 10, 0),
        "bigint" => number(19, 10, 0),
        "decimal" | "numeric" => number(argument(0, 18), 10, argument(1, 0)),
        "money" => number(19, 10, 4),
        "smallmoney" => number(10, 10, 4),
        "real" => [none(), Value::Integer(24), Value::Integer(2), none(), none()],
        "float" => [none(), Value::Integer(argument(0, 53)), Value::Integer(2), none(), none()],
        // (max) is no number and counts as -1.
        "char" | "nchar" | "varchar" | "nvarchar" | "binary" | "varbinary" => {
            length(if arguments.is_empty() { 1 } else { argument(0, -1) })
        }
        "text" | "image" => length(2_147_483_647),
        "ntext" => length(1_073_741_823),
        "xml" => length(-1),
        "date" | "smalldatetime" => time(0),
        "datetime" => time(3),
        "time" | "datetime2" | "datetimeoffset" => time(argument(0, 7)),
        _ => [none(), none(), none(), none(), none()],
    }
}

/// `sys.sp_cdc_get_ddl_history`.
pub fn get_ddl_history(conn: &Connection, catalog: &dyn Catalog, capture_instance: &str) -> Result<Select> {
    let (instance, table) = described(conn, catalog, capture_instance)?;
    let columns = [
        ("source_schema", "nvarchar(128)"),
        ("source_table", "nvarchar(128)"),
        ("capture_instance", "nvarchar(128)"),
        ("required_column_update", "bit"),
        ("ddl_command", "nvarchar(max)"),
        ("ddl_lsn", "binary(10)"),
        ("ddl_time", "datetime"),
    ];
    let sql = format!(
        "SELECT required_column_update, ddl_command, ddl_lsn, ddl_time FROM {} WHERE object_id = ?1 ORDER BY ddl_lsn, rowid",
        storage("cdc", "ddl_history")
    );
    let mut statement = conn.prepare(&sql)?;
    let rows = statement.query_map([instance.object_id], |row| {
        Ok(vec![
            Value::Text(table.schema.clone()),
            Value::Text(table.name.clone()),
            Value::Text(instance.name.clone()),
            row.get(0)?,
            row.get(1)?,
            Value::from(row.get::<_, Lsn>(2)?),
            row.get(3)?,
        ])
    })?;
    let rows: Vec<Vec<Value>> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(Select::of_rows(&columns, &rows))
}

/// `sys.sp_cdc_help_jobs`.
pub fn help_jobs(conn: &Connection) -> Result<Select> {
    schema::require_enabled(conn)?;
    let columns = [
        ("job_id", "uniqueidentifier"),
        ("job_type", "nvarchar(20)"),
        ("job_name", "nvarchar(128)"),
        ("maxtrans", "int"),
        ("maxscans", "int"),
        ("continuous", "bit"),
        ("pollinginterval", "bigint"),
        ("retention", "bigint"),
        ("threshold", "bigint"),
    ];
    let sql = "SELECT job_id, job_type, 'cdc.' || (SELECT database FROM __cdc_state) || '_' || job_type AS job_name, maxtrans, maxscans, continuous,
                   pollinginterval, retention, threshold FROM __cdc_job ORDER BY job_type";
    Ok(Select::new(&columns, sql))
}
