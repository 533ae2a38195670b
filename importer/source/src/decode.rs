//! SQL Server's values as the driver hands them over, turned into [`Value`]s without loss.
//!
//! # What is converted on the server
//! Some types are not safe with the driver as they come ([`expression`]):
//! - `money` and `smallmoney`, which it makes a float, come as exact decimals, inside a `sql_variant` too;
//! - text of a collation whose code page it does not know (437, 850, UTF-8), knows only in part (1253, 1255, 1257, 874: a byte without a meaning would end the import) or knows
//!   in another edition (the East Asian ones) comes as UTF-16, see [`Text`]; inside a `sql_variant` all text of one byte does, as long as it fits;
//! - `json` and `vector`, which have types of their own on the wire that are sent to clients that ask for them, come as text: a vector as a JSON array;
//! - the CLR types come as their bytes, and are read here ([`clr`](super::clr)).
//!
//! Everything else is taken as it is on the wire: `datetime` counts 1/300 s and is written with the three digits that SQL Server shows,
//! from which the count can be had back; `time`, `datetime2` and `datetimeoffset` keep their 100 ns; a `uniqueidentifier`'s bytes come in the order of its
//! text; `char` and `nchar` keep their padding, as SQL Server returns it; `real` and `float` keep their bits; a `rowversion` is its eight bytes, in its change table as well.
//! An alias type is the type that it is made of. Half a surrogate pair, which SQL Server stores unchecked, becomes U+FFFD.

use schemas::table::{Length, SqlType, TableSchema};
use schemas::value::Value;
use tiberius::{ColumnData, Row};

use super::clr::{hierarchy, spatial};
use super::error::Error;
use super::sql::quote;

/// Days from 0001-01-01 to 1900-01-01, from which `datetime` counts.
const DAYS_TO_1900: i64 = 693_595;
/// 9999-12-31, the last day of all types.
const LAST_DAY: i64 = 3_652_058;
const TICKS_PER_DAY: i64 = 864_000_000_000;
const TICKS_PER_MINUTE: i64 = 600_000_000;
const TICKS_PER_MILLISECOND: u64 = 10_000;
const MILLISECONDS_PER_DAY: u64 = 86_400_000;

/// Who makes Unicode of text that has one byte a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// The driver, which knows the code page.
    Driver,
    Server,
}

impl Text {
    /// By the name of the collation. The driver is trusted with the code pages in which every byte has a meaning and that it reads as SQL Server does: 1250, 1251, 1252, 1254,
    /// 1256. All others are the server's, those of collations that are not known here among them.
    pub fn of(collation: &str) -> Self {
        const KNOWN: [&str; 24] = [
            "Latin1_General",
            "Finnish_Swedish",
            "Danish_Norwegian",
            "Danish_Greenlandic",
            "French",
            "German_PhoneBook",
            "Icelandic",
            "Modern_Spanish",
            "Traditional_Spanish",
            "Norwegian",
            "Welsh",
            "Breton",
            "Corsican",
            "Polish",
            "Czech",
            "Hungarian",
            "Romanian",
            "Croatian",
            "Slovak",
            "Slovenian",
            "Albanian",
            "Cyrillic_General",
            "Ukrainian",
            "Turkish",
        ];
        let collation = collation.to_ascii_uppercase();
        if collation.ends_with("_UTF8") {
            return Self::Server;
        }
        let known = match collation.strip_prefix("SQL_") {
            // SQL_Latin1_General_CP1_CI_AS: CP1 is 1252.
            Some(old) => old.split('_').any(|part| matches!(part, "CP1" | "CP1250" | "CP1251" | "CP1254" | "CP1256")),
            None => KNOWN.iter().any(|name| {
                let rest = collation.strip_prefix(&name.to_ascii_uppercase());
                // A version may follow, and how to compare does: Polish_100_CI_AS, but not French_Canada_….
                rest.is_some_and(|rest| {
                    let mut parts = rest.split('_').skip(1);
                    rest.starts_with('_')
                        && parts.all(|part| part.bytes().all(|byte| byte.is_ascii_digit()) || COMPARED.contains(&part))
                })
            }),
        };
        if known { Self::Driver } else { Self::Server }
    }
}

/// What the names of collations end with.
const COMPARED: [&str; 13] = ["CI", "CS", "AI", "AS", "KS", "WS", "BIN", "BIN2", "SC", "VSS", "KI", "WI", ""];

