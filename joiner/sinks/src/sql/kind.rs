//! Types of promoted columns: what the document's schema says of a member, and what each database calls it.
//!
//! The schema of a column of the source names its type there (`x-sql-type`), so that `decimal(10,2)` becomes `numeric(10,2)`. What is computed has a format alone, and gets the widest type of its kind.
//!
//! | source | PostgreSQL | MySQL | SQLite |
//! |---|---|---|---|
//! | bit | boolean | tinyint(1) | INTEGER |
//! | tinyint, smallint | smallint | smallint | INTEGER |
//! | int, bigint | integer, bigint | int, bigint | INTEGER |
//! | real, float | real, double precision | double | REAL |
//! | decimal, money | numeric | decimal | REAL: SQLite has no decimals, and compares texts as texts |
//! | uniqueidentifier | uuid | char(36) | TEXT |
//! | date, time | date, time | date, time(6) | TEXT |
//! | datetime, datetime2 | timestamp | datetime(6) | TEXT |
//! | datetimeoffset | timestamptz | datetime(6), in UTC | TEXT, in UTC |
//! | binary | bytea | varbinary, longblob | BLOB |
//! | text | text | varchar, text, longtext | TEXT |
//! | objects, lists, sql_variant | jsonb | json | TEXT |
//!
//! MySQL's `timestamp` is used nowhere, because it ends in 2038 and begins in 1970.

use schemas::table::{Length, SqlType};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Mysql,
    Sqlite,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Small,
    Int,
    Big,
    Real,
    Double,
    /// Precision and scale, where they are known.
    Decimal(Option<(u8, u8)>),
    Uuid,
    Date,
    Time,
    /// Without a zone.
    Timestamp,
    Instant,
    /// At most so many bytes, where that is known.
    Bytes(Option<u16>),
    /// At most so many characters, where that is known.
    Text(Option<u16>),
    Json,
}

/// Characters that a `varchar` of MySQL has at most here: a row has room for few longer ones.
const VARCHAR_CHARS: u16 = 255;
/// Characters that fit into MySQL's `text` for certain.
const TEXT_CHARS: u16 = 16_383;
/// Digits of a decimal whose precision is not known, in MySQL: as many as there can be.
pub(crate) const MYSQL_DECIMAL: (u8, u8) = (65, 30);

impl Kind {
    /// The kind of the values, other than null, that a member's schema allows.
    pub(crate) fn of(schema: &Value) -> Self {
        if let Some(choices) = schema["anyOf"].as_array() {
            return choices.iter().find(|choice| choice["type"] != "null").map_or(Self::Json, Self::of);
        }
        if let Some(declared) = schema["x-sql-type"].as_str().and_then(|text| text.parse::<SqlType>().ok()) {
            return Self::of_source(declared);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            kind => kind.as_str(),
        };
        match (kind, schema["format"].as_str()) {
            (Some("boolean"), _) => Self::Bool,
            (Some("integer"), _) => Self::Big,
            (Some("number"), _) => Self::Double,
            (Some("string"), Some("decimal")) => Self::Decimal(None),
            (Some("string"), Some("uuid")) => Self::Uuid,
            (Some("string"), Some("date")) => Self::Date,
            (Some("string"), Some("local-time")) => Self::Time,
            (Some("string"), Some("local-date-time")) => Self::Timestamp,
            (Some("string"), Some("date-time")) => Self::Instant,
            (Some("string"), Some("base64")) => Self::Bytes(None),
            (Some("string"), _) => Self::Text(None),
            _ => Self::Json,
        }
    }

