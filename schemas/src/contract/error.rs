//! What is wrong with a contract file.

use crate::ErrorClass;

/// A contract that cannot be used. Says in which file, at which place, what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {place}: {problem}. {remedy}")]
pub struct ContractError {
    pub file: String,
    /// Line and column where the text is not JSON, a JSON pointer otherwise.
    pub place: String,
    pub problem: String,
    pub remedy: String,
}

impl ContractError {
    /// Somebody must edit the file.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Misconfigured
    }
}
