//! Function calls.

use sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, OrderByExpr, WindowFrameBound,
    WindowType,
};
use tds::{DataType, Length, SqlError, Value};

use super::{Translator, Typed};
use crate::functions::part_name;
use crate::message;
use crate::types;

fn argument(a: &FunctionArg) -> Option<&Expr> {
    match a {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) | FunctionArg::Named { arg: FunctionArgExpr::Expr(e), .. } => Some(e),
        _ => None,
    }
}

const SYSNAME: DataType = DataType::NVarChar(Length::Limited(128));

/// The arguments of a call being translated.
pub(super) struct Call<'c> {
    pub(super) name: String,
    pub(super) expressions: Vec<&'c Expr>,
    star: bool,
    distinct: bool,
}

impl Call<'_> {
    pub(super) fn arity(&self, least: usize, most: usize) -> Result<(), SqlError> {
        let n = self.expressions.len();
        if (least..=most).contains(&n) {
            return Ok(());
        }
        let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
        Err(message::error(174, 15, format!("The {} function requires {wanted} argument(s).", self.name)))
    }
}

impl Translator<'_> {
    pub(super) fn function(&mut self, f: &Function) -> Result<Typed, SqlError> {
        let name = f.name.to_string().replace(['[', ']', '"'], "").to_ascii_lowercase();
        let mut call = Call { name: name.clone(), expressions: Vec::new(), star: false, distinct: false };
        if let FunctionArguments::List(list) = &f.args {
            call.distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
            for a in &list.args {
                match argument(a) {
                    Some(e) => call.expressions.push(e),
                    None => call.star = true,
                }
            }
        }
        if let FunctionArguments::Subquery(_) = &f.args {
            return Err(message::unsupported(&format!("A subquery as the argument of {name}")));
        }
        if let Some(over) = &f.over {
            let window = self.window(over)?;
            return self.windowed(&call, &window);
        }
        if let Some(e) = self.aggregate(&call, &f.within_group)? {
            return Ok(e);
        }
        if let Some(e) = self.clr_function(f, &call.expressions)? {
            return Ok(e);
        }
        let short = name.strip_prefix("sys.").or_else(|| name.rsplit_once(".sys.").map(|(_, n)| n)).unwrap_or(&name);
        if short.starts_with("fn_cdc_") {
            return self.cdc_scalar(f, short, &call.expressions);
        }
        if let Some(e) = self.string_function(&call)? {
            return Ok(e);
        }
        if let Some(e) = self.date_function(&call)? {
            return Ok(e);
        }
        if let Some(e) = self.number_function(&call)? {
            return Ok(e);
        }
        if let Some(e) = self.system_function(&call)? {
            return Ok(e);
        }
        if name.contains('.') {
            return Err(message::error(
                4121,
                16,
                format!(
                    "Cannot find either column \"{}\" or the user-defined function or aggregate \"{name}\", or the name is ambiguous.",
                    name.split('.').next().unwrap_or_default()
                ),
            ));
        }
        Err(message::no_function(&name))
    }

    fn arguments(&mut self, call: &Call<'_>) -> Result<Vec<Typed>, SqlError> {
        call.expressions.iter().map(|e| self.value(e)).collect()
    }

    /// An argument as an integer.
    pub(super) fn integer(&mut self, e: &Expr) -> Result<Typed, SqlError> {
        let e = self.value(e)?;
        let t = if e.data_type == DataType::BigInt { DataType::BigInt } else { DataType::Int };
        self.cast(e, &t, 0, false)
    }

    pub(super) fn text(&mut self, e: &Expr) -> Result<Typed, SqlError> {
        let e = self.value(e)?;
        self.as_string(e)
    }

    fn aggregate(&mut self, call: &Call<'_>, within: &[OrderByExpr]) -> Result<Option<Typed>, SqlError> {
        let distinct = if call.distinct { "DISTINCT " } else { "" };
        Ok(Some(match call.name.as_str() {
            "count" | "count_big" => {
                let t = if call.name == "count" { DataType::Int } else { DataType::BigInt };
                if call.star {
                    return Ok(Some(Typed::new("count(*)", t).not_null()));
                }
                call.arity(1, 1)?;
                let e = self.value(call.expressions[0])?;
                Typed::new(format!("count({distinct}{})", e.collated()), t).not_null()
            }
            "sum" | "avg" => {
                call.arity(1, 1)?;
                let e = self.value(call.expressions[0])?;
                let (sql, t) = sum(&call.name, distinct, &e)?;
                Typed::new(sql, t)
            }
            "min" | "max" => {
                call.arity(1, 1)?;
                let e = self.value(call.expressions[0])?;
                // The aggregate, not SQLite's scalar min of several: exactly one argument.
                Typed { collation: e.collation, ..Typed::new(format!("{}({distinct}{})", call.name, e.collated()), e.data_type) }
            }
            "string_agg" => {
                call.arity(2, 2)?;
                let (e, separator) = (self.text(call.expressions[0])?, self.text(call.expressions[1])?);
                let order = if within.is_empty() { String::new() } else { format!(" ORDER BY {}", self.order_items(within)?) };
                let t = types::string_of(
                    types::is_unicode(&e.data_type),
                    types::length(&e.data_type).map(|_| if types::is_unicode(&e.data_type) { 4000 } else { 8000 }),
                );
                Typed::new(format!("group_concat({}, {}{order})", e.sql, separator.sql), t)
            }
            _ => return Ok(None),
        }))
    }

    fn order_items(&mut self, items: &[OrderByExpr]) -> Result<String, SqlError> {
        let mut out = Vec::new();
        for o in items {
            let e = self.value(&o.expr)?;
            out.push(format!("{}{}", e.collated(), if descending(o) { " DESC" } else { "" }));
        }
        Ok(out.join(", "))
    }

    fn window(&mut self, over: &WindowType) -> Result<String, SqlError> {
        let WindowType::WindowSpec(spec) = over else { return Err(message::unsupported("A named window")) };
        let mut parts = Vec::new();
        if !spec.partition_by.is_empty() {
            let items = spec.partition_by.iter().map(|e| Ok(self.value(e)?.collated())).collect::<Result<Vec<_>, SqlError>>()?;
            parts.push(format!("PARTITION BY {}", items.join(", ")));
        }
        if !spec.order_by.is_empty() {
            // ORDER BY (SELECT NULL): any order.
            parts.push(format!("ORDER BY {}", self.order_items(&spec.order_by)?));
        }
        if let Some(frame) = &spec.window_frame {
            let bound = |b: &WindowFrameBound| -> String {
                match b {
                    WindowFrameBound::CurrentRow => "CURRENT ROW".into(),
                    WindowFrameBound::Preceding(None) => "UNBOUNDED PRECEDING".into(),
                    WindowFrameBound::Preceding(Some(n)) => format!("{n} PRECEDING"),
                    WindowFrameBound::Following(None) => "UNBOUNDED FOLLOWING".into(),
                    WindowFrameBound::Following(Some(n)) => format!("{n} FOLLOWING"),
                }
            };
            let end = frame.end_bound.as_ref().map_or_else(|| "CURRENT ROW".into(), bound);
            parts.push(format!("{} BETWEEN {} AND {end}", frame.units, bound(&frame.start_bound)));
        }
        Ok(format!("OVER ({})", parts.join(" ")))
    }

    fn windowed(&mut self, call: &Call<'_>, window: &str) -> Result<Typed, SqlError> {
        match call.name.as_str() {
            "row_number" | "rank" | "dense_rank" => Ok(Typed::new(format!("{}() {window}", call.name), DataType::BigInt)),
            "ntile" => {
                let n = self.integer(call.expressions[0])?;
                Ok(Typed::new(format!("ntile({}) {window}", n.sql), DataType::BigInt))
            }
            "lag" | "lead" | "first_value" | "last_value" => {
                let arguments = self.arguments(call)?;
                let Some(first) = arguments.first().cloned() else { return Err(message::no_function(&call.name)) };
                let mut list = vec![first.sql.clone()];
                for (i, a) in arguments.into_iter().enumerate().skip(1) {
                    list.push(if i == 2 { self.cast(a, &first.data_type, 0, false)?.sql } else { a.sql });
                }
                Ok(Typed {
                    collation: first.collation,
                    ..Typed::new(format!("{}({}) {window}", call.name, list.join(", ")), first.data_type)
                })
            }
            "avg" => {
                let e = self.value(call.expressions[0])?;
                if types::is_integer(&e.data_type) {
                    let t = if e.data_type == DataType::BigInt { DataType::BigInt } else { DataType::Int };
                    return Ok(Typed::new(format!("(sum({0}) {window} / count({0}) {window})", e.sql), t));
                }
                let (sql, t) = sum("avg", "", &e)?;
                Ok(Typed::new(format!("{sql} {window}"), t))
            }
            _ => match self.aggregate(call, &[])? {
                // rng(sum(x)) of an integer: the window belongs to the sum.
                Some(e) if e.sql.starts_with("rng(sum(") => {
                    let inner = e.sql.trim_start_matches("rng(").rsplit_once(", ").map_or("", |(s, _)| s).to_string();
                    Ok(Typed { sql: format!("rng({inner} {window}, {})", types::code(&e.data_type)), ..e })
                }
                Some(e) => Ok(Typed { sql: format!("{} {window}", e.sql), ..e }),
                None => Err(message::no_function(&call.name)),
            },
        }
    }

    fn date_part(&mut self, e: &Expr) -> Result<&'static str, SqlError> {
        let word = match e {
            Expr::Identifier(i) => i.value.clone(),
            other => other.to_string(),
        };
        part_name(&word).ok_or_else(|| message::error(155, 15, format!("'{word}' is not a recognized datepart option.")))
    }

    /// An argument as a date or time; text becomes datetime2(7).
    fn temporal(&mut self, e: &Expr) -> Result<Typed, SqlError> {
        let e = self.value(e)?;
        if types::is_temporal(&e.data_type) {
            return Ok(e);
        }
        let to = if types::is_string(&e.data_type) { DataType::DateTime2 { scale: 7 } } else { DataType::DateTime };
        self.cast(e, &to, 0, false)
    }

    fn date_function(&mut self, call: &Call<'_>) -> Result<Option<Typed>, SqlError> {
        Ok(Some(match call.name.as_str() {
            "getdate" => self.moment("getdate", DataType::DateTime).not_null(),
            "getutcdate" => self.moment("getutcdate", DataType::DateTime).not_null(),
            "sysdatetime" => self.moment("sysdatetime", DataType::DateTime2 { scale: 7 }).not_null(),
            "sysutcdatetime" => self.moment("sysutcdatetime", DataType::DateTime2 { scale: 7 }).not_null(),
            "sysdatetimeoffset" => self.moment("sysdatetimeoffset", DataType::DateTimeOffset { scale: 7 }).not_null(),
            "dateadd" => {
                call.arity(3, 3)?;
                let part = self.date_part(call.expressions[0])?;
                let n = self.integer(call.expressions[1])?;
                let raw = self.value(call.expressions[2])?;
                let e = if types::is_temporal(&raw.data_type) { raw } else { self.cast(raw, &DataType::DateTime, 0, false)? };
                Typed::new(format!("dateadd('{part}', {}, {}, {})", n.sql, e.sql, types::code(&e.data_type)), e.data_type)
                    .or_null(e.nullable || n.nullable)
            }
            "datediff" | "datediff_big" => {
                call.arity(3, 3)?;
                let part = self.date_part(call.expressions[0])?;
                let (a, b) = (self.temporal(call.expressions[1])?, self.temporal(call.expressions[2])?);
                let sql = format!(
                    "datediff('{part}', {}, {}, {}, {})",
                    a.sql,
                    types::code(&a.data_type),
                    b.sql,
                    types::code(&b.data_type)
                );
                if call.name == "datediff_big" {
                    return Ok(Some(Typed::new(sql, DataType::BigInt)));
                }
                Typed::new(format!("rng({sql}, {})", types::code(&DataType::Int)), DataType::Int)
            }
            "datepart" | "datename" => {
                call.arity(2, 2)?;
                let part = self.date_part(call.expressions[0])?;
                let e = self.temporal(call.expressions[1])?;
                let t = if call.name == "datepart" { DataType::Int } else { DataType::NVarChar(Length::Limited(30)) };
                Typed::new(format!("{}('{part}', {}, {})", call.name, e.sql, types::code(&e.data_type)), t).or_null(e.nullable)
            }
            "year" | "month" | "day" => {
                call.arity(1, 1)?;
                let e = self.temporal(call.expressions[0])?;
                Typed::new(format!("datepart('{}', {}, {})", call.name, e.sql, types::code(&e.data_type)), DataType::Int)
                    .or_null(e.nullable)
            }
            "eomonth" => {
                call.arity(1, 2)?;
                let e = self.temporal(call.expressions[0])?;
                let n = match call.expressions.get(1) {
                    Some(n) => self.integer(n)?.sql,
                    None => "0".into(),
                };
                Typed::new(format!("eomonth({}, {}, {n})", e.sql, types::code(&e.data_type)), DataType::Date)
            }
            "datefromparts" | "datetimefromparts" | "datetime2fromparts" | "timefromparts" => self.parts_of_date(call)?,
            "switchoffset" | "todatetimeoffset" => {
                call.arity(2, 2)?;
                let e = self.temporal(call.expressions[0])?;
                let zone = self.value(call.expressions[1])?;
                Typed::new(
                    format!("{}({}, {}, {})", call.name, e.sql, types::code(&e.data_type), zone.sql),
                    DataType::DateTimeOffset { scale: 7 },
                )
            }
            "isdate" => {
                let e = self.text(call.expressions[0])?;
                let sql = format!(
                    "(tcv({}, {}, {}, 0) IS NOT NULL)",
                    e.sql,
                    types::code(&e.data_type),
                    types::code(&DataType::DateTime)
                );
                Typed::new(sql, DataType::Int).not_null()
            }
            _ => return Ok(None),
        }))
    }

    fn parts_of_date(&mut self, call: &Call<'_>) -> Result<Typed, SqlError> {
        let mut parts = Vec::new();
        for e in &call.expressions {
            parts.push(self.integer(e)?);
        }
        let sql = |i: usize| parts.get(i).map_or("0", |p| p.sql.as_str());
        let scale = |i: usize| match parts.get(i).and_then(|p| p.value.clone()) {
            Some(Value::Int(n)) => n.clamp(0, 7) as u8,
            _ => 7,
        };
        let (list, t) = match call.name.as_str() {
            "datefromparts" => (format!("{}, {}, {}, 0, 0, 0, 0", sql(0), sql(1), sql(2)), DataType::Date),
            "datetimefromparts" => (
                format!("{}, {}, {}, {}, {}, {}, ({} * 10000)", sql(0), sql(1), sql(2), sql(3), sql(4), sql(5), sql(6)),
                DataType::DateTime,
            ),
            "timefromparts" => {
                let s = scale(4);
                (
                    format!("1900, 1, 1, {}, {}, {}, ({} * {})", sql(0), sql(1), sql(2), sql(3), 10i64.pow(7 - u32::from(s))),
                    DataType::Time { scale: s },
                )
            }
            _ => {
                let s = scale(7);
                let unit = 10i64.pow(7 - u32::from(s));
                (
                    format!("{}, {}, {}, {}, {}, {}, ({} * {unit})", sql(0), sql(1), sql(2), sql(3), sql(4), sql(5), sql(6)),
                    DataType::DateTime2 { scale: s },
                )
            }
        };
        Ok(Typed::new(format!("datefromparts({list}, {})", types::code(&t)), t))
    }

    fn number_function(&mut self, call: &Call<'_>) -> Result<Option<Typed>, SqlError> {
        Ok(Some(match call.name.as_str() {
            "round" | "ceiling" | "floor" => {
                let e = self.value(call.expressions.first().ok_or_else(|| message::no_function(&call.name))?)?;
                let e = if types::exact(&e.data_type).is_none() && !types::is_float(&e.data_type) {
                    self.cast(e, &DataType::Float, 0, false)?
                } else {
                    e
                };
                let (digits, mode) = match call.name.as_str() {
                    "ceiling" => ("0".to_string(), 1),
                    "floor" => ("0".to_string(), 2),
                    _ => {
                        call.arity(2, 3)?;
                        let truncate =
                            call.expressions.len() == 3 && self.value(call.expressions[2])?.value != Some(Value::Int(0));
                        (self.integer(call.expressions[1])?.sql, if truncate { 3 } else { 0 })
                    }
                };
                Typed::new(format!("tround({}, {}, {digits}, {mode})", e.sql, types::code(&e.data_type)), e.data_type)
                    .or_null(e.nullable)
            }
            "abs" | "sign" => {
                call.arity(1, 1)?;
                let e = self.value(call.expressions[0])?;
                Typed::new(format!("t{}({}, {})", call.name, e.sql, types::code(&e.data_type)), e.data_type).or_null(e.nullable)
            }
            "power" => {
                call.arity(2, 2)?;
                let (a, b) = (self.value(call.expressions[0])?, self.value(call.expressions[1])?);
                let t = a.data_type.clone();
                let (a, b) = (self.cast(a, &DataType::Float, 0, false)?, self.cast(b, &DataType::Float, 0, false)?);
                let f = Typed::new(format!("fmath('power', {}, {})", a.sql, b.sql), DataType::Float);
                self.cast(f, &t, 0, false)?
            }
            "sqrt" | "square" | "exp" | "log" | "log10" | "sin" | "cos" | "tan" | "asin" | "acos" | "atan" | "atn2"
            | "degrees" | "radians" | "pi" => {
                let mut list = Vec::new();
                for e in &call.expressions {
                    let e = self.value(e)?;
                    list.push(self.cast(e, &DataType::Float, 0, false)?.sql);
                }
                let first = list.first().cloned().unwrap_or_default();
                let sql = match (call.name.as_str(), list.get(1)) {
                    ("pi", _) => "3.141592653589793e0".into(),
                    ("square", _) => format!("({first} * {first})"),
                    ("log", Some(base)) => format!("fmath('logb', {first}, {base})"),
                    (name, second) => format!("fmath('{name}', {first}, {})", second.map_or("0", String::as_str)),
                };
                Typed::new(sql, DataType::Float)
            }
            "rand" => Typed::new("rand()", DataType::Float).not_null(),
            "checksum" | "binary_checksum" => {
                let list: Vec<String> = self.arguments(call)?.into_iter().map(|e| e.sql).collect();
                Typed::new(format!("checksum({})", list.join(", ")), DataType::Int).not_null()
            }
            "isnumeric" => {
                let e = self.value(call.expressions[0])?;
                Typed::new(format!("isnumeric({}, {})", e.sql, types::code(&e.data_type)), DataType::Int).not_null()
            }
            "isnull" => {
                call.arity(2, 2)?;
                let (a, b) = (self.value(call.expressions[0])?, self.value(call.expressions[1])?);
                let t = if a.null { b.data_type.clone() } else { a.data_type.clone() };
                let nullable = a.nullable && b.nullable;
                let collation = a.collation;
                let (a, b) = (self.cast(a, &t, 0, false)?, self.cast(b, &t, 0, false)?);
                Typed { collation, ..Typed::new(format!("ifnull({}, {})", a.sql, b.sql), t).or_null(nullable) }
            }
            "coalesce" => {
                let list = self.arguments(call)?;
                let (t, list) = self.alternatives(list)?;
                let nullable = list.iter().all(|e| e.nullable);
                let sql = list.iter().map(|e| e.sql.as_str()).collect::<Vec<_>>().join(", ");
                Typed::new(if list.len() == 1 { sql } else { format!("coalesce({sql})") }, t).or_null(nullable)
            }
            "nullif" => {
                call.arity(2, 2)?;
                let (a, b) = (self.value(call.expressions[0])?, self.value(call.expressions[1])?);
                let test = self.compare_typed(a.clone(), "=", b)?;
                Typed {
                    collation: a.collation,
                    ..Typed::new(format!("CASE WHEN {test} THEN NULL ELSE {} END", a.sql), a.data_type)
                }
            }
            "iif" => {
                call.arity(3, 3)?;
                let test = self.condition(call.expressions[0])?;
                let list = vec![self.value(call.expressions[1])?, self.value(call.expressions[2])?];
                let (t, list) = self.alternatives(list)?;
                Typed::new(format!("CASE WHEN {test} THEN {} ELSE {} END", list[0].sql, list[1].sql), t)
                    .or_null(list.iter().any(|e| e.nullable))
            }
            "choose" => {
                let n = self.integer(call.expressions.first().ok_or_else(|| message::no_function("choose"))?)?;
                let list = call.expressions[1..].iter().map(|e| self.value(e)).collect::<Result<Vec<_>, _>>()?;
                let (t, list) = self.alternatives(list)?;
                let arms: String = list.iter().enumerate().map(|(i, e)| format!(" WHEN {} THEN {}", i + 1, e.sql)).collect();
                Typed::new(format!("CASE {}{arms} END", n.sql), t)
            }
            "newid" | "newsequentialid" => Typed::new("newid()", DataType::UniqueIdentifier).not_null(),
            _ => return Ok(None),
        }))
    }

    /// Functions over the catalog and the session.
    fn system_function(&mut self, call: &Call<'_>) -> Result<Option<Typed>, SqlError> {
        if let Some(e) = self.catalog_function(&call.name, &call.expressions)? {
            return Ok(Some(e));
        }
        Ok(Some(match call.name.as_str() {
            "scope_identity" => self.moment("scope_identity", DataType::Numeric { precision: 38, scale: 0 }),
            "rowcount_big" => self.moment("rowcount", DataType::BigInt),
            "xact_state" => self.moment("xact_state", DataType::SmallInt),
            "current_transaction_id" => self.moment("transaction_id", DataType::BigInt),
            "error_number" => self.moment("error_number", DataType::Int),
            "error_severity" => self.moment("error_severity", DataType::Int),
            "error_state" => self.moment("error_state", DataType::Int),
            "error_line" => self.moment("error_line", DataType::Int),
            "error_message" => self.moment("error_message", DataType::NVarChar(Length::Limited(4000))),
            "error_procedure" => self.moment("error_procedure", SYSNAME),
            "sql_variant_property" => {
                call.arity(2, 2)?;
                let e = self.value(call.expressions[0])?;
                let e = self.cast(e, &DataType::SqlVariant, 0, false)?;
                let property = self.text(call.expressions[1])?;
                Typed::new(format!("variant_property({}, {})", e.sql, property.sql), DataType::SqlVariant)
            }
            name => match self.lookup.constant(&format!("{name}()")) {
                Some((value, t)) if call.expressions.is_empty() => {
                    self.out.volatile = true;
                    Typed::constant(value, t)
                }
                _ => return self.evaluated(call),
            },
        }))
    }

    /// Functions whose arguments are constant and whose answer the session knows: SERVERPROPERTY('…'), HAS_PERMS_BY_NAME(…).
    fn evaluated(&mut self, call: &Call<'_>) -> Result<Option<Typed>, SqlError> {
        let known = [
            "serverproperty",
            "databasepropertyex",
            "has_perms_by_name",
            "is_srvrolemember",
            "is_member",
            "is_rolemember",
            "suser_sname",
            "suser_name",
            "suser_id",
            "suser_sid",
            "user_name",
            "user_id",
            "has_dbaccess",
            "connectionproperty",
            "sessionproperty",
            "session_context",
            "original_db_name",
            "collationproperty",
            "fulltextserviceproperty",
            "db_id",
            "db_name",
            "permissions",
            "is_object_signed",
            "applock_test",
            "fn_hadr_is_primary_replica",
        ];
        let name = call.name.strip_prefix("sys.").unwrap_or(&call.name);
        if !known.contains(&name) {
            return Ok(None);
        }
        let mut key = name.to_string();
        for e in &call.expressions {
            let (value, t) = self.lookup.evaluate(e)?;
            key.push('\u{1}');
            if value != Value::Null {
                key.push_str(&types::convert::to_text(&value, &t, &DataType::NVarChar(Length::Max), 0)?);
            }
        }
        let Some((value, t)) = self.lookup.constant(&key) else { return Ok(None) };
        self.out.volatile = true;
        Ok(Some(Typed::constant(value, t)))
    }
}

