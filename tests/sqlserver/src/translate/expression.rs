//! Values.

use sqlparser::ast::{BinaryOperator, CastKind, Expr, Ident, UnaryOperator, Value as Literal};
use tds::{DataType, Length, SqlError, Value};

use super::{Translator, Typed};
use crate::catalog::{Order, collation_of};
use crate::message;
use crate::types::{self, decimal, storage};

impl Translator<'_> {
    pub(crate) fn value(&mut self, e: &Expr) -> Result<Typed, SqlError> {
        self.depth += 1;
        if self.depth > 400 {
            return Err(message::error(
                191,
                15,
                "Some part of your SQL statement is nested too deeply. Rewrite the query or break it up into smaller queries."
                    .into(),
            ));
        }
        let typed = self.value_inner(e);
        self.depth -= 1;
        typed
    }

    fn value_inner(&mut self, e: &Expr) -> Result<Typed, SqlError> {
        match e {
            Expr::Identifier(ident) => self.identifier(ident),
            Expr::CompoundIdentifier(parts) => {
                let names: Vec<&str> = parts.iter().map(|p| p.value.as_str()).collect();
                // A property of a value looks like a column of a table, which has the first say.
                self.resolve(&names).or_else(|e| self.clr_property(parts).unwrap_or(Err(e)))
            }
            Expr::CompoundFieldAccess { root, access_chain } => self.clr_chain(root, access_chain),
            Expr::Value(v) => constant(&v.value),
            Expr::Nested(inner) => {
                let inner = self.value(inner)?;
                if inner.value.is_some() || inner.is_column {
                    return Ok(inner);
                }
                Ok(Typed { sql: format!("({})", inner.sql), ..inner })
            }
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            Expr::Function(f) => self.function(f),
            Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            Expr::Cast { kind, expr, data_type, .. } => {
                let to = types::parse(&data_type.to_string(), 30)?;
                let e = self.value(expr)?;
                self.cast_padded(e, &to.data_type, 0, matches!(kind, CastKind::TryCast | CastKind::SafeCast))
            }
            Expr::Convert { is_try, expr, data_type, styles, .. } => {
                let to = types::parse(&data_type.as_ref().map(ToString::to_string).unwrap_or_default(), 30)?;
                let e = self.value(expr)?;
                let style = match styles.first() {
                    None => 0,
                    Some(s) => match self.value(s)?.value {
                        Some(Value::Int(i)) => i,
                        _ => return Err(message::unsupported("CONVERT with a style that is not a constant")),
                    },
                };
                self.cast_padded(e, &to.data_type, style, *is_try)
            }
            Expr::Collate { expr, collation } => {
                let e = self.value(expr)?;
                let collation = collation_of(Some(&collation.to_string()));
                Ok(Typed { sql: format!("{} COLLATE {}", e.sql, collation.sqlite()), collation, is_column: false, ..e })
            }
            Expr::Subquery(q) => {
                let (sql, column) = self.scalar_subquery(q)?;
                Ok(Typed { is_column: false, value: None, null: false, nullable: true, sql: format!("({sql})"), ..column })
            }
            Expr::Trim { expr, trim_where: None, trim_what: None, .. } => {
                let e = self.value(expr)?;
                let e = self.as_string(e)?;
                Ok(Typed { sql: format!("ttrim({})", e.sql), is_column: false, value: None, ..e })
            }
            Expr::AtTimeZone { timestamp, time_zone } => self.at_time_zone(timestamp, time_zone),
            Expr::Prefixed { value, .. } => self.value(value),
            e if super::condition::is_condition(e) => Err(message::syntax_keyword("IS", 1)),
            other => Err(message::unsupported(&format!("The expression '{other}'"))),
        }
    }

    fn cast_padded(&mut self, e: Typed, to: &DataType, style: i64, attempt: bool) -> Result<Typed, SqlError> {
        let sql = e.padded();
        let is_column = e.is_column && sql == e.sql;
        let t = self.cast(Typed { sql, is_column, ..e }, to, style, attempt)?;
        Ok(Typed { is_column: false, ..t })
    }

    fn identifier(&mut self, ident: &Ident) -> Result<Typed, SqlError> {
        let name = &ident.value;
        if ident.quote_style.is_none() {
            if let Some(global) = name.strip_prefix("@@") {
                return self.global(global);
            }
            if name.starts_with('@') {
                return self.variable(name);
            }
            match name.to_ascii_uppercase().as_str() {
                "CURRENT_TIMESTAMP" => return Ok(self.moment("getdate", DataType::DateTime).not_null()),
                upper @ ("SYSTEM_USER" | "CURRENT_USER" | "SESSION_USER" | "USER") if self.resolve(&[name]).is_err() => {
                    return self.session_constant(upper);
                }
                _ => {}
            }
        }
        self.resolve(&[name])
    }

    pub(super) fn session_constant(&mut self, name: &str) -> Result<Typed, SqlError> {
        let (value, t) = self.lookup.constant(name).ok_or_else(|| message::no_function(name))?;
        self.out.volatile = true;
        Ok(Typed::constant(value, t))
    }

    fn global(&mut self, name: &str) -> Result<Typed, SqlError> {
        let moment: (&'static str, DataType) = match name.to_ascii_uppercase().as_str() {
            "ROWCOUNT" => ("rowcount", DataType::Int),
            "ERROR" => ("error", DataType::Int),
            "TRANCOUNT" => ("trancount", DataType::Int),
            "IDENTITY" => ("identity", DataType::Numeric { precision: 38, scale: 0 }),
            "FETCH_STATUS" => ("fetch_status", DataType::Int),
            "DBTS" => ("dbts", DataType::VarBinary(Length::Limited(8))),
            "OPTIONS" => ("options", DataType::Int),
            "LOCK_TIMEOUT" => ("lock_timeout", DataType::Int),
            upper => {
                let name = format!("@@{upper}");
                let (value, t) = self.lookup.constant(&name).ok_or_else(|| message::no_variable(&name))?;
                self.out.volatile = true;
                return Ok(Typed::constant(value, t));
            }
        };
        Ok(self.moment(moment.0, moment.1))
    }

    fn unary(&mut self, op: UnaryOperator, expr: &Expr) -> Result<Typed, SqlError> {
        let e = self.value(expr)?;
        match op {
            UnaryOperator::Plus => Ok(e),
            UnaryOperator::Minus => {
                if let Some(v) = &e.value {
                    let negated = match v {
                        Value::Int(i) => Some(Value::Int(-i)),
                        Value::Float(f) => Some(Value::Float(-f)),
                        Value::Decimal { mantissa, scale } => Some(Value::Decimal { mantissa: -mantissa, scale: *scale }),
                        _ => None,
                    };
                    if let Some(v) = negated {
                        // -9223372036854775808 reads as a decimal first.
                        if let (Value::Decimal { mantissa, scale: 0 }, DataType::Numeric { precision: 19, .. }) =
                            (&v, &e.data_type)
                            && let Ok(i) = i64::try_from(*mantissa)
                        {
                            return Ok(Typed::constant(Value::Int(i), DataType::BigInt));
                        }
                        return Ok(Typed::constant(v, e.data_type));
                    }
                }
                let t = if e.data_type == DataType::Bit { DataType::Int } else { e.data_type.clone() };
                let sql =
                    if types::is_integer(&t) { format!("(-{})", e.sql) } else { format!("dneg({}, {})", e.sql, types::code(&t)) };
                Ok(Typed::new(sql, t).or_null(e.nullable))
            }
            UnaryOperator::BitwiseNot => Ok(Typed::new(format!("(~{})", e.sql), e.data_type).or_null(e.nullable)),
            _ => Err(message::unsupported("This operator")),
        }
    }

    fn binary(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr) -> Result<Typed, SqlError> {
        let symbol = match op {
            BinaryOperator::Plus => '+',
            BinaryOperator::Minus => '-',
            BinaryOperator::Multiply => '*',
            BinaryOperator::Divide => '/',
            BinaryOperator::Modulo => '%',
            BinaryOperator::BitwiseAnd => '&',
            BinaryOperator::BitwiseOr => '|',
            BinaryOperator::BitwiseXor => '^',
            BinaryOperator::StringConcat => '+',
            _ => return Err(message::syntax(&op.to_string(), 1)),
        };
        let (a, b) = (self.value(left)?, self.value(right)?);
        self.arithmetic(symbol, a, b)
    }

    pub(super) fn arithmetic(&mut self, op: char, a: Typed, b: Typed) -> Result<Typed, SqlError> {
        let (a, b) = (literal_precision(a, &b.data_type), b);
        let b = literal_precision(b, &a.data_type);
        let nullable = a.nullable || b.nullable;
        if matches!(op, '&' | '|' | '^') {
            let t = types::common(&a.data_type, &b.data_type);
            let (a, b) = (self.operand(a, &t)?, self.operand(b, &t)?);
            let sql = if op == '^' {
                format!("(({0} | {1}) - ({0} & {1}))", a.sql, b.sql)
            } else {
                format!("({} {op} {})", a.sql, b.sql)
            };
            return Ok(Typed::new(sql, t).or_null(nullable));
        }
        let both_text = (a.is_string() || a.null) && (b.is_string() || b.null);
        if op == '+' && both_text && !(a.null && b.null) {
            return self.concatenate(&a, &b);
        }
        if op == '+' && types::is_binary(&a.data_type) && types::is_binary(&b.data_type) {
            let length = types::length(&a.data_type).zip(types::length(&b.data_type)).map(|(x, y)| x + y).filter(|n| *n <= 8000);
            let t = DataType::VarBinary(length.map_or(Length::Max, |n| Length::Limited(n as u16)));
            return Ok(Typed::new(format!("CAST(({} || {}) AS BLOB)", a.sql, b.sql), t).or_null(nullable));
        }
        // A datetime and a number of days.
        for (x, y, flipped) in [(&a, &b, false), (&b, &a, true)] {
            if matches!(x.data_type, DataType::DateTime | DataType::SmallDateTime)
                && !types::is_temporal(&y.data_type)
                && !y.is_string()
                && (!flipped || op != '-')
            {
                let days = self.cast(y.clone(), &DataType::Float, 0, false)?;
                let sign = if op == '-' { "-" } else { "" };
                let sql = format!(
                    "dateadd('millisecond', CAST(round({sign}{} * 86400000) AS INTEGER), {}, {})",
                    days.sql,
                    x.sql,
                    types::code(&x.data_type)
                );
                return Ok(Typed::new(sql, x.data_type.clone()).or_null(nullable));
            }
        }
        let t = match (a.null, b.null) {
            (true, true) => DataType::Int,
            (true, false) => b.data_type.clone(),
            (false, true) => a.data_type.clone(),
            _ => types::arithmetic(op, &a.data_type, &b.data_type),
        };
        if types::exact(&t).is_none() && !types::is_float(&t) {
            let name = match op {
                '+' => "add",
                '-' => "subtract",
                '*' => "multiply",
                '/' => "divide",
                _ => "modulo",
            };
            return Err(message::error(
                8117,
                16,
                format!("Operand data type {} is invalid for {name} operator.", types::name(&t)),
            ));
        }
        // Text operands become the other's type; exact ones keep their own scale, the operation aligns them.
        let mut side = |e: Typed| {
            if types::exact(&e.data_type).is_some() && !types::is_float(&t) && !e.null {
                Ok(e)
            } else {
                self.cast(e, &t, 0, false)
            }
        };
        let (a, b) = (side(a)?, side(b)?);
        if let (Some(Value::Int(x)), Some(Value::Int(y))) = (&a.value, &b.value) {
            let folded = match op {
                '+' => x.checked_add(*y),
                '-' => x.checked_sub(*y),
                '*' => x.checked_mul(*y),
                _ => None,
            };
            if let Some(v) = folded.and_then(|v| types::convert::check_integer(v, &t)) {
                return Ok(Typed::constant(Value::Int(v), t));
            }
        }
        let sql = format!(
            "arith('{op}', {}, {}, {}, {}, {})",
            a.sql,
            types::code(&a.data_type),
            b.sql,
            types::code(&b.data_type),
            types::code(&t)
        );
        Ok(Typed::new(sql, t).or_null(nullable))
    }

    pub(super) fn concatenate(&mut self, a: &Typed, b: &Typed) -> Result<Typed, SqlError> {
        let nullable = a.nullable || b.nullable;
        let unicode = types::is_unicode(&a.data_type) || types::is_unicode(&b.data_type);
        let limit = if unicode { 4000 } else { 8000 };
        let length = types::length(&a.data_type).zip(types::length(&b.data_type)).map(|(x, y)| (x + y).min(limit));
        let t = types::string_of(unicode, length);
        if let (Some(Value::Text(x)), Some(Value::Text(y))) = (&a.value, &b.value) {
            return Ok(Typed::constant(Value::Text(format!("{x}{y}")), t));
        }
        let collation =
            if a.collation.order == Order::Insensitive && a.collation.wire.is_none() { b.collation } else { a.collation };
        Ok(Typed { collation, ..Typed::new(format!("({} || {})", a.padded(), b.padded()), t).or_null(nullable) })
    }

    fn case(
        &mut self,
        operand: Option<&Expr>,
        conditions: &[sqlparser::ast::CaseWhen],
        otherwise: Option<&Expr>,
    ) -> Result<Typed, SqlError> {
        let mut tests = Vec::with_capacity(conditions.len());
        let mut results = Vec::with_capacity(conditions.len() + 1);
        for when in conditions {
            tests.push(match operand {
                None => self.condition(&when.condition)?,
                Some(o) => {
                    let (a, b) = (self.value(o)?, self.value(&when.condition)?);
                    self.compare_typed(a, "=", b)?
                }
            });
            results.push(self.value(&when.result)?);
        }
        results.push(match otherwise {
            Some(e) => self.value(e)?,
            None => Typed::null(),
        });
        let (t, results) = self.alternatives(results)?;
        let nullable = results.iter().any(|r| r.nullable);
        let mut sql = String::from("CASE");
        for (test, result) in tests.iter().zip(&results) {
            sql.push_str(&format!(" WHEN {test} THEN {}", result.sql));
        }
        if let Some(last) = results.last() {
            sql.push_str(&format!(" ELSE {} END", last.sql));
        }
        Ok(Typed::new(sql, t).or_null(nullable))
    }

    /// Expressions brought to their common type.
    pub(super) fn alternatives(&mut self, list: Vec<Typed>) -> Result<(DataType, Vec<Typed>), SqlError> {
        let t = list
            .iter()
            .filter(|e| !e.null)
            .map(|e| e.data_type.clone())
            .reduce(|a, b| types::common(&a, &b))
            .unwrap_or(DataType::Int);
        let list = list.into_iter().map(|e| self.cast(e, &t, 0, false)).collect::<Result<_, _>>()?;
        Ok((t, list))
    }

    fn at_time_zone(&mut self, timestamp: &Expr, zone: &Expr) -> Result<Typed, SqlError> {
        let e = self.value(timestamp)?;
        let zone = self.value(zone)?;
        let t = DataType::DateTimeOffset { scale: 7 };
        Ok(Typed::new(format!("attz({}, {}, {})", e.sql, types::code(&e.data_type), zone.sql), t).or_null(e.nullable))
    }
}

