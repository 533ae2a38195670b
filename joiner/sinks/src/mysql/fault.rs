//! What MySQL's errors mean to a writer, by number (<https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html>, <https://mariadb.com/kb/en/mariadb-error-code-reference/>).

use sqlx::mysql::MySqlDatabaseError;

use crate::Error;

fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// Refused for what the rows say: a value that does not fit, a constraint, a trigger.
pub(super) fn is_about_data(error: &sqlx::Error) -> bool {
    matches!(
        number(error),
        Some(1048 | 1062 | 1216 | 1264 | 1292 | 1366 | 1367 | 1406 | 1452 | 1644 | 1690 | 3140 | 3141 | 3819 | 4025)
    )
}

/// The server has taken back the whole transaction, so that another could go on.
pub(super) fn is_deadlock(error: &sqlx::Error) -> bool {
    number(error) == Some(1213)
}

pub(super) fn describe(error: &sqlx::Error) -> String {
    match (number(error), error.as_database_error()) {
        (Some(number), Some(database)) => format!("{} [{number}]", database.message()),
        _ => error.to_string(),
    }
}

pub(super) fn classify(target: &str, error: &sqlx::Error) -> Error {
    let message = describe(error);
    let Some(number) = number(error) else {
        // What TLS has against a certificate comes as an error of the connection.
        return match error {
            sqlx::Error::Io(_) if !message.contains("certificate") => Error::unavailable(target, message),
            sqlx::Error::Tls(_) | sqlx::Error::Io(_) => {
                Error::misconfigured(target, message, "Give its authority with ssl-ca=PATH, or set ssl-mode as the server has it")
            }
            sqlx::Error::Protocol(_) => Error::unavailable(target, message),
            _ => Error::unexpected(target, message),
        };
    };
    match number {
        // Connections, locks, shutdown, resources; a read-only server is one that has been demoted, or whose disk is being looked after: its successor comes under the same name.
        1020
        | 1021
        | 1028
        | 1037..=1041
        | 1053
        | 1077..=1080
        | 1114
        | 1129
        | 1152..=1161
        | 1180
        | 1184
        | 1189
        | 1190
        | 1203
        | 1205
        | 1206
        | 1213
        | 1226
        | 1290
        | 1317
        | 1613
        | 1614
        | 1637
        | 1792
        | 1836
        | 1927
        | 3024
        | 3100
        | 3101 => Error::unavailable(target, message),
        1044 | 1045 | 1049 | 1130 | 1227 | 1251 | 1698 | 1862 | 3118 => Error::misconfigured(
            target,
            message,
            "Check user, password and database in the sink's url, and what the user is granted",
        ),
        1142 | 1143 | 1370 => Error::misconfigured(
            target,
            message,
            "Grant the user SELECT, INSERT, UPDATE, DELETE, CREATE and ALTER on the database",
        ),
        1146 => {
            Error::misconfigured(target, message, "Somebody removed it: it is made again when the sink is prepared, and loaded")
        }
        1071 | 1117 | 1118 | 1170 => {
            Error::misconfigured(target, message, "Promote fewer columns, or index fewer, in the sink's `tables`")
        }
        1054 | 1060 | 1061 | 1072 | 1136 | 1364 => {
            Error::misconfigured(target, message, "The tables are not as Tributary made them: give it a database of its own")
        }
        _ => Error::unexpected(target, message),
    }
}
