//! Which entities a sink gets, which of them, and which part of them.
//!
//! ```yaml
//! entities:                          # default: all, whole
//!   customer: {}
//!   order:
//!     where: "status == 'OPEN' && total > 100.0"
//!     otherwise: delete              # or skip
//!     select: [id, status, {city: customer.city}]
//! ```
//! Expressions are CEL over the document's members ([`expressions`]), compiled against the document's schema when the sink is prepared.
//!
//! # Entities that come and go
//! An entity that does not satisfy `where` is, for the sink, deleted at that version: so a target that keeps entities holds just those that satisfy it, and INV-5 holds for what enters and leaves. Whether the sink had it
//! is not known here, so a topic is told of deletions of what it was never told of; with `otherwise: skip` it is told nothing, and a target that keeps entities keeps the last one that did satisfy it, until the sink is
//! loaded anew. While it is loaded, what does not satisfy it is left out, and the end of the load removes what is there of it.
//!
//! A condition or a projection that fails for a document (a division by zero) is the change's fault: it becomes a dead letter.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use expressions::{Expression, Scope};
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Error, Rejected};

/// What a sink gets of one kind of entity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Only entities that satisfy this. Default: all.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
    /// What becomes of the others. Default: `delete`.
    #[serde(default)]
    pub otherwise: Otherwise,
    /// The members of the document, by name, or by name and what they are computed from. Default: the document as it is.
    #[serde(default)]
    pub select: Option<Vec<Selected>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    #[default]
    Delete,
    Skip,
}

/// A member of the document as it is, or one that is computed: `{name: expression}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a member of the document, or {name: expression}")]
pub enum Selected {
    Member(String),
    Computed(BTreeMap<String, String>),
}

/// By the entity's name; an entity without one is not sent at all.
pub type Routes = BTreeMap<String, Option<Route>>;

enum Member {
    AsItIs,
    Computed(Expression),
}

struct Compiled {
    condition: Option<Expression>,
    otherwise: Otherwise,
    select: Option<Vec<(String, Member)>>,
}

/// Routes compiled against the entities that there are.
#[derive(Default)]
pub(crate) struct Router(HashMap<Arc<str>, Compiled>);

/// What a sink gets of a change.
enum Routed {
    AsItIs,
    Instead(Option<Arc<str>>),
    Nothing,
}

impl Router {
    /// Answers the router, and the entities as the sink sees them.
    pub(crate) fn compile(purpose: &str, routes: &Routes, entities: &[EntityInfo]) -> Result<(Self, Vec<EntityInfo>), Error> {
        let (mut compiled, mut seen) = (HashMap::new(), Vec::new());
        for (name, route) in routes {
            let wrong = |message: String| {
                Error::misconfigured(purpose, format!("entities.{name}: {message}"), "Correct the sink's `entities`")
            };
            let Some(entity) = entities.iter().find(|entity| *entity.name == **name) else {
                let known: Vec<&str> = entities.iter().map(|entity| &*entity.name).collect();
                return Err(wrong(format!("there is no such entity; there are {}", known.join(", "))));
            };
            let route = route.clone().unwrap_or_default();
            let scope = Scope::of_json_schema(&entity.document_schema);
            let condition = route.condition.as_deref().map(|text| Expression::predicate(text, &scope)).transpose();
            let condition = condition.map_err(|error| wrong(error.to_string()))?;
            let select = route
                .select
                .as_deref()
                .map(|select| compile_select(select, &scope, &entity.document_schema))
                .transpose()
                .map_err(wrong)?;
            let document_schema = match &select {
                Some(members) => selected_schema(members, &entity.document_schema),
                None => entity.document_schema.clone(),
            };
            seen.push(EntityInfo { document_schema, ..entity.clone() });
            compiled.insert(entity.name.clone(), Compiled { condition, otherwise: route.otherwise, select });
        }
        Ok((Self(compiled), seen))
    }

    pub(crate) fn sends(&self, entity: &str) -> bool {
        self.0.contains_key(entity)
    }