/// How the bytes of a column are read, where the driver's own idea of them is not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    HierarchyId,
    Geometry,
    Geography,
}

impl Form {
    pub fn of(sql_type: SqlType) -> Self {
        match sql_type {
            SqlType::HierarchyId => Self::HierarchyId,
            SqlType::Geometry => Self::Geometry,
            SqlType::Geography => Self::Geography,
            _ => Self::Plain,
        }
    }

    /// Adds the value of one column. Bytes that are not of the form are handed on as they are, to be refused by the table's contract rather than end the import. `None`: it is
    /// a date that no calendar has. A row's cells go through here one by one, and so a failure is told of without making room for an [`Error`] beside each value.
    #[inline]
    pub(super) fn read(self, data: ColumnData<'static>, values: &mut Vec<Value>) -> Option<()> {
        read(data, values)?;
        if self != Self::Plain {
            self.read_object(values.last_mut()?);
        }
        Some(())
    }

    fn read_object(self, value: &mut Value) {
        let Value::Bytes(bytes) = &*value else { return };
        let text = match self {
            Self::HierarchyId => hierarchy::path(bytes),
            Self::Geometry | Self::Geography => spatial::text(bytes, self == Self::Geography),
            Self::Plain => None,
        };
        if let Some(text) = text {
            *value = Value::Text(text);
        }
    }
}

/// Makes rows of what the driver hands over, column by column.
#[derive(Debug, Clone)]
pub struct Decoder {
    forms: Vec<Form>,
}

impl Decoder {
    /// For rows of the schema's columns in its order.
    pub fn new(schema: &TableSchema) -> Self {
        Self { forms: schema.columns.iter().map(|column| Form::of(column.sql_type)).collect() }
    }

    /// Takes a row's cells; what follows them is left.
    pub fn row(&self, cells: &mut impl Iterator<Item = ColumnData<'static>>) -> Result<Vec<Value>, Error> {
        let mut values = Vec::with_capacity(self.forms.len());
        for (form, data) in self.forms.iter().zip(cells) {
            form.read(data, &mut values).ok_or_else(no_such_date)?;
        }
        if values.len() == self.forms.len() {
            Ok(values)
        } else {
            let what = format!("a row has {} columns instead of {}", values.len(), self.forms.len());
            Err(Error::Unexpected { doing: "decoding a row", what })
        }
    }
}

/// What a column is selected as, from a table with the given alias (or none).
pub fn select(name: &str, sql_type: SqlType, text: Text, alias: Option<&str>) -> String {
    let expression = expression(name, sql_type, text, alias);
    // A plain column ends with the bracket of its name, and keeps it.
    if expression.ends_with(']') { expression } else { format!("{expression} AS {}", quote(name)) }
}

/// The same without the name that it is given where it is converted.
pub fn expression(name: &str, sql_type: SqlType, text: Text, alias: Option<&str>) -> String {
    let quoted = quote(name);
    let column = alias.map_or_else(|| quoted.clone(), |alias| format!("{alias}.{quoted}"));
    match sql_type {
        SqlType::Money | SqlType::SmallMoney => format!("CAST({column} AS decimal(19,4))"),
        SqlType::SqlVariant => {
            let base = format!("CAST(SQL_VARIANT_PROPERTY({column}, 'BaseType') AS nvarchar(128))");
            format!(
                "CASE WHEN {base} IN (N'money', N'smallmoney') THEN CAST(CAST({column} AS decimal(19,4)) AS sql_variant) \
                 WHEN {base} IN (N'varchar', N'char') AND DATALENGTH({column}) <= 4000 THEN CAST(CAST({column} AS nvarchar(4000)) AS sql_variant) \
                 ELSE {column} END"
            )
        }
        SqlType::HierarchyId | SqlType::Geometry | SqlType::Geography => format!("CAST({column} AS varbinary(max))"),
        SqlType::Json | SqlType::Vector(_) => format!("CAST({column} AS nvarchar(max))"),
        SqlType::Char(n) | SqlType::VarChar(Length::Limited(n)) if text == Text::Server && n <= 4000 => {
            format!("CAST({column} AS nvarchar({n}))")
        }
        SqlType::Char(_) | SqlType::VarChar(_) | SqlType::Text if text == Text::Server => {
            format!("CAST({column} AS nvarchar(max))")
        }
        _ => column,
    }
}

