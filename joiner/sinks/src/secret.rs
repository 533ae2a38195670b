//! Secrets, which configuration names and never holds: `{env: NAME}` or `{file: PATH}`.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::Error;

/// A secret's text. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the one call that needs it, never for a log.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Places")]
pub enum SecretReference {
    /// An environment variable.
    Env(String),
    /// A file; a line break at its end is not part of the secret.
    File(PathBuf),
}

/// How a reference is written: a mapping with one key. (An enum in YAML would be a tag.)
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Places {
    env: Option<String>,
    file: Option<PathBuf>,
}

impl TryFrom<Places> for SecretReference {
    type Error = &'static str;

    fn try_from(places: Places) -> Result<Self, Self::Error> {
        match (places.env, places.file) {
            (Some(name), None) => Ok(Self::Env(name)),
            (None, Some(path)) => Ok(Self::File(path)),
            _ => Err("a secret is named by exactly one of {env: NAME} and {file: PATH}"),
        }
    }
}

impl SecretReference {
    /// Reads the secret; `purpose` says in the error what it is for.
    pub fn resolve(&self, purpose: &str) -> Result<Secret, Error> {
        let (found, place) = match self {
            Self::Env(name) => (std::env::var(name).map_err(|error| error.to_string()), format!("environment variable {name}")),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
                (text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()), format!("file {}", path.display()))
            }
        };
        match found {
            Ok(text) if !text.is_empty() => Ok(Secret(text)),
            Ok(_) => {
                Err(Error::misconfigured(purpose, format!("the {place} is empty"), "Put the secret there, or name another place"))
            }
            Err(error) => Err(Error::misconfigured(purpose, format!("the {place}: {error}"), "Set it, or name another place")),
        }
    }
}

/// A connection URL: plain text where it holds no password, or a reference to where the whole of it is kept.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a URL, or where it is kept: {env: NAME} or {file: PATH}")]
pub enum UrlSource {
    Reference(SecretReference),
    Text(String),
}

impl UrlSource {
    pub fn resolve(&self, purpose: &str) -> Result<Secret, Error> {
        match self {
            Self::Reference(reference) => reference.resolve(purpose),
            Self::Text(text) => Ok(Secret::new(text.clone())),
        }
    }
}

impl fmt::Debug for UrlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => reference.fmt(f),
            // It may hold a password although it should not.
            Self::Text(_) => f.write_str("Url(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_are_read_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "hunter2\n").unwrap();
        let secret = SecretReference::File(path).resolve("token").unwrap();
        assert_eq!(secret.reveal(), "hunter2");
        assert!(!format!("{secret:?} {:?}", UrlSource::Text("postgres://u:hunter2@h/d".into())).contains("hunter2"));
        let missing = SecretReference::Env("TRIBUTARY_NO_SUCH_VARIABLE".into()).resolve("token").unwrap_err().to_string();
        assert!(missing.contains("TRIBUTARY_NO_SUCH_VARIABLE"), "{missing}");
    }
}
