//! What can go wrong with a sink.

use std::time::Duration;

use schemas::ErrorClass;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target did not answer, or refused for now.
    #[error("{target}: {message}")]
    Unavailable { target: String, message: String },
    /// The target takes nothing for now, and may have said for how long.
    #[error("{target}: {message}")]
    Throttled { target: String, message: String, pause: Option<Duration> },
    /// The target needs a change by its owner.
    #[error("{target}: {message}. {remedy}")]
    Misconfigured { target: String, message: String, remedy: String },
    /// The target holds something that Tributary did not write or cannot read.
    #[error("{target}: {message}")]
    Unexpected { target: String, message: String },
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } | Self::Throttled { .. } => ErrorClass::Transient,
            Self::Misconfigured { .. } => ErrorClass::Misconfigured,
            Self::Unexpected { .. } => ErrorClass::Bug,
        }
    }

    /// How long the target asked to be left alone.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Throttled { pause, .. } => *pause,
            _ => None,
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "causes end here, as texts and as errors of other crates")]
    pub fn unavailable(target: impl Into<String>, message: impl ToString) -> Self {
        Self::Unavailable { target: target.into(), message: message.to_string() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "as above")]
    pub fn throttled(target: impl Into<String>, message: impl ToString, pause: Option<Duration>) -> Self {
        Self::Throttled { target: target.into(), message: message.to_string(), pause }
    }

    #[allow(clippy::needless_pass_by_value, reason = "as above")]
    pub fn misconfigured(target: impl Into<String>, message: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Misconfigured { target: target.into(), message: message.to_string(), remedy: remedy.into() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "as above")]
    pub fn unexpected(target: impl Into<String>, message: impl ToString) -> Self {
        Self::Unexpected { target: target.into(), message: message.to_string() }
    }

    /// What a failure of object storage means for a sink.
    #[cfg(any(feature = "lake", feature = "dynamodb"))]
    pub(crate) fn of_objects(target: &str, error: &objects::Error, remedy: &str) -> Self {
        if error.is_throttling() {
            return Self::throttled(target, error, None);
        }
        match error.class() {
            ErrorClass::Transient => Self::unavailable(target, error),
            ErrorClass::Misconfigured => Self::misconfigured(target, error, remedy),
            _ => Self::unexpected(target, error),
        }
    }
}
