//! The metrics of checkpoints: every name once, with what it means.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::Made;

const MADE: &str = "tributary_checkpoints_total";
const FAILED: &str = "tributary_checkpoint_failures_total";
const UPLOADED_BYTES: &str = "tributary_checkpoint_uploaded_bytes_total";
const BYTES: &str = "tributary_checkpoint_bytes";
const SECONDS: &str = "tributary_checkpoint_seconds";
const MADE_TIME: &str = "tributary_checkpoint_time_seconds";

/// Describes every metric to the recorder; to be called once it is installed.
pub fn describe() {
    describe_counter!(MADE, Unit::Count, "Checkpoints and savepoints of the joiner's state that were made");
    describe_counter!(FAILED, Unit::Count, "Attempts at a checkpoint that failed");
    describe_counter!(UPLOADED_BYTES, Unit::Bytes, "Files uploaded for checkpoints: what the storage did not have yet");
    describe_gauge!(BYTES, Unit::Bytes, "The state as the last checkpoint holds it");
    describe_histogram!(SECONDS, Unit::Seconds, "Time to make a checkpoint, from the flush to the commit");
    describe_gauge!(MADE_TIME, Unit::Seconds, "When the last checkpoint was made, in seconds since 1970-01-01 UTC");
}

pub(crate) fn made(made: &Made, seconds: f64) {
    counter!(MADE).increment(1);
    counter!(UPLOADED_BYTES).increment(made.uploaded_bytes);
    gauge!(BYTES).set(made.bytes as f64);
    histogram!(SECONDS).record(seconds);
    gauge!(MADE_TIME).set(made.made_ms as f64 / 1000.0);
}

pub(crate) fn failed() {
    counter!(FAILED).increment(1);
}
