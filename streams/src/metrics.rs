//! The metrics of this crate.

/// Calls to Kinesis that failed and were made again, by operation.
pub(crate) const RETRIES: &str = "tributary_stream_retries_total";

/// Describes them to the recorder.
pub fn describe() {
    metrics::describe_counter!(RETRIES, "Calls to Kinesis that failed and were made again, by operation");
}
