//! A MariaDB server of its own, in a temporary directory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::process::{Owned, free_port, listens, run, wait_until, when_this_process_ends};

const START_LIMIT: Duration = Duration::from_secs(60);
const SERVER: &str = "/usr/sbin/mariadbd";
/// Run at each start, a statement a line.
const USERS: &str = "CREATE DATABASE IF NOT EXISTS entities CHARACTER SET utf8mb4;\n\
                     CREATE USER IF NOT EXISTS 'tributary'@'%' IDENTIFIED BY 'tributary';\n\
                     GRANT ALL ON *.* TO 'tributary'@'%';\n";

/// Listens on 127.0.0.1; user `tributary`, password `tributary`, database `entities`.
pub struct MysqlServer {
    /// The server, and what ends it should this process be killed. Before the directory: neither must outlive that.
    process: Mutex<Option<(Owned, Owned)>>,
    directory: tempfile::TempDir,
    port: u16,
    /// What it is started with beside the rest.
    options: Mutex<Vec<String>>,
}

impl MysqlServer {
    pub fn start() -> Self {
        assert!(Path::new(SERVER).exists(), "no MariaDB at {SERVER}: run `make setup`");
        let directory = tempfile::Builder::new().prefix("tributary-mysql-").tempdir().expect("a temporary directory");
        let server = Self { process: Mutex::default(), directory, port: free_port(), options: Mutex::default() };
        let data = server.directory.path().join("data");
        run(Command::new("mariadb-install-db")
            .args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"])
            .args(user())
            .arg(format!("--datadir={}", data.display())));
        std::fs::write(server.directory.path().join("users.sql"), USERS).expect("the file of users");
        server.up();
        server
    }

    /// `mysql://…` of the database `entities`.
    pub fn url(&self) -> String {
        self.url_of("entities")
    }

    pub fn url_of(&self, database: &str) -> String {
        format!("mysql://tributary:tributary@127.0.0.1:{}/{database}", self.port)
    }

    /// As its administrator.
    pub fn root_url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}/mysql", self.port)
    }

    /// From now on it shows this certificate, and takes no connection without TLS.
    pub fn use_tls(&self, certificate: &str, key: &str) {
        let place = self.directory.path();
        let (certificate_file, key_file) = (place.join("server.pem"), place.join("server.key"));
        std::fs::write(&certificate_file, certificate).expect("the certificate");
        std::fs::write(&key_file, key).expect("its key");
        *self.options.lock().expect("the options") = vec![
            format!("--ssl-cert={}", certificate_file.display()),
            format!("--ssl-key={}", key_file.display()),
            "--require-secure-transport=ON".to_owned(),
        ];
        self.down();
        self.up();
    }

    /// Kills it, with a recovery at the next start.
    pub fn down(&self) {
        *self.process.lock().expect("the process") = None;
    }

    /// Starts it, at first or again on the same port.
    pub fn up(&self) {
        let child = self.spawn();
        let watch = when_this_process_ends(&format!("kill -9 {}; rm -rf {}", child.id(), self.directory.path().display()));
        *self.process.lock().expect("the process") = Some((watch, Owned(child)));
        wait_until("MariaDB", START_LIMIT, || listens(self.port));
    }

    fn spawn(&self) -> Child {
        let place = self.directory.path();
        let log = std::fs::File::create(place.join("log")).expect("its log");
        Command::new(SERVER)
            .args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve", "--innodb-buffer-pool-size=64M"])
            .args(user())
            .args(self.options.lock().expect("the options").as_slice())
            .arg(format!("--port={}", self.port))
            .arg(format!("--datadir={}", place.join("data").display()))
            .arg(format!("--socket={}", place.join("socket").display()))
            .arg(format!("--pid-file={}", place.join("pid").display()))
            .arg(format!("--tmpdir={}", place.display()))
            .arg(format!("--init-file={}", place.join("users.sql").display()))
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{SERVER}: {error}. Run `make setup`"))
    }
}

/// It refuses to run as root unless it is told to.
fn user() -> Option<&'static str> {
    let root = Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0);
    root.then_some("--user=root")
}
