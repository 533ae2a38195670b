//! SQL Server's error messages: number, severity and text as the real one gives them, so that clients which look at the number or read the text
//! behave as they would there.
//!
//! Errors raised inside SQLite (by custom functions and triggers) can only carry text: [`pack`] and [`unpack`] put the whole error into it.

use tds::SqlError;

pub(crate) fn error(number: i32, class: u8, message: String) -> SqlError {
    SqlError { number, state: 1, class, message, procedure: String::new(), line: 1 }
}

pub(crate) fn syntax(near: &str, line: u32) -> SqlError {
    SqlError { line, ..error(102, 15, format!("Incorrect syntax near '{near}'.")) }
}

pub(crate) fn syntax_keyword(near: &str, line: u32) -> SqlError {
    SqlError { line, ..error(156, 15, format!("Incorrect syntax near the keyword '{near}'.")) }
}

pub(crate) fn invalid_object(name: &str) -> SqlError {
    error(208, 16, format!("Invalid object name '{name}'."))
}

pub(crate) fn invalid_column(name: &str) -> SqlError {
    error(207, 16, format!("Invalid column name '{name}'."))
}

pub(crate) fn no_variable(name: &str) -> SqlError {
    error(137, 15, format!("Must declare the scalar variable \"{name}\"."))
}

pub(crate) fn no_procedure(name: &str) -> SqlError {
    error(2812, 16, format!("Could not find stored procedure '{name}'."))
}

pub(crate) fn no_function(name: &str) -> SqlError {
    error(195, 15, format!("'{name}' is not a recognized built-in function name."))
}

pub(crate) fn divide_by_zero() -> SqlError {
    error(8134, 16, "Divide by zero error encountered.".into())
}

pub(crate) fn length_invalid(name: &str, length: i64, limit: u16) -> SqlError {
    if length == 0 {
        return error(1001, 16, format!("Line 1: Length or precision specification {length} is invalid."));
    }
    error(
        131,
        15,
        format!("The size ({length}) given to the type '{name}' exceeds the maximum allowed for any data type ({limit})."),
    )
}

/// 2628 before the assignment's target is known; [`truncated_in`] completes it.
pub(crate) fn truncated(value: &str) -> SqlError {
    error(2628, 16, format!("String or binary data would be truncated in table '', column ''. Truncated value: '{value}'."))
}

pub(crate) fn truncated_in(e: SqlError, table: &str, column: &str) -> SqlError {
    if e.number != 2628 {
        return e;
    }
    SqlError { message: e.message.replacen("in table '', column ''", &format!("in table '{table}', column '{column}'"), 1), ..e }
}

pub(crate) fn denied(permission: &str, object: &str, database: &str, schema: &str) -> SqlError {
    error(
        229,
        14,
        format!("The {permission} permission was denied on the object '{object}', database '{database}', schema '{schema}'."),
    )
}

pub(crate) fn unsupported(what: &str) -> SqlError {
    error(40_000, 16, format!("{what} is not supported by the stand-in."))
}

const MARK: char = '\u{1}';

/// The error as one string that survives SQLite.
pub(crate) fn pack(e: &SqlError) -> String {
    format!("{MARK}{}{MARK}{}{MARK}{}{MARK}{}{MARK}", e.number, e.class, e.state, e.message)
}

/// The error that [`pack`] made, wherever in `text` it stands.
pub(crate) fn unpack(text: &str) -> Option<SqlError> {
    let mut parts = text.split(MARK).skip(1);
    let number = parts.next()?.parse().ok()?;
    let class = parts.next()?.parse().ok()?;
    let state = parts.next()?.parse().ok()?;
    Some(SqlError { state, ..error(number, class, parts.next()?.to_string()) })
}
