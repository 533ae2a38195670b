//! What the catalog says: which tables are captured, by which instances, with which columns, types and keys, and how the tables refer to each other.

use std::collections::BTreeMap;

use schemas::Lsn;
use schemas::table::{Column, Length, SqlType, TableName, TableSchema};

use super::client::Client;
use super::decode::{Columns, Text, expression, select};
use super::error::Error;
use super::keys::{self, KeySource};
use super::sql::{self, KeyColumn, quote};

/// A database as its catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    pub database: String,
    /// `16.0.4135.4`.
    pub version: String,
    /// Captured tables, by name.
    pub tables: Vec<CapturedTable>,
    /// Foreign keys among captured tables.
    pub foreign_keys: Vec<ForeignKey>,
    /// User tables whose changes are not captured.
    pub uncaptured: Vec<TableName>,
}

/// A table whose changes are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedTable {
    pub name: TableName,
    pub object_id: i64,
    /// At most two, newest first: by `start_lsn`, and by `create_date` where that is the same.
    pub instances: Vec<Instance>,
}

/// A capture instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub object_id: i64,
    /// Changes before it are not (or no longer) in the change table.
    pub start_lsn: Lsn,
    /// Where it ends, if the server says so: today's versions leave it open.
    pub end_lsn: Option<Lsn>,
    /// When capture was enabled with it, by the server's clock.
    pub create_date: Option<String>,
    pub columns: Vec<CapturedColumn>,
    /// Names of the columns that identify a row, in order; none: no key.
    pub key: Vec<String>,
    /// Where the key comes from.
    pub key_source: KeySource,
    /// Columns of types that cannot be read, with the type: they are left out.
    pub unsupported: Vec<(String, String)>,
}

/// A column that a capture instance records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedColumn {
    /// Its name in the change table.
    pub name: String,
    /// Its name in the source table today.
    pub source_name: String,
    /// From 1; the bit in the update mask.
    pub ordinal: usize,
    /// The column itself, whatever its name: one that was dropped and added again under the same name has another.
    pub column_id: i64,
    pub sql_type: SqlType,
    pub nullable: bool,
    /// CDC never records its value, so it is left out.
    pub computed: bool,
    pub collation: Option<String>,
    /// The collation is the database's own.
    pub default_collation: bool,
}

/// A foreign key: `columns` of `table` refer to `referenced_columns` of `referenced`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub table: TableName,
    pub columns: Vec<String>,
    pub referenced: TableName,
    pub referenced_columns: Vec<String>,
    /// Deleting the referenced row deletes these: they are part of it.
    pub cascades: bool,
}

/// Version and state of the database.
#[derive(Debug, Clone)]
pub struct Database {
    pub version: String,
    pub name: String,
    pub cdc_enabled: bool,
    collation: Option<String>,
}

/// The columns of captured tables that no capture instance records, by table.
pub async fn uncaptured_columns(client: &mut Client) -> Result<BTreeMap<TableName, Vec<String>>, Error> {
    let doing = "looking for columns that are not captured";
    let mut found: BTreeMap<TableName, Vec<String>> = BTreeMap::new();
    for row in client.rows(doing, sql::UNCAPTURED_COLUMNS, vec![]).await? {
        let mut row = Columns::new(doing, row);
        found.entry(TableName::new(row.text()?, row.text()?)).or_default().push(row.text()?);
    }
    Ok(found)
}

impl CapturedColumn {
    fn text(&self) -> Text {
        self.collation.as_deref().map_or(Text::Driver, Text::of)
    }

    /// What the column is selected as in its change table.
    pub fn in_change_table(&self) -> String {
        // The change table keeps a rowversion as binary(8), which reads the same.
        select(&self.name, self.sql_type, self.text(), None)
    }

    /// What the column is selected as in its source table, under the alias `t`.
    pub fn in_source_table(&self) -> String {
        select(&self.source_name, self.sql_type, self.text(), Some("t"))
    }

    /// As [`in_source_table`](Self::in_source_table), without a name.
    pub(crate) fn source_expression(&self) -> String {
        expression(&self.source_name, self.sql_type, self.text(), Some("t"))
    }

    fn case_insensitive(&self) -> bool {
        self.collation.as_deref().is_some_and(|collation| {
            let collation = collation.to_ascii_uppercase();
            collation.contains("_CI_") || collation.ends_with("_CI")
        })
    }

