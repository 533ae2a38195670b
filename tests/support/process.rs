//! A process of the real binary: its output is read line by line, and it is killed when the test is done with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<Vec<String>>>,
}

pub fn tributary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(arguments.first().unwrap_or(&"tributary"), &mut tributary(arguments))
    }

    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let copy = log.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                copy.lock().unwrap().push(line.clone());
                let _ = sender.send(line);
            }
        });
        let copy = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                copy.lock().unwrap().push(line);
            }
        });
        Self { name: name.to_owned(), child, lines, log }
    }

    /// The rest of the first line on standard output that holds `text`, after it.
    pub fn line_after(&self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(position) = line.find(text) {
                        return line[position + text.len()..].to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{}: no line with {text:?} within a minute:\n{}", self.name, self.log()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} ended without a line with {text:?}:\n{}", self.name, self.log())
                }
            }
        }
    }

    /// All that it has written, for the message of a failed assertion.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.wait()
    }

    /// From here on it does nothing, as a process of a machine that hangs, until it wakes.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn wake(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} wrote:\n{}", self.name, self.log());
        }
    }
}

/// Runs to the end: success, standard output, standard error.
pub fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = tributary(arguments).stdin(Stdio::null()).output().unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
