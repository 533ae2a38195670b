//! SELECT: projection, grouping, set operations, ORDER BY, TOP and OFFSET.

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Ident, LimitClause, OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
    SetExpr, SetOperator, SetQuantifier, TopQuantity, With,
};
use tds::{DataType, SqlError};

use super::function::descending;
use super::{SourceColumn, Translator, Typed, name_of, result_column};
use crate::catalog::{quote, same};
use crate::message;
use crate::parse::Name;
use crate::types;

/// A projected expression and its name.
struct Item {
    name: String,
    e: Typed,
}

/// One SELECT, before its columns are brought to the types of a set operation.
struct Core {
    items: Vec<Item>,
    /// FROM … HAVING.
    tail: String,
    distinct: bool,
    limit: Option<String>,
}

enum Body {
    Core(Box<Core>),
    Set {
        left: Box<Body>,
        word: &'static str,
        right: Box<Body>,
    },
    /// A parenthesised query, VALUES: finished text.
    Text {
        sql: String,
        columns: Vec<SourceColumn>,
    },
}

impl Translator<'_> {
    /// A whole query statement; its columns go into `out`.
    pub(crate) fn statement_query(&mut self, q: &Query) -> Result<String, SqlError> {
        let assigns = assigned(q);
        if q.for_clause.is_some() {
            return Err(message::unsupported("FOR XML and FOR JSON"));
        }
        let (sql, body) = self.query(q, true)?;
        let columns = columns_of(&body);
        self.out.columns = columns.iter().map(|c| result_column(&c.name, &typed_of(c))).collect();
        self.out.assigns = assigns;
        Ok(sql)
    }

    fn common_tables(&mut self, with: Option<&With>) -> Result<String, SqlError> {
        let Some(with) = with else { return Ok(String::new()) };
        let mut parts = Vec::new();
        for cte in &with.cte_tables {
            let name = cte.alias.name.value.clone();
            // The anchor of a recursive one gives its types before the rest is read.
            if let SetExpr::SetOperation { left, .. } = cte.query.body.as_ref()
                && mentions(&cte.query, &name)
            {
                let anchor = self.body(left)?;
                let mut columns = columns_of(&anchor);
                for (c, a) in columns.iter_mut().zip(&cte.alias.columns) {
                    c.name.clone_from(&a.name.value);
                }
                self.common.push((name.clone(), columns));
                let (sql, _) = self.query(&cte.query, false)?;
                parts.push(self.common_text(&name, &sql));
                continue;
            }
            let (sql, body) = self.query(&cte.query, false)?;
            let mut columns = columns_of(&body);
            for (c, a) in columns.iter_mut().zip(&cte.alias.columns) {
                c.name.clone_from(&a.name.value);
            }
            self.common.push((name.clone(), columns));
            parts.push(self.common_text(&name, &sql));
        }
        Ok(format!("WITH RECURSIVE {} ", parts.join(", ")))
    }

    fn common_text(&self, name: &str, sql: &str) -> String {
        let names: Vec<String> = self.common.last().map(|(_, c)| c.iter().map(|c| quote(&c.name)).collect()).unwrap_or_default();
        format!("{}({}) AS ({sql})", quote(name), names.join(", "))
    }

    pub(crate) fn with_clause(&mut self, with: Option<&With>) -> Result<String, SqlError> {
        self.common_tables(with)
    }

    fn query(&mut self, q: &Query, top: bool) -> Result<(String, Body), SqlError> {
        self.depth += 1;
        if self.depth > 64 {
            return Err(message::error(
                191,
                15,
                "Some part of your SQL statement is nested too deeply. Rewrite the query or break it up into smaller queries."
                    .into(),
            ));
        }
        let outer = self.common.len();
        let with = self.common_tables(q.with.as_ref())?;
        let plain = match q.body.as_ref() {
            SetExpr::Select(select) => Some(select),
            _ => None,
        };
        let (mut sql, body, order) = if let Some(select) = plain {
            let core = self.core(select, top)?;
            let order = self.order(q, &core)?;
            self.pop_scope();
            let sql = render_core(&core, false);
            (sql, Body::Core(Box::new(core)), order)
        } else {
            let mut body = self.body(&q.body)?;
            self.unify(&mut body)?;
            let columns = columns_of(&body);
            let order = set_order(q, &columns)?;
            (render(&body, false), body, order)
        };
        sql.push_str(&order);
        let limit = match &body {
            Body::Core(core) => core.limit.clone(),
            _ => None,
        };
        sql.push_str(&self.limit(q, limit)?);
        self.common.truncate(outer);
        self.depth -= 1;
        Ok((format!("{with}{sql}"), body))
    }

    fn limit(&mut self, q: &Query, top: Option<String>) -> Result<String, SqlError> {
        let offset = match &q.limit_clause {
            Some(LimitClause::LimitOffset { limit: None, offset: Some(offset), .. }) => Some(self.count(&offset.value)?),
            None => None,
            Some(_) => return Err(message::syntax("LIMIT", 1)),
        };
        let fetch = match q.fetch.as_ref().and_then(|f| f.quantity.as_ref()) {
            Some(e) => Some(self.count(e)?),
            None => top,
        };
        Ok(match (fetch, offset) {
            (Some(f), Some(o)) => format!(" LIMIT {f} OFFSET {o}"),
            (Some(f), None) => format!(" LIMIT {f}"),
            (None, Some(o)) => format!(" LIMIT -1 OFFSET {o}"),
            (None, None) => String::new(),
        })
    }

    fn count(&mut self, e: &Expr) -> Result<String, SqlError> {
        let e = self.value(e)?;
        Ok(self.cast(e, &DataType::BigInt, 0, false)?.sql)
    }

    fn body(&mut self, e: &SetExpr) -> Result<Body, SqlError> {
        match e {
            SetExpr::Select(select) => {
                let core = self.core(select, false)?;
                self.pop_scope();
                Ok(Body::Core(Box::new(core)))
            }
            SetExpr::Query(q) => {
                let (sql, body) = self.query(q, false)?;
                let columns = columns_of(&body);
                Ok(Body::Text { sql, columns })
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                let word = match (op, set_quantifier) {
                    (SetOperator::Union, SetQuantifier::All) => "UNION ALL",
                    (SetOperator::Union, _) => "UNION",
                    (SetOperator::Except | SetOperator::Minus, _) => "EXCEPT",
                    (SetOperator::Intersect, _) => "INTERSECT",
                };
                Ok(Body::Set { left: Box::new(self.body(left)?), word, right: Box::new(self.body(right)?) })
            }
            SetExpr::Values(values) => {
                let rows = values
                    .rows
                    .iter()
                    .map(|r| r.content.iter().map(|e| self.value(e)).collect::<Result<Vec<_>, _>>())
                    .collect::<Result<Vec<_>, _>>()?;
                self.values(rows)
            }
            _ => Err(message::unsupported("This form of query")),
        }
    }

    fn values(&mut self, rows: Vec<Vec<Typed>>) -> Result<Body, SqlError> {
        let width = rows.first().map_or(0, Vec::len);
        let mut columns: Vec<Vec<Typed>> = vec![Vec::new(); width];
        for row in rows {
            if row.len() != width {
                return Err(message::error(
                    10709,
                    16,
                    "The number of columns for each row in a table value constructor must be the same.".into(),
                ));
            }
            for (i, e) in row.into_iter().enumerate() {
                columns[i].push(e);
            }
        }
        let mut described = Vec::new();
        let mut converted = Vec::new();
        for column in columns {
            let (t, list) = self.alternatives(column)?;
            described.push(SourceColumn { nullable: list.iter().any(|e| e.nullable), ..plain("", &Typed::new("", t)) });
            converted.push(list);
        }
        let height = converted.first().map_or(0, Vec::len);
        let rows: Vec<String> = (0..height)
            .map(|r| format!("({})", converted.iter().map(|c| c[r].sql.as_str()).collect::<Vec<_>>().join(", ")))
            .collect();
        Ok(Body::Text { sql: format!("VALUES {}", rows.join(", ")), columns: described })
    }

    /// Brings the columns of a set operation's sides to their common types.
    fn unify(&mut self, body: &mut Body) -> Result<(), SqlError> {
        let Body::Set { .. } = body else { return Ok(()) };
        let mut leaves = Vec::new();
        collect(body, &mut leaves);
        let width = leaves[0].len();
        if leaves.iter().any(|l| l.len() != width) {
            return Err(message::error(205, 16, "All queries combined using a UNION, INTERSECT or EXCEPT operator must have an equal number of expressions in their target lists.".into()));
        }
        let mut target: Vec<Option<DataType>> = vec![None; width];
        for leaf in &leaves {
            for (t, (own, null)) in target.iter_mut().zip(leaf) {
                if !*null {
                    *t = Some(t.as_ref().map_or_else(|| own.clone(), |t| types::common(t, own)));
                }
            }
        }
        let target: Vec<DataType> = target.into_iter().map(|t| t.unwrap_or(DataType::Int)).collect();
        self.convert(body, &target)
    }

    fn convert(&mut self, body: &mut Body, target: &[DataType]) -> Result<(), SqlError> {
        match body {
            Body::Core(core) => {
                for (item, t) in core.items.iter_mut().zip(target) {
                    item.e = self.cast(item.e.clone(), t, 0, false)?;
                }
            }
            Body::Set { left, right, .. } => {
                self.convert(left, target)?;
                self.convert(right, target)?;
            }
            Body::Text { sql, columns } => {
                let mut items = Vec::new();
                for (i, (c, t)) in columns.iter().zip(target).enumerate() {
                    let e = Typed { nullable: c.nullable, ..Typed::new(format!("\"{}\"", i + 1), c.data_type.clone()) };
                    items.push(Item { name: c.name.clone(), e: self.cast(e, t, 0, false)? });
                }
                let names: Vec<String> = (1..=columns.len()).map(|i| format!("\"{i}\"")).collect();
                let inner = self.fresh();
                let tail = format!(" FROM (WITH {0}({1}) AS ({sql}) SELECT * FROM {0})", quote(&inner), names.join(", "));
                *body = Body::Core(Box::new(Core { items, tail, distinct: false, limit: None }));
            }
        }
        Ok(())
    }

    /// One SELECT. Its scope stays open, for ORDER BY; the caller closes it.
    fn core(&mut self, select: &Select, top_level: bool) -> Result<Core, SqlError> {
        let from = self.from(&select.from)?;
        let mut tail = if select.from.is_empty() { String::new() } else { format!(" FROM {from}") };
        if let Some(condition) = &select.selection {
            tail.push_str(&format!(" WHERE {}", self.condition(condition)?));
        }
        if let GroupByExpr::Expressions(list, modifiers) = &select.group_by {
            if !modifiers.is_empty() {
                return Err(message::unsupported("GROUP BY with ROLLUP or CUBE"));
            }
            if !list.is_empty() {
                let items = list.iter().map(|e| Ok(self.value(e)?.collated())).collect::<Result<Vec<_>, SqlError>>()?;
                tail.push_str(&format!(" GROUP BY {}", items.join(", ")));
            }
        }
        if let Some(having) = &select.having {
            tail.push_str(&format!(" HAVING {}", self.condition(having)?));
        }
        if let Some(into) = &select.into {
            let target = into.targets.first().map(expression_name).unwrap_or_default();
            if !top_level || target.object.is_empty() {
                return Err(message::syntax_keyword("INTO", 1));
            }
            self.out.into = Some(target);
        }
        let limit = match &select.top {
            None => None,
            Some(top) => {
                if top.percent || top.with_ties {
                    return Err(message::unsupported("TOP with PERCENT or WITH TIES"));
                }
                Some(match &top.quantity {
                    Some(TopQuantity::Constant(n)) => n.to_string(),
                    Some(TopQuantity::Expr(e)) => self.count(e)?,
                    None => return Err(message::syntax_keyword("TOP", 1)),
                })
            }
        };
        let mut items = Vec::new();
        for item in &select.projection {
            self.project(item, &mut items)?;
        }
        let distinct = matches!(select.distinct, Some(Distinct::Distinct));
        Ok(Core { items, tail, distinct, limit })
    }

    fn project(&mut self, item: &SelectItem, items: &mut Vec<Item>) -> Result<(), SqlError> {
        match item {
            SelectItem::UnnamedExpr(e) => {
                let name = match e {
                    Expr::Identifier(i) if !is_variable(i) && self.resolve(&[&i.value]).is_ok() => i.value.clone(),
                    Expr::CompoundIdentifier(parts) => parts.last().map(|p| p.value.clone()).unwrap_or_default(),
                    _ => String::new(),
                };
                let typed = self.value(e)?;
                items.push(Item { name, e: typed });
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                let e = self.value(expr)?;
                items.push(Item { name: alias.value.clone(), e });
            }
            SelectItem::Wildcard(_) => items.extend(self.wildcard(None)?.into_iter().map(|(name, e)| Item { name, e })),
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let qualifier = name_of(name).object;
                items.extend(self.wildcard(Some(&qualifier))?.into_iter().map(|(name, e)| Item { name, e }));
            }
            other => return Err(message::unsupported(&format!("'{other}' in a select list"))),
        }
        Ok(())
    }

    /// ORDER BY of a single SELECT: aliases first, then columns of FROM.
    fn order(&mut self, q: &Query, core: &Core) -> Result<String, SqlError> {
        let Some(order) = &q.order_by else { return Ok(String::new()) };
        let OrderByKind::Expressions(list) = &order.kind else { return Err(message::syntax_keyword("ORDER", 1)) };
        let mut parts = Vec::new();
        for o in list {
            let sql = match self.ordinal(&o.expr, core)? {
                Some(i) => {
                    let e = &core.items[i].e;
                    let collate = if types::is_string(&e.data_type) && !e.is_column {
                        format!(" COLLATE {}", e.collation.sqlite())
                    } else {
                        String::new()
                    };
                    format!("{}{collate}", i + 1)
                }
                None => self.value(&o.expr)?.collated(),
            };
            parts.push(format!("{sql}{}", if descending(o) { " DESC" } else { "" }));
        }
        Ok(format!(" ORDER BY {}", parts.join(", ")))
    }

    /// The select list's item that an ORDER BY expression names, by its alias or number.
    fn ordinal(&self, e: &Expr, core: &Core) -> Result<Option<usize>, SqlError> {
        match e {
            Expr::Identifier(i) => Ok(core.items.iter().position(|item| same(&item.name, &i.value))),
            Expr::Value(v) => match v.value.to_string().parse::<usize>() {
                Ok(n) if (1..=core.items.len()).contains(&n) => Ok(Some(n - 1)),
                Ok(n) => Err(message::error(
                    108,
                    16,
                    format!("The ORDER BY position number {n} is out of range of the number of items in the select list."),
                )),
                Err(_) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// A subquery that sees the scopes around it: its text and its columns.
    pub(super) fn subquery(&mut self, q: &Query) -> Result<(String, Vec<SourceColumn>), SqlError> {
        let (sql, body) = self.query(q, false)?;
        let columns = columns_of(&body);
        Ok((sql, columns))
    }

    pub(super) fn scalar_subquery(&mut self, q: &Query) -> Result<(String, Typed), SqlError> {
        let (sql, columns) = self.subquery(q)?;
        let [column] = columns.as_slice() else {
            return Err(message::error(
                116,
                16,
                "Only one expression can be specified in the select list when the subquery is not introduced with EXISTS.".into(),
            ));
        };
        Ok((sql, typed_of(column)))
    }

    /// A derived table: it sees none of the relations beside it.
    pub(super) fn isolated(&mut self, q: &Query) -> Result<(String, Vec<SourceColumn>), SqlError> {
        let current = self.scopes.pop();
        let answer = self.subquery(q);
        if let Some(current) = current {
            self.scopes.push(current);
        }
        answer
    }
}

fn plain(name: &str, e: &Typed) -> SourceColumn {
    SourceColumn {
        name: name.to_string(),
        sql: String::new(),
        data_type: e.data_type.clone(),
        nullable: e.nullable,
        collation: e.collation,
        is_column: e.is_column,
        identity: e.identity,
        computed: e.computed,
    }
}

fn typed_of(c: &SourceColumn) -> Typed {
    Typed {
        nullable: c.nullable,
        collation: c.collation,
        is_column: c.is_column,
        identity: c.identity,
        computed: c.computed,
        ..Typed::new(c.sql.clone(), c.data_type.clone())
    }
}

fn columns_of(body: &Body) -> Vec<SourceColumn> {
    match body {
        Body::Core(core) => core.items.iter().map(|i| plain(&i.name, &i.e)).collect(),
        Body::Text { columns, .. } => columns.clone(),
        Body::Set { left, right, .. } => {
            let other = columns_of(right);
            columns_of(left)
                .into_iter()
                .zip(other)
                .map(|(l, r)| SourceColumn { nullable: l.nullable || r.nullable, identity: false, computed: false, ..l })
                .collect()
        }
    }
}

/// Types of each leaf's columns, and which are bare NULLs.
fn collect(body: &Body, out: &mut Vec<Vec<(DataType, bool)>>) {
    match body {
        Body::Core(core) => out.push(core.items.iter().map(|i| (i.e.data_type.clone(), i.e.null)).collect()),
        Body::Text { columns, .. } => out.push(columns.iter().map(|c| (c.data_type.clone(), false)).collect()),
        Body::Set { left, right, .. } => {
            collect(left, out);
            collect(right, out);
        }
    }
}

fn render_core(core: &Core, in_set: bool) -> String {
    let items: Vec<String> = core
        .items
        .iter()
        .map(|i| {
            let sql = if core.distinct || in_set { i.e.collated() } else { i.e.sql.clone() };
            if i.name.is_empty() { sql } else { format!("{sql} AS {}", quote(&i.name)) }
        })
        .collect();
    format!("SELECT {}{}{}", if core.distinct { "DISTINCT " } else { "" }, items.join(", "), core.tail)
}

fn render(body: &Body, in_set: bool) -> String {
    match body {
        Body::Core(core) => {
            let sql = render_core(core, in_set);
            match &core.limit {
                // A member of a compound cannot have a LIMIT of its own.
                Some(limit) if in_set => format!("SELECT * FROM ({sql} LIMIT {limit})"),
                _ => sql,
            }
        }
        Body::Text { sql, .. } => {
            if in_set {
                format!("SELECT * FROM ({sql})")
            } else {
                sql.clone()
            }
        }
        Body::Set { left, word, right } => {
            // SQLite's compounds group from the left, INTERSECT has no precedence: what stands on the right is nested.
            let right_sql = match right.as_ref() {
                Body::Set { .. } => format!("SELECT * FROM ({})", render(right, true)),
                other => render(other, true),
            };
            format!("{} {word} {right_sql}", render(left, true))
        }
    }
}

/// ORDER BY of a set operation: columns of the result, by name or number.
fn set_order(q: &Query, columns: &[SourceColumn]) -> Result<String, SqlError> {
    let Some(order) = &q.order_by else { return Ok(String::new()) };
    let OrderByKind::Expressions(list) = &order.kind else { return Err(message::syntax_keyword("ORDER", 1)) };
    let mut parts = Vec::new();
    for o in list {
        let at = match &o.expr {
            Expr::Identifier(i) => columns.iter().position(|c| same(&c.name, &i.value)),
            Expr::Value(v) => {
                v.value.to_string().parse::<usize>().ok().filter(|n| (1..=columns.len()).contains(n)).map(|n| n - 1)
            }
            _ => None,
        };
        let Some(at) = at else {
            return Err(message::error(
                104,
                16,
                "ORDER BY items must appear in the select list if the statement contains a UNION, INTERSECT or EXCEPT operator."
                    .into(),
            ));
        };
        parts.push(format!("{}{}", at + 1, if descending(o) { " DESC" } else { "" }));
    }
    Ok(format!(" ORDER BY {}", parts.join(", ")))
}

/// A quoted name is a column's, whatever it begins with.
fn is_variable(name: &Ident) -> bool {
    name.quote_style.is_none() && name.value.starts_with('@')
}

/// The variables that a SELECT assigns, one for each item; empty if it answers rows.
fn assigned(q: &Query) -> Vec<String> {
    let SetExpr::Select(select) = q.body.as_ref() else { return Vec::new() };
    select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } if is_variable(alias) => Some(alias.value.clone()),
            _ => None,
        })
        .collect()
}

/// Whether a query's text names the table: enough to find recursive common table expressions.
fn mentions(q: &Query, name: &str) -> bool {
    let text = q.to_string().to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '#')).any(|w| w == name)
}

fn expression_name(e: &Expr) -> Name {
    let parts: Vec<String> = match e {
        Expr::Identifier(i) => vec![i.value.clone()],
        Expr::CompoundIdentifier(p) => p.iter().map(|i| i.value.clone()).collect(),
        _ => Vec::new(),
    };
    let mut parts = parts;
    let object = parts.pop().unwrap_or_default();
    let schema = parts.pop();
    Name { database: parts.pop(), schema, object }
}
