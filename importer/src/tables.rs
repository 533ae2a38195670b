//! Which tables are imported, from which capture instance, and what to do about those that cannot go on as they were.
//!
//! Looked at anew whenever a session is opened: at the start, after a lost connection, and whenever the tail notices that the catalog has moved. What is decided here is a function of
//! the catalog, the configuration and the saved progress alone, so that a restart decides the same.
//!
//! # Capture instances
//! Of a table's instances the newest is read that holds everything after the saved LSN. When there is a newer one that begins later, the tail reads the old one up to where the
//! newer begins ([`Table::until`]), ends its tick there, and opens the tables again: then the newer one holds everything. So the switch falls exactly at the new instance's
//! start LSN, which is between two transactions, wherever in a backlog that is; and the old one is not needed any more once that point has been acknowledged.
//!
//! # Tables that cannot go on
//! | what | policy | what happens |
//! |---|---|---|
//! | changes were removed, or an instance was dropped, before it was read | `on_gap: stop` | the importer ends with an error |
//! | | `on_gap: resnapshot` | the table is read again beside the tail, under a new generation |
//! | capture was disabled for a table that is still there | | the importer ends with an error that says how to enable it |
//! | the table was dropped | `on_gap: stop` | the importer ends with an error |
//! | | `on_gap: resnapshot` | an empty generation: its rows are removed downstream |
//! | it does not fit its contract, at the first start | | an error: nothing was promised yet |
//! | the same, later | `on_breaking_change: stop` | the table is *held*, see below |
//! | | `on_breaking_change: stop_all` | the importer ends with an error, and goes on with the next change when both fit again |
//! | | `on_breaking_change: dead_letter` | its changes are dead-lettered, and counted as such |
//! | it has more than its contract | `on_compatible_change: report` | what the contract does not name is not published |
//! | | `on_compatible_change: write` | a new version of the contract is written and in force at once |
//! | it is captured since the snapshot | | it is read beside the tail |
//!
//! A held table publishes nothing. Progress stays honest by saying so: each record names the table as one of which nobody knows from which LSN on it is consistent, so a joiner goes on
//! taking in the other tables and tells of no state past the point where the table was held. Holding the whole progress instead would make every other reader of the streams wait as well, and
//! the retention of every other table run out. The price is that the held table's changes in between are not published one by one: when it fits again, it is read anew.
//!
//! Publishing them late, though the retention may still have them, would break what every reader stands on: that nothing at or below a published LSN comes afterwards but repeats (INV-1). A joiner drops such changes as repeats, an
//! archive has closed the range that they belong to, and a reader of several tables would see them out of order; and each would need the rows read anew all the same. Who needs every change one by one has the whole
//! importer wait instead, by `stop_all`.

use std::sync::Arc;

use schemas::contract::{Compatibility, Contract, Difference};
use schemas::progress::Reread;
use schemas::table::TableSchema;
use schemas::{Lsn, TableName};

use crate::config::{BreakingPolicy, CompatiblePolicy, Config, GapPolicy, SnapshotMode, matches};
use crate::contracts::{self, ContractsError};
use crate::controls::{Controlled, Controls, in_order_of};
use crate::error::Error;
use crate::saved::{Reason, Saved, SavedPhase, SavedReread, SavedTable, TableProgress};
use crate::status::StatusHandle;
use source::changes::ChangeTable;
use source::rows::SourceTable;
use source::{CapturedTable, Catalog, Instance, sql};

/// A table as it is imported.
pub(crate) struct Table {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) changes: Arc<ChangeTable>,
    pub(crate) rows: Arc<SourceTable>,
    /// Where a newer capture instance begins, exclusive: no change from there on is read from this one.
    pub(crate) until: Option<Lsn>,
    /// What is published of what is read.
    pub(crate) controls: Controls,
}

/// A table with what it is held to.
pub(crate) struct Opened {
    pub(crate) table: Table,
    pub(crate) contract: Contract,
    /// Why all of its events are dead-lettered, if they are.
    pub(crate) breaks: Option<String>,
}

/// Brings the saved progress in line with the catalog, and opens the tables that are read.
pub(crate) fn open(config: &Config, status: &StatusHandle, catalog: &Catalog, saved: &mut Saved) -> Result<Vec<Opened>, Error> {
    let first = matches!(&saved.phase, SavedPhase::Snapshot { tables, .. } if tables.is_empty()) && saved.positions.is_empty();
    let catalog = with_keys(config, catalog)?;
    let selected = select(config, &catalog, saved)?;
    forget_deselected(config, saved);
    vanished(config, status, &catalog, saved)?;
    for table in &selected {
        if !saved.tables.contains_key(&table.name) {
            arrived(config, table, saved);
        }
    }
    let mut opened = Vec::new();
    for captured in selected {
        if let Some(table) = open_one(config, status, captured, saved, first)? {
            opened.push(table);
        }
    }
    Ok(opened)
}

