//! What a definition computes: row filters, computed fields, aggregates, groups. Expressions are compiled here, against what their place has to offer.
//!
//! What depends on a row alone (filters, group keys, the values and filters of aggregates) becomes a *derived column*: it is computed once, when the row comes in, and kept with it. So a change of a column that leaves
//! what is derived of it as it was touches no document. The columns that only expressions read are not kept at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use expressions::{Expression, Scope, Type, hint};

use super::document;
use super::resolve::{Place, Resolver};
use super::value_type;
use super::{
    AggregateKind, AggregateSource, Computed, ComputedInput, DERIVED, Derived, Group, KeyPart, Mistake, NodeId, PlanError,
    ResolvedAggregate, ResolvedField,
};
use crate::entity::{Aggregate, AggregateFunction, AggregateValue, EntityDefinition, GroupBy};
use crate::table::{SqlType, TableSchema};

/// The edge that the rows of a group stand under.
pub(super) const ROWS: &str = "rows";

fn columns_scope(table: &TableSchema) -> Scope {
    Scope::new(table.columns.iter().map(|column| (column.name.clone(), value_type::of(column))))
}

impl Resolver<'_> {
    fn expression(
        &self,
        place: &Place,
        text: &str,
        scope: &Scope,
        predicate: bool,
        within: &str,
    ) -> Result<Expression, PlanError> {
        let compiled = if predicate { Expression::predicate(text, scope) } else { Expression::compile(text, scope) };
        compiled.map_err(|error| self.mistake(&place.path, Mistake::Expression { place: within.to_owned(), error }))
    }

    /// The column that holds what an expression over a row's columns comes to: a column where it is just that, else a derived one.
    fn derive(&mut self, place: &Place, text: &str, predicate: bool, within: &str) -> Result<(usize, Type), PlanError> {
        let expression = self.expression(place, text, &columns_scope(&place.table), predicate, within)?;
        let of = expression.returns().clone();
        let columns = expression.variables().iter().map(|(name, _)| self.column(place, name, within));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for &column in &columns {
            let declared = &place.table.columns[column];
            if declared.sql_type.may_be_unavailable() {
                let (column, within) = (declared.name.clone(), within.to_owned());
                return Err(self.mistake(&place.path, Mistake::NotRecorded { column, place: within }));
            }
        }
        if let [column] = columns[..]
            && text.trim() == place.table.columns[column].name
        {
            return Ok((column, of));
        }
        let table = &place.table.name;
        let known = self.derived.iter().position(|derived| derived.table == *table && derived.expression.text() == text);
        let nth = known.unwrap_or_else(|| {
            self.derived.push(Derived { table: table.clone(), expression: Arc::new(expression), columns });
            self.derived.len() - 1
        });
        Ok((DERIVED + nth, of))
    }

    pub(super) fn filter(&mut self, place: &Place, filter: Option<&str>) -> Result<Option<usize>, PlanError> {
        filter.map(|text| self.derive(place, text, true, "where").map(|(column, _)| column)).transpose()
    }

    /// The fields that are computed at a node whose fields, edges and aggregates stand.
    pub(super) fn computed(
        &self,
        place: &Place,
        id: NodeId,
        computed: &BTreeMap<String, String>,
    ) -> Result<Vec<Computed>, PlanError> {
        if computed.is_empty() {
            return Ok(Vec::new());
        }
        let node = &self.nodes[id];
        let mut known: BTreeMap<&str, (ComputedInput, Type)> = BTreeMap::new();
        for field in &node.fields {
            let of = value_type::of(&place.table.columns[field.column]);
            known.insert(&field.name, (ComputedInput::Column(field.column), of));
        }
        for &child in node.ones.iter().chain(&node.manys) {
            let of = Type::of_json_schema(&document::node(&self.nodes, child));
            let of = if node.manys.contains(&child) { Type::list(of) } else { of };
            known.insert(&self.nodes[child].name, (ComputedInput::Edge(child), of));
        }
        for (nth, aggregate) in node.aggregates.iter().enumerate() {
            known.insert(&aggregate.name, (ComputedInput::Aggregate(nth), aggregate.returns()));
        }
        for (column, declared) in place.table.columns.iter().enumerate() {
            known.entry(&declared.name).or_insert_with(|| (ComputedInput::Column(column), value_type::of(declared)));
        }
        self.compute(place, computed, &known)
    }

    fn compute(
        &self,
        place: &Place,
        computed: &BTreeMap<String, String>,
        known: &BTreeMap<&str, (ComputedInput, Type)>,
    ) -> Result<Vec<Computed>, PlanError> {
        let scope = Scope::new(known.iter().map(|(name, (_, of))| ((*name).to_owned(), of.clone())));
        let field = |(name, text): (&String, &String)| {
            let expression = self.expression(place, text, &scope, false, &format!("computed.{name}"))?;
            // Every name of the scope is known.
            let inputs = expression.variables().iter().filter_map(|(name, _)| known.get(name.as_str()).map(|(input, _)| *input));
            Ok(Computed { name: name.clone(), inputs: inputs.collect(), expression: Arc::new(expression) })
        };
        computed.iter().map(field).collect()
    }

    pub(super) fn aggregate(
        &mut self,
        place: &Place,
        id: NodeId,
        name: &str,
        aggregate: &Aggregate,
    ) -> Result<ResolvedAggregate, PlanError> {
        let edge = &aggregate.edge;
        let names = || self.nodes[id].manys.iter().map(|&child| self.nodes[child].name.as_str());
        let Some(over) = self.nodes[id].manys.iter().copied().find(|&child| self.nodes[child].name == *edge) else {
            let (hint, known) = (hint(edge, names()), names().collect::<Vec<_>>().join(", "));
            let (aggregate, edge) = (name.to_owned(), edge.clone());
            return Err(self.mistake(&place.path, Mistake::UnknownEdge { aggregate, edge, hint, known }));
        };
        self.aggregate_over(place, over, name, aggregate)
    }

    fn aggregate_over(
        &mut self,
        place: &Place,
        over: NodeId,
        name: &str,
        aggregate: &Aggregate,
    ) -> Result<ResolvedAggregate, PlanError> {
        let child = Place { path: place.path.clone(), table: self.nodes[over].table.clone() };
        let function = aggregate.function;
        let filter = match &aggregate.filter {
            Some(text) => Some(self.derive(&child, text, true, &format!("aggregates.{name}.where"))?.0),
            None => None,
        };
        let (value, of) = match &aggregate.value {
            None => (None, Type::Null),
            Some(AggregateValue::Expression(text)) => {
                let predicate = matches!(function, AggregateFunction::Any | AggregateFunction::All);
                let (column, of) = self.derive(&child, text, predicate, &format!("aggregates.{name}.value"))?;
                (Some(AggregateSource::Column(column)), of)
            }
            Some(AggregateValue::Member(member)) => self.aggregated_member(&child, over, member, function)?,
        };
        let scale = match value {
            Some(AggregateSource::Column(column)) => child.table.columns.get(column).map_or(0, |column| scale(column.sql_type)),
            Some(AggregateSource::Member(nth)) => {
                self.nodes[over].aggregates.get(nth).map_or(0, |aggregate| aggregate.kind.scale())
            }
            None => 0,
        };
        let Some(kind) = kind(function, &of, scale) else {
            let (aggregate, member) = (name.to_owned(), aggregate.value.clone());
            let what = match member {
                Some(AggregateValue::Member(column)) => format!("{:?} of {}", column, child.table.name),
                Some(AggregateValue::Expression(text)) => format!("`{text}`"),
                None => String::new(),
            };
            let of = match value {
                Some(AggregateSource::Column(column)) if column < DERIVED => child.table.columns[column].sql_type.to_string(),
                _ => of.to_string(),
            };
            return Err(self.mistake(&place.path, Mistake::NotAggregable { aggregate, function: function.name(), what, of }));
        };
        Ok(ResolvedAggregate { name: name.to_owned(), over, kind, value, filter, of })
    }

    /// A column of the child, or one of its own aggregates or computed fields.
    fn aggregated_member(
        &self,
        child: &Place,
        over: NodeId,
        member: &str,
        function: AggregateFunction,
    ) -> Result<(Option<AggregateSource>, Type), PlanError> {
        let node = &self.nodes[over];
        if child.table.column(member).is_none() {
            if let Some(nth) = node.aggregates.iter().position(|aggregate| aggregate.name == member) {
                return Ok((Some(AggregateSource::Member(nth)), node.aggregates[nth].returns()));
            }
            if let Some(nth) = node.computed.iter().position(|computed| computed.name == member) {
                let of = node.computed[nth].expression.returns().clone();
                return Ok((Some(AggregateSource::Member(node.aggregates.len() + nth)), of));
            }
        }
        let column = self.column(child, member, function.name())?;
        Ok((Some(AggregateSource::Column(column)), value_type::of(&child.table.columns[column])))
    }

    /// What the rows are grouped by: the fields of the document, and the entity key.
    pub(super) fn group_key(
        &mut self,
        place: &Place,
        group_by: &[GroupBy],
    ) -> Result<(Vec<ResolvedField>, Vec<KeyPart>), PlanError> {
        let (mut fields, mut key): (Vec<ResolvedField>, Vec<KeyPart>) = (Vec::new(), Vec::new());
        for GroupBy { name, expression } in group_by {
            // A column may have any name, whether CEL can say it or not.
            let part = match place.table.column(expression) {
                Some(column) => self.key_part(place, column, "group_by")?,
                None => {
                    let (column, of) = self.derive(place, expression, false, "group_by")?;
                    let key_type = value_type::key_type(&of).ok_or_else(|| {
                        self.mistake(&place.path, Mistake::NotGroupable { expression: expression.clone(), of: of.to_string() })
                    })?;
                    KeyPart { column, key_type }
                }
            };
            if key.contains(&part) {
                return Err(self.mistake(&place.path, Mistake::DuplicateKey { column: expression.clone() }));
            }
            fields.push(ResolvedField { name: name.clone(), column: part.column });
            key.push(part);
        }
        Ok((fields, key))
    }

    /// The document of a roll-up, over the root that stands.
    pub(super) fn group(
        &mut self,
        place: &Place,
        definition: &EntityDefinition,
        fields: Vec<ResolvedField>,
    ) -> Result<Group, PlanError> {
        let mut aggregates = Vec::new();
        for (name, aggregate) in &definition.aggregates {
            if aggregate.edge != ROWS {
                let (hint, known) = (hint(&aggregate.edge, [ROWS]), ROWS.to_owned());
                let (aggregate, edge) = (name.clone(), aggregate.edge.clone());
                return Err(self.mistake(&place.path, Mistake::UnknownEdge { aggregate, edge, hint, known }));
            }
            aggregates.push(self.aggregate_over(place, 0, name, aggregate)?);
        }
        let computed = self.computed_of_group(place, definition, &fields, &aggregates)?;
        Ok(Group { fields, aggregates, computed })
    }

    /// The fields that are computed of a group's values and aggregates.
    pub(super) fn computed_of_group(
        &self,
        place: &Place,
        definition: &EntityDefinition,
        fields: &[ResolvedField],
        aggregates: &[ResolvedAggregate],
    ) -> Result<Vec<Computed>, PlanError> {
        let names = fields.iter().map(|field| &field.name).chain(definition.aggregates.keys()).chain(definition.computed.keys());
        let mut seen = BTreeSet::new();
        if let Some(name) = names.into_iter().find(|name| !seen.insert(name.as_str())) {
            return Err(self.mistake(&place.path, Mistake::DuplicateName { name: name.clone() }));
        }
        let known: BTreeMap<&str, (ComputedInput, Type)> = fields
            .iter()
            .map(|field| (field.name.as_str(), (ComputedInput::Column(field.column), self.type_of(&place.table, field.column))))
            .chain(
                aggregates
                    .iter()
                    .enumerate()
                    .map(|(nth, one)| (one.name.as_str(), (ComputedInput::Aggregate(nth), one.returns()))),
            )
            .collect();
        self.compute(place, &definition.computed, &known)
    }

    /// The type of a column, derived or not.
    fn type_of(&self, table: &TableSchema, column: usize) -> Type {
        match column.checked_sub(DERIVED) {
            Some(nth) => self.derived.get(nth).map_or(Type::Any, |derived| derived.expression.returns().clone()),
            None => value_type::of(&table.columns[column]),
        }
    }
}

