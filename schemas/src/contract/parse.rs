//! Reading a contract file: telling apart what the type already says, what is checked natively, and what has to be compiled.

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::check::ColumnCheck;
use super::{Contract, ContractError, keywords};
use crate::table::{Column, SqlType, TableName, TableSchema};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Where errors are reported.
struct File<'a>(&'a str);

impl File<'_> {
    fn error(&self, place: &str, problem: impl Into<String>, remedy: impl Into<String>) -> ContractError {
        ContractError { file: self.0.to_owned(), place: place.to_owned(), problem: problem.into(), remedy: remedy.into() }
    }

    fn object<'j>(&self, place: &str, value: Option<&'j Json>, remedy: &str) -> Result<&'j Map<String, Json>, ContractError> {
        value.and_then(Json::as_object).ok_or_else(|| self.error(place, "expected a JSON object", remedy))
    }

    fn text<'j>(&self, place: &str, value: Option<&'j Json>, remedy: &str) -> Result<&'j str, ContractError> {
        value.and_then(Json::as_str).ok_or_else(|| self.error(place, "expected a string", remedy))
    }

    /// A keyword that is true or false; false where it is left out.
    fn flag(&self, place: &str, schema: &Map<String, Json>, keyword: &str) -> Result<bool, ContractError> {
        let wrong = || self.error(&format!("{place}/{keyword}"), "expected true or false", "Write true, or leave it out");
        schema.get(keyword).map_or(Ok(false), |flag| flag.as_bool().ok_or_else(wrong))
    }

    /// The contract's version; 1 where it is left out.
    fn version(&self, root: &Map<String, Json>) -> Result<u32, ContractError> {
        let Some(version) = root.get("x-version") else { return Ok(1) };
        let number = version.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
        number.ok_or_else(|| {
            self.error("/x-version", format!("{version} is not a version"), "Write a whole number from 1, or leave it out")
        })
    }

    /// Columns that are left out on purpose.
    fn omitted(&self, root: &Map<String, Json>, columns: &[Column]) -> Result<Vec<String>, ContractError> {
        let Some(names) = root.get("x-omitted") else { return Ok(Vec::new()) };
        let (place, remedy) = ("/x-omitted", "Write an array of names of columns that are not published");
        let names = names.as_array().ok_or_else(|| self.error(place, "expected an array", remedy))?;
        let name = |name: &Json| match name.as_str() {
            None => Err(self.error(place, "expected an array of strings", remedy)),
            Some(name) if columns.iter().any(|column| column.name == name) => {
                let problem = format!("{name:?} is among the properties, so it is published");
                Err(self.error(place, problem, "Take it out of one of the two"))
            }
            Some(name) => Ok(name.to_owned()),
        };
        names.iter().map(name).collect()
    }

    /// An array of names of properties, as indexes.
    fn columns(&self, place: &str, value: &Json, columns: &[Column]) -> Result<Vec<usize>, ContractError> {
        let remedy = "Write an array of names that stand in properties";
        let names = value.as_array().ok_or_else(|| self.error(place, "expected an array", remedy))?;
        let index = |name: &Json| {
            let name = name.as_str().ok_or_else(|| self.error(place, "expected an array of strings", remedy))?;
            columns.iter().position(|column| column.name == name).ok_or_else(|| {
                let known: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                self.error(place, format!("{name:?} is not among the properties"), format!("Use one of: {}", known.join(", ")))
            })
        };
        names.iter().map(index).collect()
    }

    fn compile(&self, place: &str, schema: &Json) -> Result<Arc<jsonschema::Validator>, ContractError> {
        let options = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).should_validate_formats(true);
        options.build(schema).map(Arc::new).map_err(|error| {
            let place = format!("{place}{}", error.instance_path().as_str());
            self.error(&place, error.to_string(), "Correct the keyword as JSON Schema 2020-12 has it")
        })
    }
}