    fn of_source(declared: SqlType) -> Self {
        let limit = |length| match length {
            Length::Limited(limit) => Some(limit),
            Length::Max => None,
        };
        match declared {
            SqlType::Bit => Self::Bool,
            SqlType::TinyInt | SqlType::SmallInt => Self::Small,
            SqlType::Int => Self::Int,
            SqlType::BigInt => Self::Big,
            SqlType::Real => Self::Real,
            SqlType::Float => Self::Double,
            SqlType::Decimal { precision, scale } => Self::Decimal(Some((precision, scale))),
            SqlType::Money => Self::Decimal(Some((19, 4))),
            SqlType::SmallMoney => Self::Decimal(Some((10, 4))),
            SqlType::UniqueIdentifier => Self::Uuid,
            SqlType::Date => Self::Date,
            SqlType::Time { .. } => Self::Time,
            SqlType::DateTime | SqlType::SmallDateTime | SqlType::DateTime2 { .. } => Self::Timestamp,
            SqlType::DateTimeOffset { .. } => Self::Instant,
            SqlType::Binary(limit) => Self::Bytes(Some(limit)),
            SqlType::VarBinary(length) => Self::Bytes(limit(length)),
            SqlType::RowVersion => Self::Bytes(Some(8)),
            SqlType::Image => Self::Bytes(None),
            SqlType::Char(limit) | SqlType::NChar(limit) => Self::Text(Some(limit)),
            SqlType::VarChar(length) | SqlType::NVarChar(length) => Self::Text(limit(length)),
            SqlType::SqlVariant => Self::Json,
            _ => Self::Text(None),
        }
    }

    /// The column's type, as the database's catalog names it.
    pub(crate) fn type_name(self, dialect: Dialect) -> String {
        match dialect {
            Dialect::Postgres => self.postgres(),
            Dialect::Mysql => self.mysql(),
            Dialect::Sqlite => self.sqlite().to_owned(),
        }
    }

    fn postgres(self) -> String {
        match self {
            Self::Decimal(Some((precision, scale))) => format!("numeric({precision},{scale})"),
            _ => self.postgres_base().to_owned(),
        }
    }

    /// PostgreSQL's type without precision.
    pub(crate) fn postgres_base(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Small => "smallint",
            Self::Int => "integer",
            Self::Big => "bigint",
            Self::Real => "real",
            Self::Double => "double precision",
            Self::Decimal(_) => "numeric",
            Self::Uuid => "uuid",
            Self::Date => "date",
            Self::Time => "time without time zone",
            Self::Timestamp => "timestamp without time zone",
            Self::Instant => "timestamp with time zone",
            Self::Bytes(_) => "bytea",
            Self::Text(_) => "text",
            Self::Json => "jsonb",
        }
    }

    fn mysql(self) -> String {
        match self {
            Self::Bool => "tinyint(1)".to_owned(),
            Self::Small => "smallint".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Big => "bigint".to_owned(),
            Self::Real | Self::Double => "double".to_owned(),
            Self::Decimal(digits) => {
                let (precision, scale) = digits.unwrap_or(MYSQL_DECIMAL);
                format!("decimal({precision},{scale})")
            }
            Self::Uuid => "char(36)".to_owned(),
            Self::Date => "date".to_owned(),
            Self::Time => "time(6)".to_owned(),
            Self::Timestamp | Self::Instant => "datetime(6)".to_owned(),
            Self::Bytes(Some(limit @ ..=VARCHAR_CHARS)) => format!("varbinary({limit})"),
            Self::Bytes(_) => "longblob".to_owned(),
            Self::Text(Some(limit @ ..=VARCHAR_CHARS)) => format!("varchar({limit})"),
            Self::Text(Some(..=TEXT_CHARS)) => "text".to_owned(),
            Self::Text(_) => "longtext".to_owned(),
            Self::Json => "json".to_owned(),
        }
    }

    fn sqlite(self) -> &'static str {
        match self {
            Self::Bool | Self::Small | Self::Int | Self::Big => "INTEGER",
            Self::Real | Self::Double | Self::Decimal(_) => "REAL",
            Self::Bytes(_) => "BLOB",
            _ => "TEXT",
        }
    }

    /// Bytes that an index of MySQL has room for in a column of this kind; `None`: it is indexed by its beginning.
    pub(crate) fn mysql_index_bytes(self) -> Option<usize> {
        match self {
            Self::Text(Some(limit @ ..=VARCHAR_CHARS)) => Some(usize::from(limit) * 4),
            Self::Bytes(Some(limit @ ..=VARCHAR_CHARS)) => Some(usize::from(limit)),
            Self::Text(_) | Self::Bytes(_) | Self::Json => None,
            Self::Uuid => Some(36),
            Self::Decimal(_) => Some(32),
            _ => Some(8),
        }
    }
}

