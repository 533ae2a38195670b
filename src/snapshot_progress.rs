//! How far the first snapshot is, how fast it goes, and when it will have ended: for the status, the bar on a terminal, and the log.

use std::time::{Duration, Instant};

use importer::{Activity, StatusHandle};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::logging;

/// How often the bar moves, and how often the log tells of it where there is no terminal.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The first snapshot at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct SnapshotProgress {
    pub(crate) rows: u64,
    /// What the catalog thinks that the tables have together; none where it does not say so of each.
    pub(crate) rows_expected: Option<u64>,
    pub(crate) tables_done: usize,
    pub(crate) tables: usize,
    pub(crate) rows_per_second: f64,
    /// Until the rows have been read; none where it cannot be told.
    pub(crate) remaining_seconds: Option<u64>,
}

/// Watches a snapshot for its speed.
#[derive(Debug, Default)]
pub(crate) struct SnapshotWatch {
    /// When it was first seen, and the rows that had been read by then: a snapshot that goes on after a restart does not count them for its speed.
    began: Option<(Instant, u64)>,
}

impl SnapshotWatch {
    /// None where no snapshot is being taken.
    pub(crate) fn look(&mut self, status: &importer::Status, now: Instant) -> Option<SnapshotProgress> {
        if status.activity != Activity::Snapshot {
            if status.activity != Activity::Retrying {
                self.began = None;
            }
            return None;
        }
        let tables = || status.tables.values();
        let rows = tables().map(|table| table.snapshot_rows).sum();
        // A table that is done has what was read of it, whatever the catalog thought.
        let expected = tables().map(|table| match table.snapshot_done {
            true => Some(table.snapshot_rows),
            false => table.snapshot_rows_expected.map(|expected| expected.max(table.snapshot_rows)),
        });
        let rows_expected: Option<u64> = expected.sum();
        let (began, rows_before) = *self.began.get_or_insert((now, rows));
        let seconds = now.duration_since(began).as_secs_f64();
        let rows_per_second = if seconds > 0.0 { rows.saturating_sub(rows_before) as f64 / seconds } else { 0.0 };
        let remaining = rows_expected.filter(|_| rows_per_second > 0.0);
        Some(SnapshotProgress {
            rows,
            rows_expected,
            tables_done: tables().filter(|table| table.snapshot_done).count(),
            tables: status.tables.len(),
            rows_per_second: rows_per_second.round(),
            remaining_seconds: remaining.map(|expected| (expected.saturating_sub(rows) as f64 / rows_per_second).ceil() as u64),
        })
    }
}

/// Shows the first snapshot until it has ended or the process does: a bar where standard error is a terminal, else lines in the log.
pub(crate) async fn show(importer: StatusHandle, shutdown: CancellationToken) {
    let mut watch = SnapshotWatch::default();
    let mut bar: Option<ProgressBar> = None;
    let interval = if logging::bars().is_hidden() { LOG_INTERVAL } else { BAR_INTERVAL };
    loop {
        let status = importer.get();
        match watch.look(&status, Instant::now()) {
            Some(progress) if logging::bars().is_hidden() => log(&progress),
            Some(progress) => draw(bar.get_or_insert_with(new_bar), &progress),
            None if matches!(status.activity, Activity::SettlingSnapshot | Activity::Tailing | Activity::Stopped) => break,
            None => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(interval) => {}
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn log(progress: &SnapshotProgress) {
    let SnapshotProgress { rows, tables_done, tables, rows_per_second, .. } = progress;
    tracing::info!(
        rows,
        rows_expected = progress.rows_expected,
        tables_done,
        tables,
        rows_per_second,
        remaining_seconds = progress.remaining_seconds,
        "the snapshot goes on"
    );
}

fn new_bar() -> ProgressBar {
    let bar = logging::bars().add(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("snapshot {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, progress: &SnapshotProgress) {
    bar.set_length(progress.rows_expected.unwrap_or(progress.rows));
    bar.set_position(progress.rows);
    bar.set_message(words(progress));
}

/// `1,200 of 10,000 rows, 3 of 12 tables, 400 rows/s, 22 s left`.
fn words(progress: &SnapshotProgress) -> String {
    let count = |number: u64| indicatif::HumanCount(number).to_string();
    let of = progress.rows_expected.map(|expected| format!(" of {}", count(expected))).unwrap_or_default();
    let left =
        progress.remaining_seconds.map(|seconds| format!(", {:#} left", indicatif::HumanDuration(Duration::from_secs(seconds))));
    format!(
        "{}{of} rows, {} of {} tables, {} rows/s{}",
        count(progress.rows),
        progress.tables_done,
        progress.tables,
        count(progress.rows_per_second as u64),
        left.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use importer::{Status, TableStatus};
    use schemas::TableName;

    use super::*;

    fn status(tables: &[(u64, Option<u64>, bool)]) -> Status {
        let table = |(index, &(snapshot_rows, snapshot_rows_expected, snapshot_done)): (usize, &(u64, Option<u64>, bool))| {
            let table = TableStatus { snapshot_rows, snapshot_rows_expected, snapshot_done, ..TableStatus::default() };
            (TableName::new("dbo", format!("t{index}")), table)
        };
        Status { activity: Activity::Snapshot, tables: tables.iter().enumerate().map(table).collect(), ..Status::default() }
    }

    #[test]
    fn speed_and_end_are_estimated_from_what_was_seen() {
        let mut watch = SnapshotWatch::default();
        let start = Instant::now();
        // 300 rows are there from before a restart.
        let first = watch.look(&status(&[(300, Some(1000), false), (0, Some(500), false)]), start).unwrap();
        assert_eq!((first.rows, first.rows_expected, first.remaining_seconds), (300, Some(1500), None));
        let later =
            watch.look(&status(&[(900, Some(800), true), (100, Some(500), false)]), start + Duration::from_secs(7)).unwrap();
        assert_eq!((later.rows, later.rows_expected, later.tables_done), (1000, Some(1400), 1));
        assert_eq!((later.rows_per_second, later.remaining_seconds), (100.0, Some(4)));
        assert_eq!(words(&later), "1,000 of 1,400 rows, 1 of 2 tables, 100 rows/s, 4s left");
        let unknown = watch.look(&status(&[(900, None, false)]), start + Duration::from_secs(8)).unwrap();
        assert_eq!((unknown.rows_expected, unknown.remaining_seconds), (None, None));
        // Over: the next one begins anew.
        let tail = Status { activity: Activity::Tailing, ..Status::default() };
        assert_eq!(watch.look(&tail, start + Duration::from_secs(9)), None);
        assert!(watch.began.is_none());
    }
}
