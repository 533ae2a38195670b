//! Which columns tell a table's rows apart.
//!
//! Change data capture names them itself (`cdc.index_columns`): the primary key, or the unique index that capture was enabled with. A table without either still has
//! a key if a unique index tells all of its rows apart: one without a filter, enabled, over columns that are all captured, never NULL, not computed, and of types
//! that have an order to go on from. Of several, the one with the fewest columns is taken, and of those the one with the least index id, which is the
//! clustered index or the oldest: an index that is added later takes the place of none that is as narrow. Without one, the table has no key: its rows are
//! told apart by nothing but their whole contents, and its snapshot cannot resume.

use std::collections::BTreeMap;

use super::catalog::{CapturedTable, Instance};
use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// Where a table's key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// Change data capture: the primary key, or the index that capture was enabled with.
    Captured,
    /// This unique index stands for it.
    UniqueIndex(String),
    None,
}

/// A unique index over every row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UniqueIndex {
    id: i64,
    name: String,
    column_ids: Vec<i64>,
}

/// Gives the instances without a key the columns of a unique index, where there is one.
pub(super) async fn fall_back(client: &mut Client, tables: &mut [CapturedTable]) -> Result<(), Error> {
    if tables.iter().flat_map(|table| &table.instances).all(|instance| !instance.key.is_empty()) {
        return Ok(());
    }
    let indexes = read(client).await?;
    for table in tables {
        let Some(indexes) = indexes.get(&table.object_id) else { continue };
        for instance in table.instances.iter_mut().filter(|instance| instance.key.is_empty()) {
            if let Some((name, key)) = choose(instance, indexes) {
                (instance.key, instance.key_source) = (key, KeySource::UniqueIndex(name));
            }
        }
    }
    Ok(())
}

/// By table, in the order of their ids.
async fn read(client: &mut Client) -> Result<BTreeMap<i64, Vec<UniqueIndex>>, Error> {
    let doing = "reading the unique indexes";
    let mut tables: BTreeMap<i64, Vec<UniqueIndex>> = BTreeMap::new();
    for row in client.rows(doing, sql::UNIQUE_INDEXES, vec![]).await? {
        let mut row = Columns::new(doing, row);
        let (object_id, id, name, column_id) = (row.int()?, row.int()?, row.text()?, row.int()?);
        let indexes = tables.entry(object_id).or_default();
        match indexes.last_mut() {
            Some(last) if last.id == id => last.column_ids.push(column_id),
            _ => indexes.push(UniqueIndex { id, name, column_ids: vec![column_id] }),
        }
    }
    Ok(tables)
}

/// The index that identifies an instance's rows best, and its columns' names in the change table.
fn choose(instance: &Instance, indexes: &[UniqueIndex]) -> Option<(String, Vec<String>)> {
    let names = |index: &UniqueIndex| -> Option<Vec<String>> {
        let name = |id: &i64| {
            let column = instance.columns.iter().find(|column| column.column_id == *id && !column.computed)?;
            column.key_column().map(|_| column.name.clone())
        };
        index.column_ids.iter().map(name).collect()
    };
    indexes
        .iter()
        .filter_map(|index| names(index).map(|names| (index, names)))
        .min_by_key(|(index, names)| (names.len(), index.id))
        .map(|(index, names)| (index.name.clone(), names))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;

    use super::super::CapturedColumn;
    use super::*;

    fn column(column_id: i64, name: &str, sql_type: &str, nullable: bool) -> CapturedColumn {
        CapturedColumn {
            name: name.into(),
            source_name: name.into(),
            ordinal: 1,
            column_id,
            sql_type: sql_type.parse().unwrap(),
            nullable,
            computed: name == "computed",
            collation: None,
            default_collation: true,
        }
    }

    #[test]
    fn the_narrowest_index_that_every_row_is_in_stands_for_a_missing_key() {
        let instance = Instance {
            name: "dbo_t".into(),
            object_id: 1,
            start_lsn: Lsn::ZERO,
            end_lsn: None,
            create_date: None,
            columns: vec![
                column(1, "a", "int", false),
                column(2, "b", "int", false),
                column(3, "maybe", "int", true),
                column(4, "computed", "int", false),
                column(6, "c", "uniqueidentifier", false),
            ],
            key: vec![],
            key_source: KeySource::None,
            unsupported: vec![],
        };
        let index = |id, name: &str, columns: &[i64]| UniqueIndex { id, name: name.into(), column_ids: columns.to_vec() };
        let pair = index(2, "pair", &[2, 1]);
        let chosen = |indexes: &[UniqueIndex]| choose(&instance, indexes);
        assert_eq!(chosen(std::slice::from_ref(&pair)), Some(("pair".into(), vec!["b".into(), "a".into()])));
        let useless = [index(3, "nullable", &[3]), index(4, "computed", &[4]), index(5, "not captured", &[5])];
        assert_eq!(chosen(&useless), None);
        let all: Vec<UniqueIndex> = useless.into_iter().chain([pair, index(9, "late", &[6]), index(7, "one", &[6])]).collect();
        assert_eq!(chosen(&all), Some(("one".into(), vec!["c".into()])));
    }
}
