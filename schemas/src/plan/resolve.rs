//! From names to indexes, and every mistake on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use expressions::hint;

use super::{
    DEPTH_LIMIT, Derived, Edge, KeyPart, KeyType, Link, Mistake, Node, NodeId, OrderPart, Plan, PlanError, ResolvedField,
};
use crate::TableName;
use crate::entity::{Aggregate, EntityDefinition, FanOut, Field, Limits, ManyEdge, OneEdge, OrderBy};
use crate::table::TableSchema;

pub(super) type Tables<'a> = &'a dyn Fn(&TableName) -> Option<Arc<TableSchema>>;

impl EntityDefinition {
    /// Reads a definition; errors name the file, the line and the key.
    pub fn from_yaml(file_name: &str, text: &str) -> Result<Self, PlanError> {
        let error = |error: serde_yaml_ng::Error| PlanError::Yaml { file: file_name.to_owned(), message: error.to_string() };
        let definition = serde_yaml_ng::from_str(text).map_err(error)?;
        // Maps of edges keep the last of two members with one name; reading the tree as it stands refuses the second.
        serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text).map_err(error)?;
        Ok(definition)
    }
}

pub(super) fn resolve(definition: &EntityDefinition, tables: Tables<'_>) -> Result<Plan, PlanError> {
    let name = &definition.entity;
    name_is_plain(name)?;
    let mut resolver = Resolver::new(name, tables, table_names(definition));
    if let Some(of) = &definition.of {
        return Err(resolver.mistake(name, Mistake::UnknownEntity { of: of.clone(), hint: String::new(), known: name.clone() }));
    }
    if definition.table.is_none() {
        return Err(resolver.mistake(name, Mistake::NoTable));
    }
    let table = resolver.table(name, &definition.table)?;
    let place = Place { path: name.clone(), table };
    let grouped = !definition.group_by.is_empty();
    resolver.either_grouped_or_not(&place, definition)?;
    let (fields, key) = if grouped {
        resolver.group_key(&place, &definition.group_by)?
    } else if definition.key.is_empty() {
        let remedy = ", or in the definition's `key`";
        (Vec::new(), resolver.table_key(&place, remedy)?)
    } else {
        (Vec::new(), resolver.key_parts(&place, &definition.key, "key")?)
    };
    let own_key = if place.table.key.is_empty() && !grouped { key.clone() } else { resolver.table_key(&place, "")? };
    let filter = resolver.filter(&place, definition.filter.as_deref())?;
    let root = Header {
        name: name.clone(),
        parent: None,
        edge: Edge::Root,
        link: Vec::new(),
        require: false,
        filter,
        own_key: own_key.clone(),
    };
    let group = if grouped {
        let rows = &definition.rows;
        let body =
            Body { fields: Some(&[]), one: &rows.one, many: &rows.many, aggregates: &rows.aggregates, computed: &rows.computed };
        resolver.node(&place, root, &own_key, &body, 1)?;
        Some(resolver.group(&place, definition, fields)?)
    } else {
        let body = Body {
            fields: definition.fields.as_deref(),
            one: &definition.one,
            many: &definition.many,
            aggregates: &definition.aggregates,
            computed: &definition.computed,
        };
        resolver.node(&place, root, &key, &body, 1)?;
        None
    };
    let time_to_live = resolver.time_to_live(&place, definition)?;
    let marker = definition.limits.filter(Limits::is_marked).map(|_| Limits::MARKER);
    if let Some(marker) = marker.filter(|marker| resolver.nodes[0].has_member(&resolver.nodes, marker)) {
        return Err(resolver.mistake(&place.path, Mistake::DuplicateName { name: marker.to_owned() }));
    }
    let Resolver { nodes, derived, .. } = resolver;
    let (entity, definition) = (name.as_str().into(), definition.clone());
    Ok(Plan { entity, definition, key, nodes, derived, group, time_to_live, input: None })
}

pub(super) fn name_is_plain(name: &str) -> Result<(), PlanError> {
    let mut bytes = name.bytes();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if bytes.next().is_some_and(|byte| byte.is_ascii_lowercase()) && bytes.all(plain) {
        return Ok(());
    }
    Err(PlanError::Name { entity: name.to_owned() })
}

