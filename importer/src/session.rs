//! One connection's worth of importing: from a look at the catalog to the first failure.
//!
//! Everything is looked up anew with each connection, so that whatever happened while it was down (a failover, a new capture instance, a changed table) is
//! seen before anything is read on its account. What outlives a session is the saved progress alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::contract::Contract;
use schemas::table::TableSchema;
use schemas::{Lsn, TableName};
use streams::Provider;

use crate::config::{Config, matches};
use crate::error::Error;
use crate::publish::Publisher;
use crate::saved::{ProgressFile, Saved, SavedPhase, SavedTable, TableProgress};
use crate::snapshot;
use crate::status::StatusHandle;
use source::changes::ChangeTable;
use source::clock::Clock;
use source::rows::SourceTable;
use source::{CapturedTable, Catalog, Client, Instance, sql};

/// A table as it is imported.
pub(crate) struct Table {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) changes: Arc<ChangeTable>,
    pub(crate) rows: SourceTable,
}

pub(crate) struct Session<'a> {
    pub(crate) config: &'a Config,
    pub(crate) status: StatusHandle,
    pub(crate) client: Client,
    pub(crate) publisher: Publisher,
    pub(crate) clock: Clock,
    pub(crate) tables: Vec<Table>,
    pub(crate) saved: Saved,
    /// The query for what has moved, over the instances of `tables` in their order.
    pub(crate) moved_sql: String,
    file: ProgressFile,
    /// When something last succeeded, for whoever decides on giving up.
    last_success: &'a mut Option<Instant>,
}

/// What a session is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a Config,
    pub(crate) provider: &'a dyn Provider,
    pub(crate) file: &'a ProgressFile,
    pub(crate) clock: &'a Clock,
    pub(crate) status: &'a StatusHandle,
    pub(crate) epoch: u64,
    pub(crate) record_limit: Option<usize>,
    pub(crate) last_success: &'a mut Option<Instant>,
}

impl<'a> Session<'a> {
    /// Connects, reads the catalog, holds it against configuration, contracts and progress, and makes ready to read and publish.
    pub(crate) async fn open(opening: Opening<'a>) -> Result<Self, Error> {
        let Opening { config, provider, file, clock, status, epoch, record_limit, last_success } = opening;
        let saved = file.load(&config.name)?;
        let mut client = Client::connect(&config.source).await?;
        *last_success = Some(Instant::now());
        let catalog = Catalog::read(&mut client).await?;
        let selected = select_tables(config, &catalog)?;
        let saved = match saved {
            Some(saved) => saved,
            None => first_progress(config, &catalog, &selected, &mut client).await?,
        };
        check_still_captured(config, &catalog, &saved)?;
        let mut tables = Vec::new();
        let mut contracts = Vec::new();
        for captured in in_snapshot(config, status, selected, &saved)? {
            let (table, contract) = open_table(config, status, captured, &saved)?;
            tables.push(table);
            contracts.push(contract);
        }
        let instances: Vec<&str> = tables.iter().map(|table| table.changes.instance.as_str()).collect();
        let moved_sql = sql::moved(&instances);
        let mut publisher =
            Publisher::new(config, provider, contracts, &catalog.database, epoch, record_limit, status.clone()).await?;
        publisher.go_on_from(saved.positions.clone());
        let (clock, status, file) = (clock.clone(), status.clone(), file.clone());
        Ok(Self { config, status, client, publisher, clock, tables, saved, moved_sql, file, last_success })
    }

    /// Something was achieved: failures from here on are new ones.
    pub(crate) fn went_well(&mut self) {
        *self.last_success = Some(Instant::now());
        self.status.update(|status| status.last_error = None);
    }

    pub(crate) fn in_snapshot(&self) -> bool {
        matches!(self.saved.phase, SavedPhase::Snapshot { .. })
    }

    /// How far the snapshot of a table has come.
    pub(crate) fn snapshot_progress(&self, index: usize) -> TableProgress {
        match &self.saved.phase {
            SavedPhase::Snapshot { tables, .. } => tables.get(&self.tables[index].schema.name).cloned().unwrap_or_default(),
            SavedPhase::Tail { .. } => TableProgress { done: true, ..TableProgress::default() },
        }
    }