/// A literal and its type, as SQL Server types it.
fn constant(v: &Literal) -> Result<Typed, SqlError> {
    Ok(match v {
        Literal::Null => Typed::null(),
        Literal::Number(text, _) => number(text)?,
        Literal::Placeholder(text) if text.starts_with('$') => number(text)?,
        Literal::SingleQuotedString(s) => {
            let length = s.encode_utf16().count() as u32;
            // A literal without N is in the database's code page.
            let text: String = s
                .chars()
                .map(|c| {
                    if (c as u32) < 0x100 || "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ".contains(c)
                    {
                        c
                    } else {
                        '?'
                    }
                })
                .collect();
            Typed::constant(Value::Text(text), types::string_of(false, Some(length)))
        }
        Literal::NationalStringLiteral(s) => {
            Typed::constant(Value::Text(s.clone()), types::string_of(true, Some(s.encode_utf16().count() as u32)))
        }
        Literal::HexStringLiteral(h) => {
            let padded = if h.len() % 2 == 1 { format!("0{h}") } else { h.clone() };
            let bytes = hex::decode(&padded).map_err(|_| message::syntax(h, 1))?;
            let t = if bytes.len() > 8000 {
                DataType::VarBinary(Length::Max)
            } else {
                DataType::VarBinary(Length::Limited((bytes.len() as u16).max(1)))
            };
            Typed::constant(Value::Bytes(bytes), t)
        }
        other => return Err(message::syntax(&other.to_string(), 1)),
    })
}

