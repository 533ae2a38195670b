//! The joiner's metrics: every name once, with what it means.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::accounting::Miscount;
use crate::status::Status;
use crate::step::Report;

const RECEIVED: &str = "tributary_joiner_events_received_total";
const APPLIED: &str = "tributary_joiner_events_applied_total";
const DEAD_LETTERS: &str = "tributary_joiner_dead_letters";
const MISSING: &str = "tributary_joiner_events_missing_total";
const SURPLUS: &str = "tributary_joiner_events_surplus_total";
const ASSEMBLED: &str = "tributary_joiner_entities_assembled_total";
const CHANGED: &str = "tributary_joiner_entities_changed_total";
const EXPRESSIONS_FAILED: &str = "tributary_joiner_expressions_failed_total";
const STEP_SECONDS: &str = "tributary_joiner_step_seconds";
const BUFFERED_BYTES: &str = "tributary_joiner_buffered_bytes";
const STATE_BYTES: &str = "tributary_joiner_state_bytes";
const FRONTIER_TIME: &str = "tributary_joiner_frontier_commit_time_seconds";
const SOURCE_TIME: &str = "tributary_joiner_source_commit_time_seconds";
const FAN_OUT_ROWS: &str = "tributary_joiner_fan_out_rows_waiting";
const OUTBOX_HEAD: &str = "tributary_joiner_outbox_head";
const OUTBOX_OLDEST: &str = "tributary_joiner_outbox_oldest";
const OUTBOX_BYTES: &str = "tributary_joiner_outbox_bytes";
const SINK_BEHIND: &str = "tributary_joiner_sink_entries_behind";
const SINK_OVERTAKEN: &str = "tributary_joiner_sink_overtaken";
const SINK_LOADS: &str = "tributary_joiner_sink_loads_total";
const SINK_WRITTEN: &str = "tributary_joiner_sink_changes_written_total";
const SINK_ERRORS: &str = "tributary_joiner_sink_errors_total";
const SINK_REJECTED: &str = "tributary_joiner_sink_rejected_total";

/// Describes every metric to the recorder; to be called once it is installed.
pub fn describe() {
    describe_counter!(RECEIVED, Unit::Count, "Events read from the streams, repeats included, by table");
    describe_counter!(APPLIED, Unit::Count, "Events put into the state, by table");
    describe_gauge!(DEAD_LETTERS, Unit::Count, "Events and entity changes that were set aside and are kept");
    describe_counter!(MISSING, Unit::Count, "Events that the importer published and that were not there to be read, by table");
    describe_counter!(SURPLUS, Unit::Count, "Events read beyond those that the importer says it published, by table");
    describe_counter!(ASSEMBLED, Unit::Count, "Documents assembled because a change may have touched them");
    describe_counter!(CHANGED, Unit::Count, "Documents that differed from the last one and went to the outbox");
    describe_counter!(
        EXPRESSIONS_FAILED,
        Unit::Count,
        "Expressions of definitions that failed on a row or a document, and made null of it, by table or entity"
    );
    describe_histogram!(STEP_SECONDS, Unit::Seconds, "Time to take in what was read and to apply what was complete");
    describe_gauge!(BUFFERED_BYTES, Unit::Bytes, "Changes in memory that wait for the progress record that completes them");
    describe_gauge!(STATE_BYTES, Unit::Bytes, "Keyed state on the disk and in write buffers");
    describe_gauge!(FRONTIER_TIME, Unit::Seconds, "Commit time of the frontier, since 1970; lag is the present time less this");
    describe_gauge!(
        SOURCE_TIME,
        Unit::Seconds,
        "Of several sources, the commit time up to which each has been joined, since 1970; the least is the frontier's, by source"
    );
    describe_gauge!(
        FAN_OUT_ROWS,
        Unit::Count,
        "Changed rows whose lazy fan-out is not over; the frontier stays before the first of them"
    );
    describe_gauge!(OUTBOX_HEAD, Unit::Count, "Sequence number of the last outbox entry");
    describe_gauge!(OUTBOX_OLDEST, Unit::Count, "Sequence number of the oldest outbox entry kept");
    describe_gauge!(OUTBOX_BYTES, Unit::Bytes, "Outbox entries on the disk");
    describe_gauge!(SINK_BEHIND, Unit::Count, "Outbox entries that a sink does not hold yet, by sink");
    describe_gauge!(
        SINK_OVERTAKEN,
        Unit::Count,
        "1 while a sink lacks entries that are no longer kept, and waits to be loaded anew, by sink"
    );
    describe_counter!(SINK_LOADS, Unit::Count, "Loads of a sink that were begun, by sink");
    describe_counter!(SINK_WRITTEN, Unit::Count, "Entity changes written, by sink");
    describe_counter!(SINK_ERRORS, Unit::Count, "Failed writes, by sink");
    describe_counter!(SINK_REJECTED, Unit::Count, "Entity changes that the sink will never accept, by sink");
}

