//! What the benchmarks print and write.

use std::path::Path;

use serde::Serialize;

/// One measured figure, and its peer's in the same run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) ours: f64,
    pub(crate) unit: String,
    /// What the peer is; empty where there is none.
    pub(crate) peer: String,
    pub(crate) theirs: Option<f64>,
    /// Above 1: ours is better.
    pub(crate) ratio: Option<f64>,
    /// Peak resident memory of our process, in MB.
    pub(crate) peak_mb: Option<f64>,
    /// The same of the peer's process.
    pub(crate) peer_peak_mb: Option<f64>,
}

impl Figure {
    /// A figure of which more is better (a rate).
    pub(crate) fn rate(name: impl Into<String>, unit: &str, ours: f64, peer: &str, theirs: Option<f64>) -> Self {
        let ratio = theirs.map(|theirs| ours / theirs);
        Self { name: name.into(), ours, unit: unit.into(), peer: peer.into(), theirs, ratio, peak_mb: None, peer_peak_mb: None }
    }

    /// A figure of which less is better, without a peer.
    pub(crate) fn time(name: impl Into<String>, unit: &str, ours: f64) -> Self {
        Self::rate(name, unit, ours, "", None)
    }

    /// Sets what the peer reached.
    pub(crate) fn peer(&mut self, theirs: f64, peak_mb: f64) {
        self.ratio = Some(self.ours / theirs);
        self.theirs = Some(theirs);
        self.peer_peak_mb = Some(peak_mb);
    }

    #[must_use]
    pub(crate) fn memory(mut self, ours: Option<f64>, theirs: Option<f64>) -> Self {
        self.peak_mb = ours;
        self.peer_peak_mb = theirs;
        self
    }
}

/// The value that so large a share of them does not exceed; sorts them.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 - 1.0) * share).round().max(0.0) as usize).copied().unwrap_or_default()
}

/// Prints the figures as a table.
pub(crate) fn print(figures: &[Figure]) {
    let number = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |value| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") })
    };
    println!("{:<34} {:>12} {:>12} {:>8} {:>9} {:>10}  unit, peer", "name", "ours", "theirs", "ratio", "peak MB", "peer's MB");
    for figure in figures {
        println!(
            "{:<34} {:>12} {:>12} {:>8} {:>9} {:>10}  {}, {}",
            figure.name,
            number(Some(figure.ours)),
            number(figure.theirs),
            number(figure.ratio),
            number(figure.peak_mb),
            number(figure.peer_peak_mb),
            figure.unit,
            if figure.peer.is_empty() { "no peer" } else { &figure.peer },
        );
    }
}

/// Writes the figures as JSON.
pub(crate) fn write(path: &Path, figures: &[Figure]) -> anyhow::Result<()> {
    std::fs::write(path, serde_json::to_vec_pretty(figures)?)?;
    Ok(())
}
