//! What stands for a definition where it is compared with another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::entity::{FanOut, ManyEdge, OneEdge};
use schemas::plan::Plan;
use schemas::table::SqlType;

/// Changes when anything changes that the documents of an entity depend on.
pub(crate) fn shape(plan: &Plan) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(described(plan).as_bytes()))
}

/// By this, states of before they kept their layout tell which definitions they were built for.
pub(crate) fn fingerprint(plans: &[Arc<Plan>]) -> String {
    let text: String = plans.iter().map(|plan| described(plan)).collect();
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}

fn tell_at_once(one: &mut BTreeMap<String, OneEdge>, many: &mut BTreeMap<String, ManyEdge>) {
    for edge in one.values_mut() {
        edge.fan_out = FanOut::Strict;
        tell_at_once(&mut edge.one, &mut edge.many);
    }
    many.values_mut().for_each(|edge| tell_at_once(&mut edge.one, &mut edge.many));
}

fn described(plan: &Plan) -> String {
    // When owners are told of a change is no part of what they are told.
    let mut definition = plan.definition.clone();
    tell_at_once(&mut definition.one, &mut definition.many);
    tell_at_once(&mut definition.rows.one, &mut definition.rows.many);
    let mut text = serde_json::to_string(&definition).unwrap_or_default();
    if let Some(input) = &plan.input {
        text.push_str(&described(&input.plan));
    }
    for (table, columns) in plan.used_columns() {
        let Some(node) = plan.nodes.iter().find(|node| node.table.name == table) else { continue };
        let key: Vec<&str> = node.table.key_names().collect();
        text.push_str(&format!("{table}{key:?}"));
        for column in columns {
            let column = &node.table.columns[column];
            // A wider type of the same form changes neither what is kept nor how it is compared.
            let (form, left_out) = (column.sql_type.form(), column.sql_type.may_be_unavailable());
            text.push_str(&format!("{:?}{form:?}{left_out}{}", column.name, column.case_insensitive));
            if matches!(column.sql_type, SqlType::DateTimeOffset { .. }) {
                // States of before hold keys of local times.
                text.push_str("utc");
            }
        }
    }
    text
}
