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
    let mut measured = (0..runs).map(|_| run()).collect::<anyhow::Result<Vec<_>>>()?;
    let value = |measured: &Measured| measured.get(key).unwrap_or(f64::MAX);
    measured.sort_by(|a, b| value(a).total_cmp(&value(b)));
    Ok(measured.swap_remove(runs / 2))
}

pub(crate) fn path(folder: &Path) -> anyhow::Result<&str> {
    folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))
}

/// [first-load-vs-flink@…] and [updates-vs-flink@…].
pub(crate) fn against_flink(input: &Input) -> anyhow::Result<Vec<Figure>> {
    let folder = path(&input.folder)?;
    let scale = input.scale;
    let load = median_run(RUNS, "load_seconds", || measure(&mut child(&["join", folder])?))?;
    let updates = median_run(RUNS, "update_seconds", || measure(&mut child(&["join", folder, "--updates"])?))?;
    let (rows, changes) = (input.published.rows as f64, input.published.changes as f64);
    let mut figures = vec![
        Figure::rate(format!("first-load-vs-flink@{scale}"), "rows/s", rows / load.get("load_seconds")?, "Flink SQL", None)
            .memory(Some(load.peak_mb), None),
        Figure::rate(
            format!("updates-vs-flink@{scale}"),
            "changes/s",
            changes / updates.get("update_seconds")?,
            "Flink SQL",
            None,
        )
        .memory(Some(updates.peak_mb), None),
    ];
    let Some(flink) = Flink::find() else { return Ok(figures) };
    // Our own figures do not hang on a peer that fails.
    if let Err(error) = measure_flink(&flink, input, &mut figures) {
        println!("Flink is left out: {error:#}");
    }
    Ok(figures)
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

fn measure_flink(flink: &Flink, input: &Input, figures: &mut [Figure]) -> anyhow::Result<()> {
    let scale = input.scale;
    let (rows, changes) = (input.published.rows as f64, input.published.changes as f64);
    let files = input.folder.join("base");
    rows::write_files(&files, scale, &[])?;
    let base = flink.join(&files)?;
    std::fs::remove_dir_all(&files)?;
    let base_seconds = base.get("seconds")?;
    figures[0].peer(rows / base_seconds, base.peak_mb);

    let files = input.folder.join("changed");
    rows::write_files(&files, scale, &input.transactions)?;
    let changed = flink.join(&files)?;
    std::fs::remove_dir_all(&files)?;
    let difference = changed.get("seconds")? - base_seconds;
    println!(
        "Flink at scale {scale}: {base_seconds:.1} s without and {:.1} s with the {changes} changes; its rate of updates is taken from the difference",
        base_seconds + difference
    );
    if difference < LEAST_DIFFERENCE * base_seconds {
        println!("That difference is too small to tell a rate from: measure more transactions (--transactions)");
    } else {
        figures[1].peer(changes / difference, changed.peak_mb);
    }
    Ok(())
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
