//! A look at a source before, or while, it is imported: what is well, what is doubtful, what has to be done.
//!
//! Each item stands for itself, so that one missing permission does not hide the rest. What cannot be seen for want of a permission is a warning with the grant
//! that would show it: the import itself may not need it.

mod capture;
mod clock;
mod grants;

use schemas::table::TableName;
use serde::Serialize;

pub use clock::time_zone;
pub use grants::grants;

use crate::config::{TableFilter, matches};
use source::catalog::Database;
use source::decode::Columns;
use source::health::Health;
use source::{Catalog, Client, Error, Source, sql};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warning,
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    pub name: String,
    pub level: Level,
    pub detail: String,
    /// What to do, if anything; T-SQL where that is what it takes.
    pub remedy: Option<String>,
}

impl CheckItem {
    pub(crate) fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Ok, detail: detail.into(), remedy: None }
    }

    pub(crate) fn warning(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    pub(crate) fn problem(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Problem, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    /// An error's message says what to do already.
    fn failed(name: &str, error: &Error) -> Self {
        Self { name: name.to_owned(), level: Level::Problem, detail: error.to_string(), remedy: None }
    }
}

/// The oldest version with everything that is asked for: SQL Server 2016 SP1, from which CDC comes with the Standard edition.
const OLDEST_VERSION: u32 = 13;

/// Looks at a source.
pub async fn check(source: &Source, tables: &TableFilter) -> Vec<CheckItem> {
    let mut items = Vec::new();
    let mut client = match Client::connect(source).await {
        Ok(client) => client,
        Err(error) => return vec![CheckItem::failed("connection", &error)],
    };
    items.push(CheckItem::ok("connection", source.to_string()));
    match Database::read(&mut client).await {
        Err(error) => items.push(CheckItem::failed("database", &error)),
        Ok(database) => {
            items.push(version(&database.version));
            if !database.cdc_enabled {
                items.push(CheckItem::failed("change data capture", &Error::CdcDisabled { database: database.name }));
                return items;
            }
            items.push(CheckItem::ok("change data capture", format!("enabled in database {}", database.name)));
        }
    }
    match Catalog::read(&mut client).await {
        Err(error) => items.push(CheckItem::failed("catalog", &error)),
        Ok(catalog) => captured_tables(&mut client, &catalog, tables, &mut items).await,
    }
    match Health::read(&mut client).await {
        Err(error) => items.push(CheckItem::failed("capture", &error)),
        Ok(health) => items.extend(capture::items(&health)),
    }
    items.push(large_values(&mut client).await);
    items
}

/// Whether a fenced snapshot can be taken: tried out on one table, which is locked for a moment.
pub async fn fence(source: &Source, tables: &TableFilter) -> CheckItem {
    let name = "fenced snapshot";
    let tried = async {
        let catalog = Catalog::read(&mut Client::connect(source).await?).await?;
        let first = catalog.tables.into_iter().map(|table| table.name).find(|name| tables.takes(name));
        source::fence::open(source, first.as_slice(), 1).await
    };
    match tried.await {
        Ok(fenced) => CheckItem::ok(name, format!("possible: a reader was fixed at {}", fenced.lsn)),
        Err(Error::NoFence { what, remedy }) => CheckItem::problem(name, what, remedy),
        Err(error) => CheckItem::failed(name, &error),
    }
}

fn version(version: &str) -> CheckItem {
    let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
    match major {
        Some(major) if major >= OLDEST_VERSION => CheckItem::ok("version", format!("SQL Server {version}")),
        _ => CheckItem::warning(
            "version",
            format!("SQL Server {version} is older than 2016 (13), the oldest that is supported"),
            "Upgrade the server",
        ),
    }
}

async fn captured_tables(client: &mut Client, catalog: &Catalog, filter: &TableFilter, items: &mut Vec<CheckItem>) {
    let wanted = |name: &TableName| !filter.include.is_empty() && filter.takes(name);
    for name in catalog.uncaptured.iter().filter(|name| wanted(name)) {
        items.push(CheckItem::problem(
            &format!("table {name}"),
            "its changes are not captured",
            sql::enable_table(&name.schema, &name.table),
        ));
    }
    let known = |pattern: &String| {
        catalog.tables.iter().map(|table| &table.name).chain(&catalog.uncaptured).any(|name| matches(pattern, name))
    };
    for pattern in filter.include.iter().filter(|pattern| !known(pattern)) {
        items.push(CheckItem::problem(
            &format!("table {pattern}"),
            "there is no such table",
            "Correct `tables` in the configuration",
        ));
    }
    if catalog.tables.is_empty() {
        items.push(CheckItem::failed("tables", &Error::NothingCaptured { database: catalog.database.clone() }));
    }
    for table in catalog.tables.iter().filter(|table| filter.takes(&table.name)) {
        let name = format!("table {}", table.name);
        let Some(instance) = table.instances.first() else { continue };
        let source = format!("{}.{}", sql::quote(&table.name.schema), sql::quote(&table.name.table));
        let mut readable = true;
        for table in [source, sql::change_table(&instance.name)] {
            if let Err(error) = client.rows("reading a captured table", &sql::can_read(&table), vec![]).await {
                items.push(CheckItem::failed(&name, &error));
                readable = false;
                break;
            }
        }
        if !readable {
            continue;
        }
        items.push(if instance.key.is_empty() {
            let remedy = "Give the table a primary key, or a unique index that capture names (@index_name)";
            CheckItem::warning(&name, "has no key: rows cannot be told apart, and its snapshot cannot resume", remedy)
        } else {
            CheckItem::ok(&name, format!("captured by {}, key ({})", instance.name, instance.key.join(", ")))
        });
    }
}

async fn large_values(client: &mut Client) -> CheckItem {
    let (name, doing) = ("max text repl size", "asking for the largest captured value");
    match client.rows(doing, sql::MAX_REPLICATED_TEXT, vec![]).await {
        Err(error) => {
            let remedy = "Nothing: every login may read sys.configurations of SQL Server; this server does not have it";
            CheckItem::warning(name, format!("cannot be seen: {error}"), remedy)
        }
        Ok(rows) => match rows.into_iter().next().map(|row| Columns::new(doing, row).int()) {
            Some(Ok(limit @ 0..)) => CheckItem::warning(
                name,
                format!("writes of values larger than {limit} bytes to captured tables fail"),
                "EXEC sys.sp_configure N'max text repl size', -1; RECONFIGURE;",
            ),
            _ => CheckItem::ok(name, "no limit"),
        },
    }
}
