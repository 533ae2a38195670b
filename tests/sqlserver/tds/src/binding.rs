//! Binding the values of a call to declared parameters: by name or by place, converted to the declared type where that needs no knowledge of SQL.

use crate::collation::Collation;
use crate::data::{DataType, Length, Value};
use crate::declaration::Declared;
use crate::encode;
use crate::names;
use crate::session::{Parameter, SqlError};

fn error(number: i32, class: u8, message: String) -> SqlError {
    SqlError { number, state: 1, class, message, procedure: String::new(), line: 1 }
}

/// The declared parameters with their values, and the names and places of those that are handed back.
pub(crate) type Bound = (Vec<Parameter>, Vec<(String, u16)>);

/// The declared parameters with the values that the call gives them, and the places of the output parameters in the call, where `first` is
/// the place of the first value.
pub(crate) fn bind(
    declared: &[Declared],
    given: Vec<Parameter>,
    first: usize,
    sql: &str,
    collation: Collation,
) -> Result<Bound, SqlError> {
    if given.len() > declared.len() {
        return Err(error(8144, 16, "Procedure or function has too many arguments specified.".to_owned()));
    }
    let mut bound: Vec<Option<Parameter>> = vec![None; declared.len()];
    let mut ordinals = Vec::new();
    for (at, parameter) in given.into_iter().enumerate() {
        let place = match parameter.name.as_str() {
            "" | "@" => at,
            name => declared
                .iter()
                .position(|one| names::same_name(&one.name, name))
                .ok_or_else(|| error(8145, 16, format!("{name} is not a parameter for procedure sp_executesql.")))?,
        };
        let one = &declared[place];
        if bound[place].is_some() {
            return Err(error(8143, 16, format!("Parameter '{}' was supplied multiple times.", one.name)));
        }
        let output = parameter.output && one.output;
        if output {
            ordinals.push((one.name.clone(), (first + at) as u16));
        }
        let (data_type, value) = fit(&one.data_type, parameter.data_type, parameter.value, collation)?;
        bound[place] = Some(Parameter { name: one.name.clone(), data_type, value, output });
    }
    let parameters = bound.into_iter().zip(declared).map(|(bound, one)| match bound {
        Some(parameter) => Ok(parameter),
        None if one.optional => {
            let Declared { name, data_type, .. } = one.clone();
            Ok(Parameter { name, data_type, value: Value::Null, output: false })
        }
        None => Err(missing(sql, declared, &one.name)),
    });
    Ok((parameters.collect::<Result<_, _>>()?, ordinals))
}

fn missing(sql: &str, declared: &[Declared], name: &str) -> SqlError {
    let names: Vec<&str> = declared.iter().map(|one| one.name.as_str()).collect();
    let shown: String = sql.chars().take(200).collect();
    error(
        8178,
        16,
        format!("The parameterized query '({}){shown}' expects the parameter '{name}', which was not supplied.", names.join(",")),
    )
}

fn overflow(data_type: &DataType) -> SqlError {
    error(8115, 16, format!("Arithmetic overflow error converting a parameter's value to data type {data_type:?}."))
}

/// The value as the declared type holds it. What only SQL can convert (text to a number or a date) keeps the type in which it was sent, and the
/// engine converts it.
fn fit(declared: &DataType, sent: DataType, value: Value, collation: Collation) -> Result<(DataType, Value), SqlError> {
    use DataType as T;
    let value = match value {
        Value::Variant(inner) if *declared != T::SqlVariant => inner.1,
        other => other,
    };
    let fitted = match (declared, value) {
        (_, Value::Null) => Value::Null,
        (T::Bit, Value::Int(n)) => Value::Bit(n != 0),
        (T::Bit, Value::Bit(b)) => Value::Bit(b),
        (T::TinyInt | T::SmallInt | T::Int | T::BigInt, value @ (Value::Int(_) | Value::Bit(_) | Value::Decimal { .. })) => {
            integer(declared, &value)?
        }
        (T::Real | T::Float, Value::Int(n)) => Value::Float(n as f64),
        (T::Real, Value::Float(x)) => Value::Float(f64::from(x as f32)),
        (T::Float, Value::Float(x)) => Value::Float(x),
        (T::Real | T::Float, Value::Decimal { mantissa, scale }) => Value::Float(mantissa as f64 / 10f64.powi(i32::from(scale))),
        (
            T::Decimal { precision, scale } | T::Numeric { precision, scale },
            value @ (Value::Int(_) | Value::Bit(_) | Value::Decimal { .. }),
        ) => decimal(declared, &value, *precision, *scale)?,
        (T::Money, value @ (Value::Int(_) | Value::Bit(_) | Value::Decimal { .. })) => decimal(declared, &value, 19, 4)?,
        (T::SmallMoney, value @ (Value::Int(_) | Value::Bit(_) | Value::Decimal { .. })) => decimal(declared, &value, 10, 4)?,
        (T::Char(_) | T::VarChar(_) | T::NChar(_) | T::NVarChar(_) | T::Text | T::NText | T::Xml, Value::Text(text)) => {
            Value::Text(shortened(declared, text, collation))
        }
        (T::Binary(n) | T::VarBinary(Length::Limited(n)), Value::Bytes(mut bytes)) => {
            bytes.truncate(usize::from(*n));
            Value::Bytes(bytes)
        }
        (T::VarBinary(Length::Max) | T::Image | T::Udt(_), Value::Bytes(bytes)) => Value::Bytes(bytes),
        (T::UniqueIdentifier, Value::UniqueIdentifier(bytes)) => Value::UniqueIdentifier(bytes),
        (T::SqlVariant, Value::Variant(inner)) => Value::Variant(inner),
        (T::SqlVariant, value) => Value::Variant(Box::new((sent, value))),
        (declared, value) => match temporal(declared, &value) {
            Some(value) => value,
            None => return Ok((sent, value)),
        },
    };
    Ok((declared.clone(), fitted))
}

