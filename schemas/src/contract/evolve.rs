//! The next version of a contract: what the table has become, under what people have written.
//!
//! Only differences that are [`Compatible`](super::Compatibility::Compatible) are taken over, so that a later version always lets in what earlier ones did: rows published under them
//! are still in the streams, and in the joiner's state.
//! - A new column is nullable and not `required`, also where the table says NOT NULL: rows from before do not have it.
//! - A type is replaced by the wider one. Of its keywords, those change that still say what the type says; what somebody has tightened stays.
//! - Everything else stays as it is, word for word.

use serde_json::{Map, Value as Json, json};

use super::compare::{Compatibility, Difference};
use super::{Contract, ContractError, keywords, parse};
use crate::table::TableSchema;

/// Why there is no next version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvolveError {
    #[error(
        "{table}: the table has changed in a way that breaks its contract: {}. Change the contract by hand, together with those who read its rows, or change the table back",
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Breaking { table: crate::TableName, differences: Vec<Difference> },
    #[error(transparent)]
    Contract(#[from] ContractError),
}

impl Contract {
    /// The next version of the contract, which lets in all that the live table can hold; `None` if this one does. Refused where the table has changed in
    /// a way that breaks the contract.
    pub fn evolve(&self, live: &TableSchema) -> Result<Option<Self>, EvolveError> {
        let differences = self.compare(live);
        let (breaking, rest): (Vec<_>, Vec<_>) = differences.into_iter().partition(Difference::breaks);
        if !breaking.is_empty() {
            return Err(EvolveError::Breaking { table: self.table.name.clone(), differences: breaking });
        }
        let taken: Vec<&Difference> =
            rest.iter().filter(|difference| difference.compatibility() == Compatibility::Compatible).collect();
        if taken.is_empty() {
            return Ok(None);
        }
        let mut root = Map::new();
        for (keyword, value) in self.document.as_object().into_iter().flatten().filter(|(keyword, _)| *keyword != "x-version") {
            root.insert(keyword.clone(), value.clone());
            if keyword == "x-table" {
                root.insert("x-version".into(), json!(self.version.saturating_add(1)));
            }
        }
        if let Some(properties) = root.get_mut("properties").and_then(Json::as_object_mut) {
            taken.iter().for_each(|difference| take(difference, live, properties));
        }
        let text = Json::Object(root).to_string();
        Ok(Some(parse::parse(&Self::file_name(&self.table.name), &text)?))
    }
}

fn take(difference: &Difference, live: &TableSchema, properties: &mut Map<String, Json>) {
    match difference {
        Difference::NewColumn { column } => {
            if let Some(found) = live.column(column).map(|index| &live.columns[index]) {
                let schema = keywords::of_type(found.sql_type, true, found.case_insensitive);
                properties.insert(column.clone(), schema.into());
            }
        }
        Difference::ChangedType { column, contract, live } => {
            let Some(schema) = properties.get_mut(column).and_then(Json::as_object_mut) else { return };
            let (old, mut new) = (keywords::of_type(*contract, false, false), keywords::of_type(*live, false, false));
            // The JSON type is the same for both, and whether it lets null be is not the type's to say.
            for (keyword, said) in old.iter().filter(|(keyword, _)| *keyword != "type") {
                if keyword != "x-sql-type" && schema.get(keyword) != Some(said) {
                    continue;
                }
                match new.remove(keyword) {
                    Some(value) => drop(schema.insert(keyword.clone(), value)),
                    None => drop(schema.shift_remove(keyword)),
                }
            }
        }
        Difference::NullPossible { column } => {
            let Some(types) = properties.get_mut(column).and_then(|schema| schema.get_mut("type")) else { return };
            match types {
                Json::Array(types) => types.push(json!("null")),
                one => *one = json!([one.take(), "null"]),
            }
        }
        // These never are compatible.
        Difference::MissingColumn { .. } | Difference::ChangedCase { .. } | Difference::ChangedKey { .. } => {}
    }
}
