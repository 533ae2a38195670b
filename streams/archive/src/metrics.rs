//! The metrics of this crate.

/// Whether this process archives.
pub(crate) const ACTIVE: &str = "tributary_archive_active";
/// Segments written.
pub(crate) const SEGMENTS: &str = "tributary_archive_segments_total";
/// Records written, repeats and progress records included.
pub(crate) const RECORDS: &str = "tributary_archive_records_total";
/// Bytes of objects written, compressed.
pub(crate) const BYTES: &str = "tributary_archive_bytes_total";
/// Events that progress records promised and the streams did not hold.
pub(crate) const MISSING: &str = "tributary_archive_missing_events_total";
/// Gaps written down.
pub(crate) const GAPS: &str = "tributary_archive_gaps_total";
/// Commit time of the last LSN that is in the archive, in seconds since 1970-01-01 UTC.
pub(crate) const ARCHIVED_UP_TO: &str = "tributary_archive_commit_time_seconds";
/// Since the commit of the oldest tick that waits.
pub(crate) const LAG: &str = "tributary_archive_lag_seconds";
/// Events that wait, by table.
pub(crate) const WAITING: &str = "tributary_archive_waiting_events";
/// Records in memory.
pub(crate) const HELD: &str = "tributary_archive_held_bytes";
/// Segments removed for their age.
pub(crate) const EXPIRED: &str = "tributary_archive_expired_segments_total";

/// Describes them to the recorder.
pub fn describe() {
    metrics::describe_gauge!(ACTIVE, "1 while this process archives, 0 while it waits for another that does");
    metrics::describe_counter!(SEGMENTS, "Segments written to the archive");
    metrics::describe_counter!(RECORDS, "Records written to the archive, repeats and progress records included");
    metrics::describe_counter!(BYTES, metrics::Unit::Bytes, "Bytes of objects written to the archive, compressed");
    metrics::describe_counter!(MISSING, "Events that progress records promised and the streams did not hold");
    metrics::describe_counter!(GAPS, "Gaps written down: changes that the streams had forgotten before they were archived");
    metrics::describe_gauge!(
        ARCHIVED_UP_TO,
        metrics::Unit::Seconds,
        "Commit time of the last LSN that is in the archive, in seconds since 1970-01-01 UTC"
    );
    metrics::describe_gauge!(
        LAG,
        metrics::Unit::Seconds,
        "Time since the commit of the oldest tick that is published and not archived; 0 where none waits"
    );
    metrics::describe_gauge!(WAITING, "Events that progress records speak of and that are in no segment yet, by table");
    metrics::describe_gauge!(HELD, metrics::Unit::Bytes, "Records in memory that are in no segment yet");
    metrics::describe_counter!(EXPIRED, "Segments removed from the archive for their age");
}
