//! Functions of strings: the type and collation of their results.

use tds::{DataType, Length, SqlError, Value};

use super::function::Call;
use super::{Translator, Typed};
use crate::catalog::Order;
use crate::types;

const SYSNAME: DataType = DataType::NVarChar(Length::Limited(128));

impl Translator<'_> {
    pub(super) fn string_function(&mut self, call: &Call<'_>) -> Result<Option<Typed>, SqlError> {
        let keep =
            |e: &Typed, sql: String| Typed { collation: e.collation, ..Typed::new(sql, string_type(e)).or_null(e.nullable) };
        let sensitive = |e: &Typed| u8::from(e.collation.order != Order::Insensitive);
        Ok(Some(match call.name.as_str() {
            "upper" | "ucase" | "lower" | "lcase" | "ltrim" | "rtrim" | "reverse" => {
                call.arity(1, 1)?;
                let e = self.text(call.expressions[0])?;
                let f = match call.name.as_str() {
                    "upper" | "ucase" => "tupper",
                    "lower" | "lcase" => "tlower",
                    "ltrim" => "tltrim",
                    "rtrim" => "trtrim",
                    _ => "treverse",
                };
                keep(&e, format!("{f}({})", e.sql))
            }
            "len" => {
                call.arity(1, 1)?;
                let e = self.text(call.expressions[0])?;
                let t = if types::length(&e.data_type).is_none() { DataType::BigInt } else { DataType::Int };
                Typed::new(format!("tlen({})", e.sql), t).or_null(e.nullable)
            }
            "datalength" => {
                call.arity(1, 1)?;
                let e = self.value(call.expressions[0])?;
                let t = if types::length(&e.data_type).is_none() { DataType::BigInt } else { DataType::Int };
                let sql = match &e.data_type {
                    s if types::is_string(s) => {
                        format!("tdatalength({}, {})", e.padded(), if types::is_unicode(s) { 2 } else { 1 })
                    }
                    s if types::is_binary(s) => format!("tdatalength({}, 1)", e.sql),
                    other => format!("iif({} IS NULL, NULL, {})", e.sql, crate::catalog::type_facts(other, "").2),
                };
                Typed::new(sql, t).or_null(e.nullable)
            }
            "left" | "right" => {
                call.arity(2, 2)?;
                let (e, n) = (self.text(call.expressions[0])?, self.integer(call.expressions[1])?);
                let sql = if call.name == "left" {
                    format!("tsubstring({}, 1, {})", e.sql, n.sql)
                } else {
                    format!("tright({}, {})", e.sql, n.sql)
                };
                let length = match n.value {
                    Some(Value::Int(n)) if n > 0 => {
                        types::length(&e.data_type).map(|l| l.min(n as u32)).or(u32::try_from(n).ok())
                    }
                    _ => types::length(&e.data_type),
                };
                Typed {
                    collation: e.collation,
                    ..Typed::new(sql, types::string_of(types::is_unicode(&e.data_type), length)).or_null(e.nullable || n.nullable)
                }
            }
            "substring" => {
                call.arity(3, 3)?;
                let e = self.value(call.expressions[0])?;
                let e = if types::is_binary(&e.data_type) { e } else { self.as_string(e)? };
                let (start, length) = (self.integer(call.expressions[1])?, self.integer(call.expressions[2])?);
                let sql = format!("tsubstring({}, {}, {})", e.sql, start.sql, length.sql);
                if types::is_binary(&e.data_type) {
                    return Ok(Some(Typed::new(
                        sql,
                        DataType::VarBinary(types::length(&e.data_type).map_or(Length::Max, |n| Length::Limited(n as u16))),
                    )));
                }
                keep(&e, sql)
            }
            "charindex" => {
                call.arity(2, 3)?;
                let (needle, text) = (self.text(call.expressions[0])?, self.text(call.expressions[1])?);
                let start = match call.expressions.get(2) {
                    Some(e) => self.integer(e)?.sql,
                    None => "1".into(),
                };
                Typed::new(format!("tcharindex({}, {}, {start}, {})", needle.sql, text.sql, sensitive(&text)), DataType::Int)
            }
            "patindex" => {
                call.arity(2, 2)?;
                let (pattern, text) = (self.text(call.expressions[0])?, self.text(call.expressions[1])?);
                Typed::new(format!("tpatindex({}, {})", pattern.sql, text.sql), DataType::Int)
            }
            "replace" => {
                call.arity(3, 3)?;
                let (e, old, new) =
                    (self.text(call.expressions[0])?, self.text(call.expressions[1])?, self.text(call.expressions[2])?);
                let t = types::string_of(
                    types::is_unicode(&e.data_type) || types::is_unicode(&new.data_type),
                    types::length(&e.data_type).map(|_| if types::is_unicode(&e.data_type) { 4000 } else { 8000 }),
                );
                Typed {
                    collation: e.collation,
                    ..Typed::new(format!("treplace({}, {}, {}, {})", e.sql, old.sql, new.sql, sensitive(&e)), t)
                }
            }
            "stuff" => {
                call.arity(4, 4)?;
                let (e, new) = (self.text(call.expressions[0])?, self.text(call.expressions[3])?);
                let (start, length) = (self.integer(call.expressions[1])?, self.integer(call.expressions[2])?);
                let total = types::length(&e.data_type).zip(types::length(&new.data_type)).map(|(a, b)| a + b);
                let t = types::string_of(types::is_unicode(&e.data_type) || types::is_unicode(&new.data_type), total);
                Typed::new(format!("tstuff({}, {}, {}, {})", e.sql, start.sql, length.sql, new.sql), t)
            }
            "replicate" => {
                call.arity(2, 2)?;
                let (e, n) = (self.text(call.expressions[0])?, self.integer(call.expressions[1])?);
                let unicode = types::is_unicode(&e.data_type);
                let t = types::string_of(unicode, types::length(&e.data_type).map(|_| if unicode { 4000 } else { 8000 }));
                let repeated = Typed::new(format!("treplicate({}, {})", e.sql, n.sql), types::string_of(unicode, None));
                self.cast(repeated, &t, 0, false)?
            }
            "space" => {
                let n = self.integer(call.expressions[0])?;
                Typed::new(format!("treplicate(' ', {})", n.sql), DataType::VarChar(Length::Limited(8000)))
            }
            "concat" | "concat_ws" => {
                let mut parts = Vec::new();
                for e in &call.expressions {
                    parts.push(self.text(e)?);
                }
                let unicode = parts.iter().any(|p| types::is_unicode(&p.data_type));
                let total = parts
                    .iter()
                    .map(|p| types::length(&p.data_type))
                    .try_fold(0u32, |a, l| l.map(|l| a + l))
                    .map(|n| n.min(if unicode { 4000 } else { 8000 }));
                let sql = if call.name == "concat_ws" && !parts.is_empty() {
                    format!("concat_ws({})", parts.iter().map(|p| p.sql.as_str()).collect::<Vec<_>>().join(", "))
                } else {
                    format!(
                        "({})",
                        parts
                            .iter()
                            .map(|p| if p.nullable { format!("coalesce({}, '')", p.sql) } else { p.sql.clone() })
                            .collect::<Vec<_>>()
                            .join(" || ")
                    )
                };
                Typed::new(sql, types::string_of(unicode, total)).not_null()
            }
            "quotename" => {
                call.arity(1, 2)?;
                let e = self.text(call.expressions[0])?;
                let quote = match call.expressions.get(1) {
                    Some(q) => self.text(q)?.sql,
                    None => "'['".into(),
                };
                Typed::new(format!("tquotename({}, {quote})", e.sql), DataType::NVarChar(Length::Limited(258)))
            }
            "parsename" => {
                call.arity(2, 2)?;
                let (e, n) = (self.text(call.expressions[0])?, self.integer(call.expressions[1])?);
                Typed::new(format!("parsename({}, {})", e.sql, n.sql), SYSNAME)
            }
            "ascii" | "unicode" => {
                let e = self.text(call.expressions[0])?;
                Typed::new(format!("tascii({}, 0)", e.sql), DataType::Int)
            }
            "char" | "nchar" => {
                let e = self.integer(call.expressions[0])?;
                Typed::new(format!("tchar({})", e.sql), if call.name == "char" { DataType::Char(1) } else { DataType::NChar(1) })
            }
            _ => return Ok(None),
        }))
    }
}

/// A string function's result: of the same width and length as its argument.
fn string_type(e: &Typed) -> DataType {
    types::string_of(types::is_unicode(&e.data_type), types::length(&e.data_type))
}
