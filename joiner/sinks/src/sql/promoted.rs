//! Filters over members that are columns of their own, so that an index over these answers them.
//!
//! A filter compares what the document says, in the same way whether or not there is a column. A column only narrows: beside the filter's own condition stands one on the column that follows from it ([`Known::narrowed`]). So no row is found that the
//! document does not put there; and none is missed, as long as every row's columns are filled. Whether they are, and whether they are those that were known when the query was made, the database says in the answer itself, as of the same instant
//! ([`Known::standing`]): else the query is made again without them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::ddl::Recorded;
use super::kind::Dialect;
use super::shape::Tables;
use super::{is_decimal, moment, quote_in};
use crate::{Error, Filter, Operator, Query, Reading, StoredEntity};

/// What is known of the columns of entities, by the entity's name.
#[derive(Default)]
pub(crate) struct Promoted(Mutex<HashMap<String, Arc<Known>>>);

impl Promoted {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) type Page = Reading<Vec<StoredEntity>>;

/// A reader of pages.
#[async_trait]
pub(crate) trait Pages: Sync {
    const DIALECT: Dialect;
    /// How errors name the database, what is configured of its tables, and what is known of their columns.
    fn about(&self) -> (&str, &Tables, &Promoted);
    /// The latest shape on record of an entity's table, with its version.
    async fn recorded(&self, entity: &str) -> Result<Option<(i32, String)>, Error>;
    /// A page. Nothing where it was looked for by columns that are not to be relied on.
    async fn page_by(&self, query: &Query, known: &Known) -> Result<Option<Page>, Error>;

    /// Nothing is asked of the columns where none are configured.
    async fn known(&self, entity: &str) -> Result<Arc<Known>, Error> {
        let (target, tables, promoted) = self.about();
        if tables.get(entity).is_none_or(|table| table.columns.is_empty()) {
            return Ok(Arc::default());
        }
        let known = promoted.lock().get(entity).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let known = match self.recorded(entity).await? {
            Some((version, shape)) => Known::of(Self::DIALECT, entity, version, &super::recorded(target, &shape)?),
            None => Known::default(),
        };
        let known = Arc::new(known);
        promoted.lock().insert(entity.to_owned(), known.clone());
        Ok(known)
    }

    async fn page(&self, query: &Query) -> Result<Page, Error> {
        let known = self.known(&query.entity).await?;
        if let Ok(Some(page)) = self.page_by(query, &known).await {
            return Ok(page);
        }
        // The columns are others by now, or are being filled; what else is wrong is wrong without them too.
        let (target, _, promoted) = self.about();
        promoted.lock().remove(&query.entity);
        let of_columns = || Error::unexpected(target, "a query without columns was answered as one with columns");
        self.page_by(query, &Known::default()).await?.ok_or_else(of_columns)
    }
}

/// How a column compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Text,
    Whole,
    /// SQLite has one type for both.
    WholeOrBoolean,
    Decimal,
    Boolean,
    Date,
    Timestamp,
    Uuid,
}

impl Class {
    /// By the name of its type; none for those that compare otherwise than the document does.
    fn of(dialect: Dialect, type_name: &str) -> Option<Self> {
        let name = type_name.split('(').next().unwrap_or_default();
        match (dialect, name) {
            (Dialect::Postgres, "text") | (Dialect::Mysql, "varchar" | "char") | (Dialect::Sqlite, "TEXT") => Some(Self::Text),
            (_, "smallint" | "int" | "integer" | "bigint") => Some(Self::Whole),
            (_, "INTEGER") => Some(Self::WholeOrBoolean),
            (_, "numeric" | "decimal" | "REAL") => Some(Self::Decimal),
            (Dialect::Postgres, "boolean") | (Dialect::Mysql, "tinyint") => Some(Self::Boolean),
            (_, "date") => Some(Self::Date),
            (Dialect::Postgres, "timestamp" | "timestamp without time zone") => Some(Self::Timestamp),
            (Dialect::Postgres, "uuid") => Some(Self::Uuid),
            _ => None,
        }
    }

    /// The value as it is given, and the operator, of a condition that follows from one on the member; none where there is none.
    fn follows(self, filter: &Filter) -> Option<(String, Operator)> {
        let (value, operator) = (filter.value.as_str(), filter.operator);
        // What the column holds may be shortened: a range then takes its end in.
        let wide = match operator {
            Operator::Neq => return None,
            Operator::Gt => Operator::Gte,
            Operator::Lt => Operator::Lte,
            same => same,
        };
        let equal = operator == Operator::Eq;
        let as_it_is = |fits: bool, operator| fits.then(|| (value.to_owned(), operator));
        match self {
            // Digits are compared as numbers, moments with a zone are kept otherwise than they are written, and texts have other orders.
            Self::Text => as_it_is(equal && !is_decimal(value) && moment::instant(value).is_none(), operator),
            Self::Whole => as_it_is(is_decimal(value) && value.parse::<i64>().is_ok(), operator),
            // A boolean is compared as the text that it is in the document.
            Self::WholeOrBoolean => as_it_is(equal && is_decimal(value) && value.parse::<i64>().is_ok(), operator),
            Self::Decimal => as_it_is(is_decimal(value), wide),
            Self::Boolean => as_it_is(equal && matches!(value, "true" | "false"), operator),
            Self::Date => as_it_is(moment::days(value).is_some(), operator),
            Self::Timestamp if !equal && moment::days(value).is_some() => Some((format!("{value}T00:00:00"), wide)),
            Self::Timestamp => as_it_is(moment::timestamp(value).is_some(), wide),
            Self::Uuid => as_it_is(equal && super::cells::uuid(value).is_some(), operator),
        }
    }