/// Every table that the definition names: what a misspelt one may have meant.
fn table_names(definition: &EntityDefinition) -> BTreeSet<String> {
    fn walk(one: &BTreeMap<String, OneEdge>, many: &BTreeMap<String, ManyEdge>, names: &mut BTreeSet<String>, depth: usize) {
        if depth > DEPTH_LIMIT {
            return;
        }
        for edge in one.values() {
            names.insert(edge.table.to_string());
            walk(&edge.one, &edge.many, names, depth + 1);
        }
        for edge in many.values() {
            names.insert(edge.table.to_string());
            walk(&edge.one, &edge.many, names, depth + 1);
        }
    }
    let mut names = BTreeSet::from([definition.table.to_string()]);
    walk(&definition.one, &definition.many, &mut names, 1);
    walk(&definition.rows.one, &definition.rows.many, &mut names, 1);
    names
}

pub(super) struct Resolver<'a> {
    entity: &'a str,
    tables: Tables<'a>,
    pub(super) nodes: Vec<Node>,
    pub(super) derived: Vec<Derived>,
    known: BTreeSet<String>,
}

/// Where in the definition, and over which table.
pub(super) struct Place {
    pub(super) path: String,
    pub(super) table: Arc<TableSchema>,
}

/// What a definition, a `one` and a `many` edge have in common.
struct Body<'a> {
    fields: Option<&'a [Field]>,
    one: &'a BTreeMap<String, OneEdge>,
    many: &'a BTreeMap<String, ManyEdge>,
    aggregates: &'a BTreeMap<String, Aggregate>,
    computed: &'a BTreeMap<String, String>,
}

/// What is known of a node before its body has been resolved.
struct Header {
    name: String,
    parent: Option<NodeId>,
    edge: Edge,
    link: Vec<Link>,
    require: bool,
    filter: Option<usize>,
    own_key: Vec<KeyPart>,
}

impl<'a> Resolver<'a> {
    /// `known`: names of tables that a misspelt one may have meant.
    pub(super) fn new(entity: &'a str, tables: Tables<'a>, known: BTreeSet<String>) -> Self {
        Self { entity, tables, nodes: Vec::new(), derived: Vec::new(), known }
    }

    pub(super) fn mistake(&self, node: &str, mistake: Mistake) -> PlanError {
        PlanError::Definition { entity: self.entity.to_owned(), node: node.to_owned(), mistake: Box::new(mistake) }
    }

    /// `group_by` and what a tree is made of exclude each other.
    fn either_grouped_or_not(&self, place: &Place, definition: &EntityDefinition) -> Result<(), PlanError> {
        let grouped = !definition.group_by.is_empty();
        let tree = [
            ("key", !definition.key.is_empty()),
            ("fields", definition.fields.is_some()),
            ("one", !definition.one.is_empty()),
            ("many", !definition.many.is_empty()),
            ("limits", definition.limits.is_some()),
            ("time_to_live", definition.time_to_live.is_some()),
        ];
        match tree.into_iter().find(|(_, present)| *present) {
            Some((member, _)) if grouped => Err(self.mistake(&place.path, Mistake::Grouped { member })),
            _ if !grouped && !definition.rows.is_empty() => Err(self.mistake(&place.path, Mistake::NotGrouped)),
            _ => Ok(()),
        }
    }

    fn table(&self, path: &str, name: &TableName) -> Result<Arc<TableSchema>, PlanError> {
        (self.tables)(name).ok_or_else(|| {
            // Another table of the definition that is captured, or the same name under the default schema.
            let default = TableName::new("dbo", name.table.clone());
            let mut near: Vec<String> =
                self.known.iter().filter(|known| known.parse().ok().and_then(|n| (self.tables)(&n)).is_some()).cloned().collect();
            if (self.tables)(&default).is_some() {
                near.push(default.to_string());
            }
            let hint = hint(&name.to_string(), near.iter().map(String::as_str));
            self.mistake(path, Mistake::UnknownTable { table: name.clone(), hint })
        })
    }

    pub(super) fn column(&self, place: &Place, name: &str, within: &str) -> Result<usize, PlanError> {
        let names = || place.table.columns.iter().map(|column| column.name.as_str());
        place.table.column(name).ok_or_else(|| {
            let (table, column, within) = (place.table.name.clone(), name.to_owned(), within.to_owned());
            let (hint, known) = (hint(name, names()), names().collect::<Vec<_>>().join(", "));
            self.mistake(&place.path, Mistake::UnknownColumn { table, column, place: within, hint, known })
        })
    }

    pub(super) fn key_part(&self, place: &Place, column: usize, within: &str) -> Result<KeyPart, PlanError> {
        let declared = &place.table.columns[column];
        match KeyType::of(declared) {
            Some(key_type) => Ok(KeyPart { column, key_type }),
            None => {
                let (table, column) = (place.table.name.clone(), declared.name.clone());
                let (sql_type, within) = (declared.sql_type.to_string(), within.to_owned());
                Err(self.mistake(&place.path, Mistake::NotComparable { table, column, sql_type, place: within }))
            }
        }
    }

