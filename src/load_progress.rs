//! How far the loads of sinks are: a bar each on a terminal, else lines in the log.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use joiner::{Handle, SinkLoad};
use tokio_util::sync::CancellationToken;

use crate::logging;

/// How often the bars move, and how often the log tells of them where there is no terminal.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Shows loads until the process ends.
pub(crate) async fn show(joiner: Handle, shutdown: CancellationToken) {
    let mut bars: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let interval = if logging::bars().is_hidden() { LOG_INTERVAL } else { BAR_INTERVAL };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(interval) => {}
        }
        let loads: BTreeMap<String, SinkLoad> =
            joiner.status().sinks.into_iter().filter_map(|sink| Some((sink.name, sink.load?))).collect();
        if logging::bars().is_hidden() {
            for (sink, SinkLoad { entities, entities_expected, entities_per_second }) in loads {
                tracing::info!(sink, entities, entities_expected, entities_per_second, "the load of a sink goes on");
            }
            continue;
        }
        bars.retain(|sink, bar| {
            loads.contains_key(sink) || {
                bar.finish_and_clear();
                false
            }
        });
        for (sink, load) in loads {
            draw(bars.entry(sink.clone()).or_insert_with(|| new_bar(&sink)), &load);
        }
    }
    bars.values().for_each(ProgressBar::finish_and_clear);
}

fn new_bar(sink: &str) -> ProgressBar {
    let bar = logging::bars().add(ProgressBar::new(0)).with_prefix(sink.to_owned());
    if let Ok(style) = ProgressStyle::with_template("load of {prefix} {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, load: &SinkLoad) {
    bar.set_length(load.entities_expected.unwrap_or(load.entities).max(load.entities));
    bar.set_position(load.entities);
    bar.set_message(words(load));
}

/// `1,200 of 10,000 entities, 400/s`.
fn words(load: &SinkLoad) -> String {
    let count = |number: u64| indicatif::HumanCount(number).to_string();
    let of = load.entities_expected.map(|expected| format!(" of {}", count(expected))).unwrap_or_default();
    format!("{}{of} entities, {}/s", count(load.entities), count(load.entities_per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_told_in_words() {
        let load = SinkLoad { entities: 1200, entities_expected: Some(10_000), entities_per_second: 400 };
        assert_eq!(words(&load), "1,200 of 10,000 entities, 400/s");
        assert_eq!(words(&SinkLoad { entities_expected: None, ..load }), "1,200 entities, 400/s");
    }
}
