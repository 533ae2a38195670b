//! TPC-H's tables and rows (crate `tpchgen`), for the end-to-end tests and the benchmarks.
//!
//! The same column types are used on the stand-in and in Postgres, so that a join in the one can be compared with the other: text is `varchar`, never the
//! padded `char` of the specification.

use std::sync::Arc;

use schemas::TableName;
use schemas::table::{Column, SqlType, TableSchema};
use schemas::value::write_string;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, RegionGenerator, SupplierGenerator,
};

/// A table of TPC-H.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    /// Names and types as T-SQL and Postgres both write them.
    pub columns: &'static [(&'static str, &'static str)],
    pub key: &'static [&'static str],
    /// Foreign keys: columns, and the table whose primary key they hold.
    pub references: &'static [(&'static [&'static str], &'static str)],
}

pub const REGION: Table = Table {
    name: "region",
    columns: &[("r_regionkey", "int"), ("r_name", "varchar(25)"), ("r_comment", "varchar(152)")],
    key: &["r_regionkey"],
    references: &[],
};
pub const NATION: Table = Table {
    name: "nation",
    columns: &[("n_nationkey", "int"), ("n_name", "varchar(25)"), ("n_regionkey", "int"), ("n_comment", "varchar(152)")],
    key: &["n_nationkey"],
    references: &[(&["n_regionkey"], "region")],
};
pub const SUPPLIER: Table = Table {
    name: "supplier",
    columns: &[
        ("s_suppkey", "int"),
        ("s_name", "varchar(25)"),
        ("s_address", "varchar(40)"),
        ("s_nationkey", "int"),
        ("s_phone", "varchar(15)"),
        ("s_acctbal", "decimal(15,2)"),
        ("s_comment", "varchar(101)"),
    ],
    key: &["s_suppkey"],
    references: &[(&["s_nationkey"], "nation")],
};
pub const PART: Table = Table {
    name: "part",
    columns: &[
        ("p_partkey", "int"),
        ("p_name", "varchar(55)"),
        ("p_mfgr", "varchar(25)"),
        ("p_brand", "varchar(10)"),
        ("p_type", "varchar(25)"),
        ("p_size", "int"),
        ("p_container", "varchar(10)"),
        ("p_retailprice", "decimal(15,2)"),
        ("p_comment", "varchar(23)"),
    ],
    key: &["p_partkey"],
    references: &[],
};
pub const CUSTOMER: Table = Table {
    name: "customer",
    columns: &[
        ("c_custkey", "int"),
        ("c_name", "varchar(25)"),
        ("c_address", "varchar(40)"),
        ("c_nationkey", "int"),
        ("c_phone", "varchar(15)"),
        ("c_acctbal", "decimal(15,2)"),
        ("c_mktsegment", "varchar(10)"),
        ("c_comment", "varchar(117)"),
    ],
    key: &["c_custkey"],
    references: &[(&["c_nationkey"], "nation")],
};
pub const ORDERS: Table = Table {
    name: "orders",
    columns: &[
        ("o_orderkey", "int"),
        ("o_custkey", "int"),
        ("o_orderstatus", "varchar(1)"),
        ("o_totalprice", "decimal(15,2)"),
        ("o_orderdate", "date"),
        ("o_orderpriority", "varchar(15)"),
        ("o_clerk", "varchar(15)"),
        ("o_shippriority", "int"),
        ("o_comment", "varchar(79)"),
    ],
    key: &["o_orderkey"],
    references: &[(&["o_custkey"], "customer")],
};
pub const LINEITEM: Table = Table {
    name: "lineitem",
    columns: &[
        ("l_orderkey", "int"),
        ("l_partkey", "int"),
        ("l_suppkey", "int"),
        ("l_linenumber", "int"),
        ("l_quantity", "decimal(15,2)"),
        ("l_extendedprice", "decimal(15,2)"),
        ("l_discount", "decimal(15,2)"),
        ("l_tax", "decimal(15,2)"),
        ("l_returnflag", "varchar(1)"),
        ("l_linestatus", "varchar(1)"),
        ("l_shipdate", "date"),
        ("l_commitdate", "date"),
        ("l_receiptdate", "date"),
        ("l_shipinstruct", "varchar(25)"),
        ("l_shipmode", "varchar(10)"),
        ("l_comment", "varchar(44)"),
    ],
    key: &["l_orderkey", "l_linenumber"],
    references: &[(&["l_orderkey"], "orders"), (&["l_partkey"], "part"), (&["l_suppkey"], "supplier")],
};

