//! Capture instances: `sys.sp_cdc_enable_table` and `sys.sp_cdc_disable_table`.
//!
//! An instance has a change table, rows in `cdc.change_tables`, `captured_columns` and `index_columns`, and a share in the triggers of its source. It
//! begins at a log position of its own (`start_lsn`), greater than every commit before it and smaller than every one after, its own transaction's
//! included; and it receives the log rows past `from_seq`, the record of its beginning. A second instance begins later than the first and then sees the
//! same changes. The transaction that enables gets an entry in `cdc.lsn_time_mapping` like one with changes, so that the captured position passes an
//! instance's beginning as soon as the capture job has run, even if nothing changes.

use rusqlite::{Connection, params};

use crate::log::MAX_COLUMNS;
use crate::select::storage;
use crate::{Catalog, DateTime, Error, Result, SourceColumn, SourceTable, TableIndex, commit, jobs, log, schema, time};

/// The arguments of `sys.sp_cdc_enable_table`; `None` is NULL or left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnableTable {
    pub source_schema: String,
    pub source_name: String,
    pub role_name: Option<String>,
    /// `<schema>_<name>` unless given.
    pub capture_instance: Option<String>,
    /// 1 if the table has a primary key or an index is named, unless given.
    pub supports_net_changes: Option<bool>,
    /// The primary key's, unless given.
    pub index_name: Option<String>,
    /// All columns, unless given: names, plain or in brackets or double quotes, separated by commas.
    pub captured_column_list: Option<String>,
    pub filegroup_name: Option<String>,
    pub allow_partition_switch: Option<bool>,
}

/// What was enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enabled {
    pub capture_instance: String,
    /// Of the change table.
    pub object_id: i64,
    /// Whether this was the database's first table, so that its jobs were created: SQL Server then says `Job 'cdc.<database>_capture' started
    /// successfully.`, and the same of `_cleanup`.
    pub jobs_created: bool,
}

const RESERVED: [&str; 5] = ["__$start_lsn", "__$end_lsn", "__$seqval", "__$operation", "__$update_mask"];

/// `sys.sp_cdc_enable_table`.
pub fn enable_table(conn: &Connection, catalog: &mut dyn Catalog, options: &EnableTable, now: DateTime) -> Result<Enabled> {
    schema::require_enabled(conn)?;
    let plan = plan(conn, catalog, options)?;
    let columns = change_table_columns(&plan);
    let object_id = catalog.create_table("cdc", &format!("{}_CT", plan.name), &columns)?;
    let order = ["__$start_lsn", "__$command_id", "__$seqval", "__$operation"].map(str::to_owned).to_vec();
    let clustered = TableIndex { name: format!("{}_CT_clustered_idx", plan.name), clustered: true, unique: true, columns: order };
    catalog.create_index(object_id, &clustered)?;
    if plan.net_changes {
        let mut keys = plan.index_columns();
        keys.extend(["__$start_lsn", "__$command_id", "__$seqval", "__$operation"].map(str::to_owned));
        let name = format!("{}_CT_idx", plan.name);
        catalog.create_index(object_id, &TableIndex { name, clustered: false, unique: true, columns: keys })?;
    }
    record(conn, &plan, object_id, options, now)?;
    log::rebuild_triggers(conn, catalog, plan.table.object_id)?;
    let jobs_created = jobs::create_missing(conn, now)?;
    Ok(Enabled { capture_instance: plan.name, object_id, jobs_created })
}

/// An instance as it will be, all checks done.
struct Plan {
    table: SourceTable,
    name: String,
    captured: Vec<SourceColumn>,
    index: Option<(String, Vec<String>)>,
    net_changes: bool,
}

impl Plan {
    fn index_columns(&self) -> Vec<String> {
        self.index.as_ref().map_or_else(Vec::new, |(_, columns)| columns.clone())
    }
}