    /// What the sink gets of these changes, and those of which that cannot be told.
    pub(crate) fn route(&self, changes: &[EntityChange], loading: bool) -> (Vec<EntityChange>, Vec<Rejected>) {
        let (mut routed, mut rejected) = (Vec::with_capacity(changes.len()), Vec::new());
        for change in changes {
            let Some(compiled) = self.0.get(&change.entity) else { continue };
            match compiled.route(change, loading) {
                Ok(Routed::AsItIs) => routed.push(change.clone()),
                Ok(Routed::Instead(document)) => routed.push(EntityChange { document, ..change.clone() }),
                Ok(Routed::Nothing) => {}
                Err(reason) => rejected.push(Rejected { change: change.clone(), reason }),
            }
        }
        (routed, rejected)
    }
}

impl Compiled {
    fn route(&self, change: &EntityChange, loading: bool) -> Result<Routed, String> {
        let Some(text) = change.document.as_deref().filter(|_| self.condition.is_some() || self.select.is_some()) else {
            return Ok(Routed::AsItIs);
        };
        let document: Value = serde_json::from_str(text).map_err(|error| format!("the document is not JSON: {error}"))?;
        if let Some(condition) = &self.condition {
            let met = condition.is_met(&condition.over(&document)).map_err(|error| format!("where: {error}"))?;
            if !met {
                return Ok(if loading || self.otherwise == Otherwise::Skip { Routed::Nothing } else { Routed::Instead(None) });
            }
        }
        let Some(select) = &self.select else { return Ok(Routed::AsItIs) };
        let mut members = Map::new();
        for (name, member) in select {
            let value = match member {
                Member::AsItIs => document.get(name).cloned().unwrap_or(Value::Null),
                Member::Computed(expression) => {
                    let input = expression.over(&document);
                    expression.evaluate(&input).map_err(|error| format!("select.{name}: {error}"))?.to_json()
                }
            };
            members.insert(name.clone(), value);
        }
        Ok(Routed::Instead(Some(Value::Object(members).to_string().into())))
    }
}

fn compile_select(select: &[Selected], scope: &Scope, schema: &Value) -> Result<Vec<(String, Member)>, String> {
    let mut members: Vec<(String, Member)> = Vec::with_capacity(select.len());
    for selected in select {
        let (name, member) = match selected {
            Selected::Member(name) => {
                if schema.get("properties").and_then(Value::as_object).is_some_and(|known| !known.contains_key(name)) {
                    return Err(format!("select: the document has no member {name:?}"));
                }
                (name, Member::AsItIs)
            }
            Selected::Computed(one) => {
                let (Some((name, text)), 1) = (one.first_key_value(), one.len()) else {
                    return Err("select: write {name: expression}, each by itself".to_owned());
                };
                let compiled = Expression::compile(text, scope).map_err(|error| format!("select.{name}: {error}"))?;
                (name, Member::Computed(compiled))
            }
        };
        if members.iter().any(|(known, _)| known == name) {
            return Err(format!("select: {name:?} stands there twice"));
        }
        members.push((name.clone(), member));
    }
    Ok(members)
}

