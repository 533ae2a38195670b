//! What is known of values before there are any: so that a mistake in an expression is found when it is compiled, and not by the first row.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::moment::Kind;

/// The type of a value. Any value may be null besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Nothing is known: found out when there is a value.
    Any,
    Null,
    Bool,
    /// Whole numbers of 64 bits.
    Int,
    /// Exact, up to 38 digits; a string in documents.
    Decimal,
    Double,
    Text,
    /// Base64 in documents.
    Bytes,
    /// A date, a time of day, a local date and time, an instant: ISO 8601 in documents.
    Moment(Kind),
    List(Arc<Type>),
    Object(Arc<BTreeMap<String, Type>>),
}

impl Type {
    pub fn list(of: Type) -> Self {
        Self::List(Arc::new(of))
    }

    pub(crate) const fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Decimal | Self::Double)
    }

    /// Whether nothing more is known than that it may be this, or it is this.
    pub(crate) fn may_be(&self, wanted: &Type) -> bool {
        matches!(self, Self::Any | Self::Null) || self == wanted
    }

    /// What two branches have in common.
    pub(crate) fn joined(self, other: Type) -> Type {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Null, one) | (one, Self::Null) => one,
            (Self::Int, Self::Decimal) | (Self::Decimal, Self::Int) => Self::Decimal,
            (Self::List(a), Self::List(b)) => Self::list((*a).clone().joined((*b).clone())),
            _ => Self::Any,
        }
    }

    /// The type that a JSON Schema describes, as the schemas of entities' documents do.
    pub fn of_json_schema(schema: &Json) -> Self {
        if let Some(any) = schema.get("anyOf").and_then(Json::as_array) {
            return any.iter().map(Self::of_json_schema).reduce(Self::joined).unwrap_or(Self::Any);
        }
        let kind = match schema.get("type") {
            Some(Json::String(kind)) => kind.as_str(),
            // `[kind, "null"]`
            Some(Json::Array(kinds)) => {
                let mut kinds = kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null");
                match (kinds.next(), kinds.next()) {
                    (Some(kind), None) => kind,
                    _ => return Self::Any,
                }
            }
            _ => return Self::Any,
        };
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        match (kind, format) {
            ("null", _) => Self::Null,
            ("boolean", _) => Self::Bool,
            ("integer", _) => Self::Int,
            ("number", _) => Self::Double,
            ("string", "decimal") => Self::Decimal,
            ("string", "base64") => Self::Bytes,
            ("string", "date") => Self::Moment(Kind::Date),
            ("string", "local-time") => Self::Moment(Kind::Time),
            ("string", "local-date-time") => Self::Moment(Kind::DateTime),
            ("string", "date-time") => Self::Moment(Kind::Instant),
            ("string", _) => Self::Text,
            ("array", _) => Self::list(schema.get("items").map_or(Self::Any, Self::of_json_schema)),
            ("object", _) => match schema.get("properties").and_then(Json::as_object) {
                Some(members) => {
                    let members = members.iter().map(|(name, schema)| (name.clone(), Self::of_json_schema(schema)));
                    Self::Object(Arc::new(members.collect()))
                }
                None => Self::Any,
            },
            _ => Self::Any,
        }
    }

    /// The inverse: the JSON Schema of a value of this type, or null.
    pub fn json_schema(&self) -> Json {
        let format = |format: &str| json!({"type": ["string", "null"], "format": format});
        match self {
            Self::Any => json!({}),
            Self::Null => json!({"type": "null"}),
            Self::Bool => json!({"type": ["boolean", "null"]}),
            Self::Int => json!({"type": ["integer", "null"]}),
            Self::Decimal => format("decimal"),
            Self::Double => json!({"type": ["number", "null"]}),
            Self::Text => json!({"type": ["string", "null"]}),
            Self::Bytes => format("base64"),
            Self::Moment(Kind::Date) => format("date"),
            Self::Moment(Kind::Time) => format("local-time"),
            Self::Moment(Kind::DateTime) => format("local-date-time"),
            Self::Moment(Kind::Instant) => format("date-time"),
            Self::List(of) => json!({"type": ["array", "null"], "items": of.json_schema()}),
            Self::Object(members) => {
                let members: serde_json::Map<String, Json> =
                    members.iter().map(|(name, of)| (name.clone(), of.json_schema())).collect();
                json!({"type": ["object", "null"], "properties": members})
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Decimal => f.write_str("decimal"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Moment(Kind::Date) => f.write_str("date"),
            Self::Moment(Kind::Time) => f.write_str("time"),
            Self::Moment(Kind::DateTime) => f.write_str("datetime"),
            Self::Moment(Kind::Instant) => f.write_str("timestamp"),
            Self::List(of) => write!(f, "list of {of}"),
            Self::Object(_) => f.write_str("object"),
        }
    }
}

/// The names that an expression may use, and what they stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    names: BTreeMap<String, Type>,
}

impl Scope {
    pub fn new(names: impl IntoIterator<Item = (String, Type)>) -> Self {
        Self { names: names.into_iter().collect() }
    }

    /// The members of the objects that a JSON Schema describes, such as the document schema of an entity.
    pub fn of_json_schema(schema: &Json) -> Self {
        match Type::of_json_schema(schema) {
            Type::Object(members) => Self { names: (*members).clone() },
            _ => Self::default(),
        }
    }

    /// Adds a name; one that is there stays what it is.
    pub fn add(&mut self, name: impl Into<String>, of: Type) {
        self.names.entry(name.into()).or_insert(of);
    }

    pub fn get(&self, name: &str) -> Option<&Type> {
        self.names.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
}
