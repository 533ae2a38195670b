//! DuckDB, asked through `reader.py` in the virtual environment that `tests/setup.sh` makes: an independent reader of what the sink wrote.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

pub(crate) struct DuckDb {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl DuckDb {
    pub(crate) fn start() -> Self {
        let environment = std::env::var_os("TRIBUTARY_LAKE").map(PathBuf::from);
        let environment = environment.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.setup/lake"));
        let program = environment.join("venv/bin/python");
        assert!(program.exists(), "{} is not there: run `make setup`", program.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lake/reader.py");
        let mut child = Command::new(program).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, pipes: Mutex::new(pipes) }
    }

    /// The rows of a query, or what DuckDB has against it.
    pub(crate) fn ask(&self, sql: &str) -> Result<Vec<Vec<Value>>, String> {
        let mut pipes = self.pipes.lock().unwrap();
        writeln!(pipes.0, "{}", Value::from(sql)).unwrap();
        pipes.0.flush().unwrap();
        let mut answer = String::new();
        pipes.1.read_line(&mut answer).unwrap();
        match serde_json::from_str(&answer).unwrap_or_else(|_| panic!("DuckDB has ended: {answer}")) {
            Value::Object(error) => Err(error["error"].as_str().unwrap().to_owned()),
            rows => Ok(serde_json::from_value(rows).unwrap()),
        }
    }

    pub(crate) fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        self.ask(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

impl Drop for DuckDb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
