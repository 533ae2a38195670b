//! Roll-ups of entities: their input are not rows of a table, but the documents of another entity.
//!
//! Such a plan is over a table that no source has ([`Plan::input`]): each document of the other entity makes one row of it, whose columns are the parts of that entity's key and what the roll-up's expressions make of the document. Everything that is known of tables (keys, indexes, ways up, aggregates) then holds for
//! it as well, and the joiner makes the rows wherever a document changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use expressions::{Expression, Scope, Type, hint};

use super::compute::{ROWS, kind};
use super::resolve::{Place, Resolver, Tables, name_is_plain};
use super::{
    AggregateSource, Edge, Group, Input, InputColumn, KeyPart, Mistake, Node, Plan, PlanError, ResolvedAggregate, ResolvedField,
    value_type,
};
use crate::TableName;
use crate::entity::{Aggregate, AggregateFunction, AggregateValue, EntityDefinition};
use crate::table::{Column, Length, SqlType, TableSchema};

impl Plan {
    /// Resolves definitions that may roll up one another; each stands behind the one that it rolls up.
    pub fn resolve_all(
        definitions: &[EntityDefinition],
        table: &dyn Fn(&TableName) -> Option<Arc<TableSchema>>,
    ) -> Result<Vec<Self>, PlanError> {
        let (mut rest, over_tables): (Vec<_>, Vec<_>) = definitions.iter().partition(|definition| definition.of.is_some());
        let mut plans = over_tables.into_iter().map(|one| Self::resolve(one, table)).collect::<Result<Vec<_>, _>>()?;
        while !rest.is_empty() {
            let mut left = Vec::new();
            for definition in &rest {
                let of = definition.of.as_deref().unwrap_or_default();
                match plans.iter().find(|plan| *plan.entity == *of) {
                    Some(input) => plans.push(over_documents(definition, input)?),
                    None => left.push(*definition),
                }
            }
            if left.len() == rest.len() {
                return Err(not_there(definitions, left[0]));
            }
            rest = left;
        }
        Ok(plans)
    }
}

/// Why nothing stands for what a definition rolls up.
fn not_there(definitions: &[EntityDefinition], definition: &EntityDefinition) -> PlanError {
    let names = || definitions.iter().map(|other| other.entity.as_str());
    let of = |definition: &EntityDefinition| definition.of.clone().unwrap_or_default();
    let (mut definition, mut mistake) = (definition, Mistake::RollUpCycle { of: of(definition) });
    for _ in definitions {
        match definitions.iter().find(|other| other.entity == of(definition)) {
            Some(next) => definition = next,
            None => {
                let (of, known) = (of(definition), names().collect::<Vec<_>>().join(", "));
                mistake = Mistake::UnknownEntity { hint: hint(&of, names()), of, known };
                break;
            }
        }
    }
    let (entity, node) = (definition.entity.clone(), definition.entity.clone());
    PlanError::Definition { entity, node, mistake: Box::new(mistake) }
}

