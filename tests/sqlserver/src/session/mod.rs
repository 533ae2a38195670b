//! One connection's session: its SQLite connections (one a database), settings, variables, temporary tables and transaction.
//!
//! Everything is behind `&self`: translation asks the session for names while a statement is being made, so state lies in cells, and no borrow of the
//! connections is held while another could be opened.

mod alter;
mod constants;
mod data;
mod definition;
mod duplicate;
pub(crate) mod fault;
mod flow;
mod indexes;
pub(crate) mod local;
mod lookup;
mod merge;
pub(crate) mod operations_views;
mod permissions;
mod procedures;
pub(crate) use procedures::Arguments;
mod query;
pub(crate) mod recordings;
mod rename;
mod temporary;
mod transaction;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::Connection;
use tds::{Batch, Call, Cancel, Column, DataType, EnvChange, Isolation, Response, SqlError, TransactionRequest, Value};

use crate::catalog::{self, Object};
use crate::functions::SharedCounters;
use crate::server::{Database, Shared, WriteGuard};
use crate::translate::Translated;
use crate::{message, server};

/// How far a connection is in the session's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Its snapshot is fixed.
    Reading,
    /// It holds the write lock.
    Writing,
}

/// The session's connection to one database.
struct Link {
    db: Connection,
    database: Database,
    counters: SharedCounters,
    state: Cell<State>,
    guard: RefCell<Option<WriteGuard>>,
    /// The sessions' commits when its snapshot was taken.
    commits: Cell<u64>,
    /// Whether it has read rows of users' tables in its snapshot.
    read_rows: Cell<bool>,
    attached: RefCell<HashSet<String>>,
    version: Cell<i64>,
    objects: RefCell<Objects>,
}

/// Settings that SET changes.
#[derive(Debug, Clone)]
struct Settings {
    nocount: bool,
    xact_abort: bool,
    implicit_transactions: bool,
    /// Milliseconds; negative: for ever.
    lock_timeout: i64,
    isolation: Isolation,
    identity_insert: Option<i64>,
    row_limit: u64,
    other: HashMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            nocount: false,
            xact_abort: false,
            implicit_transactions: false,
            lock_timeout: -1,
            isolation: Isolation::ReadCommitted,
            identity_insert: None,
            row_limit: 0,
            other: HashMap::new(),
        }
    }
}

/// The transaction that the session is in.
#[derive(Debug, Default)]
struct Transaction {
    count: u32,
    id: i64,
    began: i64,
    doomed: bool,
    savepoints: Vec<String>,
    /// Temporary tables created in it.
    temporary: Vec<String>,
}

/// What the last statements left behind.
#[derive(Debug, Default, Clone)]
struct Last {
    rowcount: i64,
    error: i32,
    identity: Option<i64>,
    scope_identity: Option<i64>,
    /// The errors of the CATCH blocks that are running.
    caught: Vec<SqlError>,
}

/// Tables and views by schema and name in lower case; `None`: known to be absent.
type Objects = HashMap<(String, String), Option<Arc<Object>>>;

type CacheKey = (u64, String, Vec<i64>);

