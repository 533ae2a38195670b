//! A PostgreSQL cluster of its own, in a temporary directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{Owned, free_port, listens, run, wait_until, when_this_process_ends};

const START_LIMIT: Duration = Duration::from_secs(60);
/// Where Debian keeps the versions, newest last.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Listens on 127.0.0.1; user `tributary`, password `tributary`, database `entities`.
pub struct PostgresServer {
    /// Before the directory: it must not outlive that.
    _watch: Owned,
    directory: tempfile::TempDir,
    binaries: PathBuf,
    port: u16,
}

impl PostgresServer {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("tributary-postgres-").tempdir().expect("a temporary directory");
        // SIGQUIT is PostgreSQL's immediate shutdown; the process id is the first line of its lock file.
        let place = directory.path().display();
        let stop = format!(
            "p=$(head -n 1 {place}/data/postmaster.pid) && kill -QUIT $p && while kill -0 $p; do sleep 0.1; done; rm -rf {place}"
        );
        let server = Self { _watch: when_this_process_ends(&stop), directory, binaries: binaries(), port: free_port() };
        if is_root() {
            // PostgreSQL refuses to run as root: the account that its package made owns the directory.
            run(Command::new("chown").arg("postgres").arg(server.directory.path()));
        }
        let permissions = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(server.directory.path(), permissions).expect("permissions");
        let password = server.directory.path().join("password");
        std::fs::write(&password, "tributary\n").expect("the password file");
        let data = server.data();
        run(server
            .command("initdb")
            .args(["--username=tributary", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])
            .args([format!("--pwfile={}", password.display()), format!("--pgdata={}", data.display())]));
        server.up();
        run(server.command("createdb").env("PGPASSWORD", "tributary").args([
            "--host=127.0.0.1",
            "--username=tributary",
            &format!("--port={}", server.port),
            "entities",
        ]));
        server
    }

    /// `postgres://…` of the database `entities`.
    pub fn url(&self) -> String {
        format!("postgres://tributary:tributary@127.0.0.1:{}/entities?sslmode=disable", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on it shows this certificate, and takes no connection without TLS.
    pub fn use_tls(&self, certificate: &str, key: &str) {
        let data = self.data();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            std::fs::write(&path, text).expect("the certificate");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
            if is_root() {
                run(Command::new("chown").arg("postgres").arg(&path));
            }
        }
        let config = data.join("postgresql.conf");
        let before = std::fs::read_to_string(&config).expect("its configuration");
        std::fs::write(&config, before + "ssl = on\n").expect("its configuration");
        std::fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 scram-sha-256\n").expect("who may connect");
        self.down();
        self.up();
    }

    /// Stops the server as `pg_ctl -m immediate` does: without a word to its clients, with a recovery at the next start.
    pub fn down(&self) {
        run(self.command("pg_ctl").args(["stop", "--mode=immediate", "--wait", "--pgdata"]).arg(self.data()));
    }

    /// Starts it, at first or again on the same port.
    pub fn up(&self) {
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={}",
            self.port,
            self.directory.path().display()
        );
        let log = self.directory.path().join("log");
        run(self
            .command("pg_ctl")
            .args(["start", "--wait", "--silent", "--options", &options, "--pgdata"])
            .arg(self.data())
            .arg("--log")
            .arg(log));
        wait_until("PostgreSQL", START_LIMIT, || listens(self.port));
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let path = self.binaries.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(self.directory.path());
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // It may be down already; the directory goes either way.
        let _ = self.command("pg_ctl").args(["stop", "--mode=immediate", "--silent", "--pgdata"]).arg(self.data()).output();
    }
}

fn binaries() -> PathBuf {
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).collect();
    versions.retain(|path| path.join("initdb").exists());
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("no PostgreSQL in {DEBIAN}: run `make setup`"))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}
