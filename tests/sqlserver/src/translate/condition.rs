//! Conditions: T-SQL keeps them apart from values.

use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator};
use tds::SqlError;

use super::{Translator, Typed};
use crate::catalog::Order;
use crate::message;
use crate::types;

fn comparison(op: &BinaryOperator) -> Option<&'static str> {
    Some(match op {
        BinaryOperator::Eq => "=",
        BinaryOperator::NotEq => "<>",
        BinaryOperator::Lt => "<",
        BinaryOperator::LtEq => "<=",
        BinaryOperator::Gt => ">",
        BinaryOperator::GtEq => ">=",
        _ => return None,
    })
}

/// Whether the expression is a condition, not a value.
pub(super) fn is_condition(e: &Expr) -> bool {
    match e {
        Expr::Nested(inner) => is_condition(inner),
        Expr::UnaryOp { op: UnaryOperator::Not, .. } => true,
        Expr::BinaryOp { op, .. } => comparison(op).is_some() || matches!(op, BinaryOperator::And | BinaryOperator::Or),
        Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::InList { .. }
        | Expr::InSubquery { .. }
        | Expr::Between { .. }
        | Expr::Like { .. }
        | Expr::Exists { .. } => true,
        Expr::AnyOp { .. } | Expr::AllOp { .. } | Expr::IsDistinctFrom(..) | Expr::IsNotDistinctFrom(..) => true,
        _ => false,
    }
}

