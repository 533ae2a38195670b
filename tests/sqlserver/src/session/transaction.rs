//! Transactions over the session's connections.
//!
//! A connection joins the session's transaction when a statement first needs it there: a write takes the write lock and begins, a read under SNAPSHOT or
//! REPEATABLE READ begins a snapshot, a read under READ COMMITTED begins nothing, so that every statement sees the latest commit.
//! A snapshot that was outrun before its first write is renewed where SQL Server would have granted the lock (see [`Session::renew`]); under SNAPSHOT it
//! is error 3960.

use std::time::Duration;

use tds::{EnvChange, Isolation, Response, SqlError, TransactionRequest};

use super::{Link, Session, State, fault};
use crate::catalog;
use crate::clock;
use crate::message;

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn sqlite(e: rusqlite::Error) -> SqlError {
    fault::from_sqlite(&e)
}

/// The error of a snapshot that later commits keep from writing.
const OUTRUN: i32 = 3960;

/// Takes SQLite's write lock.
fn lock_file(link: &Link) -> rusqlite::Result<usize> {
    link.db.prepare_cached("UPDATE main.\"~meta\" SET v = v WHERE k = ''").and_then(|mut s| s.execute([]))
}

impl Session {
    pub(super) fn in_transaction(&self) -> bool {
        self.transaction.borrow().count > 0
    }

    fn start_transaction(&self) {
        let mut t = self.transaction.borrow_mut();
        t.count += 1;
        if t.count == 1 {
            t.id = self.shared.next_transaction();
            t.began = self.shared.clock.local_ticks();
            t.doomed = false;
            t.savepoints.clear();
            t.temporary.clear();
        }
    }

    pub(super) fn begin(&self, response: &mut dyn Response) {
        self.start_transaction();
        let t = self.transaction.borrow();
        if t.count == 1 {
            response.env_change(&EnvChange::BeginTransaction(t.id as u64));
        }
    }

    /// The connection takes its part in the transaction for a statement that reads or writes.
    pub(super) fn join(&self, link: &Link, writes: bool) -> Result<(), SqlError> {
        if link.state.get() == State::Writing {
            return Ok(());
        }
        let isolation = self.settings.borrow().isolation;
        if writes {
            self.require_snapshots(link)?;
        }
        if !writes {
            let fixed = matches!(isolation, Isolation::Snapshot | Isolation::RepeatableRead | Isolation::Serializable);
            if self.in_transaction() && fixed && link.state.get() == State::Idle {
                link.commits.set(link.database.writers.commits());
                link.read_rows.set(false);
                self.begin_on(link)?;
                // The snapshot is taken by the first read, which may be of another table later on: take it now.
                link.db
                    .prepare_cached("SELECT v FROM \"~meta\" WHERE k = 'version'")
                    .and_then(|mut s| s.query_row([], |_| Ok(())))
                    .map_err(sqlite)?;
                link.state.set(State::Reading);
            }
            return Ok(());
        }
        if self.transaction.borrow().doomed {
            return Err(message::error(3930, 16, "The current transaction cannot be committed and cannot support operations that write to the log file. Roll back the transaction.".into()));
        }
        if self.shared.is_secondary() && link.database.id > 4 {
            let name = &link.database.name;
            return Err(message::error(
                3906,
                16,
                format!("Failed to update database \"{name}\" because the database is read-only."),
            ));
        }
        let timeout = self.settings.borrow().lock_timeout;
        let timeout = u64::try_from(timeout).ok().map(Duration::from_millis);
        let cancel = self.cancel.clone();
        let guard = link.database.writers.acquire(timeout, &|| cancel.is_set()).ok_or_else(|| {
            if self.cancel.is_set() {
                message::error(3617, 16, "Query was canceled by user.".into())
            } else {
                message::error(1222, 16, "Lock request time out period exceeded.".into())
            }
        })?;
        if link.state.get() == State::Idle {
            self.begin_on(link)?;
        }
        if let Err(e) = lock_file(link) {
            if link.state.get() == State::Idle {
                let _ = link.db.execute_batch("ROLLBACK");
            }
            let e = sqlite(e);
            if e.number != OUTRUN || isolation == Isolation::Snapshot {
                return Err(e);
            }
            self.renew(link)?;
        }
        *link.guard.borrow_mut() = Some(guard);
        link.state.set(State::Writing);
        Ok(())
    }