/// The schema of the document that is left.
fn selected_schema(members: &[(String, Member)], schema: &Value) -> Value {
    let property = |(name, member): &(String, Member)| {
        let of = match member {
            Member::AsItIs => {
                schema.pointer("/properties").and_then(|known| known.get(name)).cloned().unwrap_or_else(|| json!({}))
            }
            Member::Computed(expression) => expression.returns().json_schema(),
        };
        (name.clone(), of)
    };
    json!({"type": "object", "properties": members.iter().map(property).collect::<Map<_, _>>()})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use schemas::change::EntityKey;
    use schemas::table::SqlType;

    use super::*;

    fn entity(name: &str) -> EntityInfo {
        let schema = json!({"type": "object", "properties": {
            "id": {"type": "integer"}, "status": {"type": "string"}, "total": {"type": "string", "format": "decimal"},
            "customer": {"type": "object", "properties": {"city": {"type": "string"}}},
        }});
        EntityInfo { name: name.into(), key: vec![("id".to_owned(), SqlType::Int)], document_schema: schema }
    }

    fn change(entity: &str, key: &str, document: Option<&str>) -> EntityChange {
        EntityChange {
            entity: entity.into(),
            key: EntityKey::from_text(key),
            version: Lsn::MAX,
            commit_time_ms: 1,
            document: document.map(Into::into),
        }
    }

    fn compile(yaml: &str) -> Result<(Router, Vec<EntityInfo>), Error> {
        let routes: Routes = serde_yaml_ng::from_str(yaml).unwrap();
        Router::compile("sink s", &routes, &[entity("order"), entity("customer"), entity("note")])
    }

    #[test]
    fn entities_are_filtered_and_cut_to_what_was_selected() {
        let (router, seen) = compile(
            "{customer: , order: {where: \"status == 'OPEN' && total > 100.0\", select: [status, {city: customer.city, }, {double: 'total * 2'}]}}",
        )
        .unwrap();
        assert_eq!(seen.iter().map(|entity| &*entity.name).collect::<Vec<_>>(), ["customer", "order"]);
        let properties = seen[1].document_schema["properties"].as_object().unwrap();
        assert_eq!(properties.keys().collect::<Vec<_>>(), ["status", "city", "double"]);
        let changes = [
            change("order", "1", Some(r#"{"id":1,"status":"OPEN","total":"100.50","customer":{"city":"Bern"}}"#)),
            change("order", "2", Some(r#"{"id":2,"status":"OPEN","total":"100.00","customer":null}"#)),
            change("order", "3", None),
            change("customer", "7", Some(r#"{"id":7}"#)),
            change("note", "8", Some("{}")),
        ];
        let (routed, rejected) = router.route(&changes, false);
        assert!(rejected.is_empty(), "{rejected:?}");
        let shown: Vec<(&str, Option<&str>)> =
            routed.iter().map(|change| (change.key.as_str(), change.document.as_deref())).collect();
        let first = r#"{"status":"OPEN","city":"Bern","double":"201.00"}"#;
        assert_eq!(shown, [("1", Some(first)), ("2", None), ("3", None), ("7", Some(r#"{"id":7}"#))]);
        let (loaded, _) = router.route(&changes, true);
        assert_eq!(loaded.len(), 3, "what does not satisfy it is left out of a load");
        assert!(router.sends("order") && !router.sends("note"));
    }

    #[test]
    fn others_may_be_skipped_and_what_fails_is_rejected() {
        let (router, _) = compile("{order: {where: 'id / (id - 1) > 1', otherwise: skip}}").unwrap();
        let changes = [1, 0, 5].map(|id| change("order", &id.to_string(), Some(&format!(r#"{{"id":{id}}}"#))));
        let (routed, rejected) = router.route(&changes, false);
        assert!(rejected.len() == 1 && rejected[0].reason.contains("where: "), "{rejected:?}");
        assert!(routed.is_empty());
        let (_, rejected) = router.route(&[change("order", "9", Some("{\"id\":"))], false);
        assert!(rejected[0].reason.contains("not JSON"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (yaml, said) in [
            ("{orders: {}}", "there are order, customer, note"),
            ("{order: {where: stauts == 'x'}}", "stauts"),
            ("{order: {where: total + 1}}", "entities.order"),
            ("{order: {select: [city]}}", "no member \"city\""),
            ("{order: {select: [id, {id: id + 1}]}}", "twice"),
            ("{order: {select: [{a: id, b: id}]}}", "each by itself"),
            ("{order: {select: [{a: id +}]}}", "select.a"),
        ] {
            let error = compile(yaml).err().unwrap();
            assert_eq!(error.class(), schemas::ErrorClass::Misconfigured);
            assert!(error.to_string().contains(said), "{yaml}: {error}");
        }
        let error = serde_yaml_ng::from_str::<Routes>("{order: {were: x}}").unwrap_err().to_string();
        assert!(error.contains("otherwise"), "{error}");
    }
}
