//! System procedures: sp_executesql within a batch, the catalog procedures of drivers, and what administrators' scripts call.

use tds::{DataType, Length, Response, SqlError, Value};

use super::query::Streamed;
use super::{Session, fault};
use crate::catalog::{self, same};
use crate::message;
use crate::translate::{Derived, Translated};
use crate::types::convert::to_text;
use crate::types::{self};

/// An argument of a call.
#[derive(Debug, Clone)]
pub(crate) struct Argument {
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) data_type: DataType,
    pub(crate) output: bool,
}

/// What a procedure left behind.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) status: i32,
    pub(crate) outputs: Vec<(String, Value)>,
}

/// Arguments by name or position.
pub(crate) struct Arguments<'a> {
    pub(crate) names: &'a [&'a str],
    pub(crate) list: Vec<Argument>,
}

impl Arguments<'_> {
    pub(crate) fn get(&self, name: &str) -> Option<&Argument> {
        let named = self.list.iter().find(|a| a.name.trim_start_matches('@').eq_ignore_ascii_case(name));
        named.or_else(|| {
            let at = self.names.iter().position(|n| n.eq_ignore_ascii_case(name))?;
            self.list.get(at).filter(|a| a.name.is_empty())
        })
    }

    /// The argument as text; NULL and absent are alike.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let a = self.get(name)?;
        if a.value == Value::Null {
            return None;
        }
        to_text(&a.value, &a.data_type, &DataType::NVarChar(Length::Max), 0).ok()
    }

    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        self.text(name)?.trim().parse().ok()
    }
}

/// A literal of SQLite for an optional pattern: NULL matches everything.
fn pattern(column: &str, value: Option<String>) -> String {
    match value {
        None => "1".into(),
        Some(v) if v == "%" => "1".into(),
        Some(v) => format!("tlike({column}, {}, '\\', 0)", catalog::text(&v)),
    }
}

fn exactly(column: &str, value: Option<String>) -> String {
    value.map_or_else(|| "1".into(), |v| format!("{column} = {} COLLATE NOCASE", catalog::text(&v)))
}