/// The value of one column, as the driver has it.
pub fn value(data: ColumnData<'static>) -> Result<Value, Error> {
    let mut values = Vec::with_capacity(1);
    read(data, &mut values).and_then(|()| values.pop()).ok_or_else(no_such_date)
}

/// What ends a row in which [`Form::read`] found one.
pub(super) fn no_such_date() -> Error {
    Error::Unexpected {
        doing: "decoding a row",
        what: "a date or time is outside of the years 1 to 9999, or of the day".to_owned(),
    }
}

/// Each value is made where it stays: moved from call to call, it costs more than its decoding.
#[inline(always)]
fn read(data: ColumnData<'static>, values: &mut Vec<Value>) -> Option<()> {
    match data {
        ColumnData::I32(Some(number)) => values.push(Value::Int(number.into())),
        ColumnData::I64(Some(number)) => values.push(Value::Int(number)),
        ColumnData::String(Some(text)) => values.push(Value::Text(text.into_owned())),
        ColumnData::Numeric(Some(number)) => values.push(Value::Decimal { mantissa: number.value(), scale: number.scale() }),
        ColumnData::DateTime2(Some(moment)) => {
            let (ticks, scale) = time(moment.time())?;
            values.push(Value::DateTime { days: day(moment.date().days().into())?, ticks, scale })
        }
        ColumnData::Bit(Some(bit)) => values.push(Value::Bool(bit)),
        ColumnData::U8(Some(number)) => values.push(Value::Int(number.into())),
        ColumnData::I16(Some(number)) => values.push(Value::Int(number.into())),
        ColumnData::F32(Some(number)) => values.push(Value::Real(number)),
        ColumnData::F64(Some(number)) => values.push(Value::Float(number)),
        ColumnData::Guid(Some(uuid)) => values.push(Value::Uuid(uuid.into_bytes())),
        ColumnData::Binary(Some(bytes)) => values.push(Value::Bytes(bytes.into_owned())),
        ColumnData::Xml(Some(xml)) => values.push(Value::Text(xml.into_owned().into_string())),
        ColumnData::Date(Some(date)) => values.push(Value::Date(day(date.days().into())?)),
        ColumnData::Time(Some(moment)) => {
            let (ticks, scale) = time(moment)?;
            values.push(Value::Time { ticks, scale })
        }
        ColumnData::DateTime(Some(moment)) => values.push(datetime(moment.days().into(), moment.seconds_fragments())?),
        ColumnData::SmallDateTime(Some(moment)) => {
            // In spite of its name, the driver's field counts minutes.
            let ticks = u64::from(moment.seconds_fragments()) * TICKS_PER_MINUTE.unsigned_abs();
            (ticks < TICKS_PER_DAY.unsigned_abs()).then_some(())?;
            values.push(Value::DateTime { days: day(i64::from(moment.days()) + DAYS_TO_1900)?, ticks, scale: 0 })
        }
        ColumnData::DateTimeOffset(Some(moment)) => {
            let (ticks, scale) = time(moment.datetime2().time())?;
            values.push(local(moment.datetime2().date().days(), ticks, scale, moment.offset())?)
        }
        ColumnData::I32(None)
        | ColumnData::I64(None)
        | ColumnData::String(None)
        | ColumnData::Numeric(None)
        | ColumnData::DateTime2(None)
        | ColumnData::Bit(None)
        | ColumnData::U8(None)
        | ColumnData::I16(None)
        | ColumnData::F32(None)
        | ColumnData::F64(None)
        | ColumnData::Guid(None)
        | ColumnData::Binary(None)
        | ColumnData::Xml(None)
        | ColumnData::Date(None)
        | ColumnData::Time(None)
        | ColumnData::DateTime(None)
        | ColumnData::SmallDateTime(None)
        | ColumnData::DateTimeOffset(None) => values.push(Value::Null),
    }
    Some(())
}

/// Ticks since midnight and the declared scale; `None`: no time of any day.
fn time(time: tiberius::time::Time) -> Option<(u64, u8)> {
    let scale = time.scale();
    let ticks = time.increments().checked_mul(10u64.pow(7u32.checked_sub(scale.into())?))?;
    (ticks < TICKS_PER_DAY.unsigned_abs()).then_some((ticks, scale))
}

fn day(days: i64) -> Option<u32> {
    if (0..=LAST_DAY).contains(&days) { u32::try_from(days).ok() } else { None }
}