pub(crate) struct Session {
    shared: Arc<Shared>,
    spid: i64,
    login: String,
    sysadmin: bool,
    host: String,
    program: String,
    initial_database: String,
    database: RefCell<String>,
    links: RefCell<HashMap<String, Box<Link>>>,
    variables: RefCell<HashMap<String, (DataType, Value)>>,
    temporary: RefCell<HashMap<String, Arc<Object>>>,
    settings: RefCell<Settings>,
    transaction: RefCell<Transaction>,
    last: RefCell<Last>,
    /// Translations by statement, database and types of the variables.
    cache: RefCell<HashMap<CacheKey, (i64, Arc<query::Cached>)>>,
    cancel: Cancel,
    depth: Cell<u32>,
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        login: &str,
        sysadmin: bool,
        database: &str,
        cancel: Cancel,
        host: &str,
        program: &str,
    ) -> Session {
        let spid = shared.enter(login, host, program, cancel.clone());
        Session {
            shared,
            spid,
            login: login.into(),
            sysadmin,
            host: host.into(),
            program: program.into(),
            initial_database: database.into(),
            database: RefCell::new(database.into()),
            links: RefCell::default(),
            variables: RefCell::default(),
            temporary: RefCell::default(),
            settings: RefCell::default(),
            transaction: RefCell::default(),
            last: RefCell::default(),
            cache: RefCell::default(),
            cancel,
            depth: Cell::new(0),
        }
    }

    /// Whether the login may be in the database.
    pub(crate) fn check_access(&self, database: &str) -> Result<(), SqlError> {
        let known = self.sysadmin || matches!(database, "master" | "tempdb" | "msdb") || self.user(database)?.is_some();
        if known {
            return Ok(());
        }
        Err(message::error(
            916,
            14,
            format!(
                "The server principal \"{}\" is not able to access the database \"{database}\" under the current security context.",
                self.login
            ),
        ))
    }

    /// The user that the login is in a database.
    fn user(&self, database: &str) -> Result<Option<(i64, String)>, SqlError> {
        if self.sysadmin {
            return Ok(Some((1, "dbo".into())));
        }
        self.with(database, |link| catalog::security::user_of(&link.db, &self.login).map_err(|e| fault::from_sqlite(&e)))
    }

    fn current(&self) -> String {
        self.database.borrow().clone()
    }

    /// Opens the connection to a database if there is none yet.
    fn open(&self, database: &str) -> Result<(), SqlError> {
        let known = self.shared.database(database).ok_or_else(|| {
            message::error(
                911,
                16,
                format!("Database '{database}' does not exist. Make sure that the name is entered correctly."),
            )
        })?;
        {
            let links = self.links.borrow();
            if links.get(database).is_some_and(|l| l.database.id == known.id) {
                return Ok(());
            }
        }
        let counters = SharedCounters::default();
        let db = server::connect_file(&known.path, &counters).map_err(|e| fault::from_sqlite(&e))?;
        let cancel = self.cancel.clone();
        db.progress_handler(20_000, Some(move || cancel.is_set())).map_err(|e| fault::from_sqlite(&e))?;
        let link = Link {
            db,
            database: known,
            counters,
            state: Cell::new(State::Idle),
            guard: RefCell::default(),
            commits: Cell::new(0),
            read_rows: Cell::new(false),
            attached: RefCell::default(),
            version: Cell::new(-1),
            objects: RefCell::default(),
        };
        self.links.borrow_mut().insert(database.to_string(), Box::new(link));
        Ok(())
    }

    /// Does something with the connection to a database. The closure must not open connections.
    fn with<T>(&self, database: &str, f: impl FnOnce(&Link) -> Result<T, SqlError>) -> Result<T, SqlError> {
        self.open(database)?;
        let links = self.links.borrow();
        match links.get(database) {
            Some(link) => f(link),
            None => Err(message::error(
                911,
                16,
                format!("Database '{database}' does not exist. Make sure that the name is entered correctly."),
            )),
        }
    }

    /// Makes the databases that a translation names reachable from its home.
    fn prepare_links(&self, t: &Translated) -> Result<(), SqlError> {
        for other in &t.attached {
            let path = self.shared.database(other).ok_or_else(|| message::invalid_object(other))?.path;
            self.with(&t.home, |link| {
                if link.attached.borrow_mut().insert(other.clone()) {
                    let sql = format!("ATTACH DATABASE {} AS {}", catalog::text(&path.to_string_lossy()), catalog::quote(other));
                    link.db.execute_batch(&sql).map_err(|e| fault::from_sqlite(&e))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn use_database(&self, name: &str, response: &mut dyn Response) -> Result<(), SqlError> {
        let found = self.shared.database(name).ok_or_else(|| {
            message::error(911, 16, format!("Database '{name}' does not exist. Make sure that the name is entered correctly."))
        })?;
        self.check_access(&found.name)?;
        let old = self.database.replace(found.name.clone());
        response.env_change(&EnvChange::Database { new: found.name.clone(), old });
        response.info(&message::error(5701, 0, format!("Changed database context to '{}'.", found.name)));
        Ok(())
    }

    fn reset_state(&self) {
        self.rollback_all();
        self.variables.borrow_mut().clear();
        self.drop_temporaries();
        *self.settings.borrow_mut() = Settings::default();
        *self.last.borrow_mut() = Last::default();
        *self.database.borrow_mut() = self.initial_database.clone();
    }

    fn drop_temporaries(&self) {
        let names: Vec<String> = self.temporary.borrow().values().map(|o| o.storage()).collect();
        for link in self.links.borrow().values() {
            for name in &names {
                // It lives in one of the connections.
                let _ = link.db.execute_batch(&format!("DROP TABLE IF EXISTS temp.{}", catalog::quote(name)));
            }
        }
        self.temporary.borrow_mut().clear();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.rollback_all();
        self.shared.leave(self.spid);
    }
}

impl tds::Session for Session {
    fn batch(&mut self, batch: &Batch, response: &mut dyn Response) {
        self.run_batch(batch, response);
    }

    fn call(&mut self, call: &Call, response: &mut dyn Response) {
        self.variables.borrow_mut().clear();
        let arguments = call
            .parameters
            .iter()
            .map(|p| procedures::Argument {
                name: p.name.clone(),
                value: p.value.clone(),
                data_type: p.data_type.clone(),
                output: p.output,
            })
            .collect();
        match self.procedure(&call.procedure, arguments, response) {
            Ok(outcome) => {
                for (p, value) in outcome.outputs {
                    if let Some(own) =
                        call.parameters.iter().find(|o| o.output && (o.name.eq_ignore_ascii_case(&p) || o.name.is_empty()))
                    {
                        response.return_value(&tds::Parameter { value, ..own.clone() });
                    }
                }
                response.return_status(outcome.status);
            }
            Err(e) => {
                self.failed(&e);
                response.error(&e);
            }
        }
        self.end_batch(response);
    }

    fn transaction(&mut self, request: &TransactionRequest, response: &mut dyn Response) {
        match self.transaction_request(request, response) {
            Ok(()) => response.done(None),
            Err(e) => {
                self.failed(&e);
                response.error(&e);
            }
        }
    }

    fn describe(&mut self, batch: &Batch) -> Result<Vec<Column>, SqlError> {
        self.describe_batch(batch)
    }

    fn reset(&mut self) {
        self.reset_state();
    }

    fn database(&self) -> String {
        self.current()
    }
}