impl Session {
    /// Calls a procedure by its name as written.
    pub(super) fn procedure(&self, name: &str, list: Vec<Argument>, response: &mut dyn Response) -> Result<Outcome, SqlError> {
        let mut parts = crate::functions::split_name(name);
        let short = parts.pop().unwrap_or_default().to_ascii_lowercase();
        parts.pop();
        let database = match parts.pop().filter(|d| !d.is_empty()) {
            Some(d) => self.shared.database(&d).ok_or_else(|| message::no_procedure(name))?.name,
            None => self.current(),
        };
        if short.starts_with("sp_cdc_") {
            return self.cdc_procedure(&short, name, &database, list, response);
        }
        match short.as_str() {
            "sp_executesql" => self.execute_sql(list, response),
            "sp_tables" => {
                let a = Arguments { names: &["table_name", "table_owner", "table_qualifier", "table_type"], list };
                let sql = format!(
                    "SELECT {db} AS TABLE_QUALIFIER, schema AS TABLE_OWNER, name AS TABLE_NAME, iif(type = 'V', 'VIEW', 'TABLE') AS TABLE_TYPE, NULL AS REMARKS FROM \"~objects\" WHERE type IN ('U', 'V') AND {} AND {} ORDER BY 4, 1, 2, 3",
                    pattern("name", a.text("table_name")),
                    pattern("schema", a.text("table_owner")),
                    db = catalog::text(&database)
                );
                self.answer(&database, "TABLE_QUALIFIER sysname?, TABLE_OWNER sysname?, TABLE_NAME sysname?, TABLE_TYPE varchar(32)?, REMARKS varchar(254)?", sql, response)
            }
            "sp_columns" | "sp_columns_100" | "sp_columns_90" | "sp_columns_ex" => {
                let a = Arguments {
                    names: &["table_name", "table_owner", "table_qualifier", "column_name", "odbcver", "fusepattern"],
                    list,
                };
                self.sp_columns(&database, &a, short == "sp_columns_100", response)
            }
            "sp_pkeys" => {
                let a = Arguments { names: &["table_name", "table_owner", "table_qualifier"], list };
                let sql = format!(
                    "SELECT {db} AS TABLE_QUALIFIER, o.schema AS TABLE_OWNER, o.name AS TABLE_NAME, c.name AS COLUMN_NAME, ic.key_ordinal AS KEY_SEQ, i.name AS PK_NAME FROM \"~indexes\" i JOIN \"~objects\" o ON o.object_id = i.object_id \
                     JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id \
                     WHERE i.is_primary_key = 1 AND {} AND {} ORDER BY 1, 2, 3, 5",
                    exactly("o.name", a.text("table_name")),
                    exactly("o.schema", a.text("table_owner")),
                    db = catalog::text(&database)
                );
                self.answer(&database, "TABLE_QUALIFIER sysname?, TABLE_OWNER sysname?, TABLE_NAME sysname, COLUMN_NAME sysname, KEY_SEQ smallint, PK_NAME sysname?", sql, response)
            }
            "sp_fkeys" => {
                let a = Arguments {
                    names: &[
                        "pktable_name",
                        "pktable_owner",
                        "pktable_qualifier",
                        "fktable_name",
                        "fktable_owner",
                        "fktable_qualifier",
                    ],
                    list,
                };
                self.sp_fkeys(&database, &a, response)
            }
            "sp_statistics" | "sp_statistics_100" => {
                let a = Arguments {
                    names: &["table_name", "table_owner", "table_qualifier", "index_name", "is_unique", "accuracy"],
                    list,
                };
                let unique =
                    if a.text("is_unique").is_some_and(|u| u.eq_ignore_ascii_case("y")) { "i.is_unique = 1" } else { "1" };
                let sql = format!(
                    "SELECT {db} AS TABLE_QUALIFIER, o.schema AS TABLE_OWNER, o.name AS TABLE_NAME, 1 - i.is_unique AS NON_UNIQUE, o.name AS INDEX_QUALIFIER, i.name AS INDEX_NAME, iif(i.type = 1, 1, 3) AS TYPE, ic.key_ordinal AS SEQ_IN_INDEX, \
                     c.name AS COLUMN_NAME, iif(ic.descending, 'D', 'A') AS COLLATION, NULL AS CARDINALITY, NULL AS PAGES, i.filter AS FILTER_CONDITION FROM \"~indexes\" i JOIN \"~objects\" o ON o.object_id = i.object_id \
                     JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id AND ic.included = 0 JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id \
                     WHERE {unique} AND {} AND {} ORDER BY 4, 7, 6, 8",
                    exactly("o.name", a.text("table_name")),
                    exactly("o.schema", a.text("table_owner")),
                    db = catalog::text(&database)
                );
                self.answer(&database, "TABLE_QUALIFIER sysname?, TABLE_OWNER sysname?, TABLE_NAME sysname, NON_UNIQUE smallint?, INDEX_QUALIFIER sysname?, INDEX_NAME sysname?, TYPE smallint, SEQ_IN_INDEX smallint?, COLUMN_NAME sysname?, COLLATION char(1)?, CARDINALITY int?, PAGES int?, FILTER_CONDITION varchar(128)?", sql, response)
            }
            "sp_databases" => {
                let rows: Vec<String> =
                    self.shared.databases().iter().map(|d| format!("({}, 8192, NULL)", catalog::text(&d.name))).collect();
                let sql = format!(
                    "SELECT column1 AS DATABASE_NAME, column2 AS DATABASE_SIZE, column3 AS REMARKS FROM (VALUES {})",
                    rows.join(", ")
                );
                self.answer(&database, "DATABASE_NAME sysname, DATABASE_SIZE int?, REMARKS varchar(254)?", sql, response)
            }
            "sp_server_info" => {
                let a = Arguments { names: &["attribute_id"], list };
                let wanted = a.integer("attribute_id");
                let known = [
                    (1, "DBMS_NAME", "Microsoft SQL Server"),
                    (2, "DBMS_VER", "Microsoft SQL Server 2022 - 16.0.4135.4"),
                    (16, "IDENTIFIER_CASE", "MIXED"),
                    (18, "COLLATION_SEQ", "charset=iso_1 sort_order=nocase_iso charset_num=1 sort_order_num=52"),
                    (500, "SYS_SPROC_VERSION", "16.00.4135"),
                ];
                let rows: Vec<String> = known
                    .iter()
                    .filter(|k| wanted.is_none_or(|w| w == k.0))
                    .map(|(i, n, v)| format!("({i}, '{n}', '{v}')"))
                    .collect();
                let sql = if rows.is_empty() {
                    "SELECT 0 AS attribute_id, '' AS attribute_name, '' AS attribute_value WHERE 0".into()
                } else {
                    format!(
                        "SELECT column1 AS attribute_id, column2 AS attribute_name, column3 AS attribute_value FROM (VALUES {})",
                        rows.join(", ")
                    )
                };
                self.answer(
                    &database,
                    "attribute_id int, attribute_name varchar(60), attribute_value varchar(255)?",
                    sql,
                    response,
                )
            }
            "sp_rename" => {
                self.rename(&Arguments { names: &["objname", "newname", "objtype"], list }, response)?;
                Ok(Outcome::default())
            }
            "sp_helptext" | "sp_help" | "sp_who" | "sp_who2" | "sp_lock" => Err(message::unsupported(&short)),
            "sp_addrolemember" => {
                let a = Arguments { names: &["rolename", "membername"], list };
                let (role, member) = (a.text("rolename").unwrap_or_default(), a.text("membername").unwrap_or_default());
                self.security(&crate::parse::Security::AddMember { role, member, server: false })?;
                Ok(Outcome::default())
            }
            "sp_reset_connection" => {
                self.reset_state();
                Ok(Outcome::default())
            }
            "sp_configure"
            | "sp_set_session_context"
            | "sp_updatestats"
            | "sp_recompile"
            | "sp_changedbowner"
            | "sp_dboption"
            | "sp_addextendedproperty" => Ok(Outcome::default()),
            "xp_instance_regread" | "xp_msver" | "sp_oledb_ro_usrname" => Err(message::no_procedure(name)),
            _ => Err(message::no_procedure(name)),
        }
    }

