//! The joiner against Flink SQL, and into Postgres against a raw guarded COPY upsert.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use sinks::test_support::PostgresServer;

use crate::peers::{self, Flink};
use crate::process::{Measured, measure};
use crate::results::Figure;
use crate::rows;
use crate::stream::Input;

/// Runs of ours; the median counts.
const RUNS: usize = 3;
/// With less between the peer's two runs than this share of the first, the difference is noise.
const LEAST_DIFFERENCE: f64 = 0.15;

/// This program as a measured child.
pub(crate) fn child(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.arg("child").args(arguments);
    Ok(command)
}

/// Several runs of a child: the one with the median of a value.
pub(crate) fn median_run(runs: usize, key: &str, mut run: impl FnMut() -> anyhow::Result<Measured>) -> anyhow::Result<Measured> {
    median((0..runs).map(|_| run()).collect::<anyhow::Result<Vec<_>>>()?, key)
}

fn median(measured: Vec<Measured>, key: &str) -> anyhow::Result<Measured> {
    middle(measured, |measured| measured.get(key).unwrap_or(f64::MAX)).context("nothing was measured")
}

/// The one with the median of a value.
fn middle<T>(mut all: Vec<T>, value: impl Fn(&T) -> f64) -> Option<T> {
    all.sort_by(|a, b| value(a).total_cmp(&value(b)));
    let place = all.len() / 2;
    all.into_iter().nth(place)
}

pub(crate) fn path(folder: &Path) -> anyhow::Result<&str> {
    folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))
}

