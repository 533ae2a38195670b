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
const HEADROOM_SECONDS: &str = "tributary_importer_retention_headroom_seconds";
const STALLED: &str = "tributary_importer_capture_stalled";
const PASSED_OVER: &str = "tributary_importer_records_passed_over_total";
const UNKNOWN_DELETIONS: &str = "tributary_importer_unknown_deletions_total";
const RECONNECTS: &str = "tributary_importer_reconnects_total";

/// Tells the recorder what they mean. Once is enough; more do no harm.
pub(crate) fn describe() {
    describe_counter!(EVENTS, Unit::Count, "Change events published, by table");
    describe_counter!(BYTES, Unit::Bytes, "Size of the change events published, encoded");
    describe_counter!(DEAD_LETTERS, Unit::Count, "Events set aside because they break their table's contract, by table");
    describe_counter!(SNAPSHOT_ROWS, Unit::Count, "Rows read from tables, by the initial snapshot or later, by table");
    describe_counter!(TICKS, Unit::Count, "Ranges of the log that were published");
    describe_histogram!(TICK_SECONDS, Unit::Seconds, "Time to read and publish a range of the log");
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the newest published transaction while newer ones wait; 0 when caught up"
    );
    describe_gauge!(
        HEADROOM_SECONDS,
        Unit::Seconds,
        "How long the oldest change that waits to be read is safe from the cleanup job; the whole retention while none waits"
    );
    describe_gauge!(STALLED, Unit::Count, "1 while the source's change data capture stands still, else 0");
    describe_counter!(PASSED_OVER, Unit::Count, "Records of a service's stream that are of no table, and were to be skipped");
    describe_counter!(UNKNOWN_DELETIONS, Unit::Count, "Deletions by a service of rows that no event of it had made, by table");
    describe_counter!(RECONNECTS, Unit::Count, "Connections to the source that were lost and made again");
}

/// `read` of the events were rows that were read from the table.
pub(crate) fn published(table: &TableName, events: u64, dead_letters: u64, read: u64) {
    let label = table.to_string();
    if events > 0 {
        counter!(EVENTS, "table" => label.clone()).increment(events);
    }
    if dead_letters > 0 {
        counter!(DEAD_LETTERS, "table" => label.clone()).increment(dead_letters);
    }
    if read > 0 {
        counter!(SNAPSHOT_ROWS, "table" => label).increment(read);
    }
}

/// Of a service's record of which not even the table is known.
pub(crate) fn dead_letter_of_no_table() {
    counter!(DEAD_LETTERS, "table" => "(none)").increment(1);
}

pub(crate) fn passed_over(records: u64) {
    counter!(PASSED_OVER).increment(records);
}

pub(crate) fn unknown_deletions(table: &TableName, count: u64) {
    if count > 0 {
        counter!(UNKNOWN_DELETIONS, "table" => table.to_string()).increment(count);
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

pub(crate) fn headroom(seconds: f64) {
    gauge!(HEADROOM_SECONDS).set(seconds);
}

pub(crate) fn stalled(stalled: bool) {
    gauge!(STALLED).set(if stalled { 1.0 } else { 0.0 });
}

pub(crate) fn reconnected() {
    counter!(RECONNECTS).increment(1);
}
