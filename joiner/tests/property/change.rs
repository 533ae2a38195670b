//! Definitions that change while the state stays: members come, go, and are renamed.

use std::collections::BTreeMap;

use schemas::entity::{Aggregate, AggregateFunction, EntityDefinition, Field, ManyEdge, OneEdge, OrderBy};

use crate::dice::Dice;
use crate::world::{COMPUTED, NAMES, time_to_live};

/// What may change of a definition and of an edge.
struct Body<'a> {
    fields: &'a mut Option<Vec<Field>>,
    one: &'a mut BTreeMap<String, OneEdge>,
    many: &'a mut BTreeMap<String, ManyEdge>,
    aggregates: &'a mut BTreeMap<String, Aggregate>,
    computed: &'a mut BTreeMap<String, String>,
}

/// A definition with some changes; whether a state can serve it depends on what it keeps.
pub(crate) fn changed(dice: &mut Dice, definition: &EntityDefinition) -> EntityDefinition {
    let mut new = definition.clone();
    if dice.chance(20) {
        new.filter = None;
    }
    if new.group_by.is_empty() && dice.chance(30) {
        new.time_to_live = if dice.chance(70) { time_to_live(dice) } else { None };
    }
    if new.group_by.is_empty() {
        let EntityDefinition { fields, one, many, aggregates, computed, .. } = &mut new;
        body(dice, Body { fields, one, many, aggregates, computed });
    } else {
        // What the group is aggregated over needs its rows' members: only the group's own change.
        new.aggregates.retain(|name, _| name == "n" || !dice.chance(30));
        if dice.chance(50) {
            new.aggregates.insert("added".into(), Aggregate::of(AggregateFunction::Sum, "rows", *dice.pick(&["d", "m", "u"])));
        }
    }
    new
}

fn body(dice: &mut Dice, body: Body<'_>) {
    let Body { fields, one, many, aggregates, computed } = body;
    match fields {
        None if dice.chance(30) => *fields = Some(vec![Field { name: "k1".into(), column: "k1".into() }]),
        None => {}
        Some(fields) => {
            fields.retain(|_| !dice.chance(20));
            if let Some(field) = fields.first_mut().filter(|_| dice.chance(30)) {
                field.name = "renamed".into();
            }
            if dice.chance(40) {
                let column = (*dice.pick(&NAMES)).to_owned();
                fields.push(Field { name: format!("added {column}"), column });
            }
        }
    }
    if dice.chance(15) {
        one.pop_first();
    }
    let gone = if dice.chance(15) { many.pop_first().map(|(name, _)| name) } else { None };
    aggregates.retain(|_, aggregate| Some(&aggregate.edge) != gone.as_ref() && !dice.chance(10));
    computed.retain(|_, text| gone.as_ref().is_none_or(|gone| *text != format!("size({gone})")) && !dice.chance(10));
    if dice.chance(20) {
        computed.insert("added".into(), (*dice.pick(&COMPUTED)).to_owned());
    }
    if let Some(edge) = many.keys().next().filter(|_| dice.chance(30)) {
        aggregates.insert("counted".into(), Aggregate::count(edge.clone()));
        aggregates.insert("summed".into(), Aggregate::of(AggregateFunction::Sum, edge.clone(), "d"));
    }
    for edge in one.values_mut() {
        edge.require ^= dice.chance(10);
        inner(dice, &mut edge.fields);
    }
    for edge in many.values_mut() {
        edge.require ^= dice.chance(10);
        inner(dice, &mut edge.fields);
        if dice.chance(20) {
            edge.order_by =
                vec![OrderBy { column: (*dice.pick(&["d", "u", "k2", "m"])).to_owned(), descending: dice.chance(50) }];
        }
    }
}

/// The fields of an edge; whatever is aggregated of them comes from the rows.
fn inner(dice: &mut Dice, fields: &mut Option<Vec<Field>>) {
    if let Some(fields) = fields
        && dice.chance(30)
    {
        fields.pop();
    }
}
