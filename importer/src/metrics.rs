//! The importer's metrics: named and described here, and nowhere else. Base units; the only label is the table.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use schemas::TableName;

const EVENTS: &str = "tributary_importer_events_total";
const BYTES: &str = "tributary_importer_event_bytes_total";
const DEAD_LETTERS: &str = "tributary_importer_dead_letters_total";
const SNAPSHOT_ROWS: &str = "tributary_importer_snapshot_rows_total";
const TICKS: &str = "tributary_importer_ticks_total";
const TICK_SECONDS: &str = "tributary_importer_tick_seconds";
const LAG_SECONDS: &str = "tributary_importer_lag_seconds";
const RECONNECTS: &str = "tributary_importer_reconnects_total";

/// Tells the recorder what they mean. Once is enough; more do no harm.
pub(crate) fn describe() {
    describe_counter!(EVENTS, Unit::Count, "Change events published, by table");
    describe_counter!(BYTES, Unit::Bytes, "Size of the change events published, encoded");
    describe_counter!(DEAD_LETTERS, Unit::Count, "Events set aside because they break their table's contract, by table");
    describe_counter!(SNAPSHOT_ROWS, Unit::Count, "Rows read by the initial snapshot, by table");
    describe_counter!(TICKS, Unit::Count, "Ranges of the log that were published");
    describe_histogram!(TICK_SECONDS, Unit::Seconds, "Time to read and publish a range of the log");
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the newest published transaction while newer ones wait; 0 when caught up"
    );
    describe_counter!(RECONNECTS, Unit::Count, "Connections to the source that were lost and made again");
}

pub(crate) fn published(table: &TableName, events: u64, dead_letters: u64, snapshot: bool) {
    let label = table.to_string();
    if events > 0 {
        counter!(EVENTS, "table" => label.clone()).increment(events);
    }
    if dead_letters > 0 {
        counter!(DEAD_LETTERS, "table" => label.clone()).increment(dead_letters);
    }
    if snapshot {
        counter!(SNAPSHOT_ROWS, "table" => label).increment(events + dead_letters);
    }
}

pub(crate) fn bytes(bytes: u64) {
    counter!(BYTES).increment(bytes);
}

pub(crate) fn tick(seconds: f64) {
    counter!(TICKS).increment(1);
    histogram!(TICK_SECONDS).record(seconds);
}

pub(crate) fn lag(seconds: f64) {
    gauge!(LAG_SECONDS).set(seconds);
}

pub(crate) fn reconnected() {
    counter!(RECONNECTS).increment(1);
}