fn datetime(days_since_1900: i64, three_hundredths: u32) -> Option<Value> {
    // Rounded to milliseconds as SQL Server shows them: .000, .003, .007.
    let milliseconds = (u64::from(three_hundredths) * 20 + 3) / 6;
    // The last of a day's 1/300 s is .997: more is of no day.
    (milliseconds < MILLISECONDS_PER_DAY).then_some(())?;
    Some(Value::DateTime { days: day(days_since_1900 + DAYS_TO_1900)?, ticks: milliseconds * TICKS_PER_MILLISECOND, scale: 3 })
}

/// A `datetimeoffset` travels in UTC beside its offset; it is written in local time.
fn local(utc_days: u32, utc_ticks: u64, scale: u8, offset_minutes: i16) -> Option<Value> {
    let total =
        i64::from(day(utc_days.into())?) * TICKS_PER_DAY + utc_ticks.cast_signed() + i64::from(offset_minutes) * TICKS_PER_MINUTE;
    let days = day(total.div_euclid(TICKS_PER_DAY))?;
    Some(Value::DateTimeOffset { days, ticks: total.rem_euclid(TICKS_PER_DAY).cast_unsigned(), scale, offset_minutes })
}

/// Reads the columns of a catalog row by their place. A value of another kind than expected is a fault of ours, or a server that is none.
pub struct Columns {
    doing: &'static str,
    values: std::vec::IntoIter<ColumnData<'static>>,
    read: usize,
}

impl Columns {
    pub fn new(doing: &'static str, row: Row) -> Self {
        let values: Vec<ColumnData<'static>> = row.into_iter().collect();
        Self { doing, values: values.into_iter(), read: 0 }
    }

    fn unexpected(&self, expected: &str, found: &Value) -> Error {
        Error::Unexpected {
            doing: self.doing,
            what: format!("column {} of the answer should be {expected}, and is {found:?}", self.read),
        }
    }

    pub fn value(&mut self) -> Result<Value, Error> {
        self.read += 1;
        let data = self.values.next();
        data.map_or_else(
            || Err(Error::Unexpected { doing: self.doing, what: format!("the answer has no column {}", self.read) }),
            value,
        )
    }