    /// The column as part of a chunk's key, compared on the server in its own type and collation; `None` where it has no order to go on from: NULLs, or a
    /// type that cannot be a bound.
    pub fn key_column(&self) -> Option<KeyColumn> {
        if self.nullable {
            return None;
        }
        // The order of char and varchar depends on the collation, and so does what the parameter's characters become in the code page. A cast takes the
        // collation of what it is given: the database's, unless told otherwise.
        // A collation's name cannot be quoted, so one that would need it is none.
        if self.collation.as_deref().is_some_and(|name| !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')) {
            return None;
        }
        let collated = match &self.collation {
            Some(collation) if !self.default_collation => format!("@P COLLATE {collation}"),
            _ => "@P".to_owned(),
        };
        let bound = match self.sql_type {
            SqlType::Real | SqlType::Float | SqlType::UniqueIdentifier => "@P".to_owned(),
            SqlType::Char(_)
            | SqlType::VarChar(Length::Limited(_))
            | SqlType::NChar(_)
            | SqlType::NVarChar(Length::Limited(_)) => {
                format!("CAST({collated} AS {})", self.sql_type)
            }
            SqlType::RowVersion => "CAST(@P AS binary(8))".to_owned(),
            // From the path as text, or from the bytes.
            SqlType::HierarchyId => "CAST(@P AS hierarchyid)".to_owned(),
            SqlType::VarChar(Length::Max)
            | SqlType::NVarChar(Length::Max)
            | SqlType::VarBinary(Length::Max)
            | SqlType::Text
            | SqlType::NText
            | SqlType::Image
            | SqlType::Xml
            | SqlType::SqlVariant
            | SqlType::Json
            | SqlType::Vector(_)
            | SqlType::Geometry
            | SqlType::Geography => return None,
            sql_type => format!("CAST(@P AS {sql_type})"),
        };
        Some(KeyColumn { name: format!("t.{}", quote(&self.source_name)), bound })
    }
}

impl Instance {
    /// The names of the computed columns. CDC lists them as captured and records NULL whatever they hold.
    pub fn computed(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().filter(|column| column.computed).map(|column| column.name.as_str())
    }

    /// The table as this instance records it: without computed columns, of which the snapshot would show values that no change ever brings up to date.
    pub fn schema(&self, name: &TableName) -> TableSchema {
        let columns: Vec<Column> = self
            .columns
            .iter()
            .filter(|column| !column.computed)
            .map(|column| Column {
                name: column.name.clone(),
                sql_type: column.sql_type,
                nullable: column.nullable,
                case_insensitive: column.case_insensitive(),
            })
            .collect();
        let key: Option<Vec<usize>> = self.key.iter().map(|key| columns.iter().position(|column| column.name == *key)).collect();
        // A key of which a part is not captured identifies nothing.
        TableSchema { name: name.clone(), columns, key: key.unwrap_or_default() }
    }
}

impl Database {
    pub async fn read(client: &mut Client) -> Result<Self, Error> {
        let doing = "reading the database's state";
        let row = client.rows(doing, sql::DATABASE, vec![]).await?.into_iter().next();
        let row = row.ok_or_else(|| Error::Unexpected { doing, what: "sys.databases does not show this database".into() })?;
        let mut columns = Columns::new(doing, row);
        Ok(Self {
            version: columns.text()?,
            name: columns.text()?,
            cdc_enabled: columns.int()? == 1,
            collation: columns.optional_text()?,
        })
    }
}

impl Catalog {
    /// Reads it all. Fails where CDC is not enabled in the database; that nothing is captured is for the caller to judge.
    pub async fn read(client: &mut Client) -> Result<Self, Error> {
        let database = Database::read(client).await?;
        if !database.cdc_enabled {
            return Err(Error::CdcDisabled { database: database.name });
        }
        let mut tables = instances(client).await?;
        columns(client, &database, &mut tables).await?;
        captured_keys(client, &mut tables).await?;
        keys::fall_back(client, &mut tables).await?;
        let names: BTreeMap<i64, TableName> = tables.iter().map(|table| (table.object_id, table.name.clone())).collect();
        let foreign_keys = foreign_keys(client, &names).await?;
        let uncaptured = uncaptured(client, &tables).await?;
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { database: database.name, version: database.version, tables, foreign_keys, uncaptured })
    }

    pub fn table(&self, name: &TableName) -> Option<&CapturedTable> {
        self.tables.iter().find(|table| table.name == *name)
    }
}

