//! Holding a row to its contract.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::{Contract, keywords};
use crate::event::Row;
use crate::table::SqlType;
use crate::value::Value;

/// Characters of an offending value that are shown.
const SHOWN: usize = 80;

/// A row that breaks its contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {value} breaks {rule}")]
pub struct Violation {
    /// The column, or `(row)` where a rule of the whole row is broken.
    pub column: String,
    /// The keyword, and its limit where that is short.
    pub rule: String,
    /// The value as JSON, shortened.
    pub value: String,
}

/// The rules of one column.
#[derive(Debug, Clone)]
pub(super) struct ColumnCheck {
    sql_type: SqlType,
    nullable: bool,
    /// `x-never-null`: the contract forbids NULL though the table may let it be.
    pub(super) never_null: bool,
    /// For integers.
    pub(super) minimum: i64,
    pub(super) maximum: i64,
    /// In characters of the JSON string.
    pub(super) min_length: usize,
    pub(super) max_length: usize,
    /// For exact numbers: the least magnitude that has too many digits, and the digits after the point.
    limit: u128,
    scale: u8,
    /// What the type does not say.
    pub(super) extra: Option<Arc<jsonschema::Validator>>,
}

impl ColumnCheck {
    pub(super) fn of_column(sql_type: SqlType, nullable: bool) -> Self {
        let (minimum, maximum) = keywords::integer_range(sql_type).unwrap_or((i64::MIN, i64::MAX));
        let (whole, scale) = keywords::decimal_digits(sql_type).unwrap_or((38, 0));
        let limit = 10u128.checked_pow((whole + scale).into()).unwrap_or(u128::MAX);
        let max_length = keywords::text_length(sql_type)
            .or_else(|| keywords::binary_length(sql_type).map(keywords::base64_length))
            .unwrap_or(usize::MAX);
        Self { sql_type, nullable, never_null: false, minimum, maximum, min_length: 0, max_length, limit, scale, extra: None }
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        match value {
            // What CDC did not record cannot be held to anything.
            Value::Unavailable => return Ok(()),
            Value::Null => return if self.nullable { Ok(()) } else { Err("type: null is not allowed".into()) },
            value => self.check_type(value)?,
        }
        let Some(extra) = &self.extra else { return Ok(()) };
        extra.validate(&value.to_json()).map_err(|error| rule(&error))
    }

    fn check_type(&self, value: &Value) -> Result<(), String> {
        let fits = match (self.sql_type, value) {
            (SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt, Value::Int(number)) => {
                return self.check_integer(*number);
            }
            (
                SqlType::Char(_)
                | SqlType::VarChar(_)
                | SqlType::NChar(_)
                | SqlType::NVarChar(_)
                | SqlType::Text
                | SqlType::NText,
                Value::Text(text),
            )
            | (
                SqlType::Xml | SqlType::Json | SqlType::Vector(_) | SqlType::HierarchyId | SqlType::Geometry | SqlType::Geography,
                Value::Text(text),
            ) => return self.check_length(text.len(), || text.chars().count()),
            (SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::Image | SqlType::RowVersion, Value::Bytes(bytes)) => {
                return self.check_length(keywords::base64_length(bytes.len()), || keywords::base64_length(bytes.len()));
            }
            (SqlType::Decimal { .. } | SqlType::Money | SqlType::SmallMoney, Value::Decimal { mantissa, scale }) => {
                *scale == self.scale && mantissa.unsigned_abs() < self.limit
            }
            (SqlType::Bit, Value::Bool(_)) | (SqlType::Real, Value::Real(_)) | (SqlType::Float, Value::Float(_)) => true,
            (SqlType::UniqueIdentifier, Value::Uuid(_)) | (SqlType::Date, Value::Date(_)) | (SqlType::SqlVariant, _) => true,
            (SqlType::Time { scale: declared }, Value::Time { scale, .. })
            | (SqlType::DateTime2 { scale: declared }, Value::DateTime { scale, .. })
            | (SqlType::DateTimeOffset { scale: declared }, Value::DateTimeOffset { scale, .. }) => declared == *scale,
            (SqlType::DateTime, Value::DateTime { scale, .. }) => *scale == 3,
            (SqlType::SmallDateTime, Value::DateTime { scale, .. }) => *scale == 0,
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("x-sql-type {}", self.sql_type)) }
    }

    fn check_integer(&self, number: i64) -> Result<(), String> {
        if number < self.minimum {
            Err(format!("minimum {}", self.minimum))
        } else if number > self.maximum {
            Err(format!("maximum {}", self.maximum))
        } else {
            Ok(())
        }
    }

    /// `bytes` is never less than the number of characters, which is counted only where it may matter.
    fn check_length(&self, bytes: usize, characters: impl Fn() -> usize) -> Result<(), String> {
        if bytes > self.max_length && characters() > self.max_length {
            Err(format!("maxLength {}", self.max_length))
        } else if self.min_length > 0 && characters() < self.min_length {
            Err(format!("minLength {}", self.min_length))
        } else {
            Ok(())
        }
    }
}

/// The rule that a compiled keyword stands for: where it stands in the schema.
fn rule(error: &jsonschema::ValidationError<'_>) -> String {
    let place = error.schema_path().as_str();
    if place.is_empty() { error.kind().keyword().to_owned() } else { shortened(place.trim_start_matches('/')) }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn shown(value: &Value) -> String {
    let mut json = Vec::new();
    value.write_json(&mut json);
    shortened(&String::from_utf8_lossy(&json))
}

impl Contract {
    /// Whether a row keeps the contract; if not, the first rule that it breaks.
    pub fn check(&self, row: &Row) -> Result<(), Violation> {
        if row.len() != self.columns.len() {
            let rule = format!("properties: {} columns expected", self.columns.len());
            return Err(Violation { column: "(row)".into(), rule, value: format!("a row of {} columns", row.len()) });
        }
        for (index, (check, value)) in self.columns.iter().zip(row).enumerate() {
            if let Err(rule) = check.check(value) {
                return Err(Violation { column: self.table.columns[index].name.clone(), rule, value: shown(value) });
            }
        }
        match &self.row {
            None => Ok(()),
            Some(validator) => self.check_row(validator, row),
        }
    }

    fn check_row(&self, validator: &jsonschema::Validator, row: &Row) -> Result<(), Violation> {
        // A value that was not recorded is left out rather than shown as its placeholder, which would be held to rules meant for values.
        let members: Map<String, Json> = (self.table.columns.iter().zip(row))
            .filter(|(_, value)| **value != Value::Unavailable)
            .map(|(column, value)| (column.name.clone(), value.to_json()))
            .collect();
        let members = Json::Object(members);
        let Err(error) = validator.validate(&members) else { return Ok(()) };
        let pointer = error.instance_path().as_str().trim_start_matches('/').replace("~1", "/").replace("~0", "~");
        match self.table.column(&pointer) {
            Some(index) => Err(Violation { column: pointer, rule: rule(&error), value: shown(&row[index]) }),
            None => Err(Violation { column: "(row)".into(), rule: rule(&error), value: shortened(&members.to_string()) }),
        }
    }
}
