//! What all sessions share: databases, logins, who is connected, parsed scripts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tds::{Cancel, Login, SqlError};

use crate::catalog::{self, same};
use crate::clock::Clock;
use crate::functions::{self, SharedCounters};
use crate::parse::Statement;
use crate::session::recordings::Recordings;
use crate::{Availability, Error, Options, message, session};

pub(crate) const SERVER_NAME: &str = "TRIBUTARY";

/// Stands among the roles of a login that may not connect.
pub(crate) const DISABLED: &str = "~disabled";

/// Parsed scripts that are remembered; longer texts are not worth the memory.
const SCRIPTS: usize = 1000;
const SCRIPT_BYTES: usize = 64 << 10;

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One writer at a time and database. SQLite has a lock of its own; this one is taken before it, so that waiting ends the moment the lock is free,
/// and can be given up.
#[derive(Debug, Default)]
pub(crate) struct WriteLock {
    held: Mutex<bool>,
    freed: Condvar,
    commits: AtomicU64,
}

/// The lock, until dropped.
#[derive(Debug)]
pub(crate) struct WriteGuard(Arc<WriteLock>);

impl Drop for WriteGuard {
    fn drop(&mut self) {
        *lock(&self.0.held) = false;
        self.0.freed.notify_one();
    }
}

impl WriteLock {
    /// How many transactions of sessions have committed; the jobs' are not counted, for they change no table that anybody locks.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// Counts one. Call it after the commit and before the lock is given back: who holds the lock then sees every commit counted, and who reads the
    /// count before taking a snapshot never counts one that the snapshot lacks.
    pub(crate) fn count_commit(&self) {
        self.commits.fetch_add(1, Ordering::Release);
    }

    /// Waits for the lock: at most `timeout`, and while `given_up` says no.
    pub(crate) fn acquire(self: &Arc<Self>, timeout: Option<Duration>, given_up: &dyn Fn() -> bool) -> Option<WriteGuard> {
        let start = Instant::now();
        let mut held = lock(&self.held);
        while *held {
            let left = timeout.map(|t| t.saturating_sub(start.elapsed()));
            if left == Some(Duration::ZERO) || given_up() {
                return None;
            }
            let slice = Duration::from_millis(50).min(left.unwrap_or(Duration::MAX));
            held = self.freed.wait_timeout(held, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
        *held = true;
        Some(WriteGuard(self.clone()))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) created: i64,
    pub(crate) writers: Arc<WriteLock>,
}

#[derive(Debug, Clone)]
pub(crate) struct LoginEntry {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) roles: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Connected {
    pub(crate) spid: i64,
    pub(crate) login: String,
    pub(crate) host: String,
    pub(crate) program: String,
    pub(crate) since: i64,
    /// Ends its connection.
    pub(crate) cancel: Cancel,
}

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    directory: PathBuf,
    /// Removed when the last session is gone.
    _temporary: Option<tempfile::TempDir>,
    databases: Mutex<Vec<Database>>,
    logins: Mutex<Vec<LoginEntry>>,
    default_database: String,
    sessions: Mutex<Vec<Connected>>,
    next_spid: AtomicI64,
    next_transaction: AtomicI64,
    scripts: Mutex<HashMap<String, Arc<Vec<Statement>>>>,
    agent: AtomicBool,
    availability: Mutex<Option<Availability>>,
    /// Local ticks.
    pub(crate) started: i64,
    pub(crate) stopping: AtomicBool,
    pub(crate) wake: (Mutex<bool>, Condvar),
    address: Mutex<Option<SocketAddr>>,
    pub(crate) recordings: Recordings,
}

impl Shared {
    pub(crate) fn open(options: &Options) -> Result<Arc<Shared>, Error> {
        let failed = |path: PathBuf| move |source| Error::Folder { path, source };
        let (directory, temporary) = match &options.data {
            Some(d) => {
                std::fs::create_dir_all(d).map_err(failed(d.clone()))?;
                (d.clone(), None)
            }
            None => {
                // Memory where the system has a file system of it.
                let memory = PathBuf::from("/dev/shm");
                let dir = tempfile::Builder::new()
                    .prefix("tributary-sqlserver-")
                    .tempdir_in(&memory)
                    .or_else(|_| tempfile::Builder::new().prefix("tributary-sqlserver-").tempdir());
                let dir = dir.map_err(failed(std::env::temp_dir()))?;
                (dir.path().to_path_buf(), Some(dir))
            }
        };
        let shared = Shared {
            clock: Clock::default(),
            directory,
            _temporary: temporary,
            databases: Mutex::new(Vec::new()),
            logins: Mutex::new(vec![LoginEntry {
                name: "sa".into(),
                password: options.sa_password.clone(),
                roles: vec!["sysadmin".into()],
            }]),
            default_database: options.database.clone(),
            sessions: Mutex::new(Vec::new()),
            next_spid: AtomicI64::new(51),
            next_transaction: AtomicI64::new(1000),
            scripts: Mutex::new(HashMap::new()),
            agent: AtomicBool::new(true),
            availability: Mutex::new(None),
            started: Clock::default().local_ticks(),
            stopping: AtomicBool::new(false),
            wake: (Mutex::new(false), Condvar::new()),
            address: Mutex::new(None),
            recordings: Recordings::default(),
        };
        for name in ["master", "tempdb", "model", "msdb"] {
            shared.add_database(name)?;
        }
        shared.restore()?;
        if shared.database(&options.database).is_none() {
            shared.add_database(&options.database)?;
        }
        Ok(Arc::new(shared))
    }

