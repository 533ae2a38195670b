//! What expressions make of a row, once, when it comes in. Rows of tables over which nothing is derived do not come by here.
//!
//! An expression that fails on a row (a division by zero, say) makes null of it: a filter is not met by null, an aggregate leaves it out. Failures are counted.

use expressions::{EvaluationError, Expression, Input, Value};
use schemas::parse::RowView;

use crate::catalog::{DerivedSlot, Table};
use crate::metrics;
use crate::state::row;

/// The row under one expression.
struct Columns<'a> {
    expression: &'a Expression,
    inputs: &'a [usize],
    row: RowView<'a>,
}

impl Input for Columns<'_> {
    fn get(&self, variable: usize) -> Result<Value<'_>, EvaluationError> {
        let (Some(&slot), Some((_, of))) = (self.inputs.get(variable), self.expression.variables().get(variable)) else {
            return Ok(Value::Null);
        };
        Value::from_fragment(self.row.get(slot), of)
    }
}

/// Appends a row: its columns, those that only expressions read left blank, and what is derived of them.
pub(crate) fn put(table: &Table, row: RowView<'_>, out: &mut Vec<u8>) {
    for (fragment, blank) in row.values().zip(&table.blank) {
        row::put(if *blank { b"null" } else { fragment }, out);
    }
    let mut fragment = Vec::new();
    for DerivedSlot { expression, inputs, .. } in &table.derived {
        let Some(expression) = expression else {
            row::put(b"null", out);
            continue;
        };
        fragment.clear();
        match expression.evaluate(&Columns { expression, inputs, row }) {
            Ok(value) => value.write_json(&mut fragment),
            Err(error) => {
                metrics::expression_failed(&table.schema.name.to_string());
                tracing::debug!(table = %table.schema.name, expression = expression.text(), %error, "an expression fails on a row");
                fragment.extend_from_slice(b"null");
            }
        }
        row::put(&fragment, out);
    }
}