    /// Moves a transaction that has only read from its snapshot, which commits have outrun, to the latest commit, and locks there. The caller holds the
    /// database's write lock, so that nothing commits meanwhile.
    ///
    /// SQL Server would make the transaction wait for the lock and grant it, as long as nobody waits for what this transaction has read. Nobody does, and
    /// what it has read still holds, if since its snapshot no session has committed anything (the capture and cleanup jobs write only what the server
    /// keeps) or if it has read nothing but what the server keeps, on which a read leaves no lasting lock. Rows that it has not read may be newer from
    /// here on: REPEATABLE READ promises nothing about those, and SERIALIZABLE nothing before the range is read. Otherwise a row that it has read may
    /// have changed, which its lock would have prevented there: to go on could lose that change, so it is a deadlock's victim.
    fn renew(&self, link: &Link) -> Result<(), SqlError> {
        // The snapshots of attached databases go too, and their commits are counted elsewhere.
        let unchanged = link.commits.get() == link.database.writers.commits() && link.attached.borrow().is_empty();
        if link.read_rows.get() && !unchanged {
            return Err(message::error(
                1205,
                13,
                format!(
                    "Transaction (Process ID {}) was deadlocked on lock resources with another process and has been chosen as the deadlock victim. Rerun the transaction.",
                    self.spid
                ),
            ));
        }
        // Not a rollback: that would undo what it did to temporary tables.
        link.db.execute_batch("COMMIT").map_err(sqlite)?;
        link.state.set(State::Idle);
        self.forget_catalog(link);
        self.begin_on(link)?;
        if let Err(e) = lock_file(link) {
            let _ = link.db.execute_batch("ROLLBACK");
            return Err(sqlite(e));
        }
        Ok(())
    }

    /// SNAPSHOT works where the database allows it.
    pub(super) fn require_snapshots(&self, link: &Link) -> Result<(), SqlError> {
        let wanted = self.settings.borrow().isolation == Isolation::Snapshot && link.database.id > 4;
        if !wanted || catalog::setting(&link.db, "snapshot").map_err(sqlite)? != 0 {
            return Ok(());
        }
        Err(message::error(
            3952,
            16,
            format!(
                "Snapshot isolation transaction failed accessing database '{}' because snapshot isolation is not allowed in this database. Use ALTER DATABASE to allow snapshot isolation.",
                link.database.name
            ),
        ))
    }

    fn begin_on(&self, link: &Link) -> Result<(), SqlError> {
        link.db.execute_batch("BEGIN").map_err(sqlite)?;
        for s in &self.transaction.borrow().savepoints {
            link.db.execute_batch(&format!("SAVEPOINT {}", catalog::quote(s))).map_err(sqlite)?;
        }
        Ok(())
    }

    /// Runs a statement that writes: in the session's transaction, or in one of its own that it commits.
    pub(super) fn writing<T>(&self, database: &str, f: impl FnOnce(&Link) -> Result<T, SqlError>) -> Result<T, SqlError> {
        if !self.in_transaction() && self.settings.borrow().implicit_transactions {
            self.start_transaction();
        }
        let own = !self.in_transaction();
        let began = self.shared.clock.local_ticks();
        self.with(database, |link| {
            self.join(link, true)?;
            link.db.execute_batch("SAVEPOINT \"~statement\"").map_err(sqlite)?;
            let answer = f(link);
            // Some errors have rolled back everything already.
            if link.db.is_autocommit() {
                self.finish_link(link);
                return answer.and_then(|_| {
                    Err(message::error(3971, 16, "The transaction was rolled back by the storage engine.".into()))
                });
            }
            if answer.is_err() {
                let _ = link.db.execute_batch("ROLLBACK TO \"~statement\"");
                self.forget_catalog(link);
            }
            link.db.execute_batch("RELEASE \"~statement\"").map_err(sqlite)?;
            if own {
                let answer = match answer {
                    Ok(value) => self.commit_link(link, began).map(|()| value),
                    Err(e) => Err(e),
                };
                if answer.is_err() {
                    self.rollback_link(link);
                }
                return answer;
            }
            answer
        })
    }

    fn forget_catalog(&self, link: &Link) {
        link.version.set(-1);
        link.objects.borrow_mut().clear();
    }

    fn finish_link(&self, link: &Link) {
        link.state.set(State::Idle);
        link.guard.borrow_mut().take();
        self.forget_catalog(link);
    }

    fn commit_link(&self, link: &Link, began: i64) -> Result<(), SqlError> {
        if link.state.get() == State::Writing {
            let now = self.shared.clock.local_ticks();
            cdc::stamp_commit(&link.db, clock::civil(began), clock::civil(now))
                .map_err(|e| crate::capture_procedures::error(&e))?;
        }
        link.db.execute_batch("COMMIT").map_err(sqlite)?;
        if link.state.get() == State::Writing {
            link.database.writers.count_commit();
        }
        link.state.set(State::Idle);
        link.guard.borrow_mut().take();
        Ok(())
    }

