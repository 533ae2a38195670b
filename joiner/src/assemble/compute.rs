//! What is computed at a node: aggregates while its children are assembled, computed fields once everything else of its document stands.

use expressions::{EvaluationError, Input, Value};
use schemas::plan::NodeId;

use super::{Members, Running};
use crate::catalog::{Aggregate, Computed, Source};
use crate::metrics;
use crate::state::row::Row;

/// The aggregates of a node while its children pass by.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    aggregates: &'a [Aggregate],
    running: Vec<Running>,
    /// Where the child that is being assembled stands in the order, where children do not come in it.
    pub(super) place: Option<Vec<u8>>,
}

impl<'a> Sums<'a> {
    pub(super) const fn none() -> Self {
        Self { aggregates: &[], running: Vec::new(), place: None }
    }

    pub(super) fn of(aggregates: &'a [Aggregate]) -> Self {
        Self { aggregates, running: aggregates.iter().map(|aggregate| Running::new(aggregate.kind)).collect(), place: None }
    }

    /// Whether anything is computed over the children of a node.
    pub(super) fn are_over(&self, child: NodeId) -> bool {
        self.aggregates.iter().any(|aggregate| aggregate.over == child)
    }

    pub(super) const fn aggregates(&self) -> &'a [Aggregate] {
        self.aggregates
    }

    /// Adds what children behind those so far have come to in the same aggregates.
    pub(super) fn merge(&mut self, other: Self) {
        self.running.iter_mut().zip(other.running).for_each(|(running, other)| running.merge(other));
    }

    pub(super) fn compact(&mut self) {
        self.aggregates.iter().zip(&mut self.running).for_each(|(aggregate, running)| running.compact(&aggregate.of));
    }

    /// Appends what stands for the aggregates over a child.
    pub(super) fn encode(&self, child: NodeId, out: &mut Vec<u8>) {
        let over = self.aggregates.iter().zip(&self.running).filter(|(aggregate, _)| aggregate.over == child);
        over.for_each(|(_, running)| running.encode(out));
    }

    /// Reads what [`Sums::encode`] has appended; the other aggregates are of no children.
    pub(super) fn decode(aggregates: &'a [Aggregate], child: NodeId, bytes: &mut &[u8]) -> Option<Self> {
        let mut sums = Self::of(aggregates);
        for (aggregate, running) in aggregates.iter().zip(&mut sums.running).filter(|(aggregate, _)| aggregate.over == child) {
            *running = Running::decode(aggregate.kind, &aggregate.of, bytes)?;
        }
        Some(sums)
    }

    /// Adds a child that stands in the document.
    pub(super) fn add(&mut self, child: NodeId, row: Row<'_>, document: &[u8], members: &Members) {
        for (aggregate, running) in self.aggregates.iter().zip(&mut self.running) {
            if aggregate.over != child || aggregate.filter.is_some_and(|slot| row.get(slot) != b"true") {
                continue;
            }
            let fragment = aggregate.value.map_or(&[][..], |value| fragment(value, row, document, members));
            running.add(fragment, &aggregate.of, self.place.as_deref());
        }
    }

    /// Appends the results, and where they stand.
    pub(super) fn write(self, out: &mut Vec<u8>, mut members: Option<&mut Members>) {
        for (aggregate, running) in self.aggregates.iter().zip(&self.running) {
            out.extend_from_slice(&aggregate.name);
            let start = out.len();
            running.write(&aggregate.of, out);
            if let Some(members) = &mut members {
                members.push((start, out.len()));
            }
        }
    }
}

fn fragment<'a>(source: Source, row: Row<'a>, document: &'a [u8], members: &Members) -> &'a [u8] {
    match source {
        Source::Slot(slot) => row.get(slot),
        Source::Member(nth) => members.get(nth).map_or(&[], |&(start, end)| &document[start..end]),
    }
}

/// A row and its document, as far as it stands.
struct Node<'a> {
    computed: &'a Computed,
    row: Row<'a>,
    document: &'a [u8],
    members: &'a Members,
}

impl Input for Node<'_> {
    fn get(&self, variable: usize) -> Result<Value<'_>, EvaluationError> {
        match (self.computed.inputs.get(variable), self.computed.expression.variables().get(variable)) {
            (Some(source), Some((_, of))) => Value::from_fragment(fragment(*source, self.row, self.document, self.members), of),
            _ => Ok(Value::Null),
        }
    }
}

/// Appends computed fields, and where they stand. One that fails (a division by zero, say) is null, and counted.
pub(super) fn write(entity: &str, computed: &[Computed], row: Row<'_>, out: &mut Vec<u8>, members: &mut Members) {
    let mut value = Vec::new();
    for computed in computed {
        value.clear();
        let node = Node { computed, row, document: out, members };
        match computed.expression.evaluate(&node) {
            Ok(result) => result.write_json(&mut value),
            Err(error) => {
                metrics::expression_failed(entity);
                tracing::debug!(entity, expression = computed.expression.text(), %error, "an expression fails on a document");
                value.extend_from_slice(b"null");
            }
        }
        out.extend_from_slice(&computed.name);
        let start = out.len();
        out.extend_from_slice(&value);
        members.push((start, out.len()));
    }
}
