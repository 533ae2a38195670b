//! The metrics of this crate.

/// Segments written.
pub(crate) const SEGMENTS: &str = "tributary_archive_segments_total";
/// Records written, repeats and progress records included.
pub(crate) const RECORDS: &str = "tributary_archive_records_total";
/// Bytes of objects written, compressed.
pub(crate) const BYTES: &str = "tributary_archive_bytes_total";
/// Events that progress records promised and the streams did not hold.
pub(crate) const MISSING: &str = "tributary_archive_missing_events_total";
/// Commit time of the last LSN that is in the archive, in seconds since 1970-01-01 UTC.
pub(crate) const ARCHIVED_UP_TO: &str = "tributary_archive_commit_time_seconds";

/// Describes them to the recorder.
pub fn describe() {
    metrics::describe_counter!(SEGMENTS, "Segments written to the archive");
    metrics::describe_counter!(RECORDS, "Records written to the archive, repeats and progress records included");
    metrics::describe_counter!(BYTES, metrics::Unit::Bytes, "Bytes of objects written to the archive, compressed");
    metrics::describe_counter!(MISSING, "Events that progress records promised and the streams did not hold");
    metrics::describe_gauge!(
        ARCHIVED_UP_TO,
        metrics::Unit::Seconds,
        "Commit time of the last LSN that is in the archive, in seconds since 1970-01-01 UTC"
    );
}