pub(super) fn descending(o: &OrderByExpr) -> bool {
    matches!(o.options.sort, Some(sqlparser::ast::OrderBySort::Desc))
}

/// SUM and AVG by the argument's type.
fn sum(name: &str, distinct: &str, e: &Typed) -> Result<(String, DataType), SqlError> {
    let average = name == "avg";
    Ok(match &e.data_type {
        DataType::BigInt if average => (format!("(sum({distinct}{0}) / count({distinct}{0}))", e.sql), DataType::BigInt),
        DataType::BigInt => (format!("sum({distinct}{})", e.sql), DataType::BigInt),
        DataType::TinyInt | DataType::SmallInt | DataType::Int if average => {
            (format!("(sum({distinct}{0}) / count({distinct}{0}))", e.sql), DataType::Int)
        }
        DataType::TinyInt | DataType::SmallInt | DataType::Int => {
            (format!("rng(sum({distinct}{}), {})", e.sql, types::code(&DataType::Int)), DataType::Int)
        }
        DataType::Money | DataType::SmallMoney if !average => (format!("sum({distinct}{})", e.sql), DataType::Money),
        DataType::Money | DataType::SmallMoney => {
            (format!("davg({distinct}{}, {1}, {1})", e.sql, types::code(&DataType::Money)), DataType::Money)
        }
        DataType::Decimal { scale, .. } | DataType::Numeric { scale, .. } => {
            let t = DataType::Decimal { precision: 38, scale: if average { (*scale).max(6) } else { *scale } };
            let f = if average { "davg" } else { "dsum" };
            // An aggregate of several arguments cannot be DISTINCT in SQLite; sums of distinct decimals are not asked for.
            if !distinct.is_empty() {
                return Err(message::unsupported("SUM or AVG of DISTINCT decimals"));
            }
            (format!("{f}({}, {}, {})", e.sql, types::code(&e.data_type), types::code(&t)), t)
        }
        DataType::Real | DataType::Float => (format!("{name}({distinct}{})", e.sql), DataType::Float),
        other => {
            return Err(message::error(
                8117,
                16,
                format!("Operand data type {} is invalid for {name} operator.", types::name(other)),
            ));
        }
    })
}