/// Whether a column of one type takes every value of another as it is, so that it can be changed where it stands.
pub(crate) fn widens(from: &str, to: &str) -> bool {
    let parts = |text: &str| -> (String, Vec<u32>) {
        let (name, rest) = text.split_once('(').unwrap_or((text, ""));
        let numbers = rest.trim_end_matches(')').split(',').filter_map(|number| number.trim().parse().ok());
        (name.to_owned(), numbers.collect())
    };
    let ((from, old), (to, new)) = (parts(from), parts(to));
    let rank = |name: &str| -> Option<(u8, u8)> {
        Some(match name {
            "smallint" => (0, 0),
            "int" | "integer" => (0, 1),
            "bigint" => (0, 2),
            "varchar" => (1, 0),
            "text" => (1, 1),
            "longtext" => (1, 2),
            "varbinary" => (2, 0),
            "longblob" => (2, 1),
            "real" => (3, 0),
            "double precision" => (3, 1),
            _ => return None,
        })
    };
    if from == to {
        return match (old.as_slice(), new.as_slice()) {
            ([precision, scale], [wider, same]) => scale == same && precision <= wider,
            ([length], [longer]) => length <= longer,
            // PostgreSQL's numeric of any precision.
            ([_, _], []) => from == "numeric",
            _ => false,
        };
    }
    matches!((rank(&from), rank(&to)), (Some((family, a)), Some((same, b))) if family == same && a < b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_have_the_types_of_their_columns() {
        for (schema, postgres, mysql, sqlite) in [
            (
                json!({"type": "string", "format": "decimal", "x-sql-type": "decimal(10,2)"}),
                "numeric(10,2)",
                "decimal(10,2)",
                "REAL",
            ),
            (json!({"type": ["string", "null"], "format": "decimal"}), "numeric", "decimal(65,30)", "REAL"),
            (json!({"type": "string", "x-sql-type": "nvarchar(50)"}), "text", "varchar(50)", "TEXT"),
            (json!({"type": "string", "x-sql-type": "nvarchar(4000)"}), "text", "text", "TEXT"),
            (json!({"type": "string"}), "text", "longtext", "TEXT"),
            (json!({"type": "integer", "x-sql-type": "tinyint"}), "smallint", "smallint", "INTEGER"),
            (json!({"type": "integer"}), "bigint", "bigint", "INTEGER"),
            (json!({"type": "string", "format": "date-time"}), "timestamp with time zone", "datetime(6)", "TEXT"),
            (json!({"anyOf": [{"type": "null"}, {"type": "object"}]}), "jsonb", "json", "TEXT"),
            (json!({}), "jsonb", "json", "TEXT"),
        ] {
            let kind = Kind::of(&schema);
            let names = [Dialect::Postgres, Dialect::Mysql, Dialect::Sqlite].map(|dialect| kind.type_name(dialect));
            assert_eq!(names, [postgres, mysql, sqlite], "{schema}");
        }
    }

    #[test]
    fn a_wider_type_is_told_from_another() {
        for (from, to) in [
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric"),
            ("integer", "bigint"),
            ("int", "bigint"),
            ("varchar(10)", "varchar(20)"),
            ("varchar(10)", "longtext"),
        ] {
            assert!(widens(from, to) && !widens(to, from), "{from} to {to}");
        }
        for (from, to) in [("numeric(10,2)", "numeric(12,3)"), ("text", "bigint"), ("date", "text"), ("char(36)", "char(36)a")] {
            assert!(!widens(from, to), "{from} to {to}");
        }
    }
}
