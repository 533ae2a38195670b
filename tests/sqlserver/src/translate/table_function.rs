//! Functions of the server: table-valued ones, those of change data capture, and those over the catalog.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, TableAlias};
use tds::{DataType, Length, SqlError, Value};

use super::relation::name_of;
use super::{Translator, Typed};
use crate::catalog::text;
use crate::message;
use crate::parse::Name;
use crate::types;

const SYSNAME: DataType = DataType::NVarChar(Length::Limited(128));

fn expressions(args: &[FunctionArg]) -> Vec<Option<&Expr>> {
    args.iter()
        .map(|a| match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e),
            _ => None,
        })
        .collect()
}

impl Translator<'_> {
    pub(super) fn table_function_factor(
        &mut self,
        name: &Name,
        args: &[FunctionArg],
        alias: Option<&TableAlias>,
    ) -> Result<String, SqlError> {
        let exposed = alias.map_or_else(|| name.object.clone(), |a| a.name.value.clone());
        let database = match &name.database {
            Some(d) => self.lookup.database(d).ok_or_else(|| message::invalid_object(&name.to_string()))?,
            None => self.lookup.current_database(),
        };
        let mut values = Vec::new();
        for e in expressions(args) {
            // DEFAULT and NULL are the same to the server's functions.
            values.push(match e {
                Some(Expr::Identifier(i)) if i.value.eq_ignore_ascii_case("default") => None,
                Some(e) => Some(self.lookup.evaluate(e)?),
                None => None,
            });
        }
        let schema = name.schema.as_deref().unwrap_or("");
        let Some(found) = self.lookup.table_function(&database, schema, &name.object, &values)? else {
            return Err(message::invalid_object(&name.to_string()));
        };
        self.out.volatile = true;
        Ok(self.derived(&found, &database, &exposed, None))
    }

    /// `sys.fn_cdc_*`: an expression over the tables of change data capture.
    pub(super) fn cdc_scalar(&mut self, f: &Function, short: &str, list: &[&Expr]) -> Result<Typed, SqlError> {
        let name = name_of(&f.name);
        let database = match &name.database {
            Some(d) => self.lookup.database(d).ok_or_else(|| message::invalid_object(&name.to_string()))?,
            None => self.lookup.current_database(),
        };
        if self.out.home.is_empty() {
            self.out.home.clone_from(&database);
        }
        let mut arguments = Vec::new();
        for e in list {
            let e = self.value(e)?;
            arguments.push(if types::is_temporal(&e.data_type) || (short == "fn_cdc_map_time_to_lsn" && arguments.len() == 1) {
                // CDC keeps times as text.
                let moment = self.cast(e, &DataType::DateTime, 0, false)?;
                self.cast(moment, &DataType::VarChar(Length::Limited(30)), 121, false)?.sql
            } else {
                e.sql
            });
        }
        let found = cdc::functions::scalar(short, &arguments).ok_or_else(|| message::error(4121, 16, format!("Cannot find either column \"sys\" or the user-defined function or aggregate \"sys.{short}\", or the name is ambiguous.")))?;
        let found = found.map_err(|e| crate::capture_procedures::error(&e))?;
        let declared = types::parse(found.type_name, 1)?;
        let sql = if declared.data_type == DataType::DateTime { format!("cdt({})", found.sql) } else { found.sql };
        Ok(Typed::new(sql, declared.data_type))
    }

    /// The parts of a name given as a constant or expression: database, and SQLite expressions for schema and object.
    fn object_condition(&mut self, e: &Expr) -> Result<(String, String), SqlError> {
        let typed = self.value(e)?;
        let typed = self.as_string(typed)?;
        if let Some(Value::Text(full)) = &typed.value {
            let mut parts = crate::functions::split_name(full);
            let object = parts.pop().unwrap_or_default();
            let schema = parts.pop().filter(|s| !s.is_empty()).unwrap_or_else(|| "dbo".into());
            let database = match parts.pop().filter(|d| !d.is_empty()) {
                Some(d) => match self.lookup.database(&d) {
                    Some(d) => d,
                    None => return Ok((self.lookup.current_database(), "0".into())),
                },
                None => self.lookup.current_database(),
            };
            return Ok((database, format!("schema = {} AND name = {}", text(&schema), text(&object))));
        }
        let database = self.lookup.current_database();
        Ok((database, format!("schema = ifnull(parsename({0}, 2), 'dbo') AND name = parsename({0}, 1)", typed.sql)))
    }

    /// OBJECT_ID, OBJECT_NAME, SCHEMA_NAME, TYPE_NAME, COL_NAME, the PROPERTY functions.
    pub(super) fn catalog_function(&mut self, name: &str, e: &[&Expr]) -> Result<Option<Typed>, SqlError> {
        let arity = match name {
            "object_id" | "object_name" | "object_schema_name" | "schema_id" | "schema_name" | "type_name" | "type_id" => 0..=2,
            "col_name" | "objectproperty" | "objectpropertyex" | "typeproperty" | "col_length" => 2..=2,
            "columnproperty" => 3..=3,
            "indexproperty" => 3..=3,
            "index_col" => 3..=3,
            "ident_current" | "ident_seed" | "ident_incr" => 1..=1,
            _ => return Ok(None),
        };
        if !arity.contains(&e.len()) {
            return Err(message::error(174, 15, format!("The {name} function requires {} argument(s).", arity.start())));
        }
        Ok(Some(match name {
            "object_id" => self.object_id(e)?,
            "object_name" | "object_schema_name" => {
                let id = self.value(e[0])?.sql;
                let q = self.database_of(e.get(1).copied())?;
                let column = if name == "object_name" { "name" } else { "schema" };
                Typed::new(format!("(SELECT {column} FROM {q}\"~objects\" WHERE object_id = {id})"), SYSNAME)
            }
            "schema_id" | "schema_name" => self.schema_function(name, e)?,
            "type_name" | "type_id" => {
                let typed = self.value(e[0])?;
                let list = crate::catalog::views::TYPE_IDS;
                let arms: String =
                    list.iter()
                        .map(|(id, n)| {
                            if name == "type_name" { format!(" WHEN {id} THEN '{n}'") } else { format!(" WHEN '{n}' THEN {id}") }
                        })
                        .collect();
                if name == "type_name" {
                    Typed::new(format!("CASE {}{arms} END", typed.sql), SYSNAME)
                } else {
                    Typed::new(format!("CASE lower(parsename({}, 1)){arms} END", typed.sql), DataType::Int)
                }
            }
            "col_name" => {
                let (id, column) = (self.value(e[0])?.sql, self.value(e[1])?.sql);
                let q = self.database_of(None)?;
                Typed::new(format!("(SELECT name FROM {q}\"~columns\" WHERE object_id = {id} AND column_id = {column})"), SYSNAME)
            }
            "col_length" => {
                let (_, condition) = self.object_condition(e[0])?;
                let column = self.value(e[1])?.sql;
                let q = self.database_of(None)?;
                Typed::new(
                    format!(
                        "(SELECT max_length FROM {q}\"~columns\" WHERE object_id = (SELECT object_id FROM {q}\"~objects\" WHERE {condition}) AND name = {column})"
                    ),
                    DataType::SmallInt,
                )
            }
            "objectproperty" | "objectpropertyex" => self.object_property(e)?,
            "columnproperty" => self.column_property(e)?,
            "indexproperty" => {
                let (id, index, property) = (self.value(e[0])?.sql, self.value(e[1])?.sql, self.constant_text(e[2])?);
                let q = self.database_of(None)?;
                let column = match property.as_str() {
                    "ISUNIQUE" => "is_unique",
                    "ISCLUSTERED" => "type = 1",
                    "INDEXID" => "index_id",
                    _ => "NULL",
                };
                Typed::new(
                    format!("(SELECT {column} FROM {q}\"~indexes\" WHERE object_id = {id} AND name = {index})"),
                    DataType::Int,
                )
            }
            "index_col" => {
                let (_, condition) = self.object_condition(e[0])?;
                let (index, key) = (self.value(e[1])?.sql, self.value(e[2])?.sql);
                let q = self.database_of(None)?;
                Typed::new(
                    format!(
                        "(SELECT c.name FROM {q}\"~index_columns\" ic JOIN {q}\"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE ic.object_id = \
                         (SELECT object_id FROM {q}\"~objects\" WHERE {condition}) AND ic.index_id = {index} AND ic.key_ordinal = {key})"
                    ),
                    SYSNAME,
                )
            }
            _ => {
                let (database, condition) = self.object_condition(e[0])?;
                let q = self.qualifier(&database);
                let column = match name {
                    "ident_seed" => "seed",
                    "ident_incr" => "increment",
                    _ => "ifnull(last_value, seed)",
                };
                let stored = Typed::new(
                    format!(
                        "(SELECT {column} FROM {q}\"~columns\" WHERE seed IS NOT NULL AND object_id = (SELECT object_id FROM {q}\"~objects\" WHERE {condition}))"
                    ),
                    DataType::BigInt,
                );
                self.cast(stored, &DataType::Numeric { precision: 38, scale: 0 }, 0, false)?
            }
        }))
    }

    fn database_of(&mut self, id: Option<&Expr>) -> Result<String, SqlError> {
        let database = match id {
            None => self.lookup.current_database(),
            Some(e) => {
                let (value, _) = self.lookup.evaluate(e)?;
                let Value::Int(id) = value else { return Ok("main.".into()) };
                match self.lookup.constant(&format!("db_name\u{1}{id}")) {
                    Some((Value::Text(name), _)) => name,
                    _ => self.lookup.current_database(),
                }
            }
        };
        Ok(self.qualifier(&database))
    }

    fn object_id(&mut self, e: &[&Expr]) -> Result<Typed, SqlError> {
        if e.is_empty() {
            return Err(message::error(174, 15, "The object_id function requires 1 to 2 arguments.".into()));
        }
        let (database, condition) = self.object_condition(e[0])?;
        // Temporary tables have no place in the catalog; their ids are their own.
        if let Ok((Value::Text(name), _)) = self.lookup.evaluate(e[0])
            && let Some(short) = crate::functions::split_name(&name).pop().filter(|s| s.starts_with('#'))
        {
            self.out.volatile = true;
            return Ok(match self.lookup.temporary(&short) {
                Some(t) => Typed::constant(Value::Int(t.object_id), DataType::Int),
                None => Typed { data_type: DataType::Int, ..Typed::null() },
            });
        }
        let kind = match e.get(1) {
            Some(k) => format!(" AND type = rtrim({})", self.value(k)?.sql),
            None => String::new(),
        };
        let q = self.qualifier(&database);
        Ok(Typed::new(format!("(SELECT object_id FROM {q}\"~objects\" WHERE {condition}{kind})"), DataType::Int))
    }

    fn schema_function(&mut self, name: &str, e: &[&Expr]) -> Result<Typed, SqlError> {
        let q = self.database_of(None)?;
        let argument = match e.first() {
            Some(e) => Some(self.value(e)?.sql),
            None => None,
        };
        Ok(match (name, argument) {
            ("schema_id", Some(a)) => {
                Typed::new(format!("(SELECT schema_id FROM {q}\"~schemas\" WHERE name = {a})"), DataType::Int)
            }
            ("schema_id", None) => Typed::constant(Value::Int(1), DataType::Int),
            (_, Some(a)) => Typed::new(format!("(SELECT name FROM {q}\"~schemas\" WHERE schema_id = {a})"), SYSNAME),
            (_, None) => Typed::constant(Value::Text("dbo".into()), SYSNAME),
        })
    }

    fn constant_text(&mut self, e: &Expr) -> Result<String, SqlError> {
        match self.lookup.evaluate(e)? {
            (Value::Text(s), _) => Ok(s.to_ascii_uppercase()),
            _ => Ok(String::new()),
        }
    }

    fn object_property(&mut self, e: &[&Expr]) -> Result<Typed, SqlError> {
        let (id, property) = (self.value(e[0])?.sql, self.constant_text(e[1])?);
        let q = self.database_of(None)?;
        let test = match property.as_str() {
            "ISUSERTABLE" => "o.type = 'U' AND o.is_ms_shipped = 0".to_string(),
            "ISTABLE" => "o.type = 'U'".into(),
            "ISVIEW" => "o.type = 'V'".into(),
            "ISMSSHIPPED" => "o.is_ms_shipped".into(),
            "ISPROCEDURE" => "o.type = 'P'".into(),
            "ISPRIMARYKEY" => "o.type = 'PK'".into(),
            "ISFOREIGNKEY" => "o.type = 'F'".into(),
            "TABLEHASPRIMARYKEY" => {
                format!("EXISTS (SELECT 1 FROM {q}\"~indexes\" i WHERE i.object_id = o.object_id AND i.is_primary_key = 1)")
            }
            "TABLEHASIDENTITY" => {
                format!("EXISTS (SELECT 1 FROM {q}\"~columns\" c WHERE c.object_id = o.object_id AND c.seed IS NOT NULL)")
            }
            "TABLEHASCLUSTINDEX" => {
                format!("EXISTS (SELECT 1 FROM {q}\"~indexes\" i WHERE i.object_id = o.object_id AND i.type = 1)")
            }
            "TABLEHASFOREIGNKEY" => format!("EXISTS (SELECT 1 FROM {q}\"~fks\" f WHERE f.parent_object_id = o.object_id)"),
            "OWNERID" | "SCHEMAID" => format!("(SELECT schema_id FROM {q}\"~schemas\" s WHERE s.name = o.schema)"),
            _ => "NULL".into(),
        };
        Ok(Typed::new(format!("(SELECT {test} FROM {q}\"~objects\" o WHERE o.object_id = {id})"), DataType::Int))
    }

    fn column_property(&mut self, e: &[&Expr]) -> Result<Typed, SqlError> {
        let (id, column, property) = (self.value(e[0])?.sql, self.value(e[1])?.sql, self.constant_text(e[2])?);
        let q = self.database_of(None)?;
        let value = match property.as_str() {
            "ISIDENTITY" => "seed IS NOT NULL",
            "ISCOMPUTED" => "computed IS NOT NULL",
            "ALLOWSNULL" => "nullable",
            "COLUMNID" | "ORDINAL" => "column_id",
            "PRECISION" => "iif(precision = 0, max_length, precision)",
            "SCALE" => "scale",
            "ISROWGUIDCOL" => "rowguid",
            "CHARMAXLEN" => "iif(max_length < 0, -1, iif(system_type_id IN (231, 239), max_length / 2, max_length))",
            "ISSPARSE" | "ISHIDDEN" | "ISXMLINDEXABLE" | "ISFULLTEXTINDEXED" | "ISIDNOTFORREPL" => "0",
            _ => "NULL",
        };
        Ok(Typed::new(format!("(SELECT {value} FROM {q}\"~columns\" WHERE object_id = {id} AND name = {column})"), DataType::Int))
    }
}