fn integer(declared: &DataType, value: &Value) -> Result<Value, SqlError> {
    let whole = match value {
        // SQL Server cuts the digits after the point off.
        Value::Decimal { mantissa, scale } => mantissa / 10i128.pow(u32::from(*scale).min(38)),
        Value::Int(n) => i128::from(*n),
        other => i128::from(*other == Value::Bit(true)),
    };
    let (low, high) = match declared {
        DataType::TinyInt => (0, i64::from(u8::MAX)),
        DataType::SmallInt => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Int => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    match i64::try_from(whole) {
        Ok(n) if (low..=high).contains(&n) => Ok(Value::Int(n)),
        _ => Err(overflow(declared)),
    }
}

/// The value at the declared scale, rounded half away from zero.
fn decimal(declared: &DataType, value: &Value, precision: u8, scale: u8) -> Result<Value, SqlError> {
    let exact = encode::decimal(value, scale).or_else(|_| match value {
        Value::Decimal { mantissa, scale: from } if *from > scale => {
            let divisor = 10i128.pow(u32::from(from - scale).min(38));
            let half = divisor / 2 * mantissa.signum();
            mantissa.checked_add(half).map(|sum| sum / divisor).ok_or(encode::Misfit("overflow"))
        }
        _ => Err(encode::Misfit("overflow")),
    });
    match exact {
        Ok(mantissa) if mantissa.unsigned_abs() < 10u128.pow(u32::from(precision).min(38)) => {
            Ok(Value::Decimal { mantissa, scale })
        }
        _ => Err(overflow(declared)),
    }
}

/// SQL Server cuts a string parameter to its declared length without a word.
fn shortened(declared: &DataType, mut text: String, collation: Collation) -> String {
    use DataType as T;
    match declared {
        T::NChar(most) | T::NVarChar(Length::Limited(most)) => cut(&mut text, usize::from(*most), char::len_utf16),
        T::Char(most) | T::VarChar(Length::Limited(most)) => {
            let unit = if collation.is_utf8() { char::len_utf8 } else { |_: char| 1 };
            cut(&mut text, usize::from(*most), unit);
        }
        _ => {}
    }
    text
}

fn cut(text: &mut String, most: usize, units: fn(char) -> usize) {
    if text.len() <= most {
        return;
    }
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += units(*c);
        used > most
    });
    if let Some((end, _)) = end {
        text.truncate(end);
    }
}