    fn key_parts(&self, place: &Place, names: &[String], within: &str) -> Result<Vec<KeyPart>, PlanError> {
        let mut parts: Vec<KeyPart> = Vec::with_capacity(names.len());
        for name in names {
            let part = self.key_part(place, self.column(place, name, within)?, within)?;
            if parts.contains(&part) {
                return Err(self.mistake(&place.path, Mistake::DuplicateKey { column: name.clone() }));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    fn table_key(&self, place: &Place, remedy: &'static str) -> Result<Vec<KeyPart>, PlanError> {
        if place.table.key.is_empty() {
            return Err(self.mistake(&place.path, Mistake::NoKey { table: place.table.name.clone(), remedy }));
        }
        place.table.key.iter().map(|&column| self.key_part(place, column, "key")).collect()
    }

    fn node(
        &mut self,
        place: &Place,
        header: Header,
        key: &[KeyPart],
        body: &Body<'_>,
        depth: usize,
    ) -> Result<NodeId, PlanError> {
        if depth > DEPTH_LIMIT {
            return Err(self.mistake(&place.path, Mistake::TooDeep));
        }
        let fields = self.fields(place, body.fields)?;
        let edges = body.one.keys().chain(body.many.keys());
        let values = body.aggregates.keys().chain(body.computed.keys());
        let names = fields.iter().map(|field| &field.name).chain(edges).chain(values);
        let mut seen = BTreeSet::new();
        if let Some(name) = names.into_iter().find(|name| !seen.insert(name.as_str())) {
            return Err(self.mistake(&place.path, Mistake::DuplicateName { name: name.clone() }));
        }
        let id = self.nodes.len();
        self.nodes.push(Node {
            path: place.path.clone(),
            name: header.name,
            table: place.table.clone(),
            parent: header.parent,
            edge: header.edge,
            link: header.link,
            require: header.require,
            lazy: false,
            filter: header.filter,
            fields,
            ones: Vec::new(),
            manys: Vec::new(),
            aggregates: Vec::new(),
            computed: Vec::new(),
            own_key: header.own_key,
        });
        for (name, edge) in body.one {
            let child = self.one(place, id, name, edge, depth)?;
            self.nodes[id].ones.push(child);
        }
        for (name, edge) in body.many {
            let child = self.many(place, id, name, edge, key, depth)?;
            self.nodes[id].manys.push(child);
        }
        for (name, aggregate) in body.aggregates {
            let aggregate = self.aggregate(place, id, name, aggregate)?;
            self.nodes[id].aggregates.push(aggregate);
        }
        self.nodes[id].computed = self.computed(place, id, body.computed)?;
        Ok(id)
    }

    fn fields(&self, place: &Place, fields: Option<&[Field]>) -> Result<Vec<ResolvedField>, PlanError> {
        match fields {
            None => Ok(place
                .table
                .columns
                .iter()
                .enumerate()
                .map(|(column, declared)| ResolvedField { name: declared.name.clone(), column })
                .collect()),
            Some(fields) => fields
                .iter()
                .map(|field| Ok(ResolvedField { name: field.name.clone(), column: self.column(place, &field.column, "fields")? }))
                .collect(),
        }
    }

    fn one(&mut self, parent: &Place, parent_id: NodeId, name: &str, edge: &OneEdge, depth: usize) -> Result<NodeId, PlanError> {
        let path = format!("{}.{name}", parent.path);
        let place = Place { table: self.table(&path, &edge.table)?, path };
        let own_key = self.table_key(&place, "")?;
        let references = if edge.references.is_empty() {
            own_key.iter().map(|part| part.column).collect()
        } else {
            self.columns(&place, &edge.references, "references")?
        };
        let on_parent = Place { path: place.path.clone(), table: parent.table.clone() };
        let by = self.columns(&on_parent, &edge.by, "by")?;
        let link = self.link(&place.path, &parent.table, &by, &place.table, &references, references.len())?;
        let filter = self.filter(&place, edge.filter.as_deref())?;
        let header = Header {
            name: name.to_owned(),
            parent: Some(parent_id),
            edge: Edge::One,
            link,
            require: edge.require,
            filter,
            own_key,
        };
        let key: Vec<KeyPart> = header.own_key.clone();
        let mut inner = edge.one.clone();
        if edge.repeat > 0 {
            self.repeats(&place, name, &mut inner, OneEdge { repeat: edge.repeat - 1, ..edge.clone() })?;
        }
        let body = Body {
            fields: edge.fields.as_deref(),
            one: &inner,
            many: &edge.many,
            aggregates: &edge.aggregates,
            computed: &edge.computed,
        };
        let id = self.node(&place, header, &key, &body, depth + 1)?;
        self.nodes[id].lazy = edge.fan_out == FanOut::Lazy;
        Ok(id)
    }

    fn many(
        &mut self,
        parent: &Place,
        parent_id: NodeId,
        name: &str,
        edge: &ManyEdge,
        parent_key: &[KeyPart],
        depth: usize,
    ) -> Result<NodeId, PlanError> {
        let path = format!("{}.{name}", parent.path);
        let place = Place { table: self.table(&path, &edge.table)?, path };
        let own_key = self.table_key(&place, "")?;
        let on_parent = Place { path: place.path.clone(), table: parent.table.clone() };
        let references = if edge.references.is_empty() {
            parent_key.iter().map(|part| part.column).collect()
        } else {
            self.columns(&on_parent, &edge.references, "references")?
        };
        let by = self.columns(&place, &edge.by, "by")?;
        let link = self.link(&place.path, &parent.table, &references, &place.table, &by, references.len())?;
        let order_by = self.order_by(&place, &edge.order_by)?;
        let filter = self.filter(&place, edge.filter.as_deref())?;
        let header = Header {
            name: name.to_owned(),
            parent: Some(parent_id),
            edge: Edge::Many { order_by },
            link,
            require: edge.require,
            filter,
            own_key: own_key.clone(),
        };
        let mut inner = edge.many.clone();
        if edge.repeat > 0 {
            self.repeats(&place, name, &mut inner, ManyEdge { repeat: edge.repeat - 1, ..edge.clone() })?;
        }
        let body = Body {
            fields: edge.fields.as_deref(),
            one: &edge.one,
            many: &inner,
            aggregates: &edge.aggregates,
            computed: &edge.computed,
        };
        self.node(&place, header, &own_key, &body, depth + 1)
    }

    /// Puts an edge into itself, a level less deep.
    fn repeats<E>(&self, place: &Place, name: &str, edges: &mut BTreeMap<String, E>, edge: E) -> Result<(), PlanError> {
        match edges.insert(name.to_owned(), edge) {
            None => Ok(()),
            Some(_) => Err(self.mistake(&place.path, Mistake::DuplicateName { name: name.to_owned() })),
        }
    }

    fn columns(&self, place: &Place, names: &[String], within: &str) -> Result<Vec<usize>, PlanError> {
        names.iter().map(|name| self.column(place, name, within)).collect()
    }

    fn order_by(&self, place: &Place, order: &[OrderBy]) -> Result<Vec<OrderPart>, PlanError> {
        order
            .iter()
            .map(|part| {
                let KeyPart { column, key_type } =
                    self.key_part(place, self.column(place, &part.column, "order_by")?, "order_by")?;
                Ok(OrderPart { column, key_type, descending: part.descending })
            })
            .collect()
    }

    /// Pairs the parent's columns with the node's own. One side is `by`, the other `references`.
    fn link(
        &self,
        path: &str,
        parent: &TableSchema,
        parent_columns: &[usize],
        own: &TableSchema,
        own_columns: &[usize],
        references: usize,
    ) -> Result<Vec<Link>, PlanError> {
        let by = parent_columns.len() + own_columns.len() - references;
        if by == 0 {
            return Err(self.mistake(path, Mistake::NoBy));
        }
        if by != references {
            let list = |table: &TableSchema, columns: &[usize]| {
                let names: Vec<&str> = columns.iter().map(|&column| table.columns[column].name.as_str()).collect();
                format!("{}: {}", table.name, names.join(", "))
            };
            let referenced =
                if parent_columns.len() == references { list(parent, parent_columns) } else { list(own, own_columns) };
            return Err(self.mistake(path, Mistake::LinkLength { by, references, referenced }));
        }
        let pairs = parent_columns.iter().zip(own_columns);
        pairs
            .map(|(&parent_column, &own_column)| {
                let (left, right) = (&parent.columns[parent_column], &own.columns[own_column]);
                let name = |table: &TableSchema, column: &crate::table::Column| {
                    format!("{}.{} ({})", table.name, column.name, column.sql_type)
                };
                match KeyType::in_common(left, right) {
                    Some(key_type) => Ok(Link { parent_column, own_column, key_type }),
                    None => {
                        let (left, right) = (name(parent, left), name(own, right));
                        Err(self.mistake(path, Mistake::LinkTypes { left, right }))
                    }
                }
            })
            .collect()
    }
}