/// [first-load-vs-flink@…] and [updates-vs-flink@…]: in turns, so that both meet the machine in the same moods; of each the median counts.
pub(crate) fn against_flink(input: &Input) -> anyhow::Result<Vec<Figure>> {
    let folder = path(&input.folder)?;
    let scale = input.scale;
    let flink = Flink::find();
    let (mut loads, mut updates, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..RUNS {
        loads.push(measure(&mut child(&["join", folder])?)?);
        updates.push(measure(&mut child(&["join", folder, "--updates"])?)?);
        // Our own figures do not hang on a peer that fails.
        match flink.as_ref().filter(|_| theirs.len() == turn).map(|flink| FlinkRun::measure(flink, input)) {
            Some(Ok(run)) => theirs.push(run),
            Some(Err(error)) => println!("Flink is left out: {error:#}"),
            None => {}
        }
    }
    let (load, updates) = (median(loads, "load_seconds")?, median(updates, "update_seconds")?);
    let (rows, changes) = (input.published.rows as f64, input.published.changes as f64);
    let figure = |name: &str, unit, rate, peak| {
        Figure::rate(format!("{name}@{scale}"), unit, rate, "Flink SQL", None).memory(Some(peak), None)
    };
    let mut figures = vec![
        figure("first-load-vs-flink", "rows/s", rows / load.get("load_seconds")?, load.peak_mb),
        figure("updates-vs-flink", "changes/s", changes / updates.get("update_seconds")?, updates.peak_mb),
    ];
    let theirs: Vec<&FlinkRun> = if theirs.len() == RUNS { theirs.iter().collect() } else { Vec::new() };
    if let Some(base) = middle(theirs.clone(), |run| run.base_seconds) {
        figures[0].peer(rows / base.base_seconds, base.base_peak_mb);
    }
    if let Some(changed) = middle(theirs, |run| run.difference()) {
        if changed.difference() < LEAST_DIFFERENCE * changed.base_seconds {
            println!(
                "Flink's runs with and without the changes differ too little to tell a rate from: measure more transactions (--transactions)"
            );
        } else {
            figures[1].peer(changes / changed.difference(), changed.peak_mb);
        }
    }
    Ok(figures)
}

/// What Flink takes with the changes and without: its rate of updates is taken from the difference.
struct FlinkRun {
    base_seconds: f64,
    base_peak_mb: f64,
    seconds: f64,
    peak_mb: f64,
}

impl FlinkRun {
    fn measure(flink: &Flink, input: &Input) -> anyhow::Result<Self> {
        let join = |name: &str, transactions: &[_]| {
            let files = input.folder.join(name);
            rows::write_files(&files, input.scale, transactions)?;
            let run = flink.join(&files)?;
            std::fs::remove_dir_all(&files)?;
            Ok::<_, anyhow::Error>((run.get("seconds")?, run.peak_mb))
        };
        let (base_seconds, base_peak_mb) = join("base", &[])?;
        let (seconds, peak_mb) = join("changed", &input.transactions)?;
        println!("Flink at scale {}: {base_seconds:.1} s without and {seconds:.1} s with the changes", input.scale);
        Ok(Self { base_seconds, base_peak_mb, seconds, peak_mb })
    }

    fn difference(&self) -> f64 {
        self.seconds - self.base_seconds
    }
}

/// [skewed-updates]
pub(crate) fn skewed(even: &Input, skewed: &Input) -> anyhow::Result<Figure> {
    let rate = |input: &Input| -> anyhow::Result<(f64, Measured)> {
        let folder = path(&input.folder)?;
        let run = median_run(RUNS, "update_seconds", || measure(&mut child(&["join", folder, "--updates"])?))?;
        Ok((input.published.changes as f64 / run.get("update_seconds")?, run))
    };
    let ((even, _), (ours, run)) = (rate(even)?, rate(skewed)?);
    Ok(Figure::rate("skewed-updates", "changes/s", ours, "transactions spread evenly", Some(even))
        .memory(Some(run.peak_mb), None))
}

/// [postgres-vs-copy] and [postgres-updates-vs-copy].
pub(crate) fn against_copy(input: &Input) -> anyhow::Result<Vec<Figure>> {
    if !peers::has_postgres() {
        return Ok(Vec::new());
    }
    let folder = path(&input.folder)?;
    let recorded = input.folder.join("documents");
    let recorded_path = path(&recorded)?;
    let record = measure(&mut child(&["join", folder, "--updates", "--record", recorded_path])?)?;
    let documents = input.published.orders as f64;
    let updated = record.get("entities_updated")?;

    // In turns, so that both meet the machine in the same moods.
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let server = PostgresServer::start();
        ours.push(measure(&mut child(&["join", folder, "--updates", "--postgres", &server.url()])?)?);
        drop(server);
        let server = PostgresServer::start();
        theirs.push(measure(&mut child(&["copy", recorded_path, &server.url()])?)?);
    }
    std::fs::remove_dir_all(&recorded)?;
    // How many versions of an entity are written follows from how the steps fell.
    let versions = ours.iter().map(|run| run.get("entities_updated")).collect::<anyhow::Result<Vec<f64>>>()?;
    let rates = |runs: &[Measured], counts: &[f64], key: &str| -> anyhow::Result<f64> {
        let rates = runs.iter().zip(counts).map(|(run, count)| Ok(count / run.get(key)?));
        let mut rates = rates.collect::<anyhow::Result<Vec<f64>>>()?;
        rates.sort_by(f64::total_cmp);
        Ok(rates[RUNS / 2])
    };
    let peak = |runs: &[Measured]| runs.iter().map(|run| run.peak_mb).reduce(f64::max);
    let figure = |name: &str, counts: (&[f64], f64), key: &str| -> anyhow::Result<Figure> {
        let (rate, theirs_rate) = (rates(&ours, counts.0, key)?, rates(&theirs, &[counts.1; RUNS], key)?);
        Ok(Figure::rate(name, "documents/s", rate, "COPY upsert of the finished documents", Some(theirs_rate))
            .memory(peak(&ours), peak(&theirs)))
    };
    Ok(vec![
        figure("postgres-vs-copy", (&[documents; RUNS], documents), "load_seconds")?,
        figure("postgres-updates-vs-copy", (&versions, updated), "update_seconds")?,
    ])
}
