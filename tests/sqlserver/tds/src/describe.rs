//! `sp_describe_first_result_set`: the columns of a statement's result as rows.

use crate::collation::Collation;
use crate::data::{Column, DataType, Length, Value};

pub(crate) fn columns() -> Vec<Column> {
    use DataType as T;
    let name = || T::NVarChar(Length::Limited(128));
    let columns = [
        ("is_hidden", T::Bit, false),
        ("column_ordinal", T::Int, false),
        ("name", name(), true),
        ("is_nullable", T::Bit, false),
        ("system_type_id", T::Int, false),
        ("system_type_name", T::NVarChar(Length::Limited(256)), true),
        ("max_length", T::SmallInt, false),
        ("precision", T::TinyInt, false),
        ("scale", T::TinyInt, false),
        ("collation_name", name(), true),
        ("user_type_id", T::Int, true),
        ("user_type_database", name(), true),
        ("user_type_schema", name(), true),
        ("user_type_name", name(), true),
        ("assembly_qualified_type_name", T::NVarChar(Length::Limited(4000)), true),
        ("xml_collection_id", T::Int, true),
        ("xml_collection_database", name(), true),
        ("xml_collection_schema", name(), true),
        ("xml_collection_name", name(), true),
        ("is_xml_document", T::Bit, false),
        ("is_case_sensitive", T::Bit, false),
        ("is_fixed_length_clr_type", T::Bit, false),
        ("source_server", name(), true),
        ("source_database", name(), true),
        ("source_schema", name(), true),
        ("source_table", name(), true),
        ("source_column", name(), true),
        ("is_identity_column", T::Bit, true),
        ("is_part_of_unique_key", T::Bit, true),
        ("is_updateable", T::Bit, true),
        ("is_computed_column", T::Bit, true),
        ("is_sparse_column_set", T::Bit, true),
        ("ordinal_in_order_by_list", T::SmallInt, true),
        ("order_by_list_length", T::SmallInt, true),
        ("order_by_is_descending", T::SmallInt, true),
        ("tds_type_id", T::Int, false),
        ("tds_length", T::Int, false),
        ("tds_collation_id", T::Int, true),
        ("tds_collation_sort_id", T::TinyInt, true),
    ];
    let column = |(name, data_type, nullable): (&str, DataType, bool)| Column {
        name: name.to_owned(),
        data_type,
        nullable,
        identity: false,
        computed: false,
        collation: None,
    };
    columns.into_iter().map(column).collect()
}

/// One column of the described statement as a row.
pub(crate) fn row(ordinal: usize, column: &Column, collation: Collation) -> Vec<Value> {
    let of = TypeFacts::of(&column.data_type);
    let text = |text: &str| Value::Text(text.to_owned());
    let name = if column.name.is_empty() { Value::Null } else { text(&column.name) };
    let collation = column.collation.unwrap_or(collation);
    let [a, b, c, d, sort] = collation.0;
    let collated = |value: Value| if of.collated { value } else { Value::Null };
    let mut row = vec![
        Value::Bit(false),
        Value::Int(ordinal as i64),
        name,
        Value::Bit(column.nullable),
        Value::Int(of.system_id),
        text(&of.name),
        Value::Int(of.max_length),
        Value::Int(of.precision),
        Value::Int(of.scale),
        collated(text(&collation.name())),
    ];
    row.resize(19, Value::Null);
    row.extend([Value::Bit(false), Value::Bit(false), Value::Bit(false)]);
    row.resize(27, Value::Null);
    row.extend([
        Value::Bit(column.identity),
        Value::Bit(false),
        Value::Bit(!column.identity && !column.computed),
        Value::Bit(column.computed),
        Value::Bit(false),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Int(of.tds_id),
        Value::Int(of.max_length),
        collated(Value::Int(i64::from(i32::from_le_bytes([a, b, c, d])))),
        collated(Value::Int(i64::from(sort))),
    ]);
    row
}

/// What the catalog knows of a type.
struct TypeFacts {
    system_id: i64,
    tds_id: i64,
    name: String,
    /// In bytes; -1 for `max`.
    max_length: i64,
    precision: i64,
    scale: i64,
    collated: bool,
}