    /// Saves how far the snapshot of a table has come: after everything up to there has been acknowledged.
    pub(crate) fn save_chunk(&mut self, index: usize, progress: &TableProgress) -> Result<(), Error> {
        let name = self.tables[index].schema.name.clone();
        if progress.done {
            self.status.table(&name, |table| table.snapshot_done = true);
        }
        if let SavedPhase::Snapshot { tables, .. } = &mut self.saved.phase {
            tables.insert(name, progress.clone());
        }
        self.went_well();
        self.save()
    }

    pub(crate) fn save(&mut self) -> Result<(), Error> {
        self.saved.positions.clone_from(self.publisher.positions());
        self.file.save(&self.saved)
    }
}

/// The captured tables that the configuration takes, by name. A pattern that names nothing is an error: somebody expects a table that would silently be missing.
fn select_tables<'c>(config: &Config, catalog: &'c Catalog) -> Result<Vec<&'c CapturedTable>, Error> {
    let unmatched: Vec<&String> = config
        .tables
        .include
        .iter()
        .filter(|pattern| !catalog.tables.iter().any(|table| matches(pattern, &table.name)))
        .collect();
    if !unmatched.is_empty() {
        let uncaptured: Vec<&TableName> =
            catalog.uncaptured.iter().filter(|name| unmatched.iter().any(|pattern| matches(pattern, name))).collect();
        if !uncaptured.is_empty() {
            let remedy = uncaptured.iter().map(|name| sql::enable_table(&name.schema, &name.table)).collect::<Vec<_>>().join(" ");
            return Err(source::Error::NotCaptured { tables: listed(uncaptured.iter()), remedy }.into());
        }
        return Err(source::Error::NoSuchTable {
            patterns: listed(unmatched.iter()),
            captured: listed(catalog.tables.iter().map(|table| &table.name)),
        }
        .into());
    }
    let selected: Vec<&CapturedTable> = catalog.tables.iter().filter(|table| config.tables.takes(&table.name)).collect();
    if selected.is_empty() {
        return Err(if catalog.tables.is_empty() {
            source::Error::NothingCaptured { database: catalog.database.clone() }.into()
        } else {
            let patterns = format!("the patterns but those that exclude: {}", config.tables.exclude.join(", "));
            source::Error::NoSuchTable { patterns, captured: listed(catalog.tables.iter().map(|table| &table.name)) }.into()
        });
    }
    Ok(selected)
}

fn listed<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// The progress before anything was done: a snapshot that begins now. Not saved yet: a start that publishes nothing leaves no trace.
async fn first_progress(
    config: &Config,
    catalog: &Catalog,
    selected: &[&CapturedTable],
    client: &mut Client,
) -> Result<Saved, Error> {
    let mut tables = BTreeMap::new();
    for table in selected {
        let Some(instance) = table.instances.first() else { continue };
        let saved = SavedTable { object_id: table.object_id, instance: instance.name.clone(), floor: instance.start_lsn };
        tables.insert(table.name.clone(), saved);
    }
    let captured = snapshot::max_lsn(client).await?;
    let lsn = snapshot::starting_lsn(captured, tables.values().map(|table| table.floor));
    tracing::info!(%lsn, tables = tables.len(), "the initial snapshot begins");
    Ok(Saved::new(&config.name, &catalog.database, tables, snapshot::start(lsn)))
}

/// The tables that the snapshot began with. One that was captured later has no snapshot: it is left out and told of, so that enabling capture for one table does not stop
/// the others; but somebody who names it expects it.
fn in_snapshot<'c>(
    config: &Config,
    status: &StatusHandle,
    selected: Vec<&'c CapturedTable>,
    saved: &Saved,
) -> Result<Vec<&'c CapturedTable>, Error> {
    let (known, new): (Vec<_>, Vec<_>) = selected.into_iter().partition(|table| saved.tables.contains_key(&table.name));
    for CapturedTable { name, .. } in new {
        if config.tables.names(name) {
            return Err(Error::NewTable { table: name.clone() });
        }
        status.warn(&format!(
            "{name} is captured since the snapshot was taken and is not imported. To import it, remove the importer's data directory for a new snapshot into an empty joiner \
             state; to leave it out for good, list the tables to import in `tables`"
        ));
    }
    Ok(known)
}

