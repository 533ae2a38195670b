//! What was altered, and when in the log's order.
//!
//! An alteration of a captured table takes its place among the changes when capture reaches it: rows up to `lsn` were written by the table as it was, rows after
//! it by the table as it is. A column that was added is in no instance that existed before. A column whose type was changed is changed in the change table as well
//! ([`Alteration::in_place`]), for the rows that it holds already too.

use schemas::Lsn;
use tiberius::ColumnData;

use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// One statement, as it concerned one capture instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alteration {
    pub source_object_id: Option<i64>,
    /// The instance's: [`Instance::object_id`](super::Instance).
    pub instance_object_id: i64,
    /// The change table was altered too, in place.
    pub in_place: bool,
    pub command: Option<String>,
    pub lsn: Lsn,
    /// By the server's clock.
    pub time: Option<String>,
}

/// The alterations with LSNs in (`from`, `to`], in order.
pub async fn history(client: &mut Client, from: Lsn, to: Lsn) -> Result<Vec<Alteration>, Error> {
    let doing = "reading what was altered";
    let bytes = |lsn: Lsn| ColumnData::Binary(Some(lsn.as_bytes().to_vec().into()));
    let mut alterations = Vec::new();
    for row in client.rows(doing, sql::DDL_HISTORY, vec![bytes(from), bytes(to)]).await? {
        let mut row = Columns::new(doing, row);
        let (source_object_id, instance_object_id) = (row.optional_int()?, row.int()?);
        let (in_place, command) = (row.optional_int()? == Some(1), row.optional_text()?);
        let Some(lsn) = row.lsn()? else { continue };
        alterations.push(Alteration { source_object_id, instance_object_id, in_place, command, lsn, time: row.optional_time()? });
    }
    Ok(alterations)
}