fn number(text: &str) -> Result<Typed, SqlError> {
    if let Some(money) = text.strip_prefix('$') {
        let (m, s) = decimal::parse(money).ok_or_else(|| message::syntax(text, 1))?;
        let mantissa = decimal::rescale(m, s, 4).unwrap_or(m);
        return Ok(Typed::constant(Value::Decimal { mantissa, scale: 4 }, DataType::Money));
    }
    if text.contains(['e', 'E']) {
        let f: f64 = text.parse().map_err(|_| message::syntax(text, 1))?;
        return Ok(Typed::constant(Value::Float(f), DataType::Float));
    }
    if !text.contains('.')
        && let Ok(i) = text.parse::<i32>()
    {
        return Ok(Typed::constant(Value::Int(i64::from(i)), DataType::Int));
    }
    let (mantissa, scale) = decimal::parse(text).ok_or_else(|| {
        message::error(
            1007,
            15,
            format!("The number '{text}' is out of the range for numeric representation (maximum precision 38)."),
        )
    })?;
    let digits = mantissa.unsigned_abs().to_string().len().max(usize::from(scale)).max(1);
    let t = DataType::Numeric { precision: (digits as u8).min(38), scale };
    debug_assert!(storage::scale(&t) == scale);
    Ok(Typed::constant(Value::Decimal { mantissa, scale }, t))
}

/// An integer constant beside a decimal counts with the digits that it has, not with those that its type could have.
fn literal_precision(e: Typed, other: &DataType) -> Typed {
    match (&e.value, &e.data_type, other) {
        (Some(Value::Int(i)), DataType::Int | DataType::BigInt, DataType::Decimal { .. } | DataType::Numeric { .. }) => {
            let precision = i.unsigned_abs().to_string().len() as u8;
            Typed::constant(Value::Decimal { mantissa: i128::from(*i), scale: 0 }, DataType::Numeric { precision, scale: 0 })
        }
        _ => e,
    }
}