    /// Answers a query over the catalog as a result set.
    pub(super) fn answer(
        &self,
        database: &str,
        spec: &str,
        sql: String,
        response: &mut dyn Response,
    ) -> Result<Outcome, SqlError> {
        let derived = Derived { sql, columns: catalog::views::columns(spec), volatile: true };
        self.answer_derived(database, &derived, response)
    }

    pub(super) fn answer_derived(&self, database: &str, d: &Derived, response: &mut dyn Response) -> Result<Outcome, SqlError> {
        let list: Vec<String> = d
            .columns
            .iter()
            .map(|c| {
                let own = format!("\"~a\".{}", catalog::quote(&c.name));
                c.wrap.map_or_else(|| own.clone(), |w| w.replace("{}", &own))
            })
            .collect();
        let columns = d
            .columns
            .iter()
            .map(|c| tds::Column {
                name: c.name.clone(),
                data_type: c.data_type.clone(),
                nullable: c.nullable,
                identity: false,
                computed: false,
                collation: None,
            })
            .collect();
        let t = Translated {
            sql: format!("SELECT {} FROM ({}) AS \"~a\"", list.join(", "), d.sql.replace("{db}", "main.")),
            columns,
            home: database.to_string(),
            ..Translated::default()
        };
        let rows = self.stream(&t, &mut |s| match s {
            Streamed::Columns(c) => response.columns(c),
            Streamed::Row(r) => response.row(r),
            Streamed::Closed(answer) => *answer = response.is_closed(),
        })?;
        self.last.borrow_mut().rowcount = rows as i64;
        response.done(Some(rows));
        Ok(Outcome::default())
    }