pub(super) fn parse(file_name: &str, text: &str) -> Result<Contract, ContractError> {
    let file = File(file_name);
    let document: Json = serde_json::from_str(text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        file.error(&place, format!("this is not JSON: {error}"), "Correct the text, or write the file anew with `tributary init`")
    })?;
    let root = file.object("/", Some(&document), "A contract is a JSON Schema object: see `tributary init`")?;
    let name = table_name(&file, root)?;
    let version = file.version(root)?;
    if root.get("type").is_some_and(|value| value != "object") {
        return Err(file.error("/type", "a row is an object", "Write \"type\": \"object\""));
    }
    let properties = file.object("/properties", root.get("properties"), "List the table's columns under properties")?;
    let mut columns = Vec::with_capacity(properties.len());
    let mut checks = Vec::with_capacity(properties.len());
    let mut by_reference = Map::new();
    for (column_name, schema) in properties {
        let place = format!("/properties/{}", column_name.replace('~', "~0").replace('/', "~1"));
        let (column, check, references) = column(&file, &place, column_name, schema)?;
        columns.push(column);
        checks.push(check);
        if let Some(schema) = references {
            by_reference.insert(column_name.clone(), schema);
        }
    }
    if columns.is_empty() {
        return Err(file.error("/properties", "there are no columns", "List the table's columns under properties"));
    }
    let key = root.get("x-key").map_or(Ok(Vec::new()), |key| file.columns("/x-key", key, &columns))?;
    if let Some(required) = root.get("required") {
        file.columns("/required", required, &columns)?;
    }
    let omitted = file.omitted(root, &columns)?.into();
    let row = row_check(&file, root, &columns, by_reference)?;
    let table = Arc::new(TableSchema { name, columns, key });
    Ok(Contract { table, version, omitted, document: Arc::new(document), columns: checks.into(), row })
}

fn table_name(file: &File<'_>, root: &Map<String, Json>) -> Result<TableName, ContractError> {
    let text = file.text("/x-table", root.get("x-table"), "Name the table: \"x-table\": \"dbo.orders\"")?;
    text.parse().map_err(|error| file.error("/x-table", format!("{error}"), "Write it as the database has it"))
}

/// A column, its check, and the keywords that can be checked only beside the root's `$defs`.
fn column(file: &File<'_>, place: &str, name: &str, schema: &Json) -> Result<(Column, ColumnCheck, Option<Json>), ContractError> {
    let remedy = "Write a column as {\"type\": …, \"x-sql-type\": …}, as `tributary init` does";
    let schema = file.object(place, Some(schema), remedy)?;
    let type_place = format!("{place}/x-sql-type");
    let declared =
        file.text(&type_place, schema.get("x-sql-type"), "Give the column's SQL Server type: \"x-sql-type\": \"int\"")?;
    let sql_type: SqlType =
        declared.parse().map_err(|error| file.error(&type_place, format!("{error}"), "Use the catalog's type"))?;
    let nullable = nullable(file, place, schema, sql_type)?;
    let case_insensitive = file.flag(place, schema, "x-case-insensitive")?;
    let mut check = ColumnCheck::of_column(sql_type, nullable);
    check.never_null = file.flag(place, schema, "x-never-null")?;
    if check.never_null && nullable {
        let remedy = "Take \"null\" out of the column's type, or take x-never-null away";
        return Err(file.error(&format!("{place}/x-never-null"), "the column's type lets null be", remedy));
    }
    let extra = extra_keywords(schema, sql_type, &mut check);
    let column = Column { name: name.to_owned(), sql_type, nullable, case_insensitive };
    if extra.is_empty() {
        return Ok((column, check, None));
    }
    let extra = Json::Object(extra);
    if refers(&extra) {
        return Ok((column, check, Some(extra)));
    }
    check.extra = Some(file.compile(place, &extra)?);
    Ok((column, check, None))
}

