//! The commit record: where a transaction stands in the log.
//!
//! Called inside the transaction, right before COMMIT, while SQLite's one write lock is held. Since every logged row needs that lock, the log rows past
//! the last stamped one are exactly this transaction's, and the order of stamps is the order of commits. If the COMMIT then fails, the stamp goes with it.
//!
//! A transaction of n changes takes n + 2 records of the imagined log: its begin, one for each change (their LSNs are the seqvals), and its commit,
//! whose LSN is the transaction's.

use rusqlite::{Connection, params};

use crate::{DateTime, Lsn, Result, time};

/// Gives the open transaction's changes their place in the log; answers the commit LSN if it logged any.
pub fn stamp_commit(conn: &Connection, began: DateTime, now: DateTime) -> Result<Option<Lsn>> {
    let last: Option<i64> = conn.prepare_cached("SELECT max(seq) FROM __cdc_log")?.query_row([], |row| row.get(0))?;
    let Some(last) = last else { return Ok(None) };
    let (stamped, address, transaction): (i64, i64, i64) = conn
        .prepare_cached("SELECT stamped, address, transaction_id FROM __cdc_state")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if last <= stamped {
        return Ok(None);
    }
    // Sequence numbers below the first one present were given to rows that are gone again, with a savepoint or a dropped instance.
    let first: i64 =
        conn.prepare_cached("SELECT min(seq) FROM __cdc_log WHERE seq > ?1")?.query_row([stamped], |row| row.get(0))?;
    let (begin, changes) = (address as u64, (last - first + 1) as u64);
    let commit = Lsn::of_record(begin, changes + 1);
    let mut tran_id = [0; 10];
    tran_id[2..].copy_from_slice(&transaction.to_be_bytes());
    conn.prepare_cached(
        "INSERT INTO __cdc_tran (commit_lsn, begin_lsn, address, first_seq, last_seq, begin_time, end_time, tran_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        commit,
        Lsn::of_record(begin, 0),
        address,
        first,
        last,
        time::stored(began),
        time::stored(now),
        &tran_id[..]
    ])?;
    conn.prepare_cached("UPDATE __cdc_state SET stamped = ?1, address = ?2, transaction_id = transaction_id + 1")?
        .execute(params![last, Lsn::address_after(begin, changes + 2) as i64])?;
    Ok(Some(commit))
}

/// The LSN that a record written now would have: the end of the log.
pub fn current_lsn(conn: &Connection) -> Result<Lsn> {
    Ok(Lsn::of_record(address(conn)?, 0))
}

/// Whether the log cannot be truncated because transactions wait to be captured (`sys.databases.log_reuse_wait_desc`).
pub fn holds_log(conn: &Connection) -> Result<bool> {
    Ok(conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM __cdc_tran)")?.query_row([], |row| row.get(0))?)
}

/// A position of its own in the log: for an instance's beginning, or an idle entry. Needs the write lock.
pub(crate) fn allot_lsn(conn: &Connection) -> Result<Lsn> {
    let address = address(conn)?;
    conn.execute("UPDATE __cdc_state SET address = ?1", [Lsn::address_after(address, 2) as i64])?;
    Ok(Lsn::of_record(address, 1))
}

fn address(conn: &Connection) -> Result<u64> {
    let address: i64 = conn.prepare_cached("SELECT address FROM __cdc_state")?.query_row([], |row| row.get(0))?;
    Ok(address as u64)
}