    /// Databases and logins of an earlier run.
    fn restore(&self) -> Result<(), Error> {
        let path = self.file("master");
        let opened = || -> rusqlite::Result<(Vec<String>, Vec<LoginEntry>)> {
            let master = Connection::open(&path)?;
            master.execute_batch("CREATE TABLE IF NOT EXISTS \"~logins\" (name TEXT PRIMARY KEY COLLATE NOCASE, password TEXT NOT NULL, roles TEXT NOT NULL); CREATE TABLE IF NOT EXISTS \"~databases\" (id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE UNIQUE)")?;
            let names = master
                .prepare("SELECT name FROM \"~databases\" ORDER BY id")?
                .query_map([], |r| r.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let logins = master
                .prepare("SELECT name, password, roles FROM \"~logins\"")?
                .query_map([], |r| {
                    Ok(LoginEntry {
                        name: r.get(0)?,
                        password: r.get(1)?,
                        roles: r.get::<_, String>(2)?.split(',').filter(|s| !s.is_empty()).map(str::to_string).collect(),
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok((names, logins))
        };
        let (names, logins) = opened().map_err(|source| Error::Open { path: path.clone(), source })?;
        for name in names {
            if self.database(&name).is_none() {
                self.add_database(&name)?;
            }
        }
        lock(&self.logins).extend(logins);
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        let safe: String =
            name.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | ' ') { c } else { '_' }).collect();
        self.directory.join(format!("{}.db", safe.to_lowercase()))
    }

    fn add_database(&self, name: &str) -> Result<Database, Error> {
        let path = self.file(name);
        let made = || -> rusqlite::Result<Result<i64, cdc::Error>> {
            let db = connect_file(&path, &SharedCounters::default())?;
            catalog::install(&db, self.clock.local_ticks())?;
            if let Err(e) = cdc::install(&db, name) {
                return Ok(Err(e));
            }
            catalog::setting(&db, "created").map(Ok)
        };
        let created = made()
            .map_err(|source| Error::Open { path: path.clone(), source })?
            .map_err(|source| Error::Capture { path: path.clone(), source })?;
        let mut databases = lock(&self.databases);
        let id = databases.iter().map(|d| d.id).max().unwrap_or(0) + 1;
        let database = Database { id, name: name.to_string(), path, created, writers: Arc::default() };
        databases.push(database.clone());
        Ok(database)
    }

    pub(crate) fn create_database(&self, name: &str) -> Result<(), SqlError> {
        if self.database(name).is_some() {
            return Err(message::error(1801, 16, format!("Database '{name}' already exists. Choose a different database name.")));
        }
        let database = self.add_database(name).map_err(|e| message::error(5170, 16, e.to_string()))?;
        self.master(|m| {
            m.execute("INSERT OR IGNORE INTO \"~databases\" (id, name) VALUES (?1, ?2)", (database.id, name)).map(|_| ())
        })
    }

    pub(crate) fn drop_database(&self, name: &str) -> Result<(), SqlError> {
        let database = self.database(name).ok_or_else(|| {
            message::error(
                3701,
                11,
                format!("Cannot drop the database '{name}', because it does not exist or you do not have permission."),
            )
        })?;
        if database.id <= 4 {
            return Err(message::error(3708, 16, format!("Cannot drop the database '{name}' because it is a system database.")));
        }
        lock(&self.databases).retain(|d| d.id != database.id);
        for suffix in ["", "-wal", "-shm"] {
            let mut path = database.path.clone().into_os_string();
            path.push(suffix);
            // Sessions that still have it open keep reading the unlinked file; a new database of the name begins afresh.
            let _ = std::fs::remove_file(path);
        }
        self.master(|m| m.execute("DELETE FROM \"~databases\" WHERE name = ?1", [name]).map(|_| ()))
    }

    fn master(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), SqlError> {
        Connection::open(self.file("master")).and_then(|m| f(&m)).map_err(|e| session::fault::from_sqlite(&e))
    }

    pub(crate) fn databases(&self) -> Vec<Database> {
        lock(&self.databases).clone()
    }

    pub(crate) fn database(&self, name: &str) -> Option<Database> {
        lock(&self.databases).iter().find(|d| same(&d.name, name)).cloned()
    }

    pub(crate) fn known(&self, name: &str) -> Result<Database, SqlError> {
        self.database(name).ok_or_else(|| {
            message::error(911, 16, format!("Database '{name}' does not exist. Make sure that the name is entered correctly."))
        })
    }

    pub(crate) fn set_created(&self, name: &str, created: i64) {
        if let Some(d) = lock(&self.databases).iter_mut().find(|d| d.name == name) {
            d.created = created;
        }
    }

    pub(crate) fn login(&self, name: &str) -> Option<LoginEntry> {
        lock(&self.logins).iter().find(|l| same(&l.name, name)).cloned()
    }

    /// Creates or replaces a login.
    pub(crate) fn set_login(&self, entry: &LoginEntry) -> Result<(), SqlError> {
        let mut logins = lock(&self.logins);
        logins.retain(|l| !same(&l.name, &entry.name));
        logins.push(entry.clone());
        drop(logins);
        self.master(|m| {
            m.execute(
                "INSERT OR REPLACE INTO \"~logins\" VALUES (?1, ?2, ?3)",
                (&entry.name, &entry.password, entry.roles.join(",")),
            )
            .map(|_| ())
        })
    }

    pub(crate) fn drop_login(&self, name: &str) -> Result<bool, SqlError> {
        let mut logins = lock(&self.logins);
        let before = logins.len();
        logins.retain(|l| !same(&l.name, name));
        let dropped = logins.len() < before;
        drop(logins);
        self.master(|m| m.execute("DELETE FROM \"~logins\" WHERE name = ?1", [name]).map(|_| ()))?;
        Ok(dropped)
    }

    pub(crate) fn logins(&self) -> Vec<LoginEntry> {
        lock(&self.logins).clone()
    }

    pub(crate) fn connected(&self) -> Vec<Connected> {
        lock(&self.sessions).clone()
    }

    pub(crate) fn enter(&self, login: &str, host: &str, program: &str, cancel: Cancel) -> i64 {
        let spid = self.next_spid.fetch_add(1, Ordering::Relaxed);
        lock(&self.sessions).push(Connected {
            spid,
            login: login.into(),
            host: host.into(),
            program: program.into(),
            since: self.clock.local_ticks(),
            cancel,
        });
        spid
    }

    pub(crate) fn leave(&self, spid: i64) {
        lock(&self.sessions).retain(|s| s.spid != spid);
    }

    /// Ends a session's connection; whether there was one.
    pub(crate) fn kill(&self, spid: i64) -> bool {
        let sessions = lock(&self.sessions);
        let found = sessions.iter().find(|s| s.spid == spid);
        if let Some(s) = found {
            s.cancel.kill();
        }
        found.is_some()
    }

    pub(crate) fn kill_all(&self) {
        lock(&self.sessions).iter().for_each(|s| s.cancel.kill());
    }

    pub(crate) fn availability(&self) -> Option<Availability> {
        lock(&self.availability).clone()
    }

    pub(crate) fn set_availability(&self, availability: Option<Availability>) {
        *lock(&self.availability) = availability;
        self.wake_jobs();
    }

    /// Whether the server is a secondary replica.
    pub(crate) fn is_secondary(&self) -> bool {
        lock(&self.availability).as_ref().is_some_and(|a| !a.primary)
    }

    pub(crate) fn next_transaction(&self) -> i64 {
        self.next_transaction.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn agent_running(&self) -> bool {
        self.agent.load(Ordering::Relaxed)
    }

    pub(crate) fn set_agent_running(&self, running: bool) {
        self.agent.store(running, Ordering::Relaxed);
        self.wake_jobs();
    }

    /// Lets the jobs look at once.
    pub(crate) fn wake_jobs(&self) {
        *lock(&self.wake.0) = true;
        self.wake.1.notify_all();
    }

    pub(crate) fn listening_on(&self, address: SocketAddr) {
        *lock(&self.address) = Some(address);
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        *lock(&self.address)
    }

    /// The script's statements, parsed once.
    pub(crate) fn script(&self, sql: &str) -> Result<Arc<Vec<Statement>>, SqlError> {
        if let Some(found) = lock(&self.scripts).get(sql) {
            return Ok(found.clone());
        }
        let parsed = Arc::new(crate::parse::script(sql)?);
        if sql.len() <= SCRIPT_BYTES {
            let mut scripts = lock(&self.scripts);
            // Whoever sends more different texts than that does not repeat them.
            if scripts.len() >= SCRIPTS {
                scripts.clear();
            }
            scripts.insert(sql.to_string(), parsed.clone());
        }
        Ok(parsed)
    }
}

/// Opens a database's file with everything that its definitions need.
pub(crate) fn connect_file(path: &std::path::Path, counters: &SharedCounters) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16000; PRAGMA mmap_size = 1073741824")?;
    db.busy_timeout(Duration::from_secs(30))?;
    db.set_prepared_statement_cache_capacity(200);
    functions::register(&db, counters)?;
    cdc::functions::register(&db)?;
    Ok(db)
}

/// The protocol layer's view of the engine.
pub(crate) struct Engine(pub(crate) Arc<Shared>);

impl tds::Server for Engine {
    fn login(&self, login: &Login, cancel: Cancel) -> Result<Box<dyn tds::Session>, SqlError> {
        let failed = || message::error(18456, 14, format!("Login failed for user '{}'.", login.user));
        let entry = self.0.login(&login.user).filter(|l| l.password == login.password).ok_or_else(failed)?;
        if entry.roles.iter().any(|r| r == DISABLED) {
            return Err(message::error(
                18470,
                14,
                format!("Login failed for user '{}'. Reason: The account is disabled.", login.user),
            ));
        }
        let sysadmin = entry.roles.iter().any(|r| r == "sysadmin");
        let wanted = if login.database.is_empty() {
            // sa begins in the user database, where newcomers look for their tables; others in master, as on a real server.
            if sysadmin { self.0.default_database.clone() } else { "master".into() }
        } else {
            login.database.clone()
        };
        let database = self.0.database(&wanted).ok_or_else(|| {
            message::error(4060, 11, format!("Cannot open database \"{wanted}\" requested by the login. The login failed."))
        })?;
        let session = session::Session::new(
            self.0.clone(),
            &entry.name,
            sysadmin,
            &database.name,
            cancel,
            &login.host_name,
            &login.application_name,
        );
        session.check_access(&database.name)?;
        Ok(Box::new(session))
    }
}