fn over_documents(definition: &EntityDefinition, input: &Plan) -> Result<Plan, PlanError> {
    name_is_plain(&definition.entity)?;
    let none: Tables<'_> = &|_| None;
    let resolver = Resolver::new(&definition.entity, none, BTreeSet::new());
    let info = input.info();
    let name = TableName::new(format!("documents of {}", input.entity), definition.entity.clone());
    let mut builder = Builder {
        definition,
        resolver,
        scope: Scope::of_json_schema(&info.document_schema),
        schema: info.document_schema,
        columns: Vec::new(),
        made: Vec::new(),
    };
    builder.refuse_what_is_of_tables()?;
    for (part, (member, _)) in input.key.iter().zip(&info.key) {
        let name = format!("{}.{member}", input.entity);
        let sql_type = part.key_type.sql_type();
        builder.columns.push(Column { name, sql_type, nullable: false, case_insensitive: false });
    }
    let parts = input.key.iter().enumerate();
    let own_key: Vec<KeyPart> = parts.map(|(column, part)| KeyPart { column, key_type: part.key_type }).collect();
    let (fields, key) = builder.group_by()?;
    let filter = definition.filter.as_deref().map(|text| builder.expression(text, true, "where")).transpose()?;
    let aggregates = definition.aggregates.iter();
    let aggregates = aggregates.map(|(name, aggregate)| builder.aggregate(name, aggregate)).collect::<Result<Vec<_>, _>>()?;
    let Builder { mut resolver, columns, made, .. } = builder;
    let own = own_key.iter().map(|part| part.column).collect();
    let table = Arc::new(TableSchema { name, columns, key: own });
    resolver.nodes.push(Node {
        path: definition.entity.clone(),
        name: definition.entity.clone(),
        table: table.clone(),
        parent: None,
        edge: Edge::Root,
        link: Vec::new(),
        require: false,
        lazy: false,
        filter: filter.map(|(column, _)| column),
        fields: Vec::new(),
        ones: Vec::new(),
        manys: Vec::new(),
        aggregates: Vec::new(),
        computed: Vec::new(),
        own_key,
    });
    let place = Place { path: definition.entity.clone(), table };
    let computed = resolver.computed_of_group(&place, definition, &fields, &aggregates)?;
    Ok(Plan {
        entity: definition.entity.as_str().into(),
        definition: definition.clone(),
        key,
        nodes: resolver.nodes,
        derived: Vec::new(),
        time_to_live: None,
        group: Some(Group { fields, aggregates, computed }),
        input: Some(Input { plan: Box::new(input.clone()), columns: made }),
    })
}

struct Builder<'a> {
    definition: &'a EntityDefinition,
    resolver: Resolver<'a>,
    /// The document's members.
    scope: Scope,
    schema: serde_json::Value,
    columns: Vec<Column>,
    /// What the columns behind those of the key hold.
    made: Vec<InputColumn>,
}