/// Whether `type` lets NULL be; `type` must be what values of the SQL type are.
fn nullable(file: &File<'_>, place: &str, schema: &Map<String, Json>, sql_type: SqlType) -> Result<bool, ContractError> {
    let expected = keywords::json_types(sql_type);
    let types: Vec<&str> = match schema.get("type") {
        // JSON Schema: without `type`, anything goes.
        None => return Ok(true),
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().map(|value| value.as_str().unwrap_or("?")).collect(),
        Some(_) => vec!["?"],
    };
    let all_known =
        types.iter().all(|name| *name == "null" || expected.contains(name) || (*name == "number" && expected == ["integer"]));
    if !all_known || types.iter().all(|name| *name == "null") {
        let problem = format!("{} does not fit {sql_type}", schema.get("type").map_or_else(String::new, Json::to_string));
        let remedy = format!(
            "Values of {sql_type} are written as {}: use that, with \"null\" beside it where NULL is allowed",
            expected.join(" or ")
        );
        return Err(file.error(&format!("{place}/type"), problem, remedy));
    }
    Ok(types.contains(&"null"))
}

/// The keywords that neither the type implies nor `check` covers natively.
fn extra_keywords(schema: &Map<String, Json>, sql_type: SqlType, check: &mut ColumnCheck) -> Map<String, Json> {
    let implied = keywords::of_type(sql_type, false, false);
    let integers = keywords::integer_range(sql_type).is_some();
    let strings = keywords::json_types(sql_type) == ["string"];
    // Lengths of strings that are neither text nor bytes (dates, numbers) are for the compiled check.
    let lengths = strings && (implied.contains_key("contentEncoding") || matches!(sql_type, SqlType::Xml) || is_text(sql_type));
    let mut extra = Map::new();
    for (keyword, value) in schema {
        if keyword == "type" || keywords::is_annotation(keyword) || implied.get(keyword) == Some(value) {
            continue;
        }
        match (keyword.as_str(), value.as_i64(), value.as_u64()) {
            ("minimum", Some(least), _) if integers => check.minimum = check.minimum.max(least),
            ("maximum", Some(greatest), _) if integers => check.maximum = check.maximum.min(greatest),
            ("minLength", _, Some(least)) if lengths => check.min_length = usize::try_from(least).unwrap_or(usize::MAX),
            ("maxLength", _, Some(greatest)) if lengths => {
                check.max_length = check.max_length.min(usize::try_from(greatest).unwrap_or(usize::MAX));
            }
            _ => drop(extra.insert(keyword.clone(), value.clone())),
        }
    }
    extra
}

fn is_text(sql_type: SqlType) -> bool {
    use SqlType::*;
    matches!(sql_type, Char(_) | VarChar(_) | NChar(_) | NVarChar(_) | Text | NText)
}

/// Whether a reference stands anywhere in a schema.
fn refers(schema: &Json) -> bool {
    match schema {
        Json::Object(map) => {
            map.iter().any(|(keyword, value)| matches!(keyword.as_str(), "$ref" | "$dynamicRef") || refers(value))
        }
        Json::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

/// The compiled check of whole rows, if the root demands one.
fn row_check(
    file: &File<'_>,
    root: &Map<String, Json>,
    columns: &[Column],
    by_reference: Map<String, Json>,
) -> Result<Option<Arc<jsonschema::Validator>>, ContractError> {
    let native = |keyword: &str, value: &Json| match keyword {
        "$schema" | "$id" | "type" | "properties" | "required" => true,
        // A row has no other members than the columns.
        "additionalProperties" => value == &json!(false) || value == &json!(true),
        keyword => keywords::is_annotation(keyword),
    };
    let extra: Map<String, Json> = root
        .iter()
        .filter(|(keyword, value)| !native(keyword, value))
        .map(|(keyword, value)| (keyword.clone(), value.clone()))
        .collect();
    let only_definitions = extra.keys().all(|keyword| matches!(keyword.as_str(), "$defs" | "definitions" | "$anchor"));
    if only_definitions && by_reference.is_empty() {
        return Ok(None);
    }
    let mut schema = extra;
    schema.insert("$schema".into(), json!(DRAFT));
    let mut properties: Map<String, Json> = columns.iter().map(|column| (column.name.clone(), json!(true))).collect();
    properties.extend(by_reference);
    schema.insert("properties".into(), properties.into());
    file.compile("", &schema.into()).map(Some)
}