/// All checks, before anything is written.
fn plan(conn: &Connection, catalog: &dyn Catalog, options: &EnableTable) -> Result<Plan> {
    let (schema, name) = (options.source_schema.trim(), options.source_name.trim());
    for (parameter, value) in [("@source_schema", schema), ("@source_name", name)] {
        if value.is_empty() {
            return Err(Error::EmptyParameter { parameter });
        }
    }
    if options.role_name.as_ref().is_some_and(|role| role.trim().is_empty()) {
        return Err(Error::EmptyRole);
    }
    if schema.eq_ignore_ascii_case("cdc") {
        return Err(Error::TableOfCdc);
    }
    let table = catalog.source_table(schema, name)?.ok_or_else(|| no_such_table(schema, name))?;
    let instance = instance_name(conn, &table, options)?;
    if let Some(filegroup) = &options.filegroup_name
        && !filegroup.eq_ignore_ascii_case("PRIMARY")
    {
        return Err(Error::NoSuchFilegroup { filegroup: filegroup.clone(), database: schema::database_name(conn)? });
    }
    let index = index(&table, options)?;
    let net_changes = options.supports_net_changes.unwrap_or(index.is_some());
    if net_changes && index.is_none() {
        return Err(Error::NetChangesNeedKey);
    }
    let captured = captured_columns(&table, options)?;
    let captures = |name: &String| captured.iter().any(|column| column.name == *name);
    if net_changes && !index.iter().flat_map(|(_, columns)| columns).all(captures) {
        return Err(Error::KeyNotCaptured);
    }
    if captured.iter().any(|column| RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(&column.name))) {
        return Err(Error::ReservedColumn { table: table.name });
    }
    if captured.len() > MAX_COLUMNS {
        return Err(Error::TooManyColumns { instance, limit: MAX_COLUMNS });
    }
    Ok(Plan { table, name: instance, captured, index, net_changes })
}

fn no_such_table(schema: &str, table: &str) -> Error {
    Error::NoSuchTable { schema: schema.to_owned(), table: table.to_owned() }
}

fn instance_name(conn: &Connection, table: &SourceTable, options: &EnableTable) -> Result<String> {
    let name = options.capture_instance.clone().unwrap_or_else(|| format!("{}_{}", table.schema, table.name));
    if name.trim().is_empty() {
        return Err(Error::InvalidInstanceName { instance: name });
    }
    if name.chars().count() > 100 {
        return Err(Error::InstanceNameTooLong { instance: name });
    }
    let instances: i64 =
        conn.query_row("SELECT count(*) FROM __cdc_instance WHERE source_object_id = ?1", [table.object_id], |row| row.get(0))?;
    // The name first: enabling a table twice with defaults is told that the name exists, however many instances there are.
    if schema::find_instance(conn, &name)?.is_some() {
        return Err(Error::InstanceExists { instance: name });
    }
    if instances >= 2 {
        return Err(Error::TwoInstances { schema: table.schema.clone(), table: table.name.clone() });
    }
    Ok(name)
}

/// The index that identifies rows: the named one, or the primary key.
fn index(table: &SourceTable, options: &EnableTable) -> Result<Option<(String, Vec<String>)>> {
    let Some(wanted) = &options.index_name else { return Ok(table.primary_key.clone()) };
    let mut unique = table.primary_key.iter().chain(&table.unique_indexes);
    match unique.find(|(name, _)| name.eq_ignore_ascii_case(wanted)) {
        Some(found) => Ok(Some(found.clone())),
        None => Err(Error::NoSuchIndex { index: wanted.clone(), schema: table.schema.clone(), table: table.name.clone() }),
    }
}

/// The captured columns, in the source table's order whatever the list's order is.
fn captured_columns(table: &SourceTable, options: &EnableTable) -> Result<Vec<SourceColumn>> {
    let Some(list) = options.captured_column_list.as_ref().filter(|list| !list.trim().is_empty()) else {
        return Ok(table.columns.clone());
    };
    let names = column_names(list)?;
    let unmapped = || Error::UnmappedColumns { schema: table.schema.clone(), table: table.name.clone() };
    if names.iter().any(String::is_empty) {
        return Err(unmapped());
    }
    let is = |column: &SourceColumn, name: &String| column.name.to_lowercase() == name.to_lowercase();
    if !names.iter().all(|name| table.columns.iter().any(|column| is(column, name))) {
        return Err(unmapped());
    }
    Ok(table.columns.iter().filter(|column| names.iter().any(|name| is(column, name))).cloned().collect())
}

