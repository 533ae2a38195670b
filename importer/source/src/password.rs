//! Passwords and tokens: where they are kept, and that they are not shown.

use std::fmt;

use super::source::SourceError;

/// A password, or another secret, that does not show itself.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Password(String);

impl Password {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// `${NAME}` as a whole is the variable's value; anything else is the text itself.
    pub(super) fn resolve(self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        match self.0.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => environment(name).map(Self::new).ok_or_else(|| SourceError::NoVariable { name: name.to_owned() }),
            None => Ok(self),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
