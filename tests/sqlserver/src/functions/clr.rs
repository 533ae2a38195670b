//! hierarchyid, geometry and geography, json and vector: what their methods and assignments need.

use rusqlite::Connection;
use rusqlite::functions::Context;
use rusqlite::types::{Value as Stored, ValueRef};
use tds::{DataType, SqlError};

use super::{int, is_null, scalar, string};
use crate::message;
use crate::types::spatial::Spatial;
use crate::types::{self, clr, hierarchy};

fn blob<'a>(ctx: &'a Context<'_>, i: usize) -> Option<&'a [u8]> {
    match ctx.get_raw(i) {
        ValueRef::Blob(b) => Some(b),
        _ => None,
    }
}

fn float(ctx: &Context<'_>, i: usize) -> Option<f64> {
    match ctx.get_raw(i) {
        ValueRef::Real(f) => Some(f),
        ValueRef::Integer(n) => Some(n as f64),
        _ => None,
    }
}

pub(super) fn register(db: &Connection) -> rusqlite::Result<()> {
    // clr(member, value, type)
    scalar(db, "clr", 3, |ctx| {
        let (Some(member), Some(bytes)) = (string(ctx, 0), blob(ctx, 1)) else { return Ok(Stored::Null) };
        let t = types::decode(int(ctx, 2));
        if t == DataType::Udt("hierarchyid") {
            return Ok(match member {
                "level" => hierarchy::level(bytes).map_or(Stored::Null, Stored::Integer),
                _ => Stored::Text(clr::udt_text(bytes, &t)?),
            });
        }
        let shape = clr::spatial(bytes, &t)?;
        Ok(match member {
            "wkb" => Stored::Blob(shape.binary()),
            "srid" => Stored::Integer(i64::from(shape.srid)),
            "x" => shape.coordinates().map_or(Stored::Null, |c| Stored::Real(c.0)),
            "y" => shape.coordinates().map_or(Stored::Null, |c| Stored::Real(c.1)),
            _ => Stored::Text(shape.text()),
        })
    })?;
    // geo(text, srid, type)
    scalar(db, "geo", 3, |ctx| {
        let (Some(text), false) = (string(ctx, 0), is_null(ctx, 1)) else { return Ok(Stored::Null) };
        let t = types::decode(int(ctx, 2));
        clr::parse_udt(text, &t, Some(int(ctx, 1) as i32)).map(Stored::Blob)
    })?;
    // geo_point(x, y, srid, type); of a geography the latitude comes first.
    scalar(db, "geo_point", 4, |ctx| {
        let (Some(a), Some(b), false) = (float(ctx, 0), float(ctx, 1), is_null(ctx, 2)) else { return Ok(Stored::Null) };
        let geography = types::decode(int(ctx, 3)) == DataType::Udt("geography");
        let (x, y) = if geography { (b, a) } else { (a, b) };
        Ok(Stored::Blob(Spatial::point(x, y, int(ctx, 2) as i32).to_bytes(geography)))
    })?;
    // vec(text, dimensions): a vector as it is shown.
    scalar(db, "vec", 2, |ctx| {
        let Some(text) = string(ctx, 0) else { return Ok(Stored::Null) };
        vector(text, int(ctx, 1)).map(Stored::Text)
    })
}

fn vector(text: &str, dimensions: i64) -> Result<String, SqlError> {
    let malformed = || message::error(42_205, 16, "The JSON text is not an array of numbers, which a vector is made of.".into());
    let inner = text.trim().strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(malformed)?;
    let numbers: Vec<f32> = inner
        .split(',')
        .map(|n| n.trim().parse().ok().filter(|f: &f32| f.is_finite()))
        .collect::<Option<_>>()
        .ok_or_else(malformed)?;
    if numbers.len() as i64 != dimensions {
        return Err(message::error(
            42_204,
            16,
            format!("The vector dimensions {dimensions} and {} do not match.", numbers.len()),
        ));
    }
    let shown = |f: &f32| {
        let text = format!("{f:.7e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let power: i32 = exponent.parse().unwrap_or(0);
        format!("{mantissa}e{}{:03}", if power < 0 { '-' } else { '+' }, power.abs())
    };
    Ok(format!("[{}]", numbers.iter().map(shown).collect::<Vec<_>>().join(",")))
}