/// The names of a column list.
pub(crate) fn column_names(list: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    loop {
        let close = match rest.chars().next() {
            Some('[') => Some(']'),
            Some('"') => Some('"'),
            _ => None,
        };
        let mut name = String::new();
        if let Some(close) = close {
            let mut chars = rest[1..].char_indices().peekable();
            let end = loop {
                match chars.next() {
                    None => return Err(Error::UnterminatedColumn),
                    // A doubled delimiter stands for itself.
                    Some((_, c)) if c == close && chars.peek().is_some_and(|(_, next)| *next == close) => {
                        name.push(c);
                        chars.next();
                    }
                    Some((at, c)) if c == close => break 1 + at + c.len_utf8(),
                    Some((_, c)) => name.push(c),
                }
            };
            rest = rest[end..].trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(Error::UnterminatedColumn);
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            name.push_str(rest[..end].trim());
            rest = &rest[end..];
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return Ok(names),
        }
    }
}

/// The columns of the change table: the captured ones are nullable, and a rowversion is the eight bytes that it was.
fn change_table_columns(plan: &Plan) -> Vec<(String, String, bool)> {
    let column = |name: &str, kind: &str, nullable| (name.to_owned(), kind.to_owned(), nullable);
    let mut columns = vec![
        column("__$start_lsn", "binary(10)", false),
        column("__$end_lsn", "binary(10)", true),
        column("__$seqval", "binary(10)", false),
        column("__$operation", "int", false),
        column("__$update_mask", "varbinary(128)", true),
    ];
    columns.extend(plan.captured.iter().map(|captured| column(&captured.name, &change_type(captured), true)));
    columns.push(column("__$command_id", "int", true));
    columns
}

/// The type of a captured column in the change table.
pub(crate) fn change_type(column: &SourceColumn) -> String {
    change_type_of(&column.type_name, &column.declared_type)
}

pub(crate) fn change_type_of(type_name: &str, declared_type: &str) -> String {
    match type_name.to_ascii_lowercase().as_str() {
        "timestamp" | "rowversion" => "binary(8)".to_owned(),
        _ => declared_type.to_owned(),
    }
}

/// Writes what `cdc.*` and the log know of a new instance.
fn record(conn: &Connection, plan: &Plan, object_id: i64, options: &EnableTable, now: DateTime) -> Result<()> {
    let start_lsn = commit::allot_lsn(conn)?;
    let sql = format!(
        "INSERT INTO {} (object_id, version, source_object_id, capture_instance, start_lsn, end_lsn, supports_net_changes, has_drop_pending,
             role_name, index_name, filegroup_name, create_date, partition_switch)
         VALUES (?1, 0, ?2, ?3, ?4, NULL, ?5, NULL, ?6, ?7, ?8, ?9, ?10)",
        storage("cdc", "change_tables")
    );
    conn.execute(
        &sql,
        params![
            object_id,
            plan.table.object_id,
            plan.name,
            start_lsn,
            plan.net_changes,
            options.role_name,
            plan.index.as_ref().map(|(name, _)| name),
            options.filegroup_name,
            time::stored(now),
            options.allow_partition_switch.unwrap_or(true),
        ],
    )?;
    let mut captured = conn.prepare(&format!(
        "INSERT INTO {} (object_id, column_name, column_id, column_type, column_ordinal, is_computed, masking_function)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL)",
        storage("cdc", "captured_columns")
    ))?;
    let mut kept = conn.prepare(
        "INSERT INTO __cdc_instance_column (object_id, ordinal, column_id, name, declared_type) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (ordinal, column) in (1_i64..).zip(&plan.captured) {
        captured.execute(params![object_id, column.name, column.column_id, column.type_name, ordinal, column.is_computed])?;
        kept.execute(params![object_id, ordinal, column.column_id, column.name, change_type(column)])?;
    }
    let mut indexed = conn.prepare(&format!(
        "INSERT INTO {} (object_id, column_name, index_ordinal, column_id) VALUES (?1, ?2, ?3, ?4)",
        storage("cdc", "index_columns")
    ))?;
    for (ordinal, name) in (1_i64..).zip(plan.index_columns()) {
        let column_id = plan.table.columns.iter().find(|column| column.name == name).map(|column| column.column_id);
        indexed.execute(params![object_id, name, ordinal, column_id])?;
    }
    conn.execute("INSERT INTO __cdc_log (shape, op) VALUES (0, ?1)", [log::OP_ENABLE])?;
    let from_seq = conn.last_insert_rowid();
    conn.execute(
        "INSERT INTO __cdc_instance (object_id, source_object_id, from_seq) VALUES (?1, ?2, ?3)",
        params![object_id, plan.table.object_id, from_seq],
    )?;
    Ok(())
}

