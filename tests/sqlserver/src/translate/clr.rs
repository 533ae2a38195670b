//! Methods of hierarchyid, geometry and geography: a small set, and an honest error for the others.

use sqlparser::ast::{AccessExpr, Expr, Function, FunctionArguments, Ident};
use tds::{DataType, Length, SqlError};

use super::{Translator, Typed};
use crate::message;
use crate::types;

/// What stands between a type and its static method in the name that the parser is given (see [`crate::parse`]).
pub(crate) const STATIC: &str = "::";

/// Whether a type has static methods.
pub(crate) fn has_methods(type_name: &str) -> bool {
    ["hierarchyid", "geometry", "geography"].iter().any(|t| t.eq_ignore_ascii_case(type_name))
}

/// A method or property of a value: the name that the function over SQLite knows it by, and the type of its answer.
fn member(name: &str, of: &DataType) -> Option<(&'static str, DataType)> {
    let spatial = *of != DataType::Udt("hierarchyid");
    Some(match name.to_ascii_lowercase().as_str() {
        "tostring" => ("text", DataType::NVarChar(Length::Max)),
        "getlevel" if !spatial => ("level", DataType::SmallInt),
        "stastext" | "astextzm" if spatial => ("text", DataType::NVarChar(Length::Max)),
        "stasbinary" | "asbinaryzm" if spatial => ("wkb", DataType::VarBinary(Length::Max)),
        "stsrid" if spatial => ("srid", DataType::Int),
        "stx" if *of == DataType::Udt("geometry") => ("x", DataType::Float),
        "sty" if *of == DataType::Udt("geometry") => ("y", DataType::Float),
        "long" if *of == DataType::Udt("geography") => ("x", DataType::Float),
        "lat" if *of == DataType::Udt("geography") => ("y", DataType::Float),
        _ => return None,
    })
}

fn udt(name: &str) -> DataType {
    match name.to_ascii_lowercase().as_str() {
        "hierarchyid" => DataType::Udt("hierarchyid"),
        "geometry" => DataType::Udt("geometry"),
        _ => DataType::Udt("geography"),
    }
}

impl Translator<'_> {
    fn member_of(&self, value: &Typed, name: &str) -> Result<Typed, SqlError> {
        let Some((known, t)) = member(name, &value.data_type) else {
            return Err(message::unsupported(&format!("'{name}' of a {}", types::name(&value.data_type))));
        };
        Ok(Typed::new(format!("clr('{known}', {}, {})", value.sql, types::code(&value.data_type)), t))
    }

    /// The value before a method or property, if that is of such a type.
    fn owner(&mut self, parts: &[Ident]) -> Option<Typed> {
        let owner = match parts {
            [] => return None,
            [one] => Expr::Identifier(one.clone()),
            many => Expr::CompoundIdentifier(many.to_vec()),
        };
        self.value(&owner).ok().filter(|v| matches!(v.data_type, DataType::Udt(_)))
    }

    /// `place.STAsText()` and `geometry::Point(1, 2, 0)`; `None`: the function is another.
    pub(super) fn clr_function(&mut self, f: &Function, arguments: &[&Expr]) -> Result<Option<Typed>, SqlError> {
        let parts: Vec<Ident> = f.name.0.iter().filter_map(|p| p.as_ident().cloned()).collect();
        let Some((last, before)) = parts.split_last() else { return Ok(None) };
        if let Some((t, method)) = last.value.split_once(STATIC) {
            return self.static_method(&udt(t), method, arguments).map(Some);
        }
        match self.owner(before) {
            Some(owner) if arguments.is_empty() => self.member_of(&owner, &last.value).map(Some),
            Some(owner) => Err(message::unsupported(&format!("'{}' of a {}", last.value, types::name(&owner.data_type)))),
            None => Ok(None),
        }
    }

    /// `place.STSrid`.
    pub(super) fn clr_property(&mut self, parts: &[Ident]) -> Option<Result<Typed, SqlError>> {
        let (last, before) = parts.split_last()?;
        let owner = self.owner(before)?;
        Some(self.member_of(&owner, &last.value))
    }

    /// `geometry::Parse('…').STAsText()`.
    pub(super) fn clr_chain(&mut self, root: &Expr, chain: &[AccessExpr]) -> Result<Typed, SqlError> {
        let mut value = self.value(root)?;
        for access in chain {
            value = match access {
                AccessExpr::Dot(Expr::Identifier(name)) => self.member_of(&value, &name.value)?,
                AccessExpr::Dot(Expr::Function(f)) if matches!(&f.args, FunctionArguments::List(l) if l.args.is_empty()) => {
                    self.member_of(&value, &f.name.to_string())?
                }
                _ => return Err(message::unsupported("This access to a part of a value")),
            };
        }
        Ok(value)
    }

    fn static_method(&mut self, t: &DataType, method: &str, arguments: &[&Expr]) -> Result<Typed, SqlError> {
        let spatial = *t != DataType::Udt("hierarchyid");
        let values = arguments.iter().map(|e| self.value(e)).collect::<Result<Vec<_>, _>>()?;
        match (method.to_ascii_lowercase().as_str(), values.as_slice()) {
            ("parse", [text]) => self.cast(text.clone(), t, 0, false),
            ("getroot", []) if !spatial => Ok(Typed::new("x''", t.clone()).not_null()),
            ("stgeomfromtext" | "stpointfromtext" | "stlinefromtext" | "stpolyfromtext", [text, srid]) if spatial => {
                Ok(Typed::new(format!("geo({}, {}, {})", text.sql, srid.sql, types::code(t)), t.clone()))
            }
            ("point", [a, b, srid]) if spatial => {
                let a = self.cast(a.clone(), &DataType::Float, 0, false)?;
                let b = self.cast(b.clone(), &DataType::Float, 0, false)?;
                Ok(Typed::new(format!("geo_point({}, {}, {}, {})", a.sql, b.sql, srid.sql, types::code(t)), t.clone()))
            }
            _ => Err(message::unsupported(&format!("'{}::{method}' with {} arguments", types::name(t), values.len()))),
        }
    }
}