    pub fn optional_text(&mut self) -> Result<Option<String>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            other => Err(self.unexpected("text", &other)),
        }
    }

    pub fn text(&mut self) -> Result<String, Error> {
        self.optional_text()?.ok_or_else(|| self.unexpected("text", &Value::Null))
    }

    pub fn optional_int(&mut self) -> Result<Option<i64>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(number)),
            Value::Bool(bit) => Ok(Some(bit.into())),
            other => Err(self.unexpected("a number", &other)),
        }
    }

    pub fn int(&mut self) -> Result<i64, Error> {
        self.optional_int()?.ok_or_else(|| self.unexpected("a number", &Value::Null))
    }

    /// As SQL Server prints it.
    pub fn optional_uuid(&mut self) -> Result<Option<String>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            uuid @ Value::Uuid(_) => Ok(uuid.to_json().as_str().map(str::to_owned)),
            other => Err(self.unexpected("a uniqueidentifier", &other)),
        }
    }

    /// A time of the server's clock, as ISO 8601 text.
    pub fn optional_time(&mut self) -> Result<Option<String>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            time @ Value::DateTime { .. } => Ok(time.to_json().as_str().map(str::to_owned)),
            other => Err(self.unexpected("a time", &other)),
        }
    }

    /// NULL and `0x00…` both mean that there is none.
    pub fn lsn(&mut self) -> Result<Option<schemas::Lsn>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Bytes(bytes) => match schemas::Lsn::from_slice(&bytes) {
                Some(lsn) => Ok(Some(lsn).filter(|lsn| !lsn.is_zero())),
                None => Err(self.unexpected("ten bytes", &Value::Bytes(bytes))),
            },
            other => Err(self.unexpected("an LSN", &other)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use tiberius::time::{Date, DateTime, DateTime2, DateTimeOffset, SmallDateTime, Time};

    use super::*;

    fn json(data: ColumnData<'static>) -> String {
        value(data).unwrap().to_json().to_string()
    }

    #[test]
    fn every_type_is_written_as_sql_server_shows_it() {
        let datetime = |fragments| json(ColumnData::DateTime(Some(DateTime::new(0, fragments))));
        assert_eq!(datetime(1), "\"1900-01-01T00:00:00.003\"");
        assert_eq!(datetime(2), "\"1900-01-01T00:00:00.007\"");
        assert_eq!(datetime(25_919_999), "\"1900-01-01T23:59:59.997\"");
        assert_eq!(json(ColumnData::DateTime(Some(DateTime::new(-53_690, 0)))), "\"1753-01-01T00:00:00.000\"");
        assert_eq!(json(ColumnData::SmallDateTime(Some(SmallDateTime::new(65_535, 1439)))), "\"2079-06-06T23:59:00\"");
        let moment = DateTime2::new(Date::new(738_944), Time::new(12_345, 3));
        assert_eq!(json(ColumnData::DateTime2(Some(moment))), "\"2024-02-29T00:00:12.345\"");
        let late = DateTime2::new(Date::new(738_944), Time::new(863_999_999_999, 7));
        assert_eq!(
            json(ColumnData::DateTimeOffset(Some(DateTimeOffset::new(late, 120)))),
            "\"2024-03-01T01:59:59.9999999+02:00\""
        );
        assert_eq!(json(ColumnData::DateTimeOffset(Some(DateTimeOffset::new(moment, -1)))), "\"2024-02-28T23:59:12.345-00:01\"");
        assert_eq!(json(ColumnData::Time(Some(Time::new(86_399, 0)))), "\"23:59:59\"");
        let uuid = tiberius::Uuid::parse_str("6F9619FF-8B86-D011-B42D-00C04FC964FF").unwrap();
        assert_eq!(json(ColumnData::Guid(Some(uuid))), "\"6F9619FF-8B86-D011-B42D-00C04FC964FF\"");
        let least = tiberius::numeric::Numeric::new_with_scale(1 - 10i128.pow(38), 38);
        assert_eq!(json(ColumnData::Numeric(Some(least))), format!("\"-0.{}\"", "9".repeat(38)));
        assert_eq!(json(ColumnData::Bit(None)), "null");
    }

    #[test]
    fn what_the_driver_would_lose_is_converted_on_the_server() {
        assert_eq!(select("a]b", SqlType::Money, Text::Driver, Some("t")), "CAST(t.[a]]b] AS decimal(19,4)) AS [a]]b]");
        assert_eq!(select("a", SqlType::VarChar(Length::Limited(10)), Text::Server, None), "CAST([a] AS nvarchar(10)) AS [a]");
        assert_eq!(select("a", SqlType::VarChar(Length::Limited(8000)), Text::Server, None), "CAST([a] AS nvarchar(max)) AS [a]");
        assert_eq!(select("a", SqlType::Json, Text::Driver, None), "CAST([a] AS nvarchar(max)) AS [a]");
        assert_eq!(select("a", SqlType::Vector(3), Text::Driver, None), "CAST([a] AS nvarchar(max)) AS [a]");
        assert_eq!(select("a", SqlType::NVarChar(Length::Max), Text::Server, None), "[a]");
        assert_eq!(select("a", SqlType::Int, Text::Server, None), "[a]");
    }

    #[test]
    fn the_driver_is_trusted_with_the_code_pages_that_it_knows_whole() {
        for known in [
            "SQL_Latin1_General_CP1_CI_AS",
            "SQL_Latin1_General_CP1250_CS_AS",
            "SQL_SwedishPhone_Pref_CP1_CI_AS",
            "Latin1_General_CI_AS",
            "Latin1_General_100_CI_AS_SC",
            "Latin1_General_BIN2",
            "Latin1_General_100_BIN",
            "Polish_CI_AS",
            "Cyrillic_General_CS_AS_KS_WS",
        ] {
            assert_eq!(Text::of(known), Text::Driver, "{known}");
        }
        for unknown in [
            "Latin1_General_100_CI_AS_SC_UTF8",
            "SQL_Latin1_General_CP437_CI_AS",
            "SQL_Latin1_General_CP850_BIN",
            "SQL_1xCompat_CP850_CI_AS",
            "SQL_Latin1_General_CP1253_CI_AS",
            "Greek_CI_AS",
            "Hebrew_100_CI_AS",
            "Japanese_XJIS_140_CI_AS",
            "Chinese_PRC_CI_AS",
            "Thai_CI_AS",
            "Latin1_General_New_CI_AS",
            "",
        ] {
            assert_eq!(Text::of(unknown), Text::Server, "{unknown}");
        }
    }

    #[test]
    fn clr_types_come_out_as_sql_server_shows_them() {
        let bytes = |bytes: &[u8]| ColumnData::Binary(Some(bytes.to_vec().into()));
        let read = |form: Form, data| {
            let mut values = Vec::new();
            form.read(data, &mut values).unwrap();
            values.pop().unwrap()
        };
        assert_eq!(read(Form::HierarchyId, bytes(&[0x5A, 0xC0])), Value::Text("/1/1/".into()));
        assert_eq!(read(Form::Plain, bytes(&[0x5A, 0xC0])), Value::Bytes(vec![0x5A, 0xC0]));
        assert_eq!(read(Form::Geometry, bytes(&[1])), Value::Bytes(vec![1]));
        assert_eq!(read(Form::Geography, ColumnData::Binary(None)), Value::Null);
    }

    /// Whatever a server may send, sense or not.
    fn any_cell() -> impl Strategy<Value = ColumnData<'static>> {
        let time = || (any::<u64>(), any::<u8>()).prop_map(|(increments, scale)| Time::new(increments, scale));
        let short = || (any::<u64>(), 0u8..8).prop_map(|(increments, scale)| Time::new(increments & 0xff_ffff_ffff, scale));
        let moment =
            move || (0u32..1 << 24, prop_oneof![time(), short()]).prop_map(|(days, time)| DateTime2::new(Date::new(days), time));
        prop_oneof![
            (0u32..1 << 24).prop_map(|days| ColumnData::Date(Some(Date::new(days)))),
            prop_oneof![time(), short()].prop_map(|time| ColumnData::Time(Some(time))),
            moment().prop_map(|moment| ColumnData::DateTime2(Some(moment))),
            (moment(), any::<i16>())
                .prop_map(|(moment, offset)| ColumnData::DateTimeOffset(Some(DateTimeOffset::new(moment, offset)))),
            (any::<i32>(), any::<u32>()).prop_map(|(days, fragments)| ColumnData::DateTime(Some(DateTime::new(days, fragments)))),
            (any::<u16>(), any::<u16>())
                .prop_map(|(days, minutes)| ColumnData::SmallDateTime(Some(SmallDateTime::new(days, minutes)))),
            (any::<i128>(), 0u8..=38)
                .prop_map(|(number, scale)| ColumnData::Numeric(Some(tiberius::numeric::Numeric::new_with_scale(number, scale)))),
            any::<u64>().prop_map(|bits| ColumnData::F64(Some(f64::from_bits(bits)))),
            prop::collection::vec(any::<u8>(), 0..60).prop_map(|bytes| ColumnData::Binary(Some(bytes.into()))),
            ".{0,20}".prop_map(|text| ColumnData::String(Some(text.into()))),
        ]
    }

    proptest! {
        /// Whatever comes is a value that can be written, or is refused.
        #[test]
        fn any_cell_is_a_value_or_is_refused(cell in any_cell()) {
            for form in [Form::Plain, Form::HierarchyId, Form::Geometry, Form::Geography] {
                let mut values = Vec::new();
                if form.read(cell.clone(), &mut values).is_some() {
                    values[0].write_json(&mut Vec::new());
                }
            }
        }

        /// The milliseconds that are written identify the 1/300 s that was stored.
        #[test]
        fn datetime_keeps_its_three_hundredths(fragments in 0u32..25_920_000) {
            let Value::DateTime { ticks, .. } = datetime(0, fragments).unwrap() else { panic!() };
            let milliseconds = ticks / TICKS_PER_MILLISECOND;
            prop_assert_eq!((milliseconds * 3 + 5) / 10, u64::from(fragments));
        }

        #[test]
        fn offsets_move_the_local_time(days in 1u32..3_652_058, ticks in 0u64..864_000_000_000, offset in -840i16..=840) {
            let Value::DateTimeOffset { days: local_days, ticks: local_ticks, offset_minutes, .. } = local(days, ticks, 7, offset).unwrap() else { panic!() };
            let back = i64::from(local_days) * TICKS_PER_DAY + local_ticks.cast_signed() - i64::from(offset_minutes) * TICKS_PER_MINUTE;
            prop_assert_eq!(back, i64::from(days) * TICKS_PER_DAY + ticks.cast_signed());
        }
    }
}
