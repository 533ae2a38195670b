//! Masks: what is published in the place of a value. NULL stays NULL, and what the source did not record stays unavailable: that a value is missing is no secret here.

use hmac::{Hmac, KeyInit, Mac};
use schemas::TableName;
use schemas::table::{Column, Length, SqlType};
use schemas::value::Value;
use serde::Deserialize;
use sha2::Sha256;

use super::ControlsError;
use source::Password;

/// What stands in the place of a value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "MaskSettings")]
pub enum Mask {
    /// The same text for all.
    Fixed(String),
    /// HMAC-SHA-256 of the value under a key, in hexadecimal: equal values stay equal, and nobody without the key can try values out.
    Hash(Password),
    /// The first characters.
    Truncate(usize),
}

/// As a configuration has it: a mapping with one key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MaskSettings {
    fixed: Option<String>,
    /// The key, or `${NAME}` for one that the environment holds.
    hash: Option<String>,
    truncate: Option<usize>,
}

impl TryFrom<MaskSettings> for Mask {
    type Error = String;

    fn try_from(settings: MaskSettings) -> Result<Self, String> {
        match settings {
            MaskSettings { fixed: Some(text), hash: None, truncate: None } => Ok(Self::Fixed(text)),
            MaskSettings { fixed: None, hash: Some(key), truncate: None } => {
                match key.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
                    None if key.is_empty() => Err("the key of a hash mask is empty: give a long random one".to_owned()),
                    None => Ok(Self::Hash(Password::new(key))),
                    Some(name) => std::env::var(name).map(|key| Self::Hash(Password::new(key))).map_err(|_| {
                        format!("the key of a hash mask refers to ${{{name}}}, which is not in the environment: export {name}=…")
                    }),
                }
            }
            MaskSettings { fixed: None, hash: None, truncate: Some(characters) } => Ok(Self::Truncate(characters)),
            _ => Err("a mask is one of `fixed: text`, `hash: key`, `truncate: characters`".to_owned()),
        }
    }
}

impl Mask {
    const fn name(&self) -> &'static str {
        match self {
            Self::Fixed(_) => "fixed",
            Self::Hash(_) => "hash",
            Self::Truncate(_) => "truncate",
        }
    }

    /// Makes a column's description that of its masked values.
    pub(super) fn apply_to_column(&self, table: &TableName, column: &mut Column, in_key: bool) -> Result<(), ControlsError> {
        let sql_type = column.sql_type;
        let text = matches!(
            sql_type,
            SqlType::Char(_) | SqlType::VarChar(_) | SqlType::NChar(_) | SqlType::NVarChar(_) | SqlType::Text | SqlType::NText
        );
        let limit = match sql_type {
            SqlType::Char(n)
            | SqlType::NChar(n)
            | SqlType::VarChar(Length::Limited(n))
            | SqlType::NVarChar(Length::Limited(n)) => usize::from(n),
            _ => usize::MAX,
        };
        match self {
            Self::Hash(_) => {
                column.sql_type = SqlType::Char(64);
                column.case_insensitive = false;
            }
            _ if in_key => {
                return Err(ControlsError::KeyMasked { table: table.clone(), column: column.name.clone(), mask: self.name() });
            }
            _ if !text => {
                return Err(ControlsError::NotText {
                    table: table.clone(),
                    column: column.name.clone(),
                    sql_type,
                    mask: self.name(),
                });
            }
            Self::Fixed(text) if text.chars().count() > limit => {
                return Err(ControlsError::MaskTooLong { table: table.clone(), column: column.name.clone(), sql_type });
            }
            Self::Fixed(_) | Self::Truncate(_) => {}
        }
        Ok(())
    }

    pub(super) fn apply(&self, value: &mut Value) {
        if matches!(value, Value::Null | Value::Unavailable) {
            return;
        }
        match self {
            Self::Fixed(text) => *value = Value::Text(text.clone()),
            Self::Hash(key) => *value = Value::Text(hash(key, value)),
            Self::Truncate(characters) => {
                if let Value::Text(text) = value
                    && let Some((end, _)) = text.char_indices().nth(*characters)
                {
                    text.truncate(end);
                }
            }
        }
    }
}

/// Of the value as events write it.
fn hash(key: &Password, value: &Value) -> String {
    let mut json = Vec::new();
    value.write_json(&mut json);
    // Keys of any length are taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()) else { return String::new() };
    mac.update(&json);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