impl Builder<'_> {
    fn mistake(&self, mistake: Mistake) -> PlanError {
        self.resolver.mistake(&self.definition.entity, mistake)
    }

    fn refuse_what_is_of_tables(&self) -> Result<(), PlanError> {
        let definition = self.definition;
        let members = [
            ("table", !definition.table.is_none()),
            ("key", !definition.key.is_empty()),
            ("fields", definition.fields.is_some()),
            ("one", !definition.one.is_empty()),
            ("many", !definition.many.is_empty()),
            ("rows", !definition.rows.is_empty()),
            ("limits", definition.limits.is_some()),
            ("time_to_live", definition.time_to_live.is_some()),
        ];
        match members.into_iter().find(|(_, present)| *present) {
            Some((member, _)) => Err(self.mistake(Mistake::OfDocuments { member })),
            None if definition.group_by.is_empty() => Err(self.mistake(Mistake::NotGroupedDocuments)),
            None => Ok(()),
        }
    }

    fn column(&mut self, column: InputColumn, of: Type, sql_type: SqlType) -> (usize, Type) {
        let keys = self.columns.len() - self.made.len();
        if let Some(known) =
            self.made.iter().position(|known| known.text() == column.text() && known.is_member() == column.is_member())
        {
            return (keys + known, of);
        }
        // Columns are told apart by their names.
        let name = if column.is_member() { column.text().to_owned() } else { format!("`{}`", column.text()) };
        self.columns.push(Column { name, sql_type, nullable: true, case_insensitive: false });
        self.made.push(column);
        (self.columns.len() - 1, of)
    }

    /// A member of the document; none where it has no such member.
    fn member(&mut self, name: &str) -> Option<(usize, Type)> {
        let of = self.scope.get(name)?.clone();
        let declared = self.schema["properties"][name]["x-sql-type"].as_str().and_then(|text| text.parse().ok());
        let sql_type = match (&of, declared) {
            (Type::Decimal, Some(sql_type @ (SqlType::Decimal { .. } | SqlType::Money | SqlType::SmallMoney))) => sql_type,
            _ => sql_type(&of),
        };
        Some(self.column(InputColumn::Member(name.to_owned()), of, sql_type))
    }

    fn expression(&mut self, text: &str, predicate: bool, within: &str) -> Result<(usize, Type), PlanError> {
        let compiled = if predicate { Expression::predicate(text, &self.scope) } else { Expression::compile(text, &self.scope) };
        let compiled = compiled.map_err(|error| self.mistake(Mistake::Expression { place: within.to_owned(), error }))?;
        let of = compiled.returns().clone();
        let sql_type = sql_type(&of);
        Ok(self.column(InputColumn::Expression(Arc::new(compiled)), of, sql_type))
    }

    fn group_by(&mut self) -> Result<(Vec<ResolvedField>, Vec<KeyPart>), PlanError> {
        let (mut fields, mut key): (Vec<ResolvedField>, Vec<KeyPart>) = (Vec::new(), Vec::new());
        for by in &self.definition.group_by {
            // A member may have any name, whether CEL can say it or not.
            let (column, of) = match self.member(&by.expression) {
                Some(member) => member,
                None => self.expression(&by.expression, false, "group_by")?,
            };
            let not_groupable = || Mistake::NotGroupable { expression: by.expression.clone(), of: of.to_string() };
            let key_type = value_type::key_type(&of).ok_or_else(|| self.mistake(not_groupable()))?;
            let part = KeyPart { column, key_type };
            if key.contains(&part) {
                return Err(self.mistake(Mistake::DuplicateKey { column: by.expression.clone() }));
            }
            fields.push(ResolvedField { name: by.name.clone(), column });
            key.push(part);
        }
        Ok((fields, key))
    }

    fn aggregate(&mut self, name: &str, aggregate: &Aggregate) -> Result<ResolvedAggregate, PlanError> {
        let function = aggregate.function;
        if aggregate.edge != ROWS {
            let (hint, known) = (hint(&aggregate.edge, [ROWS]), ROWS.to_owned());
            let (aggregate, edge) = (name.to_owned(), aggregate.edge.clone());
            return Err(self.mistake(Mistake::UnknownEdge { aggregate, edge, hint, known }));
        }
        let filter = match &aggregate.filter {
            Some(text) => Some(self.expression(text, true, &format!("aggregates.{name}.where"))?.0),
            None => None,
        };
        let value = match &aggregate.value {
            None => None,
            Some(AggregateValue::Member(member)) => {
                let known = self.schema["properties"].as_object().map(|members| members.keys().cloned().collect::<Vec<_>>());
                let known = known.unwrap_or_default();
                let unknown = || Mistake::UnknownMember {
                    of: self.definition.of.clone().unwrap_or_default(),
                    member: member.clone(),
                    hint: hint(member, known.iter().map(String::as_str)),
                    known: known.join(", "),
                };
                let unknown = unknown();
                Some(self.member(member).ok_or_else(|| self.mistake(unknown))?)
            }
            Some(AggregateValue::Expression(text)) => {
                let predicate = matches!(function, AggregateFunction::Any | AggregateFunction::All);
                Some(self.expression(text, predicate, &format!("aggregates.{name}.value"))?)
            }
        };
        let of = value.as_ref().map_or(Type::Null, |(_, of)| of.clone());
        let keys = self.columns.len() - self.made.len();
        let scale = match &value {
            // How many digits an expression comes to, only a value tells.
            Some((column, _)) if self.made[column - keys].is_member() => super::compute::scale(self.columns[*column].sql_type),
            _ => 0,
        };
        let Some(kind) = kind(function, &of, scale) else {
            let what = match &aggregate.value {
                Some(AggregateValue::Member(member)) => format!("{member:?}"),
                Some(AggregateValue::Expression(text)) => format!("`{text}`"),
                None => String::new(),
            };
            let (aggregate, function, of) = (name.to_owned(), function.name(), of.to_string());
            return Err(self.mistake(Mistake::NotAggregable { aggregate, function, what, of }));
        };
        let value = value.map(|(column, _)| AggregateSource::Column(column));
        Ok(ResolvedAggregate { name: name.to_owned(), over: 0, kind, value, filter, of })
    }
}

/// A column that values of a type stand in.
fn sql_type(of: &Type) -> SqlType {
    match value_type::key_type(of) {
        Some(super::KeyType::Time | super::KeyType::Instant) => match value_type::moment(of) {
            Some(sql_type) => sql_type,
            None => SqlType::NVarChar(Length::Limited(4000)),
        },
        Some(key_type) => key_type.sql_type(),
        // Lists and objects, of which only the first and the last are asked.
        None => SqlType::NVarChar(Length::Limited(4000)),
    }
}
