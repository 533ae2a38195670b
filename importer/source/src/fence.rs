//! Reading tables as of one LSN, where the database allows SNAPSHOT isolation.
//!
//! # Why the LSN is right
//! One connection holds shared locks on the tables, so no transaction that has changed one of them is open. Meanwhile each reader opens a SNAPSHOT transaction, reads
//! (which fixes what it sees) and writes a savepoint (which gives it an entry in the log, and so an LSN). Between the read and the entry nobody can commit a change to the
//! tables. So whatever was committed to them below the LSN is seen, and whatever comes after it is not: the rows are the tables as of that LSN, and the tail
//! after it goes on from there without an overlap. Readers that were opened under the same locks see the same; the least of their LSNs stands for all.
//!
//! The same entry, without locks and without reading, is a mark in the log ([`mark`]): what was seen before it was written stands below it.
//!
//! The locks are held for the few round trips that this takes, and waited for no longer than `LOCK_TIMEOUT_MS`: a shared lock that waits for a writer makes all
//! later writers wait behind it.

use schemas::value::Value;
use schemas::{Lsn, TableName};

use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::source::Source;
use super::sql::{self, quote};

const LOCK_TIMEOUT_MS: u32 = 5_000;
/// SQL Server's error when a lock was not granted in time.
const LOCK_TIMED_OUT: u32 = 1222;

/// Connections that all see the tables as of `lsn`, as long as their transactions are open.
pub struct Fenced {
    pub lsn: Lsn,
    pub readers: Vec<Client>,
}

/// Fixes what `readers` connections (at least one) see of the tables.
pub async fn open(source: &Source, tables: &[TableName], readers: usize) -> Result<Fenced, Error> {
    let mut locker = Client::connect(source).await?;
    check_allowed(&mut locker, source).await?;
    let mut connected = Vec::with_capacity(readers.max(1));
    for _ in 0..readers.max(1) {
        connected.push(Client::connect(source).await?);
    }
    // Whatever fails from here on, dropping a connection ends its transaction and its locks.
    lock(&mut locker, tables).await?;
    let mut least: Option<Lsn> = None;
    for reader in &mut connected {
        let lsn = fix(reader, tables).await?;
        least = Some(least.map_or(lsn, |least| least.min(lsn)));
    }
    locker.batch("giving back the locks on the tables", "ROLLBACK TRANSACTION").await?;
    let lsn = least.ok_or_else(|| Error::Unexpected { doing: "fixing a snapshot", what: "there is no reader".into() })?;
    Ok(Fenced { lsn, readers: connected })
}

async fn check_allowed(client: &mut Client, source: &Source) -> Result<(), Error> {
    let doing = "asking for SNAPSHOT isolation";
    let row = client.rows(doing, sql::SNAPSHOT_ISOLATION, vec![]).await?.into_iter().next();
    if row.map(|row| Columns::new(doing, row).int()).transpose()? == Some(1) {
        return Ok(());
    }
    Err(Error::NoFence {
        what: format!("database {} does not allow SNAPSHOT isolation", source.database),
        remedy: format!(
            "Run: ALTER DATABASE {} SET ALLOW_SNAPSHOT_ISOLATION ON; or take the snapshot without",
            quote(&source.database)
        ),
    })
}

async fn lock(client: &mut Client, tables: &[TableName]) -> Result<(), Error> {
    let doing = "locking the tables for a moment";
    client.batch(doing, &format!("SET LOCK_TIMEOUT {LOCK_TIMEOUT_MS}; BEGIN TRANSACTION")).await?;
    for table in tables {
        match client.batch(doing, &sql::lock_shared(&quoted(table))).await {
            Err(Error::Server { code: LOCK_TIMED_OUT, .. }) => {
                return Err(Error::NoFence {
                    what: format!("{table} has been written by open transactions for longer than {} s", LOCK_TIMEOUT_MS / 1000),
                    remedy: "Try again when they have ended, or take the snapshot without".to_owned(),
                });
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// Opens the transaction in which a reader sees the tables as they are now, and answers its LSN.
async fn fix(client: &mut Client, tables: &[TableName]) -> Result<Lsn, Error> {
    let doing = "fixing a snapshot";
    client.batch(doing, "SET TRANSACTION ISOLATION LEVEL SNAPSHOT; BEGIN TRANSACTION").await?;
    if let Some(table) = tables.first() {
        client.batch(doing, &format!("SELECT TOP (1) 1 AS seen FROM {}", quoted(table))).await?;
    }
    client.batch(doing, "SAVE TRANSACTION tributary").await?;
    let seen = transaction_lsn(client, doing).await?;
    seen.ok_or_else(|| Error::NoFence {
        what: "the transaction's LSN cannot be seen".to_owned(),
        remedy: "Run: GRANT VIEW SERVER STATE TO [login]; (from SQL Server 2022 on VIEW SERVER PERFORMANCE STATE is enough) or take the snapshot without".to_owned(),
    })
}

/// The LSN of the open transaction; none where the login may not see it, or there is no entry in the log.
async fn transaction_lsn(client: &mut Client, doing: &'static str) -> Result<Option<Lsn>, Error> {
    let row = match client.rows(doing, sql::TRANSACTION_LSN, vec![]).await {
        Err(Error::Permission { .. }) => None,
        rows => rows?.into_iter().next(),
    };
    match row.map(|row| Columns::new(doing, row).value()).transpose()? {
        Some(Value::Decimal { mantissa, scale: 0 }) => {
            let lsn = lsn_of_number(mantissa);
            lsn.map(Some).ok_or_else(|| Error::Unexpected { doing, what: format!("{mantissa} is not an LSN") })
        }
        None | Some(Value::Null) => Ok(None),
        Some(other) => Err(Error::Unexpected { doing, what: format!("the transaction's LSN is {other:?}") }),
    }
}

/// An LSN above that of every transaction that has been seen by now, and below that of every one that begins later: of an entry in the log that changes nothing. None where the server does not let it be written or seen.
pub async fn mark(client: &mut Client) -> Result<Option<Lsn>, Error> {
    let doing = "marking a place in the log";
    let opened = client.batch(doing, sql::OPEN_MARK).await;
    let seen = match opened {
        Ok(_) => transaction_lsn(client, doing).await,
        // A database that is read only, for one.
        Err(Error::Server { .. } | Error::Permission { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    client.batch(doing, sql::CLOSE_MARK).await?;
    seen
}

fn quoted(table: &TableName) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.table))
}

/// `sys.dm_tran_database_transactions` writes an LSN as one decimal number: the log file's number, then ten digits for the block and five for the slot.
fn lsn_of_number(number: i128) -> Option<Lsn> {
    let (file, rest) = (number.div_euclid(10i128.pow(15)), number.rem_euclid(10i128.pow(15)));
    let (file, block) = (u32::try_from(file).ok()?, u32::try_from(rest / 100_000).ok()?);
    let slot = u16::try_from(rest % 100_000).ok()?;
    let mut bytes = [0; 10];
    bytes[..4].copy_from_slice(&file.to_be_bytes());
    bytes[4..8].copy_from_slice(&block.to_be_bytes());
    bytes[8..].copy_from_slice(&slot.to_be_bytes());
    Some(Lsn::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_lsn_is_read_from_its_decimal_form() {
        assert_eq!(lsn_of_number(39_000_000_275_200_002).unwrap().to_string(), "00000027:00000ac0:0002");
        assert_eq!(lsn_of_number(4_294_967_295_429_496_729_565_535), Some(Lsn::MAX));
        assert_eq!(lsn_of_number(65_536), None);
        assert_eq!(lsn_of_number(-1), None);
    }
}