    /// sp_executesql N'…', N'@a int, @b int OUTPUT', values.
    fn execute_sql(&self, list: Vec<Argument>, response: &mut dyn Response) -> Result<Outcome, SqlError> {
        let text = |a: Option<&Argument>| match a.map(|a| &a.value) {
            Some(Value::Text(s)) => s.clone(),
            _ => String::new(),
        };
        let sql = text(list.first());
        let declared = text(list.get(1));
        let mut parameters = Vec::new();
        let mut given = list.into_iter().skip(2).collect::<Vec<_>>();
        for part in types::split_declarations(&declared) {
            let mut words = part.trim().splitn(2, char::is_whitespace);
            let name = words.next().unwrap_or_default().to_string();
            let rest = words.next().unwrap_or("int").trim();
            let lower = rest.to_ascii_lowercase();
            let output = lower.ends_with(" output") || lower.ends_with(" out");
            let type_text = if output { rest[..rest.rfind(' ').unwrap_or(rest.len())].trim() } else { rest };
            let declared = types::parse(type_text.trim_start_matches("AS ").trim_start_matches("as "), 1)?;
            let at = given.iter().position(|g| same(&g.name, &name)).or_else(|| given.iter().position(|g| g.name.is_empty()));
            let (value, from, wanted) = match at.map(|i| given.remove(i)) {
                Some(g) => (g.value, g.data_type, g.output),
                None => {
                    return Err(message::error(
                        8178,
                        16,
                        format!("The parameterized query expects the parameter '{name}', which was not supplied."),
                    ));
                }
            };
            let value = types::convert::convert(value, &from, &declared.data_type, 0, types::convert::Mode::Cast)?;
            parameters.push(tds::Parameter { name, data_type: declared.data_type, value, output: output && wanted });
        }
        let outputs = self.run_text(&sql, &parameters, response)?;
        Ok(Outcome { status: 0, outputs })
    }

