//! What PostgreSQL's errors mean to a writer, by SQLSTATE (<https://www.postgresql.org/docs/15/errcodes-appendix.html>).

use std::error::Error as _;

use crate::Error;

/// Refused for what the rows say: class 22 (data), 23 (constraints), 54 (limits), 44 (check option), P0 (a trigger's exception).
pub(super) fn is_about_data(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code().get(..2), Some("22" | "23" | "44" | "54" | "P0")))
}

/// The server's message with its detail, and where there is none, the causes: the driver's own words alone are "db error".
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        let detail = server.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
        return format!("{}{detail} [SQLSTATE {}]", server.message(), server.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(super) fn classify(target: &str, error: &tokio_postgres::Error) -> Error {
    let message = describe(error);
    let Some(code) = error.code().map(tokio_postgres::error::SqlState::code) else {
        // No answer of the server: the connection, or TLS.
        if message.contains("certificate") || message.contains("InvalidCertificate") {
            return Error::misconfigured(
                target,
                message,
                "Give its authority with sslrootcert=PATH, or set sslmode as the server has it",
            );
        }
        if message.contains("server does not support TLS") {
            return Error::misconfigured(target, message, "Turn TLS on at the server, or connect with sslmode=disable");
        }
        if message.contains("password missing") {
            return Error::misconfigured(target, message, "Name where the password is: password: {env: NAME}");
        }
        return Error::unavailable(target, message);
    };
    by_state(target, message, code)
}

pub(super) fn by_state(target: &str, message: String, code: &str) -> Error {
    match code {
        // A read-only server is one that has been demoted, or whose disk is being looked after: its successor comes under the same name.
        "25006" => Error::unavailable(target, message),
        "42501" => Error::misconfigured(
            target,
            message,
            "Grant the user CREATE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables",
        ),
        "42P01" | "3F000" => {
            Error::misconfigured(target, message, "Somebody removed it: it is made again when the sink is prepared, and loaded")
        }
        _ => match code.get(..2) {
            // Connection, rollback, resources, intervention, system error, feature limits of poolers.
            Some("08" | "40" | "53" | "55" | "57" | "58") => Error::unavailable(target, message),
            Some("28" | "3D") => {
                Error::misconfigured(target, message, "Check user, password and database in the sink's url, and pg_hba.conf")
            }
            Some("42" | "3F") => {
                Error::misconfigured(target, message, "The tables are not as Tributary made them: give it a schema of its own")
            }
            _ => Error::unexpected(target, message),
        },
    }
}