async fn instances(client: &mut Client) -> Result<Vec<CapturedTable>, Error> {
    let doing = "reading the capture instances";
    let mut tables: Vec<CapturedTable> = Vec::new();
    for row in client.rows(doing, sql::CAPTURE_INSTANCES, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let object_id = row.int()?;
        let name = row.text()?;
        let source_object_id = row.int()?;
        let table = TableName::new(row.text()?, row.text()?);
        let start_lsn = row.lsn()?.unwrap_or(Lsn::ZERO);
        let (end_lsn, create_date) = (row.lsn()?, row.optional_time()?);
        let instance = Instance {
            name,
            object_id,
            start_lsn,
            end_lsn,
            create_date,
            columns: Vec::new(),
            key: Vec::new(),
            key_source: KeySource::None,
            unsupported: Vec::new(),
        };
        match tables.last_mut() {
            Some(last) if last.object_id == source_object_id => last.instances.push(instance),
            _ => tables.push(CapturedTable { name: table, object_id: source_object_id, instances: vec![instance] }),
        }
    }
    Ok(tables)
}

fn instance(tables: &mut [CapturedTable], object_id: i64) -> Option<&mut Instance> {
    tables.iter_mut().flat_map(|table| &mut table.instances).find(|instance| instance.object_id == object_id)
}

async fn columns(client: &mut Client, database: &Database, tables: &mut [CapturedTable]) -> Result<(), Error> {
    let doing = "reading the captured columns";
    for row in client.rows(doing, sql::CAPTURED_COLUMNS, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let object_id = row.int()?;
        let (name, source_name, ordinal, computed) = (row.text()?, row.text()?, row.int()?, row.int()? == 1);
        let type_name = row.text()?;
        let (length, precision, scale, nullable) = (row.int()?, row.int()?, row.int()?, row.int()? == 1);
        let (collation, column_id) = (row.optional_text()?, row.int()?);
        let Some(instance) = instance(tables, object_id) else { continue };
        let Some(sql_type) = sql_type(&type_name, length, precision, scale) else {
            instance.unsupported.push((name, type_name));
            continue;
        };
        let ordinal = usize::try_from(ordinal)
            .map_err(|_| Error::Unexpected { doing, what: format!("column {name} has the ordinal {ordinal}") })?;
        let default_collation = collation == database.collation;
        instance.columns.push(CapturedColumn {
            name,
            source_name,
            ordinal,
            column_id,
            sql_type,
            nullable,
            computed,
            collation,
            default_collation,
        });
    }
    Ok(())
}

async fn captured_keys(client: &mut Client, tables: &mut [CapturedTable]) -> Result<(), Error> {
    let doing = "reading the keys of the captured tables";
    for row in client.rows(doing, sql::INDEX_COLUMNS, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let (object_id, column) = (row.int()?, row.text()?);
        if let Some(instance) = instance(tables, object_id) {
            instance.key.push(column);
            instance.key_source = KeySource::Captured;
        }
    }
    Ok(())
}