    fn rollback_link(&self, link: &Link) {
        if !link.db.is_autocommit() {
            // Nothing is lost if it fails: the connection's end rolls back too.
            let _ = link.db.execute_batch("ROLLBACK");
        }
        self.finish_link(link);
    }

    /// Commits every connection's part. One database is the rule; with several, a crash between two commits could tear them.
    pub(super) fn commit(&self, response: &mut dyn Response) -> Result<(), SqlError> {
        let (count, id, began, doomed) = {
            let t = self.transaction.borrow();
            (t.count, t.id, t.began, t.doomed)
        };
        if count == 0 {
            return Err(message::error(
                3902,
                16,
                "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION.".into(),
            ));
        }
        if count > 1 {
            self.transaction.borrow_mut().count -= 1;
            return Ok(());
        }
        if doomed {
            self.rollback_all();
            response.env_change(&EnvChange::RollbackTransaction(id as u64));
            return Err(message::error(3930, 16, "The current transaction cannot be committed and cannot support operations that write to the log file. Roll back the transaction.".into()));
        }
        let mut failure = None;
        for link in self.links.borrow().values().filter(|l| l.state.get() != State::Idle) {
            if let Err(e) = self.commit_link(link, began) {
                self.rollback_link(link);
                failure = Some(e);
            }
        }
        self.transaction.borrow_mut().count = 0;
        match failure {
            Some(e) => {
                response.env_change(&EnvChange::RollbackTransaction(id as u64));
                Err(e)
            }
            None => {
                response.env_change(&EnvChange::CommitTransaction(id as u64));
                Ok(())
            }
        }
    }

    pub(super) fn rollback_all(&self) {
        for link in self.links.borrow().values().filter(|l| l.state.get() != State::Idle) {
            self.rollback_link(link);
        }
        let mut t = self.transaction.borrow_mut();
        t.count = 0;
        t.doomed = false;
        for name in t.temporary.drain(..) {
            self.temporary.borrow_mut().remove(&name);
        }
    }

    pub(super) fn rollback(&self, name: Option<&str>, response: &mut dyn Response) -> Result<(), SqlError> {
        if !self.in_transaction() {
            return Err(message::error(
                3903,
                16,
                "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION.".into(),
            ));
        }
        if let Some(name) = name {
            let known = self.transaction.borrow().savepoints.iter().any(|s| s.eq_ignore_ascii_case(name));
            if known {
                let name = name.to_ascii_lowercase();
                for link in self.links.borrow().values().filter(|l| l.state.get() != State::Idle) {
                    link.db.execute_batch(&format!("ROLLBACK TO {}", catalog::quote(&name))).map_err(sqlite)?;
                    self.forget_catalog(link);
                }
                return Ok(());
            }
        }
        let id = self.transaction.borrow().id;
        self.rollback_all();
        response.env_change(&EnvChange::RollbackTransaction(id as u64));
        Ok(())
    }

    pub(super) fn save(&self, name: &str) -> Result<(), SqlError> {
        if !self.in_transaction() {
            return Err(message::error(628, 16, "Cannot issue SAVE TRANSACTION when there is no active transaction.".into()));
        }
        let name = name.to_ascii_lowercase();
        for link in self.links.borrow().values().filter(|l| l.state.get() != State::Idle) {
            link.db.execute_batch(&format!("SAVEPOINT {}", catalog::quote(&name))).map_err(sqlite)?;
        }
        self.transaction.borrow_mut().savepoints.push(name);
        Ok(())
    }

    pub(super) fn transaction_request(&self, request: &TransactionRequest, response: &mut dyn Response) -> Result<(), SqlError> {
        let isolate = |i: Isolation| {
            if i != Isolation::Current {
                self.settings.borrow_mut().isolation = i;
            }
        };
        match request {
            TransactionRequest::Begin { isolation, .. } => {
                isolate(*isolation);
                self.begin(response);
            }
            TransactionRequest::Commit { begin_again, .. } => {
                self.commit(response)?;
                if let Some(i) = begin_again {
                    isolate(*i);
                    self.begin(response);
                }
            }
            TransactionRequest::Rollback { name, begin_again } => {
                self.rollback(Some(name.as_str()).filter(|n| !n.is_empty()), response)?;
                if let Some(i) = begin_again {
                    isolate(*i);
                    self.begin(response);
                }
            }
            TransactionRequest::Save { name } => self.save(name)?,
        }
        Ok(())
    }
}