/// The configuration's own keys in the place of those that the catalog does not have.
fn with_keys(config: &Config, catalog: &Catalog) -> Result<Catalog, Error> {
    let mut catalog = catalog.clone();
    for (name, key) in &config.keys {
        let Some(table) = catalog.tables.iter_mut().find(|table| table.name == *name) else { continue };
        for instance in &mut table.instances {
            let known = |column: &String| instance.columns.iter().find(|captured| captured.name == *column);
            if let Some(column) = key.iter().find(|column| known(column).is_none_or(|captured| captured.nullable)) {
                return Err(Error::ConfiguredKey { table: name.clone(), column: column.clone() });
            }
            if instance.key.is_empty() {
                instance.key.clone_from(key);
            }
        }
    }
    Ok(catalog)
}

/// What is published of each captured table that the configuration takes, by its newest capture instance: what the table's contract is held against.
pub fn published_tables(config: &Config, catalog: &Catalog) -> Result<Vec<TableSchema>, Error> {
    let catalog = with_keys(config, catalog)?;
    let taken = catalog.tables.iter().filter(|table| config.tables.takes(&table.name));
    let newest = taken.filter_map(|table| Some((&table.name, table.instances.first()?)));
    let none = crate::controls::TableControls::default();
    let published = |(name, instance): (&TableName, &Instance)| {
        let settings = config.controls.get(name).unwrap_or(&none);
        Ok(Controlled::new(settings, &instance.schema(name))?.published)
    };
    newest.map(published).collect()
}