/// A temporal value in another temporal type, its fraction rounded to the type's scale.
fn temporal(declared: &DataType, value: &Value) -> Option<Value> {
    use DataType as T;
    Some(match (declared, value) {
        (T::Date, Value::Date(days) | Value::DateTime { days, .. } | Value::DateTimeOffset { days, .. }) => Value::Date(*days),
        (T::Time { scale }, Value::Time(ticks) | Value::DateTime { ticks, .. } | Value::DateTimeOffset { ticks, .. }) => {
            // A time has no next day to round to.
            Value::Time(rounded(*ticks, *scale).min(encode::DAY_TICKS - 10u64.pow(7 - u32::from((*scale).min(7)))))
        }
        (T::DateTime2 { scale }, Value::Date(_) | Value::DateTime { .. } | Value::DateTimeOffset { .. }) => {
            let (days, ticks) = date_and_time(value)?;
            let (days, ticks) = carried(days, rounded(ticks, *scale));
            Value::DateTime { days, ticks }
        }
        (T::DateTime, Value::Date(_) | Value::DateTime { .. } | Value::DateTimeOffset { .. }) => {
            let (days, ticks) = date_and_time(value)?;
            let units = (ticks * 3 + 50_000) / 100_000;
            let (days, ticks) = carried(days, (units * 100_000 + 1) / 3);
            Value::DateTime { days, ticks }
        }
        (T::SmallDateTime, Value::Date(_) | Value::DateTime { .. } | Value::DateTimeOffset { .. }) => {
            const MINUTE: u64 = 600_000_000;
            let (days, ticks) = date_and_time(value)?;
            let (days, ticks) = carried(days, (ticks + MINUTE / 2) / MINUTE * MINUTE);
            Value::DateTime { days, ticks }
        }
        (T::DateTimeOffset { scale }, Value::Date(_) | Value::DateTime { .. } | Value::DateTimeOffset { .. }) => {
            let (days, ticks) = date_and_time(value)?;
            let (days, ticks) = carried(days, rounded(ticks, *scale));
            let offset_minutes = if let Value::DateTimeOffset { offset_minutes, .. } = value { *offset_minutes } else { 0 };
            Value::DateTimeOffset { days, ticks, offset_minutes }
        }
        _ => return None,
    })
}

fn date_and_time(value: &Value) -> Option<(u32, u64)> {
    match value {
        Value::Date(days) => Some((*days, 0)),
        Value::DateTime { days, ticks } | Value::DateTimeOffset { days, ticks, .. } => Some((*days, *ticks)),
        _ => None,
    }
}

fn rounded(ticks: u64, scale: u8) -> u64 {
    let unit = 10u64.pow(7 - u32::from(scale.min(7)));
    (ticks + unit / 2) / unit * unit
}

fn carried(days: u32, ticks: u64) -> (u32, u64) {
    (days + (ticks / encode::DAY_TICKS) as u32, ticks % encode::DAY_TICKS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::declaration;

    fn given(name: &str, data_type: DataType, value: Value) -> Parameter {
        Parameter { name: name.to_owned(), data_type, value, output: false }
    }

    fn bound(declared: &str, given: Vec<Parameter>) -> Result<Vec<Parameter>, i32> {
        let declared = declaration::parse(declared).unwrap();
        bind(&declared, given, 2, "select 1", Collation::LATIN1_GENERAL_CP1_CI_AS)
            .map(|(parameters, _)| parameters)
            .map_err(|error| error.number)
    }

    #[test]
    fn values_are_bound_by_name_or_by_place() {
        let parameters = bound(
            "@a int, @b nvarchar(3)",
            vec![
                given("@B", DataType::NVarChar(Length::Limited(9)), Value::Text("abcdef".into())),
                given("@a", DataType::TinyInt, Value::Int(7)),
            ],
        );
        let parameters = parameters.unwrap();
        assert_eq!(parameters[0].value, Value::Int(7));
        assert_eq!(parameters[1].value, Value::Text("abc".into()));
        assert_eq!(bound("@a int, @b int", vec![given("", DataType::Int, Value::Int(1))]).unwrap_err(), 8178);
        assert_eq!(bound("@a int", vec![given("@c", DataType::Int, Value::Int(1))]).unwrap_err(), 8145);
        assert_eq!(bound("", vec![given("", DataType::Int, Value::Int(1))]).unwrap_err(), 8144);
    }

    #[test]
    fn values_take_the_declared_type() {
        let one = |declared: &str, data_type: DataType, value: Value| {
            bound(declared, vec![given("", data_type, value)]).map(|mut all| all.remove(0))
        };
        let decimal = |mantissa, scale| Value::Decimal { mantissa, scale };
        let money = one("@a decimal(5,2)", DataType::Money, decimal(123_450, 4)).unwrap();
        assert_eq!((money.data_type, money.value), (DataType::Decimal { precision: 5, scale: 2 }, decimal(1235, 2)));
        assert_eq!(one("@a tinyint", DataType::Int, Value::Int(256)).unwrap_err(), 8115);
        assert_eq!(one("@a decimal(3,2)", DataType::Int, Value::Int(10)).unwrap_err(), 8115);
        let text = one("@a int", DataType::NVarChar(Length::Limited(2)), Value::Text("12".into())).unwrap();
        assert_eq!(text.data_type, DataType::NVarChar(Length::Limited(2)), "text is left to the engine to convert");
        let midnight =
            one("@a datetime2(0)", DataType::DateTime2 { scale: 7 }, Value::DateTime { days: 5, ticks: encode::DAY_TICKS - 1 });
        assert_eq!(midnight.unwrap().value, Value::DateTime { days: 6, ticks: 0 });
    }
}