    /// The type that the parameter is cast to.
    fn cast(self, dialect: Dialect, parameter: &str) -> String {
        let kind = match (dialect, self) {
            (Dialect::Mysql, Self::Text) => return parameter.to_owned(),
            (Dialect::Mysql, Self::Boolean) => return format!("({parameter} = 'true')"),
            (Dialect::Postgres, Self::Text) => "text",
            (Dialect::Sqlite, Self::Text) => "TEXT",
            (Dialect::Mysql, Self::Whole) => "SIGNED",
            (_, Self::Whole) => "bigint",
            (_, Self::WholeOrBoolean) => "INTEGER",
            (Dialect::Mysql, Self::Decimal) => "DECIMAL(65,30)",
            (Dialect::Sqlite, Self::Decimal) => "REAL",
            (_, Self::Decimal) => "numeric",
            (_, Self::Boolean) => "boolean",
            (_, Self::Date) => "date",
            (_, Self::Timestamp) => "timestamp",
            (_, Self::Uuid) => "uuid",
        };
        // PostgreSQL would take the parameter itself for one of that type.
        let text = if dialect == Dialect::Postgres { "::text" } else { "" };
        format!("CAST({parameter}{text} AS {kind})")
    }
}

/// The columns of an entity's table.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Of the shape that they are of.
    pub(crate) version: i32,
    entity: String,
    /// By the path of the member: the quoted name, and how it compares.
    columns: HashMap<String, (String, Class)>,
}

impl Known {
    fn of(dialect: Dialect, entity: &str, version: i32, record: &Recorded) -> Self {
        let columns = record.promoted().filter_map(|(name, path, type_name)| {
            Some((path.to_owned(), (quote_in(dialect, name), Class::of(dialect, type_name)?)))
        });
        Self { version, entity: entity.to_owned(), columns: columns.collect() }
    }

    /// A condition on a column that follows from a filter's, where there is one: `parameter` takes its value and answers how the statement names it.
    pub(crate) fn narrowed(&self, dialect: Dialect, filter: &Filter, parameter: impl FnOnce(String) -> String) -> Option<String> {
        let (name, class) = self.columns.get(&filter.path.join("."))?;
        let (value, operator) = class.follows(filter)?;
        let given = class.cast(dialect, &parameter(value));
        Some(format!("{name} {} {given}", super::operator_text(operator)))
    }

    /// Asks for the version of the shape that every row of the table has been written in; null where some have not.
    pub(crate) fn standing(&self) -> String {
        // The name is one that the configuration has and that stands for a table.
        format!(
            "(SELECT CASE WHEN min(CASE WHEN filled THEN 1 ELSE 0 END) = 1 THEN max(version) END FROM _tributary_shape WHERE entity = '{}')",
            self.entity.replace('\'', "''")
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn follows(class: Class, operator: Operator, value: &str) -> Option<(String, Operator)> {
        class.follows(&Filter { path: vec!["x".to_owned()], operator, value: value.to_owned() })
    }

    #[test]
    fn a_condition_on_a_column_follows_from_that_on_the_member_or_there_is_none() {
        use Operator::{Eq, Gt, Gte, Lt, Lte, Neq};
        let same = |value: &str, operator| Some((value.to_owned(), operator));
        for (class, operator, value, expected) in [
            (Class::Text, Eq, "OPEN", same("OPEN", Eq)),
            (Class::Text, Gt, "OPEN", None),
            // "1234.0" is equal to it.
            (Class::Text, Eq, "1234", None),
            (Class::Text, Eq, "2024-05-01T09:30:00+02:00", None),
            (Class::Whole, Lt, "-7", same("-7", Lt)),
            (Class::Whole, Eq, "7.0", None),
            (Class::WholeOrBoolean, Gt, "1", None),
            (Class::WholeOrBoolean, Eq, "1", same("1", Eq)),
            (Class::Whole, Eq, "9223372036854775808", None),
            (Class::Decimal, Gt, "12.5", same("12.5", Gte)),
            (Class::Decimal, Eq, "12,5", None),
            (Class::Boolean, Eq, "true", same("true", Eq)),
            (Class::Boolean, Eq, "1", None),
            (Class::Date, Lt, "2024-05-01", same("2024-05-01", Lt)),
            (Class::Date, Lt, "2024-05", None),
            (Class::Timestamp, Lt, "2024-05-01", same("2024-05-01T00:00:00", Lte)),
            (Class::Timestamp, Eq, "2024-05-01", None),
            (Class::Timestamp, Gte, "2024-05-01T10:00:00.5", same("2024-05-01T10:00:00.5", Gte)),
            (Class::Uuid, Eq, "x", None),
            (Class::Text, Neq, "OPEN", None),
        ] {
            assert_eq!(follows(class, operator, value), expected, "{class:?} {operator:?} {value}");
        }
    }
}