/// All of them, parents before children.
pub const TABLES: [Table; 7] = [REGION, NATION, SUPPLIER, PART, CUSTOMER, ORDERS, LINEITEM];

impl Table {
    /// The rows at a scale factor, each a list of field texts in column order.
    pub fn rows(&self, scale: f64) -> Box<dyn Iterator<Item = Vec<String>>> {
        fn fields(line: &str) -> Vec<String> {
            // TPC-H's own text form: every field is followed by a bar, and no text of the generator holds one.
            line.strip_suffix('|').unwrap_or(line).split('|').map(str::to_owned).collect()
        }
        match self.name {
            "region" => Box::new(RegionGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            "nation" => Box::new(NationGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            "supplier" => Box::new(SupplierGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            "part" => Box::new(PartGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            "customer" => Box::new(CustomerGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            "orders" => Box::new(OrderGenerator::new(scale, 1, 1).into_iter().map(|row| fields(&row.to_string()))),
            _ => Box::new(LineItemGenerator::new(scale, 1, 1).into_iter().map(|row| {
                let mut row = fields(&row.to_string());
                // The generator writes the quantity as a whole number; the column is a decimal(15,2).
                if let Some(quantity) = row.get_mut(4) {
                    quantity.push_str(".00");
                }
                row
            })),
        }
    }

    /// `CREATE TABLE`, for T-SQL and Postgres alike; `schema` such as `dbo`.
    pub fn create(&self, schema: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(name, sql_type)| format!("{name} {sql_type} NOT NULL")).collect();
        let references: String = self
            .references
            .iter()
            .map(|(columns, table)| format!(", FOREIGN KEY ({}) REFERENCES {schema}.{table}", columns.join(", ")))
            .collect();
        format!("CREATE TABLE {schema}.{} ({}, PRIMARY KEY ({}){references})", self.name, columns.join(", "), self.key.join(", "))
    }

    /// Whether the field is written without quotes, in SQL and in JSON.
    fn is_int(&self, column: usize) -> bool {
        self.columns[column].1 == "int"
    }

    /// The row as a T-SQL `VALUES` tuple.
    pub fn values(&self, row: &[String]) -> String {
        let fields: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, text)| {
                let plain = self.is_int(column) || self.columns[column].1.starts_with("decimal");
                if plain { text.clone() } else { format!("'{}'", text.replace('\'', "''")) }
            })
            .collect();
        format!("({})", fields.join(","))
    }

    /// Appends the row as the JSON object that change events hold.
    pub fn write_json(&self, row: &[String], out: &mut Vec<u8>) {
        for (column, text) in row.iter().enumerate() {
            out.push(if column == 0 { b'{' } else { b',' });
            write_string(out, self.columns[column].0);
            out.push(b':');
            if self.is_int(column) { out.extend_from_slice(text.as_bytes()) } else { write_string(out, text) }
        }
        out.push(b'}');
    }

    /// The table as a contract describes it.
    ///
    /// # Panics
    /// Never: the types are constants of this module, and a test parses them all.
    #[allow(clippy::unwrap_used)]
    pub fn schema(&self, schema: &str) -> Arc<TableSchema> {
        let columns = self
            .columns
            .iter()
            .map(|(name, sql_type)| Column {
                name: (*name).to_owned(),
                sql_type: sql_type.parse::<SqlType>().unwrap(),
                nullable: false,
                case_insensitive: false,
            })
            .collect::<Vec<_>>();
        let key = self.key.iter().map(|key| self.columns.iter().position(|(name, _)| name == key).unwrap()).collect();
        Arc::new(TableSchema { name: TableName::new(schema, self.name), columns, key })
    }
}

/// An order with customer and nation, line items with part and supplier: the entity of the end-to-end tests.
pub const FULL_ORDER: &str = include_str!("full_order.yaml");

/// An order with its customer and line items: the entity that the benchmark's peer joins as well.
pub const ORDER: &str = include_str!("order.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_rows_that_fit_its_columns() {
        for table in TABLES {
            let schema = table.schema("dbo");
            assert_eq!(schema.columns.len(), table.columns.len());
            let row = table.rows(0.001).next().expect("a first row");
            assert_eq!(row.len(), table.columns.len(), "{}: {row:?}", table.name);
            let mut json = Vec::new();
            table.write_json(&row, &mut json);
            let text = String::from_utf8(json).expect("UTF-8");
            assert!(text.starts_with('{') && text.ends_with('}') && text.contains(table.columns[0].0), "{text}");
        }
    }
}
