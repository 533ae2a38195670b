//! Conversions in the emitted SQL: none where the stored forms agree, at once for constants, by function otherwise.

use rusqlite::types::Value as Stored;
use tds::{DataType, Length, SqlError, Value};

use super::{Translator, Typed};
use crate::types::convert::{Mode, convert};
use crate::types::{self, storage};

/// A constant in SQLite's SQL, in its stored form.
pub(crate) fn literal(value: &Value, t: &DataType) -> String {
    stored_literal(&storage::encode(value, t))
}

pub(crate) fn stored_literal(stored: &Stored) -> String {
    match stored {
        Stored::Null => "NULL".into(),
        Stored::Integer(i64::MIN) => "(-9223372036854775807 - 1)".into(),
        Stored::Integer(i) => i.to_string(),
        Stored::Real(f) => format!("{f:e}"),
        // SQLite's strings end at a NUL.
        Stored::Text(s) if s.contains('\0') => format!("CAST(x'{}' AS TEXT)", hex::encode(s.as_bytes())),
        Stored::Text(s) => format!("'{}'", s.replace('\'', "''")),
        Stored::Blob(b) => format!("x'{}'", hex::encode(b)),
    }
}

/// Whether a value of type `from` is, as it is stored, one of type `to`.
fn same_form(from: &DataType, to: &DataType, mode: Mode) -> bool {
    if from == to {
        return true;
    }
    let width = |t: &DataType| match t {
        DataType::Bit => Some(0),
        DataType::TinyInt => Some(1),
        DataType::SmallInt => Some(2),
        DataType::Int => Some(4),
        DataType::BigInt => Some(8),
        _ => None,
    };
    if let (Some(a), Some(b)) = (width(from), width(to)) {
        return a <= b && *to != DataType::Bit;
    }
    if types::is_string(from) && types::is_string(to) {
        let fits = match (types::length(from), types::length(to)) {
            (_, None) => true,
            (Some(a), Some(b)) => a <= b,
            (None, Some(_)) => false,
        };
        let code_page = types::is_unicode(to) || !types::is_unicode(from);
        let padded =
            matches!(to, DataType::Char(_) | DataType::NChar(_)) != matches!(from, DataType::Char(_) | DataType::NChar(_));
        return fits && code_page && !padded;
    }
    if types::is_binary(from) && types::is_binary(to) && !matches!(to, DataType::Binary(_)) {
        return match (types::length(from), types::length(to)) {
            (_, None) => true,
            (Some(a), Some(b)) => a <= b,
            (None, Some(_)) => false,
        };
    }
    match (from, to) {
        (
            DataType::Decimal { precision: p, scale: s } | DataType::Numeric { precision: p, scale: s },
            DataType::Decimal { precision: q, scale: r } | DataType::Numeric { precision: q, scale: r },
        ) => s == r && p <= q && storage::is_wide(from) == storage::is_wide(to),
        (DataType::Real, DataType::Float) | (DataType::SmallMoney, DataType::Money) => true,
        (DataType::DateTime2 { scale: a }, DataType::DateTime2 { scale: b })
        | (DataType::Time { scale: a }, DataType::Time { scale: b }) => a <= b,
        (DataType::SmallDateTime, DataType::DateTime | DataType::DateTime2 { .. })
        | (DataType::DateTime, DataType::DateTime2 { scale: 7 }) => mode == Mode::Cast || *from == DataType::SmallDateTime,
        _ => false,
    }
}

impl Translator<'_> {
    /// The expression as another type.
    pub(super) fn cast(&mut self, e: Typed, to: &DataType, style: i64, attempt: bool) -> Result<Typed, SqlError> {
        if e.null {
            return Ok(Typed { data_type: to.clone(), ..Typed::null() });
        }
        if let Some(value) = &e.value {
            return match convert(value.clone(), &e.data_type, to, style, Mode::Cast) {
                Ok(value) => Ok(Typed::constant(value, to.clone())),
                // A wrong constant is an error only if the row is looked at.
                Err(_) if attempt => Ok(Typed { data_type: to.clone(), ..Typed::null() }),
                Err(_) => Ok(self.cast_call("cv", &e, to, style)),
            };
        }
        if style == 0 && same_form(&e.data_type, to, Mode::Cast) {
            return Ok(Typed { data_type: to.clone(), identity: false, computed: false, ..e });
        }
        Ok(self.cast_call(if attempt { "tcv" } else { "cv" }, &e, to, style))
    }

    fn cast_call(&mut self, function: &str, e: &Typed, to: &DataType, style: i64) -> Typed {
        let sql = format!("{function}({}, {}, {}, {style})", e.sql, types::code(&e.data_type), types::code(to));
        Typed { nullable: e.nullable || function == "tcv", collation: e.collation, ..Typed::new(sql, to.clone()) }
    }

    /// The expression as the operand of a comparison or operator of type `to`.
    pub(super) fn operand(&mut self, e: Typed, to: &DataType) -> Result<Typed, SqlError> {
        // Strings compare whatever their length and width.
        if types::is_string(&e.data_type) && types::is_string(to) || types::is_binary(&e.data_type) && types::is_binary(to) {
            return Ok(e);
        }
        self.cast(e, to, 0, false)
    }

    /// The expression as it is assigned to a column or variable.
    pub(super) fn assign(&mut self, e: Typed, to: &DataType, table: &str, column: &str) -> Result<Typed, SqlError> {
        if e.null {
            return Ok(Typed { data_type: to.clone(), ..Typed::null() });
        }
        if let Some(value) = &e.value
            && let Ok(value) = convert(value.clone(), &e.data_type, to, 0, Mode::Assign)
        {
            return Ok(Typed::constant(value, to.clone()));
        }
        if same_form(&e.data_type, to, Mode::Assign) {
            return Ok(Typed { data_type: to.clone(), ..e });
        }
        // sql_variant keeps the type that the value came with.
        let sql = format!(
            "acv({}, {}, {}, {}, {})",
            e.sql,
            types::code(&e.data_type),
            types::code(to),
            crate::catalog::text(table),
            crate::catalog::text(column)
        );
        Ok(Typed { nullable: e.nullable, ..Typed::new(sql, to.clone()) })
    }

    /// As a string of its natural length.
    pub(super) fn as_string(&mut self, e: Typed) -> Result<Typed, SqlError> {
        if types::is_string(&e.data_type) {
            let sql = e.padded();
            return Ok(Typed { is_column: e.is_column && sql == e.sql, sql, ..e });
        }
        let to = if types::is_binary(&e.data_type) {
            DataType::VarChar(types::length(&e.data_type).map_or(Length::Max, |n| Length::Limited(n as u16)))
        } else {
            DataType::VarChar(Length::Limited(types::length(&e.data_type).unwrap_or(8000) as u16))
        };
        self.cast(e, &to, 0, false)
    }
}