impl TypeFacts {
    fn of(data_type: &DataType) -> TypeFacts {
        use DataType as T;
        let facts = |system_id: i64, tds_id: i64, name: &str, max_length: i64, precision: i64, scale: i64| TypeFacts {
            system_id,
            tds_id,
            name: name.to_owned(),
            max_length,
            precision,
            scale,
            collated: false,
        };
        let string = |system_id: i64, name: &str, length: Length, unit: i64, collated: bool| {
            let (shown, max_length) = match length {
                Length::Limited(n) => (n.to_string(), i64::from(n) * unit),
                Length::Max => ("max".to_owned(), -1),
            };
            TypeFacts { collated, ..facts(system_id, system_id, &format!("{name}({shown})"), max_length, 0, 0) }
        };
        let decimal = |system_id: i64, name: &str, precision: u8, scale: u8| {
            let bytes = i64::from(crate::type_info::decimal_bytes(precision));
            facts(system_id, system_id, &format!("{name}({precision},{scale})"), bytes, i64::from(precision), i64::from(scale))
        };
        let temporal = |system_id: i64, name: &str, scale: u8, date_bytes: i64, digits: i64| {
            let bytes = crate::type_info::time_bytes(scale) as i64 + date_bytes;
            let precision = digits + if scale == 0 { 0 } else { i64::from(scale) + 1 };
            facts(system_id, system_id, &format!("{name}({scale})"), bytes, precision, i64::from(scale))
        };
        match data_type {
            T::Bit => facts(104, 104, "bit", 1, 1, 0),
            T::TinyInt => facts(48, 38, "tinyint", 1, 3, 0),
            T::SmallInt => facts(52, 38, "smallint", 2, 5, 0),
            T::Int => facts(56, 38, "int", 4, 10, 0),
            T::BigInt => facts(127, 38, "bigint", 8, 19, 0),
            T::Real => facts(59, 109, "real", 4, 24, 0),
            T::Float => facts(62, 109, "float", 8, 53, 0),
            T::Money => facts(60, 110, "money", 8, 19, 4),
            T::SmallMoney => facts(122, 110, "smallmoney", 4, 10, 4),
            T::DateTime => facts(61, 111, "datetime", 8, 23, 3),
            T::SmallDateTime => facts(58, 111, "smalldatetime", 4, 16, 0),
            T::UniqueIdentifier => facts(36, 36, "uniqueidentifier", 16, 0, 0),
            T::Date => facts(40, 40, "date", 3, 10, 0),
            T::Text => TypeFacts { collated: true, ..facts(35, 35, "text", 16, 0, 0) },
            T::NText => TypeFacts { collated: true, ..facts(99, 99, "ntext", 16, 0, 0) },
            T::Image => facts(34, 34, "image", 16, 0, 0),
            T::Xml => facts(241, 241, "xml", -1, 0, 0),
            T::SqlVariant => facts(98, 98, "sql_variant", 8016, 0, 0),
            T::Udt(name) => facts(240, 240, name, -1, 0, 0),
            T::Decimal { precision, scale } => decimal(106, "decimal", *precision, *scale),
            T::Numeric { precision, scale } => decimal(108, "numeric", *precision, *scale),
            T::Time { scale } => temporal(41, "time", *scale, 0, 8),
            T::DateTime2 { scale } => temporal(42, "datetime2", *scale, 3, 19),
            T::DateTimeOffset { scale } => temporal(43, "datetimeoffset", *scale, 5, 26),
            T::Char(n) => string(175, "char", Length::Limited(*n), 1, true),
            T::VarChar(length) => string(167, "varchar", *length, 1, true),
            T::NChar(n) => string(239, "nchar", Length::Limited(*n), 2, true),
            T::NVarChar(length) => string(231, "nvarchar", *length, 2, true),
            T::Binary(n) => string(173, "binary", Length::Limited(*n), 1, false),
            T::VarBinary(length) => string(165, "varbinary", *length, 1, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_values_as_there_are_columns() {
        let column = columns().remove(2);
        assert_eq!(row(1, &column, Collation::LATIN1_GENERAL_CP1_CI_AS).len(), columns().len());
    }
}