pub(crate) fn expression_failed(of: &str) {
    counter!(EXPRESSIONS_FAILED, "of" => of.to_owned()).increment(1);
}

pub(crate) fn step(seconds: f64, report: &mut Report) {
    histogram!(STEP_SECONDS).record(seconds);
    counter!(ASSEMBLED).increment(std::mem::take(&mut report.assembled));
    counter!(CHANGED).increment(std::mem::take(&mut report.changed));
}

/// Reports what was missing, or too many.
pub(crate) fn miscount(miscount: &Miscount) {
    let Miscount { published, received, table, .. } = miscount;
    let name = if miscount.is_missing() { MISSING } else { SURPLUS };
    counter!(name, "table" => table.to_string()).increment(published.abs_diff(*received));
}

pub(crate) fn status(status: &Status, buffered_bytes: usize) {
    for (table, counts) in &status.tables {
        counter!(RECEIVED, "table" => table.clone()).absolute(counts.received);
        counter!(APPLIED, "table" => table.clone()).absolute(counts.applied);
    }
    gauge!(DEAD_LETTERS).set(status.dead_letters as f64);
    gauge!(BUFFERED_BYTES).set(buffered_bytes as f64);
    gauge!(FRONTIER_TIME).set(status.commit_time_ms as f64 / 1000.0);
    for (source, joined) in &status.sources {
        gauge!(SOURCE_TIME, "source" => source.clone()).set(joined.commit_time_ms as f64 / 1000.0);
    }
    gauge!(FAN_OUT_ROWS).set(status.fan_out.map_or(0.0, |fan_out| fan_out.rows as f64));
    gauge!(OUTBOX_HEAD).set(status.outbox_head as f64);
    gauge!(OUTBOX_OLDEST).set(status.outbox_oldest as f64);
    gauge!(OUTBOX_BYTES).set(status.outbox_bytes as f64);
    for sink in &status.sinks {
        gauge!(SINK_BEHIND, "sink" => sink.name.clone()).set(sink.behind as f64);
        gauge!(SINK_OVERTAKEN, "sink" => sink.name.clone()).set(f64::from(u8::from(sink.overtaken)));
    }
}

pub(crate) fn state_bytes(bytes: u64) {
    gauge!(STATE_BYTES).set(bytes as f64);
}

pub(crate) fn sink_load(sink: &str) {
    counter!(SINK_LOADS, "sink" => sink.to_owned()).increment(1);
}

pub(crate) fn sink_written(sink: &str, count: usize) {
    counter!(SINK_WRITTEN, "sink" => sink.to_owned()).increment(count as u64);
}

pub(crate) fn sink_error(sink: &str) {
    counter!(SINK_ERRORS, "sink" => sink.to_owned()).increment(1);
}

pub(crate) fn sink_rejected(sink: &str, count: usize) {
    counter!(SINK_REJECTED, "sink" => sink.to_owned()).increment(count as u64);
}
