//! Compiles what documents are made of, once tables, derived values and indexes stand: the nodes of each entity, with the names of their members written out as they stand in a document.

use std::sync::Arc;

use schemas::plan::{AggregateSource, ComputedInput, Edge, NodeId, Plan};

use super::build::Builder;
use super::{Aggregate, Computed, Entity, Expiry, Group, Link, Many, Node, OfDocuments, SlotPart, Source, Up};

impl Builder<'_> {
    pub(super) fn entity(&self, entity: usize, plans: &[Arc<Plan>]) -> Entity {
        let plan = &plans[entity];
        let table = self.table_of(plan, 0);
        let nodes = (0..plan.nodes.len()).map(|id| self.node(entity, plan, id)).collect();
        let group = plan.group.as_ref().map(|group| {
            let mut names = Names::default();
            let fields = group.fields.iter();
            let fields = fields.map(|field| (names.next(&field.name), self.slot(plan, table, field.column))).collect();
            let aggregates = self.aggregates(plan, &group.aggregates, &mut names);
            let computed = self.computed(plan, 0, &group.computed, [0, 0], &mut names);
            Group { fields, aggregates, computed }
        });
        let (number, changed, since) = (entity as u16, 0, 0);
        let key = self.key(plan, table, &plan.key);
        let named = |name: &str| plans.iter().position(|plan| *plan.entity == *name);
        let of = plan.input.as_ref().map(|input| OfDocuments {
            entity: named(&input.plan.entity).unwrap_or_default(),
            table,
            by_key: self.by_key.get(&entity).copied().unwrap_or_default(),
            columns: self.tables[table].columns.clone(),
        });
        let rolls_up =
            |(_, other): &(usize, &Arc<Plan>)| other.input.as_ref().is_some_and(|input| input.plan.entity == plan.entity);
        let rolled_up_by = plans.iter().enumerate().filter(rolls_up).map(|(nth, _)| nth).collect();
        let expiry = plan.time_to_live.zip(self.expiries.get(&entity)).map(|(time_to_live, &index)| Expiry {
            index,
            slot: self.slot(plan, table, time_to_live.column.column),
            time_to_live,
        });
        let (name, plan) = (plan.entity.clone(), plan.clone());
        Entity { name, number, changed, since, plan, key, nodes, group, of, rolled_up_by, expiry }
    }

    fn aggregates(&self, plan: &Plan, aggregates: &[schemas::plan::ResolvedAggregate], names: &mut Names) -> Vec<Aggregate> {
        let aggregate = |aggregate: &schemas::plan::ResolvedAggregate| {
            let over = self.table_of(plan, aggregate.over);
            let child = &plan.nodes[aggregate.over];
            let value = aggregate.value.map(|value| match value {
                AggregateSource::Column(column) => Source::Slot(self.slot(plan, over, column)),
                AggregateSource::Member(nth) => Source::Member(child.ones.len() + child.manys.len() + nth),
            });
            let filter = aggregate.filter.map(|column| self.slot(plan, over, column));
            let (name, of) = (names.next(&aggregate.name), aggregate.of.clone());
            Aggregate { name, over: aggregate.over, kind: aggregate.kind, value, filter, of }
        };
        aggregates.iter().map(aggregate).collect()
    }

    /// `edges`: how many `one` and `many` edges stand before the aggregates.
    fn computed(
        &self,
        plan: &Plan,
        id: NodeId,
        computed: &[schemas::plan::Computed],
        edges: [usize; 2],
        names: &mut Names,
    ) -> Vec<Computed> {
        let table = self.table_of(plan, id);
        let node = &plan.nodes[id];
        let source = |input: &ComputedInput| match *input {
            ComputedInput::Column(column) => Source::Slot(self.slot(plan, table, column)),
            ComputedInput::Edge(child) => {
                let all = node.ones.iter().chain(&node.manys);
                Source::Member(all.into_iter().position(|&other| other == child).unwrap_or_default())
            }
            ComputedInput::Aggregate(nth) => Source::Member(edges[0] + edges[1] + nth),
        };
        computed
            .iter()
            .map(|computed| Computed {
                name: names.next(&computed.name),
                expression: computed.expression.clone(),
                inputs: computed.inputs.iter().map(source).collect(),
            })
            .collect()
    }

    fn node(&self, entity: usize, plan: &Plan, id: NodeId) -> Node {
        let node = &plan.nodes[id];
        let table = self.table_of(plan, id);
        let parent_table = node.parent.map_or(table, |parent| self.table_of(plan, parent));
        let mut names = Names::default();
        let fields = node.fields.iter().map(|field| (names.next(&field.name), self.slot(plan, table, field.column))).collect();
        let ones = node.ones.iter().map(|&one| (names.next(&plan.nodes[one].name), one)).collect();
        let manys = node
            .manys
            .iter()
            .map(|&many| Many { name: names.next(&plan.nodes[many].name), node: many, order: self.order(plan, many, entity) })
            .collect();
        let aggregates = self.aggregates(plan, &node.aggregates, &mut names);
        let computed = self.computed(plan, id, &node.computed, [node.ones.len(), node.manys.len()], &mut names);
        let above = match (node.parent, &plan.group) {
            (Some(parent), _) => &plan.nodes[parent].aggregates[..],
            (None, Some(group)) => &group.aggregates[..],
            (None, None) => &[],
        };
        let of_member = |aggregate: &schemas::plan::ResolvedAggregate| {
            aggregate.over == id && matches!(aggregate.value, Some(AggregateSource::Member(_)))
        };
        let spans = !computed.is_empty() || above.iter().any(of_member);
        let mut edges = node.ones.iter().chain(&node.manys);
        let local = !above.iter().any(of_member) && !edges.any(|&child| plan.nodes[child].require);
        let rows = self.rows.get(&(entity, id)).copied().unwrap_or_default();
        // Of a document that shows all its children, all are read anyway.
        let cut = plan.definition.limits.is_some() && self.order(plan, id, entity).is_none();
        let cut = cut && local && matches!(node.edge, Edge::Many { .. }) && above.iter().any(|one| one.over == id);
        let grouped = node.parent.is_none() && plan.group.is_some();
        let parts = (grouped || cut) && self.indexes.get(rows).is_some_and(|index| !index.suffix.is_empty());
        let link = |link: &schemas::plan::Link| Link {
            parent_slot: self.slot(plan, parent_table, link.parent_column),
            own_slot: self.slot(plan, table, link.own_column),
            key_type: link.key_type,
        };
        Node {
            table,
            parent: node.parent,
            rows,
            link: node.link.iter().map(link).collect(),
            require: node.require,
            filter: node.filter.map(|column| self.slot(plan, table, column)),
            up: self.ups.get(&(entity, id)).copied().unwrap_or(Up::Root),
            fields,
            ones,
            manys,
            aggregates,
            computed,
            spans,
            local,
            parts,
        }
    }

    /// The order wanted, unless the rows stand in it anyway.
    fn order(&self, plan: &Plan, id: NodeId, entity: usize) -> Option<Vec<(SlotPart, bool)>> {
        let Edge::Many { order_by } = &plan.nodes[id].edge else { return None };
        let table = self.table_of(plan, id);
        let part = |part: &schemas::plan::OrderPart| {
            (SlotPart { slot: self.slot(plan, table, part.column), key_type: part.key_type }, part.descending)
        };
        let order: Vec<(SlotPart, bool)> = order_by.iter().map(part).collect();
        let suffix = &self.indexes[self.rows.get(&(entity, id)).copied().unwrap_or_default()].suffix;
        let natural =
            order.len() <= suffix.len() && order.iter().zip(suffix).all(|((part, descending), own)| part == own && !descending);
        (!natural).then_some(order)
    }
}

/// Writes the names of members as they stand in a document, one after another.
#[derive(Default)]
struct Names {
    any: bool,
}

impl Names {
    /// `{"name":` or `,"name":`.
    fn next(&mut self, name: &str) -> Vec<u8> {
        let mut out = vec![if std::mem::replace(&mut self.any, true) { b',' } else { b'{' }];
        schemas::value::write_string(&mut out, name);
        out.push(b':');
        out
    }
}