/// The captured tables that the configuration takes, by name. A pattern that names nothing is an error: somebody expects a table that would silently be missing.
fn select<'c>(config: &Config, catalog: &'c Catalog, saved: &Saved) -> Result<Vec<&'c CapturedTable>, Error> {
    let named = |pattern: &String| {
        // A table that was there before and has gone is told of as such.
        catalog.tables.iter().map(|table| &table.name).chain(saved.tables.keys()).any(|name| matches(pattern, name))
    };
    let unmatched: Vec<&String> = config.tables.include.iter().filter(|pattern| !named(pattern)).collect();
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
    if selected.is_empty() && saved.tables.is_empty() {
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

/// Tables that the configuration does not take any more. One that it takes again later comes as a new one, because the changes in between were not published.
fn forget_deselected(config: &Config, saved: &mut Saved) {
    saved.tables.retain(|name, _| config.tables.takes(name));
    let lsn = saved.lsn();
    for (_, reread) in saved.rereads.iter_mut().filter(|(name, _)| !config.tables.takes(name)) {
        // Nothing waits for it any longer, and what is there of it stays.
        reread.told = Reread { consistent_from: Some(lsn), finished: true, whole: false, ..reread.told };
        reread.progress = TableProgress::complete();
    }
}

/// Tables that are captured no more. One would otherwise simply fall silent.
fn vanished(config: &Config, status: &StatusHandle, catalog: &Catalog, saved: &mut Saved) -> Result<(), Error> {
    let from = saved.lsn();
    let gone: Vec<TableName> = saved.tables.keys().filter(|name| catalog.table(name).is_none()).cloned().collect();
    for name in gone {
        let Some(mut before) = saved.tables.remove(&name) else { continue };
        if catalog.uncaptured.contains(&name) {
            let remedy = sql::enable_table(&name.schema, &name.table);
            return Err(source::Error::NotCaptured { tables: name.to_string(), remedy }.into());
        }
        if config.gap_policy(&name) == GapPolicy::Stop {
            return Err(source::Error::InstanceGone { table: name, instance: before.instance, from }.into());
        }
        status.warn(&format!("{name} was dropped: its rows are removed"));
        let generation = before.next_generation();
        let told = Reread { generation, reading: 0, consistent_from: Some(from), finished: true, whole: true, floor: Lsn::ZERO };
        let progress = TableProgress::complete();
        saved.rereads.insert(name.clone(), SavedReread { told, ..SavedReread::new(Reason::Gap, 0, true, progress) });
        if let SavedPhase::Snapshot { tables, .. } = &mut saved.phase {
            tables.remove(&name);
        }
    }
    Ok(())
}

/// A table that was not imported so far: part of the initial snapshot while that goes on, read beside the tail later.
fn arrived(config: &Config, table: &CapturedTable, saved: &mut Saved) {
    let Some(instance) = table.instances.first() else { return };
    let floor = instance.start_lsn;
    let entry = SavedTable { object_id: table.object_id, instance: instance.name.clone(), floor, generation: 0, held: None };
    saved.tables.insert(table.name.clone(), entry);
    if matches!(saved.phase, SavedPhase::Tail { .. }) && config.snapshot.mode != SnapshotMode::Never {
        tracing::info!(table = %table.name, "the table is captured since the snapshot; it is read beside the tail");
        saved.reread(&table.name, Reason::New, floor);
    }
}

/// How a table is read and what it is held to; `None`: not at all, for it is held.
fn open_one(
    config: &Config,
    status: &StatusHandle,
    captured: &CapturedTable,
    saved: &mut Saved,
    first: bool,
) -> Result<Option<Opened>, Error> {
    let name = &captured.name;
    let from = saved.lsn();
    let Some(before) = saved.tables.get(name) else { return Ok(None) };
    let (instance, until) = match choose_instance(captured, before, from) {
        Ok(chosen) => chosen,
        Err(error) => {
            let Some(newest) = captured.instances.first().filter(|_| config.gap_policy(name) == GapPolicy::Resnapshot) else {
                return Err(error.into());
            };
            tracing::warn!(table = %name, %error, "changes were lost; the table is read again beside the tail");
            status.warn(&format!("{error} It is being read again."));
            saved.reread(name, Reason::Gap, newest.start_lsn);
            (newest, None)
        }
    };
    let live = instance.schema(name);
    let settings = config.controls.get(name).cloned().unwrap_or_default();
    let shown = Controlled::new(&settings, &live)?.published;
    let contract = config.contracts.get(name).cloned().unwrap_or_else(|| Contract::from_table(&shown));
    let contract = in_force(config, status, contract, &shown);
    check_computed(&contract, instance, status)?;
    let (breaking, harmless): (Vec<_>, Vec<_>) = contract.compare(&shown).into_iter().partition(Difference::breaks);
    tell_unread(status, captured, instance);
    for (column, sql_type) in &instance.unsupported {
        status.warn(&format!("{name}: column {column} is {sql_type}, which cannot be read: it is left out"));
    }
    for difference in harmless {
        status.warn(&format!("{name}: {difference}"));
    }
    let misfit = (!breaking.is_empty()).then(|| Error::Contract { table: name.clone(), differences: breaking });
    let (contract, breaks) = match misfit {
        None => (contract, None),
        Some(error) if first || config.on_breaking_change == BreakingPolicy::StopAll => return Err(error),
        Some(error) if config.on_breaking_change == BreakingPolicy::Stop => {
            hold(status, name, saved, &error);
            return Ok(None);
        }
        Some(error) => {
            status.warn(&format!("{error}. Until then its changes are dead-lettered"));
            (Contract::from_table(&shown), Some(error.to_string()))
        }
    };
    let Some(entry) = saved.tables.get_mut(name) else { return Ok(None) };
    entry.object_id = captured.object_id;
    entry.instance.clone_from(&instance.name);
    let held = entry.held.take().is_some();
    status.table(name, |table| table.held = None);
    if held {
        saved.reread(name, Reason::Held, instance.start_lsn.max(from.next()));
    }
    if contract.table.key.is_empty() {
        status.warn(&format!(
            "{name} has no key: its rows cannot be told apart, and its snapshot cannot resume. Give it a primary key, or name columns that identify a row under `keys`"
        ));
    }
    let floor = saved.tables.get(name).map_or(Lsn::ZERO, |entry| entry.floor);
    let missing = |column| Error::ColumnNotCaptured { table: name.clone(), column };
    let (settings, live) = in_order_of(&contract.table, &settings, &live);
    let Controlled { read, controls, .. } = Controlled::new(&settings, &live)?;
    let changes = ChangeTable::new(&read, instance, floor, config.page_rows).map_err(missing)?;
    let rows = SourceTable::new(&read, instance).map_err(missing)?;
    let table = Table { schema: contract.table.clone(), changes: Arc::new(changes), rows: Arc::new(rows), until, controls };
    Ok(Some(Opened { table, contract, breaks }))
}

/// The contract, or its next version where the table has changed in compatible ways and the configuration wants that written.
fn in_force(config: &Config, status: &StatusHandle, contract: Contract, shown: &TableSchema) -> Contract {
    let compatible = |contract: &Contract| {
        let levels = contract.compare(shown).iter().map(Difference::compatibility).max();
        levels == Some(Compatibility::Compatible)
    };
    let Some(folder) = config.output.contracts_dir.as_ref().filter(|_| config.on_compatible_change == CompatiblePolicy::Write)
    else {
        return contract;
    };
    if !compatible(&contract) {
        return contract;
    }
    // The file knows of versions since this process has started.
    let written = || -> Result<Option<Contract>, ContractsError> {
        let Some(versions) = contracts::read(folder)?.remove(&shown.name) else { return Ok(None) };
        if !compatible(&versions.current) {
            return Ok(Some(versions.current));
        }
        let next = versions.current.evolve(shown).ok().flatten();
        if let Some(next) = &next {
            contracts::put_in_force(folder, &versions, next)?;
            tracing::info!(table = %shown.name, version = next.version, "a new version of the contract is in force");
        }
        Ok(next)
    };
    match written() {
        Ok(Some(next)) => next,
        Ok(None) => contract,
        Err(error) => {
            status.warn(&format!("{}: a new version of the contract could not be written: {error}", shown.name));
            contract
        }
    }
}

/// Which older instances are not needed any more: what they hold was acknowledged before the chosen one was.
fn tell_unread(status: &StatusHandle, captured: &CapturedTable, chosen: &Instance) {
    let name = &captured.name;
    for older in captured.instances.iter().skip_while(|instance| instance.name != chosen.name).skip(1) {
        let remedy = sql::disable_instance(&name.schema, &name.table, &older.name);
        status.warn(&format!("{name}: the capture instance {} is not read any more and can be dropped: {remedy}", older.name));
    }
}

/// Publishes nothing of a table from here on, and says so.
fn hold(status: &StatusHandle, name: &TableName, saved: &mut Saved, error: &Error) {
    let text = format!("{error}. Until then nothing of it is published, and no entity goes past {}", saved.lsn());
    status.warn(&text);
    status.table(name, |table| table.held = Some(error.to_string()));
    let Some(table) = saved.tables.get_mut(name) else { return };
    if table.held.replace(error.to_string()).is_none() {
        tracing::warn!(table = %name, %error, "the table is held");
        let floor = table.floor;
        saved.reread(name, Reason::Held, floor);
    }
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

/// The newest instance that holds everything after `from`, and where the one after it begins.
fn choose_instance<'c>(
    captured: &'c CapturedTable,
    before: &SavedTable,
    from: Lsn,
) -> Result<(&'c Instance, Option<Lsn>), source::Error> {
    let gone =
        |instance: &Instance| source::Error::InstanceGone { table: captured.name.clone(), instance: instance.name.clone(), from };
    let newest = captured
        .instances
        .first()
        .ok_or_else(|| source::Error::Unexpected { doing: "choosing a capture instance", what: "there is none".into() })?;
    if captured.object_id != before.object_id {
        // Another table of the same name: the changes of the old one went with it.
        return Err(gone(newest));
    }
    // From the newest to the oldest.
    let mut until = None;
    for instance in &captured.instances {
        if instance.start_lsn <= from.next().max(before.floor) {
            return Ok((instance, until));
        }
        until = Some(instance.start_lsn);
    }
    Err(source::Error::Gap { table: captured.name.clone(), instance: newest.name.clone(), from, min: newest.start_lsn })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use source::keys::KeySource;

    use super::*;

    fn lsn(n: u8) -> Lsn {
        Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }

    fn captured(starts: &[u8]) -> CapturedTable {
        let instance = |start: &u8| Instance {
            name: format!("orders_{start}"),
            object_id: i64::from(*start),
            start_lsn: lsn(*start),
            end_lsn: None,
            create_date: None,
            columns: Vec::new(),
            key: Vec::new(),
            key_source: KeySource::None,
            unsupported: Vec::new(),
        };
        CapturedTable { name: TableName::new("dbo", "orders"), object_id: 1, instances: starts.iter().map(instance).collect() }
    }

    #[test]
    fn an_instance_is_read_up_to_where_the_next_begins() {
        let before = SavedTable { object_id: 1, instance: "x".into(), floor: lsn(2), generation: 0, held: None };
        let chosen = |starts: &[u8], from: u8| {
            let table = captured(starts);
            choose_instance(&table, &before, lsn(from)).map(|(instance, until)| (instance.name.clone(), until)).ok()
        };
        assert_eq!(chosen(&[20, 10], 12), Some(("orders_10".into(), Some(lsn(20)))));
        // The range after 19 begins where the new one does.
        assert_eq!(chosen(&[20, 10], 19), Some(("orders_20".into(), None)));
        assert_eq!(chosen(&[20, 10], 8), None);
        assert_eq!(chosen(&[20], 12), None, "dropped early is a gap");
        // Before the floor nothing is asked for.
        assert_eq!(chosen(&[2], 0), Some(("orders_2".into(), None)));
        let other = SavedTable { object_id: 2, ..before.clone() };
        assert!(choose_instance(&captured(&[10]), &other, lsn(12)).is_err());
    }
}