pub(super) const fn scale(sql_type: SqlType) -> u8 {
    match sql_type {
        SqlType::Decimal { scale, .. } => scale,
        SqlType::Money | SqlType::SmallMoney => 4,
        _ => 0,
    }
}

/// `None`: the function does not take such values.
pub(super) fn kind(function: AggregateFunction, of: &Type, scale: u8) -> Option<AggregateKind> {
    let ordered = !matches!(of, Type::Any | Type::List(_) | Type::Object(_));
    Some(match (function, of) {
        (AggregateFunction::Count, _) => AggregateKind::Count,
        (AggregateFunction::Sum, Type::Int) => AggregateKind::SumInt,
        (AggregateFunction::Sum, Type::Decimal) => AggregateKind::SumDecimal { scale },
        (AggregateFunction::Sum, Type::Double) => AggregateKind::SumFloat,
        (AggregateFunction::Avg, Type::Int | Type::Decimal) => AggregateKind::AvgDecimal,
        (AggregateFunction::Avg, Type::Double) => AggregateKind::AvgFloat,
        (AggregateFunction::Any, Type::Bool) => AggregateKind::Any,
        (AggregateFunction::All, Type::Bool) => AggregateKind::All,
        (AggregateFunction::Min, _) if ordered => AggregateKind::Min,
        (AggregateFunction::Max, _) if ordered => AggregateKind::Max,
        (AggregateFunction::Distinct, _) if ordered => AggregateKind::Distinct,
        (AggregateFunction::First, _) => AggregateKind::First,
        (AggregateFunction::Last, _) => AggregateKind::Last,
        _ => return None,
    })
}

impl AggregateKind {
    const fn scale(self) -> u8 {
        if let Self::SumDecimal { scale } = self { scale } else { 0 }
    }
}

impl ResolvedAggregate {
    /// The type of the result.
    pub(super) fn returns(&self) -> Type {
        match self.kind {
            AggregateKind::Count | AggregateKind::SumInt => Type::Int,
            AggregateKind::SumDecimal { .. } | AggregateKind::AvgDecimal => Type::Decimal,
            AggregateKind::SumFloat | AggregateKind::AvgFloat => Type::Double,
            AggregateKind::Any | AggregateKind::All => Type::Bool,
            AggregateKind::Distinct => Type::list(self.of.clone()),
            AggregateKind::Min | AggregateKind::Max | AggregateKind::First | AggregateKind::Last => self.of.clone(),
        }
    }
}