/// A table of the snapshot that is not captured any more would otherwise simply fall silent.
fn check_still_captured(config: &Config, catalog: &Catalog, saved: &Saved) -> Result<(), Error> {
    let gone = saved.tables.iter().find(|(name, _)| config.tables.takes(name) && catalog.table(name).is_none());
    match gone {
        None => Ok(()),
        Some((table, before)) => {
            let (table, instance) = (table.clone(), before.instance.clone());
            Err(source::Error::InstanceGone { table, instance, from: saved.lsn() }.into())
        }
    }
}

/// How a table is read and what it is held to.
fn open_table(
    config: &Config,
    status: &StatusHandle,
    captured: &CapturedTable,
    saved: &Saved,
) -> Result<(Table, Contract), Error> {
    let name = &captured.name;
    let before = saved.tables.get(name).ok_or_else(|| Error::NewTable { table: name.clone() })?;
    let instance = choose_instance(captured, before, saved.lsn())?;
    let live = instance.schema(name);
    for (column, sql_type) in &instance.unsupported {
        status.warn(&format!("{name}: column {column} is {sql_type}, which cannot be read: it is left out"));
    }
    let contract = match config.contracts.get(name) {
        Some(contract) => contract.clone(),
        None => Contract::from_table(&live),
    };
    check_computed(&contract, instance, status)?;
    let differences = contract.compare(&live);
    let (breaking, harmless): (Vec<_>, Vec<_>) = differences.into_iter().partition(schemas::contract::Difference::breaks);
    if !breaking.is_empty() {
        return Err(Error::Contract { table: name.clone(), differences: breaking });
    }
    for difference in harmless {
        status.warn(&format!("{name}: {difference}"));
    }
    if contract.table.key.is_empty() {
        status.warn(&format!(
            "{name} has no key: its rows cannot be told apart, and its snapshot cannot resume. Give it a primary key"
        ));
    }
    let missing = |column| Error::ColumnNotCaptured { table: name.clone(), column };
    let changes = ChangeTable::new(&contract.table, instance, before.floor, config.page_rows).map_err(missing)?;
    let rows = SourceTable::new(&contract.table, instance).map_err(missing)?;
    let table = Table { schema: contract.table.clone(), changes: Arc::new(changes), rows };
    Ok((table, contract))
}

/// Computed columns are left out, and nobody may count on one: neither the contract nor the table's own key.
fn check_computed(contract: &Contract, instance: &Instance, status: &StatusHandle) -> Result<(), Error> {
    let name = &contract.table.name;
    for column in instance.computed() {
        if contract.table.column(column).is_some() {
            return Err(Error::ComputedColumn { table: name.clone(), column: column.to_owned() });
        }
        if instance.key.iter().any(|key| key == column) {
            return Err(Error::ComputedKey { table: name.clone(), column: column.to_owned() });
        }
        status.warn(&format!(
            "{name}: column {column} is computed, and change data capture records no values of it: it is left out"
        ));
    }
    Ok(())
}

/// The newest instance that holds everything after `from`.
fn choose_instance<'c>(captured: &'c CapturedTable, before: &SavedTable, from: Lsn) -> Result<&'c Instance, Error> {
    let gone =
        |instance: &Instance| source::Error::InstanceGone { table: captured.name.clone(), instance: instance.name.clone(), from };
    let newest = captured
        .instances
        .first()
        .ok_or_else(|| source::Error::Unexpected { doing: "choosing a capture instance", what: "there is none".into() })?;
    if captured.object_id != before.object_id {
        // Another table of the same name: the changes of the old one went with it.
        return Err(gone(newest).into());
    }
    let holds = |instance: &&Instance| instance.start_lsn <= from.next().max(before.floor);
    captured.instances.iter().find(holds).ok_or_else(|| {
        let min = newest.start_lsn;
        source::Error::Gap { table: captured.name.clone(), instance: newest.name.clone(), from, min }.into()
    })
}
