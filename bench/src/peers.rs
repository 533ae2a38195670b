//! The peers' programs, where they are installed. One that is missing is left out with a word, never an error.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::process::{Measured, measure};

/// The Python of the folder that `variable` names, or of the default, if it can run a peer.
fn python(variable: &str, default: &str, peer: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = std::env::var(variable).map_or_else(|_| root.join(default), PathBuf::from);
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        println!("{peer} is left out: {} is not there (`make bench` installs it)", python.display());
        return None;
    }
    let java = Command::new("java").arg("-version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !java.is_ok_and(|status| status.success()) {
        println!("{peer} is left out: there is no Java (`make bench` installs it)");
        return None;
    }
    Some(python)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// Flink SQL, in a process of its own for each measurement.
pub(crate) struct Flink(PathBuf);

impl Flink {
    pub(crate) fn find() -> Option<Self> {
        python("TRIBUTARY_BENCH", ".setup/bench", "Flink").map(Self)
    }

    /// Joins the files of a folder: reports `seconds` and `rows`.
    pub(crate) fn join(&self, folder: &Path) -> anyhow::Result<Measured> {
        measure(Command::new(&self.0).arg(script("flink_join.py")).arg(folder).arg("2")).context("Flink")
    }
}

/// Debezium's SQL Server connector.
pub(crate) struct Debezium(PathBuf);

impl Debezium {
    pub(crate) fn find() -> Option<Self> {
        python("TRIBUTARY_CLIENTS", ".setup/clients", "Debezium").map(Self)
    }

    /// Reads a table until it has come to `rows` records; offsets and history lie in `folder`, so that the next run goes on where this one ended.
    pub(crate) fn read(
        &self,
        port: u16,
        password: &str,
        table: &str,
        folder: &Path,
        rows: u64,
        limit_seconds: u32,
    ) -> anyhow::Result<Measured> {
        let mut command = Command::new(&self.0);
        command.arg(script("debezium_count.py")).args(["127.0.0.1", &port.to_string(), "sa", password, "bench", table]);
        command.arg(folder).args([rows.to_string(), limit_seconds.to_string()]);
        measure(&mut command).context("Debezium")
    }
}

/// Whether a PostgreSQL server can be started.
pub(crate) fn has_postgres() -> bool {
    let folder = Path::new("/usr/lib/postgresql");
    let found = std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| entry.path().join("bin/initdb").exists());
    if !found {
        println!("Postgres is left out: there is none in {} (`make bench` installs it)", folder.display());
    }
    found
}