impl Translator<'_> {
    pub(crate) fn condition(&mut self, e: &Expr) -> Result<String, SqlError> {
        Ok(match e {
            Expr::Nested(inner) => format!("({})", self.condition(inner)?),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                format!("{} AND {}", self.condition(left)?, self.condition(right)?)
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                format!("({} OR {})", self.condition(left)?, self.condition(right)?)
            }
            Expr::BinaryOp { left, op, right } if comparison(op).is_some() => {
                self.compare(left, comparison(op).unwrap_or("="), right)?
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => format!("NOT ({})", self.condition(expr)?),
            Expr::IsNull(inner) => format!("{} IS NULL", self.value(inner)?.sql),
            Expr::IsNotNull(inner) => format!("{} IS NOT NULL", self.value(inner)?.sql),
            Expr::IsDistinctFrom(a, b) => self.compare(a, "IS NOT", b)?,
            Expr::IsNotDistinctFrom(a, b) => self.compare(a, "IS", b)?,
            Expr::InList { expr, list, negated } => self.in_list(expr, list, *negated)?,
            Expr::InSubquery { expr, subquery, negated } => {
                let left = self.value(expr)?;
                let (sql, column) = self.scalar_subquery(subquery)?;
                let t = types::common(&left.data_type, &column.data_type);
                let left = self.operand(left, &t)?;
                let not = if *negated { "NOT " } else { "" };
                if types::code(&column.data_type) != types::code(&t) && !types::is_string(&t) && !types::is_integer(&t) {
                    let converted = format!(
                        "SELECT cv(\"v\", {}, {}, 0) FROM (WITH \"~in\"(\"v\") AS ({sql}) SELECT \"v\" FROM \"~in\")",
                        types::code(&column.data_type),
                        types::code(&t)
                    );
                    format!("{} {not}IN ({converted})", left.collated())
                } else {
                    format!("{} {not}IN ({sql})", left.collated())
                }
            }
            Expr::Between { expr, negated, low, high } => {
                let inner = format!("({} AND {})", self.compare(expr, ">=", low)?, self.compare(expr, "<=", high)?);
                if *negated { format!("NOT {inner}") } else { inner }
            }
            Expr::Like { negated, expr, pattern, escape_char, .. } => {
                self.like(expr, pattern, escape_char.as_deref(), *negated)?
            }
            Expr::Exists { subquery, negated } => {
                let (sql, _) = self.subquery(subquery)?;
                format!("{}EXISTS ({sql})", if *negated { "NOT " } else { "" })
            }
            Expr::AnyOp { left, compare_op, right, .. } => self.quantified(left, compare_op, right, true)?,
            Expr::AllOp { left, compare_op, right } => self.quantified(left, compare_op, right, false)?,
            other => {
                return Err(message::error(
                    4145,
                    15,
                    format!(
                        "An expression of non-boolean type specified in a context where a condition is expected, near '{other}'."
                    ),
                ));
            }
        })
    }

    fn in_list(&mut self, expr: &Expr, list: &[Expr], negated: bool) -> Result<String, SqlError> {
        let left = self.value(expr)?;
        let mut items = Vec::with_capacity(list.len());
        let mut t = left.data_type.clone();
        for item in list {
            let item = self.value(item)?;
            if !item.null {
                t = types::common(&t, &item.data_type);
            }
            items.push(item);
        }
        let left = self.operand(left, &t)?;
        let items = items.into_iter().map(|i| Ok(self.operand(i, &t)?.sql)).collect::<Result<Vec<_>, SqlError>>()?;
        Ok(format!("{} {}IN ({})", left.collated(), if negated { "NOT " } else { "" }, items.join(", ")))
    }

    fn compare(&mut self, left: &Expr, op: &str, right: &Expr) -> Result<String, SqlError> {
        let (a, b) = (self.value(left)?, self.value(right)?);
        self.compare_typed(a, op, b)
    }

    pub(super) fn compare_typed(&mut self, a: Typed, op: &str, b: Typed) -> Result<String, SqlError> {
        for t in [&a.data_type, &b.data_type] {
            if matches!(t, tds::DataType::Text | tds::DataType::NText | tds::DataType::Image | tds::DataType::Xml)
                && !a.null
                && !b.null
            {
                return Err(message::error(
                    402,
                    16,
                    format!(
                        "The data types {} and {} are incompatible in the operator.",
                        types::name(&a.data_type),
                        types::name(&b.data_type)
                    ),
                ));
            }
        }
        let t = match (a.null, b.null) {
            (true, false) => b.data_type.clone(),
            (false, true) => a.data_type.clone(),
            _ => types::common(&a.data_type, &b.data_type),
        };
        let (a, b) = (self.operand(a, &t)?, self.operand(b, &t)?);
        if types::is_string(&t) {
            // An explicit COLLATE or a column's collation rules; a column's is SQLite's own, so that its indexes serve.
            let collation =
                if b.is_column && !a.is_column || a.collation.order == Order::Insensitive { b.collation } else { a.collation };
            if (a.is_column && a.collation == collation) || (!a.is_column && b.is_column && b.collation == collation) {
                return Ok(format!("{} {op} {}", a.sql, b.sql));
            }
            return Ok(format!("({}) COLLATE {} {op} {}", a.sql, collation.sqlite(), b.sql));
        }
        Ok(format!("{} {op} {}", a.sql, b.sql))
    }

    fn like(&mut self, expr: &Expr, pattern: &Expr, escape: Option<&Expr>, negated: bool) -> Result<String, SqlError> {
        let a = self.value(expr)?;
        let a = self.as_string(a)?;
        let b = self.value(pattern)?;
        let b = self.as_string(b)?;
        let escape = match escape {
            Some(e) => self.value(e)?.sql,
            None => "NULL".into(),
        };
        let sensitive = u8::from(a.collation.order != Order::Insensitive);
        // NOT of NULL is NULL: an unknown stays unknown.
        Ok(format!("{}tlike({}, {}, {escape}, {sensitive})", if negated { "NOT " } else { "" }, a.sql, b.sql))
    }

    /// `x op ANY (SELECT …)`, `x op ALL (SELECT …)`.
    fn quantified(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr, any: bool) -> Result<String, SqlError> {
        let (Expr::Subquery(q), Some(op)) = (right, comparison(op)) else {
            return Err(message::unsupported("ANY or ALL without a subquery"));
        };
        let a = self.value(left)?;
        let (sql, column) = self.scalar_subquery(q)?;
        let t = types::common(&a.data_type, &column.data_type);
        let a = self.operand(a, &t)?;
        let b = self.operand(Typed { collation: column.collation, ..Typed::new("\"v\"", column.data_type) }, &t)?;
        let test = self.compare_typed(a, op, b)?;
        let from = format!("FROM (WITH \"~q\"(\"v\") AS ({sql}) SELECT \"v\" FROM \"~q\")");
        Ok(if any {
            format!("EXISTS (SELECT 1 {from} WHERE {test})")
        } else {
            format!("NOT EXISTS (SELECT 1 {from} WHERE NOT ({test}))")
        })
    }
}
