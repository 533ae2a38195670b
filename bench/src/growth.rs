//! What a state ten times as large costs: [growth-10x] is the rate of the same transactions on it, against that on the smaller one; [growth-load-10x] that of the first load. [restart-ms] is the time from the start of a process, where one was
//! killed, until a sink has what had not been applied yet; [state-bytes] what a row takes in the state, against its text in TPC-H's own files; [checkpoint-first] what a checkpoint has to upload when there is none yet, and
//! [checkpoint-next] what the next one has to, after the transactions, for each change.
//!
//! The streams are packed with zstd, or those of the larger state would need more disk than most machines have free; both sizes read the same form.

use crate::joining::{child, path};
use crate::process::{Served, measure};
use crate::results::Figure;
use crate::rows;
use crate::stream::Input;

/// What one size gave.
pub(crate) struct Size {
    scale: f64,
    load_rate: f64,
    update_rate: f64,
    peak_mb: f64,
    restart_ms: f64,
    /// Of a row.
    state_bytes: f64,
    source_bytes: f64,
}

/// Loads, applies the transactions, is killed, and starts again.
pub(crate) fn size(input: &Input) -> anyhow::Result<Size> {
    let (folder, state) = (path(&input.folder)?, input.folder.join("grown"));
    let (rows, changes) = (input.published.rows as f64, input.published.changes as f64);
    let run = Served::start(&mut child(&["join", folder, "--updates", "--leave", path(&state)?])?)?;
    let (load, update, state_mb) = (run.get("load_seconds")?, run.get("update_seconds")?, run.get("state_mb")?);
    let peak_mb = run.kill()?;
    let restart = measure(&mut child(&["restart", folder, path(&state)?])?)?;
    std::fs::remove_dir_all(&state)?;
    Ok(Size {
        scale: input.scale,
        load_rate: rows / load,
        update_rate: changes / update,
        peak_mb,
        restart_ms: restart.get("seconds")? * 1e3,
        state_bytes: state_mb * 1e6 / rows,
        source_bytes: rows::text_bytes(input.scale) as f64 / rows,
    })
}

/// The figures of a size, and of one ten times as large.
pub(crate) fn figures(small: &Size, large: &Size) -> Vec<Figure> {
    let against = |name: &str, unit: &str, (ours, theirs): (f64, f64)| {
        Figure::rate(name, unit, ours, "a tenth of the state", Some(theirs)).memory(Some(large.peak_mb), Some(small.peak_mb))
    };
    let mut figures = vec![
        against("growth-10x", "changes/s", (large.update_rate, small.update_rate)),
        against("growth-load-10x", "rows/s", (large.load_rate, small.load_rate)),
    ];
    for size in [small, large] {
        figures.push(Figure::time(format!("restart-ms@{}", size.scale), "ms", size.restart_ms));
        let bytes = Figure::rate(
            format!("state-bytes@{}", size.scale),
            "bytes a row",
            size.state_bytes,
            "its text at the source",
            Some(size.source_bytes),
        );
        figures.push(bytes);
    }
    figures
}

/// [checkpoint-first] and [checkpoint-next].
pub(crate) fn checkpoints(input: &Input) -> anyhow::Result<Vec<Figure>> {
    let (folder, checkpoints) = (path(&input.folder)?, input.folder.join("checkpoints"));
    let run = measure(&mut child(&["join", folder, "--updates", "--checkpoints", path(&checkpoints)?])?)?;
    std::fs::remove_dir_all(&checkpoints)?;
    let next = run.get("next_checkpoint_mb")? * 1e6 / input.published.changes as f64;
    Ok(vec![
        Figure::time("checkpoint-first", "MB", run.get("first_checkpoint_mb")?),
        Figure::time("checkpoint-next", "bytes a change", next),
    ])
}
