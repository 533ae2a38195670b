//! What happens to servers: failovers, restores, killed sessions. Methods of [`Running`] for tests that want to see an importer live through it.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tds::SqlError;

use crate::functions::SharedCounters;
use crate::server::connect_file;
use crate::session::fault;
use crate::session::operations_views::{begin_fork, stored_rows};
use crate::{Running, catalog, message};

/// The availability group that the server belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    pub group: String,
    /// The name of the server as a replica.
    pub replica: String,
    /// A secondary replica refuses writes (3906), and its capture jobs stand still.
    pub primary: bool,
    /// Somebody has suspended the movement of data to and from it.
    pub suspended: bool,
}

/// A copy of a database at one moment, for [`Running::restore`].
#[derive(Debug)]
pub struct Backup {
    database: String,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn copied(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    rusqlite::backup::Backup::new(from, to)?.run_to_completion(1000, Duration::ZERO, None)
}

impl Running {
    /// Puts the server into an availability group, changes its role, or takes it out.
    pub fn set_availability(&self, availability: Option<Availability>) {
        self.shared.set_availability(availability);
    }

    /// A failover to a replica that knows nothing of the jobs, as msdb is not replicated: connections are lost, and no database has a capture or cleanup
    /// job until somebody calls `sys.sp_cdc_add_job`.
    pub fn fail_over(&self) -> Result<(), SqlError> {
        self.shared.kill_all();
        for d in self.shared.databases().into_iter().filter(|d| d.id > 4) {
            let db = connect_file(&d.path, &SharedCounters::default()).map_err(|e| fault::from_sqlite(&e))?;
            let _guard = d.writers.acquire(None, &|| false);
            cdc::jobs::lose_all(&db).map_err(|e| crate::capture_procedures::error(&e))?;
        }
        Ok(())
    }

    /// Closes every connection without a word, as KILL does with one.
    pub fn kill_sessions(&self) {
        self.shared.kill_all();
    }

    /// Copies a database as it is now.
    pub fn backup(&self, database: &str) -> Result<Backup, SqlError> {
        let d = self.shared.known(database)?;
        let folder = tempfile::tempdir().map_err(|e| message::error(3201, 16, format!("Cannot open backup device: {e}.")))?;
        let path = folder.path().join("backup.db");
        let _guard = d.writers.acquire(None, &|| false);
        let made = || -> rusqlite::Result<()> {
            let from = connect_file(&d.path, &SharedCounters::default())?;
            copied(&from, &mut Connection::open(&path)?)
        };
        made().map_err(|e| fault::from_sqlite(&e))?;
        Ok(Backup { database: d.name, path, _folder: folder })
    }

    /// Brings a database back to what it was: its log goes on from there, so that LSNs come again for other changes. Connections are lost, the creation
    /// date and the recovery fork are new, and the jobs, which lie in msdb, stay as they are now.
    pub fn restore(&self, backup: &Backup) -> Result<(), SqlError> {
        let d = self.shared.known(&backup.database)?;
        self.shared.kill_all();
        let _guard = d.writers.acquire(None, &|| false);
        let now = self.shared.clock.local_ticks();
        let made = || -> rusqlite::Result<i64> {
            let mut to = connect_file(&d.path, &SharedCounters::default())?;
            let jobs = stored_rows(&to, "__cdc_job")?;
            copied(&connect_file(&backup.path, &SharedCounters::default())?, &mut to)?;
            to.execute("DELETE FROM __cdc_job", [])?;
            for job in jobs {
                let marks = vec!["?"; job.len()].join(", ");
                to.execute(&format!("INSERT INTO __cdc_job VALUES ({marks})"), rusqlite::params_from_iter(job))?;
            }
            begin_fork(&to, now)?;
            catalog::setting(&to, "created")
        };
        let created = made().map_err(|e| fault::from_sqlite(&e))?;
        self.shared.set_created(&d.name, created);
        Ok(())
    }
}