    fn sp_columns(
        &self,
        database: &str,
        a: &Arguments<'_>,
        wide: bool,
        response: &mut dyn Response,
    ) -> Result<Outcome, SqlError> {
        let exact_names = a.integer("fUsePattern") == Some(0);
        let filter =
            |column: &str, value: Option<String>| if exact_names { exactly(column, value) } else { pattern(column, value) };
        // ODBC type numbers: those of ODBC 3 for sp_columns_100 and @ODBCVer = 3.
        let odbc3 = wide || a.integer("ODBCVer") == Some(3);
        let (date, time, stamp) = if odbc3 { (91, -154, 93) } else { (-9, -9, -9) };
        let sql = format!(
            "SELECT {db} AS TABLE_QUALIFIER, o.schema AS TABLE_OWNER, o.name AS TABLE_NAME, c.name AS COLUMN_NAME, CASE c.system_type_id WHEN 104 THEN -7 WHEN 48 THEN -6 WHEN 52 THEN 5 WHEN 56 THEN 4 WHEN 127 THEN -5 WHEN 59 THEN 7 \
             WHEN 62 THEN 6 WHEN 106 THEN 3 WHEN 108 THEN 2 WHEN 60 THEN 3 WHEN 122 THEN 3 WHEN 175 THEN 1 WHEN 167 THEN 12 WHEN 239 THEN -8 WHEN 231 THEN -9 WHEN 35 THEN -1 WHEN 99 THEN -10 WHEN 173 THEN -2 WHEN 165 THEN -3 WHEN 34 THEN -4 \
             WHEN 36 THEN -11 WHEN 40 THEN {date} WHEN 41 THEN {time} WHEN 61 THEN 93 WHEN 58 THEN 93 WHEN 42 THEN {stamp} WHEN 43 THEN -155 WHEN 241 THEN -152 WHEN 98 THEN -150 WHEN 189 THEN -2 ELSE -151 END AS DATA_TYPE, \
             c.type_name || iif(c.seed IS NOT NULL, ' identity', '') AS TYPE_NAME, CASE WHEN c.system_type_id IN (231, 239) THEN iif(c.max_length < 0, 0, c.max_length / 2) WHEN c.system_type_id IN (167, 175, 165, 173, 189, 241) THEN max(c.max_length, 0) \
             WHEN c.system_type_id = 36 THEN 36 WHEN c.system_type_id IN (35, 34) THEN 2147483647 WHEN c.system_type_id = 99 THEN 1073741823 ELSE c.precision END AS PRECISION, CASE WHEN c.max_length < 0 THEN 0 WHEN c.system_type_id IN (106, 108) THEN c.precision + 2 ELSE c.max_length END AS LENGTH, \
             CASE WHEN c.system_type_id IN (48, 52, 56, 127, 106, 108, 60, 122, 61, 58, 40, 42, 43, 41) THEN c.scale END AS SCALE, CASE WHEN c.system_type_id IN (48, 52, 56, 127, 106, 108, 60, 122) THEN 10 WHEN c.system_type_id IN (59, 62) THEN 2 END AS RADIX, c.nullable AS NULLABLE, NULL AS REMARKS, c.default_text AS COLUMN_DEF, \
             CASE c.system_type_id WHEN 40 THEN 9 WHEN 41 THEN 9 WHEN 42 THEN 9 WHEN 61 THEN 9 WHEN 58 THEN 9 WHEN 104 THEN -7 WHEN 56 THEN 4 WHEN 231 THEN -9 ELSE 0 END AS SQL_DATA_TYPE, CASE WHEN c.system_type_id IN (61, 58, 42) THEN 3 END AS SQL_DATETIME_SUB, iif(c.system_type_id IN (231, 239, 167, 175, 165, 173), max(c.max_length, 0), NULL) AS CHAR_OCTET_LENGTH, c.column_id AS ORDINAL_POSITION, \
             iif(c.nullable, 'YES', 'NO') AS IS_NULLABLE, CASE c.system_type_id WHEN 56 THEN iif(c.nullable, 38, 56) WHEN 231 THEN 39 WHEN 167 THEN 39 ELSE 0 END AS SS_DATA_TYPE{extra} FROM \"~columns\" c JOIN \"~objects\" o ON o.object_id = c.object_id WHERE o.type IN ('U', 'V') AND {} AND {} AND {} ORDER BY 1, 2, 3, ORDINAL_POSITION",
            filter("o.name", a.text("table_name")),
            filter("o.schema", a.text("table_owner")),
            filter("c.name", a.text("column_name")),
            db = catalog::text(database),
            extra = if wide {
                ", 0 AS SS_IS_SPARSE, 0 AS SS_IS_COLUMN_SET, c.computed IS NOT NULL AS SS_IS_COMPUTED, c.seed IS NOT NULL AS SS_IS_IDENTITY, NULL AS SS_UDT_CATALOG_NAME, NULL AS SS_UDT_SCHEMA_NAME, NULL AS SS_UDT_ASSEMBLY_TYPE_NAME, NULL AS SS_XML_SCHEMACOLLECTION_CATALOG_NAME, NULL AS SS_XML_SCHEMACOLLECTION_SCHEMA_NAME, NULL AS SS_XML_SCHEMACOLLECTION_NAME"
            } else {
                ""
            }
        );
        // The order is the real procedure's: JDBC inserts the rows into a table variable by position.
        let extra = if wide {
            "SS_IS_SPARSE smallint, SS_IS_COLUMN_SET smallint, SS_IS_COMPUTED smallint, SS_IS_IDENTITY smallint, SS_UDT_CATALOG_NAME nvarchar(128)?, SS_UDT_SCHEMA_NAME nvarchar(128)?, SS_UDT_ASSEMBLY_TYPE_NAME nvarchar(max)?, SS_XML_SCHEMACOLLECTION_CATALOG_NAME nvarchar(128)?, SS_XML_SCHEMACOLLECTION_SCHEMA_NAME nvarchar(128)?, SS_XML_SCHEMACOLLECTION_NAME nvarchar(128)?, "
        } else {
            ""
        };
        let spec = format!(
            "TABLE_QUALIFIER sysname?, TABLE_OWNER sysname?, TABLE_NAME sysname?, COLUMN_NAME sysname?, DATA_TYPE smallint, TYPE_NAME sysname?, PRECISION int?, LENGTH int?, SCALE smallint?, RADIX smallint?, NULLABLE smallint, REMARKS varchar(254)?, COLUMN_DEF nvarchar(4000)?, SQL_DATA_TYPE smallint, SQL_DATETIME_SUB smallint?, CHAR_OCTET_LENGTH int?, ORDINAL_POSITION int, IS_NULLABLE varchar(254)?, {extra}SS_DATA_TYPE tinyint"
        );
        self.answer(database, &spec, sql, response)
    }

