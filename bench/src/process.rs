//! Other processes: started in a group of their own, their memory watched, their last line read.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

/// What a measured process said of itself, as `key=value` words on its last line of output, and the most memory that it and its children held at once.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) values: HashMap<String, f64>,
    pub(crate) peak_mb: f64,
}

impl Measured {
    pub(crate) fn get(&self, key: &str) -> anyhow::Result<f64> {
        self.values.get(key).copied().with_context(|| format!("the process did not report {key}: {:?}", self.values))
    }
}

/// Runs to the end.
pub(crate) fn measure(command: &mut Command) -> anyhow::Result<Measured> {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| shown.clone())?;
    let watch = Watch::start(child.id());
    let output = child.wait_with_output()?;
    let peak_mb = watch.stop();
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = errors.lines().rev().take(15).collect();
        bail!("{shown} failed ({}):\n{}\n{text}", output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    let last = text.lines().rev().find(|line| line.contains('=')).unwrap_or_default();
    Ok(Measured { values: values(last), peak_mb })
}

/// Watches the resident memory of a process group.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Watch {
    pub(crate) fn start(group: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0.0f64;
            while !flag.load(Ordering::Relaxed) {
                peak = peak.max(resident_mb(group));
                // A sampling interval, not a wait for something.
                std::thread::park_timeout(Duration::from_millis(100));
            }
            peak
        });
        Self { stop, thread }
    }

    /// Ends the watch: the peak in MB.
    pub(crate) fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_default()
    }
}

/// The resident memory of all processes of a group, in MB, from `/proc`.
fn resident_mb(group: u32) -> f64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0.0 };
    let mut pages = 0u64;
    for entry in entries.flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses may hold anything; what follows it does not.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if fields.get(2).and_then(|field| field.parse().ok()) == Some(group) {
            pages += fields.get(21).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    pages as f64 * 4096.0 / 1e6
}

/// A process that serves until its standard input ends.
pub(crate) struct Served {
    child: Child,
    watch: Option<Watch>,
    /// What it said of itself on its first line.
    values: HashMap<String, f64>,
}

impl Served {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let shown = format!("{command:?}");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn().with_context(|| shown.clone())?;
        let watch = Some(Watch::start(child.id()));
        let mut line = String::new();
        let output = child.stdout.take().with_context(|| shown.clone())?;
        let mut served = Self { child, watch, values: HashMap::new() };
        BufReader::new(output).read_line(&mut line)?;
        served.values = values(&line);
        if served.values.is_empty() {
            bail!("{shown} did not start: {line}");
        }
        Ok(served)
    }

    pub(crate) fn get(&self, key: &str) -> anyhow::Result<f64> {
        self.values.get(key).copied().with_context(|| format!("the process did not report {key}: {:?}", self.values))
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, word: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("the process has no standard input")?;
        writeln!(input, "{word}")?;
        Ok(input.flush()?)
    }

    /// Kills it, as it stands: its peak memory in MB.
    pub(crate) fn kill(mut self) -> anyhow::Result<f64> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.watch.take().map(Watch::stop).unwrap_or_default())
    }

    /// Ends it: its peak memory in MB.
    pub(crate) fn stop(mut self) -> anyhow::Result<f64> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the process ended with {status}");
        Ok(self.watch.take().map(Watch::stop).unwrap_or_default())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Reached before `stop` only when something has failed; it may have ended already.
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watch.take().map(Watch::stop);
    }
}

/// Returns when standard input ends: the other side of [`Served`].
pub(crate) async fn input_ended() -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// The lines of standard input, until it ends: the other side of [`Served::tell`].
pub(crate) fn told() -> tokio::sync::mpsc::Receiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            // Whoever reads no more has ended.
            let Ok(true) = line.map(|line| sender.blocking_send(line).is_ok()) else { return };
        }
    });
    receiver
}

/// `key=value` words.
fn values(line: &str) -> HashMap<String, f64> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
        .collect()
}
