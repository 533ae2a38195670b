//! Starts kinesis-local, for tests: a Kinesis that runs on this machine, with shards, reshards and iterators as AWS has them.
//!
//! It is looked for in `node_modules` of the folder that `TRIBUTARY_STANDINS` names, `<workspace>/.setup/standins` by default; `make setup` puts it there.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::KinesisOptions;

/// How long it may take to answer.
const START: Duration = Duration::from_secs(60);
/// Attempts at a port that somebody else may take between our choice and its start.
const ATTEMPTS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is missing: run `make setup`, or name the folder of the stand-ins in TRIBUTARY_STANDINS")]
    Missing { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("kinesis-local has not answered within {} s; it printed: {output}", START.as_secs())]
    Silent { output: String },
}

/// A running kinesis-local, which ends with this value.
#[derive(Debug)]
pub struct KinesisLocal {
    child: Child,
    address: SocketAddr,
    /// What it needs while it runs, and its output.
    directory: PathBuf,
}

impl KinesisLocal {
    /// Starts one on a free port of the loopback interface, its data in memory, and waits until it answers. `directory` is to be empty and to outlive it.
    pub fn start(directory: &Path) -> Result<Self, Error> {
        let program = standins().join("node_modules/kinesis-local");
        if !program.join("main.js").exists() {
            return Err(Error::Missing { path: program });
        }
        let mut attempt = 1;
        loop {
            let mut this = Self::spawn(&program, directory)?;
            match this.wait() {
                Err(_) if attempt < ATTEMPTS => attempt += 1,
                result => return result.map(|()| this),
            }
        }
    }

    fn spawn(program: &Path, directory: &Path) -> Result<Self, Error> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        // It listens on all interfaces and has no option for that.
        let preload = directory.join("bind-loopback.cjs");
        fs::write(&preload, BIND_LOOPBACK).map_err(at(&preload))?;
        let output = directory.join("output");
        let log = File::create(&output).map_err(at(&output))?;
        let errors = log.try_clone().map_err(at(&output))?;
        let (plain, tls) = (free_port().map_err(at(directory))?, free_port().map_err(at(directory))?);
        let mut command = Command::new("node");
        command
            .arg("--require")
            .arg(&preload)
            .arg(program.join("main.js"))
            .current_dir(directory)
            .env("KINESIS_MOCK_CERT_PATH", program.join("server.json"))
            .env("KINESIS_MOCK_PLAIN_PORT", plain.port().to_string())
            .env("KINESIS_MOCK_TLS_PORT", tls.port().to_string())
            .env("LOG_LEVEL", "WARN")
            .env("SHARD_LIMIT", "500");
        for operation in
            ["CREATE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS", "UPDATE_SHARD_COUNT", "DELETE_STREAM", "REGISTER_STREAM_CONSUMER"]
        {
            command.env(format!("{operation}_DURATION"), "5ms");
        }
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(at(Path::new("node")))?;
        Ok(Self { child, address: plain, directory: directory.to_owned() })
    }

    #[allow(clippy::disallowed_methods, reason = "another process is asked again and again until it answers; nothing tells when")]
    fn wait(&mut self) -> Result<(), Error> {
        let since = Instant::now();
        while since.elapsed() < START && !matches!(self.child.try_wait(), Ok(Some(_))) {
            if self.answers().unwrap_or(false) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Error::Silent { output: fs::read_to_string(self.directory.join("output")).unwrap_or_default() })
    }

    fn answers(&self) -> io::Result<bool> {
        let mut connection = TcpStream::connect(self.address)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        connection.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 5];
        connection.read_exact(&mut start)?;
        Ok(start == *b"HTTP/")
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options that reach it.
    pub fn options(&self) -> KinesisOptions {
        // It spends a good part of a core on reads that find nothing.
        KinesisOptions { read_interval_ms: 20, ..KinesisOptions::stand_in(self.endpoint()) }
    }
}

impl Drop for KinesisLocal {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell of anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const BIND_LOOPBACK: &str = "\
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (first, ...rest) {
  if (typeof first === 'number') {
    const more = typeof rest[0] === 'string' ? rest.slice(1) : rest;
    return listen.call(this, first, '127.0.0.1', ...more);
  }
  if (first !== null && typeof first === 'object') return listen.call(this, { ...first, host: '127.0.0.1' }, ...rest);
  return listen.call(this, first, ...rest);
};
";

fn standins() -> PathBuf {
    match std::env::var_os("TRIBUTARY_STANDINS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(".setup").join("standins"),
    }
}

/// The interpreter that has PyPI's aws-kinesis-agg.
pub fn python() -> Result<PathBuf, Error> {
    let path = standins().join("venv/bin/python");
    if path.exists() { Ok(path) } else { Err(Error::Missing { path }) }
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}