    fn sp_fkeys(&self, database: &str, a: &Arguments<'_>, response: &mut dyn Response) -> Result<Outcome, SqlError> {
        let sql = format!(
            "SELECT {db} AS PKTABLE_QUALIFIER, r.schema AS PKTABLE_OWNER, r.name AS PKTABLE_NAME, rc.name AS PKCOLUMN_NAME, {db} AS FKTABLE_QUALIFIER, t.schema AS FKTABLE_OWNER, t.name AS FKTABLE_NAME, tc.name AS FKCOLUMN_NAME, \
             k.ordinal AS KEY_SEQ, CASE f.on_update WHEN 1 THEN 0 WHEN 2 THEN 2 WHEN 3 THEN 3 ELSE 1 END AS UPDATE_RULE, CASE f.on_delete WHEN 1 THEN 0 WHEN 2 THEN 2 WHEN 3 THEN 3 ELSE 1 END AS DELETE_RULE, o.name AS FK_NAME, \
             (SELECT i.name FROM \"~indexes\" i WHERE i.object_id = r.object_id AND i.is_primary_key = 1) AS PK_NAME, 7 AS DEFERRABILITY FROM \"~fks\" f JOIN \"~objects\" o ON o.object_id = f.object_id JOIN \"~objects\" t ON t.object_id = f.parent_object_id \
             JOIN \"~objects\" r ON r.object_id = f.referenced_object_id JOIN \"~fk_columns\" k ON k.object_id = f.object_id JOIN \"~columns\" tc ON tc.object_id = t.object_id AND tc.column_id = k.parent_column_id \
             JOIN \"~columns\" rc ON rc.object_id = r.object_id AND rc.column_id = k.referenced_column_id WHERE {} AND {} AND {} AND {} ORDER BY 5, 6, 7, 9",
            exactly("r.name", a.text("pktable_name")),
            exactly("r.schema", a.text("pktable_owner")),
            exactly("t.name", a.text("fktable_name")),
            exactly("t.schema", a.text("fktable_owner")),
            db = catalog::text(database)
        );
        self.answer(database, "PKTABLE_QUALIFIER sysname?, PKTABLE_OWNER sysname?, PKTABLE_NAME sysname, PKCOLUMN_NAME sysname, FKTABLE_QUALIFIER sysname?, FKTABLE_OWNER sysname?, FKTABLE_NAME sysname, FKCOLUMN_NAME sysname, KEY_SEQ smallint, UPDATE_RULE smallint?, DELETE_RULE smallint?, FK_NAME sysname?, PK_NAME sysname?, DEFERRABILITY smallint", sql, response)
    }

    fn cdc_procedure(
        &self,
        short: &str,
        written: &str,
        database: &str,
        list: Vec<Argument>,
        response: &mut dyn Response,
    ) -> Result<Outcome, SqlError> {
        use crate::capture_procedures::{self as cp, Done};
        if !matches!(short, "sp_cdc_help_change_data_capture" | "sp_cdc_get_captured_columns" | "sp_cdc_get_ddl_history") {
            self.require_owner(database)?;
        }
        let Some(names) = cp::parameters(short) else { return Err(message::no_procedure(written)) };
        let arguments = Arguments { names, list };
        let now = self.shared.clock.local_ticks();
        let done = if cp::reads(short) {
            self.with(database, |link| cp::call(&link.db, short, &arguments, now))?
        } else if short == "sp_cdc_scan" || short.starts_with("sp_cdc_cleanup") {
            // They commit step by step, under the write lock.
            self.with(database, |link| {
                let cancel = self.cancel.clone();
                let guard =
                    if link.guard.borrow().is_some() { None } else { link.database.writers.acquire(None, &|| cancel.is_set()) };
                let done = cp::call(&link.db, short, &arguments, now);
                drop(guard);
                done
            })?
        } else {
            self.writing(database, |link| {
                let done = cp::call(&link.db, short, &arguments, now)?;
                catalog::touch(&link.db).map_err(|e| fault::from_sqlite(&e))?;
                Ok(done)
            })?
        };
        self.shared.wake_jobs();
        match done {
            Done::Nothing => Ok(Outcome::default()),
            Done::Rows(d) => self.answer_derived(database, &d, response),
            Done::Messages(list) => {
                for m in list {
                    response.info(&m);
                }
                response.done(None);
                Ok(Outcome::default())
            }
        }
    }
}