/// `sys.sp_cdc_disable_table`: one instance, or `all` of a table.
pub fn disable_table(conn: &Connection, catalog: &mut dyn Catalog, schema: &str, name: &str, instance: &str) -> Result<()> {
    schema::require_enabled(conn)?;
    for (parameter, value) in [("@source_schema", schema), ("@source_name", name), ("@capture_instance", instance)] {
        if value.trim().is_empty() {
            return Err(Error::EmptyParameter { parameter });
        }
    }
    let table = catalog.source_table(schema, name)?.ok_or_else(|| no_such_table(schema, name))?;
    let of_table = instances_of(conn, table.object_id)?;
    let doomed: Vec<i64> = if instance.eq_ignore_ascii_case("all") {
        of_table
    } else {
        let found = schema::find_instance(conn, instance)?;
        found.filter(|found| found.source_object_id == table.object_id).map(|found| found.object_id).into_iter().collect()
    };
    if doomed.is_empty() {
        return Err(Error::InstanceNotEnabled {
            instance: instance.to_owned(),
            schema: table.schema.clone(),
            table: table.name.clone(),
        });
    }
    for object_id in doomed {
        drop_instance(conn, catalog, object_id)?;
    }
    log::rebuild_triggers(conn, catalog, table.object_id)?;
    forget_times_of_none(conn)
}

/// The change tables of a source table.
pub(crate) fn instances_of(conn: &Connection, source_object_id: i64) -> Result<Vec<i64>> {
    let mut statement =
        conn.prepare_cached("SELECT object_id FROM __cdc_instance WHERE source_object_id = ?1 ORDER BY object_id")?;
    Ok(statement.query_map([source_object_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Drops every instance of a source table that goes, with its triggers.
pub(crate) fn drop_of(conn: &Connection, catalog: &mut dyn Catalog, source_object_id: i64) -> Result<()> {
    for object_id in instances_of(conn, source_object_id)? {
        drop_instance(conn, catalog, object_id)?;
    }
    log::drop_triggers(conn, source_object_id)?;
    forget_times_of_none(conn)
}

/// Drops every instance of the database.
pub(crate) fn drop_all(conn: &Connection, catalog: &mut dyn Catalog) -> Result<()> {
    let sources: Vec<i64> = conn
        .prepare("SELECT DISTINCT source_object_id FROM __cdc_instance")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    sources.into_iter().try_for_each(|source| drop_of(conn, catalog, source))
}

/// Takes an instance out. Log rows that only it would have read are skipped by the capture job, which deletes them.
fn drop_instance(conn: &Connection, catalog: &mut dyn Catalog, object_id: i64) -> Result<()> {
    for table in ["change_tables", "captured_columns", "index_columns", "ddl_history"] {
        conn.execute(&format!("DELETE FROM {} WHERE object_id = ?1", storage("cdc", table)), [object_id])?;
    }
    conn.execute("DELETE FROM __cdc_instance WHERE object_id = ?1", [object_id])?;
    conn.execute("DELETE FROM __cdc_instance_column WHERE object_id = ?1", [object_id])?;
    catalog.drop_table(object_id)?;
    Ok(())
}

/// With the last instance of a database, SQL Server empties `cdc.lsn_time_mapping`.
fn forget_times_of_none(conn: &Connection) -> Result<()> {
    let sql = format!("DELETE FROM {} WHERE NOT EXISTS (SELECT 1 FROM __cdc_instance)", storage("cdc", "lsn_time_mapping"));
    conn.execute(&sql, [])?;
    Ok(())
}
