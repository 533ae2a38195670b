//! The importer's metrics: named and described here, and nowhere else. Base units. All are by source, because importers of several may run in one process; beside that, the only label is the table.

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
pub(crate) fn published(source: &str, table: &TableName, events: u64, dead_letters: u64, read: u64) {
    let count = |name: &'static str, more: u64| {
        if more > 0 {
            counter!(name, "source" => source.to_owned(), "table" => table.to_string()).increment(more);
        }
    };
    count(EVENTS, events);
    count(DEAD_LETTERS, dead_letters);
    count(SNAPSHOT_ROWS, read);
}

/// Of a service's record of which not even the table is known.
pub(crate) fn dead_letter_of_no_table(source: &str) {
    counter!(DEAD_LETTERS, "source" => source.to_owned(), "table" => "(none)").increment(1);
}

pub(crate) fn passed_over(source: &str, records: u64) {
    counter!(PASSED_OVER, "source" => source.to_owned()).increment(records);
}

pub(crate) fn unknown_deletions(source: &str, table: &TableName, count: u64) {
    if count > 0 {
        counter!(UNKNOWN_DELETIONS, "source" => source.to_owned(), "table" => table.to_string()).increment(count);
    }
}

pub(crate) fn bytes(source: &str, bytes: u64) {
    counter!(BYTES, "source" => source.to_owned()).increment(bytes);
}

pub(crate) fn tick(source: &str, seconds: f64) {
    counter!(TICKS, "source" => source.to_owned()).increment(1);
    histogram!(TICK_SECONDS, "source" => source.to_owned()).record(seconds);
}

pub(crate) fn lag(source: &str, seconds: f64) {
    gauge!(LAG_SECONDS, "source" => source.to_owned()).set(seconds);
}

pub(crate) fn headroom(source: &str, seconds: f64) {
    gauge!(HEADROOM_SECONDS, "source" => source.to_owned()).set(seconds);
}

pub(crate) fn stalled(source: &str, stalled: bool) {
    gauge!(STALLED, "source" => source.to_owned()).set(if stalled { 1.0 } else { 0.0 });
}

pub(crate) fn reconnected(source: &str) {
    counter!(RECONNECTS, "source" => source.to_owned()).increment(1);
}