async fn foreign_keys(client: &mut Client, names: &BTreeMap<i64, TableName>) -> Result<Vec<ForeignKey>, Error> {
    let doing = "reading the foreign keys";
    let mut keys: Vec<(i64, ForeignKey)> = Vec::new();
    for row in client.rows(doing, sql::FOREIGN_KEYS, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let (id, name, child, parent) = (row.int()?, row.text()?, row.int()?, row.int()?);
        let (column, referenced, on_delete) = (row.text()?, row.text()?, row.int()?);
        let (Some(table), Some(parent)) = (names.get(&child), names.get(&parent)) else { continue };
        if keys.last().is_none_or(|(last, _)| *last != id) {
            let (table, referenced) = (table.clone(), parent.clone());
            keys.push((
                id,
                ForeignKey {
                    name,
                    table,
                    columns: Vec::new(),
                    referenced,
                    referenced_columns: Vec::new(),
                    cascades: on_delete == 1,
                },
            ));
        }
        if let Some((_, key)) = keys.last_mut() {
            key.columns.push(column);
            key.referenced_columns.push(referenced);
        }
    }
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

async fn uncaptured(client: &mut Client, tables: &[CapturedTable]) -> Result<Vec<TableName>, Error> {
    let doing = "listing the tables";
    let mut names = Vec::new();
    for row in client.rows(doing, sql::USER_TABLES, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let name = TableName::new(row.text()?, row.text()?);
        if !tables.iter().any(|table| table.name == name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A type from the parts that the catalog keeps: length in bytes (-1: max), precision, scale. `None`: not a type that can be read.
fn sql_type(name: &str, length: i64, precision: i64, scale: i64) -> Option<SqlType> {
    let bytes = u16::try_from(length).ok();
    let variable = |unit: u16| if length == -1 { Some(Length::Max) } else { bytes.map(|bytes| Length::Limited(bytes / unit)) };
    let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
    Some(match name {
        "decimal" | "numeric" => SqlType::Decimal { precision, scale },
        "char" => SqlType::Char(bytes?),
        "varchar" => SqlType::VarChar(variable(1)?),
        "nchar" => SqlType::NChar(bytes? / 2),
        "nvarchar" => SqlType::NVarChar(variable(2)?),
        "binary" => SqlType::Binary(bytes?),
        "varbinary" => SqlType::VarBinary(variable(1)?),
        "time" => SqlType::Time { scale },
        "datetime2" => SqlType::DateTime2 { scale },
        "datetimeoffset" => SqlType::DateTimeOffset { scale },
        // Eight bytes, and four for each number.
        "vector" => SqlType::Vector(bytes?.checked_sub(8)? / 4),
        plain => plain.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn types_are_read_from_the_catalogs_parts() {
        let read = |name, length, precision, scale| sql_type(name, length, precision, scale).unwrap().to_string();
        assert_eq!(read("nvarchar", 100, 0, 0), "nvarchar(50)");
        assert_eq!(read("varchar", -1, 0, 0), "varchar(max)");
        assert_eq!(read("varbinary", 8000, 0, 0), "varbinary(8000)");
        assert_eq!(read("numeric", 17, 38, 10), "decimal(38,10)");
        assert_eq!(read("datetime2", 8, 27, 3), "datetime2(3)");
        assert_eq!(read("float", 8, 53, 0), "float");
        assert_eq!(read("timestamp", 8, 0, 0), "rowversion");
        assert_eq!(read("vector", 20, 0, 0), "vector(3)");
        assert_eq!(read("json", -1, 0, 0), "json");
        assert_eq!(sql_type("vector", 4, 0, 0), None);
        assert_eq!(sql_type("cursor", 4, 0, 0), None);
    }

    #[test]
    fn key_bounds_are_of_the_columns_type_and_collation() {
        let column = |sql_type: &str, collation: Option<&str>| CapturedColumn {
            name: "k".into(),
            source_name: "k".into(),
            ordinal: 1,
            column_id: 1,
            sql_type: sql_type.parse().unwrap(),
            nullable: false,
            computed: false,
            collation: collation.map(str::to_owned),
            default_collation: collation == Some("Latin1_General_CI_AS"),
        };
        let bound = |sql_type: &str, collation| column(sql_type, collation).key_column().map(|key| key.bound);
        assert_eq!(bound("varchar(10)", Some("Latin1_General_CI_AS")).as_deref(), Some("CAST(@P AS varchar(10))"));
        assert_eq!(bound("varchar(10)", Some("Polish_CS_AS")).as_deref(), Some("CAST(@P COLLATE Polish_CS_AS AS varchar(10))"));
        assert_eq!(bound("decimal(38,4)", None).as_deref(), Some("CAST(@P AS decimal(38,4))"));
        assert_eq!(bound("xml", None), None);
        assert_eq!(bound("varchar(10)", Some("Polish_CI_AS; DROP")), None);
        assert_eq!(bound("hierarchyid", None).as_deref(), Some("CAST(@P AS hierarchyid)"));
        let nullable = CapturedColumn { nullable: true, ..column("int", None) };
        assert_eq!(nullable.key_column(), None);
        assert!(column("varchar(1)", Some("Latin1_General_CI_AS")).case_insensitive());
        assert!(!column("varchar(1)", Some("Latin1_General_BIN2")).case_insensitive());
    }
}
